import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, SAMPLE, error_line, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

SCRIPT = ROOT / "0123456_transformer.py"
SMALL = "--d-model 16 --nhead 2 --d-hid 16 --folds 2 --models 2 --epochs 5 --embeddings none".split()
OUTPUTS = {"metrics.json", "model.pt", "checkpoint.pt", "curves.png", "confusion.png", "attention.png"}
T = None  # the script, as a module


@pytest.fixture(scope="session", autouse=True)
def script(transformer):
    global T
    T = transformer


def small_model(**changes):
    torch.manual_seed(0)
    config = T.Config(d_model=16, nhead=4, d_hid=32, nlayers=2, max_len=20, **changes)
    words = ["<pad>", "<unk>", *(f"word{i}" for i in range(28))]
    return T.TransformerClassifier(config, {word: i for i, word in enumerate(words)}, 4).eval()


def write_csv(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))


@pytest.fixture
def course(tmp_path):
    """A folder with copies of the sample's two files, to be spoilt."""
    folder = tmp_path / "course"
    folder.mkdir()
    for name in ("train.csv", "test.csv"):
        shutil.copy(SAMPLE / name, folder)
    return folder


# ------------------------------------------------------------------------------------------------ model


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_attention_is_torchs(B, H, length, hs, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, B, H, length, hs, generator=generator, dtype=torch.double)
    mask = torch.rand(B, 1, 1, length, generator=generator) < 0.7
    mask[..., 0] = True
    output, weights = T.attention(query, key, value, mask)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(query, key, value, mask))
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, length, dtype=torch.double))
    assert (weights.masked_select(~mask.expand_as(weights)) == 0).all()


def test_attention_by_hand():
    query = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    key = torch.tensor([[math.log(3), 0, 0, 0], [0, 5.0, 0, 0], [9.0, 0, 0, 0]])
    value = torch.tensor([[4.0], [8.0], [100.0]])
    output, weights = T.attention(query, key, value, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25, 0.0]]))  # exp(log 3) to exp(0), after / sqrt(4)
    torch.testing.assert_close(output, torch.tensor([[5.0]]))


def test_attention_that_sees_nothing_is_finite():
    x = torch.randn(1, 1, 3, 4)
    assert all(part.isfinite().all() for part in T.attention(x, x, x, torch.zeros(1, 1, 1, 3, dtype=torch.bool)))


def test_layer_is_torchs_with_copied_weights():
    torch.manual_seed(0)
    ours = T.EncoderLayer(24, 4, 48, 0.1).double().eval()
    theirs = nn.TransformerEncoderLayer(24, 4, 48, 0.1, "gelu", batch_first=True, norm_first=True).double().eval()
    pairs = [
        (theirs.self_attn.in_proj_weight, ours.attention.qkv.weight),
        (theirs.self_attn.in_proj_bias, ours.attention.qkv.bias),
        (theirs.self_attn.out_proj.weight, ours.attention.out.weight),
        (theirs.self_attn.out_proj.bias, ours.attention.out.bias),
        (theirs.linear1.weight, ours.feed_forward[0].weight),
        (theirs.linear1.bias, ours.feed_forward[0].bias),
        (theirs.linear2.weight, ours.feed_forward[2].weight),
        (theirs.linear2.bias, ours.feed_forward[2].bias),
    ]
    for name in ("norm1", "norm2"):
        nn.init.normal_(getattr(ours, name).weight)
        pairs += [(getattr(theirs, name).weight, getattr(ours, name).weight)]
        pairs += [(getattr(theirs, name).bias, getattr(ours, name).bias)]
    for to, of in pairs:
        to.data.copy_(of.data)
    x, mask = torch.randn(3, 7, 24).double(), torch.arange(7) < torch.tensor([[7], [4], [1]])
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours_out, _ = ours(x1, mask)
    theirs_out = theirs(x2, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours_out[mask], theirs_out[mask])
    ours_out[mask].square().sum().backward()
    theirs_out[mask].square().sum().backward()
    torch.testing.assert_close(x1.grad, x2.grad)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 29), min_size=1, max_size=12), st.integers(1, 8))
def test_padding_changes_no_logit(ids, pads):
    model = small_model()
    alone = torch.tensor([ids])
    padded = F.pad(alone, (0, pads))
    beside = torch.cat([padded, torch.randint(1, 29, padded.shape)])
    torch.testing.assert_close(model(padded), model(alone), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(beside)[:1], model(alone), rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 29), st.booleans()), min_size=1, max_size=12), st.integers(0, 3))
def test_a_word_taken_out_is_a_word_masked(words, pads):
    ids, kept = torch.tensor([[word for word, _ in words]]), torch.tensor([[keep for _, keep in words]])
    ids, kept = F.pad(ids, (0, pads)), F.pad(kept, (0, pads))
    places = kept.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, kept.sum())]
    masked, model = ids.masked_fill(~kept, 0), small_model()
    torch.testing.assert_close(model(masked.gather(1, places), places=places), model(masked), rtol=1e-5, atol=1e-6)


def test_training_takes_words_out_and_keeps_their_places(monkeypatch):
    """Texts of 1 to 20 words, whose ids tell where they stand."""
    tokens = (torch.arange(20) + 2) * (torch.arange(20) < torch.randint(1, 21, (200, 1)))
    model, seen = small_model(), []

    def forward(tokens, places):
        seen.append(tokens)
        assert (tokens == torch.where(tokens > 0, places + 2, 0)).all()
        assert tokens.size(1) == (tokens > 0).sum(1).max().clamp(min=1)
        return T.TransformerClassifier.forward(model, tokens, places=places)

    monkeypatch.setattr(model, "forward", forward)
    config = T.Config(word_dropout=0.25, batch_size=10, lr=1e-3)
    T.train_epoch(config, model, torch.optim.SGD(model.parameters()), tokens, torch.zeros(200).long(), 0)
    kept = sum((batch > 0).sum() for batch in seen) / (tokens > 0).sum()
    assert len(seen) == 20 and 0.7 < kept < 0.8


def test_log_count_ratios_by_hand():
    """Word 2 stands twice in class 0; word 3 once in each; 4 nowhere. With half a count more each of 5 words: 2.5 in
    5.5 and 0.5 in 3.5; 1.5 in 5.5 and 1.5 in 3.5."""
    ratios = T.log_count_ratios(torch.tensor([[2, 3, 2, 1], [3, 0, 0, 0]]), torch.tensor([0, 1]), 5, 2)
    two, three = math.log(2.5 / 5.5 / (0.5 / 3.5)) / 2, math.log(3.5 / 5.5) / 2
    torch.testing.assert_close(ratios, torch.tensor([[0, 0], [0, 0], [two, -two], [three, -three], [0, 0]]))


def test_ratios_join_the_encoder_only_once_it_is_trained():
    model, tokens = small_model(), torch.tensor([[2, 3, 2, 5], [7, 0, 0, 0]])
    plain = model(tokens)
    model.ratios = torch.randn(30, 4)
    model.ratios[0] = 0
    added = torch.stack([(2 * model.ratios[2] + model.ratios[3] + model.ratios[5]) / 2, model.ratios[7]])
    torch.testing.assert_close(model(tokens), plain + model.trust * added)
    model.train()
    for part in model.modules():
        part.p = 0.0  # no dropout
    torch.testing.assert_close(model(tokens), plain)


def test_order_of_words_matters():
    model = small_model()
    assert not torch.allclose(model(torch.tensor([[2, 3, 4]])), model(torch.tensor([[4, 3, 2]])))


def test_empty_texts_make_no_nan():
    model = small_model().train()
    logits, maps = model(torch.zeros(2, 5, dtype=torch.long), return_attention=True)
    assert logits.isfinite().all() and all(weights.isfinite().all() for weights in maps)
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert T.predict(model, T.encode([[], ["word1"]], model.vocabulary)).isfinite().all()


def test_attention_maps_have_their_shape():
    logits, maps = small_model()(torch.randint(1, 29, (3, 6)), return_attention=True)
    assert logits.shape == (3, 4) and [weights.shape for weights in maps] == [(3, 4, 6, 6)] * 2


def test_relevance_is_a_share_and_padding_has_none():
    model = small_model()
    tokens = torch.tensor([[5, 6, 7, 0, 0], [5, 0, 0, 0, 0]])
    shares = T.relevance(model, tokens)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    assert (shares[tokens == 0] == 0).all()
    torch.testing.assert_close(shares[:1, :3], T.relevance(model, tokens[:1, :3]))


def test_deletion_finds_the_only_word_that_matters():
    """A model built by hand: every token attends to word 5, the only one that is not like all others."""
    model, identity = small_model(), torch.eye(16)
    for p in model.parameters():
        p.data.zero_()
    model.position.zero_()
    model.embedding.weight.data[5] = torch.tensor([1.0] * 12 + [-3.0] * 4)
    for norm in (model.norm, model.layers[-1].norm1):
        norm.weight.data.fill_(1)
    model.layers[-1].attention.qkv.weight.data[16:32] = 9 * identity  # keys; every query is the same, the bias
    model.layers[-1].attention.qkv.bias.data[:16] = 1.0
    model.layers[-1].attention.qkv.bias.data[12:16] = -1.0
    model.classify[1].weight.data[2] = 1.0
    tokens = torch.full((40, 10), 3)
    tokens[torch.arange(40), torch.arange(40) % 10] = 5
    attended, by_chance = T.deletion_test(model, tokens, share=0.1).mean(2)
    assert attended[1] == 1 and by_chance[1] < 0.5
    assert attended[0] > 2 * by_chance[0] > 0


# ------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    "raw, plain",
    [
        ("Haiti #39;s straits", "haiti's straits"),
        ("Players #39; Union", "players' union"),
        ("a quot;smart quot; phone", 'a "smart " phone'),
        ("AT amp;T and AT&amp;T", "at &t and at&t"),
        ("last &lt;b&gt;...&lt;/b&gt; word", "last  ...  word"),
        (r"up to \$44", "up to  $44"),
        ("Crews fail (AP)", "crews fail (ap)"),
        ("semi; colon", "semi; colon"),
    ],
)
def test_clean(raw, plain):
    assert T.clean(raw).split() == plain.split()


@pytest.mark.parametrize("tokenizer", ["whitespace", "wordpunct", "treebank", "toktok", "tweet"])
def test_every_tokenizer_reads_the_sample(tokenizer):
    news = T.load_news(T.Config(data=str(SAMPLE), tokenizer=tokenizer))
    assert len(news.train) == 480 and len(news.test) == 96 and news.classes == ["1", "2", "3", "4"]
    assert all(news.train) and not any("#39" in word or "\\" in word for text in news.train for word in text)


def test_max_len_cuts():
    assert max(map(len, T.load_news(T.Config(data=str(SAMPLE), max_len=7)).train)) == 7


def test_vocabulary_and_encoding():
    vocabulary = T.build_vocabulary([["b", "a", "a"], ["b", "c"]], 2, ["d", "a"])
    assert vocabulary == {"<pad>": 0, "<unk>": 1, "a": 2, "b": 3, "d": 4}
    assert T.encode([["a", "c"], [], ["b"]], vocabulary).tolist() == [[2, 1], [1, 0], [3, 0]]


def test_folds_are_stratified():
    labels = torch.tensor([0] * 53 + [1] * 47 + [2] * 20)
    folds = T.assign_folds(labels, 5, 3)
    for label in range(3):
        counts = torch.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert not torch.equal(folds, T.assign_folds(labels, 5, 4))


VECTORS = {"alpha": [1.0, -2.0, 0.5], "beta": [0.0, 3.0, 4.0], "gamma": [9.0, 9.0, 9.0]}


@pytest.mark.parametrize("heading", ["", "3 3\n"])
def test_text_vectors(tmp_path, heading):
    lines = "".join(f"{word} {' '.join(map(str, numbers))}\n" for word, numbers in VECTORS.items())
    (tmp_path / "v.txt").write_text(heading + lines + "two words 1 2 3\n")
    vectors = T.read_vectors(str(tmp_path / "v.txt"), {"alpha", "beta", "absent", "two"})
    assert vectors.keys() == {"alpha", "beta"}
    assert vectors["alpha"].tolist() == VECTORS["alpha"] and vectors["beta"].dtype == np.float32


def test_shipped_vectors():
    vectors = T.read_vectors("auto", {"the", "football", "soccer", "bank", "qqqzzz"})
    assert vectors.keys() == {"the", "football", "soccer", "bank"}
    # The first numbers of "the" in glove.6B.100d.txt.
    np.testing.assert_allclose(vectors["the"][:4], [-0.038194, -0.24487, 0.72812, -0.39961], atol=0.02)
    unit = {word: vector / np.linalg.norm(vector) for word, vector in vectors.items()}
    assert unit["football"] @ unit["soccer"] > 0.8 > unit["football"] @ unit["bank"]


@pytest.mark.parametrize("text", ["alpha 1 2 3\nbeta 1 2\n", "alpha 1 2 x\n", "alpha 1 2 3\nalpha\n"])
def test_broken_vectors(tmp_path, text):
    (tmp_path / "v.txt").write_text(text)
    with pytest.raises(T.UserError):
        T.read_vectors(str(tmp_path / "v.txt"), {"alpha", "beta"})


# --------------------------------------------------------------------------------------------- training


def test_held_out_rows_teach_nothing(tmp_path):
    """Other words and labels in the rows that a fold model must not see leave its weights as they were."""
    config = T.Config(out=str(tmp_path), d_model=8, nhead=2, d_hid=8, folds=2, models=1, epochs=1, lr=1e-3)
    news = T.load_news(T.Config(data=str(SAMPLE)))
    fold_of = T.assign_folds(news.labels, 2, 0)
    labels, train = news.labels.clone(), list(news.train)
    for i in (fold_of == 0).nonzero()[:, 0].tolist():
        labels[i], train[i] = (labels[i] + 1) % 4, ["leak", "leak", "leak"]
    first = T.train_folds(config, news, fold_of, {}, "cpu")["models"][0]
    spoilt = T.train_folds(config, news._replace(train=train, labels=labels), fold_of, {}, "cpu")["models"][0]
    assert "leak" not in spoilt["vocabulary"] and first["vocabulary"] == spoilt["vocabulary"]
    assert all(torch.equal(weight, spoilt["weights"][name]) for name, weight in first["weights"].items())
    assert first["history"] != spoilt["history"]  # it is only judged by them


def test_pretrained_vectors_are_kept(tmp_path):
    config = T.Config(out=str(tmp_path), d_model=8, nhead=2, d_hid=8, folds=2, models=1, epochs=1, lr=1e-1)
    news = T.load_news(T.Config(data=str(SAMPLE)))
    words = sorted({word for document in news.train for word in document})
    vectors = {word: np.full(5, i, np.float32) for i, word in enumerate(words)}
    saved = T.train_folds(config, news, T.assign_folds(news.labels, 2, 0), vectors, "cpu")["models"][0]
    table = saved["weights"]["embedding.weight"]
    assert all((table[saved["vocabulary"][word]] == i).all() for i, word in enumerate(words))


@pytest.mark.parametrize("seconds, saves", [(0, 4), (1e9, 1)])
def test_checkpoints_are_so_many_seconds_apart(tmp_path, monkeypatch, seconds, saves):
    """Of two models, two epochs each: one an epoch, or the one at the end alone."""
    config = T.Config(out=str(tmp_path), d_model=8, nhead=2, d_hid=8, folds=2, models=1, epochs=2, lr=1e-3)
    news, written = T.load_news(T.Config(data=str(SAMPLE))), []
    monkeypatch.setattr(T, "SAVE_EVERY", seconds)
    monkeypatch.setattr(T, "write_whole", lambda path, write: written.append(path))
    T.train_folds(config, news, T.assign_folds(news.labels, 2, 0), {}, "cpu")
    assert len(written) == saves


def test_evaluate_by_hand():
    probabilities = torch.tensor([[0.9, 0.1]] * 8 + [[0.2, 0.8]] * 2, dtype=torch.double)
    labels = torch.tensor([0] * 7 + [1] * 3)
    metrics = T.evaluate(probabilities, labels, ["a", "b"])
    assert metrics["oof_accuracy"] == 0.9
    assert metrics["confusion"] == [[7, 0], [1, 2]]
    assert metrics["precision"] == pytest.approx(dict(a=7 / 8, b=1)) and metrics["recall"] == pytest.approx(
        dict(a=1, b=2 / 3)
    )
    assert metrics["oof_loss_nats"] == pytest.approx(-(7 * math.log(0.9) + math.log(0.1) + 2 * math.log(0.8)) / 10)
    # Confidence 0.9, right 7/8 of 8 rows; confidence 0.8, right in both.
    assert metrics["oof_calibration_error"] == pytest.approx((8 * abs(0.9 - 7 / 8) + 2 * 0.2) / 10)
    # Wilson's interval of 9 in 10, as statsmodels gives it.
    assert (metrics["oof_accuracy_low"], metrics["oof_accuracy_high"]) == pytest.approx((0.59585, 0.98213), abs=1e-4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run on the sample: (its folder, the finished process)."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run_script(SCRIPT, *SMALL, "--data", SAMPLE, "--out", "out", cwd=folder)


def figures(folder):
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    return {
        name: value
        for name, value in metrics.items()
        if name not in ("train_seconds", "wall_seconds", "argv", "config")
    }


def test_run_writes_everything(finished):
    folder, process = finished
    assert process.returncode == 0, process.stderr
    assert {path.name for path in (folder / "out").iterdir()} == OUTPUTS
    lines = (folder / "submission.csv").read_text().splitlines()
    assert lines[0] == "Id,Category" and [line.split(",")[0] for line in lines[1:]] == [str(i) for i in range(1, 97)]
    assert {line.split(",")[1] for line in lines[1:]} <= {"1", "2", "3", "4"}
    metrics = figures(folder)
    assert f"{metrics['oof_accuracy']:.4f}" in process.stdout
    assert metrics["oof_accuracy_low"] < metrics["oof_accuracy"] < metrics["oof_accuracy_high"]
    assert sum(map(sum, metrics["confusion"])) == metrics["train_rows"] == 480


def test_model_file_gives_the_submission(finished):
    folder, _ = finished
    models, config = T.load_checkpoint(folder / "out" / "model.pt")
    news = T.load_news(config)
    test = sum(T.predict(model, T.encode(news.test, model.vocabulary)) for model in models)
    written = (folder / "submission.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1] for line in written] == [news.classes[i] for i in test.argmax(1)]


def test_out_of_fold_is_by_the_models_that_have_not_seen_the_row(finished):
    """Models 0 and 1 are the first fold's, 2 and 3 the second's; each row's two probabilities are averaged."""
    folder, _ = finished
    models, config = T.load_checkpoint(folder / "out" / "model.pt")
    news = T.load_news(config)
    fold_of = T.assign_folds(news.labels, 2, config.seed)
    by_model = torch.stack([T.predict(model, T.encode(news.train, model.vocabulary)) for model in models])
    oof = torch.where((fold_of == 0)[:, None], by_model[:2].mean(0), by_model[2:].mean(0))
    assert len(models) == 4 and not torch.equal(by_model[0], by_model[1])
    metrics, loss = figures(folder), torch.nn.functional.nll_loss(oof.log(), news.labels).item()
    assert (oof.argmax(1) == news.labels).double().mean().item() == metrics["oof_accuracy"]
    assert loss == pytest.approx(metrics["oof_loss_nats"], rel=1e-5)  # accuracies alone can be the same by chance


def test_words_as_labels_and_the_handouts_columns(course, tmp_path, monkeypatch):
    names = {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"}
    lines = (course / "train.csv").read_text(encoding="utf-8-sig").splitlines()
    lines = [",".join([i, names[label], rest]) for i, label, rest in (line.split(",", 2) for line in lines[1:])]
    write_csv(course, "train.csv", "\n".join(["Id,Label,Title,Content", *lines]))
    text = (course / "test.csv").read_text(encoding="utf-8-sig")
    write_csv(course, "test.csv", text.replace("Description", "Content") + '97,"",""\r\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(T, "draw_attention", lambda *args: None)
    T.main([*SMALL, "--data", str(course)])
    lines = (tmp_path / "submission.csv").read_text().splitlines()
    assert {line.split(",")[1] for line in lines[1:]} <= set(names.values()) and len(lines) == 98


def test_nothing_pretrained_and_nothing_beside_it(tmp_path):
    """A copy of the script alone runs, given --data; it says that its vectors are missing."""
    shutil.copy(SCRIPT, tmp_path)
    process = run_script("0123456_transformer.py", "--dry-run", "--data", SAMPLE, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "notice: no pretrained vectors" in process.stderr and (tmp_path / "submission.csv").exists()


# ----------------------------------------------------------------------------------------------- errors

HEAD = "Id,Category,Title,Description\n"
ROWS = "".join(f"{i},{i % 4 + 1},title {i},text {i}\n" for i in range(1, 41))


@pytest.mark.parametrize(
    "train, part",
    [
        ("", "no table"),
        (HEAD, "no text"),
        (HEAD.replace("Title", "Headline") + ROWS, "no column Title"),
        (HEAD.replace("Category", "Class") + ROWS, "no column Category or Label"),
        (HEAD.replace("Description", "Body") + ROWS, "no column Description or Content"),
        (HEAD.replace("Id", "Number") + ROWS, "no column Id"),
        (HEAD + "".join(f"{i},1,a,b\n" for i in range(40)), "one class only"),
        (HEAD + "".join(f"{i},{i % 2},,\n" for i in range(40)), "no text"),
        (HEAD + ROWS + "40,1,again,again\n", "Id ['40'] more than once"),
        (HEAD + ROWS + ",1,no id,at all\n", "a row without Id"),
        (HEAD + ROWS + "41,,no label,at all\n", "a row without Category"),
        (HEAD + ROWS + "41,Sprots,one of its kind,only\n", "label Sprots in 1 rows"),
        (HEAD + ROWS + '41,1,"a quote never closed\n', "no table"),
        (HEAD + ROWS + "41,1,too,many,fields\n", "5 fields, not 4, in row '41'"),
        ((HEAD + ROWS).encode() + b"41,1,caf\xe9,latin\n", "UTF-8"),
        (b"PK\x03\x04" + bytes(range(256)) * 20, "train.csv"),
    ],
)
def test_bad_tables(course, tmp_path, monkeypatch, train, part):
    monkeypatch.chdir(tmp_path)
    write_csv(course, "train.csv", train)
    line = error_line(T, "--data", course)
    assert part in line and "train.csv" in line
    assert {path.name for path in tmp_path.iterdir()} == {"course"}


@pytest.mark.parametrize("missing", ["train.csv", "test.csv"])
def test_missing_file_in_a_named_folder(course, missing):
    (course / missing).unlink()
    line = error_line(T, "--data", course)
    assert f"no {missing}" in line and "--data" in line


@pytest.mark.parametrize(
    "argv, part",
    [
        ("--epochs 0", "--epochs"),
        ("--epochs many", "--epochs"),
        ("--epochs 1.5", "--epochs"),
        ("--lr nan", "--lr"),
        ("--lr inf", "--lr"),
        ("--lr -1", "--lr"),
        ("--dropout 1", "--dropout"),
        ("--folds 1", "--folds"),
        ("--folds 101", "--folds"),
        ("--batch-size -1", "--batch-size"),
        ("--seed -1", "--seed"),
        ("--max-len 1000000000", "--max-len"),
        ("--d-model 100 --nhead 3", "--nhead"),
        ("--tokenizer spacy", "--tokenizer"),
        ("--embeddings nowhere.txt", "nowhere.txt"),
        ("--embeddings .", "--embeddings"),
        ("--device cuda", "--device cuda"),
        ("--frobnicate", "--frobnicate"),
        ("--epoch 3", "--epoch"),
        ("--lr 1e5 --epochs 9", "loss"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, argv, part):
    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("there is one here")
    monkeypatch.chdir(tmp_path)
    assert part in error_line(T, "--data", SAMPLE, *argv.split())
    assert not (tmp_path / "submission.csv").exists()
