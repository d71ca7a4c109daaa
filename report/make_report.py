"""Make report.pdf from report.typ, references.bib, results/*.json and figures/*.

    python report/make_report.py

All arithmetic is here; report.typ sets the strings that `summary` makes of the results. The same
files give the same bytes.
"""

import ast
import contextlib
import json
import math
import shutil
import statistics
import tempfile
from pathlib import Path

import typst

REPORT = Path(__file__).resolve().parent
LAMBDAS = (0, 1, 100)
DECIMALS = {"negative_elbo_nats": 2, "reconstruction_nats": 2, "kl_nats": 1, "iw_nll_nats": 2}
DECIMALS |= {"one_picture_nats": 2, "active_units": 0, "bits_per_dim": 3, "psnr_db": 2, "sigma": 4}
PIXELS = 3 * 64 * 64  # numbers of a face
LINES = {"random": "0.322", "baseline": "0.800", "advanced": "0.88333"}  # of the competition
PRIVATE_ROWS = 220  # of its 400 test rows; the public board shows the other 180
NEEDED = 195  # of them right is the least that is above 0.88333
VARIANTS = {  # of the classifier: what the report calls them
    "scratch": "no GloVe vectors: words learned from the rows",
    "keep_words": "no words dropped in training",
    "two_layers": "two encoder layers",
    "dropout": "dropout 0.1 on both branches",
    "slow": "a third of the learning rate",
}
RIVALS = ("naive_bayes", "tf_idf_vectors", "encoder")
TOKENIZERS = ("whitespace", "wordpunct", "treebank", "toktok", "tweet")
CLASSES = ("World", "Sports", "Business", "Sci/Tech")

# ---------------------------------------------------------------------------------------- numbers


def fixed(x, digits=0):
    """A number with so many decimals, and a true minus."""
    return f"{x:,.{digits}f}".replace("-", "−")


def percent(x, digits=1):
    return f"{100 * x:.{digits}f}%"


def large(x, digits):
    """The same; of a million or more, or where nothing would be left, 2.5 · 10⁶."""
    if 10**-digits <= abs(x) < 1e6 or x == 0:
        return fixed(x, digits)
    mantissa, exponent = f"{x:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} · 10{raised}"


def spread(values, digits=4):
    """Mean ± standard deviation."""
    return f"{fixed(statistics.mean(values), digits)} ± {fixed(statistics.stdev(values), digits)}"


def signed(x, digits=1):
    return ("+" if x > 0 else "") + fixed(x, digits)


def chance(p):
    """That at least NEEDED of PRIVATE_ROWS come out right if each does with probability p."""
    rows = range(NEEDED, PRIVATE_ROWS + 1)
    return sum(math.comb(PRIVATE_ROWS, k) * p**k * (1 - p) ** (PRIVATE_ROWS - k) for k in rows)


def settings(kind):
    """The constants at the head of a script that are plain numbers or made of them."""
    plain = {}
    for node in ast.parse((REPORT.parent / f"0123456_{kind}.py").read_text()).body:
        if isinstance(node, ast.Assign):
            names = [part.id for part in ast.walk(node.targets[0]) if isinstance(part, ast.Name)]
            with contextlib.suppress(NameError):
                value = eval(ast.unparse(node.value), {"__builtins__": {}})
                plain |= zip(names, value if len(names) > 1 else [value], strict=True)
    return plain


# ---------------------------------------------------------------------------------------- summary


def load_results():
    return {path.stem: json.loads(path.read_text()) for path in (REPORT / "results").glob("*.json")}


def accuracies(results, name, seeds=3):
    """Out-of-fold accuracy of the script's own settings (name "") or a variant's, by seed."""
    names = [f"transformer_{name}{seed}" for seed in range(seeds)]
    if not name:
        names = ["transformer", *(f"transformer_seed{seed}" for seed in range(1, seeds))]
    return [results[key]["oof_accuracy"] for key in names]


def variant_row(results, name):
    """Accuracy over three seeds, and points above or below the script's own on the same seeds."""
    here, own = accuracies(results, name), accuracies(results, "")
    differences = [100 * (a - b) for a, b in zip(here, own, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    gain = f"{signed(statistics.mean(differences), 2)} ± {fixed(error, 2)}"
    return [VARIANTS[name], spread(here), gain]


def news_summary(results):
    """What section 1 quotes."""
    news = results["transformer"]
    config = news["config"]
    seeds = accuracies(results, "", 5)
    mean = statistics.mean(seeds)
    low, high = news["oof_accuracy_interval"]
    confusion = news["confusion"]
    pairs = [(confusion[i][j] + confusion[j][i], i, j) for i in range(4) for j in range(i)]
    worst, first, second = max(pairs)
    recalls = [confusion[i][i] / sum(confusion[i]) for i in range(4)]
    epochs = zip(*news["history"], strict=True)  # each with a dict of every fold
    losses = [statistics.mean(fold["oof_loss_nats"] for fold in folds) for folds in epochs]
    words = results["tokenizers"]
    own = accuracies(results, "")
    cuts = {name: accuracies(results, name) for name in TOKENIZERS if name != "wordpunct"}
    cuts["wordpunct"] = own
    gaps = [100 * (a - b) for a, b in zip(own, cuts["whitespace"], strict=True)]
    D, H = int(config["d_model"]), int(config["d_hid"])
    wordpunct, blank = words["wordpunct"], words["whitespace"]
    attended, random = results["pictures"]["attention"]["changed_attended_random"]
    rivals = results["rivals"]
    return {
        "accuracy": spread(seeds),
        "short": spread(seeds, 3),
        "mean": fixed(mean, 4),
        "seed0": fixed(news["oof_accuracy"], 4),
        "low": fixed(low, 3),
        "high": fixed(high, 3),
        "chance": percent(chance(mean), 0),
        "chance_low": percent(chance(low), 0),
        "chance_high": percent(chance(high), 0),
        "needed": str(NEEDED),
        "private": str(PRIVATE_ROWS),
        "lines": LINES,
        "scratch": spread(accuracies(results, "scratch")),
        "rivals": {name: spread(rivals[name]) for name in RIVALS},
        "ahead": fixed(100 * (mean - statistics.mean(rivals["tf_idf_vectors"])), 1),
        "rows": fixed(sum(map(sum, confusion))),
        "wrong": str(sum(map(sum, confusion)) - sum(confusion[i][i] for i in range(4))),
        "confused": f"{CLASSES[second]} and {CLASSES[first]}",
        "confused_rows": str(worst),
        "surest": CLASSES[recalls.index(max(recalls))],
        "surest_recall": percent(max(recalls)),
        "first_loss": fixed(losses[0], 3),
        "last_loss": fixed(losses[-1], 3),
        "least_loss": fixed(min(losses), 3),
        "least_epoch": str(1 + losses.index(min(losses))),
        "config": config,
        "head": str(D // int(config["nhead"])),
        "layer": fixed(4 * D * D + 4 * D + 2 * D * H + H + D + 4 * D),
        "tokenizers": [
            [name, fixed(row["words"]), fixed(row["mean_length"], 1), percent(row["unknown_alone"])]
            + [percent(row["unknown_with_vectors"])]
            + [spread(cuts[name])]
            for name, row in ((name, words[name]) for name in TOKENIZERS)
        ],
        "examples": [[name, words[name]["example"]] for name in TOKENIZERS[:3]],
        "cuts": {name: spread(values) for name, values in cuts.items()},
        "gap": fixed(statistics.mean(gaps), 2),
        "gap_error": fixed(statistics.stdev(gaps) / math.sqrt(len(gaps)), 2),
        "own": spread(own),
        "blank_words": fixed(blank["words"]),
        "blank_unknown": percent(blank["unknown_with_vectors"]),
        "words": fixed(wordpunct["words"]),
        "known": fixed(wordpunct["vocabulary_with_vectors"] - 2),
        "unknown": percent(wordpunct["unknown_with_vectors"]),
        "unknown_alone": percent(wordpunct["unknown_alone"]),
        "variants": [variant_row(results, name) for name in VARIANTS],
        "attended": percent(attended, 0),
        "random": percent(random, 0),
        "held_texts": str(results["pictures"]["attention"]["texts"]),
    }


def run_summary(run, of_image):
    """What section 2 quotes of one run, and of its posterior of the first test image."""
    last = run["history"][-1]
    train, held = last["reconstruction_nats"], last["validation_reconstruction_nats"]
    train_elbo, held_elbo = train + last["kl_nats"], held + last["validation_kl_nats"]
    strings = {name: large(run[name], digits) for name, digits in DECIMALS.items() if name in run}
    strings |= {name: percent(x) for name, x in run.items() if name.startswith("legible")}
    strings |= {name: fixed(x, 1) for name, x in run.items() if name.startswith("swd")}
    return strings | {
        "train_reconstruction": fixed(train, 2),
        "held_reconstruction": fixed(held, 2),
        "gap": fixed(held - train, 1),
        "train_elbo": fixed(train_elbo, 1),
        "held_elbo": fixed(held_elbo, 1),
        "gap_elbo": fixed(held_elbo - train_elbo, 1),
        "gap_bits": fixed((held_elbo - train_elbo) / PIXELS / math.log(2), 3),
        "levels": [large(kl, 1) for kl in of_image["test_kl_of_levels_nats"]],
        "floor": percent(of_image["share_at_floor"], 0),
        "image": [
            large(of_image["mean_abs"], 3),
            large(of_image["variance"], 3),
            percent(of_image["share_at_floor"], 0),
            large(of_image["kl_nats"], 1),
            fixed(of_image["dimensions_above_0.01_nats"]),
        ],
    }


def network_summary(kind, run):
    """Levels of one autoencoder from the picture to the vector, and its settings."""
    plain = settings(kind)
    levels, latents = [], 0
    for width, side, groups in reversed(plain["MAPS"]):
        count = sum(groups) * side * side
        latents += count
        text = f"{len(groups)} of {groups[0]} a place: {count:,}" if groups else "none"
        levels.append([f"{width} × {side} × {side}", text])
    top = plain["LATENT_DIM"] // plain["TOP_GROUP"]
    levels.append(
        [f"{plain['TOP_WIDTH']}", f"{top} of {plain['TOP_GROUP']}: {plain['LATENT_DIM']}"]
    )
    names = ("EPOCHS", "EPOCH_SIZE", "BATCH_SIZE", "KL_START", "LR")
    return {name.lower(): f"{plain[name]:,}" for name in names} | {
        "levels": levels,
        "latents": fixed(latents + plain["LATENT_DIM"]),
        "parameters": f"{run['parameters'] / 1e6:.1f}",
    }


def summary():
    """All that report.typ quotes, as strings: d0, d1, d100 are digits, f0, f1, f100 faces."""
    results = load_results()
    summary = {"news": news_summary(results), "saves": percent(1 - math.exp(-200 / PIXELS))}
    for kind, name in (("vae_mnist", "digits"), ("vae_anime", "faces")):
        for weight in LAMBDAS:
            of_image = results["pictures"][name][str(weight)]
            summary[f"{name[0]}{weight}"] = run_summary(results[f"{kind}_kl{weight}"], of_image)
        summary[name] = network_summary(kind, results[f"{kind}_kl1"])
        runs = [results[f"{kind}_kl1{end}"] for end in ("", "_seed1", "_seed2")]
        summary[name]["seeds"] = {
            key: spread([run[key] for run in runs], digits)
            for key, digits in DECIMALS.items()
            if key in runs[0]
        }
    digits, faces = results["vae_mnist_kl1"], results["vae_anime_kl100"]
    saved = digits["one_picture_nats"] - digits["reconstruction_nats"]
    machine = results["transformer"]["machine"]
    times = results["speed"].items()
    return summary | {
        "saved": fixed(saved),
        "saved_each": fixed(saved / digits["kl_nats"], 1),
        "product": fixed(100 * faces["sigma"] ** 2, 2),
        "machine": {name: str(value) for name, value in machine.items()},
        "versions": results["transformer"]["versions"],
        "time": {name: fixed(row["seconds"]) for name, row in times if "seconds" in row},
    }


# -------------------------------------------------------------------------------------------- pdf


@contextlib.contextmanager
def source():
    """What typst.compile needs."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(REPORT / "figures", root / "figures")
        for name in ("report.typ", "references.bib"):
            shutil.copy(REPORT / name, root)
        (root / "summary.json").write_text(json.dumps(summary()))
        yield {"input": root / "report.typ", "root": root, "ignore_system_fonts": True}


def build():
    """The bytes of report.pdf."""
    with source() as files:
        return typst.compile(**files)


if __name__ == "__main__":
    pdf = build()
    (REPORT.parent / "report.pdf").write_bytes(pdf)
    print(f"report.pdf: {len(pdf) / 1e6:.1f} MB")
