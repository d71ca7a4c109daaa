"""Make what the report and README quote, on the course's real files; what is there is kept.

    python report/experiments.py --data DIR                 everything
    python report/experiments.py --data DIR vae_mnist_kl0   some results, by their names
    python report/make_report.py

Each run leaves report/results/NAME.json (its metrics.json, measures that the scripts do not hold,
the commit of the scripts) and pictures in report/figures; it stays in results/report/NAME. Delete
a result to have it made again. Frozen, no command makes them: ablations, rewrite, tried and trade.
"""

import argparse
import importlib.util
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "report" / "results"
FIGURES = ROOT / "report" / "figures"
EXAMPLE = 6  # the row of train.csv, from 0, that shows what tokenizers do
RUNS = {  # name: options of the script that its name begins with
    "transformer": "",
    **{f"transformer_seed{seed}": f"--seed {seed}" for seed in range(1, 5)},
    **{f"transformer_scratch{seed}": f"--embeddings none --seed {seed}" for seed in range(3)},
    **{f"vae_mnist_kl{weight}": f"--kl-weight {weight}" for weight in (0, 1, 100)},
    **{f"vae_anime_kl{weight}": f"--kl-weight {weight}" for weight in (0, 1, 100)},
    "vae_anime_random": "",
    "vae_anime_random_kl0": "--kl-weight 0",
}


def load_script(name):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"0123456_{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def random_start(script):
    """Have the faces' linear maps start at random, as fast as the rest, not as PCA gives them."""
    script.SLOW = 1

    def new_model(args, images):
        model = script.VAE(args.latent_dim)
        model.average.data = script.to_float(images[:10_000]).mean(0)
        nn.init.orthogonal_(model.linear_in.weight)
        nn.init.orthogonal_(model.linear_out.weight)
        return model

    script.new_model = new_model


def run(name, data):
    """Run a script, if it has not been run; its metrics, and of an autoencoder the measures."""
    kind = "transformer" if name.startswith("transformer") else name[: len("vae_mnist")]
    script = load_script(kind)
    if "random" in name:
        random_start(script)
    out = ROOT / "results" / "report" / name
    if not (out / "metrics.json").exists():
        script.main([*RUNS[name].split(), "--data", str(data), "--out", str(out)])
    metrics = json.loads((out / "metrics.json").read_text())
    for path in out.glob("*.png"):
        if name == kind or "_kl" in name or path.stem == "samples":
            shutil.copy(path, FIGURES / f"{name}_{path.name}")
    if kind == "transformer":
        return metrics
    model, config = script.load_checkpoint(out / "model.pt")
    images = script.load_images(script.parse_args(["--data", str(data)]))
    torch.manual_seed(0)
    measures = digits_measures if kind == "vae_mnist" else faces_measures
    return metrics | measures(script, model, config, images, data)


# ----------------------------------------------------------------------------------- autoencoders


def train_judge(images, labels):
    """A small classifier of digits, binary or grey, trained on real ones."""
    torch.manual_seed(1)
    layers = []
    for inner, outer, step in ((1, 16, 2), (16, 32, 1), (32, 64, 2)):
        layers += [nn.Conv2d(inner, outer, 4, step, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
    layers += [nn.Flatten(), nn.Dropout(0.3), nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, 10)]
    judge = nn.Sequential(*layers)
    judge(images[:2])
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
    for _ in range(8):
        for rows in torch.randperm(len(images)).split(128):
            theta = torch.randn(len(rows), 2, 3) * torch.tensor([0.08, 0.08, 0.06])
            grid = F.affine_grid(torch.eye(2, 3) + theta, images[rows].shape, align_corners=False)
            x = F.grid_sample(images[rows], grid, align_corners=False)
            grey = torch.rand(len(x), 1, 1, 1) < 0.5
            logits = judge(torch.where(grey, x, (x > 0.5).float()))
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return judge.eval()


def digits_measures(script, model, config, images, data):
    """Share of pictures that the judge gives over 0.9 to one class; the pixels' cross-entropy."""
    labels = torch.from_numpy(np.load(Path(data) / script.FILE)["label"]).long()
    train, _, test = script.split(images)
    judge = train_judge(script.to_float(train), script.split(labels)[0])
    codes = script.infer(model, train)[2]
    mixtures = torch.cat([script.sample_mixture(codes, 2000) for _ in range(5)])
    pictures = {
        "real": script.to_float(test),
        "reconstructions": script.decode_pictures(model, script.infer(model, test)[2]),
        "prior": script.decode_pictures(model, torch.randn(10_000, config.latent_dim)),
        "mixture": script.decode_pictures(model, mixtures),
    }
    figures = {}
    for name, x in pictures.items():
        with torch.no_grad():
            figures[f"legible_{name}"] = (judge(x).softmax(1).amax(1) > 0.9).float().mean().item()
    p, q = script.to_float(train).mean(0), script.to_float(test).mean(0)
    entropy = F.binary_cross_entropy(p, q, reduction="sum").item()
    return figures | {"test_pixel_cross_entropy_nats": entropy}


def sliced_wasserstein(one, two, patches=32, projections=128):
    """Distance x 1000 of two sets of as many images (N, 3, 64, 64), mean over 64, 32 and 16 pixels:
    of normalized 7 x 7 patches of a Laplacian pyramid along random directions (Karras et al. 2018,
    section 5; Burt and Adelson 1983)."""
    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    kernel = kernel.outer(kernel).expand(3, 1, 5, 5)

    def blur(x):
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)

    distances = []
    for level in range(3):
        generator = torch.Generator().manual_seed(0)
        patches_of, smaller = [], []
        for x in (one, two):
            small = blur(x)[:, :, ::2, ::2]
            smaller.append(small)
            if level < 2:  # what the smaller picture lacks
                large = torch.zeros_like(x)
                large[:, :, ::2, ::2] = 4 * small
                x = x - blur(large)
            N, _, H, _ = x.shape
            corner = torch.randint(0, H - 6, (2, N * patches, 1), generator=generator)
            top, left = corner + torch.arange(7)
            which = torch.arange(N).repeat_interleave(patches)[:, None, None]
            part = x[which, :, top[:, :, None], left[:, None]]  # (N * patches, 7, 7, 3)
            std, mean = torch.std_mean(part, (0, 1, 2))
            patches_of.append(((part - mean) / std.clamp(min=1e-12)).flatten(1))
        directions = F.normalize(torch.randn(147, projections, generator=generator), dim=0)
        a, b = ((part @ directions).sort(0).values for part in patches_of)
        distances.append(1000 * (a - b).abs().mean().item())
        one, two = smaller
    return sum(distances) / len(distances)


def draw_fading(script, model, test, mean):
    """Three pairs of faces: codes between theirs, decoded, above the cross-fade of their pixels."""
    rows = []
    for i in (0, 2, 6):
        share = torch.linspace(0, 1, 6)[:, None]
        x, y = script.to_float(test[i : i + 2]).split(1)
        rows += [x, script.decode_pictures(model, (1 - share) * mean[i] + share * mean[i + 1]), y]
        share = share[..., None, None]
        rows += [x, (1 - share) * x + share * y, y]
    panels = {"codes between two faces, decoded; beneath each the cross-fade": torch.cat(rows)}
    path = FIGURES / "vae_anime_fading.png"
    script.draw(path, "lambda = 1", panels, script.plot_grid, 5.0, 4.5)


def faces_measures(script, model, config, images, data):
    """Sliced Wasserstein distances to the test faces; eigenvalues of the codes' covariance; how
    many principal components have more variance than lambda sigma^2."""
    train, _, test = script.split(images)
    n = len(test)
    _, _, codes, logvar = script.infer(model, train[:10_000])
    mean = script.infer(model, test)[2]
    if config.kl_weight == 1:
        draw_fading(script, model, test, mean)
    real = script.to_float(test)
    figures = {"swd_real": sliced_wasserstein(script.to_float(train[:n]), real)}
    for name, z in {
        "reconstructions": mean,
        "prior": torch.randn(n, config.latent_dim),
        "mixture": script.sample_mixture(codes, n),
    }.items():
        pictures = torch.cat([script.decode_pictures(model, part) for part in z.split(500)])
        figures[f"swd_{name}"] = sliced_wasserstein(pictures, real)
    drawn = codes + torch.randn_like(codes) * (logvar / 2).exp()
    eigenvalues = torch.linalg.eigvalsh(drawn.T.cov())
    figures["code_eigenvalues_least_greatest"] = [eigenvalues[0].item(), eigenvalues[-1].item()]
    x = script.to_float(train[:10_000]).flatten(1)
    spectrum = torch.pca_lowrank(x, config.latent_dim + 32)[1].square() / len(x)
    above = spectrum > config.kl_weight * model.log_sigma.exp().item() ** 2
    figures["components_above_lambda_variance"] = int(above[: config.latent_dim].sum())
    return figures


# ------------------------------------------------------------------------------------- classifier


def deletion(data, share=0.2):
    """Does attention show what matters? That share of its tokens is taken out of each held-out
    text, those with the most attention in the last layer (mean over heads and tokens) or random
    ones: how often the prediction changes, and how far the predicted class's probability falls."""
    script = load_script("transformer")
    models, config = script.load_checkpoint(ROOT / "results/report/transformer/model.pt")
    config.data = Path(data)
    train, _, _ = script.load_news(config)
    torch.manual_seed(0)
    figures = {}
    for way in ("attended", "random"):
        falls, changes = [], []
        for fold, model in enumerate(models):
            texts = script.encode(train["tokens"][train["fold"] == fold], model.vocabulary)
            kept = []
            for text in texts:
                score = torch.rand(len(text))
                if way == "attended":
                    with torch.no_grad():
                        score = model(text[None], return_attention=True)[1][-1].mean((0, 1, 2))
                stay = score.argsort()[: len(text) - math.ceil(share * len(text))].sort().values
                kept.append(text[stay] if len(stay) else torch.tensor([script.PAD]))
            before, after = script.predict(model, texts), script.predict(model, kept)
            guess = before.argmax(1, keepdim=True)
            falls += (before - after).gather(1, guess).flatten().tolist()
            changes += (after.argmax(1, keepdim=True) != guess).flatten().tolist()
        figures |= {f"{way}_fall": np.mean(falls).item(), f"{way}_changed": np.mean(changes).item()}
    return figures


def unknown(script, train, min_count, known):
    """What the vocabularies of four folds do not know of the fifth, without and with the words that
    have a vector: share of the tokens and of the texts; size of the vocabulary."""
    row = {"min_count": min_count}
    for way, pretrained in (("alone", ()), ("with_vectors", known)):
        strange, sizes = [], []
        for fold in range(5):
            inside = train["tokens"][train["fold"] != fold]
            vocabulary = script.build_vocabulary(inside, min_count, pretrained)
            sizes.append(len(vocabulary))
            for text in train["tokens"][train["fold"] == fold]:
                strange.append([word not in vocabulary for word in text])
        row[f"unknown_tokens_{way}"] = sum(map(sum, strange)) / sum(map(len, strange))
        row[f"texts_with_unknown_{way}"] = sum(map(any, strange)) / len(strange)
        row[f"vocabulary_{way}"] = sum(sizes) / 5
    return row


def tokenizers(data):
    """The five tokenizers, and min_count, by what they make of the texts."""
    script = load_script("transformer")
    result = {"tokenizers": {}}
    for name in script.TOKENIZERS:
        args = script.parse_args(["--data", str(data), "--tokenizer", name])
        started = time.process_time()
        train, test, _ = script.load_news(args)
        seconds = time.process_time() - started
        texts = train["tokens"].tolist()
        counts = Counter(word for words in texts for word in words)
        every = counts.keys() | {word for words in test["tokens"] for word in words}
        known, _ = script.load_vectors("auto", every)
        tokens = sum(counts.values())
        result["tokenizers"][name] = unknown(script, train, args.min_count, known) | {
            "words": len(counts),
            "tokens_per_text": tokens / len(texts),
            "tokens_with_vector": sum(counts[word] for word in known) / tokens,
            "texts_per_second": (len(train) + len(test)) / seconds,
            "example": texts[EXAMPLE][:11],
        }
        if name == "wordpunct":
            counted = [unknown(script, train, n, known) for n in (1, 2)]
            lengths = sorted(map(len, texts))
            batches = [lengths[i : i + 32] for i in range(0, len(lengths), 32)]
            result["min_counts"] = counted
            result["lengths"] = {
                "shortest": lengths[0],
                "median": lengths[len(lengths) // 2],
                "longest": lengths[-1],
                "padding_to_longest": 1 - tokens / len(texts) / lengths[-1],
                "padding_by_length": 1 - tokens / sum(len(some) * some[-1] for some in batches),
            }
    return result


def rivals(data):
    """On the same folds, 3 seeds: naive Bayes of counts, logistic regression on TF-IDF of 1- and
    2-grams, and on these and the weighted mean of the text's GloVe vectors."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    script = load_script("transformer")
    split = {"token_pattern": r"\S+", "lowercase": False}
    train, _, _ = script.load_news(script.parse_args(["--data", str(data)]))
    known, table = script.load_vectors("auto", {w for words in train["tokens"] for w in words})
    table = table[2:].numpy()
    tf_idf = TfidfVectorizer(**split, ngram_range=(1, 2), sublinear_tf=True)
    vectors = make_pipeline(
        TfidfVectorizer(**split, vocabulary=known, norm="l1"),
        FunctionTransformer(lambda weights: weights @ table),
        StandardScaler(),
        FunctionTransformer(lambda x: x / 10),
    )
    models = {
        "naive_bayes": make_pipeline(CountVectorizer(**split), MultinomialNB(alpha=0.5)),
        "tf_idf": make_pipeline(tf_idf, LogisticRegression(C=10, max_iter=1000)),
        "tf_idf_vectors": make_pipeline(
            make_union(tf_idf, vectors), LogisticRegression(C=5, max_iter=3000)
        ),
    }
    accuracies = {name: [] for name in models}
    for seed in range(3):
        args = script.parse_args(["--data", str(data), "--seed", str(seed)])
        train, _, _ = script.load_news(args)
        texts = train["tokens"].str.join(" ").to_numpy()
        labels = train["target"].to_numpy()
        for name, model in models.items():
            right = []
            for fold in range(args.folds):
                held = (train["fold"] == fold).to_numpy()
                model.fit(texts[~held], labels[~held])
                right += (model.predict(texts[held]) == labels[held]).tolist()
            accuracies[name].append(float(np.mean(right)))
    return accuracies


# -------------------------------------------------------------------------------------------- main

OTHERS = {"rivals": rivals, "tokenizers": tokenizers, "deletion": deletion}


def git(*command):
    command = ["git", *command, "--", *map(str, ROOT.glob("0123456_*.py"))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def processor():
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the course's real files")
    parser.add_argument("names", nargs="*", help="which results to make (default: all)")
    args = parser.parse_args()
    if git("status", "--porcelain"):
        sys.exit("the scripts have changes that are not committed: results would be of no commit")
    commit = git("log", "-1", "--format=%H").strip()
    for name in args.names or [*RUNS, *OTHERS]:
        path = RESULTS / f"{name}.json"
        if path.exists():
            continue
        result = run(name, args.data) if name in RUNS else OTHERS[name](args.data)
        machine = {"processor": processor(), "cores": os.cpu_count()}
        path.write_text(json.dumps(result | {"commit": commit, "machine": machine}, indent=1))
        print(f"{name}: {path.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main()
