"""The classifier: its model against torch's own, its readers, its folds, its files."""

import copy
import gzip
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import error_of, load
from torch import nn

T = load("transformer")
TINY = "--d-model 8 --nhead 2 --d-hid 8 --nlayers 1 --folds 2 --epochs 1 --embeddings none".split()
HEAD = "Id,Category,Title,Description\n"
ROWS = [f"{i},{i % 4 + 1},title {i},text {i}\n" for i in range(1, 41)]
TABLE = HEAD + "".join(ROWS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with both tables."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(TABLE)
    return tmp_path


def args_of(*options):
    return T.parse_args([*TINY, "--data", ".", *map(str, options)])


@pytest.mark.parametrize("length", [9, 800])
def test_attention_and_layer_are_torchs(length):
    """Output, gradients, weights, of short texts at once, of long ones each; dropouts."""
    ours = T.EncoderLayer(24, 4, 48, 0.1).double().eval()
    options = {"activation": "gelu", "batch_first": True, "norm_first": True}
    theirs = nn.TransformerEncoderLayer(24, 4, 48, 0.1, **options).double().eval()
    nn.init.normal_(ours.norm1.weight)
    nn.init.normal_(ours.norm2.weight)
    parts = nn.ModuleList([ours.attention, ours.feed_forward, ours.norm1, ours.norm2])
    theirs.load_state_dict(dict(zip(theirs.state_dict(), parts.parameters(), strict=True)))
    x = torch.randn(3, length, 24, dtype=torch.double, requires_grad=True)
    mask = torch.arange(length) < torch.tensor([[length], [4], [1]])
    output, weights = ours(x, mask)
    assert len(weights) == (1 if length == 9 else 3)
    expected = theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(output[mask], expected[mask], rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(y[mask].sin().sum(), x)[0] for y in (output, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    options = {"key_padding_mask": ~mask, "average_attn_weights": False}
    _, maps = theirs.self_attn(*[theirs.norm1(x)] * 3, **options)
    torch.testing.assert_close(torch.cat(weights), maps, rtol=1e-10, atol=1e-10)
    for silent in ("attention.out", "feed_forward.2"):
        layer = copy.deepcopy(ours).train()
        for parameter in layer.get_submodule(silent).parameters():
            parameter.data.zero_()
        assert 0.03 < torch.isclose(layer(x, mask)[0], x).double().mean() < 0.3


@pytest.fixture(params=[{}, {"w5": np.ones(6)}], ids=["trained", "pretrained"])
def model(request):
    vocabulary = {f"w{i}": i for i in range(120)}
    return T.TransformerClassifier(args_of("--nlayers", 2), vocabulary, 4, request.param).eval()


def test_logits(model):
    """Of places, of each layer, of the largest of each feature over the words; not of padding."""
    tokens = torch.tensor([[5, 9, 3, 7, 11]])
    features = []
    model.norm.register_forward_hook(lambda module, given, output: features.append(output))
    logits = model(tokens)
    torch.testing.assert_close(logits, model.classify(features[0].amax(1)))
    padded, maps = model(nn.functional.pad(tokens, (0, 4)), return_attention=True)
    torch.testing.assert_close(padded, logits)
    assert [part.shape for part in maps] == [(1, 2, 9, 9)] * 2 and not maps[1][..., 5:].any()
    many, attended = model(torch.zeros(70, 128).long(), return_attention=True)  # 70: in two parts
    assert many.isfinite().all() and many.shape == (70, 4) and len(attended[0]) == 70
    assert (logits - model(tokens.flip(1))).abs().max() > 1e-5
    logits[0, 0].backward()
    assert all(layer.feed_forward[0].weight.grad.any() for layer in model.layers)
    if isinstance(model.embedding, nn.Sequential):  # given vectors stay; other words have 0
        table = model.embedding[0].weight
        assert table[5].tolist() == [1] * 6 and table.sum() == 6 and not table.requires_grad


def test_an_epoch_of_training(model):
    """Of the words half are dropped, never all of a text, and the rest keep their order; each text
    is seen once. The rate rises to --lr and falls to 0, and is 0 in no step, be it the only one."""
    texts = [torch.arange(2, 102)] * 40 + [torch.tensor([7])] * 9
    model.register_forward_hook(lambda module, given, output: seen.extend(given[0]))
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    for epochs, batch_size in ((1, 99), (6, 25)):
        seen = []
        rates = []
        options = ["--epochs", epochs, "--batch-size", batch_size, "--lr", 0.25]
        args = args_of("--word-dropout", 0.5, *options)
        for epoch in range(epochs):
            T.train_epoch(args, model, optimizer, texts, torch.zeros(49).long(), epoch)
        progress = (np.arange(len(rates)) + 0.5) / len(rates)
        assert rates == pytest.approx(np.interp(progress, [0, 0.1, 1], [0, 0.25, 0]))
        kept = [tokens[tokens > 0] for tokens in seen]
        assert len(kept) == 49 * epochs and min(map(len, kept)) == 1 and min(rates) > 0
        assert 1800 < sum(map(len, kept)) / epochs < 2200 and len({*map(len, kept)}) > 9
        assert all(torch.equal(tokens, tokens.sort()[0]) for tokens in kept)


def test_prediction(model):
    """The encoder's logits and naive Bayes' ratios over the root of the length, in any order."""
    lists = [["w3"] * n + ["w5", "w9"] for n in (9, 0, 4, 1, 30, 2)] + [[]]
    texts = T.encode(lists, model.vocabulary)
    ratios = torch.randn(120, 4)
    ratios[[T.PAD, T.UNK]] = 0
    trust = 0.5 if isinstance(model.embedding, nn.Sequential) else 1.0
    expected = []
    for tokens in texts:
        logits = model(tokens[None]) + trust * ratios[tokens].sum(0) / len(tokens) ** 0.5
        expected.append(logits.softmax(1))
    sizes = []
    model.register_forward_hook(lambda module, given, output: sizes.append(len(given[0])))
    for order in ([0, 1, 2, 3, 4, 5, 6], [4, 0, 2, 5, 3, 1, 6]):
        found = T.predict(args_of("--batch-size", 3), model, ratios, [texts[i] for i in order])
        torch.testing.assert_close(found.float(), torch.cat(expected)[order])
    assert sizes == [3, 3, 1] * 2


def test_counts_by_hand():
    """Class 0: words 2, 2, 3; class 1: word 3. With half a count for each of both 2.5 and 1.5 in 4,
    0.5 and 1.5 in 2. Words known: given, or there twice. Wilson's interval as of statsmodels."""
    texts = [torch.tensor([2, 3, 2, 1]), torch.tensor([3, 0])]
    ratios = T.log_count_ratios(texts, torch.tensor([0, 1]), 5, 2)
    two = math.log(2.5 / 4 / (0.5 / 2)) / 2
    three = math.log(1.5 / 4 / (1.5 / 2)) / 2
    expected = torch.tensor([[0, 0], [0, 0], [two, -two], [three, -three], [0, 0]])
    torch.testing.assert_close(ratios, expected)
    texts = pd.Series([["b", "a", "b"], [], ["c", "d", "d"]])
    vocabulary = T.build_vocabulary(texts, 2, {"z": None, "b": None})
    assert vocabulary == {"<pad>": 0, "<unk>": 1, "b": 2, "z": 3, "d": 4}
    assert T.encode([[], ["d", "?"]], vocabulary)[1].tolist() == [4, T.UNK]
    guess = torch.tensor([[0.9, 0.1]] * 7 + [[0.1, 0.9]] * 2 + [[0.9, 0.1]])
    figures = T.evaluate(guess, [0] * 7 + [1] * 3)
    assert figures["confusion"] == [[7, 0], [1, 2]] and figures["oof_accuracy"] == 0.9
    assert figures["oof_accuracy_interval"] == pytest.approx([0.59585, 0.98213], abs=1e-4)
    assert figures["oof_loss_nats"] == pytest.approx(-(9 * math.log(0.9) + math.log(0.1)) / 10)


def test_tables_that_are_plainly_meant(folder):
    """Cells are what they are; of one of 140,000 characters --max-len words are kept."""
    meant = [TABLE, "\ufeff" + TABLE, TABLE + "   \n\n", TABLE.replace("Category", "Label")]
    meant += [TABLE.replace("\n", end) for end in ("\r\n", "\n\n", ",\n")]
    for data in (*meant, TABLE.replace(HEAD, " ID ,category , TITLE,Content \n")):
        (folder / "train.csv").write_text(data, newline="")
        train, test, classes = T.load_news(args_of())
        assert train["tokens"].tolist() == test["tokens"].tolist() and len(classes) == 4
        assert train["target"].tolist() == [i % 4 for i in range(1, 41)]
    lines = '007,World,NA,None\n8,"Sci, Tech","two\nlines","a ""b"""\n9,World,,\n10,World,x,'
    (folder / "train.csv").write_text(HEAD + lines + "word " * 28_000 + '\n11,"Sci, Tech",x,y\n')
    train, _, classes = T.load_news(args_of("--max-len", 5))
    tokens = [["na", "none"], ["two", "lines", "a", '"', "b"], [], ["x", *["word"] * 4], ["x", "y"]]
    assert classes == ["Sci, Tech", "World"] and train["tokens"].tolist() == tokens


COLUMNS = "id, label, title, content"
REFUSED = [("", "No columns"), (HEAD, COLUMNS), (TABLE.replace(",", ";"), COLUMNS)]
REFUSED += [(TABLE.replace(word, "x"), COLUMNS) for word in HEAD.strip().split(",")]
REFUSED += [
    (TABLE.replace("\n", ",x\n").replace("Description,x", "Description,Content"), COLUMNS),
    (HEAD + "".join(ROWS).replace("\n", ",x\n"), COLUMNS),  # a heading too few
    (TABLE + "99,1,a,b,c\n", "line 42"),
    (TABLE.replace("text 9", '"'), "EOF"),
    (TABLE + "99,1,caf\xe9,x\n", "utf-8"),
    (TABLE + "7,1,a,b\n", "correct row 7, "),
    (TABLE + ',1,"a\nb",c\n', "correct row , 1, a b"),
    (TABLE + "99,,a,b\n", "correct row 99, "),
    (HEAD + "".join(ROWS[3::4]), "two labels"),
    (TABLE + "".join(f"{i},rare,a,b\n" for i in range(90, 94)), "label rare in 4 rows"),
]


@pytest.mark.parametrize("data, part", REFUSED)
def test_training_tables_that_are_refused(folder, data, part):
    (folder / "train.csv").write_text(data, encoding="latin-1")
    line = error_of(T.load_news, args_of("--folds", 5))
    assert part in line and "train.csv" in line


def test_test_tables_that_are_refused(folder):
    for data in (HEAD, TABLE + "7,1,a,b\n", "Id,Title,Description\n1,a,b,c\n2,d,e,f\n"):
        (folder / "test.csv").write_text(data)
        assert "test.csv" in error_of(T.load_news, args_of())
    (folder / "test.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.csv"):  # told at the bottom of the script
        T.load_news(args_of())


def test_crumbs_of_html():
    assert T.clean("Oil #39;s up quot;No quot;") == 'oil\'s up "no "'
    assert T.clean("&lt;b&gt;Big&amp;lt;/b&gt; \\$44 (AP)") == " big   $44 (ap)"
    assert T.clean('a<b>b</b>c<!-- x -->d<a href="x">e<br/>f') == "a b c d e f"
    kept = "inflation <3% this year, jobless rate >5% in ohio"
    assert T.clean(kept.upper()) == kept


def test_vectors(tmp_path, capsys, monkeypatch):
    """Of text, plain or packed, of npz; where no word has one; where nobody has any."""
    monkeypatch.setattr(T, "DATA", tmp_path)
    for name in ("auto", "none"):
        assert T.load_vectors(name, {"alpha"}) == {}
        assert "notice: no pretrained vectors" in capsys.readouterr().err
    numbers = np.array([[2, 4, 6], [4, 5, 6], [1, 1, 1]], np.int8)
    npz = {"words": ["alpha", "beta", "x"], "vectors": numbers, "scale": np.array([0.5, 1, 1])}
    np.savez(tmp_path / "glove.6B.100d.npz", **npz)
    lines = "Alpha 9 9 9\nalpha 1 2 3\nbeta 4 5 6\n"
    blanks = ". . 1 2 3\nalpha beta 1 1 1\nbeta 1 2\n\n"
    for text in (lines, "3 3\n" + lines.replace("\n", " \r\n") + blanks):
        (tmp_path / "v.txt").write_text(text, newline="")
        (tmp_path / "v.gz").write_bytes(gzip.compress(text.encode()))
        for name in ("auto", tmp_path / "v.txt", tmp_path / "v.gz"):
            found = T.load_vectors(str(name), {"alpha", "beta", ".", "3"})
            assert [*found] == ["alpha", "beta"] and [*found["beta"]] == [4, 5, 6]
    for text in ("", "other 1 2", "3 3\n", "x 1 2\nalpha 1\n"):
        (tmp_path / "v.txt").write_text(text)
        assert "none" in error_of(T.load_vectors, str(tmp_path / "v.txt"), {"alpha"})


def test_folds_are_stratified_and_held_out_rows_teach_nothing(folder):
    train, test, classes = T.load_news(args_of("--folds", 5))
    assert set(pd.crosstab(train["fold"], train["target"]).to_numpy().ravel()) == {2}
    other, _, _ = T.load_news(args_of("--folds", 5, "--seed", 1))
    assert train["fold"].tolist() != other["fold"].tolist()
    held = train["fold"] == 1
    spoilt = train.assign(tokens=train["tokens"].mask(held, [["leak"] * 3] * len(train)))
    spoilt.loc[held, "target"] = 0
    one, history, _, predicted = T.train_fold(args_of(), train, test, 1, classes, {})
    two, other_history, _, same = T.train_fold(args_of(), spoilt, test, 1, classes, {})
    assert "leak" not in two.vocabulary and one.vocabulary == two.vocabulary
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)
    assert torch.equal(predicted, same)  # naive Bayes learned nothing, either
    assert history[0]["loss_nats"] == other_history[0]["loss_nats"]
    assert history[0]["oof_loss_nats"] != other_history[0]["oof_loss_nats"]


def test_files_are_of_the_models_that_were_trained(folder, monkeypatch):
    """Out of fold each row counts once; the folds' mean is what Kaggle gets, nothing if the loss is
    not finite; a $ can be drawn."""
    names = ["World", "Sci, Tech", "1.0", "b"]
    rows = [f'x{i},"{names[i % 4]}",{"abcd"[i % 4] * 3},$^$ {i}\n' for i in range(40)]
    (folder / "train.csv").write_text(HEAD + "".join(rows))
    lines = ["007,aaa,x", "3,ccc,x", "z,bbb,x", "1,ddd,x", "12,,"]
    (folder / "test.csv").write_text("\n".join(["Id,Title,Description", *lines]))
    options = [*TINY, "--data", ".", "--out", "o", "--folds", "3", "--submission", "mine.csv"]
    with monkeypatch.context() as patch:
        patch.setattr(T, "train_epoch", lambda *given: [math.nan, 0.5])
        assert "--lr" in error_of(T.main, options) and not (folder / "mine.csv").exists()
    metrics = T.main(options)
    assert metrics == json.loads((folder / "o" / "metrics.json").read_text())
    args = args_of("--folds", 3)
    assert str(args.submission) == "submission.csv"
    train, test, classes = T.load_news(args)
    right = []
    total = 0
    for fold in range(3):
        _, history, held_out, predicted = T.train_fold(args, train, test, fold, classes, {})
        hits = held_out.argmax(1).numpy() == train["target"][train["fold"] == fold]
        assert metrics["history"][fold] == history and history[-1]["oof_accuracy"] == hits.mean()
        right += hits.tolist()
        total += predicted
    assert len(right) == 40 and metrics["oof_accuracy"] == sum(right) / 40
    expected = [f"{i},{sorted(names)[k]}" for i, k in zip(test["id"], total.argmax(1), strict=True)]
    written = (folder / "mine.csv").read_text()
    assert written.replace('"', "").splitlines() == ["Id,Category", *expected]
