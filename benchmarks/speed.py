"""How fast the scripts are, as ratios to what one would write instead, measured side by side.

    python benchmarks/speed.py --data DIR               everything, about an hour on 2 cores
    python benchmarks/speed.py --data DIR encoder run   some of: encoder, run, digits, faces, growth

Prints every figure and keeps it in report/results/speed.json. Ratios: medians of rivals in turn.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from subprocess import Popen

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "report"))
from experiments import load_script, source


def alternate(*calls, rounds=15):
    """Median seconds of each call, in turn, round by round; the first round warms up."""
    seconds = np.zeros((rounds + 1, len(calls)))
    for turn, k in np.ndindex(*seconds.shape):
        started = time.perf_counter()
        calls[k]()
        seconds[turn, k] = time.perf_counter() - started
    return np.median(seconds[1:], 0).tolist()


def encoder(data):
    """A training step of our encoder layer and of nn.TransformerEncoderLayer, alike in all: with
    dropout, and without, where torch's attention never holds a T x T matrix."""
    script = load_script("transformer")
    options = {"activation": "gelu", "batch_first": True, "norm_first": True}
    figures = {}
    sizes = ((64, 48, 128, 4, 256), (32, 256, 256, 8, 512))
    for (B, T, D, H, hidden), dropout in itertools.product(sizes, (0.1, 0.0)):
        ours = script.EncoderLayer(D, H, hidden, dropout)
        theirs = nn.TransformerEncoderLayer(D, H, hidden, dropout, **options)
        x = torch.randn(B, T, D, requires_grad=True)
        mask = torch.arange(T) < torch.randint(T // 2, T + 1, (B, 1))
        a, b = alternate(
            lambda: ours(x, mask)[0].sum().backward(),  # noqa: B023
            lambda: theirs(x, src_key_padding_mask=~mask).sum().backward(),  # noqa: B023
        )
        name = f"batch {B}, length {T}, d {D}, dropout {dropout:g}"
        figures[name] = {"ours_ms": 1e3 * a, "torchs_ms": 1e3 * b, "ratio": a / b}
    return figures


def run(data, epochs=3):
    """Tokens a second in training: the script's way, and the tutorial's, which pads every text to
    the longest; evaluation of the fold held out is in both."""
    script = load_script("transformer")
    args = script.parse_args(["--data", str(data), "--epochs", str(epochs)])
    train, _, classes = script.load_news(args)
    known, vectors = script.load_vectors("auto", set(train["tokens"].explode()))
    longest = torch.zeros(train["tokens"].str.len().max()).long()

    def ours():
        script.train_fold(args, train, 0, classes, known, vectors)

    def tutorial():
        script.pad_sequence = lambda texts, **way: pad_sequence([*texts, longest], **way)[:-1]
        ours()
        script.pad_sequence = pad_sequence

    a, b = alternate(ours, tutorial, rounds=3)
    tokens = epochs * train["tokens"][train["fold"] > 0].str.len().sum()
    return {"tokens_a_second": tokens / a, "tutorials": tokens / b, "ratio": b / a}


def digits(data):
    """Test figures, and seconds to 114.5 and 100 validation nats: ours, pytorch/examples' VAE's."""
    script = load_script("vae_mnist")

    class Rival(script.VAE):
        def __init__(self, latent_dim):
            nn.Module.__init__(self)
            self.features = nn.Identity()
            layers = nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 2 * latent_dim)
            self.encoder = nn.Sequential(*layers)
            self.decoder = nn.Sequential(nn.Linear(latent_dim, 400), nn.ReLU(), nn.Linear(400, 784))

        def sample_posterior(self, x, noise=True, features=None):
            mean, logvar = self.encoder(x.flatten(1)).chunk(2, 1)
            return self.reparameterize(mean, logvar) if noise else mean, mean, logvar

        def decode(self, z):
            return self.decoder(z).view(-1, 1, 28, 28)

    figures = {}
    for name, options in (("ours", ""), ("rivals", "--latent-dim 20 --epochs 60 --lr 1e-3")):
        with tempfile.TemporaryDirectory() as out:
            metrics = script.main([*options.split(), "--data", str(data), "--out", out])
        losses = np.array([[*point.values()][2:] for point in metrics["history"]]).sum(1)
        pace = metrics["train_seconds"] / len(losses)
        figures[name] = {k: x for k, x in metrics.items() if "nats" in k and isinstance(x, float)}
        for goal in (114.5, 100):
            epochs = 1 + int((losses > goal).sum())  # it falls nearly always
            figures[name][f"{goal:g}_after_s"] = epochs * pace if epochs <= len(losses) else None
        script.VAE, script.KL_WARM_UP = Rival, 1e-9
        script.training_input = lambda images, progress: images / 255
        script.learning_rate = lambda progress, peak: peak
    return figures


def faces(data, count=960):
    """Images a second in training, and the FLOP/s as a share of a matrix product's."""
    script = load_script("vae_anime")
    args = script.parse_args(["--data", str(data)])
    images = script.split(script.load_images(args))[0][: script.ROUNDS * count]
    model = script.new_model(args, images)
    adamw = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=1e-3, fused=True)
    matrix = torch.randn(2048, 2048)

    def ours():
        script.train_round(args, model, adamw, images, 0)

    a, b = alternate(ours, lambda: matrix @ matrix, rounds=5)
    with FlopCounterMode(display=False) as counter:
        ours()
    peak = 2 * 2048**3 / b
    return {"images_a_second": count / a, "share_of_peak": counter.get_total_flops() / a / peak}


def growth(data):
    """Seconds of one epoch and what follows, and the peak of memory, GiB, by size of DIR."""
    figures = {}
    for times in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            heading, *lines = (data / "train.csv").read_text(encoding="utf-8-sig").splitlines()
            rows = [f"{turn}{line}" for turn in range(1, times + 1) for line in lines]
            Path(folder, "train.csv").write_text("\n".join([heading, *rows]), encoding="utf-8")
            Path(folder, "test.csv").write_bytes((data / "test.csv").read_bytes())
            image = np.load(data / "TibetanMNIST.npz")["image"]
            np.savez(Path(folder, "TibetanMNIST.npz"), image=np.concatenate([image] * times))
            old = zipfile.ZipFile(data / "anime-faces.zip")
            with zipfile.ZipFile(Path(folder, "anime-faces.zip"), "w") as new:
                for turn, name in itertools.product(range(times), old.namelist()):
                    new.writestr(f"{turn}_{Path(name).name}", old.read(name))
            for script in sorted(ROOT.glob("0123456_*.py")):
                argv = [sys.executable, script, "--data", ".", "--epochs", "1"]
                began = time.perf_counter()
                process = Popen(argv, cwd=folder)
                _, status, usage = os.wait4(process.pid, 0)
                assert status == 0
                seconds = time.perf_counter() - began
                figures[f"{script.stem}, {times} times"] = [seconds, usage.ru_maxrss / 2**20]
    return figures


def main():
    parts = {"growth": growth, "encoder": encoder, "run": run, "digits": digits, "faces": faces}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the course's files")
    parser.add_argument("parts", nargs="*", help=f"which to measure (default: all of {[*parts]})")
    args = parser.parse_args()
    made_by = source()
    path = ROOT / "report" / "results" / "speed.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    for name in sorted(args.parts or parts, key=[*parts].index):  # a child inherits our peak memory
        figures[name] = parts[name](args.data) | made_by
        print(name, json.dumps(figures[name], indent=1))
        path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
