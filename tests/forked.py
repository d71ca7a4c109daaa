"""Runs a script's main in a process of its own that can be killed at any line of it, starved of disk, or watched."""

import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

# Forked from a server that has imported torch but computed nothing: a fresh process without seconds of start-up.
FORKS = multiprocessing.get_context("forkserver")
PRELOAD = "torch torch._dynamo torch.optim.swa_utils matplotlib.figure matplotlib.backends.backend_agg PIL.Image"
FORKS.set_forkserver_preload([*PRELOAD.split(), "nltk.tokenize", "tqdm", "pytest"])


def shorten(module):
    """Leave out of a script what takes long and is not tested here; save every epoch."""
    module.SAVE_EVERY = 0
    if hasattr(module, "importance_weighted_nll"):
        module.evaluate.__defaults__, module.REFINE_STEPS = (2, 10), 2
    if hasattr(module, "sliced_wasserstein"):
        module.sliced_wasserstein = lambda one, two: [0.0, 0.0, 0.0]


def watch(module, sights):
    """Look at a file at every call and return inside write_whole: note {its name: did it always hold old or new}."""
    write_whole = module.write_whole

    def watched(path, write):
        def contents():
            return Path(path).read_bytes() if os.path.exists(path) else None

        def look(frame, event, arg):
            there = os.path.exists(path) and os.stat(path)
            state = there and (there.st_ino, there.st_size, there.st_mtime_ns)
            if state not in states:  # has changed
                states.append(state)
                sights[name] = sights[name] and contents() in (before, new[0])

        def write_and_watch(buffer):
            write(buffer)
            new.append(buffer.getvalue())
            sys.setprofile(look)

        name, before, new, states = Path(path).name, contents(), [], []
        sights.setdefault(name, True)
        try:
            write_whole(path, write_and_watch)
        finally:
            sys.setprofile(None)

    module.write_whole = watched


def work(name, argv, folder, signum, moment, limit, report):
    """Become the script: at the moment (function, n), before the n-th line that runs in it, comes the signal."""
    from conftest import load

    os.chdir(folder)
    os.dup2(os.open(report + ".err", os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a parent in the background may have switched off
    module, lines, sights = load(name), Counter(), {}
    shorten(module)
    if not moment and not limit:
        watch(module, sights)

    def trace(frame, event, arg):
        if frame.f_code.co_filename == module.__file__:
            if event == "line":
                lines[frame.f_code.co_name] += 1
                if (frame.f_code.co_name, lines[frame.f_code.co_name]) == moment:
                    os.kill(os.getpid(), signum)
            return trace

    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.settrace(trace)
    module.run(lambda: module.main(argv))
    sys.settrace(None)
    Path(report).write_text(json.dumps(dict(lines=lines, sights=sights)))


def run_forked(name, argv, folder, signum=signal.SIGKILL, moment=None, limit=None):
    """(exit status, stderr, what it saw) of a script's main with `argv`, run in `folder`."""
    with tempfile.TemporaryDirectory() as reports:
        report = os.path.join(reports, "report")
        argv = [str(word) for word in argv]
        process = FORKS.Process(target=work, args=(name, argv, str(folder), signum, moment, limit, report))
        process.start()
        process.join()
        seen = json.loads(Path(report).read_text()) if os.path.exists(report) else {}
        return process.exitcode, Path(report + ".err").read_text(), seen
