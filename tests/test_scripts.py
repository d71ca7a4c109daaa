"""The three scripts from outside: alike where they do the same, run as people run them."""

import ast
import io
import json
import re
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT, SAMPLE, error_of, load

SCRIPTS = sorted(ROOT.glob("0123456_*.py"))
ALLOWED = {"torch", "numpy", "pandas", "nltk", "matplotlib", "PIL", "tqdm"}
SECTIONS = ["arguments", "helpers", "data", "model", "loss and training", "evaluation", "figures"]
CEILINGS = {"transformer": 600, "vae_mnist": 490, "vae_anime": 518}  # the aim: 430, 400, 400
TINY = {"transformer": "--d-model 8 --nhead 2 --d-hid 8 --folds 2 --embeddings none"}
TINY |= dict.fromkeys(["vae_mnist", "vae_anime"], "--latent-dim 4")

each = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)


def kind(path):
    return path.stem.removeprefix("0123456_")


def shell(path, options, folder, before="", after=""):
    command = f"{before} {sys.executable} {path} {TINY[kind(path)]} {options} {after}"
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)


def common(source):
    source = source[source.index('"""\n\nimport') :]  # without docstring, constants, own sections
    own = source.index("- data\n"), source.index("- loss and training\n")
    lines = (source[: own[0]] + source[own[1] :]).splitlines()
    return [line for line in lines if not re.match(r"[A-Z_]+ = |from (PIL|torch.distr)", line)]


def test_the_autoencoders_are_one_program():
    one, two = (common(path.read_text()) for path in SCRIPTS[1:])
    assert one == two and len(one) > 300


@each
def test_sections_length_and_what_is_allowed(path):
    source = path.read_text()
    lines = source.splitlines()
    banners = [line.lstrip("# -") for line in lines if line.startswith("# ----")]
    assert banners == [*SECTIONS, "main"]
    assert len(lines) <= CEILINGS[kind(path)] and max(map(len, lines)) <= 100
    imported, used = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
        elif isinstance(node, ast.Attribute):
            used.add(node.attr)
    assert imported <= ALLOWED | set(sys.stdlib_module_names)
    assert not {name for name in used if name.startswith("Transformer")}
    assert not used & {"MultiheadAttention", "scaled_dot_product_attention"}


@each
def test_help_and_one_line_that_says_what_is_wrong(path, capsys):
    module = load(kind(path))
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0 and "(default: 0)" in capsys.readouterr().out
    wrong = "--lr nan, --epochs 0, --batch-size 2.5, --device none, --data nowhere"
    for option, value in map(str.split, wrong.split(", ")):
        with pytest.raises(SystemExit) as stopped:
            module.main(["--data", str(SAMPLE), option, value])
        last = capsys.readouterr().err.splitlines()[-1]
        assert stopped.value.code == 2 and "error: " in last and option in last, last


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Dry runs in a notebook's backend, a narrow encoding, a user's settings of plots."""
    made = {}
    for path in SCRIPTS:
        folder = tmp_path_factory.mktemp(kind(path))
        (folder / "matplotlibrc").write_text("savefig.format: pdf\n")
        (folder / "結果").mkdir()
        (folder / "結果" / "metrics.json").write_text("mine")
        notebook = "MPLBACKEND=module://matplotlib_inline.backend_inline PYTHONIOENCODING=cp1252"
        made[path] = folder, shell(path, "--dry-run --out 結果", folder, notebook)
    return made


@each
def test_a_dry_run_touches_no_results(trials, path):
    folder, process = trials[path]
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    assert "made data" in process.stderr
    assert (folder / "結果" / "metrics.json").read_text() == "mine"
    assert {"model.pt", "checkpoint.pt"} <= {file.name for file in folder.rglob("*.pt")}
    json.loads((folder / "結果" / "dry_run" / "metrics.json").read_text())
    for picture in folder.rglob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


@each
def test_telling_costs_no_work(path, tmp_path):
    process = shell(path, f"--data {SAMPLE} --dry-run", tmp_path, after="2>&- >/dev/full")
    assert process.returncode == 0
    (metrics,) = tmp_path.rglob("metrics.json")
    assert metrics.is_relative_to(tmp_path / "results" / "dry_run")


@each
def test_a_copy_alone_needs_data_and_says_so(path, tmp_path):
    (tmp_path / "a.py").write_bytes(path.read_bytes())
    process = subprocess.run([sys.executable, "a.py"], cwd=tmp_path, capture_output=True, text=True)
    last = process.stderr.splitlines()[-1]
    assert process.returncode == 2 and last.startswith("error: no ") and "--data" in last


@each
def test_a_full_disk_keeps_what_was_there(path, tmp_path):
    (tmp_path / "dry_run").mkdir()
    (tmp_path / "dry_run" / "checkpoint.pt").write_text("mine")
    process = shell(path, f"--data {SAMPLE} --dry-run --out .", tmp_path, "ulimit -f 8;")
    assert process.returncode == 2 and "cannot write" in process.stderr, process.stderr
    assert "(File too large)" in process.stderr and "Traceback" not in process.stderr
    assert [file.name for file in tmp_path.rglob("*.*")] == ["checkpoint.pt"]
    assert (tmp_path / "dry_run" / "checkpoint.pt").read_text() == "mine"


@each
def test_ctrl_c_is_one_line(path, tmp_path):
    for wait in (1, 7):  # while torch is being imported, too
        command = [sys.executable, str(path), "--data", str(SAMPLE), "--epochs", "999"]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
        last = stderr.strip().splitlines()[-1]
        assert process.returncode == 130 and last.startswith("stopped: "), stderr
        assert "Traceback" not in stderr


@each
def test_damaged_files_are_refused(trials, path, tmp_path, capsys):
    module = load(kind(path))
    whole = (trials[path][0] / "結果" / "dry_run" / "model.pt").read_bytes()
    members = zipfile.ZipFile(io.BytesIO(whole)).infolist()
    flipped = bytearray(whole)  # a bit of some weight: torch itself does not notice
    flipped[max(members, key=lambda member: member.file_size).header_offset + 200] ^= 1
    faults = [b"", whole[:-99], bytes(flipped)]
    for other in ({"a": 1}, {kind(path): print}):  # foreign; code
        buffer = io.BytesIO()
        torch.save(other, buffer)
        faults.append(buffer.getvalue())
    file = tmp_path / "checkpoint.pt"
    for fault in faults:
        file.write_bytes(fault)
        line = error_of(capsys, module.load_checkpoint, file)
        assert "checkpoint.pt" in line
    assert "Weights only load failed" in line  # the last one's code is not run
    assert str(tmp_path) in error_of(capsys, module.load_checkpoint, tmp_path)
    file.write_bytes(whole)
    module.load_checkpoint(file)


@pytest.mark.parametrize("path", SCRIPTS[1:], ids=lambda path: path.name)
def test_killed_and_resumed_is_the_run_left_alone(path, tmp_path):
    """Whatever was being done; two runs with one --out at the end."""
    options = f"--data {SAMPLE} --epochs 4 --batch-size 64 --out"
    assert shell(path, f"{options} alone", tmp_path).returncode == 0
    for seconds in (4, 7):
        shell(path, f"{options} cut --resume", tmp_path, before=f"timeout -s KILL {seconds}")
        for file in (tmp_path / "cut").glob("*.pt"):
            torch.load(file, weights_only=True)  # whole
    with ThreadPoolExecutor() as pool:
        runs = pool.map(lambda _: shell(path, f"{options} cut --resume", tmp_path), "ab")
        assert [run.returncode for run in runs] == [0, 0]
    paths = tmp_path / "alone" / "model.pt", tmp_path / "cut" / "model.pt"
    (one,), (two,) = (torch.load(path, weights_only=True).values() for path in paths)
    assert one["history"] == two["history"]
    for name, weight in one["weights"].items():
        assert torch.equal(weight, two["weights"][name]), name


def test_sample_is_what_its_maker_makes(tmp_path):
    (tmp_path / "make_sample.py").write_bytes((ROOT / "data" / "make_sample.py").read_bytes())
    subprocess.run([sys.executable, "make_sample.py"], cwd=tmp_path, check=True)
    made = {path.name: path.read_bytes() for path in (tmp_path / "sample").iterdir()}
    assert made == {path.name: path.read_bytes() for path in SAMPLE.iterdir()}
