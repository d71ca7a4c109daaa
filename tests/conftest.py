"""Loads the scripts, whose names no import statement can take, and runs them as a person does."""

import contextlib
import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "sample"


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"0123456_{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def transformer():
    return load("transformer")


@pytest.fixture(scope="session")
def vae_mnist():
    return load("vae_mnist")


@pytest.fixture(scope="session")
def vae_anime():
    return load("vae_anime")


def run_script(script, *argv, cwd):
    """Run a script with the given arguments; returns the finished process, its output as text."""
    command = [sys.executable, str(script), *map(str, argv)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def error_line(module, *argv):
    """Run a script's main as its command line does; returns the one line of its error, whose exit status is 2."""
    stderr = io.StringIO()
    with pytest.raises(SystemExit) as stopped, contextlib.redirect_stderr(stderr):
        words = [str(word) for word in argv]
        module.run(lambda: module.main(words)) if hasattr(module, "run") else module.main(words)
    return one_line_error(stopped.value.code, stderr.getvalue())


def one_line_error(status, stderr):
    """The line `error: WHAT at WHERE: WHAT TO DO`, after checking that it is all there is but for notices."""
    lines = [line for line in stderr.strip().splitlines() if not line.startswith("notice:")]
    assert status == 2 and len(lines) == 1, stderr
    assert re.fullmatch(r"error: .+ at .+: .+", lines[0]), lines[0]
    return lines[0]
