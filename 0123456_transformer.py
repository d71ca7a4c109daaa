"""Classify news by a hand-written Transformer encoder (Vaswani et al. 2017); for Kaggle.

    python 0123456_transformer.py                                train.csv, test.csv in data/
    python 0123456_transformer.py --data DIR --embeddings none   elsewhere; without word vectors

Five encoders train on four fifths of train.csv each; naive Bayes is added when they predict. Out of
fold, accuracy is 0.90 on the course's 2,000 rows, in half a minute. Their mean probabilities make
submission.csv, in the working folder; results/transformer gets metrics.json and pictures.
"""

import argparse
import gzip
import html
import json
import math
import os
import re
import sys
import time
from pathlib import Path

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1500")  # idle threads soon leave the cores to others
os.environ["MPLBACKEND"] = "agg"  # pictures are files; a notebook's own backend would fail here

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from nltk import tokenize
from torch import nn
from tqdm import tqdm

DATA = Path(__file__).resolve().parent / "data"
SAMPLE = DATA / "sample"  # made data, where the course's are missing
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
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    gpu = torch.accelerator.current_accelerator(check_available=True)
    devices = ["cpu", gpu.type] if gpu else ["cpu"]
    add = parser.add_argument
    add("--data", type=Path, default=DATA, help="folder of train.csv and test.csv")
    add("--out", type=Path, help="folder of what is written; None: results/transformer")
    add("--submission", type=Path, default=Path("submission.csv"), help="file for Kaggle")
    add("--tokenizer", choices=TOKENIZERS, default="wordpunct", help="NLTK tokenizer")
    add("--min-count", type=int, default=2, help="times a word must occur to be known")
    add("--word-dropout", type=float, default=0.6, help="share of words dropped in training")
    add("--max-len", type=int, default=128, help="tokens kept of a text")
    add("--embeddings", default="auto", help="auto (data/glove.6B.100d.npz), none or a vector FILE")
    add("--d-model", type=int, default=128, help="width of the encoder")
    add("--nhead", type=int, default=4, help="attention heads")
    add("--d-hid", type=int, default=192, help="width in the feed-forward block")
    add("--nlayers", type=int, default=1, help="encoder layers")
    add("--dropout", type=float, default=0.0, help="on each residual branch")
    add("--folds", type=int, default=5, help="parts of the rows, held out in turn")
    add("--epochs", type=int, default=10, help="passes over the training rows")
    add("--batch-size", type=int, default=64, help="texts a step")
    add("--lr", type=float, default=1.8e-3, help="peak learning rate")
    add("--seed", type=int, default=0, help="seed of all that is random")
    add("--device", choices=devices, default=devices[-1], help="where to compute")
    add("--dry-run", action="store_true", help="two batches of everything, in a folder of its own")
    args = parser.parse_args(argv)
    for name in "min_count max_len d_model nhead d_hid nlayers epochs batch_size lr".split():
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"argument --{name.replace('_', '-')}: must be above 0, and finite")
    if not (0 <= args.dropout < 1 and 0 <= args.word_dropout < 1):
        parser.error("arguments --dropout, --word-dropout: must be from 0 to below 1")
    if args.folds < 2 or args.seed < 0 or args.d_model % args.nhead:
        parser.error("--folds must be 2 or more, --seed 0 or more, --nhead a divisor of --d-model")
    trial = "dry_run" if args.dry_run else ""
    args.out = args.out / trial if args.out else Path("results", trial, "transformer")
    if args.dry_run:
        args.epochs = 1
        args.submission = args.out / "submission.csv"
    if args.data == DATA and SAMPLE.is_dir() and not (DATA / "train.csv").is_file():
        args.data = SAMPLE
        print(f"notice: the results are of made data, {SAMPLE}", file=sys.stderr)
    return args


# -------------------------------------------------------------------------------------------- data
def read_table(path, keys):
    """A CSV file as a DataFrame of str: the columns `keys`, no cell empty, title and content."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError as error:  # empty, a row too long, an open quote, not UTF-8
        sys.exit(f"error: no table in {path} ({str(error).strip()}): save it anew, as UTF-8 CSV")
    table.columns = table.columns.str.strip().str.lower()
    table = table.rename(columns={"category": "label", "description": "content"})
    needed = [*keys, "title", "content"]
    is_regular = isinstance(table.index, pd.RangeIndex)  # else cells beyond the heading became one
    if table.empty or not (is_regular and table.columns.is_unique and {*needed} <= {*table}):
        sys.exit(f"error: {path} needs rows of {', '.join(needed)}, and a heading: correct it")
    bad = table[keys].eq("").any(axis=1) | table["id"].duplicated()
    if bad.any():
        row = ", ".join(table[needed][bad].iloc[0]).replace("\n", " ")
        sys.exit(f"error: no {' or '.join(keys)}, or an id twice, in {path}: correct row {row:.50}")
    return table[needed]


def clean(text):
    """Lower case, HTML's crumbs mended: ` #39;s` is `'s`, ` quot;` is `"`; tags, `\\`, blanks."""
    text = re.sub(r"\s?&?#39;", "'", text.replace("&amp;", "&"))
    text = html.unescape(re.sub(r"&?(#\d{2,4}|\b(?:quot|amp|lt|gt|nbsp));", r"&\1;", text))
    return re.sub(r"</?[a-z!][^<>]*>|\\", " ", text.lower())


def load_news(args):
    """Tables of train.csv, with columns tokens, target and fold, and of test.csv, with tokens; and
    the classes: the labels, sorted as text. A target is the index of one."""
    train = read_table(args.data / "train.csv", ["id", "label"])
    test = read_table(args.data / "test.csv", ["id"])
    counts = train["label"].value_counts()
    if len(counts) < 2 or counts.min() < args.folds:
        few = f"label {counts.index[-1]} in {counts.min()} rows of train.csv"
        sys.exit(f"error: {few}: it takes two labels, each in --folds = {args.folds} rows or more")
    classes = sorted(counts.index)
    train["target"] = train["label"].map(classes.index)
    if args.dry_run:
        train = train.groupby("target").head(max(args.folds, args.batch_size // 2))
        test = test.head(2 * args.batch_size).copy()
    train = train.sample(frac=1, random_state=args.seed)
    train["fold"] = train.groupby("target").cumcount() % args.folds  # stratified
    tokenizer = TOKENIZERS[args.tokenizer]()
    for table in (train, test):
        texts = (table["title"] + " " + table["content"]).map(clean)
        table["tokens"] = [tokenizer.tokenize(text)[: args.max_len] for text in texts]
    return train.sort_index().reset_index(drop=True), test, classes


def load_vectors(name, words):
    """Vectors {word: (E,)} that a file has for `words` (lower case): data/make_glove.py's
    npz, or text of GloVe, fastText or word2vec, plain or .gz, a word and its numbers a line."""
    path = DATA / "glove.6B.100d.npz" if name == "auto" else Path(name)
    if name == "none" or (name == "auto" and not path.is_file()):
        print("notice: no pretrained vectors, so the accuracy is lower", file=sys.stderr)
        return {}
    if path.suffix == ".npz":  # int8 rows, each with a scale
        file = np.load(path, allow_pickle=False)
        pairs = zip(file["words"].tolist(), file["vectors"] * file["scale"][:, None], strict=True)
        vectors = {word: vector for word, vector in pairs if word in words}
    else:
        vectors = {}
        width = 0
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as file:
            for line in file:
                word, *numbers = line.rstrip().split(" ")
                if len(numbers) < 2:  # word2vec's heading, how many words and numbers
                    continue
                width = width or len(numbers)
                if word in words and len(numbers) == width:  # else the word itself has blanks
                    vectors[word] = np.array(numbers, np.float32)
    if not vectors:
        sys.exit(f"error: no vector of these words in {path}: name another FILE, or none")
    return vectors


def build_vocabulary(texts, min_count, pretrained=()):
    """{word: id}: <pad>, <unk>, the pretrained words, those that occur at least min_count times."""
    counts = texts.explode().value_counts()
    words = ["<pad>", "<unk>", *sorted(pretrained), *sorted(counts.index[counts >= min_count])]
    return {word: i for i, word in enumerate(dict.fromkeys(words))}


def encode(texts, vocabulary):
    """Token ids (T,) of each text; a text without words is one <unk>."""
    return [torch.tensor([vocabulary.get(word, UNK) for word in text] or [UNK]) for text in texts]


# ------------------------------------------------------------------------------------------- model
def attention(query, key, value, mask):
    """Scaled dot-product attention, softmax(Q K' / sqrt(hs)) V (Vaswani et al. 2017, equation 1).
    query (..., T, hs); key and value (..., S, hs); mask (..., 1 or T, S), True where a key may be
    seen. Returns the output (..., T, hs) and the weights (..., T, S), whose rows sum to 1."""
    scores = (query / math.sqrt(query.size(-1))) @ key.transpose(-2, -1)  # (..., T, S)
    scores += torch.where(mask, 0.0, -1e30)  # not -inf: the softmax of -inf alone is NaN
    weights = scores.softmax(-1)
    return weights @ value, weights


class MultiHeadAttention(nn.Module):
    """Self-attention in nhead subspaces of hs = d_model / nhead numbers each (section 3.2.2): x
    (B, T, D), mask (B, T) -> (B, T, D) and a tuple of weights (b, H, T, T), of b texts each."""

    def __init__(self, d_model, nhead):
        super().__init__()
        self.nhead = nhead
        self.qkv = nn.Linear(d_model, 3 * d_model)  # query, key and value in one product
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x, mask):
        qkv = self.qkv(x).unflatten(2, (3, self.nhead, -1))  # (B, T, 3, H, hs)
        inputs = [*qkv.permute(2, 0, 3, 1, 4), mask[:, None, None]]  # (B, H, T, hs) thrice; mask
        b = 1 + 2**21 // (self.nhead * x.size(1) ** 2)  # texts at a time: faster within the cache
        parts = zip(*[tensor.split(b) for tensor in inputs], strict=True)
        outputs, weights = zip(*[attention(*part) for part in parts], strict=True)
        return self.out(torch.cat(outputs).transpose(1, 2).flatten(2)), weights


class EncoderLayer(nn.Module):
    """Attention, then two linear layers at every position (section 3.3), both as x + f(norm(x)):
    pre-norm trains well with little warm-up (Xiong et al. 2020)."""

    def __init__(self, d_model, nhead, d_hid, dropout):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = MultiHeadAttention(d_model, nhead)
        self.norm2 = nn.LayerNorm(d_model)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, d_hid),
            nn.GELU(),
            nn.Linear(d_hid, d_model),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask):
        """x (B, T, D), mask (B, T), True at real tokens -> x, and the weights of its attention."""
        attended, weights = self.attention(self.norm1(x), mask)
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.norm2(x))), weights


class TransformerClassifier(nn.Module):
    """Word vectors + positions -> encoder layers -> maximum over the tokens -> class logits.
    Pretrained `vectors` {word: vector} stay as they are; words without one are then all 0."""

    def __init__(self, args, vocabulary, n_classes, vectors):
        super().__init__()
        D = args.d_model
        self.vocabulary = vocabulary
        self.naive_bayes_weight = 0.5 if vectors else 1.0  # in predict
        if vectors:
            zero = np.zeros_like(next(iter(vectors.values())), np.float32)  # (E,)
            table = np.stack([vectors.get(word, zero) for word in vocabulary])
            frozen = nn.Embedding.from_pretrained(torch.from_numpy(table).float())
            self.embedding = nn.Sequential(frozen, nn.Linear(len(zero), D))
        else:
            self.embedding = nn.Embedding(len(vocabulary), D, padding_idx=PAD)
            nn.init.normal_(self.embedding.weight, std=0.1)
        angle = torch.arange(args.max_len)[:, None] * 10000 ** (-torch.arange(0, D, 2) / D)
        position = 0.1 * torch.stack([angle.sin(), angle.cos()], 2).flatten(1)[:, :D]  # small
        self.register_buffer("position", position)  # (max_len, D), sinusoids (section 3.5)
        sizes = (D, args.nhead, args.d_hid, args.dropout)
        self.layers = nn.ModuleList(EncoderLayer(*sizes) for _ in range(args.nlayers))
        self.norm = nn.LayerNorm(D)
        self.classify = nn.Sequential(nn.Dropout(0.3), nn.Linear(D, n_classes))

    def forward(self, tokens, return_attention=False):
        """tokens (B, T) -> logits (B, C), or (logits, [weights (B, H, T, T) of each layer])."""
        mask = tokens != PAD
        mask[:, 0] |= ~mask.any(1)  # a text of padding alone still has a token to look at
        x = self.embedding(tokens) + self.position[: tokens.size(1)]  # (B, T, D)
        maps = []
        for layer in self.layers:
            x, weights = layer(x, mask)
            maps.append(torch.cat(weights))
        x = self.norm(x).masked_fill(~mask[..., None], torch.finfo(x.dtype).min)
        logits = self.classify(x.amax(1))  # the largest over the text of each of the D features
        return (logits, maps) if return_attention else logits


def log_count_ratios(texts, targets, n_words, n_classes):
    """Naive Bayes: log p(word|class), half a count added, centred over the classes (Wang and
    Manning 2012), (n_words, n_classes); 0 of <pad>, <unk> and words that do not occur."""
    counts = torch.zeros(n_words, n_classes)
    for text, target in zip(texts, targets, strict=True):
        counts[:, target] += torch.bincount(text, minlength=n_words)
    counts[[PAD, UNK]] = 0
    seen = counts.sum(1) > 0  # words of the vocabulary may be of other rows
    log_p = (counts + 0.5).log() - (counts[seen] + 0.5).sum(0).log()
    return (log_p - log_p.mean(1, keepdim=True)).where(seen[:, None], 0.0)


# ------------------------------------------------------------------------------- loss and training
def learning_rate(progress, peak):
    """Linear warm-up over the first tenth of training, then linear decay to 0."""
    if progress < 0.1:
        return peak * progress / 0.1
    return peak * (1 - progress) / 0.9


def train_epoch(args, model, optimizer, texts, targets, epoch):
    """One pass in random batches of texts of similar length, each with a fresh random share of its
    words deleted; returns loss (nats, of smoothed labels) and accuracy, means over the batches."""
    model.train()
    kept = [text[torch.rand(len(text)) >= args.word_dropout] for text in texts]
    kept = [some if len(some) else text for some, text in zip(kept, texts, strict=True)]
    length = torch.tensor([len(text) for text in kept]) + 4 * torch.rand(len(kept))  # jitter
    batches = length.argsort().split(args.batch_size)
    totals = torch.zeros(2)
    for step, k in enumerate(torch.randperm(len(batches))):
        progress = (epoch + (step + 0.5) / len(batches)) / args.epochs  # in the middle of the step
        optimizer.param_groups[0]["lr"] = learning_rate(progress, args.lr)
        batch = nn.utils.rnn.pad_sequence([kept[row] for row in batches[k]], batch_first=True)
        target = targets[batches[k]].to(args.device)
        logits = model(batch.to(args.device))
        loss = nn.functional.cross_entropy(logits, target, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals += torch.stack([loss, (logits.argmax(1) == target).float().mean()]).detach().cpu()
    return (totals / len(batches)).tolist()


def train_fold(args, train, test, fold, classes, vectors):
    """Train on the rows outside `fold`. Returns the encoder, its history (a dict an epoch) and
    class probabilities: oof, of the rows in the fold, (N, C), and of test, (M, C)."""
    torch.manual_seed(1000 * args.seed + fold)
    rest = train[train["fold"] != fold]
    held = train[train["fold"] == fold]
    vocabulary = build_vocabulary(rest["tokens"], args.min_count, vectors)
    texts = encode(rest["tokens"], vocabulary)
    held_texts = encode(held["tokens"], vocabulary)
    targets = torch.tensor(rest["target"].tolist())
    ratios = log_count_ratios(texts, targets, len(vocabulary), len(classes))
    model = TransformerClassifier(args, vocabulary, len(classes), vectors).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, fused=True)
    history = []
    for epoch in range(args.epochs):
        loss, accuracy = train_epoch(args, model, optimizer, texts, targets, epoch)
        oof = predict(args, model, ratios, held_texts)
        judged = evaluate(oof, held["target"])
        if not math.isfinite(loss + judged["oof_loss_nats"]):
            sys.exit(f"error: the loss is not finite in epoch {epoch + 1}: take a smaller --lr")
        history.append({"loss_nats": loss, "accuracy": accuracy, **judged})
    return model, history, oof, predict(args, model, ratios, encode(test["tokens"], vocabulary))


# -------------------------------------------------------------------------------------- evaluation
@torch.no_grad()
def predict(args, model, ratios, texts):
    """Class probabilities (N, C) of texts, token ids (T,) each, float64 on the CPU: softmax(logits
    + weight * sum of ratios / sqrt(length)); the root, because words are not independent."""
    model.eval()
    parts = []
    order = torch.tensor([len(text) for text in texts]).argsort()  # like lengths, little padding
    for rows in order.split(args.batch_size):
        tokens = nn.utils.rnn.pad_sequence([texts[row] for row in rows], batch_first=True)  # (B, T)
        naive_bayes = ratios[tokens].sum(1) / (tokens != PAD).sum(1, keepdim=True).sqrt()  # (B, C)
        logits = model(tokens.to(args.device)).cpu() + model.naive_bayes_weight * naive_bayes
        parts.append(logits.double().softmax(1))
    return torch.cat(parts)[order.argsort()]  # in the order given


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
        "oof_accuracy_interval": [centre - half, centre + half],
        "oof_loss_nats": nn.functional.nll_loss(probabilities.log(), targets).item(),
        "confusion": torch.bincount(targets * C + guess, minlength=C * C).view(C, C).tolist(),
    }


# ----------------------------------------------------------------------------------------- figures
@torch.no_grad()
def draw_attention(path, model, row, classes):
    """The last layer's attention, mean over heads, from a text's first 40 words (down) to them."""
    words = row["tokens"][:40] or ["<unk>"]
    tokens = encode([words], model.vocabulary)[0].to(model.position.device)
    logits, maps = model(tokens[None], return_attention=True)
    figure = Figure((10, 9), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(maps[-1][0].mean(0).cpu(), cmap="Reds", vmin=0)  # (T, T)
    figure.colorbar(picture, label="attention weight, mean over heads")
    axis.set_xticks(range(len(words)), words, rotation=90, parse_math=False)  # a $ is no TeX
    axis.set_yticks(range(len(words)), words, parse_math=False)
    axis.set(title=f"true {row['label']}, the encoder's guess {classes[logits.argmax()]}")
    figure.savefig(path, dpi=120)


# -------------------------------------------------------------------------------------------- main
def main(argv=None):
    """Train, predict, evaluate, draw; returns what it writes to metrics.json."""
    started = time.perf_counter()
    args = parse_args(argv)
    train, test, classes = load_news(args)
    vectors = load_vectors(args.embeddings, {*train["tokens"].explode(), *test["tokens"].explode()})
    for folder in (args.out, args.submission.parent):
        folder.mkdir(parents=True, exist_ok=True)
    oof = torch.zeros(len(train), len(classes), dtype=torch.double)
    mean = torch.zeros(len(test), len(classes), dtype=torch.double)
    histories = []
    for fold in tqdm(range(args.folds), "training", unit="fold", disable=None):
        held = train[train["fold"] == fold]
        model, history, held_out, predicted = train_fold(args, train, test, fold, classes, vectors)
        oof[held.index] = held_out
        mean += predicted / args.folds
        histories.append(history)
    submission = pd.DataFrame({"Id": test["id"], "Category": [classes[i] for i in mean.argmax(1)]})
    submission.to_csv(args.submission, index=False)
    metrics = {
        **evaluate(oof, train["target"]),
        "classes": classes,
        "history": histories,
        "pretrained_words": len(vectors),
        "config": {k: v if isinstance(v, int | float) else str(v) for k, v in vars(args).items()},
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "wall_seconds": time.perf_counter() - started,
    }
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False))
    folds = pd.concat([pd.DataFrame(history) for history in histories])
    curves = folds.groupby(level=0).mean(numeric_only=True)  # over the folds
    panels = [("loss_nats", "oof_loss_nats"), ("accuracy", "oof_accuracy")]  # oof: naive Bayes, too
    axes = curves.plot(subplots=panels, figsize=(8, 6), marker=".", xlabel="epoch")
    axes[0].figure.savefig(args.out / "curves.png")
    draw_attention(args.out / "attention.png", model, held.iloc[0], classes)  # of the last fold
    low, high = metrics["oof_accuracy_interval"]
    print(f"out of fold   {metrics['oof_accuracy']:.4f} (95%: {low:.4f} to {high:.4f})")
    print(f"for Kaggle    {args.submission}; all else in {args.out}")
    return metrics


if __name__ == "__main__":
    try:
        main()
    except OSError as error:  # a file that cannot be read or written, a full disk
        sys.exit(f"error: {error}: name another path, by --data or --out, or make room")
    except KeyboardInterrupt:
        sys.exit("stopped: run it again")
