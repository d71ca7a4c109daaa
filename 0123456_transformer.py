"""Classify news by a Transformer encoder written by hand, and write submission.csv for Kaggle.

    python 0123456_transformer.py                      data/ beside this script, or the made sample in it
    python 0123456_transformer.py --data DIR           the folder with train.csv and test.csv
    python 0123456_transformer.py --embeddings none    without pretrained word vectors

Three encoders are trained on each four fifths of train.csv. Their averaged probabilities predict the fifth that
they have not seen (out-of-fold accuracy), and those of all fifteen make the submission. The folder
results/transformer gets metrics.json, model.pt, curves.png, confusion.png and attention.png. On the course's 2,000 rows
the accuracy is 0.90 out of fold, after 3 minutes on 2 cores.
"""

import contextlib
import csv
import hashlib
import html
import io
import json
import math
import os
import re
import sys
import time
import zipfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter, namedtuple
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

PAD, UNK = 0, 1  # token ids of <pad> and <unk>
SAVE_EVERY = 10  # seconds between checkpoints, at least: saving all models each epoch takes an eighth of the run
NLTK = dict(whitespace="Whitespace", wordpunct="WordPunct", treebank="TreebankWord", toktok="Toktok", tweet="Tweet")

# ------------------------------------------------------------------------------------------------------------ settings


def option(default, help, low=None, high=None, choices=None):
    """A field of Config: its default, its line in --help, and the values that it may take."""
    return field(default=default, metadata=dict(help=help, low=low, high=high, choices=choices))


@dataclass
class Config:
    data: str = option(None, "folder of train.csv and test.csv (default: data beside this script)")
    out: str = option("results/transformer", "folder for metrics, model, pictures and checkpoint")
    submission: str = option("submission.csv", "file for Kaggle")
    tokenizer: str = option("wordpunct", "NLTK tokenizer", choices=tuple(NLTK))
    min_count: int = option(2, "occurrences from which on a word is known", 1, 1000)
    max_len: int = option(128, "tokens of a text that are read", 1, 4096)
    embeddings: str = option("auto", "auto (data/glove.6B.100d.npz, if there), none, or a word-vector FILE")
    d_model: int = option(128, "width of the encoder", 1, 1024)
    nhead: int = option(4, "attention heads", 1, 64)
    d_hid: int = option(256, "width inside the feed-forward block", 1, 4096)
    nlayers: int = option(1, "encoder layers", 1, 24)
    dropout: float = option(0.1, "dropout on each residual branch", 0, 0.95)
    word_dropout: float = option(0.5, "share of the tokens left out at each training step", 0, 0.95)
    folds: int = option(5, "parts of the rows, each predicted by models that have not seen it", 2, 100)
    models: int = option(3, "models a fold, whose probabilities are averaged", 1, 20)
    epochs: int = option(12, "passes over the training rows", 1, 10000)
    batch_size: int = option(32, "texts a step", 1, 4096)
    lr: float = option(None, "peak learning rate (default: 1e-3 with pretrained vectors, 2e-3 without)", 1e-9, 1e6)
    seed: int = option(0, "seed of all that is random", 0, 2**31 - 1)
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    resume: bool = option(False, "continue the run whose checkpoint lies in --out")
    dry_run: bool = option(False, "two batches of everything, to see that it all works")


def parse_args(argv=None):
    """Config from the command line, where each of its fields is an option. Raises UserError."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.error = lambda message: check(False, f"{message} at the command line: see --help")
    for f in fields(Config):
        about = f.metadata["help"] + ("" if f.default is None or f.type is bool else " (default: %(default)s)")
        kind = dict(action="store_true") if f.type is bool else dict(type=f.type, choices=f.metadata["choices"])
        parser.add_argument("--" + f.name.replace("_", "-"), default=f.default, help=about, **kind)
    config = Config(**vars(parser.parse_args(argv)))
    for f in fields(Config):
        value, low, high = getattr(config, f.name), f.metadata["low"], f.metadata["high"]
        fine = low is None or value is None or low <= value <= high  # NaN is not
        check(fine, f"{value} out of range at --{f.name.replace('_', '-')}: give a number from {low} to {high}")
    return config


if __name__ == "__main__" and {"-h", "--help"} & {*sys.argv}:
    parse_args(["--help"])  # ends here: what follows takes seconds to import

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

# --------------------------------------------------------------------------------------------------------- run helpers


class UserError(Exception):
    """What the person at the keyboard can mend; reads `WHAT at WHERE: WHAT TO DO`."""


def check(fine, message):
    if not fine:
        raise UserError(message)


def choose_device(name):
    """torch.device for auto, cpu, cuda or mps. Raises UserError if this machine has none such."""
    there = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True)
    name = next(kind for kind in there if there[kind]) if name == "auto" else name
    check(there[name], f"no such device at --device {name}: use --device auto")
    return torch.device(name)


def seed_everything(*numbers):
    """Seed torch by (seed, stage, epoch, ...), so that a resumed epoch draws what it would have drawn."""
    torch.manual_seed(int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big"))


def course_file(folder, name):
    """(path of a course file, whether it is made data); only if no folder is named may data/sample stand in."""
    beside = Path(__file__).resolve().parent / "data"
    path = Path(folder or beside) / name
    if made := not folder and not os.path.isfile(path):
        path = beside / "sample" / name
        print(f"notice: no {name} in {beside}, so {path} is taken: the results are of made data", file=sys.stderr)
    check(os.path.isfile(path), f"no {name} at {path.parent}: put it there or name its folder by --data")
    return path, made


def write_whole(path, write):
    """Put what write(buffer) writes at `path`, whole or not at all: beside it first, then moved into place."""
    buffer, part = io.BytesIO(), Path(path).parent / f".{Path(path).name}.part"
    write(buffer)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write ({error.strerror}) at {Path(path)}: make room or name another place") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def saved_file(path):
    """What torch.save wrote at `path`, on the CPU; runs no code from it. UserError if that, or the block, fails."""
    try:
        with zipfile.ZipFile(path) as archive:
            check(not archive.testzip(), "damaged")  # torch looks at no checksum
        yield torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a missing, damaged or foreign file
        raise UserError(f"nothing that this script saved at {path}: delete it and train again") from error


def load_resume(config, data):
    """The checkpoint that --resume asks for, or a new one: {"run": all that decides the weights, `data`'s hash too}."""
    aside = ("data", "out", "submission", "embeddings", "device", "resume", "eval_only")
    run = {name: value for name, value in asdict(config).items() if name not in aside}
    run["data hash"] = hashlib.sha256(data).hexdigest()[:12]
    path = Path(config.out) / "checkpoint.pt"
    if not (config.resume and os.path.lexists(path)):
        return {"run": run}
    with saved_file(path) as checkpoint:
        theirs = checkpoint["run"]
        other = ", ".join(f"{key} {theirs.get(key)}, not {run[key]}" for key in run if theirs.get(key) != run[key])
    check(not other, f"checkpoint of another run ({other}) at {path}: give its options or leave out --resume")
    return checkpoint


def write_metrics(config, argv, device, metrics, started):
    """Write metrics.json: the figures, the seconds since `started`, and what it takes to get them again."""
    versions = dict(python=sys.version.split()[0], torch=torch.__version__, numpy=np.__version__)
    metrics |= dict(argv=sys.argv[1:] if argv is None else list(argv), config=asdict(config), seed=config.seed)
    metrics |= dict(device=str(device), versions=versions, wall_seconds=time.perf_counter() - started)
    write_whole(Path(config.out) / "metrics.json", lambda f: f.write(json.dumps(metrics, indent=1).encode()))


def new_figure(width, height, title=None):
    """A matplotlib figure of so many inches; `lambda f: figure.savefig(f)` hands it to write_whole."""
    import matplotlib.figure

    matplotlib.rcParams["text.parse_math"] = False  # a $ is a $
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained", dpi=120)
    figure.suptitle(title)
    return figure


def run(main):
    """Call main; exit with 2 and one line for a UserError, with 130 and one line after Ctrl-C."""
    try:
        main()
    except UserError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped: the same command and --resume go on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


# ---------------------------------------------------------------------------------------------------------------- data


# train and test: lists of token lists; labels (N,): indices into classes, the labels as they stand in train.csv
News = namedtuple("News", "train labels classes test test_ids made")


def read_table(path, wanted):
    """The columns {name: [text]} of a CSV file; `wanted` gives each name's headings. Raises UserError."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # strict: a lone quote must not swallow rows
            head, *rows = [row for row in csv.reader(file, strict=True) if any(row)]
    except (ValueError, OSError, csv.Error) as error:  # of decoding and parsing alike
        raise UserError(f"no table in UTF-8 ({error}) at {path}: take the course's file again") from error
    odd = next((row for row in rows if len(row) != len(head)), head)
    check(odd is head, f"no table, {len(odd)} fields, not {len(head)}, in row {odd[0]!r:.40} at {path}: mend the row")
    columns = {}
    for name, headings in wanted.items():
        found = [heading for heading in headings if heading in head]
        check(found, f"no column {' or '.join(headings)} at {path}: name it in the first line")
        columns[name] = [row[head.index(found[0])].strip() for row in rows]
        check(name in ("title", "content") or all(columns[name]), f"a row without {found[0]} at {path}: fill it in")
    twice = [value for value, n in Counter(columns["id"]).items() if n > 1]
    check(not twice, f"Id {twice[:1]} more than once at {path}: give each row an Id of its own")
    check(any(columns["title"] + columns["content"]), f"no text at {path}: take the course's file again")
    return columns


def clean(text):
    """Lower case, without crumbs of mark-up: ` #39;s` is `'s`, ` quot;` a quote, `&lt;b&gt;` nothing, `\\$44` $44.

    `(AP)` and its like stay: which agency sent the news is a part of it, and tells something of its class.
    """
    text = re.sub(r"\s?&?#39;", "'", re.sub(r"#\d{8,}", "#", text))  # html fails for thousands of digits
    text = html.unescape(re.sub(r"&?(#\d{2,4}|\b(?:quot|amp|lt|gt|nbsp));", r"&\1;", text))
    text = html.unescape(re.sub(r"#\d{8,}", "#", text))
    return re.sub(r"<[^<>]*>|\\", " ", text).lower()


def load_news(config):
    """News from train.csv and test.csv. Raises UserError."""
    from nltk import tokenize

    (path, made), (test_path, _) = (course_file(config.data, f"{part}.csv") for part in ("train", "test"))
    wanted = dict(id=["Id"], title=["Title"], content=["Description", "Content"])
    train, test = read_table(path, wanted | dict(label=["Category", "Label"])), read_table(test_path, wanted)
    counts = Counter(train["label"])
    classes = sorted(counts, key=float if all(label.isdecimal() for label in counts) else None)
    check(len(classes) > 1, f"one class only ({classes[0]}) at {path}: at least two are needed")
    rare, n = counts.most_common()[-1]
    check(n >= config.folds, f"label {rare} in {n} rows at {path}: it needs as many as --folds, now {config.folds}")
    tokenizer = getattr(tokenize, NLTK[config.tokenizer] + "Tokenizer")()

    def tokens(table):
        texts = map(" ".join, zip(table["title"], table["content"], strict=True))
        return [tokenizer.tokenize(clean(text))[: config.max_len] for text in texts]

    labels = torch.tensor([classes.index(label) for label in train["label"]])
    return News(tokens(train), labels, classes, tokens(test), test["id"], made)


def read_vectors(embeddings, words):
    """Pretrained vectors {word: float32 (E,)} of those of `words` that --embeddings has. Raises UserError.

    A FILE is data/make_glove.py's npz, or text of GloVe, fastText or word2vec (whose first line is two numbers),
    streamed: a word and its numbers a line.
    """
    path = Path(__file__).with_name("data") / "glove.6B.100d.npz" if embeddings == "auto" else Path(embeddings)
    if embeddings == "none" or (embeddings == "auto" and not path.is_file()):
        print("notice: no pretrained vectors, so the accuracy is lower", file=sys.stderr)
        return {}
    vectors, width = {}, 0
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                table = file["vectors"] * file["scale"][:, None]
                vectors = {word: row for word, row in zip(file["words"].tolist(), table, strict=True) if word in words}
        else:
            with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
                for i, line in enumerate(file):
                    word, *numbers = line.rstrip().split(" ")
                    width = max(width, len(numbers)) if i < 2 else width  # the first line may be no word's
                    check(i == 0 or len(numbers) >= width, f"too few numbers in line {i + 1}")
                    if word in words and len(numbers) == width > 1:  # a word with blanks in it is passed over
                        vectors[word] = np.array(numbers, np.float32)
        check(vectors and np.isfinite([*vectors.values()]).all(), "none for any word of the texts, or not finite")
    except Exception as error:  # numpy and zipfile raise a dozen kinds for damaged files
        raise UserError(f"no word vectors ({error}) at --embeddings {path}: give a GloVe text file") from error
    return vectors


def build_vocabulary(documents, min_count, pretrained=()):
    """{word: id}: <pad>, <unk>, the words that occur at least min_count times, and the pretrained ones."""
    counts = Counter(word for document in documents for word in document)
    known = sorted(word for word in counts if counts[word] >= min_count)
    return {word: i for i, word in enumerate(dict.fromkeys(["<pad>", "<unk>", *known, *pretrained]))}


def assign_folds(labels, folds, seed):
    """The fold (N,) that holds each row out; every class is spread evenly over the folds, at random."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    fold = torch.empty_like(labels)
    fold[shuffled[labels[shuffled].argsort(stable=True)]] = torch.arange(len(labels)) % folds
    return fold


def encode(documents, vocabulary):
    """Token ids (N, T), padded to the longest document; an empty document is one <unk>."""
    ids = [torch.tensor([vocabulary.get(word, UNK) for word in document] or [UNK]) for document in documents]
    return nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD)


def log_count_ratios(tokens, labels, words, classes):
    """What each word tells of each class, log p(word|class) less its mean over classes: (words, classes).

    From tokens (N, T) and labels (N,), with half a count added to each (naive Bayes; Wang and Manning 2012).
    Of <pad>, <unk> and words that do not occur it is 0.
    """
    counts = torch.zeros(words, classes)
    counts.index_put_((tokens, labels[:, None].expand_as(tokens)), torch.tensor(1.0), accumulate=True)
    counts[[PAD, UNK]] = 0
    ratios = ((counts + 0.5) / (counts + 0.5).sum(0)).log()
    return (ratios - ratios.mean(1, keepdim=True)) * (counts.sum(1, keepdim=True) > 0)


# --------------------------------------------------------------------------------------------------------------- model


def attention(query, key, value, mask):
    """Scaled dot-product attention, softmax(Q K' / sqrt(hs)) V (Vaswani et al. 2017, equation 1).

    query (..., T, hs); key and value (..., S, hs); mask (..., 1 or T, S), True where a key may be seen.
    Returns the output (..., T, hs) and the weights (..., T, S), whose rows sum to 1.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))  # (..., T, S)
    # The least finite number, not -inf: a row that may see nothing stays free of NaN.
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
        q, k, v = self.qkv(x).unflatten(2, (3, self.nhead, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, hs) each
        output, weights = attention(q, k, v, mask[:, None, None])  # mask (B, 1, 1, T)
        return self.out(output.transpose(1, 2).flatten(2)), weights


class EncoderLayer(nn.Module):
    """Attention, then the same two linear layers at every position (section 3.3), each as x + f(norm(x)): pre-norm
    trains well with little warm-up (Xiong et al. 2020)."""

    def __init__(self, d_model, nhead, d_hid, dropout):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attention = MultiHeadAttention(d_model, nhead)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, d_hid), nn.GELU(), nn.Linear(d_hid, d_model))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask):
        attended, weights = self.attention(self.norm1(x), mask)
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.norm2(x))), weights


class TransformerClassifier(nn.Module):
    """Word vectors + sinusoidal positions -> encoder layers -> the largest of each feature -> class logits.

    Pretrained vectors, `width` numbers wide, are projected to d_model. The positions (section 3.5) are scaled to
    the size of the word vectors, a tenth of the unit that they have in the paper. Beside the encoder stands naive
    Bayes: once trained, the text's log-count ratios are added to the logits.
    """

    def __init__(self, config, vocabulary, classes, width=None):
        super().__init__()
        c, D, self.vocabulary = config, config.d_model, vocabulary
        self.embedding = nn.Embedding(len(vocabulary), width or D, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.project = nn.Linear(width, D) if width else nn.Identity()
        angle = torch.arange(c.max_len)[:, None] * 10000 ** (-torch.arange(0, D, 2) / D)  # (T, D / 2)
        position = torch.stack([angle.sin(), angle.cos()], 2).flatten(1)[:, :D]
        self.register_buffer("position", 0.1 * position, persistent=False)
        self.layers = nn.ModuleList(EncoderLayer(D, c.nhead, c.d_hid, c.dropout) for _ in range(c.nlayers))
        self.norm = nn.LayerNorm(D)
        self.classify = nn.Sequential(nn.Dropout(0.3), nn.Linear(D, classes))
        self.register_buffer("ratios", torch.zeros(len(vocabulary), classes))  # log_count_ratios
        self.trust = 0.3 if width else 1.0  # in the ratios; an encoder that had no vectors knows less

    def forward(self, tokens, return_attention=False, places=None):
        """tokens (B, T) -> logits (B, C), or (logits, [attention weights (B, H, T, T) of each layer]).

        places (B, T): where in the text each token stands, if not at 0, 1 ... T - 1.
        """
        mask = tokens != PAD
        mask[:, 0] |= ~mask.any(1)  # a text of padding alone still has a token to look at
        position = self.position[: tokens.size(1)] if places is None else self.position[places]
        x, maps = self.project(self.embedding(tokens)) + position, []
        for layer in self.layers:
            x, weights = layer(x, mask)
            maps.append(weights)
        x = self.norm(x).masked_fill(~mask[..., None], torch.finfo(x.dtype).min)
        logits = self.classify(x.amax(1))  # the largest over the text of each of the D features
        if not self.training:  # there the ratios, counted on the same rows, would leave the encoder nothing to learn
            logits = logits + self.trust * self.ratios[tokens].sum(1) / mask.sum(1, keepdim=True).sqrt()
        return (logits, maps) if return_attention else logits


# --------------------------------------------------------------------------------------------------- loss and training


@torch.no_grad()
def predict(model, tokens):
    """Class probabilities (N, C), float64 on the CPU; texts of similar length go together."""
    model.eval()
    lengths = (tokens != PAD).sum(1).clamp(min=1)
    order = lengths.argsort(stable=True)
    logits = torch.cat([model(tokens[rows, : lengths[rows].max()]) for rows in order.split(256)])
    return logits[order.argsort()].cpu().double().softmax(1)


def train_epoch(config, model, optimizer, tokens, labels, epoch):
    """One pass in random batches of texts of similar length; returns mean loss (nats) and accuracy.

    The words left out are taken out, not masked: the same for the model, at half the work.
    """
    model.train()
    chance = torch.rand(len(tokens), config.max_len, device=tokens.device)[:, : tokens.size(1)]
    kept = (tokens != PAD) & (chance >= config.word_dropout)
    places = kept.int().argsort(dim=1, descending=True, stable=True)  # (N, T), of the words kept first
    tokens, lengths = tokens.masked_fill(~kept, PAD).gather(1, places), kept.sum(1)
    groups = (lengths + 4 * torch.rand(len(tokens), device=tokens.device)).argsort().split(config.batch_size)
    longest = torch.stack([lengths[rows].max() for rows in groups]).clamp(min=1).tolist()
    order, figures = torch.randperm(len(groups))[: 2 if config.dry_run else None].tolist(), []
    for i, (rows, T) in enumerate((groups[k], longest[k]) for k in order):
        done = (epoch + i / len(groups)) / config.epochs  # warm-up over a tenth of the run, then linear decay
        optimizer.param_groups[0]["lr"] = config.lr * min(10 * done + 1e-3, 1 - done)
        logits = model(tokens[rows, :T], places=places[rows, :T])
        loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        figures.append(torch.stack([loss.detach(), (logits.argmax(1) == labels[rows]).float().mean()]))
    return torch.stack(figures).mean(0).tolist()


def train_folds(config, news, fold_of, vectors, device):
    """Train the models of each fold, with checkpoints between epochs. Returns what model.pt holds: config, classes, and
    of each model vocabulary, width, weights and history, [training loss, accuracy, held-out loss, accuracy] an epoch.

    The weights are the average over the last third of the epochs (Izmailov et al. 2018); no epoch is chosen
    by its held-out figures, which would flatter them.
    """
    checkpoint = load_resume(config, repr((news, sorted(vectors))).encode())
    saved, total = time.perf_counter(), config.folds * config.models
    started = saved - checkpoint.get("seconds", 0.0)
    models, labels = checkpoint.setdefault("models", []), news.labels.to(device)
    width = len(next(iter(vectors.values()))) if vectors else None  # of the pretrained vectors
    for i in range(len(models), total):
        fold = i // config.models
        seed_everything(config.seed, i)
        inside, held = (fold_of != fold).nonzero()[:, 0], (fold_of == fold).nonzero()[:, 0]
        vocabulary = build_vocabulary([news.train[row] for row in inside], config.min_count, vectors)
        model = TransformerClassifier(config, vocabulary, len(news.classes), width)
        for word, vector in vectors.items():
            model.embedding.weight.data[vocabulary[word]] = torch.from_numpy(vector)
        model.embedding.weight.requires_grad = not vectors  # or words of the training rows drift from the rest
        tokens, history, first = encode(news.train, vocabulary), [], 0
        model.ratios = log_count_ratios(tokens[inside], news.labels[inside], *model.ratios.shape)
        tokens, average = tokens.to(device), AveragedModel(model.to(device))
        optimizer = torch.optim.AdamW(model.parameters(), config.lr, betas=(0.9, 0.98), fused=True)
        if checkpoint.get("state"):
            with saved_file(Path(config.out) / "checkpoint.pt"):
                first, history, *states = checkpoint["state"]
                for part, state in zip((model, average, optimizer), states, strict=True):
                    part.load_state_dict(state)
        for epoch in tqdm(range(first, config.epochs), f"model {i + 1}", unit="epoch", disable=None):
            seed_everything(config.seed, i, epoch)
            figures = train_epoch(config, model, optimizer, tokens[inside], labels[inside], epoch)
            if epoch >= config.epochs - max(1, config.epochs // 3):
                average.update_parameters(model)
            guess, truth = predict(model, tokens[held]), news.labels[held]
            accuracy = (guess.argmax(1) == truth).double().mean().item()
            history.append([*figures, F.nll_loss(guess.log(), truth).item(), accuracy])
            check(math.isfinite(sum(history[-1])), f"loss not finite at epoch {epoch + 1}: take a smaller --lr")
            state = (epoch + 1, history, model.state_dict(), average.state_dict(), optimizer.state_dict())
            if epoch + 1 == config.epochs:
                state, weights = None, average.module.state_dict()
                models.append(dict(vocabulary=vocabulary, width=width, weights=weights, history=history))
            checkpoint.update(state=state, seconds=time.perf_counter() - started)
            if time.perf_counter() - saved >= SAVE_EVERY or len(models) == total:
                write_whole(Path(config.out) / "checkpoint.pt", lambda file: torch.save(checkpoint, file))
                saved = time.perf_counter()
    return dict(config=asdict(config), classes=news.classes, seconds=checkpoint["seconds"], models=models)


def load_checkpoint(path, device="cpu"):
    """([TransformerClassifier, ...], config) of a model.pt, in eval mode, fold by fold. Raises UserError."""
    with saved_file(path) as saved:
        config, models = Config(**saved["config"]), []
        for model in saved["models"]:
            models.append(TransformerClassifier(config, model["vocabulary"], len(saved["classes"]), model["width"]))
            models[-1].load_state_dict(model["weights"])
    return [model.to(device).eval() for model in models], config


# ---------------------------------------------------------------------------------------------------------- evaluation


def evaluate(probabilities, labels, classes):
    """Figures of predicted probabilities (N, C): accuracy with its 95% Wilson interval (1927), loss, expected
    calibration error over 15 bins of confidence (Guo et al. 2017), precision, recall, confusion (truth, guess)."""
    confidence, guess = probabilities.max(1)
    right, n, C, z = guess == labels, len(labels), len(classes), 1.96
    confusion = torch.bincount(labels * C + guess, minlength=C * C).view(C, C)
    p = right.double().mean().item()
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    gap = torch.bincount((confidence * 14.999).long(), confidence - right.double(), 15).abs().sum().item() / n
    low, high = ((centre + side * half) / (1 + z * z / n) for side in (-1, 1))
    metrics = dict(oof_accuracy=p, oof_accuracy_low=low, oof_accuracy_high=high, oof_calibration_error=gap)
    for name, total in (("precision", confusion.sum(0).clamp(min=1)), ("recall", confusion.sum(1))):
        metrics[name] = dict(zip(classes, (confusion.diag() / total).tolist(), strict=True))
    return metrics | dict(oof_loss_nats=F.nll_loss(probabilities.log(), labels).item(), confusion=confusion.tolist())


@torch.no_grad()
def relevance(model, tokens):
    """How much each token matters (B, T): the attention that it gets in the last layer, from all tokens in all heads,
    on average over the text's real tokens; each row sums to 1."""
    real = (tokens != PAD).float()
    weights = model(tokens, return_attention=True)[1][-1].mean(1)  # (B, T, T)
    return (real[:, None] @ weights)[:, 0] / real.sum(1, keepdim=True)


def deletion_test(model, tokens, share=0.2):
    """Is relevance true? Delete that share of each text, the most relevant tokens or random ones. Returns (2, 2, N):
    for either way, by how much the predicted class's probability falls, and whether the prediction changes."""
    before, real = predict(model, tokens), tokens != PAD
    guess, count, figures = before.argmax(1, keepdim=True), (share * real.sum(1, keepdim=True)).ceil(), []
    relevant = torch.cat([relevance(model, part) for part in tokens.split(256)])
    for score in (relevant, torch.rand(tokens.shape, device=tokens.device)):
        rank = score.masked_fill(~real, -1).argsort(1, descending=True).argsort(1)
        after = predict(model, tokens.masked_fill(rank < count, PAD))
        fall, changed = (before - after).gather(1, guess)[:, 0], after.argmax(1) != guess[:, 0]
        figures.append(torch.stack([fall, changed.double()]))
    return torch.stack(figures)


# ------------------------------------------------------------------------------------------------------------- figures


def draw_curves(histories, path):
    """Loss and accuracy by epoch: the mean over models, and the spread from the lowest to the highest."""
    values = np.array(histories)  # (models, epochs, 4)
    figure = new_figure(9, 3.4, f"Mean and spread of {len(values)} models")
    for axis, name, parts in zip(figure.subplots(1, 2), ("loss, nats", "accuracy"), ((0, 2), (1, 3)), strict=True):
        for part, label, style in zip(parts, ("training, words left out", "out of fold"), ("--", "-"), strict=True):
            axis.plot(range(1, values.shape[1] + 1), values[..., part].mean(0), style, label=label)
            axis.fill_between(range(1, values.shape[1] + 1), *np.quantile(values[..., part], (0, 1), axis=0), alpha=0.2)
        axis.set(xlabel="epoch", ylabel=name)
        axis.legend()
    write_whole(path, lambda file: figure.savefig(file))


def draw_confusion(metrics, classes, path):
    """Out-of-fold counts: truth down, prediction across."""
    figure, confusion = new_figure(4.5, 4.2), np.array(metrics["confusion"])
    axis, ticks = figure.subplots(), range(len(classes))
    axis.imshow(confusion / confusion.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    for (i, j), n in np.ndenumerate(confusion):
        axis.text(j, i, n, ha="center", va="center", color="white" if n > confusion[i].sum() / 2 else "black")
    axis.set(xticks=ticks, yticks=ticks, xticklabels=classes, yticklabels=classes, xlabel="predicted", ylabel="true")
    axis.set_title(f"out of fold: {metrics['oof_accuracy']:.1%} of {confusion.sum():,} right")
    write_whole(path, lambda file: figure.savefig(file))


@torch.no_grad()
def draw_attention(model, news, probabilities, held, path):
    """The last layer's attention in each head, and the text, shaded by relevance: of those short texts that the
    model has not seen (held, (N,)), the two surest right and the two surest wrong predictions."""
    confidence, guess = probabilities.max(1)
    short = torch.tensor([8 <= len(words) <= 36 for words in news.train]) & held
    order, right = [i for i in confidence.argsort(descending=True).tolist() if short[i]], guess == news.labels
    rows = [i for i in order if right[i]][:2] + [i for i in order if not right[i]][:2]
    figure = new_figure(12, 4.2 * len(rows) + 0.1)
    for i, row in enumerate(rows):
        part = figure.add_subfigure(figure.add_gridspec(len(rows), 1)[i])
        tokens = encode([news.train[row]], model.vocabulary).to(model.position.device)
        words = [word[:40] for word in news.train[row]]
        maps, ticks = model(tokens, return_attention=True)[1][-1][0].cpu().numpy(), range(len(words))
        true, predicted = (news.classes[k[row]] for k in (news.labels, guess))
        part.suptitle(f"true {true}, predicted {predicted} ({confidence[row]:.0%})", fontsize=10)
        upper, lower = part.subfigures(2, height_ratios=(4, 1))
        for head, (axis, weights) in enumerate(zip(np.atleast_1d(upper.subplots(1, len(maps))), maps, strict=True)):
            axis.imshow(weights, vmin=0)
            axis.set_title(f"head {head + 1}", fontsize=8)
            axis.set_xticks(ticks, words, fontsize=5, rotation=90)
            axis.set_yticks(ticks, words if head == 0 else [""] * len(words), fontsize=5)
        matters, column, line = relevance(model, tokens)[0].cpu(), 0, 0
        for word, share in zip(words, matters / matters.max(), strict=True):
            column, line = (0, line + 1) if column + len(word) > 120 else (column, line)
            box = dict(facecolor=(1, 1 - 0.7 * share.item(), 1 - 0.7 * share.item()), edgecolor="none", pad=1.5)
            lower.text(0.02 + column / 128, 0.8 - 0.25 * line, word, family="monospace", fontsize=9, bbox=box)
            column += len(word) + 1
    write_whole(path, lambda file: figure.savefig(file))


# ---------------------------------------------------------------------------------------------------------------- main


def check_size(config, longest):
    """Refuse sizes that would take over some 8 GB, before hours are spent on them: in encoder weights, their copies in
    optimizer, average and models, or in attention maps of a batch of the longest texts. Raises UserError."""
    copies = 8 + 2 * config.folds * config.models
    weights = config.nlayers * config.d_model * (4 * config.d_model + 2 * config.d_hid) * copies
    maps = config.nlayers * config.nhead * longest**2 * max(config.batch_size, 256) * 4
    check(weights + maps < 2e9, "too large for memory at --d-model, --nlayers, --max-len ...: take smaller sizes")


def main(argv=None):
    """Train, predict, evaluate, draw; returns what it writes to metrics.json. Raises UserError."""
    started, config = time.perf_counter(), parse_args(argv)
    check(config.d_model % config.nhead == 0, f"no divisor of {config.d_model} at --nhead {config.nhead}: take one")
    config.epochs = 1 if config.dry_run else config.epochs
    device, out = choose_device(config.device), Path(config.out)
    news = load_news(config)
    vectors = read_vectors(config.embeddings, {word for document in news.train + news.test for word in document})
    check_size(config, max(map(len, news.train + news.test)))
    config.lr = config.lr or (1e-3 if vectors else 2e-3)
    fold_of = assign_folds(news.labels, config.folds, config.seed)
    trained = train_folds(config, news, fold_of, vectors, device)
    write_whole(out / "model.pt", lambda file: torch.save(trained, file))

    models, _ = load_checkpoint(out / "model.pt", device)
    oof, test, deleted = torch.zeros(len(news.train), len(news.classes), dtype=torch.double), 0, []
    seed_everything(config.seed)
    for i, model in enumerate(models):
        held = fold_of == i // config.models
        tokens = encode(news.train, model.vocabulary)[held].to(device)
        oof[held] += predict(model, tokens) / config.models
        test += predict(model, encode(news.test, model.vocabulary).to(device)) / len(models)
        deleted += [deletion_test(model, tokens)] if i % config.models == 0 else []
    table, rows = io.StringIO(), zip(news.test_ids, (news.classes[k] for k in test.argmax(1)), strict=True)
    csv.writer(table, lineterminator="\n").writerows([("Id", "Category"), *rows])
    write_whole(config.submission, lambda file: file.write(table.getvalue().encode()))

    histories = [model["history"] for model in trained["models"]]
    metrics = evaluate(oof, news.labels, news.classes)
    for way, (fall, changed) in zip(("attended", "random"), torch.cat(deleted, 2).mean(2), strict=True):
        metrics |= {f"deletion_{way}_fall": fall.item(), f"deletion_{way}_changed": changed.item()}
    metrics |= dict(model_accuracies=[history[-1][3] for history in histories], train_seconds=trained["seconds"])
    metrics |= dict(train_rows=len(news.train), test_rows=len(news.test), made_data=news.made, pretrained=len(vectors))
    draw_curves(histories, out / "curves.png")
    draw_confusion(metrics, news.classes, out / "confusion.png")
    draw_attention(models[0], news, oof, fold_of == 0, out / "attention.png")
    write_metrics(config, argv, device, metrics, started)

    print("out of fold  {oof_accuracy:.4f} (95%: {oof_accuracy_low:.4f} to {oof_accuracy_high:.4f})".format(**metrics))
    print(f"trained in   {trained['seconds']:.0f} s on {device}; {config.submission} for Kaggle, pictures in {out}")
    return metrics


if __name__ == "__main__":
    run(main)
