"""Classify news with a hand-written Transformer encoder, and write submission.csv for Kaggle.

    python 0123456_transformer.py                      train.csv and test.csv lie in data/ beside it
    python 0123456_transformer.py --data DIR           the folder where they lie
    python 0123456_transformer.py --embeddings none    without pretrained word vectors

Five encoders, each with naive Bayes beside it, train on four fifths of train.csv and are judged on
the other fifth (out of fold); their mean is the submission. results/transformer gets metrics,
weights and pictures. The course's 2,000 rows: accuracy 0.90 out of fold, after one to three
minutes. Sections in comments are of "Attention Is All You Need" (Vaswani et al. 2017).
"""

import argparse
import gzip
import hashlib
import html
import io
import json
import math
import os
import re
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path


def stop(signum, frame):
    """Ctrl-C is one line and status 130, even while torch is being imported."""
    print("\nstopped: the same command with --resume goes on", file=sys.stderr, flush=True)
    os._exit(130)  # not an exception, which the import of a library may swallow


if __name__ == "__main__" and "IPython" not in sys.modules:  # a notebook has its own Ctrl-C
    signal.signal(signal.SIGINT, stop)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # a service has none
    os.environ["MPLBACKEND"] = "agg"  # a notebook's setting, inherited, would stop the import

import matplotlib.figure
import numpy as np
import pandas as pd
import torch
from nltk import tokenize
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
PAD, UNK = 0, 1  # token ids of <pad> and <unk>
TOKENIZERS = {
    "whitespace": tokenize.WhitespaceTokenizer,
    "wordpunct": tokenize.WordPunctTokenizer,
    "treebank": tokenize.TreebankWordTokenizer,
    "toktok": tokenize.ToktokTokenizer,
    "tweet": tokenize.TweetTokenizer,
}


# --------------------------------------------------------------------------------------- arguments
def parse_args(argv=None):
    """The options as a namespace; argparse says what is wrong with one and exits with status 2."""
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=form)
    gpu = torch.accelerator.current_accelerator(check_available=True)
    devices = ["cpu", gpu.type] if gpu else ["cpu"]
    data = HERE / "data"
    made = data / "sample"
    if (made / "train.csv").is_file() and not (data / "train.csv").is_file():
        data = made
    add = parser.add_argument
    add("--data", type=Path, default=data, help="folder of train.csv and test.csv")
    add("--out", type=Path, help="folder of what is written; None: results/transformer")
    add("--submission", type=Path, help="for Kaggle; None: submission.csv, inside --out if given")
    add("--tokenizer", choices=TOKENIZERS, default="wordpunct", help="NLTK tokenizer")
    add("--min-count", type=int, default=2, help="times a word must occur")
    add("--max-len", type=int, default=128, help="tokens kept of a text")
    add("--embeddings", default="auto", help="auto (data/glove.6B.100d.npz), none or a vector FILE")
    add("--d-model", type=int, default=128, help="width of the encoder")
    add("--nhead", type=int, default=4, help="attention heads")
    add("--d-hid", type=int, default=256, help="width in the feed-forward block")
    add("--nlayers", type=int, default=1, help="encoder layers")
    add("--dropout", type=float, default=0.1, help="on each residual branch")
    add("--word-dropout", type=float, default=0.5, help="share of words dropped")
    add("--activation", choices=("GELU", "ReLU"), default="GELU", help="in the feed-forward block")
    add("--optimizer", choices=("AdamW", "Adam", "SGD"), default="AdamW", help="from torch.optim")
    add("--schedule", choices=("linear", "cos"), default="linear", help="how the rate falls")
    add("--folds", type=int, default=5, help="parts of the rows, held out in turn")
    add("--epochs", type=int, default=12, help="passes over the training rows")
    add("--batch-size", type=int, default=32, help="texts a step")
    add("--lr", type=float, default=1e-3, help="peak learning rate")
    add("--seed", type=int, default=0, help="seed of all that is random")
    add("--device", choices=["auto", *devices], default="auto", help="where to compute")
    add("--resume", action="store_true", help="keep the folds that an interrupted run has finished")
    add("--dry-run", action="store_true", help="two batches of everything, in a folder of its own")
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        low = {"folds": 2, "lr": 1e-9, "dropout": 0, "word_dropout": 0, "seed": 0}.get(name, 1)
        high = 0.95 if "dropout" in name else 2**31
        if type(value) in (int, float) and not low <= value <= high:
            parser.error(f"argument --{name.replace('_', '-')}: not from {low} to {high}")
    if args.d_model % args.nhead:
        parser.error("argument --nhead: must divide --d-model")
    args.device = args.device.replace("auto", devices[-1])
    args.submission = args.submission or (args.out or Path()) / "submission.csv"
    trial = "dry_run" if args.dry_run else ""
    args.out = args.out / trial if args.out else Path("results", trial, "transformer")
    if args.dry_run:
        args.epochs = 1
        args.submission = args.out / "submission.csv"
    if args.data == made:
        print(f"notice: results are of made data, {args.data}", file=sys.stderr)
    return args


# ----------------------------------------------------------------------------------------- helpers
def fail(message):
    """End with status 2 and one line, `error: WHAT: WHAT TO DO`."""
    print("error:", message.replace("\n", " "), file=sys.stderr)
    sys.exit(2)


def write(path, data):
    """Put bytes at `path`, whole or not at all, also beside another run with the same --out."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:
            part = Path(folder, path.name)
            part.write_bytes(data)
            os.replace(part, path)
    except OSError as error:
        fail(f"cannot write {path} ({error.strerror}): make room or name another place")


# -------------------------------------------------------------------------------------------- data
def read_table(path, keys):
    """A CSV file as a DataFrame of str: `keys`, which no row may lack, title and content."""
    options = {"header": None, "dtype": str, "keep_default_na": False, "skipinitialspace": True}
    try:
        text = path.read_text(encoding="utf-8-sig").lstrip("\ufeff \r\n")
        options["sep"] = max(",;\t", key=text.partition("\n")[0].count)
        options["engine"] = "python"  # it refuses a row too long and most lone quotes
        try:
            table = pd.read_csv(io.StringIO(text), **options)
        except pd.errors.ParserError:  # perhaps a quote within quotes is \"
            table = pd.read_csv(io.StringIO(text), escapechar="\\", **options)
        table = table.map(str.strip, na_action="ignore")
        table = table[table.fillna("").ne("").any(axis=1)]  # without rows of blanks
        heading = table.iloc[0].str.lower()
    except (ValueError, LookupError, OSError) as error:
        fail(f"no table in {path} ({error}): mend it, as UTF-8 CSV, or name its folder by --data")
    table.columns = heading.replace({"category": "label", "description": "content"})
    table = table[1:].loc[:, ~table.columns.duplicated()].reset_index(drop=True)
    needed = [*keys, "title", "content"]
    missing = [name for name in needed if name not in table]
    if missing or table.empty:
        fail(f"no {', '.join(missing) or 'rows'} in {path}: it needs {', '.join(needed)}")
    table = table[needed]
    bad = table.isna().any(axis=1) | table[keys].eq("").any(axis=1) | table["id"].duplicated()
    # A quote that a later row closes hides what is between: a line with an Id within a cell.
    bad |= table.fillna("").agg("".join, axis=1).str.contains(r"\n\d+[,;\t](?!\d{3}|\s)")
    if bad.any():
        row = ", ".join(table[bad].iloc[0].fillna("?"))
        fail(f"missing cell, repeated Id or open quote in {path}, row {row:.60}: correct it")
    return table


def clean(text):
    """Lower case, without crumbs of HTML: ` #39;s` is `'s`, `&lt;b&gt;` a blank, `\\$44` $44."""
    text = re.sub(r"\s?&?#39;", "'", text.replace("&amp;", "&"))
    text = re.sub(r"&?(#\d{2,4}|\b(?:quot|amp|lt|gt|nbsp));", r"&\1;", text)
    text = html.unescape(re.sub(r"#\d{8,}", "#", text))  # unescape raises at too long
    return re.sub(r"<[^<>]*>|\\", " ", text).lower()


def load_news(args):
    """Tables of train.csv, with columns tokens, target and fold, and of test.csv, with tokens; and
    the classes: the labels (3.0 is 3), sorted as text. A target is the index of one."""
    train = read_table(args.data / "train.csv", ["id", "label"])
    test = read_table(args.data / "test.csv", ["id"])
    labels = train["label"].str.replace(r"^(\d+)\.0$", r"\1", regex=True)  # a float's 3.0
    counts = labels.value_counts()
    if len(counts) < 2 or counts.min() < args.folds:
        fail(f"labels {counts[:9].to_dict()}: two or more, each in --folds = {args.folds} rows")
    classes = sorted(counts.index)
    train["target"] = labels.map(classes.index)
    if args.dry_run:
        train = train.groupby("target").head(max(args.folds, args.batch_size // 2)).copy()
        test = test.head(2 * args.batch_size).copy()
    shuffled = train.sample(frac=1, random_state=args.seed)  # each class is dealt out to the folds
    train["fold"] = shuffled.groupby("target").cumcount() % args.folds
    tokenizer = TOKENIZERS[args.tokenizer]()
    for table in (train, test):
        texts = (table["title"] + " " + table["content"]).map(clean)
        table["tokens"] = [tokenizer.tokenize(text)[: args.max_len] for text in texts]
    return train.reset_index(drop=True), test, classes


def read_vectors(path, words):
    """{word: vector (E,)} of those of `words` (lower case) in a file: data/make_glove.py's npz, or
    text of GloVe, fastText or word2vec, plain or .gz: a word and its numbers a line."""
    if path.suffix == ".npz":
        file = np.load(path, allow_pickle=False)
        pairs = zip(file["words"].tolist(), file["vectors"] * file["scale"][:, None], strict=True)
        return {word: vector for word, vector in pairs if word in words}
    found = {}
    width = 0
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            parts = line.split()
            if width < 2:  # the first line, or the second if the first is word2vec's two numbers
                width = len(parts) - 1
            word = " ".join(parts[:-width])
            key = word.lower()  # "Oil" stands in for "oil" unless that is there too
            if width > 1 and key in words and (key == word or key not in found):
                found[key] = np.array(parts[-width:], np.float32)
    return found


def load_vectors(name, words):
    """The sorted list of those of `words` with a pretrained vector, and the table (P + 2, E), whose
    first rows, of <pad> and <unk>, are 0; ([], None) for none. `name` is auto, none or a file."""
    path = HERE / "data" / "glove.6B.100d.npz" if name == "auto" else Path(name)
    if name == "none" or (name == "auto" and not path.is_file()):
        print("notice: no pretrained vectors, so the accuracy is lower", file=sys.stderr)
        return [], None
    try:
        found = read_vectors(path, words)
        known = sorted(found)
        table = np.asarray_chkfinite(np.stack([found[word] for word in known]), np.float32)
    except Exception as error:  # numpy, zipfile and gzip raise a dozen kinds for damaged files
        fail(f"no vectors of these words in {path} ({error}): name another FILE, or none")
    if len(known) < len(words) / 2:
        hint = "are they of this language? --embeddings none does without"
        print(f"notice: {len(known)} of {len(words)} words are in {path}: {hint}", file=sys.stderr)
    return known, nn.functional.pad(torch.from_numpy(table), (0, 0, 2, 0))


def build_vocabulary(texts, min_count, pretrained=()):
    """{word: id}: <pad>, <unk>, the pretrained words, those that occur at least min_count times."""
    counts = texts.explode().value_counts()
    known = sorted(counts.index[counts >= min_count])
    words = dict.fromkeys(["<pad>", "<unk>", *pretrained, *known])
    return {word: i for i, word in enumerate(words)}


def encode(texts, vocabulary):
    """Token ids (T,) of each text; a text without words is one <unk>."""
    return [torch.tensor([vocabulary.get(word, UNK) for word in text] or [UNK]) for text in texts]


# ------------------------------------------------------------------------------------------- model
def attention(query, key, value, mask):
    """Scaled dot-product attention, softmax(Q K' / sqrt(hs)) V (Vaswani et al. 2017, equation 1).

    query (..., T, hs); key and value (..., S, hs); mask (..., 1 or T, S), True where a key may be
    seen. Returns the output (..., T, hs) and the weights (..., T, S), whose rows sum to 1.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))  # (..., T, S)
    # The least finite number: with -inf a row that may see nothing would become NaN.
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    return weights @ value, weights


class MultiHeadAttention(nn.Module):
    """Self-attention in nhead subspaces of hs = d_model / nhead numbers each (section 3.2.2)."""

    def __init__(self, d_model, nhead):
        super().__init__()
        self.nhead = nhead
        self.qkv = nn.Linear(d_model, 3 * d_model)  # query, key and value in one product
        self.out = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.qkv.weight)

    def forward(self, x, mask):
        qkv = self.qkv(x).unflatten(2, (3, self.nhead, -1))  # (B, T, 3, H, hs)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, hs) each
        output, weights = attention(query, key, value, mask[:, None, None])
        return self.out(output.transpose(1, 2).flatten(2)), weights  # (B, T, D), (B, H, T, T)


class EncoderLayer(nn.Module):
    """Attention, then two linear layers at every position (section 3.3), each as x + f(norm(x)):
    pre-norm trains well with little warm-up (Xiong et al. 2020)."""

    def __init__(self, d_model, nhead, d_hid, dropout, activation="GELU"):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = MultiHeadAttention(d_model, nhead)
        self.norm2 = nn.LayerNorm(d_model)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, d_hid),
            getattr(nn, activation)(),
            nn.Linear(d_hid, d_model),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask):
        """x (B, T, D), mask (B, T), True at real tokens -> x and attention weights (B, H, T, T)."""
        attended, weights = self.attention(self.norm1(x), mask)
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.norm2(x))), weights


class TransformerClassifier(nn.Module):
    """Word vectors + positions -> encoder layers -> maximum over the tokens -> class logits.

    `vectors` (P + 2, E) are pretrained ones of the vocabulary's first words: they stay as they are.
    Naive Bayes stands beside the encoder: its `ratios` are added to the logits once trained.
    """

    def __init__(self, config, vocabulary, n_classes, vectors=None):
        super().__init__()
        D = config.d_model
        self.vocabulary = vocabulary
        self.register_buffer("vectors", vectors, persistent=False)  # saved once, not by each model
        if vectors is None:
            self.embedding = nn.Embedding(len(vocabulary), D, padding_idx=PAD)
            nn.init.normal_(self.embedding.weight, std=0.1)
        else:
            self.project = nn.Linear(vectors.size(1), D)
        # Sinusoidal positions (section 3.5), scaled to the size of fresh word vectors.
        angle = torch.arange(config.max_len)[:, None] * 10000 ** (-torch.arange(0, D, 2) / D)
        position = 0.1 * torch.stack([angle.sin(), angle.cos()], 2).flatten(1)[:, :D]
        self.register_buffer("position", position, persistent=False)  # (T, D)
        sizes = (D, config.nhead, config.d_hid, config.dropout, config.activation)
        self.layers = nn.ModuleList(EncoderLayer(*sizes) for _ in range(config.nlayers))
        self.norm = nn.LayerNorm(D)
        self.classify = nn.Sequential(nn.Dropout(0.3), nn.Linear(D, n_classes))
        self.register_buffer("ratios", torch.zeros(len(vocabulary), n_classes))
        self.trust = 1.0 if vectors is None else 0.5  # with vectors the ratios are needed less

    def forward(self, tokens, return_attention=False):
        """tokens (B, T) -> logits (B, C), or (logits, [weights (B, H, T, T) of each layer])."""
        mask = tokens != PAD
        mask[:, 0] |= ~mask.any(1)  # a text of padding alone still has a token to look at
        if self.vectors is None:
            x = self.embedding(tokens)  # (B, T, D)
        else:  # words without a pretrained vector are <unk>
            x = self.project(self.vectors[tokens.masked_fill(tokens >= len(self.vectors), UNK)])
        x = x + self.position[: tokens.size(1)]
        maps = []
        for layer in self.layers:
            x, weights = layer(x, mask)
            maps.append(weights)
        x = self.norm(x).masked_fill(~mask[..., None], torch.finfo(x.dtype).min)
        logits = self.classify(x.amax(1))  # the largest over the text of each of the D features
        if not self.training:  # ratios know their own rows: little would be left to learn
            ratios = self.ratios[tokens].sum(1) / mask.sum(1, keepdim=True).sqrt()  # (B, C)
            logits = logits + self.trust * ratios
        return (logits, maps) if return_attention else logits


def log_count_ratios(texts, targets, n_words, n_classes):
    """Naive Bayes: log p(word|class), half a count added, less its mean over the classes (Wang and
    Manning 2012), (n_words, n_classes); 0 of <pad>, <unk> and words that do not occur."""
    counts = torch.zeros(n_words, n_classes)
    for text, target in zip(texts, targets, strict=True):
        counts[:, target] += torch.bincount(text, minlength=n_words)
    counts[[PAD, UNK]] = 0
    seen = counts.sum(1, keepdim=True) > 0  # some pretrained words occur in other rows only
    log_p = ((counts + 0.5) / ((counts + 0.5) * seen).sum(0).clamp(min=0.5)).log()
    return (log_p - log_p.mean(1, keepdim=True)) * seen


# ------------------------------------------------------------------------------- loss and training
@torch.no_grad()
def predict(model, texts):
    """Class probabilities (N, C) of texts as token ids, float64 on the CPU."""
    model.eval()
    order = torch.tensor([len(text) for text in texts]).argsort()  # similar lengths: less padding
    parts = []
    for rows in order.split(256):
        batch = pad_sequence([texts[row] for row in rows], batch_first=True)
        parts.append(model(batch.to(model.position.device)).cpu().double().softmax(1))
    return torch.cat(parts)[order.argsort()]


def train_epoch(model, optimizer, scheduler, texts, targets, args):
    """One pass in random batches of texts of similar length, each with a fresh random share of its
    words dropped; returns loss (nats, of smoothed labels) and accuracy, means over the batches."""
    model.train()
    kept = [text[torch.rand(len(text)) >= args.word_dropout] for text in texts]
    kept = [some if len(some) else text for some, text in zip(kept, texts, strict=True)]
    length = torch.tensor([len(text) for text in kept]) + 4 * torch.rand(len(kept))  # new batches
    batches = length.argsort().split(args.batch_size)
    figures = []
    for k in torch.randperm(len(batches)):
        batch = pad_sequence([kept[row] for row in batches[k]], batch_first=True)
        target = targets[batches[k]].to(args.device)
        logits = model(batch.to(args.device))
        loss = nn.functional.cross_entropy(logits, target, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        figures.append(torch.stack([loss.detach(), (logits.argmax(1) == target).float().mean()]))
    return torch.stack(figures).mean(0).tolist()


def train_fold(args, train, fold, classes, known, vectors):
    """The model of the rows outside `fold`; its `history`, a dict an epoch, is only recorded."""
    torch.manual_seed(1000 * args.seed + fold)
    inside = train[train["fold"] != fold]
    held = train[train["fold"] == fold]
    vocabulary = build_vocabulary(inside["tokens"], args.min_count, known)
    texts = encode(inside["tokens"], vocabulary)
    targets = torch.tensor(inside["target"].tolist())
    model = TransformerClassifier(args, vocabulary, len(classes), vectors).to(args.device)
    model.ratios.copy_(log_count_ratios(texts, targets, *model.ratios.shape))
    optimizer = getattr(torch.optim, args.optimizer)(model.parameters(), args.lr)
    steps = max(3, args.epochs * math.ceil(len(texts) / args.batch_size))
    warm_up = max(2, round(steps / 10)) / steps  # whole steps: one of them has the very peak
    options = {"pct_start": warm_up, "anneal_strategy": args.schedule, "cycle_momentum": False}
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, steps, **options)
    model.history = []
    for epoch in range(args.epochs):
        started = time.perf_counter()
        loss, accuracy = train_epoch(model, optimizer, scheduler, texts, targets, args)
        judged = evaluate(predict(model, encode(held["tokens"], vocabulary)), held["target"])
        if not math.isfinite(loss + judged["oof_loss_nats"]):
            fail(f"the loss is not finite in epoch {epoch + 1}: take a smaller --lr")
        point = {
            "loss_nats": loss,
            "accuracy": accuracy,
            "oof_loss_nats": judged["oof_loss_nats"],
            "oof_accuracy": judged["oof_accuracy"],
            "seconds": time.perf_counter() - started,
        }
        model.history.append(point)
    return model


def load_checkpoint(path, device="cpu"):
    """([the model of each fold], options) of a model.pt; the models in eval mode."""
    models = []
    try:
        if zipfile.ZipFile(path).testzip():  # torch itself looks at no checksum
            raise ValueError("damaged")
        saved = torch.load(path, map_location="cpu", weights_only=True)["transformer"]
        config = argparse.Namespace(**saved["config"])
        for vocabulary, history, weights in saved["folds"]:
            model = TransformerClassifier(config, vocabulary, len(config.classes), saved["vectors"])
            model.load_state_dict(weights)
            model.history = history
            models.append(model)
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds
        fail(f"cannot load {path} ({error!r}): name another --out or train anew")
    return [model.to(device).eval() for model in models], config


# -------------------------------------------------------------------------------------- evaluation
def evaluate(probabilities, targets):
    """Accuracy of probabilities (N, C) with its 95% Wilson interval (1927), loss, and confusion:
    true classes down, predicted ones across."""
    targets = torch.tensor([*targets])
    n, C = probabilities.shape
    guess = probabilities.argmax(1)
    p = (guess == targets).double().mean().item()
    centre = (p + 1.96**2 / (2 * n)) / (1 + 1.96**2 / n)
    half = 1.96 * math.sqrt(p * (1 - p) / n + (1.96 / (2 * n)) ** 2) / (1 + 1.96**2 / n)
    return {
        "oof_accuracy": p,
        "oof_accuracy_low": centre - half,
        "oof_accuracy_high": centre + half,
        "oof_loss_nats": nn.functional.nll_loss(probabilities.log(), targets).item(),
        "confusion": torch.bincount(targets * C + guess, minlength=C * C).view(C, C).tolist(),
    }


# ----------------------------------------------------------------------------------------- figures
def draw_curves(histories):
    """Loss and accuracy by epoch, the mean over folds."""
    table = pd.concat([pd.DataFrame(history) for history in histories]).groupby(level=0).mean()
    figure = matplotlib.figure.Figure((9, 3.4), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("loss_nats", "accuracy"), strict=True):
        axis.plot(table.index + 1, table[name], marker=".", label="training objective")
        axis.plot(table.index + 1, table[f"oof_{name}"], marker=".", label="out of fold")
        axis.set(xlabel="epoch", ylabel=name.replace("_", ", "))
        axis.legend()
    return figure


def draw_confusion(confusion, classes):
    """Out-of-fold counts: true classes down, predicted ones across."""
    figure = matplotlib.figure.Figure((4.5, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.imshow(confusion, cmap="Blues", vmax=2 * np.max(confusion))
    for (row, column), count in np.ndenumerate(confusion):
        axis.text(column, row, count, ha="center", va="center")
    axis.set_xticks(range(len(classes)), classes)
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted", ylabel="true", title="out of fold")
    return figure


@torch.no_grad()
def draw_attention(model, held, oof, classes):
    """The last layer's attention in each head, and what each word gets of it, for the two surest
    right and two surest wrong predictions; of short texts, if any, that the model has not seen."""
    sure, guess = oof[held.index].max(1)
    rows = held.assign(sure=sure.numpy(), guess=guess.numpy()).sort_values("sure", ascending=False)
    short = rows["tokens"].str.len().between(8, 36)
    rows = rows[short] if short.any() else rows
    rows = rows.groupby(rows["guess"] == rows["target"]).head(2)
    figure = matplotlib.figure.Figure((12, 20), layout="constrained")
    for part, row in zip(figure.subfigures(4), rows.itertuples(), strict=False):
        tokens = encode([row.tokens], model.vocabulary)[0].to(model.position.device)
        _, maps = model(tokens[None], return_attention=True)
        maps = maps[-1][0].cpu().numpy()  # (H, T, T)
        heads = list(range(len(maps)))
        axes = part.subplot_mosaic([heads, ["words"] * len(heads)], height_ratios=(4, 1))
        for head in heads:
            axes[head].imshow(maps[head], vmin=0)
            axes[head].set(title=f"head {head + 1}", xticks=[], yticks=[])
        axes[0].set_yticks(range(len(row.tokens)), row.tokens, fontsize=5)
        shades = maps.mean((0, 1))[None]
        axes["words"].imshow(shades, "Reds", vmin=0, vmax=1.5 * shades.max(), aspect="auto")
        axes["words"].axis("off")
        for i, word in enumerate(row.tokens):
            axes["words"].text(i, 0, word, rotation=90, ha="center", va="center", fontsize=8)
        part.suptitle(f"true {classes[row.target]}, predicted {classes[row.guess]}, {row.sure:.0%}")
    return figure


# -------------------------------------------------------------------------------------------- main
def main(argv=None):
    """Train, predict, evaluate, draw; returns what it writes to metrics.json."""
    started = time.perf_counter()
    args = parse_args(argv)
    train, test, classes = load_news(args)
    words = {word for tokens in [*train["tokens"], *test["tokens"]] for word in tokens}
    known, vectors = load_vectors(args.embeddings, words)
    # A resumed run has the same options, and rows and vectors of the same bytes.
    numbers = b"" if vectors is None else vectors.numpy().tobytes()
    digest = hashlib.sha256((train.to_csv() + repr(known)).encode() + numbers).hexdigest()
    config = {**vars(args), "data": digest, "classes": classes}
    for name in ("out", "submission", "device", "resume"):
        del config[name]
    models = []
    path = args.out / "checkpoint.pt"
    if args.resume and path.exists():
        models, earlier = load_checkpoint(path, args.device)
        if vars(earlier) != config:
            fail(f"other options, rows or vectors made {path}: leave out --resume")
    for k in tqdm(range(len(models), args.folds), unit="fold", disable=None):
        models.append(train_fold(args, train, k, classes, known, vectors))
        folds = [(model.vocabulary, model.history, model.state_dict()) for model in models]
        buffer = io.BytesIO()
        torch.save({"transformer": {"config": config, "vectors": vectors, "folds": folds}}, buffer)
        write(path, buffer.getvalue())
    write(args.out / "model.pt", path.read_bytes())
    oof = torch.zeros(len(train), len(classes), dtype=torch.double)
    mean = torch.zeros(len(test), len(classes), dtype=torch.double)
    for k, model in enumerate(models):
        held = train[train["fold"] == k]
        oof[held.index] = predict(model, encode(held["tokens"], model.vocabulary))
        mean += predict(model, encode(test["tokens"], model.vocabulary)) / len(models)
    submission = pd.DataFrame({"Id": test["id"], "Category": [classes[i] for i in mean.argmax(1)]})
    write(args.submission, submission.to_csv(index=False, lineterminator="\n").encode())
    histories = [model.history for model in models]
    judged = evaluate(oof, train["target"])
    matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
    matplotlib.rcParams["text.parse_math"] = False  # a $ is a $
    figures = {
        "curves": draw_curves(histories),
        "confusion": draw_confusion(judged["confusion"], classes),
        "attention": draw_attention(models[0], train[train["fold"] == 0], oof, classes),
    }
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        write(args.out / f"{name}.png", buffer.getvalue())
    metrics = {
        **judged,
        "history": histories,
        "train_seconds": sum(point["seconds"] for history in histories for point in history),
        "wall_seconds": time.perf_counter() - started,
        "pretrained_words": len(known),
        "config": config,
        "seed": args.seed,
        "device": args.device,
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }
    write(args.out / "metrics.json", json.dumps(metrics, indent=1).encode())
    low, high = metrics["oof_accuracy_low"], metrics["oof_accuracy_high"]
    try:
        print(f"out of fold   {metrics['oof_accuracy']:.4f} (95%: {low:.4f} to {high:.4f})")
        print(f"trained in    {metrics['train_seconds']:.0f} s on {args.device}")
        print(f"for Kaggle    {args.submission}; all else in {args.out}", flush=True)
    except (OSError, ValueError):  # what cannot be told must not cost the work its exit status
        sys.stdout = None
    return metrics


if __name__ == "__main__":
    main()
