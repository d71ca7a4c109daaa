"""The classifier: its model against torch's own, its readers, its folds, its files."""

import csv
import gzip
import io
import json
import math
import os
import struct
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, SAMPLE, error_of, run_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

SCRIPT = ROOT / "0123456_transformer.py"
TINY = "--d-model 8 --nhead 2 --d-hid 8 --folds 2 --epochs 1 --embeddings none".split()
HEAD = "Id,Category,Title,Description\n"
ROWS = [f"{i},{i % 4 + 1},title {i},text {i}\n" for i in range(1, 41)]
TABLE = HEAD + "".join(ROWS)
FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ", 200)),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def T(transformer):
    return transformer


@pytest.fixture
def folder(tmp_path):
    """A folder of a course of 40 texts."""
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(TABLE)
    return tmp_path


def args_of(T, *options):
    return T.parse_args([*TINY, *map(str, options)])


# ------------------------------------------------------------------------------------------- model


def test_attention_by_hand(T):
    """Scores log 3 and 0 give weights 3/4 and 1/4; what is masked has none."""
    query = torch.tensor([[math.log(3.0) * 2, 0, 0, 0]])
    key = torch.eye(4)[:3]
    value = torch.tensor([[4.0], [8.0], [100.0]])
    output, weights = T.attention(query, key, value, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25, 0.0]]))
    torch.testing.assert_close(output, torch.tensor([[5.0]]))


def test_attention_is_torchs(T):
    query, key, value = torch.randn(3, 2, 4, 7, 6, dtype=torch.double, requires_grad=True)
    mask = torch.rand(2, 1, 7, 7) < 0.7
    mask[..., 0] = True
    ours = T.attention(query, key, value, mask)[0]
    theirs = F.scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        *(torch.autograd.grad(y.sin().sum(), query) for y in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ["GELU", "ReLU"])
def test_layer_is_torchs(T, activation):
    ours = T.EncoderLayer(24, 4, 48, 0.1, activation).double().eval()
    options = {"activation": activation.lower(), "batch_first": True, "norm_first": True}
    theirs = nn.TransformerEncoderLayer(24, 4, 48, 0.1, **options).double().train(False)
    theirs.self_attn.in_proj_weight.data = ours.attention.qkv.weight.data
    theirs.self_attn.in_proj_bias.data = ours.attention.qkv.bias.data
    theirs.self_attn.out_proj.load_state_dict(ours.attention.out.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward[0].state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward[2].state_dict())
    for part in (ours.norm1, ours.norm2):
        nn.init.normal_(part.weight)
    theirs.norm1.load_state_dict(ours.norm1.state_dict())
    theirs.norm2.load_state_dict(ours.norm2.state_dict())
    x = torch.randn(3, 9, 24, dtype=torch.double)
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    output, weights = ours(x, mask)
    expected = theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(output[mask], expected[mask], rtol=1e-10, atol=1e-10)
    _, maps = theirs.self_attn(
        *[theirs.norm1(x)] * 3, key_padding_mask=~mask, average_attn_weights=False
    )
    torch.testing.assert_close(weights, maps, rtol=1e-10, atol=1e-10)


@pytest.fixture
def model(T):
    vocabulary = {f"w{i}": i for i in range(30)}
    model = T.TransformerClassifier(args_of(T, "--nlayers", 2), vocabulary, 4).double().eval()
    model.ratios.copy_(torch.randn(30, 4))
    model.ratios[0] = 0
    return model


def test_padding_changes_no_logit(model):
    tokens = torch.randint(1, 30, (5, 9))
    padded = F.pad(tokens, (0, 4))
    torch.testing.assert_close(model(padded), model(tokens), rtol=1e-10, atol=1e-10)
    logits, maps = model(padded, return_attention=True)
    assert [part.shape for part in maps] == [(5, 2, 13, 13)] * 2 and logits.shape == (5, 4)
    assert maps[-1][..., 9:].abs().max() < 1e-12


def test_predict_keeps_what_stands_behind_padding(T, model):
    """Texts with <pad> within them, as a deletion test makes them, lose no tail."""
    texts = torch.tensor([[5, 0, 7, 0, 9, 11], [3, 4, 0, 0, 0, 0], [0, 0, 0, 0, 0, 8]])
    torch.testing.assert_close(
        T.predict(model, texts), model(texts).softmax(1), rtol=1e-8, atol=1e-8
    )


def test_text_without_words_is_one_unknown(T, model):
    ids = T.encode([[], ["w3", "never seen"]], model.vocabulary)
    assert [part.tolist() for part in ids] == [[T.UNK], [3, T.UNK]]
    assert T.predict(model, ids).isfinite().all()
    assert model(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()


def test_naive_bayes_by_hand(T, model):
    """Class 0: words 2, 2, 3; class 1: word 3. With half a count for each of 5 words 2.5 and 1.5 in
    5.5, 0.5 and 1.5 in 3.5. Logits get the ratios of the words, over the root of their number."""
    texts = [torch.tensor([2, 3, 2, 1]), torch.tensor([3, 0])]
    ratios = T.log_count_ratios(texts, torch.tensor([0, 1]), 5, 2)
    two = math.log(2.5 / 5.5 / (0.5 / 3.5)) / 2
    three = math.log(3.5 / 5.5) / 2
    expected = torch.tensor([[0, 0], [0, 0], [two, -two], [three, -three], [0, 0]])
    torch.testing.assert_close(ratios, expected)
    tokens = torch.tensor([[4, 4, 6, 9]])
    added = model.ratios[[4, 4, 6, 9]].sum(0) / 2
    with_ratios = model(tokens)
    model.ratios.zero_()
    torch.testing.assert_close(with_ratios - model(tokens), added[None])


def test_naive_bayes_is_silent_in_training(model):
    logits = []
    model.train()
    for scale in (1, 5):
        torch.manual_seed(0)
        model.ratios *= scale
        logits.append(model(torch.tensor([[4, 4, 6, 9]])))
    assert torch.equal(*logits)


# ------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize(
    "data",
    [
        TABLE,
        "\ufeff" + TABLE,
        "\ufeff\ufeff" + TABLE,
        TABLE.replace("\n", "\r\n"),
        TABLE.replace("\n", "\n\n"),
        TABLE + "  ,, ,\n   \n",
        TABLE.replace(",", "\t"),
        TABLE.replace(",", ";"),
        TABLE.replace(",", ", "),
        TABLE.replace(HEAD, " ID ,category , TITLE,Description \n"),
        TABLE.replace("Category", "Label").replace("Description", "Content"),
        "".join(f"{i},{line}" for i, line in enumerate(TABLE.splitlines(keepends=True))),
        "".join(line.replace("\n", ",more\n") for line in (HEAD, *ROWS)),
    ],
)
def test_tables_that_are_plainly_meant(T, folder, data):
    (folder / "train.csv").write_text(data, newline="")
    train, test, classes = T.load_news(args_of(T, "--data", folder))
    assert classes == ["1", "2", "3", "4"] and len(train) == 40
    assert train["tokens"].tolist() == test["tokens"].tolist()
    assert train["target"].tolist() == [i % 4 for i in range(1, 41)]


def test_cells_are_what_they_are(T, folder):
    lines = [
        "007,World,NA,None",
        '8,"Sci, Tech","two\nlines","a ""b"""',
        "9,World,,",
        "10,World,x,y",
    ]
    (folder / "train.csv").write_text(HEAD + "\n".join([*lines, '11,"Sci, Tech",x,y', ""]))
    table = T.read_table(folder / "train.csv", ["id", "label"])
    assert table["id"].tolist() == ["007", "8", "9", "10", "11"]
    assert table["title"].tolist()[:2] == ["NA", "two\nlines"]
    train, _, classes = T.load_news(args_of(T, "--data", folder))
    assert classes == ["Sci, Tech", "World"] and train["tokens"][0] == ["na", "none"]
    assert train["tokens"][2] == []


def test_labels_that_a_float_has_been(T, folder):
    (folder / "train.csv").write_text(TABLE.replace(",1,", ",1.0,").replace(",2,", ",10.0,"))
    assert T.load_news(args_of(T, "--data", folder))[2] == ["1", "10", "3", "4"]


@pytest.mark.parametrize(
    "data, part",
    [
        ("", "no table"),
        (" , ,,\n,,\n", "no table"), ("x\ny\n", "no {"),
        (HEAD, "rows"),
        (TABLE.replace("Title", "Headline"), "title"),
        (TABLE.replace("Category", "Class"), "label"),
        (TABLE + "99,1\n", "99, 1"),
        (TABLE + "99,1,a,b,c\n", "line 42"),
        (TABLE + "99,,a,b\n", "99"),
        (TABLE + ",1,a,b\n", "a, b"),
        (TABLE + "7,1,a,b\n", "twice"),
        (TABLE.replace("text 9\n", '"quote\n').replace("text 20\n", '"y"\n'), "'\"'"),
        (TABLE.replace("title 9", '"'), "end of data"),
        (TABLE.encode() + b"99,1,caf\xe9,x\n", "UTF-8"),
        (TABLE.encode("utf-16"), "UTF-8"),
        (HEAD + "1,1,a,b\n2,1,a,b\n", "two in 2 rows"),
        (HEAD + "".join(ROWS[:5]), "two in 2 rows"),
    ],
)
def test_tables_that_cannot_be_read(T, folder, capsys, data, part):
    (folder / "train.csv").write_bytes(data.encode() if isinstance(data, str) else data)
    assert part in error_of(capsys, T.load_news, args_of(T, "--data", folder))


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@FUZZ
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6))
def test_any_text_comes_back(T, tmp_path_factory, cells):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    rows = [(f"i{i}", *pair) for i, pair in enumerate(cells)]
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("Id", "Title", "Content"), *rows])
    table = T.read_table(path, ["id"])
    same = [
        tuple(cell.replace("\r\n", "\n").replace("\r", "\n").strip() for cell in row)
        for row in rows
    ]
    assert [*zip(table["id"], table["title"], table["content"], strict=True)] == same


@FUZZ
@given(st.data())
def test_broken_tables_are_read_or_refused(T, tmp_path_factory, data):
    text = bytearray(TABLE.encode())
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(text)))
        stop = start + data.draw(st.sampled_from([0, 1, 16, 256]))
        text[start:stop] = data.draw(
            st.binary(max_size=6) | st.sampled_from([b'"', b",", b"\n", b"\xff"])
        )
    folder = tmp_path_factory.getbasetemp()
    for name in ("train.csv", "test.csv"):
        (folder / name).write_bytes(bytes(text))
    try:
        train, _, classes = T.load_news(args_of(T, "--data", folder))
    except SystemExit as stopped:
        assert stopped.code == 2
    else:
        assert train["target"].max() < len(classes) and train["id"].is_unique


@pytest.mark.parametrize(
    "raw, cleaned",
    [
        ("Oil #39;s up", "oil's up"),
        (" quot;No quot;", ' "no "'),
        ("&lt;b&gt;Big&lt;/b&gt; \\$44 (AP)", " big   $44 (ap)"),
        ("x &#" + "9" * 5000 + ";", "x &#;"),
    ],
)
def test_crumbs_of_html(T, raw, cleaned):
    assert T.clean(raw) == cleaned


# ----------------------------------------------------------------------------------------- vectors

LINES = "alpha 1 2 3\nbeta 4 5 6\nother 7 8 9\n"


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        "3 3\n" + LINES,
        "\ufeff" + LINES,
        LINES.replace(" ", "\t"),
        LINES.replace(" ", "  ", 1).replace("\n", " \n"),
        LINES.replace("\n", "\r\n"),
        LINES + "\n",
        LINES + ". . 1 2 3\nalpha beta 1 1 1\n",
        LINES.replace("beta", "Beta"),
        "Alpha 9 9 9\n" + LINES + "ALPHA 8 8 8\n",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_vectors_in_text(T, tmp_path, text, packed):
    path = tmp_path / ("v.txt.gz" if packed else "v.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    known, table = T.load_vectors(str(path), {"alpha", "beta", ".", "3"})
    assert known == ["alpha", "beta"]
    assert table.tolist() == [[0, 0, 0], [0, 0, 0], [1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "text", ["", "other 1 2\n", "alpha 1 nan\n", "x 1 2\nalpha 1\n", "alpha 1 x\n"]
)
def test_vectors_that_teach_nothing(T, tmp_path, capsys, text):
    (tmp_path / "v.txt").write_text(text)
    assert "none" in error_of(capsys, T.load_vectors, str(tmp_path / "v.txt"), {"alpha"})


def test_a_cut_file_of_vectors_is_read_up_to_the_cut(T, tmp_path):
    (tmp_path / "v.txt").write_text("beta 1 2\nalpha 1")
    assert T.load_vectors(str(tmp_path / "v.txt"), {"alpha", "beta"})[0] == ["beta"]


def test_vectors_in_npz(T, tmp_path, capsys):
    arrays = {
        "words": np.array(["alpha"]),
        "vectors": np.ones((1, 3), np.int8),
        "scale": np.ones(1),
    }
    np.savez(tmp_path / "v.npz", **arrays)
    assert T.load_vectors(str(tmp_path / "v.npz"), {"alpha"})[1].tolist()[2] == [1, 1, 1]
    (tmp_path / "v.npz").write_bytes((tmp_path / "v.npz").read_bytes()[:200])
    assert "none" in error_of(capsys, T.load_vectors, str(tmp_path / "v.npz"), {"alpha"})


def test_few_words_found_is_told(T, tmp_path, capsys):
    (tmp_path / "v.txt").write_text(LINES)
    T.load_vectors(str(tmp_path / "v.txt"), {"alpha", "x", "y"})
    assert "notice: 1 of 3 words" in capsys.readouterr().err


def test_vectors_are_kept_once(T, folder):
    """Whatever the number of folds: model.pt grows by less than one copy of them a fold."""
    words = [f"w{i}" for i in range(200)]
    vectors = "".join(f"{word} " + " ".join(["0.5"] * 300) + "\n" for word in words)
    (folder / "v.txt").write_text(vectors)
    rows = [f"{i},{i % 2},{' '.join(words)},x\n" for i in range(12)]
    (folder / "train.csv").write_text(HEAD + "".join(rows))
    sizes = []
    for folds in (2, 6):
        more = [
            "--data",
            folder,
            "--out",
            folder / "o",
            "--embeddings",
            folder / "v.txt",
            "--folds",
            folds,
        ]
        T.main([*TINY, *map(str, more)])
        sizes.append((folder / "o" / "model.pt").stat().st_size)
    copy = 200 * 300 * 4
    assert sizes[0] < 2 * copy and sizes[1] - sizes[0] < copy
    models, _ = T.load_checkpoint(folder / "o" / "model.pt")
    assert len({model.vectors.data_ptr() for model in models}) == 1
    assert models[0].vectors[models[0].vocabulary["w7"]].tolist() == [0.5] * 300


# ------------------------------------------------------------------------------- folds and training


def test_folds_are_stratified(T, folder):
    train, _, _ = T.load_news(args_of(T, "--data", folder, "--folds", 5))
    assert set(pd.crosstab(train["fold"], train["target"]).to_numpy().ravel()) == {2}
    other, _, _ = T.load_news(args_of(T, "--data", folder, "--folds", 5, "--seed", 1))
    assert train["fold"].tolist() != other["fold"].tolist()


def test_held_out_rows_teach_nothing(T, folder):
    args = args_of(T, "--data", folder)
    train, _, classes = T.load_news(args)
    spoilt = train.copy()
    held = spoilt["fold"] == 1
    spoilt["tokens"] = [
        ["leak"] * 3 if out else text for out, text in zip(held, train["tokens"], strict=True)
    ]
    spoilt.loc[held, "target"] = 0
    (one, first), (two, second) = (
        T.train_fold(args, rows, 1, classes, [], None) for rows in (train, spoilt)
    )
    assert "leak" not in two.vocabulary and one.vocabulary == two.vocabulary
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name]), name
    assert first[0][:2] == second[0][:2] and first[0][2:] != second[0][2:]


@pytest.mark.parametrize("schedule", ["linear", "cos"])
@pytest.mark.parametrize(
    "epochs, peak", [(10, 3), (1, 1), (3, 1), (5, 1)]
)  # 40, 4, 12 and 20 steps
def test_the_peak_of_the_rate_is_lr(T, folder, monkeypatch, schedule, epochs, peak):
    rates = []

    class Spy(torch.optim.SGD):
        def step(self, *rest):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*rest)

    monkeypatch.setattr(torch.optim, "SGD", Spy)
    options = "--optimizer SGD --lr 0.25 --batch-size 5 --schedule".split()
    args = args_of(T, "--data", folder, *options, schedule, "--epochs", epochs)
    train, _, classes = T.load_news(args)
    T.train_fold(args, train, 0, classes, [], None)
    assert len(rates) == 4 * epochs and max(rates) == 0.25 and rates.index(0.25) == peak
    assert rates[-1] < 1e-3


def test_evaluate_by_hand(T):
    """Wilson's interval of 9 in 10, as statsmodels gives it."""
    right = [[0.9, 0.1]] * 7 + [[0.1, 0.9]] * 2
    figures = T.evaluate(torch.tensor([*right, [0.9, 0.1]]), [0] * 7 + [1] * 3)
    assert figures["oof_accuracy"] == pytest.approx(0.9) and figures["confusion"] == [
        [7, 0],
        [1, 2],
    ]
    interval = figures["oof_accuracy_low"], figures["oof_accuracy_high"]
    assert interval == pytest.approx((0.59585, 0.98213), abs=1e-4)
    assert figures["oof_loss_nats"] == pytest.approx(-(9 * math.log(0.9) + math.log(0.1)) / 10)


def test_history_and_submission_are_of_the_saved_models(T, folder):
    options = [*TINY, "--data", str(folder), "--out", str(folder / "o"), "--epochs", "3"]
    metrics = T.main(options)
    models, config = T.load_checkpoint(folder / "o" / "model.pt")
    train, test, classes = T.load_news(config)
    oof = torch.zeros(40, 4, dtype=torch.double)
    for fold, model in enumerate(models):
        held = train[train["fold"] == fold]
        oof[held.index] = T.predict(model, T.encode(held["tokens"], model.vocabulary))
        accuracy = (
            (oof[held.index].argmax(1) == torch.tensor(held["target"].tolist())).double().mean()
        )
        assert metrics["history"][fold][-1][3] == accuracy.item()
    assert metrics == json.loads((folder / "o" / "metrics.json").read_text())
    assert (
        metrics["oof_accuracy"]
        == (oof.argmax(1) == torch.tensor(train["target"].tolist())).double().mean()
    )
    mean = sum(T.predict(model, T.encode(test["tokens"], model.vocabulary)) for model in models)
    lines = (folder / "o" / "submission.csv").read_text().splitlines()
    assert lines == ["Id,Category", *(f"{i},{classes[k]}" for i, k in enumerate(mean.argmax(1), 1))]


# ------------------------------------------------------------------------------- files and commands


@pytest.fixture
def many(tmp_path):
    """Over 1,000 rows, more than torch shows of a tensor; short texts."""
    rows = [f"{i},{i % 2 + 1},w{i % 7} w{i % 11},x\n" for i in range(1100)]
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(HEAD + "".join(rows))
    (tmp_path / "v.txt").write_text("".join(f"w{i} {i} 0.5\n" for i in range(11)))
    return tmp_path


def test_resumed_is_the_run_never_stopped(T, many, capsys, monkeypatch):
    options = [*TINY, "--data", str(many), "--folds", "3", "--embeddings", str(many / "v.txt")]
    T.main([*options, "--out", str(many / "whole")])
    T.main([*options, "--out", str(many / "again")])
    train_fold = T.train_fold

    def stopped(args, train, fold, *rest):
        if fold == 2:
            raise KeyboardInterrupt
        return train_fold(args, train, fold, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(T, "train_fold", stopped)
        with pytest.raises(KeyboardInterrupt):
            T.main([*options, "--out", str(many / "cut")])
    resume = [*options, "--out", str(many / "cut"), "--resume"]
    texts = {name: (many / name).read_text() for name in ("train.csv", "v.txt")}
    changes = [("train.csv", "555,2,", "555,1,"), ("train.csv", "555,2,w2", "555,2,w3")]
    for name, old, new in [*changes, ("v.txt", "w6 6 0.5", "w6 6 0.6")]:
        (many / name).write_text(texts[name].replace(old, new))
        assert texts[name].count(old) == 1 and "other options" in error_of(capsys, T.main, resume)
        (many / name).write_text(texts[name])
    assert "other options" in error_of(capsys, T.main, [*resume, "--dropout", "0.2"])
    calls = []
    monkeypatch.setattr(T, "train_fold", lambda *all: calls.append(all[2]) or train_fold(*all))
    T.main(resume)
    bytes_of = [(many / run / "submission.csv").read_bytes() for run in ("whole", "again", "cut")]
    assert calls == [2] and bytes_of[0] == bytes_of[1] == bytes_of[2]


@pytest.mark.parametrize("fault", ["empty", "text", "cut", "flipped", "foreign", "folder"])
def test_damaged_files_are_refused(T, folder, capsys, fault):
    options = [*TINY, "--data", str(folder), "--out", str(folder / "o")]
    T.main(options)
    path = folder / "o" / "checkpoint.pt"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size).header_offset
    start = largest + 30 + sum(struct.unpack("<HH", whole[largest + 26 : largest + 30]))
    flipped[start + 8] ^= 1  # of some weight: torch itself does not notice
    foreign = io.BytesIO()
    torch.save({"weights": 3}, foreign)
    faults = {"empty": b"", "text": b"hello", "cut": whole[:-99], "flipped": bytes(flipped)}
    path.write_bytes(faults.get(fault, foreign.getvalue()))
    if fault == "folder":
        path.unlink()
        path.mkdir()
    assert "checkpoint.pt" in error_of(capsys, T.main, [*options, "--resume"])


def test_dry_run_has_a_folder_of_its_own(T, folder, monkeypatch):
    monkeypatch.chdir(folder)
    T.main([*TINY, "--data", ".", "--out", "o"])
    before = {path: path.read_bytes() for path in (folder / "o").iterdir()}
    assert folder / "o" / "submission.csv" in before and not (folder / "submission.csv").exists()
    T.main([*TINY, "--data", ".", "--out", "o", "--dry-run"])
    assert before == {
        path: path.read_bytes() for path in (folder / "o").iterdir() if path.is_file()
    }
    T.main([*TINY, "--data", ".", "--dry-run", "--submission", "mine.csv"])
    names = {path.name for path in (folder / "results/dry_run/transformer").iterdir()}
    pictures = {"curves.png", "confusion.png", "attention.png"}
    assert names == {"metrics.json", "model.pt", "checkpoint.pt", "submission.csv", *pictures}
    assert not (folder / "mine.csv").exists()


@pytest.mark.parametrize(
    "options, part",
    [("--nhead 3", "--nhead"), ("--dropout 1", "--dropout"), ("--tokenizer x", "--tokenizer")],
)
def test_one_line_says_what_is_wrong(folder, options, part):
    process = run_script(SCRIPT, *TINY, "--data", folder, *options.split(), cwd=folder)
    assert process.returncode == 2 and part in process.stderr.splitlines()[-1], process.stderr


def test_a_loss_that_is_not_finite(T, folder, capsys, monkeypatch):
    monkeypatch.setattr(T, "train_epoch", lambda *all: [math.nan, 0.5])
    assert "--lr" in error_of(
        capsys, T.main, [*TINY, "--data", str(folder), "--out", str(folder / "o")]
    )


def test_a_link_to_the_script_finds_the_vectors(folder):
    (folder / "link.py").symlink_to(SCRIPT)
    process = run_script(folder / "link.py", "--dry-run", "--data", SAMPLE, cwd=folder)
    assert process.returncode == 0 and "notice: no pretrained" not in process.stderr
    metrics = json.loads((folder / "results/dry_run/transformer/metrics.json").read_text())
    assert metrics["pretrained_words"] > 100
