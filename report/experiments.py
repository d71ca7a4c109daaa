"""Run what the report and README quote, on the course's real files; what is there already is skipped.

    python report/experiments.py --data DIR                 everything
    python report/experiments.py --data DIR vae_mnist_kl0   some results, by their names
    python report/make_report.py

Every run stays in results/report/NAME and leaves report/results/NAME.json (its metrics.json, measures
that the scripts do not hold, the commit of the scripts) and its pictures in report/figures. Delete a result to have it made again. Frozen, no
command makes them again: ablations.json, rewrite.json, tried.json and trade.json, of development runs.
"""

import argparse
import copy
import json
import math
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
RESULTS, FIGURES = ROOT / "report" / "results", ROOT / "report" / "figures"

VECTORS = ROOT / "data" / "glove.6B.100d.npz"
EXAMPLE = 6  # the row of train.csv, from 0, that shows what tokenizers do

PICTURES = ("curves", "reconstructions", "samples", "interpolation", "posterior")

# name: (script, its options, pictures to keep)
RUNS = {
    "transformer": ("transformer", "", ("curves", "confusion", "attention")),
    "transformer_seed1": ("transformer", "--seed 1", ()),
    "transformer_seed2": ("transformer", "--seed 2", ()),
    "transformer_seed3": ("transformer", "--seed 3", ()),
    "transformer_seed4": ("transformer", "--seed 4", ()),
    "transformer_scratch": ("transformer", "--embeddings none", ()),
    "transformer_scratch_seed1": ("transformer", "--embeddings none --seed 1", ()),
    "transformer_scratch_seed2": ("transformer", "--embeddings none --seed 2", ()),
    "vae_mnist": ("vae_mnist", "", PICTURES),
    "vae_mnist_kl0": ("vae_mnist", "--kl-weight 0", PICTURES),
    "vae_mnist_kl100": ("vae_mnist", "--kl-weight 100 --epochs 10", PICTURES),
    "vae_anime": ("vae_anime", "", PICTURES),
    "vae_anime_kl0": ("vae_anime", "--kl-weight 0", PICTURES),
    "vae_anime_kl100": ("vae_anime", "--kl-weight 100 --epochs 2", PICTURES),
}


def run_script(name, data):
    """Run a script on the real files, in results/report/NAME, where it stays; its metrics, without
    the places where the files lay, and of an autoencoder what `measures` finds."""
    script, options, pictures = RUNS[name]
    out = ROOT / "results" / "report" / name
    if not (out / "metrics.json").exists():
        argv = [*options.split(), "--data", data, "--out", out]
        subprocess.run([sys.executable, ROOT / f"0123456_{script}.py", *argv], check=True)
    metrics = json.loads((out / "metrics.json").read_text())
    for picture in pictures:
        shutil.copy(out / f"{picture}.png", FIGURES / f"{name}_{picture}.png")
    for place in ("data", "out", "submission"):
        metrics["config"].pop(place, None)
    metrics["argv"] = options.split()
    if script == "transformer":
        return metrics
    return metrics | MEASURES[script](load_script(script), out / "model.pt", data)


def train_judge(images, labels):
    """A small classifier of digits, in {0, 1} or between, trained on real ones."""
    torch.manual_seed(1)
    judge = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2, 1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
    for _ in range(8):
        judge.train()
        for rows in torch.randperm(len(images)).split(128):
            x = images[rows]
            theta = torch.eye(2, 3) + torch.tensor([0.08, 0.08, 0.06]) * torch.randn(len(x), 2, 3)
            x = F.grid_sample(
                x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False
            )
            soft = torch.rand(len(x), 1, 1, 1) < 0.5
            logits = judge(torch.where(soft, x, (x > 0.5).float()))
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return judge.eval()


@torch.no_grad()
def digits_measures(script, path, data, n=2000):
    """Share of pictures that a classifier gives over 0.9 to one class; sums of pixels' entropies."""
    model, _ = script.load_checkpoint(path)
    images = script.load_images(script.parse_args(["--data", data]))
    labels = torch.from_numpy(np.load(Path(data) / script.FILE)["label"]).long()
    order = script.split(torch.arange(len(images)))  # of the images, as split splits them
    train, _, test = script.split(images)
    with torch.enable_grad():
        judge = train_judge(script.to_float(train), labels[order[0]])
    torch.manual_seed(0)
    codes = script.infer(model, train)[2]
    pictures = {
        "real": script.to_float(test),
        "reconstructions": script.decode_pictures(model, script.infer(model, test)[2]),
        "prior": script.decode_pictures(model, torch.randn(n, codes.size(1))),
        "mixture": script.decode_pictures(model, script.sample_mixture(codes, n)),
    }
    figures = {}
    for name, images in pictures.items():
        sure = judge(images).softmax(1).amax(1) > 0.9
        figures[f"legible_{name}"] = sure.float().mean().item()
    p = script.to_float(train).mean(0)
    for name, part in (("train", train), ("test", test)):
        q = script.to_float(part).mean(0)
        figures[f"{name}_pixel_cross_entropy_nats"] = F.binary_cross_entropy(
            p, q, reduction="sum"
        ).item()
    return figures


def laplacian_pyramid(x, levels=3):
    """x (N, C, H, W) as details at H, H / 2 and what is left (Burt and Adelson 1983)."""
    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    kernel = kernel.outer(kernel).expand(x.shape[1], 1, 5, 5)

    def blur(image):
        return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])

    pyramid = []
    for _ in range(levels - 1):
        small = blur(x)[:, :, ::2, ::2]
        large = torch.zeros_like(x)
        large[:, :, ::2, ::2] = 4 * small
        pyramid.append(x - blur(large))
        x = small
    return [*pyramid, x]


def sliced_wasserstein(one, two, patches=32, projections=128):
    """Distance x 1000 of two sets of as many images (N, 3, 64, 64), mean over 64, 32 and 16 pixels:
    of normalized 7 x 7 patches along random directions (Karras et al. 2018, section 5)."""
    distances = []
    for a, b in zip(laplacian_pyramid(one), laplacian_pyramid(two), strict=True):
        generator = torch.Generator().manual_seed(0)
        descriptors = []
        for images in (a, b):
            N, C, H, _ = images.shape
            corner = torch.randint(0, H - 6, (2, N * patches, 1), generator=generator)
            top, left = corner + torch.arange(7)
            which = torch.arange(N).repeat_interleave(patches)[:, None, None]
            part = images[which, :, top[:, :, None], left[:, None]]  # (N * patches, 7, 7, C)
            std, mean = torch.std_mean(part, (0, 1, 2))
            descriptors.append(((part - mean) / std.clamp(min=1e-12)).flatten(1))
        directions = torch.randn(49 * C, projections, generator=generator)
        directions = F.normalize(directions, dim=0)
        a, b = ((part @ directions).sort(0).values for part in descriptors)
        distances.append(1000 * (a - b).abs().mean().item())
    return sum(distances) / len(distances)


@torch.no_grad()
def faces_measures(script, path, data):
    """Sliced Wasserstein distances to the test faces; eigenvalues of the codes' covariance; how many
    principal components have more variance than lambda sigma^2."""
    model, config = script.load_checkpoint(path)
    train, _, test = script.split(script.load_images(script.parse_args(["--data", data])))
    torch.manual_seed(0)
    n = len(test)
    _, _, codes, logvar = script.infer(model, train[:10_000])
    sets = {
        "reconstructions": script.infer(model, test)[2],
        "prior": torch.randn(n, codes.size(1)),
        "mixture": script.sample_mixture(codes, n),
    }
    real = script.to_float(test)
    figures = {"swd_real": sliced_wasserstein(script.to_float(train[:n]), real)}
    for name, z in sets.items():
        pictures = torch.cat([script.decode_pictures(model, part) for part in z.split(500)])
        figures[f"swd_{name}"] = sliced_wasserstein(pictures, real)
    drawn = codes + torch.randn_like(codes) * (logvar / 2).exp()
    eigenvalues = torch.linalg.eigvalsh(drawn.T.cov())
    figures["code_eigenvalues_least_greatest"] = [eigenvalues[0].item(), eigenvalues[-1].item()]
    x = script.to_float(train[:10_000]).flatten(1)
    _, singular, _ = torch.pca_lowrank(x, config.latent_dim + 32)
    spectrum = singular[: config.latent_dim].square() / len(x)
    level = config.kl_weight * model.log_sigma.exp() ** 2
    figures["components_above_lambda_variance"] = int(
        (spectrum[-config.latent_dim :] > level).sum()
    )
    return figures


MEASURES = {"vae_mnist": digits_measures, "vae_anime": faces_measures}


def load_script(name):
    """The script's functions."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / f"0123456_{name}.py")))


def news_args(script, data, *options):
    return script.parse_args(["--data", str(data), *options])


def deletion(data, share=0.2):
    """Does attention show what matters? Take that share of its tokens out of each held-out text, those
    that get the most attention in the last layer (the mean over heads and tokens) or random ones: how
    often the prediction changes, by how much the predicted class's probability falls."""
    script = load_script("transformer")
    with tempfile.TemporaryDirectory() as out:
        script.main(["--data", str(data), "--out", out])
        models, config = script.load_checkpoint(Path(out) / "model.pt")
    train, _, _ = script.load_news(config)
    torch.manual_seed(0)
    falls = {"attended": [], "random": []}
    changes = {"attended": [], "random": []}
    for fold, model in enumerate(models):
        texts = script.encode(train["tokens"][train["fold"] == fold], model.vocabulary)
        before = script.predict(model, texts)
        guess = before.argmax(1)
        for way in falls:
            kept = []
            for text in texts:
                with torch.no_grad():
                    maps = model(text[None], return_attention=True)[1][-1]  # (1, H, T, T)
                score = maps.mean((0, 1, 2)) if way == "attended" else torch.rand(len(text))
                kept.append(
                    text[score.argsort()[: len(text) - math.ceil(share * len(text))].sort()[0]]
                )
            kept = [some if len(some) else torch.tensor([script.PAD]) for some in kept]
            after = script.predict(model, kept)
            rows = torch.arange(len(texts))
            falls[way] += (before[rows, guess] - after[rows, guess]).tolist()
            changes[way] += (after.argmax(1) != guess).tolist()
    return {
        f"{way}_{name}": float(np.mean(values[way]))
        for way in falls
        for name, values in (("fall", falls), ("changed", changes))
    }


def tokenizers(data):
    """The five tokenizers, and min_count, by what they make of the texts: no training. Folds are those of seed 0.

    Seconds are of the processor, the least of three passes over all texts.
    """
    script = load_script("transformer")

    def figures(train, min_count, pretrained_words):
        held, unknown, documents, counts = 0, Counter(), Counter(), Counter()
        for fold in range(5):
            inside = train["tokens"][train["fold"] != fold]
            outside = train["tokens"][train["fold"] == fold]
            for name, pretrained in (("alone", ()), ("with_vectors", pretrained_words)):
                vocabulary = script.build_vocabulary(inside, min_count, pretrained)
                strange = [sum(word not in vocabulary for word in words) for words in outside]
                unknown[name] += sum(strange)
                documents[name] += sum(map(bool, strange))
                counts[name] += len(vocabulary) / 5
            held += sum(map(len, outside))
        rates = {f"unknown_tokens_{name}": unknown[name] / held for name in unknown}
        rates |= {f"texts_with_unknown_{name}": documents[name] / len(train) for name in documents}
        return rates | {f"vocabulary_{name}": count for name, count in counts.items()}

    rows = {}
    for name in script.TOKENIZERS:
        args = news_args(script, data, "--tokenizer", name)
        seconds = []
        for _ in range(3):
            started = time.process_time()
            train, test, _ = script.load_news(args)
            seconds.append(time.process_time() - started)
        texts = train["tokens"].tolist()
        counts = Counter(word for words in texts for word in words)
        known, _ = script.load_vectors(
            "auto", counts.keys() | {w for words in test["tokens"] for w in words}
        )
        vectors = set(known)
        rows[name] = dict(
            words=len(counts),
            tokens_per_text=sum(counts.values()) / len(texts),
            words_with_vector=sum(word in vectors for word in counts) / len(counts),
            tokens_with_vector=sum(n for word, n in counts.items() if word in vectors)
            / sum(counts.values()),
            texts_per_second=(len(train) + len(test)) / min(seconds),
            example=texts[EXAMPLE][:14],
            **figures(train, args.min_count, known),
        )
        if name == "wordpunct":
            by_count = [dict(min_count=n, **figures(train, n, known)) for n in (1, 2, 3, 5, 10)]
            lengths = sorted(map(len, texts))
            batches = [
                lengths[i : i + args.batch_size] for i in range(0, len(lengths), args.batch_size)
            ]
            by_length = sum(len(batch) * batch[-1] for batch in batches)
            summary = dict(
                shortest=lengths[0], median=lengths[len(lengths) // 2], longest=lengths[-1]
            )
            summary["padding_to_longest"] = 1 - rows[name]["tokens_per_text"] / lengths[-1]
            summary["padding_by_length"] = 1 - sum(counts.values()) / by_length
            held = train["fold"] == train["fold"][EXAMPLE]
            alone = script.build_vocabulary(train["tokens"][~held], args.min_count)
            short = next(words for words in train["tokens"][held] if len(words) <= 25)
            pair = [short[:20], texts[EXAMPLE][:28]]
            batch = script.pad(script.encode(pair, alone))
            example = [
                dict(words=words, ids=ids.tolist()) for words, ids in zip(pair, batch, strict=True)
            ]
    return dict(tokenizers=rows, min_counts=by_count, lengths=summary, example=example)


def tf_idf(data):
    """The rivals on the same folds: naive Bayes of counts, logistic regression on TF-IDF of 1- and 2-grams, the same
    on these and the weighted mean of the text's GloVe vectors."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import ComplementNB, MultinomialNB
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    script = load_script("transformer")
    train, _, _ = script.load_news(news_args(script, data))
    texts = np.array([" ".join(words) for words in train["tokens"]])
    labels = train["target"].to_numpy()
    single = dict(token_pattern=r"\S+", lowercase=False)
    words = dict(**single, ngram_range=(1, 2))
    known, vectors = script.load_vectors(
        "auto", {word for words in train["tokens"] for word in words}
    )
    table = vectors[2:].numpy()
    mean_vector = (
        lambda: TfidfVectorizer(**single, vocabulary=known, norm="l1"),
        lambda: FunctionTransformer(lambda weights: weights @ table),
        StandardScaler,
        lambda: FunctionTransformer(lambda x: x / 10),
    )
    rivals = dict(
        tf_idf_logistic_regression=lambda: make_pipeline(
            TfidfVectorizer(**words, sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
        ),
        complement_naive_bayes=lambda: make_pipeline(
            CountVectorizer(**words, binary=True), ComplementNB()
        ),
        naive_bayes=lambda: make_pipeline(CountVectorizer(**single), MultinomialNB(alpha=0.5)),
        tf_idf_mean_vector_logistic_regression=lambda: make_pipeline(
            make_union(
                TfidfVectorizer(**words, sublinear_tf=True),
                make_pipeline(*(part() for part in mean_vector)),
            ),
            LogisticRegression(C=5, max_iter=3000),
        ),
    )
    metrics = {}
    for name, rival in rivals.items():
        accuracies = []
        for seed in range(3):
            train, _, _ = script.load_news(news_args(script, data, "--seed", str(seed)))
            fold = train["fold"].to_numpy()
            right = [
                rival()
                .fit(texts[fold != k], labels[fold != k])
                .score(texts[fold == k], labels[fold == k])
                for k in range(5)
            ]
            accuracies.append(float(np.average(right, weights=np.bincount(fold))))
        metrics[name] = dict(
            oof_accuracies=accuracies,
            mean=float(np.mean(accuracies)),
            std=float(np.std(accuracies, ddof=1)),
        )
    return metrics


def rival_vae(script):
    """pytorch/examples' VAE, 784-400-20, as a model of the script; 0 and 1 as they are, as there."""

    class Rival(script.VAE):
        def __init__(self):
            nn.Module.__init__(self)
            self.encoder = nn.Sequential(
                nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40)
            )
            self.decoder = nn.Sequential(
                nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Unflatten(1, (1, 28, 28))
            )

        def sample_posterior(self, x, repeats=1):
            mean, logvar = self.encoder(x).repeat_interleave(repeats, 0).chunk(2, 1)
            return self.reparameterize(mean, logvar), mean, logvar

        def decode(self, z):
            return self.decoder(z)

    return Rival()


def mlp_vae(data):
    """The rival on the same split: Adam 1e-3, batches of 128, its best epoch on validation images."""
    script = load_script("vae_mnist")
    args = script.parse_args(["--data", data])
    images, validation, test = script.split(script.load_images(args))
    torch.manual_seed(0)
    model = rival_vae(script)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    started = time.perf_counter()
    best = math.inf
    for epoch in range(100):
        model.train()
        for rows in torch.randperm(len(images)).split(128):
            reconstruction, kl = script.elbo_terms(model, script.to_float(images[rows]))
            loss = (reconstruction + kl.sum(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        reconstruction, kl, _, _ = script.infer(model, validation)
        loss = (reconstruction.mean() + kl.sum(1).mean()).item()
        if loss < best:
            best, best_epoch, weights = loss, epoch + 1, copy.deepcopy(model.state_dict())
    seconds = time.perf_counter() - started
    model.load_state_dict(weights)
    metrics, _, _ = script.evaluate(args, model, test)
    return metrics | {"best_epoch": best_epoch, "train_seconds": seconds}


OTHERS = {"tf_idf": tf_idf, "mlp_vae": mlp_vae, "tokenizers": tokenizers, "deletion": deletion}


def machine():
    """The processor's name and the cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return dict(processor=name, cores=os.cpu_count())


def write(path, result):
    """Put the result at `path`, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of the course's real files")
    parser.add_argument("names", nargs="*", help="which results to make (default: all)")
    args = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    for folder in (RESULTS, FIGURES):
        folder.mkdir(exist_ok=True)
    for name in args.names or [*RUNS, *OTHERS]:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            metrics = run_script(name, args.data) if name in RUNS else OTHERS[name](args.data)
            write(path, metrics | {"commit": commit, "machine": machine()})
        print(f"{name}: {path.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main()
