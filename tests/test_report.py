"""report.pdf is what its sources give, answers every question, and shows pictures that are there."""

import json
import re
import statistics
import subprocess
import sys
import zipfile

import pytest
import typst
from conftest import ROOT

sys.path.insert(0, str(ROOT / "report"))
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
    assert len(figures) > 20
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


RESULTS = {path.stem: json.loads(path.read_text()) for path in (REPORT / "results").glob("*.json")}
README = (ROOT / "README.md").read_text()


def test_readme_quotes_the_results():
    """Every figure of README's tables stands in report/results, rounded."""
    rows = []
    for name, seeds in (("transformer", 5), ("transformer_scratch", 3)):
        runs = [name, *(f"{name}_seed{seed}" for seed in range(1, seeds))]
        rows.append([RESULTS[run]["oof_accuracy"] for run in runs])
    rivals = RESULTS["tf_idf"]
    rows.append(rivals["tf_idf_mean_vector_logistic_regression"]["oof_accuracies"])
    rows.append(rivals["naive_bayes"]["oof_accuracies"])
    for row in rows:
        assert f"| {statistics.mean(row):.4f} ± {statistics.stdev(row):.4f} |" in README
    news = RESULTS["transformer"]
    assert f"Seed 0: {news['oof_accuracy']:.4f}" in README
    assert f"after {news['wall_seconds']:.0f} seconds" in README
    for weight, end in (("0", "_kl0"), ("1", ""), ("100", "_kl100")):
        run = RESULTS[f"vae_mnist{end}"]
        nats = [run[f"{name}_nats"] for name in ("negative_elbo", "reconstruction", "kl", "iw_nll")]
        row = " | ".join([f"{figure:.2f}" for figure in nats] + [str(run["active_units"])])
        legible = " | ".join(f"{run[f'legible_{name}']:.1%}" for name in ("prior", "mixture"))
        assert f"| λ = {weight} | {row} | {legible} |" in README
        run = RESULTS[f"vae_anime{end}"]
        row = f"{run['bits_per_dim']:.3f} | {run['psnr_db']:.2f} | {run['sigma']:.4f}"
        swd = [f"{run[f'swd_{name}']:.1f}" for name in ("reconstructions", "prior", "mixture")]
        row += f" | {run['kl_nats']:.1f} | {run['active_units']} | {' | '.join(swd)}"
        assert f"| λ = {weight} | {row} |" in README
    for name in ("vae_mnist", "vae_anime"):
        assert f"took {RESULTS[name]['wall_seconds']:.0f} seconds on one core" in README


def test_readme_is_short_and_its_pictures_are_there():
    assert len(README.encode()) <= 7000
    shown = re.findall(r"\]\((report/figures/[^)]*)\)", README)
    assert len(shown) == 2 and all((ROOT / path).is_file() for path in shown)


def test_hand_in_has_four_files(tmp_path):
    scripts = sorted(path.name for path in ROOT.glob("0123456_*.py"))
    command = [sys.executable, "-m", "zipfile", "-c", tmp_path / "hw2_0123456.zip", *scripts, "report.pdf"]
    subprocess.run(command, cwd=ROOT, check=True)
    with zipfile.ZipFile(tmp_path / "hw2_0123456.zip") as archive:
        assert archive.namelist() == [*scripts, "report.pdf"] and len(archive.namelist()) == 4
