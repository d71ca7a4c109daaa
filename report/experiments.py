"""Run what the report and README quote, on the course's real files; what is there already is skipped.

    python report/experiments.py --data DIR                 everything
    python report/experiments.py --data DIR vae_mnist_kl0   some results, by their names
    python report/make_report.py

Every run leaves report/results/NAME.json (its metrics.json and the commit of the scripts), and its
pictures in report/figures. Delete a result to have it made again. All of it takes about two hours
on 2 cores. Two results are frozen, no command makes them again: ablations.json and tried.json,
measured with former versions of the scripts, each with its commit.
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
    "vae_mnist_kl0": ("vae_mnist", "--kl-weight 0", (*PICTURES, "samples_aggregate")),
    "vae_mnist_kl100": ("vae_mnist", "--kl-weight 100", PICTURES),
    "vae_mnist_kl0.1": ("vae_mnist", "--kl-weight 0.1 --epochs 13", ("posterior", "samples")),
    "vae_mnist_kl10": ("vae_mnist", "--kl-weight 10 --epochs 13", ("posterior", "samples")),
    "vae_anime": ("vae_anime", "", (*PICTURES, "samples_aggregate")),
    "vae_anime_kl0": ("vae_anime", "--kl-weight 0", (*PICTURES, "samples_aggregate")),
    "vae_anime_kl100": ("vae_anime", "--kl-weight 100", (*PICTURES, "samples_aggregate")),
    "vae_anime_kl0.1": ("vae_anime", "--kl-weight 0.1 --epochs 1", ("posterior", "samples")),
    "vae_anime_kl10": ("vae_anime", "--kl-weight 10 --epochs 1", ("posterior", "samples")),
}


def run_script(name, data):
    """Run a script on the real files; returns its metrics without the places where the files lay."""
    script, options, pictures = RUNS[name]
    with tempfile.TemporaryDirectory() as out:
        argv = [*options.split(), "--data", data, "--out", out]
        subprocess.run([sys.executable, ROOT / f"0123456_{script}.py", *argv], check=True)
        metrics = json.loads((Path(out) / "metrics.json").read_text())
        for picture in pictures:
            shutil.copy(Path(out) / f"{picture}.png", FIGURES / f"{name}_{picture}.png")
    for place in ("data", "out", "submission"):
        metrics["config"].pop(place, None)
    return metrics | {"argv": options.split()}


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


def mlp_vae(data):
    """The rival on the same split: pytorch/examples' VAE, 784-400-20, Adam 1e-3, batches of 128, its best epoch."""
    script = load_script("vae_mnist")
    images, validation, test = script.split(script.load_images(script.Config(data=data))[0])
    torch.manual_seed(0)
    model = script.VAE(20)
    model.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
    layers = [nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Unflatten(1, (1, 28, 28))]
    model.decoder = nn.Sequential(*layers)
    model.encode = lambda x: model.encoder(x).chunk(2, 1)  # 0 and 1 as they are, as there
    optimizer, started, best = (
        torch.optim.Adam(model.parameters(), 1e-3),
        time.perf_counter(),
        math.inf,
    )
    for epoch in range(100):
        model.train()
        for rows in torch.randperm(len(images)).split(128):
            x = script.to_float(images[rows])
            decoded, mean, logvar = model(x)
            loss = (
                model.reconstruction_loss(decoded, x) + script.kl_divergence(mean, logvar).sum(1)
            ).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        reconstruction, *posterior = script.infer(model, validation)
        if (loss := reconstruction + script.kl_divergence(*posterior).sum(1).mean().item()) < best:
            best, best_epoch, weights = loss, epoch + 1, copy.deepcopy(model.state_dict())
    seconds = time.perf_counter() - started
    model.load_state_dict(weights)
    reconstruction, *posterior = script.infer(model, test)
    kl = script.kl_divergence(*posterior).sum(1).mean().item()
    return dict(
        negative_elbo_nats=reconstruction + kl,
        reconstruction_nats=reconstruction,
        kl_nats=kl,
        iw_nll_nats=script.importance_weighted_nll(model, test[:500], 500),
        best_epoch=best_epoch,
        train_seconds=seconds,
    )


OTHERS = {"tf_idf": tf_idf, "mlp_vae": mlp_vae, "tokenizers": tokenizers, "deletion": deletion}


def draw_sweep():
    """Rate against distortion, and active units, over lambda: of the runs that are there, at lambda = 1 figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained", dpi=160)
    for axes, data in zip(figure.subplots(2, 2), ("mnist", "anime"), strict=True):
        runs = [
            RESULTS / f"vae_{data}{end}.json" for end in ("_kl0", "_kl0.1", "", "_kl10", "_kl100")
        ]
        runs = [json.loads(path.read_text()) for path in runs if path.exists()]
        if not runs:
            continue
        weights = [f"{run['kl_weight']:g}" for run in runs]
        axes[1].plot(
            ["0", "0.1", "1", "10", "100"], [0] * 5, alpha=0
        )  # all five on the axis, run or not
        rate, distortion = (
            [run[f"{term}_nats"] for run in runs] for term in ("kl", "reconstruction")
        )
        axes[0].plot(rate, distortion, "k--", linewidth=0.8)
        short = ["--epochs" in run["argv"] for run in runs]
        for x, y, weight, third in zip(rate, distortion, weights, short, strict=True):
            axes[0].plot(x, y, "o", color="black", markerfacecolor="white" if third else "black")
            near = dict(xytext=(7, 7), textcoords="offset points")
            axes[0].annotate(
                f"λ = {weight}", (x, y), **near, ha="right" if x > 0.8 * max(rate) else "left"
            )
        axes[0].set(xlabel="rate: KL, nats", ylabel="distortion: −log p(x|z), nats")
        axes[0].set_title({"mnist": "Tibetan digits", "anime": "anime faces"}[data])
        axes[0].margins(0.1, 0.2)
        axes[1].plot(weights, [run["active_units"] for run in runs], "ko-", label="active units")
        if data == "anime":
            above = [run["components_above_lambda_variance"] for run in runs]
            axes[1].plot(weights, above, "s:", color="grey", label="PCA: variance above λσ²")
        latent_dim = runs[0]["config"]["latent_dim"]
        axes[1].axhline(latent_dim, color="lightgrey", label=f"dimensions of z: {latent_dim}")
        axes[1].set(xlabel="λ", ylabel="dimensions", ylim=(-0.03 * latent_dim, 1.1 * latent_dim))
        axes[1].legend(loc="lower left")
    figure.savefig(FIGURES / "sweep.png")


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
    draw_sweep()


if __name__ == "__main__":
    main()
