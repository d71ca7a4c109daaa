"""Run what the report and README quote, on the course's real files; finished runs are skipped.

    python report/experiments.py --data DIR

Every run leaves report/results/NAME.json (its metrics.json and the commit of the scripts), and its pictures
in report/figures. Delete a result to have it made again.
"""

import argparse
import copy
import json
import math
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
RESULTS, FIGURES = ROOT / "report" / "results", ROOT / "report" / "figures"

PICTURES = ("curves", "reconstructions", "samples", "interpolation", "posterior")

# name: (script, its options, pictures to keep)
RUNS = {
    "transformer": ("transformer", "", ("curves", "confusion", "attention")),
    "transformer_seed1": ("transformer", "--seed 1", ()),
    "transformer_seed2": ("transformer", "--seed 2", ()),
    "transformer_scratch": ("transformer", "--embeddings none", ()),
    "transformer_scratch_seed1": ("transformer", "--embeddings none --seed 1", ()),
    "transformer_scratch_seed2": ("transformer", "--embeddings none --seed 2", ()),
    "vae_mnist": ("vae_mnist", "", PICTURES),
    "vae_mnist_kl0": ("vae_mnist", "--kl-weight 0", (*PICTURES, "samples_aggregate")),
    "vae_mnist_kl100": ("vae_mnist", "--kl-weight 100", PICTURES),
    "vae_anime": ("vae_anime", "", (*PICTURES, "samples_aggregate")),
    "vae_anime_kl0": ("vae_anime", "--kl-weight 0", (*PICTURES, "samples_aggregate")),
    "vae_anime_kl100": ("vae_anime", "--kl-weight 100", (*PICTURES, "samples_aggregate")),
}


def run_script(name, data):
    """Run a script on the real files; returns its metrics without the places where the files lay."""
    script, options, pictures = RUNS[name]
    with tempfile.TemporaryDirectory() as out:
        argv = [*options.split(), "--data", data, "--out", out]
        argv += ["--submission", f"{out}/submission.csv"] if script == "transformer" else []
        subprocess.run([sys.executable, ROOT / f"0123456_{script}.py", *argv], check=True)
        metrics = json.loads((Path(out) / "metrics.json").read_text())
        for picture in pictures:
            shutil.copy(Path(out) / f"{picture}.png", FIGURES / f"{name}_{picture}.png")
    for place in ("data", "out", "submission"):
        metrics["config"].pop(place, None)
    return metrics | {"argv": options.split()}


def tf_idf(data):
    """The rivals on the same folds: TF-IDF of 1- and 2-grams with logistic regression, and naive Bayes of counts."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import ComplementNB
    from sklearn.pipeline import make_pipeline

    script = runpy.run_path(str(ROOT / "0123456_transformer.py"))
    news = script["load_news"](script["Config"](data=data))
    texts, labels = np.array([" ".join(words) for words in news.train]), news.labels.numpy()
    words = dict(token_pattern=r"\S+", lowercase=False, ngram_range=(1, 2))
    rivals = dict(
        tf_idf_logistic_regression=lambda: make_pipeline(
            TfidfVectorizer(**words, sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
        ),
        complement_naive_bayes=lambda: make_pipeline(CountVectorizer(**words, binary=True), ComplementNB()),
    )
    metrics = {}
    for name, rival in rivals.items():
        accuracies = []
        for seed in range(3):
            fold = script["assign_folds"](news.labels, 5, seed).numpy()
            right = [
                rival().fit(texts[fold != k], labels[fold != k]).score(texts[fold == k], labels[fold == k])
                for k in range(5)
            ]
            accuracies.append(float(np.average(right, weights=np.bincount(fold))))
        metrics[name] = dict(
            oof_accuracies=accuracies, mean=float(np.mean(accuracies)), std=float(np.std(accuracies, ddof=1))
        )
    return metrics


def mlp_vae(data):
    """The rival on the same split: pytorch/examples' VAE, 784-400-20, Adam 1e-3, batches of 128, its best epoch."""
    script = SimpleNamespace(**runpy.run_path(str(ROOT / "0123456_vae_mnist.py")))
    images, validation, test = script.split(script.load_images(script.Config(data=data))[0])
    torch.manual_seed(0)
    model = script.VAE(20)
    model.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
    layers = [nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Unflatten(1, (1, 28, 28))]
    model.decoder = nn.Sequential(*layers)
    model.encode = lambda x: model.encoder(x).chunk(2, 1)  # 0 and 1 as they are, as there
    optimizer, started, best = torch.optim.Adam(model.parameters(), 1e-3), time.perf_counter(), math.inf
    for epoch in range(100):
        model.train()
        for rows in torch.randperm(len(images)).split(128):
            x = script.to_float(images[rows])
            decoded, mean, logvar = model(x)
            loss = (model.reconstruction_loss(decoded, x) + script.kl_divergence(mean, logvar).sum(1)).mean()
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


RIVALS = {"tf_idf": tf_idf, "mlp_vae": mlp_vae}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the course's real files")
    data = parser.parse_args().data
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    for folder in (RESULTS, FIGURES):
        folder.mkdir(exist_ok=True)
    for name in [*RUNS, *RIVALS]:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            metrics = run_script(name, data) if name in RUNS else RIVALS[name](data)
            path.write_text(json.dumps(metrics | {"commit": commit}, indent=1) + "\n")
        print(f"{name}: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
