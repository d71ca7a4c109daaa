"""How fast the scripts are, as ratios to what one would run instead, measured side by side.

    python benchmarks/speed.py --data DIR               everything, over an hour on 2 cores
    python benchmarks/speed.py --data DIR encoder vae_mnist --pairs 1         some of it, once

Prints every figure and keeps it in report/results/speed.json. Ratios are of medians of rivals in
turn. A script's default run is paired with that of commit 827a2df, from the history, both by
--python, for users have requirements.txt alone (nltk imports scikit-learn where there is one). With
ONEDNN_MAX_CPU_ISA=AVX2 set, as on processors without 16-bit products, it is kept beside that.
"""

import argparse
import cProfile
import functools
import itertools
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "report"))
from experiments import load_script, source

FORMER = "827a2df"
NAMES = ("vae_mnist", "transformer", "vae_anime")


def encoder(data, pairs, rounds=40):
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
        seconds = np.zeros((rounds + 1, 2))
        for turn in range(rounds + 1):  # the first warms up
            started = time.perf_counter()
            ours(x, mask)[0].sum().backward()
            seconds[turn, 0] = time.perf_counter() - started
            started = time.perf_counter()
            theirs(x, src_key_padding_mask=~mask).sum().backward()
            seconds[turn, 1] = time.perf_counter() - started
        a, b = np.median(seconds[1:], 0).tolist()
        name = f"batch {B}, length {T}, d {D}, dropout {dropout:g}"
        figures[name] = {"ours_ms": 1e3 * a, "torchs_ms": 1e3 * b, "ratio": a / b}
    return figures


def start(script, data, folder, options="", **environment):
    """A process of a script, its outputs in a folder."""
    argv = [sys.executable, script, "--data", data, "--out", folder, *options.split()]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    inherited = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}  # a script set it
    return subprocess.Popen(argv, cwd=folder, env=inherited | environment, **quiet)


def wait(process):
    """The peak of memory of a process, GiB, when it has ended well."""
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_maxrss / 2**20


def timed(*processes_of):
    """Seconds, and peaks of memory, of processes that are started together."""
    started = time.perf_counter()
    processes = [begin() for begin in processes_of]
    peaks = [wait(process) for process in processes]
    return time.perf_counter() - started, max(peaks)


def run(name, data, pairs):
    """Seconds and memory of a default run, paired with that of the former script."""
    turns = {"ours": [], "former": []}
    with tempfile.TemporaryDirectory() as folder:
        former = Path(folder, "former")
        subprocess.run(["git", "worktree", "add", "-f", former, FORMER], cwd=ROOT, check=True)
        places = {"ours": ROOT, "former": former}
        for _, who in itertools.product(range(pairs), places):
            out = tempfile.mkdtemp(dir=folder)
            script = places[who] / f"0123456_{name}.py"
            turns[who].append(timed(lambda: start(script, data, out)))  # noqa: B023
        subprocess.run(["git", "worktree", "remove", "--force", former], cwd=ROOT, check=True)
    ours, theirs = (np.median(turn, 0).tolist() for turn in turns.values())
    return {
        "pairs": pairs,
        "seconds": ours[0],
        "former_seconds": theirs[0],
        "ratio": ours[0] / theirs[0],
        "memory_gib": ours[1],
        "former_memory_gib": theirs[1],
    }


def sweep(data, pairs):
    """Three lambda of the digits, one epoch and all that follows: one after another; at once, as
    they are and with a thread each; and one alone, whose threads wait as torch's do by default."""
    single = {"OMP_NUM_THREADS": "1"}
    torchs = {"GOMP_SPINCOUNT": "300000"}  # of libgomp, where nothing is set
    seconds = {way: [] for way in ("one_after_another", "at_once", "at_once_one_thread_each")}
    seconds |= {"alone": [], "alone_waiting_as_torch": []}
    script = ROOT / "0123456_vae_mnist.py"
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as folder:

            def begin(weight, **environment):
                options = f"--epochs 1 --kl-weight {weight}"
                out = f"{folder}/{weight}"
                return lambda: start(script, data, out, options, **environment)

            for weight in (0, 1, 100):
                Path(folder, str(weight)).mkdir()
            each = [timed(begin(weight))[0] for weight in (0, 1, 100)]
            seconds["one_after_another"].append(sum(each))
            seconds["alone"].append(each[1])
            seconds["alone_waiting_as_torch"].append(timed(begin(1, **torchs))[0])
            seconds["at_once"].append(timed(*map(begin, (0, 1, 100)))[0])
            with_one = [begin(weight, **single) for weight in (0, 1, 100)]
            seconds["at_once_one_thread_each"].append(timed(*with_one)[0])
    return {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}


def shares(data, pairs):
    """Of a default run, the share of seconds in each function of the script that main calls."""
    figures = {}
    for name in NAMES:
        script = load_script(name)
        profile = cProfile.Profile()
        with tempfile.TemporaryDirectory() as folder:
            options = ["--data", str(data), "--out", folder]
            if name == "transformer":
                options += ["--submission", f"{folder}/submission.csv"]
            profile.runcall(script.main, options)
        stats = pstats.Stats(profile).stats
        total = max(row[3] for row in stats.values())
        called = {key[2]: row[3] for key, row in stats.items() if script.__file__ == key[0]}
        figures[name] = {key: value / total for key, value in called.items() if value > total / 100}
    return figures


def main():
    parts = {"encoder": encoder, "sweep": sweep, "shares": shares}
    parts |= {name: functools.partial(run, name) for name in NAMES}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the course's files")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each rival")
    parser.add_argument("--python", default=sys.executable, help="which runs the scripts")
    parser.add_argument("parts", nargs="*", help=f"which to measure (default: all of {[*parts]})")
    args = parser.parse_args()
    data = args.data.resolve()
    sys.executable = args.python  # which `start` starts
    made_by = source()
    path = ROOT / "report" / "results" / "speed.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    for name in args.parts or parts:
        key = " ".join([name, os.environ.get("ONEDNN_MAX_CPU_ISA", "")]).strip()
        figures[key] = parts[name](data, args.pairs) | made_by
        print(key, json.dumps(figures[key], indent=1), flush=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
