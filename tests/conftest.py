"""Loads the scripts, whose names no import statement can take, and runs them as a person does."""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "sample"
EXAMPLES = int(os.environ.get("FUZZ", 200))
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[*HealthCheck])


@functools.cache
def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"0123456_{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run_script(script, *argv, cwd):
    """Run a script with the given arguments; the finished process, its output as text."""
    command = [sys.executable, str(script), *map(str, argv)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900)


def error_of(capsys, call, *args, **kwargs):
    """The one line on stderr, notices and bars aside, of a call that ends with status 2."""
    with pytest.raises(SystemExit) as stopped:
        call(*args, **kwargs)
    lines = [line for line in capsys.readouterr().err.splitlines() if line[:7] != "notice:"]
    lines = [line for line in lines if "%|" not in line]
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]
