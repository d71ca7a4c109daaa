"""Loads the scripts, whose names no import statement can take."""

import functools
import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "sample"
FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[*HealthCheck])


@functools.cache
def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"0123456_{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def error_of(capsys, call, *args, **kwargs):
    """The one line on stderr, notices and bars aside, of a call that ends with status 2."""
    with pytest.raises(SystemExit) as stopped:
        call(*args, **kwargs)
    lines = [line for line in capsys.readouterr().err.splitlines() if line[:7] != "notice:"]
    lines = [line for line in lines if "%|" not in line]
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def spoil(draw, whole):
    """The bytes of a file with some changed, taken out or put in; draw: of st.data()."""
    spoilt = bytearray(whole)
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(spoilt)))
        stop = start + draw(st.sampled_from([0, 1, 16, 256, 10**6]))
        spoilt[start:stop] = draw(st.binary(max_size=8) | st.sampled_from([b'"', b",", b"\n"]))
    return bytes(spoilt)
