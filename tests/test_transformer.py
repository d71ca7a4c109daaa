"""The classifier: its model against torch's own, its readers, its folds, its files."""

import gzip
import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import FUZZ, ROOT, SAMPLE, error_of, load, spoil
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

T = load("transformer")
TINY = "--d-model 8 --nhead 2 --d-hid 8 --folds 2 --epochs 1 --embeddings none".split()
HEAD = "Id,Category,Title,Description\n"
ROWS = [f"{i},{i % 4 + 1},title {i},text {i}\n" for i in range(1, 41)]
TABLE = HEAD + "".join(ROWS)


@pytest.fixture
def folder(tmp_path):
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(TABLE)
    return tmp_path


def args_of(folder, *options):
    return T.parse_args([*TINY, "--data", str(folder), *map(str, options)])


def test_attention_by_hand():
    """Scores log 3 and 0 give weights 3/4 and 1/4; what is masked has none."""
    query = torch.tensor([[math.log(3.0) * 2, 0, 0, 0]])
    value = torch.tensor([[4.0], [8.0], [100.0]])
    mask = torch.tensor([[True, True, False]])
    output, weights = T.attention(query, torch.eye(4)[:3], value, mask)
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25, 0.0]]))
    torch.testing.assert_close(output, torch.tensor([[5.0]]))


@pytest.mark.parametrize("activation", ["GELU", "ReLU"])
def test_layer_is_torchs(activation):
    ours = T.EncoderLayer(24, 4, 48, 0.1, activation).double().eval()
    options = {"activation": activation.lower(), "batch_first": True, "norm_first": True}
    theirs = nn.TransformerEncoderLayer(24, 4, 48, 0.1, **options).double().train(False)
    nn.init.normal_(ours.norm1.weight)
    names = {"attention.qkv.": "self_attn.in_proj_", "attention.out": "self_attn.out_proj"}
    names |= {"feed_forward.0": "linear1", "feed_forward.2": "linear2"}
    weights = {}
    for name, weight in ours.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        weights[name] = weight
    theirs.load_state_dict(weights)
    x = torch.randn(3, 9, 24, dtype=torch.double, requires_grad=True)
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    output, weights = ours(x, mask)
    expected = theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(output[mask], expected[mask], rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(y[mask].sin().sum(), x)[0] for y in (output, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    same = [theirs.norm1(x)] * 3
    _, maps = theirs.self_attn(*same, key_padding_mask=~mask, average_attn_weights=False)
    torch.testing.assert_close(weights, maps, rtol=1e-10, atol=1e-10)
    assert not torch.equal(ours.train()(x, mask)[0], output)  # dropout


@pytest.fixture(params=[None, torch.randn(20, 6)], ids=["trained", "pretrained"])
def model(request):
    vocabulary, args = {f"w{i}": i for i in range(30)}, args_of(".", "--nlayers", 2)
    model = T.TransformerClassifier(args, vocabulary, 4, request.param).double().eval()
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


def test_logits_are_of_places_and_of_the_largest_features(model):
    tokens, features = torch.tensor([[5, 9, 3, 7, 11]]), []
    model.ratios.zero_()
    model.norm.register_forward_hook(lambda *call: features.append(call[2]))
    logits = model(tokens)
    torch.testing.assert_close(logits, model.classify(features[0].amax(1)))
    assert (logits - model(tokens.flip(1))).abs().max() > 1e-6


def test_words_are_dropped_in_training(model):
    texts, seen = [torch.randint(2, 30, (100,))] * 40 + [torch.tensor([7])] * 9, []
    model.register_forward_hook(lambda *call: seen.append(call[1][0]))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)  # a scheduler, too: it steps
    T.train_epoch(model, optimizer, optimizer, texts, torch.zeros(49).long(), args_of("."))
    assert 1800 < sum((tokens > 0).sum() for tokens in seen) < 2200
    assert all((tokens[:, 0] > 0).all() for tokens in seen)  # never all of a text


def test_predict_keeps_what_stands_behind_padding(model):
    """Texts with <pad> within them, as a deletion test makes them, lose no tail."""
    texts = torch.tensor([[5, 0, 7, 0, 9, 11], [3, 4, 0, 0, 0, 0], [0, 0, 0, 0, 0, 8]])
    torch.testing.assert_close(T.predict(model, texts), model(texts).softmax(1), rtol=1e-8, atol=0)


def test_text_without_words_is_one_unknown(model):
    ids = T.encode([[], ["w3", "never seen"]], model.vocabulary)
    assert [part.tolist() for part in ids] == [[T.UNK], [3, T.UNK]]
    assert T.predict(model, ids).isfinite().all()
    assert model(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()


def test_naive_bayes_by_hand(model):
    """Class 0: words 2, 2, 3; class 1: word 3. With half a count for each of both 2.5 and 1.5 in 4,
    0.5 and 1.5 in 2. Logits get the ratios of the words, over the root of their number,
    but not in training."""
    texts = [torch.tensor([2, 3, 2, 1]), torch.tensor([3, 0])]
    ratios = T.log_count_ratios(texts, torch.tensor([0, 1]), 5, 2)
    two = math.log(2.5 / 4 / (0.5 / 2)) / 2
    three = math.log(1.5 / 4 / (1.5 / 2)) / 2
    expected = torch.tensor([[0, 0], [0, 0], [two, -two], [three, -three], [0, 0]])
    torch.testing.assert_close(ratios, expected)
    assert not T.log_count_ratios([torch.tensor([1])], torch.tensor([0]), 5, 2).any()  # no word
    tokens = torch.tensor([[4, 4, 6, 9]])
    added = model.ratios[tokens[0]].sum(0) / (2 if model.vectors is None else 4)
    for training, difference in ((True, 0 * added), (False, added)):
        logits = []
        for ratios in (model.ratios.clone(), torch.zeros(30, 4), model.ratios.clone()):
            model.ratios.copy_(ratios)
            torch.manual_seed(0)
            logits.append(model.train(training)(tokens))
        torch.testing.assert_close(logits[0] - logits[1], difference[None])


MEANT = [TABLE, "\ufeff" + TABLE, "\ufeff\ufeff" + TABLE, TABLE + "  ,, ,\n   \n"]
MEANT += [TABLE.replace("\n", end) for end in ("\r\n", "\n\n", ",more\n")]
MEANT += [TABLE.replace(",", separator) for separator in ("\t", ";", ", ")]
MEANT += ["\n \n" + TABLE.replace(",", ";")]
MEANT += [TABLE.replace(HEAD, " ID ,category , TITLE,Description ,\n")]
MEANT += [TABLE.replace("Category", "Label").replace("Description", "Content")]
MEANT += ["".join(f"{i},{line}" for i, line in enumerate(TABLE.splitlines(keepends=True)))]


@pytest.mark.parametrize("data", MEANT)
def test_tables_that_are_plainly_meant(folder, data):
    (folder / "train.csv").write_text(data, newline="")
    train, test, classes = T.load_news(args_of(folder))
    assert classes == ["1", "2", "3", "4"] and len(train) == 40
    assert train["tokens"].tolist() == test["tokens"].tolist()
    assert train["target"].tolist() == [i % 4 for i in range(1, 41)]


def test_cells_are_what_they_are(folder):
    lines = '007,World,NA,None\n8,"Sci, Tech","two\nlines","a ""b"""\n9,World,,\n10,World,x,y\n'
    (folder / "train.csv").write_text(HEAD + lines + '11,"Sci, Tech",x,y\n')
    table = T.read_table(folder / "train.csv", ["id", "label"])
    assert table["id"].tolist() == ["007", "8", "9", "10", "11"]
    assert table["title"].tolist()[:2] == ["NA", "two\nlines"]
    train, _, classes = T.load_news(args_of(folder))
    assert classes == ["Sci, Tech", "World"] and train["tokens"][0] == ["na", "none"]
    assert train["tokens"][2] == []
    (folder / "train.csv").write_text(TABLE.replace("text 9\n", '"a \\"b\\", c"\n'))
    assert T.read_table(folder / "train.csv", ["id"])["content"][8] == 'a "b", c'
    (folder / "train.csv").write_text(TABLE.replace(",1,", ",1.0,").replace(",2,", ",10.0,"))
    assert T.load_news(args_of(folder))[2] == ["1", "10", "3", "4"]  # as before a float had them


REFUSED = [("", "no table"), (" , ,,\n,,\n", "no table"), ("x\ny\n", "no id"), (HEAD, "rows")]
REFUSED += [(TABLE.replace(*change), change[0].lower()) for change in (("Title", "x"), ("Id", "x"))]
REFUSED += [(TABLE.replace("Category", "x"), "label"), (TABLE + "99,1\n", "99, 1")]
REFUSED += [(TABLE + "99,1,a,b,c\n", "line 42"), (TABLE + "99,,a,b\n", "99")]
REFUSED += [(TABLE + ",1,a,b\n", "a, b"), (TABLE + "7,1,a,b\n", "repeated")]
REFUSED += [(TABLE.replace("text 9\n", '"quote\n').replace("text 20\n", '"y"\n'), "'\"'")]
REFUSED += [(TABLE.replace("text 9", '"text 9').replace("text 20", '20"'), "open quote")]
REFUSED += [(TABLE.replace("title 9", '"'), "end of data"), (TABLE.encode("utf-16"), "UTF-8")]
REFUSED += [(TABLE.encode() + b"99,1,caf\xe9,x\n", "UTF-8"), (HEAD + ROWS[0] * 2, "repeated")]
REFUSED += [(HEAD + "".join(ROWS[:n]), "--folds = 2 rows") for n in (2, 5)]


@pytest.mark.parametrize("data, part", REFUSED)
def test_tables_that_cannot_be_read(folder, capsys, data, part):
    (folder / "train.csv").write_bytes(data.encode() if isinstance(data, str) else data)
    assert part in error_of(capsys, T.load_news, args_of(folder))


@FUZZ
@given(st.data())
def test_broken_tables_are_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    for name in ("train.csv", "test.csv"):
        (folder / name).write_bytes(spoil(data.draw, TABLE.encode()))
    try:
        train, _, classes = T.load_news(args_of(folder))
    except SystemExit as stopped:
        assert stopped.code == 2
    else:
        assert train["target"].max() < len(classes) and train["id"].is_unique


def test_crumbs_of_html():
    assert T.clean("Oil #39;s up quot;No quot;") == 'oil\'s up "no "'
    assert T.clean("&lt;b&gt;Big&amp;lt;/b&gt; \\$44 (AP)") == " big   $44 (ap)"
    assert T.clean("x &#" + "9" * 5000 + ";") == "x &#;"


LINES = "alpha 1 2 3\nbeta 4 5 6\nother 7 8 9\n"
TEXTS = [LINES, "3 3\n" + LINES, "\ufeff" + LINES, LINES.replace(" ", "\t"), LINES + ". 1 2"]
TEXTS += [LINES.replace(" ", "  ", 1).replace("\n", " \n"), LINES.replace("\n", "\r\n") + "\n"]
TEXTS += [LINES + ". . 1 2 3\nalpha beta 1 1 1\n", LINES.replace("beta", "Beta")]
TEXTS += ["Alpha 9 9 9\n" + LINES + "ALPHA 8 8 8\n"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("packed", [False, True])
def test_vectors_in_text(tmp_path, text, packed):
    path = tmp_path / ("v.txt.gz" if packed else "v.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    known, table = T.load_vectors(str(path), {"alpha", "beta", ".", "3"})
    assert known == ["alpha", "beta"]
    assert table.tolist() == [[0, 0, 0], [0, 0, 0], [1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("text", ["", "other 1 2", "alpha 1 nan", "x 1 2\nalpha 1", "alpha 1 x"])
def test_vectors_that_teach_nothing(tmp_path, capsys, text):
    (tmp_path / "v.txt").write_text(text)
    assert "none" in error_of(capsys, T.load_vectors, str(tmp_path / "v.txt"), {"alpha"})


def test_vectors_in_npz(tmp_path, capsys):
    path = tmp_path / "v.npz"
    np.savez(path, words=np.array(["alpha"]), vectors=np.ones((1, 3), np.int8), scale=np.ones(1))
    known, table = T.load_vectors(str(path), {"alpha", "x", "y"})
    assert known == ["alpha"] and table.tolist()[2] == [1, 1, 1]
    assert "notice: 1 of 3 words" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:200])
    assert "none" in error_of(capsys, T.load_vectors, str(path), {"alpha"})


def test_vectors_are_kept_once(folder):
    """Whatever the number of folds: model.pt grows by less than one copy of them a fold."""
    words = [f"w{i}" for i in range(200)]
    (folder / "v.txt").write_text("".join(f"{word} {'0.5 ' * 300}\n" for word in words))
    rows = [f"{i},{i % 2},{' '.join(words)},x\n" for i in range(12)]
    (folder / "train.csv").write_text(HEAD + "".join(rows))
    argv = [*TINY, "--data", folder, "--out", folder, "--embeddings", folder / "v.txt", "--folds"]
    sizes = []
    for folds in (2, 6):
        T.main([*map(str, argv), str(folds)])
        sizes.append((folder / "model.pt").stat().st_size)
    assert sizes[0] < 2 * 240_000 and sizes[1] - sizes[0] < 240_000  # the bytes of one copy
    models, _ = T.load_checkpoint(folder / "model.pt")
    assert models[5].vectors[models[5].vocabulary["w7"]].tolist() == [0.5] * 300


def test_folds_are_stratified(folder):
    train, _, _ = T.load_news(args_of(folder, "--folds", 5))
    assert set(pd.crosstab(train["fold"], train["target"]).to_numpy().ravel()) == {2}
    other, _, _ = T.load_news(args_of(folder, "--folds", 5, "--seed", 1))
    assert train["fold"].tolist() != other["fold"].tolist()


def test_held_out_rows_teach_nothing(folder):
    args = args_of(folder)
    train, _, classes = T.load_news(args)
    spoilt = train.copy()
    held = spoilt["fold"] == 1
    spoilt["tokens"] = train["tokens"].mask(held, [["leak"] * 3] * len(train))
    spoilt.loc[held, "target"] = 0
    one = T.train_fold(args, train, 1, classes, [], None)
    two = T.train_fold(args, spoilt, 1, classes, [], None)
    assert "leak" not in two.vocabulary and one.vocabulary == two.vocabulary
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name]), name
    same = [one.history[0][name] == value for name, value in two.history[0].items()]
    assert same[:3] == [True, True, False]  # training's loss and accuracy; the loss out of fold


@pytest.mark.parametrize("schedule", ["linear", "cos"])
@pytest.mark.parametrize("epochs, peak", [(10, 3), (1, 1), (3, 1), (5, 1)])  # 4 steps each
def test_the_peak_of_the_rate_is_lr(folder, monkeypatch, schedule, epochs, peak):
    rates = []

    class Spy(torch.optim.SGD):
        def step(self, *rest):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*rest)

    monkeypatch.setattr(torch.optim, "SGD", Spy)
    options = "--optimizer SGD --lr 0.25 --batch-size 5 --schedule".split()
    args = args_of(folder, *options, schedule, "--epochs", epochs)
    train, _, classes = T.load_news(args)
    T.train_fold(args, train, 0, classes, [], None)
    assert len(rates) == 4 * epochs and rates.index(max(rates)) == peak
    assert max(rates) == 0.25 and rates[-1] < 1e-3


def test_evaluate_by_hand():
    """Wilson's interval of 9 in 10, as statsmodels gives it."""
    guess = torch.tensor([[0.9, 0.1]] * 7 + [[0.1, 0.9]] * 2 + [[0.9, 0.1]])
    figures = T.evaluate(guess, [0] * 7 + [1] * 3)
    assert figures["confusion"] == [[7, 0], [1, 2]]
    interval = [figures[f"oof_accuracy{end}"] for end in ("_low", "", "_high")]
    assert interval == pytest.approx([0.59585, 0.9, 0.98213], abs=1e-4)
    assert figures["oof_loss_nats"] == pytest.approx(-(9 * math.log(0.9) + math.log(0.1)) / 10)


def test_history_and_submission_are_of_the_saved_models(folder):
    metrics = T.main([*TINY, "--data", str(folder), "--out", str(folder), "--epochs", "3"])
    assert metrics == json.loads((folder / "metrics.json").read_text())
    models, config = T.load_checkpoint(folder / "model.pt")
    config.data = folder
    train, test, classes = T.load_news(config)
    right = []
    for fold, model in enumerate(models):
        held = train[train["fold"] == fold]
        guess = T.predict(model, T.encode(held["tokens"], model.vocabulary)).argmax(1)
        right.append(guess.numpy() == held["target"])
        assert metrics["history"][fold][-1]["oof_accuracy"] == right[-1].mean()
    assert metrics["oof_accuracy"] == pd.concat(right).mean()
    mean = sum(T.predict(model, T.encode(test["tokens"], model.vocabulary)) for model in models)
    lines = (folder / "submission.csv").read_text().splitlines()
    assert lines == ["Id,Category", *(f"{i},{classes[k]}" for i, k in enumerate(mean.argmax(1), 1))]


def test_resumed_is_the_run_never_stopped(tmp_path, capsys, monkeypatch):
    """Over 1,000 rows, more than torch shows of a tensor: one cell or number changed is noticed."""
    rows = [f"{i},{i % 2 + 1},w{i % 7} w{i % 11},x\n" for i in range(1100)]
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(HEAD + "".join(rows))
    (tmp_path / "v.txt").write_text("".join(f"w{i} {i} 0.5\n" for i in range(11)))
    vectors = str(tmp_path / "v.txt")
    options = [*TINY, "--data", str(tmp_path), "--folds", "3", "--embeddings", vectors, "--out"]
    T.main([*options, str(tmp_path / "whole")])
    T.main([*options, str(tmp_path / "again")])
    train_fold = T.train_fold

    def stopped(args, train, fold, *rest):
        if fold == 2:
            raise KeyboardInterrupt
        return train_fold(args, train, fold, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(T, "train_fold", stopped)
        with pytest.raises(KeyboardInterrupt):
            T.main([*options, str(tmp_path / "cut")])
    resume = [*options, str(tmp_path / "cut"), "--resume"]
    changes = [("train.csv", "555,2,", "555,1,"), ("train.csv", "555,2,w2", "555,2,w3")]
    for name, old, new in [*changes, ("v.txt", "w6 6 0.5", "w6 6 0.6")]:
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace(old, new))
        assert text.count(old) == 1 and "other options" in error_of(capsys, T.main, resume)
        (tmp_path / name).write_text(text)
    assert "other options" in error_of(capsys, T.main, [*resume, "--dropout", "0.2"])
    calls = []
    monkeypatch.setattr(T, "train_fold", lambda *all: calls.append(all[2]) or train_fold(*all))
    T.main(resume)
    runs = [(tmp_path / run / "submission.csv").read_bytes() for run in ("whole", "again", "cut")]
    assert calls == [2] and runs[0] == runs[1] == runs[2]


def test_out_has_its_own_submission(folder, monkeypatch):
    monkeypatch.chdir(folder)
    T.main([*TINY, "--data", ".", "--out", "o"])
    T.main([*TINY, "--data", ".", "--dry-run", "--submission", "mine.csv"])
    pictures = {"curves.png", "confusion.png", "attention.png"}
    for place in ("o", "results/dry_run/transformer"):
        names = {path.name for path in (folder / place).iterdir()}
        assert names == {"metrics.json", "model.pt", "checkpoint.pt", "submission.csv", *pictures}
    assert not (folder / "submission.csv").exists() and not (folder / "mine.csv").exists()
    assert (folder / "o" / "attention.png").stat().st_size > 30_000  # not blank


def test_a_loss_that_is_not_finite(folder, capsys, monkeypatch):
    monkeypatch.setattr(T, "train_epoch", lambda *all: [math.nan, 0.5])
    assert "--lr" in error_of(capsys, T.main, [*TINY, "--data", str(folder), "--out", str(folder)])


def test_a_link_to_the_script_finds_the_vectors(folder):
    (folder / "l.py").symlink_to(ROOT / "0123456_transformer.py")
    subprocess.run([sys.executable, "l.py", "--dry-run", "--data", SAMPLE], cwd=folder, check=True)
    metrics = json.loads((folder / "results/dry_run/transformer/metrics.json").read_text())
    assert metrics["pretrained_words"] > 100
