"""Make what the report and README quote, on the course's real files; what is there is kept.

    python report/experiments.py --data DIR                 everything
    python report/experiments.py --data DIR vae_mnist_kl0   some results, by their names

Each leaves report/results/NAME.json (metrics.json, measures that the scripts do not hold, commit of
the scripts) and pictures in report/figures; a run stays in results/report/NAME. Delete a result to
have it made again. Frozen, no command makes them: ablations, rewrite, tried, trade and mlp_vae.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "report" / "results"
FIGURES = ROOT / "report" / "figures"
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


def run(name, data):
    """Run a script, if it has not been run; its metrics, and of an autoencoder the measures."""
    kind = "transformer" if name.startswith("transformer") else name[: len("vae_mnist")]
    script = load_script(kind)

    def random_start(args, images):  # instead of what PCA gives
        model = script.VAE(args.latent_dim)
        model.average.data = script.to_float(images[:10_000]).mean(0)
        nn.init.orthogonal_(model.linear_in.weight)
        nn.init.orthogonal_(model.linear_out.weight)
        return model

    if "random" in name:
        script.SLOW = 1  # the linear maps learn as fast as the rest
        script.new_model = random_start
    out = ROOT / "results" / "report" / name
    if not (out / "metrics.json").exists():
        script.main([*RUNS[name].split(), "--data", str(data), "--out", str(out)])
    if name == kind or name.startswith(f"{kind}_kl"):
        for path in out.glob("*.png"):
            shutil.copy(path, FIGURES / f"{name}_{path.name}")
    if "random" in name:
        shutil.copy(out / "samples.png", FIGURES / f"{name}_samples.png")
    metrics = json.loads((out / "metrics.json").read_text())
    if kind == "transformer":
        return metrics
    model, config = script.load_checkpoint(out / "model.pt")
    images = script.load_images(script.parse_args(["--data", str(data)]))
    if name == "vae_anime_kl1":
        draw_fading(script, model, script.split(images)[2])
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
    distances = []
    for level in range(3):
        generator = torch.Generator().manual_seed(0)
        patches_of, smaller = [], []
        for x in (one, two):
            blurred = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)
            smaller.append(blurred[:, :, ::2, ::2])
            if level < 2:  # what the smaller picture lacks
                large = torch.zeros_like(x)
                large[:, :, ::2, ::2] = 4 * smaller[-1]
                x = x - F.conv2d(F.pad(large, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)
            corner = torch.randint(0, x.size(2) - 6, (2, len(x) * patches, 1), generator=generator)
            top, left = corner + torch.arange(7)
            which = torch.arange(len(x)).repeat_interleave(patches)[:, None, None]
            part = x[which, :, top[:, :, None], left[:, None]]  # (N * patches, 7, 7, 3)
            std, mean = torch.std_mean(part, (0, 1, 2))
            patches_of.append(((part - mean) / std.clamp(min=1e-12)).flatten(1))
        directions = F.normalize(torch.randn(147, projections, generator=generator), dim=0)
        a, b = ((part @ directions).sort(0).values for part in patches_of)
        distances.append(1000 * (a - b).abs().mean().item())
        one, two = smaller
    return sum(distances) / len(distances)


def draw_fading(script, model, test):
    """Three pairs of faces: codes between theirs, decoded, above the cross-fade of their pixels."""
    mean = script.infer(model, test)[2]
    rows = []
    for i in (0, 2, 6):
        share = torch.linspace(0, 1, 6)[:, None]
        x, y = script.to_float(test[i : i + 2]).split(1)
        rows += [x, script.decode_pictures(model, (1 - share) * mean[i] + share * mean[i + 1]), y]
        share = share[..., None, None]
        rows += [x, (1 - share) * x + share * y, y]
    panels = {"decoded between, and beneath it the cross-fade": torch.cat(rows)}
    path = FIGURES / "vae_anime_fading.png"
    script.draw(path, "lambda = 1", panels, script.plot_grid, 5.0, 4.5)


def faces_measures(script, model, config, images, data):
    """Sliced Wasserstein distances to the test faces; eigenvalues of the codes' covariance; how
    many principal components have more variance than lambda sigma^2."""
    train, _, test = script.split(images)
    n = len(test)
    _, _, codes, logvar = script.infer(model, train[:10_000])
    real = script.to_float(test)
    figures = {"swd_real": sliced_wasserstein(script.to_float(train[:n]), real)}
    for name, z in {
        "reconstructions": script.infer(model, test)[2],
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


@torch.no_grad()
def deletion(data, share=0.2):
    """How often a held-out text's prediction changes when that share of its tokens is taken out:
    those with the most attention in the last layer, mean over heads and tokens, or random ones."""
    script = load_script("transformer")
    run("transformer", data)  # if it has not been run
    models, config = script.load_checkpoint(ROOT / "results/report/transformer/model.pt")
    config.data = Path(data)
    train, _, _ = script.load_news(config)
    torch.manual_seed(0)
    changed = {"attended": [], "random": []}
    for fold, model in enumerate(models):
        texts = script.encode(train["tokens"][train["fold"] == fold], model.vocabulary)
        before = script.predict(model, texts).argmax(1)
        for way in changed:
            kept = []
            for text in texts:
                score = torch.rand(len(text))
                if way == "attended":
                    score = model(text[None], return_attention=True)[1][-1].mean((0, 1, 2))
                stay = score.argsort()[: max(1, int((1 - share) * len(text)))].sort().values
                kept.append(text[stay])
            changed[way] += (script.predict(model, kept).argmax(1) != before).tolist()
    return {way: float(np.mean(changed[way])) for way in changed}


def tokenizers(data):
    """The five tokenizers by what they make of the texts, the default with min_count 1 too: what
    the vocabularies of four folds, without and with the words that have a vector, do not know."""
    script = load_script("transformer")
    result = {}
    for name, min_count in [*((name, 2) for name in script.TOKENIZERS), ("wordpunct", 1)]:
        args = script.parse_args(["--data", str(data), "--tokenizer", name])
        train, test, _ = script.load_news(args)
        texts = train["tokens"]
        known, _ = script.load_vectors("auto", {*texts.explode(), *test["tokens"].explode()})
        row = {"words": texts.explode().nunique(), "example": texts[6][:11]}  # of a telling row
        row["lengths"] = texts.str.len().describe()[["min", "50%", "max", "mean"]].tolist()
        for way, pretrained in (("alone", ()), ("with_vectors", known)):
            strange, sizes = [], []
            for fold in range(args.folds):
                held = train["fold"] == fold
                vocabulary = script.build_vocabulary(texts[~held], min_count, pretrained)
                sizes.append(len(vocabulary) - 2)
                strange += [word not in vocabulary for word in texts[held].explode()]
            row[f"unknown_{way}"] = float(np.mean(strange))
            row[f"vocabulary_{way}"] = float(np.mean(sizes))
        result[name if min_count == 2 else "min_count_1"] = row
    return result


def rivals(data):
    """On the same folds, 3 seeds: naive Bayes of counts, and logistic regression on TF-IDF of 1-
    and 2-grams and the weighted mean of the text's GloVe vectors."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_score
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import FeatureUnion, make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    def mean_vector(weights, table):
        return weights @ table

    script = load_script("transformer")
    split = {"token_pattern": r"\S+", "lowercase": False}
    accuracies = {"naive_bayes": [], "tf_idf_vectors": []}
    for seed in range(3):
        args = script.parse_args(["--data", str(data), "--seed", str(seed)])
        train, _, _ = script.load_news(args)
        known, table = script.load_vectors("auto", set(train["tokens"].explode()))
        vectors = make_pipeline(
            TfidfVectorizer(**split, vocabulary=known, norm="l1"),
            FunctionTransformer(mean_vector, kw_args={"table": table[2:].numpy()}),
            StandardScaler(),
        )
        tf_idf = TfidfVectorizer(**split, ngram_range=(1, 2), sublinear_tf=True)
        both = [("tf_idf", tf_idf), ("vectors", vectors)]
        features = FeatureUnion(both, transformer_weights={"vectors": 0.1})
        bayes = make_pipeline(CountVectorizer(**split), MultinomialNB(alpha=0.5))
        regression = make_pipeline(features, LogisticRegression(C=5, max_iter=3000))
        for name, model in zip(accuracies, (bayes, regression), strict=True):
            folds = PredefinedSplit(train["fold"])
            texts = train["tokens"].str.join(" ")
            accuracies[name].append(cross_val_score(model, texts, train["target"], cv=folds).mean())
    return accuracies


# -------------------------------------------------------------------------------------------- main


def main():
    others = {"rivals": rivals, "tokenizers": tokenizers, "deletion": deletion}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the course's real files")
    parser.add_argument("names", nargs="*", help="which results to make (default: all)")
    args = parser.parse_args()
    scripts = ["--", *map(str, ROOT.glob("0123456_*.py"))]
    if subprocess.check_output(["git", "status", "--porcelain", *scripts], cwd=ROOT):
        sys.exit("the scripts have changes that are not committed: results would be of no commit")
    log = ["git", "log", "-1", "--format=%H", *scripts]
    commit = subprocess.check_output(log, cwd=ROOT, text=True).strip()
    cpuinfo = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    names = [*re.findall("model name.*: (.*)", cpuinfo), platform.processor()]
    machine = {"processor": names[0], "cores": os.cpu_count()}
    for name in args.names or [*RUNS, *others]:
        path = RESULTS / f"{name}.json"
        if path.exists():
            continue
        result = run(name, args.data) if name in RUNS else others[name](args.data)
        path.write_text(json.dumps(result | {"commit": commit, "machine": machine}, indent=1))
        print(f"{name}: {path.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main()
