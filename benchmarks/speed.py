"""How fast the scripts are, as ratios to what one would write instead, measured side by side.

    python benchmarks/speed.py --data DIR               everything, about an hour on 2 cores
    python benchmarks/speed.py --data DIR encoder run   some of: encoder, run, digits, faces, growth

Prints every figure and keeps it in report/results/speed.json. Rivals take turns, and a ratio is
that of the medians, since machines are noisy.
"""

import argparse
import copy
import io
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "report"))
from experiments import load_script


def alternate(*calls, rounds=15):
    """Median seconds of each call, in turn, round by round; the first round warms up."""
    seconds = [[] for _ in calls]
    for turn in range(rounds + 1):
        for call, times in zip(calls, seconds, strict=True):
            started = time.perf_counter()
            call()
            if turn:
                times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]


def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def encoder(data):
    """A training step of our encoder layer and of nn.TransformerEncoderLayer, of equal size, batch
    and mask: with dropout, which torch's has in two more places, and without, where torch's
    attention never holds a T x T matrix."""
    script = load_script("transformer")
    figures = {}
    sizes = ((64, 48, 128, 4, 256), (32, 256, 256, 8, 512))
    for (B, T, D, H, hidden), dropout in itertools.product(sizes, (0.1, 0.0)):
        ours = script.EncoderLayer(D, H, hidden, dropout)
        options = {"activation": "gelu", "batch_first": True, "norm_first": True}
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


def run(data):
    """Real tokens a second in training: the script's way, and the tutorial's: every text padded to
    the longest, batches in random order, Adam. The same model."""
    script = load_script("transformer")
    args = script.parse_args(["--data", str(data)])
    train, _, classes = script.load_news(args)
    known, vectors = script.load_vectors("auto", set(train["tokens"].explode()))
    vocabulary = script.build_vocabulary(train["tokens"], args.min_count, known)
    texts = script.encode(train["tokens"], vocabulary)
    labels = torch.tensor(train["target"].tolist())
    models = [script.TransformerClassifier(args, vocabulary, len(classes), vectors) for _ in "ab"]
    adamw = torch.optim.AdamW(models[0].parameters(), args.lr)
    scheduler = torch.optim.lr_scheduler.ConstantLR(adamw, 1.0)
    adam = torch.optim.Adam(models[1].parameters(), args.lr)
    padded = pad_sequence(texts, batch_first=True)

    def tutorial():
        models[1].train()
        for rows in torch.randperm(len(padded)).split(args.batch_size):
            kept = padded[rows].masked_fill(torch.rand(padded[rows].shape) < args.word_dropout, 0)
            step(adam, F.cross_entropy(models[1](kept), labels[rows], label_smoothing=0.1))

    def ours():
        script.train_epoch(models[0], adamw, scheduler, texts, labels, args)

    a, b = alternate(ours, tutorial, rounds=3)
    real = sum(map(len, texts))
    return {"ours_tokens_a_second": real / a, "tutorials": real / b, "ratio": b / a}


def digits(data, epochs=60):
    """Seconds of training until -ELBO on validation images is 114.5 and 100 nats: ours, which are
    the first epochs of a whole run, and pytorch/examples' VAE, 784-400-20, Adam 1e-3."""
    script = load_script("vae_mnist")
    args = script.parse_args(["--data", str(data)])
    images, validation, _ = script.split(script.load_images(args))

    class Rival(script.VAE):
        def __init__(self):
            nn.Module.__init__(self)
            layers = nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40)
            self.encoder = nn.Sequential(*layers)
            self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

        def sample_posterior(self, x):
            mean, logvar = self.encoder(x).chunk(2, 1)
            return self.reparameterize(mean, logvar), mean, logvar

        def decode(self, z):
            return self.decoder(z).view(-1, 1, 28, 28)

    rival, model = Rival(), script.new_model(args, images)
    adam = torch.optim.Adam(rival.parameters(), 1e-3)
    adamw = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=1e-3, fused=True)

    def rival_epoch(epoch):
        for rows in torch.randperm(len(images)).split(128):
            reconstruction, kl = script.elbo_terms(rival, script.to_float(images[rows]))
            step(adam, (reconstruction + kl.sum(1)).mean())

    def our_epoch(epoch):
        script.train_round(args, model, adamw, images, epoch)

    figures = {}
    for name, train, trained in (("ours", our_epoch, model), ("rival", rival_epoch, rival)):
        spent, best = 0.0, float("inf")
        for epoch in range(args.epochs if name == "ours" else epochs):
            started = time.perf_counter()
            train(epoch)
            spent += time.perf_counter() - started
            reconstruction, kl, _, _ = script.infer(trained, validation)
            best = min(best, (reconstruction.mean() + kl.sum(1).mean()).item())
            for goal in (114.5, 100):
                if best <= goal:
                    figures.setdefault(f"{name}_seconds_to_{goal:g}_nats", spent)
        figures[f"{name}_best_nats"] = best
    return figures


def faces(data, count=960):
    """Images a second in training, ours and the common recipe with the same network: each image
    decoded by Pillow whenever it is asked for, Adam; our FLOP/s against a matrix product's."""
    script = load_script("vae_anime")
    args = script.parse_args(["--data", str(data)])
    images = script.split(script.load_images(args))[0]
    model = script.new_model(args, images)
    other = copy.deepcopy(model)
    adamw = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=1e-3, fused=True)
    adam = torch.optim.Adam(other.parameters(), 1e-3)
    archive = zipfile.ZipFile(Path(data) / script.FILE)
    names = [name for name in archive.namelist() if name.endswith((".jpg", ".png"))][:count]

    def recipe():
        for rows in torch.randperm(len(names)).split(64):
            pictures = [Image.open(io.BytesIO(archive.read(names[row]))) for row in rows]
            x = np.stack([picture.convert("RGB").resize((64, 64)) for picture in pictures])
            x = torch.from_numpy(x).permute(0, 3, 1, 2) / 255
            reconstruction, kl = script.elbo_terms(other, x)
            step(adam, (reconstruction + kl.sum(1)).mean())

    def ours():
        for done in range(script.ROUNDS):
            script.train_round(args, model, adamw, images[:count], done)

    a, b = alternate(ours, recipe, rounds=2)
    with FlopCounterMode(display=False) as counter:
        ours()
    matrix = torch.randn(2048, 2048)
    peak = 2 * 2048**3 / alternate(lambda: matrix @ matrix, rounds=5)[0]
    share = counter.get_total_flops() / a / peak
    return {"ours_images_a_second": count / a, "ratio": b / a, "share_of_peak": share}


def growth(data):
    """Seconds of one epoch and all that follows, on DIR's files 1, 2 and 4 times over; GiB of
    memory at the peak of all that ran so far."""
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
                    new.writestr(f"{turn}/{name}", old.read(name))
            for script in sorted(ROOT.glob("0123456_*.py")):
                argv = ["--data", folder, "--out", f"{folder}/out", "--epochs", "1"]
                started = time.perf_counter()
                subprocess.run([sys.executable, script, *argv], check=True, capture_output=True)
                seconds = time.perf_counter() - started
                memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
                figures[f"{script.stem}, {times} times"] = [seconds, memory]
    return figures


def main():
    parts = {"encoder": encoder, "run": run, "digits": digits, "faces": faces, "growth": growth}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the course's files")
    parser.add_argument("parts", nargs="*", help=f"which to measure (default: all of {[*parts]})")
    args = parser.parse_args()
    path = ROOT / "report" / "results" / "speed.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    for name in args.parts or parts:
        torch.manual_seed(0)
        figures[name] = parts[name](args.data)
        print(name, json.dumps(figures[name], indent=1))
        path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
