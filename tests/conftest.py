"""Loads the scripts, whose names no import statement can take."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "sample"
sys.path.insert(0, str(ROOT))


def load(name):
    return importlib.import_module(f"0123456_{name}")


def error_of(call, *args):
    """The one line that a call ends the script with."""
    with pytest.raises(SystemExit) as stopped:
        call(*args)
    line = str(stopped.value.code)
    assert line.startswith("error: ") and len(line.splitlines()) == 1, line
    return line
