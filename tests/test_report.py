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
NUMBERS = "1 1.1 1.1.1 1.1.2 1.1.3 1.2 1.2.1 1.2.2 1.2.3 1.2.4 2 2.1 2.2 2.3 2.4".split()


def test_the_pdf_is_what_its_sources_give():
    pdf = (ROOT / "report.pdf").read_bytes()
    assert pdf == build() == build(), "run python report/make_report.py"  # no date, no order in it


def test_pages_headings_and_answers():
    with source() as files:
        assert len(typst.compile(**files, format="png", ppi=10)) <= 11
    assert re.findall(r"^=+ ([\d.]+) ", TYPST, re.MULTILINE) == NUMBERS
    for number in {*NUMBERS} - {"1", "1.1", "1.2", "2"}:
        assert re.search(rf"^=+ {re.escape(number)} .*\n\n#answer\[", TYPST, re.MULTILINE), number


def test_no_measured_number_is_typed_by_hand():
    """No number with two or more decimals stands in the text, but two thresholds and a line."""
    assert len(TYPST.splitlines()) <= 560
    text = re.sub(r"(?s)#(let|set|show)\b.*?\n\n", "\n\n", TYPST)
    text = re.sub(r"\d+\.?\d*(em|pt|cm|fr)\b", "", text)
    assert set(re.findall(r"(?<![\w.])\d+\.\d{2,}", text)) <= {"0.01", "0.88333"}


def test_readme_quotes_the_results():
    results = load_results()
    seeds = ["transformer", *(f"transformer_seed{seed}" for seed in range(1, 5))]
    rows = [[results[name]["oof_accuracy"] for name in seeds]]
    rows.append([results[f"transformer_scratch{seed}"]["oof_accuracy"] for seed in range(3)])
    rows += [results["rivals"]["tf_idf_vectors"], results["rivals"]["naive_bayes"]]
    for row in rows:
        assert f"| {statistics.mean(row):.4f} ± {statistics.stdev(row):.4f} |" in README
    for name in ("transformer", "vae_mnist", "vae_anime"):
        assert f"{results['speed'][name]['seconds']:.0f} seconds" in README
    for weight in (0, 1, 100):
        run = results[f"vae_mnist_kl{weight}"]
        nats = [f"{name}_nats" for name in ("negative_elbo", "reconstruction", "kl", "iw_nll")]
        row = [f"λ = {weight}", *(f"{run[name]:,.2f}" for name in nats), str(run["active_units"])]
        assert f"| {' | '.join(row)} | {run['legible_prior']:.1%} |" in README
        run = results[f"vae_anime_kl{weight}"]
        row = [f"λ = {weight}", f"{run['bits_per_dim']:.3f}", f"{run['psnr_db']:.2f}"]
        row += [f"{run['sigma']:.4f}", f"{run['kl_nats']:.1f}", str(run["active_units"])]
        row += [f"{run[f'swd_{name}']:.1f}" for name in ("reconstructions", "prior")]
        assert f"| {' | '.join(row)} |" in README


def test_readme_is_short_and_its_pictures_are_there():
    assert len(README.encode()) <= 5500
    shown = re.findall(r"\]\((report/figures/[^)]*)\)|src=\"(report/figures/[^\"]*)\"", README)
    assert len(shown) == 2 and all((ROOT / "".join(path)).is_file() for path in shown)
    assert sum(file.stat().st_size for file in (ROOT / "report" / "figures").iterdir()) <= 1.5e6
