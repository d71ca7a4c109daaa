"""Make report/results/*.json, which report and README quote, by runs in results/report:
`python report/experiments.py --data DIR [NAME ...]`, all that are not there yet, or those named.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "report" / "results"
VARIANTS = {  # of the classifier, three seeds each
    **{name: f"--tokenizer {name}" for name in ("whitespace", "treebank", "toktok", "tweet")},
    "scratch": "--embeddings none",
    "keep_words": "--word-dropout 0",
    "two_layers": "--nlayers 2",
    "dropout": "--dropout 0.1",
    "slow": "--lr 6e-4",
}
RUNS = {  # name: options of the script that its name begins with
    "transformer": "",
    **{f"transformer_seed{seed}": f"--seed {seed}" for seed in range(1, 5)},
    **{f"vae_{k}_kl{w}": f"--kl-weight {w}" for k in ("mnist", "anime") for w in (0, 1, 100)},
    **{f"vae_{k}_kl1_seed{n}": f"--seed {n}" for k in ("mnist", "anime") for n in (1, 2)},
    **{f"transformer_{v}{n}": f"{o} --seed {n}" for v, o in VARIANTS.items() for n in range(3)},
}


def load_script(name):
    """The script as a module."""
    sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"0123456_{name}")


def source():
    """The commit of the scripts, which must be as it has them, and the machine."""
    own = ["--", *map(str, ROOT.glob("0123456_*.py"))]
    if subprocess.check_output(["git", "status", "--porcelain", *own], cwd=ROOT):
        sys.exit("the scripts have changes that are not committed: results would be of no commit")
    commit = subprocess.check_output(["git", "log", "-1", "--format=%H", *own], cwd=ROOT, text=True)
    machine = {"cpu": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count()}
    return {"commit": commit.strip(), "machine": machine}


def run(name, data):
    """Run a script; its metrics, and of an autoencoder the measures."""
    kind = "transformer" if name.startswith("transformer") else name[: len("vae_mnist")]
    script = load_script(kind)
    out = ROOT / "results" / "report" / name
    options = [*RUNS[name].split(), "--data", str(data), "--out", str(out)]
    if kind == "transformer":
        return script.main([*options, "--submission", str(out / "submission.csv")])
    metrics = script.main(options)
    model, _ = script.load_checkpoint(out / "model.pt")
    parts = script.split(script.load_images(script.parse_args(["--data", str(data)])))
    torch.manual_seed(0)
    measures = digits_measures if kind == "vae_mnist" else faces_measures
    size = {"parameters": sum(weight.numel() for weight in model.parameters())}
    return metrics | size | measures(script, model, parts, data)


def decode(model, z):
    """Pictures of codes (N, Z)."""
    return torch.cat([model.likelihood(model.decode(part.float())).mean for part in z.split(250)])


def sample_mixture(codes, n):
    """n draws (n, Z) of 100 Gaussians of one covariance, fitted to codes (Ghosh et al. 2020)."""
    settings = {"init_params": "random_from_data", "max_iter": 20, "reg_covar": 1e-3}
    mixture = GaussianMixture(100, covariance_type="tied", random_state=0, **settings)
    return torch.from_numpy(mixture.fit(codes).sample(n)[0])


def train_judge(images, labels):
    """A small classifier of digits, binary or grey, trained on real ones."""
    torch.manual_seed(1)
    layers = []
    for inner, outer, step in ((1, 16, 2), (16, 32, 1), (32, 64, 2)):
        layers += [nn.Conv2d(inner, outer, 4, step, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
    judge = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 6 * 6, 10))
    optimizer = torch.optim.AdamW(judge.parameters(), 1e-3)
    for _ in range(14):
        for rows in torch.randperm(len(images)).split(128):
            change = torch.eye(2, 3) + 0.08 * torch.randn(len(rows), 2, 3)
            grid = F.affine_grid(change, images[rows].shape, align_corners=False)
            x = F.grid_sample(images[rows], grid, align_corners=False)
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, (x > 0.5).float())
            loss = F.cross_entropy(judge(x), labels[rows], label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return judge.eval()


def digits_measures(script, model, parts, data):
    """Share of pictures that the judge gives over 0.9 to one class; the pixels' cross-entropy."""
    labels = torch.from_numpy(np.load(Path(data) / script.FILE)["label"]).long()
    train, _, test = (images / 255 for images in parts)
    judge = train_judge(train, script.split(labels)[0]).requires_grad_(False)
    codes = script.evaluate(model, parts[2])[2]
    pictures = {
        "real": test,
        "reconstructions": decode(model, codes),
        "midway": decode(model, script.interpolate(codes, codes.roll(1, 0), 0.5)),
        "prior": decode(model, torch.randn(10_000, codes.size(1))),
        "mixture": decode(model, sample_mixture(script.evaluate(model, parts[0][:3000])[2], 2000)),
    }
    sure = {name: judge(x).softmax(1).amax(1) > 0.9 for name, x in pictures.items()}
    legible = {f"legible_{name}": share.float().mean().item() for name, share in sure.items()}
    pixels = test.mean(0).clamp(1e-6, 1 - 1e-6)
    entropy = F.binary_cross_entropy(pixels, pixels, reduction="sum").item()
    return {"one_picture_nats": entropy, **legible}


def sliced_wasserstein(one, two, patches=32, projections=128):
    """Distance x 1000 of two sets of as many images (N, 3, 64, 64), mean over 64, 32 and 16 pixels,
    of patches of a Laplacian pyramid along random directions (Karras et al. 2018, section 5)."""
    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    kernel = kernel.outer(kernel).expand(3, 1, 5, 5)

    def blur(x):
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)

    distances = []
    for level in range(3):
        generator = torch.Generator().manual_seed(0)
        patches_of, smaller = [], []
        for x in (one, two):
            smaller.append(blur(x)[:, :, ::2, ::2])
            if level < 2:  # what the smaller picture lacks
                large = torch.zeros_like(x)
                large[:, :, ::2, ::2] = 4 * smaller[-1]
                x = x - blur(large)
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


def faces_measures(script, model, parts, data):
    """Sliced Wasserstein distances to the test faces."""
    train, _, test = parts
    codes = script.evaluate(model, test)[2]
    pictures = {
        "real": train[: len(test)] / 255,
        "reconstructions": decode(model, codes),
        "midway": decode(model, script.interpolate(codes, codes.roll(1, 0), 0.5)),
        "prior": decode(model, torch.randn(codes.shape)),
    }
    return {f"swd_{name}": sliced_wasserstein(x, test / 255) for name, x in pictures.items()}


def tokenizers(data):
    """What the five tokenizers make of the texts; what a vocabulary of four folds does not know."""
    script = load_script("transformer")
    result = {}
    for name in script.TOKENIZERS:
        args = script.parse_args(["--data", str(data), "--tokenizer", name])
        train, _, _ = script.load_news(args)
        texts = train["tokens"]
        held = train["fold"] == 0
        pretrained = script.load_vectors("auto", {*texts.explode()})
        row = {"words": texts.explode().nunique(), "example": texts[6][:11]}  # of a telling row
        row["mean_length"] = texts.str.len().mean()
        for way, known in (("alone", ()), ("with_vectors", pretrained)):
            vocabulary = script.build_vocabulary(texts[~held], 2, known)
            strange = [word not in vocabulary for word in texts[held].explode()]
            row |= {f"unknown_{way}": float(np.mean(strange)), f"vocabulary_{way}": len(vocabulary)}
        result[name] = row
    return result


def rivals(data):
    """On the same folds, 3 seeds: naive Bayes of counts; logistic regression on TF-IDF of 1- and
    2-grams and the weighted mean of the text's GloVe vectors; the script without naive Bayes."""
    script = load_script("transformer")
    split = {"token_pattern": r"\S+", "lowercase": False}
    accuracies = {"naive_bayes": [], "tf_idf_vectors": [], "encoder": []}
    out = ["--out", str(ROOT / "results" / "report" / "encoder"), "--submission", os.devnull]
    for seed in range(3):
        options = ["--data", str(data), "--seed", str(seed)]
        train = script.load_news(script.parse_args(options))[0]
        known = script.load_vectors("auto", set(train["tokens"].explode()))
        table = np.stack([*known.values()])
        shares = TfidfVectorizer(**split, vocabulary=[*known], norm="l1")
        mean = FunctionTransformer(csr_matrix.dot, kw_args={"other": table})
        vectors = make_pipeline(shares, mean, StandardScaler())
        tf_idf = TfidfVectorizer(**split, ngram_range=(1, 2), sublinear_tf=True)
        features = FeatureUnion([("t", tf_idf), ("v", vectors)], transformer_weights={"v": 0.1})
        bayes = make_pipeline(CountVectorizer(**split), MultinomialNB(alpha=0.5))
        linear = make_pipeline(features, LogisticRegression(C=5, max_iter=3000))
        texts, folds = train["tokens"].str.join(" "), PredefinedSplit(train["fold"])
        for name, model in (("naive_bayes", bayes), ("tf_idf_vectors", linear)):
            accuracies[name].append(cross_val_score(model, texts, train["target"], cv=folds).mean())
        with mock.patch.object(script, "log_count_ratios", lambda *given: torch.zeros(given[2:])):
            accuracies["encoder"].append(script.main([*options, *out])["oof_accuracy"])
    return accuracies


def main():
    others = {"rivals": rivals, "tokenizers": tokenizers}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the course's real files")
    parser.add_argument("names", nargs="*", help="which results to make (default: all)")
    args = parser.parse_args()
    made_by = source()
    for name in args.names or [*RUNS, *others]:
        path = RESULTS / f"{name}.json"
        if args.names or not path.exists():
            result = run(name, args.data) if name in RUNS else others[name](args.data)
            path.write_text(json.dumps(result | made_by, indent=1).replace(f"{ROOT}/", ""))
            print(f"{name}: {path.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main()
