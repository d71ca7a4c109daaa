"""Make what the report and README quote, on the course's real files; what is there is kept.

    python report/experiments.py --data DIR                 everything
    python report/experiments.py --data DIR vae_mnist_kl0   some results, by their names

Each leaves report/results/NAME.json and pictures in report/figures; a run stays in
results/report/NAME. Frozen, no command makes them: ablations, rewrite, tried and trade.
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
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "report" / "results"
FIGURES = ROOT / "report" / "figures"
RUNS = {  # name: options of the script that its name begins with
    "transformer": "",
    **{f"transformer_seed{seed}": f"--seed {seed}" for seed in range(1, 5)},
    **{f"transformer_scratch{seed}": f"--embeddings none --seed {seed}" for seed in range(3)},
    **{f"vae_{k}_kl{w}": f"--kl-weight {w}" for k in ("mnist", "anime") for w in (0, 1, 100)},
    **{f"vae_{k}_kl1_seed{n}": f"--seed {n}" for k in ("mnist", "anime") for n in (1, 2)},
    "vae_anime_random": "",
    "vae_anime_random_kl0": "--kl-weight 0",
    **{f"vae_anime_kl0_epochs{n}": f"--kl-weight 0 --epochs {n}" for n in (1, 3)},
    **{f"vae_anime_random_kl0_epochs{n}": f"--kl-weight 0 --epochs {n}" for n in (1, 3)},
}


def load_script(name):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"0123456_{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def source():
    """The commit of the scripts, which must be as it has them, and the machine."""
    scripts = ["--", *map(str, ROOT.glob("0123456_*.py"))]
    if subprocess.check_output(["git", "status", "--porcelain", *scripts], cwd=ROOT):
        sys.exit("the scripts have changes that are not committed: results would be of no commit")
    log = ["git", "log", "-1", "--format=%H", *scripts]
    commit = subprocess.check_output(log, cwd=ROOT, text=True).strip()
    cpuinfo = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    names = [*re.findall("model name.*: (.*)", cpuinfo), platform.processor()]
    return {"commit": commit, "machine": {"processor": names[0], "cores": os.cpu_count()}}


def run(name, data):
    """Run a script; its metrics, and of an autoencoder the measures."""
    kind = "transformer" if name.startswith("transformer") else name[: len("vae_mnist")]
    script = load_script(kind)

    def random_start(args, images):  # instead of what PCA gives
        model = script.VAE(args.latent_dim)
        model.average.data = (images[:10_000] / 255).mean(0)
        nn.init.orthogonal_(model.linear_in.weight)
        nn.init.orthogonal_(model.linear_out.weight)
        return model

    if "random" in name:
        script.SLOW = 1  # the linear maps learn as fast as the rest
        script.new_model = random_start
    out = ROOT / "results" / "report" / name
    metrics = script.main([*RUNS[name].split(), "--data", str(data), "--out", str(out)])
    if re.search("transformer$|_random$|_kl[0-9]+$", name):
        for path in out.glob("samples.png" if "random" in name else "*.png"):
            shutil.copy(path, FIGURES / f"{name}_{path.name}")
    if kind == "transformer":
        return metrics
    model, config = script.load_checkpoint(out / "model.pt")
    model.requires_grad_(False)
    images = script.split(script.load_images(script.parse_args(["--data", str(data)])))
    torch.manual_seed(0)
    measures = digits_measures if kind == "vae_mnist" else faces_measures
    return metrics | measures(script, model, config, images, data)


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


def codes_by_name(script, model, config, parts, n):
    """Codes (N, Z): of the test images, half way between two of them, and n sampled ones."""
    codes, ends = (script.infer(model, images)[2] for images in (parts[0][:10_000], parts[2]))
    return {
        "reconstructions": ends,
        "midway": script.interpolate(ends, ends.roll(1, 0), 0.5),
        "midway_straight": (ends + ends.roll(1, 0)) / 2,
        "prior": torch.randn(n, config.latent_dim),
        "mixture": script.sample_mixture(codes, n),
    }


def digits_measures(script, model, config, parts, data):
    """Share of pictures that the judge gives over 0.9 to one class; the pixels' cross-entropy."""
    labels = torch.from_numpy(np.load(Path(data) / script.FILE)["label"]).long()
    train, _, test = (images / 255 for images in parts)
    judge = train_judge(train, script.split(labels)[0]).requires_grad_(False)
    pictures = {"real": test}
    for name, z in codes_by_name(script, model, config, parts, 10_000).items():
        pictures[name] = model.likelihood(z.float()).mean
    entropy = F.binary_cross_entropy(train.mean(0), test.mean(0), reduction="sum").item()
    sure = {name: judge(x).softmax(1).amax(1) > 0.9 for name, x in pictures.items()}
    legible = {f"legible_{name}": share.float().mean().item() for name, share in sure.items()}
    return {"test_pixel_cross_entropy_nats": entropy, **legible}


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


def faces_measures(script, model, config, parts, data):
    """Sliced Wasserstein distances to the test faces; how codes and principal components vary."""
    train, _, test = parts
    _, _, codes, logvar = script.infer(model, train[:10_000])
    real = test / 255
    figures = {"swd_real": sliced_wasserstein(train[: len(test)] / 255, real)}
    for name, z in codes_by_name(script, model, config, parts, len(test)).items():
        figures[f"swd_{name}"] = sliced_wasserstein(model.likelihood(z.float()).mean, real)
    eigenvalues = torch.linalg.eigvalsh(model.reparameterize(codes, logvar).T.cov())
    figures["code_eigenvalues_least_greatest"] = eigenvalues[[0, -1]].tolist()
    x = train[:10_000].flatten(1) / 255
    spectrum = torch.pca_lowrank(x, config.latent_dim + 32)[1].square() / len(x)
    above = spectrum[: config.latent_dim] > config.kl_weight * (2 * model.log_sigma).exp()
    figures["components_above_lambda_variance"] = int(above.sum())
    return figures


def deletion(data, share=0.2):
    """How often a held-out text's prediction changes without that share of its tokens: those with
    the most attention in the last layer, mean over heads and tokens, or random ones."""
    script = load_script("transformer")
    run("transformer", data)  # a minute, so that the model is surely of these scripts
    models, config = script.load_checkpoint(ROOT / "results/report/transformer/model.pt")
    config.data = Path(data)
    train, _, _ = script.load_news(config)
    torch.manual_seed(0)
    changed = {"attended": [], "random": []}
    for fold, model in enumerate(models):
        texts = script.encode(train["tokens"][train["fold"] == fold], model.vocabulary)
        tokens = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        before = script.predict(model, tokens).argmax(1)
        _, maps = model(tokens, return_attention=True)
        scores = {"attended": maps[-1].mean((1, 2)), "random": torch.rand(tokens.shape)}
        for way, score in scores.items():
            rank = score.masked_fill(tokens == 0, -1).argsort(1, descending=True).argsort(1)
            out = rank < share * (tokens > 0).sum(1, keepdim=True)
            after = script.predict(model, tokens.masked_fill(out, 0)).argmax(1)
            changed[way] += (after != before).tolist()
    return {way: float(np.mean(changed[way])) for way in changed}


def tokenizers(data):
    """The five tokenizers by what they make of the texts, the default with min_count 1 too: what
    the vocabulary of four folds, without and with the words that have a vector, does not know."""
    script = load_script("transformer")
    result = {}
    for name, min_count in [*((name, 2) for name in script.TOKENIZERS), ("wordpunct", 1)]:
        options = ["--data", str(data), "--tokenizer", name]
        train, test, _ = script.load_news(script.parse_args(options))
        texts, held = train["tokens"], train["fold"] == 0
        known, _ = script.load_vectors("auto", {*texts.explode(), *test["tokens"].explode()})
        row = {"words": texts.explode().nunique(), "example": texts[6][:11]}  # of a telling row
        row["lengths"] = texts.str.len().describe()[["min", "50%", "max", "mean"]].tolist()
        for way, pretrained in (("alone", ()), ("with_vectors", known)):
            vocabulary = script.build_vocabulary(texts[~held], min_count, pretrained)
            strange = [word not in vocabulary for word in texts[held].explode()]
            row |= {f"unknown_{way}": float(np.mean(strange)), f"vocabulary_{way}": len(vocabulary)}
        result[name if min_count == 2 else "min_count_1"] = row
    return result


def rivals(data):
    """On the same folds, 3 seeds: naive Bayes of counts, and logistic regression on TF-IDF of 1-
    and 2-grams and the weighted mean of the text's GloVe vectors."""
    script = load_script("transformer")
    split = {"token_pattern": r"\S+", "lowercase": False}
    accuracies = {"naive_bayes": [], "tf_idf_vectors": []}
    for seed in range(3):
        train = script.load_news(script.parse_args(["--data", str(data), "--seed", str(seed)]))[0]
        known, table = script.load_vectors("auto", set(train["tokens"].explode()))
        vectors = make_pipeline(
            TfidfVectorizer(**split, vocabulary=known, norm="l1"),
            FunctionTransformer(csr_matrix.dot, kw_args={"other": table[2:].numpy()}),
            StandardScaler(),
        )
        tf_idf = TfidfVectorizer(**split, ngram_range=(1, 2), sublinear_tf=True)
        both = [("tf_idf", tf_idf), ("vectors", vectors)]
        features = FeatureUnion(both, transformer_weights={"vectors": 0.1})
        bayes = make_pipeline(CountVectorizer(**split), MultinomialNB(alpha=0.5))
        regression = make_pipeline(features, LogisticRegression(C=5, max_iter=3000))
        texts, folds = train["tokens"].str.join(" "), PredefinedSplit(train["fold"])
        for name, model in zip(accuracies, (bayes, regression), strict=True):
            accuracies[name].append(cross_val_score(model, texts, train["target"], cv=folds).mean())
    return accuracies


def main():
    others = {"rivals": rivals, "tokenizers": tokenizers, "deletion": deletion}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the course's real files")
    parser.add_argument("names", nargs="*", help="which results to make (default: all)")
    args = parser.parse_args()
    made_by = source()
    for name in args.names or [*RUNS, *others]:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            result = run(name, args.data) if name in RUNS else others[name](args.data)
            path.write_text(json.dumps(result | made_by, indent=1))
            print(f"{name}: {path.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main()
