"""How fast the scripts are, as ratios to what one would write instead, measured side by side.

    python benchmarks/speed.py --data DIR               everything, some 15 minutes on 2 cores
    python benchmarks/speed.py --data DIR encoder run   some of: encoder, run, digits, faces, start, growth

Prints every figure and keeps it in report/results/speed.json. Times of rivals alternate, and the ratio is that of the
medians, since machines are noisy.
"""

import argparse
import copy
import importlib.util
import io
import itertools
import json
import re
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
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "report"))
import experiments

SCRIPTS = ("transformer", "vae_mnist", "vae_anime")


def load(name):
    """A script, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"0123456_{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def alternate(*calls, rounds=15):
    """Median seconds of each call, one after the other, round by round; the first round warms up."""
    seconds = [[] for _ in calls]
    for turn in range(rounds + 1):
        for call, times in zip(calls, seconds, strict=True):
            started = time.perf_counter()
            call()
            if turn:
                times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]


# ------------------------------------------------------------------------------------------------------------- encoder


def encoder(data):
    """A training step of our encoder layer and of nn.TransformerEncoderLayer, of equal size, batch and mask.

    With dropout, which torch's has in two more places, and without, where torch's attention never holds a T x T matrix.
    """
    script, figures = load("transformer"), {}
    for (B, T, D, H, hidden), dropout in itertools.product(((64, 48, 128, 4, 256), (32, 256, 256, 8, 512)), (0.1, 0.0)):
        ours = script.EncoderLayer(D, H, hidden, dropout)
        theirs = nn.TransformerEncoderLayer(D, H, hidden, dropout, "gelu", batch_first=True, norm_first=True)
        x = torch.randn(B, T, D, requires_grad=True)
        mask = torch.arange(T) < torch.randint(T // 2, T + 1, (B, 1))
        a, b = alternate(
            lambda: ours(x, mask)[0].sum().backward(),  # noqa: B023
            lambda: theirs(x, src_key_padding_mask=~mask).sum().backward(),  # noqa: B023
        )
        name = f"batch {B}, length {T}, d {D}, dropout {dropout:g}"
        figures[name] = dict(ours_ms=1e3 * a, torchs_ms=1e3 * b, ratio=a / b)
    return figures


# ----------------------------------------------------------------------------------------------------------- whole run


def run(data):
    """Real tokens a second in training: the script's way, and the tutorial's: every text padded to the longest, batches
    in random order, Adam. One fold, the same model, two epochs."""
    script = load("transformer")
    args = script.parse_args(["--data", str(data), "--epochs", "20"])
    train, _, classes = script.load_news(args)
    known, vectors = script.load_vectors("auto", {word for words in train["tokens"] for word in words})
    vocabulary = script.build_vocabulary(train["tokens"], args.min_count, known)
    texts, labels = script.encode(train["tokens"], vocabulary), torch.tensor(train["target"].tolist())
    models = [script.TransformerClassifier(args, vocabulary, len(classes), vectors) for _ in range(2)]
    adamw = torch.optim.AdamW(models[0].parameters(), args.lr)
    scheduler = torch.optim.lr_scheduler.ConstantLR(adamw, 1.0)
    adam = torch.optim.Adam(models[1].parameters(), args.lr)
    loader = DataLoader(TensorDataset(script.pad(texts), labels), batch_size=args.batch_size, shuffle=True)

    def tutorial():
        models[1].train()
        for batch, target in loader:
            adam.zero_grad()
            left_out = torch.rand(batch.shape) < args.word_dropout
            logits = models[1](batch.masked_fill(left_out, 0))
            F.cross_entropy(logits, target, label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(models[1].parameters(), 1.0)
            adam.step()

    a, b = alternate(lambda: script.train_epoch(models[0], adamw, scheduler, texts, labels, args), tutorial, rounds=3)
    real = sum(map(len, texts))
    return dict(ours_tokens_a_second=real / a, tutorials_tokens_a_second=real / b, ratio=b / a)


# -------------------------------------------------------------------------------------------------------------- digits


def digits(data, rival_epochs=200, our_epochs=30):
    """Seconds of training until -ELBO on validation images is so many nats: ours, and pytorch/examples' VAE.

    Ours follows the schedule of a whole run, of which these are the first epochs.
    """
    script = load("vae_mnist")
    args = script.parse_args(["--data", str(data)])
    images, validation, _ = script.split(script.load_images(args))

    def curve(step, model, epochs):
        """(seconds of training, -ELBO) after each epoch, until it is 100 nats."""
        spent, points = 0.0, []
        for epoch in range(epochs):
            started = time.perf_counter()
            step(epoch)
            spent += time.perf_counter() - started
            reconstruction, kl, _, _ = script.infer(model, validation)
            points.append((spent, (reconstruction.mean() + kl.sum(1).mean()).item()))
            if points[-1][1] <= 100:
                break
        return points

    torch.manual_seed(0)
    mlp = experiments.rival_vae(script)
    adam = torch.optim.Adam(mlp.parameters(), 1e-3)
    loader = DataLoader(TensorDataset(script.to_float(images)), batch_size=128, shuffle=True)

    def mlp_epoch(epoch):
        mlp.train()
        for (x,) in loader:
            reconstruction, kl = script.elbo_terms(mlp, x)
            adam.zero_grad()
            (reconstruction + kl.sum(1)).mean().backward()
            adam.step()

    model = script.new_model(args, images)
    adamw = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=1e-3, fused=True)

    def our_epoch(epoch):
        script.train_round(args, model, adamw, images, epoch)

    theirs, ours = curve(mlp_epoch, mlp, rival_epochs), curve(our_epoch, model, our_epochs)
    best = min(loss for _, loss in theirs)

    def seconds(points, goal):
        return next((spent for spent, loss in points if loss <= goal), None)

    figures = dict(rivals_best_nats=best)
    for name, goal in (("rivals_best", best), ("114.5_nats", 114.5), ("100_nats", 100.0)):
        figures[f"seconds_to_{name}"] = seconds(ours, goal)
        figures[f"rivals_seconds_to_{name}"] = seconds(theirs, goal)
    return figures | dict(curve=ours, rivals_curve=theirs)


# --------------------------------------------------------------------------------------------------------------- faces


class Faces(Dataset):
    """The common recipe: every image decoded by Pillow whenever it is asked for."""

    def __init__(self, path):
        self.archive = zipfile.ZipFile(path)
        self.names = [name for name in self.archive.namelist() if name.endswith((".jpg", ".png"))]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        image = Image.open(io.BytesIO(self.archive.read(self.names[i]))).convert("RGB").resize((64, 64))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def peak(dtype, n=2048):
    """This machine's FLOP/s in a product of two matrices: small ones in bf16, which is slow where it is emulated."""
    n = n if dtype == torch.float32 else 256
    a, b = torch.randn(2, n, n).to(dtype)
    return 2 * n**3 / alternate(lambda: a @ b, rounds=3)[0]


def faces(data, count=960):
    """Images a second in training, ours and the common recipe with the same network (DataLoader over decoded images,
    batches of 64, contiguous memory, Adam); our FLOP/s against this machine's; seconds until the first step."""
    script, started = load("vae_anime"), time.perf_counter()
    args = script.parse_args(["--data", str(data)])
    images = script.load_images(args)
    decoded_after = time.perf_counter() - started
    images = script.split(images)[0]
    model = script.new_model(args, images)
    ready_after = time.perf_counter() - started
    other = copy.deepcopy(model)
    adamw = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=1e-3, fused=True)
    adam = torch.optim.Adam(other.parameters(), 1e-3)
    path = Path(data) / script.FILE
    loader = DataLoader(Subset(Faces(path), range(count)), batch_size=64, shuffle=True)

    def recipe():
        other.train()
        for x in loader:
            reconstruction, kl = script.elbo_terms(other, x)
            adam.zero_grad()
            (reconstruction + kl.sum(1)).mean().backward()
            adam.step()

    def ours():
        for turn in range(script.ROUNDS):
            script.train_round(args, model, adamw, images[:count], turn)

    a, b = alternate(ours, recipe, rounds=2)
    with FlopCounterMode(display=False) as counter:
        script.train_round(args, model, adamw, images[: args.batch_size * script.ROUNDS], 0)
    gflops = counter.get_total_flops() * count / args.batch_size / a / 1e9
    with torch.profiler.profile() as profile:
        script.train_round(args, model, adamw, images[: 8 * args.batch_size * script.ROUNDS], 0)
    spent = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    products = sum(time for name, time in spent.items() if re.search(r"convolution|mm$|mkldnn", name))
    figures = dict(ours_images_a_second=count / a, recipes_images_a_second=count / b, ratio=b / a)
    figures |= dict(seconds_to_decode=decoded_after, seconds_to_first_step=ready_after, gflops=gflops)
    figures |= dict(share_in_products=products / sum(spent.values()))  # of matrices, and convolutions
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        figures[f"peak_gflops_{name}"] = peak(dtype) / 1e9
        figures[f"share_of_peak_{name}"] = gflops / figures[f"peak_gflops_{name}"]
    return figures


# ---------------------------------------------------------------------------------------------------- start-up, growth

CHILD = """import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"""


def wall(*argv):
    """(seconds, peak memory in GB) of a script run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [sys.executable, "-c", CHILD, *map(str, argv)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return time.perf_counter() - started, int(done.stderr.split()[-1]) / 2**20


def start(data):
    """Seconds of --help, of --dry-run on the sample, and of `import torch` alone."""
    figures = {}
    for name in SCRIPTS:
        script, sample = ROOT / f"0123456_{name}.py", ROOT / "data" / "sample"
        figures[name] = dict(
            help_seconds=statistics.median(wall(script, "--help")[0] for _ in range(5)),
            dry_run_seconds=wall(script, "--dry-run", "--data", sample, "--out", "out")[0],
        )
    imports = [sys.executable, "-c", "import torch"]
    figures["import_torch_seconds"] = alternate(lambda: subprocess.run(imports, check=True), rounds=5)[0]
    return figures


def growth(data):
    """Seconds and peak memory of one epoch and all that follows: on 1, 2 and 4 times the sample, and on DIR's files."""
    figures = {name: {} for name in SCRIPTS}
    with tempfile.TemporaryDirectory() as folder:
        places = {"course": Path(data).resolve()}
        for times in (1, 2, 4):
            places[f"{times} times"] = Path(folder) / str(times)
            enlarge(ROOT / "data" / "sample", places[f"{times} times"], times)
        for place, name in itertools.product(places, SCRIPTS):
            argv = ["--data", places[place], "--out", "out", "--epochs", 1]
            seconds, memory = wall(ROOT / f"0123456_{name}.py", *argv)
            figures[name][place] = dict(seconds=seconds, gigabytes=memory)
    return figures


def enlarge(sample, folder, times):
    """The sample's files, repeated so many times, in another folder."""
    folder.mkdir()
    heading, *lines = (sample / "train.csv").read_text(encoding="utf-8-sig").splitlines()
    rows = [f"{turn}{line}" for turn in range(1, times + 1) for line in lines]
    (folder / "train.csv").write_text("\n".join([heading, *rows]), encoding="utf-8")
    (folder / "test.csv").write_bytes((sample / "test.csv").read_bytes())
    with np.load(sample / "TibetanMNIST.npz") as arrays:
        np.savez(folder / "TibetanMNIST.npz", image=np.concatenate([arrays["image"]] * times))
    with zipfile.ZipFile(sample / "anime-faces.zip") as old, zipfile.ZipFile(folder / "anime-faces.zip", "w") as new:
        for turn in range(times):
            for name in old.namelist():
                new.writestr(f"{turn}/{name}", old.read(name))


def main():
    parts = dict(encoder=encoder, run=run, digits=digits, faces=faces, start=start, growth=growth)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the course's real files")
    parser.add_argument("parts", nargs="*", help="which to measure (default: all)")
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
