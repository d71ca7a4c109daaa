"""report.pdf is what its sources give, answers every question, and shows pictures that are there."""

import json
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import typst
from conftest import ROOT

sys.path.insert(0, str(ROOT / "report"))
import experiments
from make_report import build, source

REPORT = ROOT / "report"
# The assignment's questions, and what the heading that answers each has in it.
QUESTIONS = [
    "String to integers",
    "white space",
    "<unk>.*<pad>",
    "Architecture and hyper-parameters",
    "optimizer, activation, scheduler",
    "leaderboard",
    "Attention",
    "objective, and both likelihoods",
    "Architectures",
    "Tibetan digits",
    "Anime faces",
    "= 0.*= 100",
    "Rate, distortion and active units",
    "posterior of one image",
    "posterior collapse is, how it shows, how to avoid",
    "learned σ",
    "fail, and what codes of the aggregated posterior do",
    "What was tried",
    "Commands, machine, time",
    "Limits",
    "References",
]


def words(content):
    """The text in a piece of content, as typst.query gives it."""
    if isinstance(content, list):
        return "".join(map(words, content))
    if not isinstance(content, dict):
        return ""
    if content.get("func") in ("space", "symbol"):
        return content.get("text", " ")
    return content.get("text", "") + words(content.get("body")) + words(content.get("children"))


def query(selector):
    with source() as files:
        return json.loads(typst.query(selector=selector, **files))


@pytest.fixture(scope="module")
def pdf():
    return build()


def test_the_pdf_is_what_its_sources_give(pdf):
    assert (ROOT / "report.pdf").read_bytes() == pdf, "run python report/make_report.py"


def test_the_same_sources_give_the_same_bytes(pdf):
    assert build() == pdf


def test_it_has_10_to_16_pages(pdf):
    with source() as files:
        assert 10 <= len(typst.compile(**files, format="png", ppi=10)) <= 16


def test_every_question_has_its_heading():
    headings = [words(heading["body"]) for heading in query("heading")]
    for question in QUESTIONS:
        assert any(re.search(question, heading, re.IGNORECASE) for heading in headings), (question, headings)


def test_every_figure_and_table_has_a_number_and_a_caption():
    figures = query("figure")
    assert len(figures) > 25
    assert all(len(words(figure["caption"])) > 40 and figure["numbering"] == "1" for figure in figures)


def test_nothing_that_it_shows_is_missing():
    """A result or picture that is not there leaves a box that names it."""
    assert [box["value"] for box in query("<missing>")] == []


def test_every_figure_file_that_it_names_is_there():
    named = re.findall(r'"((?:transformer|vae_mnist|vae_anime|sweep)[a-z0-9_]*)"', (REPORT / "report.typ").read_text())
    there = {path.stem for path in REPORT.glob("*/*")}
    assert len(named) > 20 and not {name for name in named if name not in there and not name.endswith("_")}


def test_no_measured_number_is_typed_by_hand():
    """No number with two or more decimals stands in the text; those in code are sizes of pictures."""
    text = re.sub(r"(?s)#(let|figure|grid|table|set|show|stack)\b.*?\n\n", "\n\n", (REPORT / "report.typ").read_text())
    text = "\n".join(line for line in text.splitlines() if not line.startswith((" ", "#", "//", ")", "}")))
    assert set(re.findall(r"(?<![\w.])\d+\.\d{2,}", text)) <= {"0.01"}  # what active means


@pytest.mark.parametrize("there", [[], ["vae_mnist_kl0"]])
def test_the_sweep_is_drawn_of_the_results_that_are_there(tmp_path, monkeypatch, there):
    for name in there:
        shutil.copy(REPORT / "results" / f"{name}.json", tmp_path)
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    monkeypatch.setattr(experiments, "FIGURES", tmp_path)
    experiments.draw_sweep()
    assert (tmp_path / "sweep.png").is_file()


def test_hand_in_has_four_files(tmp_path):
    scripts = sorted(path.name for path in ROOT.glob("0123456_*.py"))
    command = [sys.executable, "-m", "zipfile", "-c", tmp_path / "hw2_0123456.zip", *scripts, "report.pdf"]
    subprocess.run(command, cwd=ROOT, check=True)
    with zipfile.ZipFile(tmp_path / "hw2_0123456.zip") as archive:
        assert archive.namelist() == [*scripts, "report.pdf"] and len(archive.namelist()) == 4
