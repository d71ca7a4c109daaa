"""The three scripts from outside: alike where they do the same, run as people run them."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, SAMPLE, load
from PIL import Image, ImageOps

SCRIPTS = sorted(ROOT.glob("0123456_*.py"))
ALLOWED = {"torch", "numpy", "pandas", "nltk", "matplotlib", "PIL", "tqdm"}
SECTIONS = ["arguments", "data", "model", "loss and training", "evaluation", "figures", "main"]
WRONG = "--lr nan, --lr -1, --epochs 0, --batch-size 2.5, --device none"
OWN = {"transformer": ", --seed -1, --dropout 1.5, --word-dropout nan, --folds 1, --nhead 3"}
OWN.update(dict.fromkeys(["vae_mnist", "vae_anime"], ", --kl-weight -1, --latent-dim 0"))

each = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)


def shell(path, options, folder, before=""):
    command = f"{before} {sys.executable} {path} --data {SAMPLE} {options}"
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)


def last_line(process, start):
    """What stands on stderr below the notices: one line, without a traceback."""
    last = process.stderr.splitlines()[-1]
    assert process.returncode and last.startswith(start), process.stderr
    assert "Traceback" not in process.stderr and process.stderr.count(start) == 1
    return last


def sections(path):
    """{title: lines} of a script; those above the first banner have the title ''."""
    parts = re.split(r"^# -{9,} (.*)\n", path.read_text(), flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], map(str.splitlines, parts[::2]), strict=True))


def test_the_autoencoders_are_one_program():
    """But for docstring, imports, settings, data, likelihood and the line that tells of logits."""
    programs = []
    for parts in map(sections, SCRIPTS[1:]):
        top = [line for line in parts.pop("") if "os.environ" in line]
        assert len(parts.pop("data") + parts.pop("likelihood")) < 70
        programs.append(sum(parts.values(), [*parts, *top]))
        del programs[-1][programs[-1].index("    def decode(self, z):") + 1]
    assert programs[0] == programs[1] and len(programs[0]) > 280
    texts = [path.read_text().split("def learning_rate(")[1].split("\n\n")[0] for path in SCRIPTS]
    assert texts[0] == texts[1] == texts[2]


@each
def test_sections_length_and_what_is_allowed(path):
    source = path.read_text()
    assert len(source.splitlines()) <= (440 if "transformer" in path.name else 420)
    assert [title for title in sections(path) if title != "likelihood"] == ["", *SECTIONS]
    imported = re.findall(r"^ *(?:import|from) (\w+)(?:\.\S+)?(?: \w.*)?$", source, re.MULTILINE)
    assert {*imported} <= ALLOWED | set(sys.stdlib_module_names) and "torch" in imported
    spin = 'if "OMP_WAIT_POLICY" not in os.environ:\n    os.environ.setdefault("GOMP_SPINCOUNT"'
    assert source.index(spin) < source.index("import torch")
    assert not re.search(r"nn\.Transformer|Multihead|scaled_dot|import Transformer", source)


@each
def test_help_and_options_that_are_nonsense(path, capsys, monkeypatch):
    name = path.stem.removeprefix("0123456_")
    module = load(name)
    monkeypatch.setattr(module, "DATA", ROOT / "nowhere")  # where made data stand in
    assert module.parse_args([]).data == SAMPLE and "made data" in capsys.readouterr().err
    assert module.parse_args(["--data", "x"]).data.name == "x" and not capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^0$"):
        module.main(["--help"])
    assert "(default: 0)" in capsys.readouterr().out
    for option, value in map(str.split, (WRONG + OWN[name]).split(", ")):
        with pytest.raises(SystemExit, match=r"^2$"):
            module.main(["--data", str(SAMPLE), option, value])
        last = capsys.readouterr().err.splitlines()[-1]
        assert "error: " in last and option in last, last


@each
def test_a_dry_run_writes_all_and_touches_no_results(path, tmp_path):
    """In a notebook's backend, too."""
    process = shell(path, "--dry-run --out o", tmp_path, "MPLBACKEND=module://notebook")
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    out = tmp_path / "o" / "dry_run"
    assert [*tmp_path.iterdir(), *out.parent.iterdir()] == [out.parent, out]
    made = {file.name: file for file in out.iterdir()}
    json.loads(made.pop("metrics.json").read_text(), parse_constant=pytest.fail)
    names = {"attention.png", "curves.png"}
    if "transformer" in path.name:
        assert made.pop("submission.csv").read_text().startswith("Id,Category\n1,")
    else:
        assert made.pop("model.pt").stat().st_size > 1e5
        pictures = {"interpolation.png", "reconstructions.png", "samples.png"}
        names = {"curves.png", "posterior.png", *pictures}
    assert {*made} == names
    for name, file in made.items():
        middle = ImageOps.crop(Image.open(file).convert("RGB"), 200)
        assert len(middle.getcolors(10**6)) > 9, name  # something is drawn


@each
def test_without_data_or_with_a_full_disk_one_line_is_told(path, tmp_path):
    """A copy alone names --data; what a full disk had before stays there."""
    (tmp_path / "a.py").write_bytes(path.read_bytes())
    process = subprocess.run([sys.executable, "a.py"], cwd=tmp_path, capture_output=True, text=True)
    assert "--data" in last_line(process, "error: ")
    mine = tmp_path / "dry_run" / "model.pt"
    mine.parent.mkdir()
    mine.write_text("mine")
    process = shell(path, "--dry-run --out .", tmp_path, "ulimit -f 8;")
    assert "File too large" in last_line(process, "error: ")
    assert mine.read_text() == "mine"


@each
def test_ctrl_c_is_one_line(path, tmp_path):
    """While it trains; also where the shell that starts the tests lets no one interrupt them."""
    interruptible = ["env", "--default-signal=INT", sys.executable]
    command = [*interruptible, path, "--data", SAMPLE, "--epochs", "999", "--out", "o"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "o").exists():
        time.sleep(0.05)
        assert process.poll() is None
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    process.stderr = process.communicate(timeout=300)[1]
    last_line(process, "stopped: ")


def test_sample_is_what_its_maker_makes(tmp_path):
    (tmp_path / "make_sample.py").write_bytes((ROOT / "data" / "make_sample.py").read_bytes())
    subprocess.run([sys.executable, "make_sample.py"], cwd=tmp_path, check=True)
    made = {path.name: path.read_bytes() for path in (tmp_path / "sample").iterdir()}
    assert made == {path.name: path.read_bytes() for path in SAMPLE.iterdir()}
