"""report.pdf is what its sources give, answers every question, and README quotes the results."""

import re
import statistics
import sys

import typst
from conftest import ROOT

sys.path.insert(0, str(ROOT / "report"))
from make_report import build, load_results, source

TYPST = (ROOT / "report" / "report.typ").read_text()
README = (ROOT / "README.md").read_text()
QUESTIONS = (  # of the assignment: what the heading that answers each has in it
    "String to integers; white space; <unk>.*<pad>; Architecture and hyper-parameters; Attention;"
    "optimizer, activation, scheduler; leaderboard; objective, and both likelihoods; Architectures;"
    "Tibetan digits; Anime faces; = 0.*= 100; posterior of one image; learned σ; What was tried;"
    "posterior collapse is, how it shows, how to avoid; Commands, machine, time; Limits;"
    "fail, and what codes of the aggregated posterior do; References"
).split(";")


def test_the_pdf_is_what_its_sources_give():
    pdf = (ROOT / "report.pdf").read_bytes()
    assert pdf == build() == build(), "run python report/make_report.py"  # no date, no order in it


def test_pages_headings_and_captions():
    with source() as files:
        assert 12 <= len(typst.compile(**files, format="png", ppi=10)) <= 14
    titles = re.findall(r"^=+ (.*)", TYPST, re.MULTILINE)
    for question in QUESTIONS:
        assert any(re.search(question.strip(), title, re.IGNORECASE) for title in titles), question
    assert TYPST.count("#figure(") == TYPST.count("caption: [") > 20


def test_no_measured_number_is_typed_by_hand():
    """No number with two or more decimals stands in the text."""
    assert len(TYPST.splitlines()) <= 650
    text = re.sub(r"(?s)#(let|set|show)\b.*?\n\n", "\n\n", TYPST)
    text = re.sub(r"\d+\.?\d*(em|pt|cm|fr)\b", "", text)
    assert set(re.findall(r"(?<![\w.])\d+\.\d{2,}", text)) <= {"0.01"}  # what active means


def test_readme_quotes_the_results():
    results = load_results()
    seeds = ["transformer", *(f"transformer_seed{seed}" for seed in range(1, 5))]
    rows = [[results[name]["oof_accuracy"] for name in seeds]]
    rows.append([results[f"transformer_scratch{seed}"]["oof_accuracy"] for seed in range(3)])
    rows += [results["rivals"]["tf_idf_vectors"], results["rivals"]["naive_bayes"]]
    for row in rows:
        assert f"| {statistics.mean(row):.4f} ± {statistics.stdev(row):.4f} |" in README
    assert f"Seed 0: {results['transformer']['oof_accuracy']:.4f}" in README
    for name in ("transformer", "vae_mnist_kl1", "vae_anime_kl1"):
        assert f"{results[name]['wall_seconds']:.0f} seconds" in README
    nats = [f"{name}_nats" for name in ("negative_elbo", "reconstruction", "kl", "iw_nll")]
    rival = results["speed"]["digits"]["rivals"]
    assert f"60 epochs | {' | '.join(f'{rival[name]:.2f}' for name in nats)} |" in README
    for weight in (0, 1, 100):
        run = results[f"vae_mnist_kl{weight}"]
        row = [f"λ = {weight}", *(f"{run[name]:.2f}" for name in nats), str(run["active_units"])]
        row += [f"{run[f'legible_{name}']:.1%}" for name in ("prior", "mixture")]
        assert f"| {' | '.join(row)} |" in README
        run = results[f"vae_anime_kl{weight}"]
        row = [f"λ = {weight}", f"{run['bits_per_dim']:.3f}", f"{run['psnr_db']:.2f}"]
        row += [f"{run['sigma']:.4f}", f"{run['kl_nats']:.1f}", str(run["active_units"])]
        row += [f"{run[f'swd_{name}']:.1f}" for name in ("reconstructions", "prior", "mixture")]
        assert f"| {' | '.join(row)} |" in README


def test_readme_is_short_and_its_pictures_are_there():
    assert len(README.encode()) <= 7000
    shown = re.findall(r"\]\((report/figures/[^)]*)\)", README)
    assert len(shown) == 2 and all((ROOT / path).is_file() for path in shown)
