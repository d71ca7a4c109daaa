"""Make report.pdf from report.typ, references.bib, results/*.json and figures/*.png.

    python report/make_report.py

All arithmetic is here; report.typ sets the strings that `summary` makes of the results. The same
files give the same bytes.
"""

import contextlib
import json
import math
import shutil
import statistics
import tempfile
from pathlib import Path

import typst
from PIL import Image

REPORT = Path(__file__).resolve().parent
LAMBDAS = (0, 1, 100)
PIXELS = 3 * 64 * 64

# ---------------------------------------------------------------------------------------- numbers


def fixed(x, digits=0):
    """A number with so many decimals, and a true minus."""
    return f"{x:,.{digits}f}".replace("-", "−")


def percent(x, digits=1):
    return f"{100 * x:.{digits}f}%"


def power(x):
    """2.5 · 10⁻⁵, as characters."""
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{mantissa} · 10" + str(int(exponent)).translate(
        str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    )


def spread(values, digits=4):
    """Mean ± standard deviation, if there are several."""
    text = fixed(statistics.mean(values), digits)
    return f"{text} ± {fixed(statistics.stdev(values), digits)}" if len(values) > 1 else text


def points(row, base):
    """Hundredths by which a row's accuracies lie above the base's on the same seeds, each."""
    pairs = zip(row["accuracies"], base["accuracies"], strict=False)
    return [100 * (a - b) for a, b in pairs]


def signed(x, digits=2):
    return ("+" if x > 0 else "") + fixed(x, digits)


# ---------------------------------------------------------------------------------------- summary


def load_results():
    return {path.stem: json.loads(path.read_text()) for path in (REPORT / "results").glob("*.json")}


def news_summary(results):
    """What the classifier's sections quote."""
    news = results["transformer"]
    config = news["config"]
    seeds = [news, *(results[f"transformer_seed{seed}"] for seed in range(1, 5))]
    scratch = [results[f"transformer_scratch{seed}"] for seed in range(3)]
    rows = results["tokenizers"]
    names = ("whitespace", "wordpunct", "treebank", "toktok", "tweet")
    rivals = results["rivals"]
    deletion = results["deletion"]
    confusion = news["confusion"]
    total = sum(map(sum, confusion))
    wrong = total - sum(confusion[k][k] for k in range(4))
    half = 50 * (news["oof_accuracy_high"] - news["oof_accuracy_low"])
    accuracies = [run["oof_accuracy"] for run in seeds]
    behind = statistics.mean(accuracies) - statistics.mean(rivals["tf_idf_vectors"])
    ablations = results["ablations"]["rows"]
    measured = {
        row["setting"].split()[0].lower(): row for row in ablations if row["group"] == "tokenizer"
    }
    rewrite = results["rewrite"]
    d_model, d_hid = config["d_model"], config["d_hid"]
    layer = 4 * d_model**2 + 4 * d_model + 2 * d_model * d_hid + d_hid + d_model + 4 * d_model
    punct, blank, single = rows["wordpunct"], rows["whitespace"], rows["min_count_1"]
    shortest, median, longest, mean = punct["lengths"]
    return {
        "accuracy": spread(accuracies),
        "accuracy_none": spread([run["oof_accuracy"] for run in scratch]),
        "rivals": {name: spread(rivals[name]) for name in ("naive_bayes", "tf_idf_vectors")},
        "behind": fixed(100 * behind, 1),
        "seed0": fixed(news["oof_accuracy"], 4),
        "low": fixed(news["oof_accuracy_low"], 4),
        "high": fixed(news["oof_accuracy_high"], 4),
        "half": fixed(half, 1),
        "rows": fixed(total),
        "wrong": str(wrong),
        "business": str(confusion[2][3] + confusion[3][2]),
        "sports": percent(confusion[1][1] / sum(confusion[1])),
        "config": {name: str(value) for name, value in config.items()},
        "head": str(d_model // config["nhead"]),
        "layer": fixed(layer),
        "lengths": {
            "shortest": fixed(shortest),
            "median": fixed(median),
            "longest": fixed(longest),
            "padding": percent(1 - mean / longest, 0),
        },
        "tokenizers": [
            [
                name,
                fixed(rows[name]["words"]),
                fixed(rows[name]["vocabulary_alone"] - 2),
                fixed(rows[name]["lengths"][3], 1),
                percent(rows[name]["unknown_alone"]),
                percent(rows[name]["unknown_with_vectors"]),
                spread(measured[name]["accuracies"]),
            ]
            for name in names
        ],
        "examples": [[name, rows[name]["example"]] for name in names[:3]],
        "blank_words": fixed(blank["words"]),
        "punct_words": fixed(punct["words"]),
        "blank_unknown": percent(blank["unknown_alone"]),
        "punct_unknown": percent(punct["unknown_alone"]),
        "punct_glove": percent(punct["unknown_with_vectors"]),
        "others_glove": percent(min(rows[name]["unknown_with_vectors"] for name in names[2:])),
        "punct_known": fixed(punct["vocabulary_alone"] - 2),
        "single_known": fixed(single["vocabulary_alone"] - 2),
        "single_unknown": percent(single["unknown_alone"]),
        "single_glove": percent(single["unknown_with_vectors"]),
        "ablations": ablation_rows(ablations),
        "ablations_commit": results["ablations"]["commit"][:7],
        "rewrite": [
            [
                row["what"],
                spread(row["accuracies"]),
                signed(statistics.mean(points(row, rewrite["rows"][0]))),
            ]
            + [fixed(statistics.mean(row["losses"]), 3), str(len(row["accuracies"]))]
            for row in rewrite["rows"]
        ],
        "rewrite_commit": rewrite["commit"][:7],
        "sixth": fixed(statistics.mean(rewrite["all_rows"]["with_sixth"]), 4),
        "five": fixed(statistics.mean(rewrite["all_rows"]["folds"]), 4),
        "deletion": {
            "attended": percent(deletion["attended"]),
            "random": percent(deletion["random"]),
            "ratio": fixed(deletion["attended"] / deletion["random"], 1),
            "survive": percent(1 - deletion["attended"], 0),
        },
        "lines": {
            name: str(results["tried"]["leaderboard"][name])
            for name in ("random", "baseline", "advanced")
        },
    }


def ablation_rows(rows):
    """[group, setting, accuracy, points, loss, seeds] of each; * marks the script's own."""
    own = {"heads": "4", "d_model": "128", "d_hid": "256", "dropout": "0.1"}
    table = []
    for group in dict.fromkeys(row["group"] for row in rows):
        members = [row for row in rows if row["group"] == group]
        base = next(
            row for row in members if row["setting"] == own.get(group, members[0]["setting"])
        )
        for row in members:
            mark = row is base
            table.append(
                [
                    group if row is members[0] else "",
                    row["setting"] + (" *" if mark else ""),
                    spread(row["accuracies"]),
                    "" if mark else signed(statistics.mean(points(row, base))),
                    fixed(statistics.mean(row["losses"]), 3),
                    str(len(row["accuracies"])),
                ]
            )
    return table


def vae_summary(results):
    """What the autoencoders' sections quote: d0, d1, d100 are digits, f0, f1, f100 faces."""
    digits = {weight: results[f"vae_mnist_kl{weight}"] for weight in LAMBDAS}
    faces = {weight: results[f"vae_anime_kl{weight}"] for weight in LAMBDAS}
    random = {
        weight: results[f"vae_anime_random{'_kl0' if weight == 0 else ''}"] for weight in (0, 1)
    }
    rival = results["speed"]["digits"]["rivals"]
    seeds = {
        kind: [results[f"{kind}_kl1{end}"] for end in ("", "_seed1", "_seed2")]
        for kind in ("vae_mnist", "vae_anime")
    }
    nats = ("negative_elbo_nats", "reconstruction_nats", "kl_nats", "iw_nll_nats")
    summary = {}
    for weight, run in digits.items():
        summary[f"d{weight}"] = {
            "elbo": fixed(run["negative_elbo_nats"], 2),
            "reconstruction": fixed(run["reconstruction_nats"], 1),
            "kl": fixed(run["kl_nats"], 1),
            "kl_power": power(run["kl_nats"]),
            "iw": fixed(run["iw_nll_nats"], 2),
            "prior": percent(run["legible_prior"], 0),
            "mixture": percent(run["legible_mixture"], 0),
            "real": percent(run["legible_real"], 0),
            "midway": percent(run["legible_midway"], 0),
            "straight": percent(run["legible_midway_straight"], 0),
            "variance": power(run["posterior_variance_mean"]),
            "pixels": fixed(run["test_pixel_cross_entropy_nats"], 2),
            "needs": fixed(run["reconstruction_nats"], 2),
            "active": str(run["active_units"]),
        }
    for weight, run in [*faces.items(), ("r0", random[0]), ("r1", random[1])]:
        eigenvalues = run["code_eigenvalues_least_greatest"]
        summary[f"f{weight}"] = {
            "bits": fixed(run["bits_per_dim"], 3),
            "psnr": fixed(run["psnr_db"], 2),
            "kl": fixed(run["kl_nats"]),
            "sigma": fixed(run["sigma"], 4),
            "prior": fixed(run["swd_prior"], 1),
            "reconstructions": fixed(run["swd_reconstructions"], 1),
            "mixture": fixed(run["swd_mixture"], 1),
            "midway": fixed(run["swd_midway"], 1),
            "straight": fixed(run["swd_midway_straight"], 1),
            "ratio": fixed(run["swd_prior"] / run["swd_reconstructions"], 2),
            "variance": power(run["posterior_variance_mean"]),
            "least": fixed(eigenvalues[0], 2),
            "greatest": fixed(eigenvalues[1], 2),
            "active": str(run["active_units"]),
            "above": str(run["components_above_lambda_variance"]),
            "product": fixed(100 * run["sigma"] ** 2, 2),
            "square": power(run["sigma"] ** 2),
            "inverse": fixed(1 / run["sigma"] ** 2),
        }
    names = {**{f"λ = {weight}": faces[weight] for weight in LAMBDAS}}
    names |= {f"λ = {weight}, random start": random[weight] for weight in (1, 0)}
    summary |= {
        "digits": [
            [f"λ = {weight}", *(fixed(run[name], 2) for name in nats), str(run["active_units"])]
            + [percent(run[f"legible_{name}"]) for name in ("reconstructions", "prior", "mixture")]
            for weight, run in digits.items()
        ],
        "rival": [fixed(rival[name], 2) for name in nats],
        "rival_behind": fixed(rival["iw_nll_nats"] - digits[1]["iw_nll_nats"], 1),
        "faces": [
            [
                name,
                fixed(run["bits_per_dim"], 3),
                fixed(run["kl_nats"], 1),
                fixed(run["psnr_db"], 2),
            ]
            + [fixed(run["sigma"], 4), str(run["active_units"])]
            + [fixed(run[f"swd_{kind}"], 1) for kind in ("reconstructions", "prior", "mixture")]
            + ["–".join(fixed(value, 2) for value in run["code_eigenvalues_least_greatest"])]
            for name, run in names.items()
        ],
        "swd_real": fixed(faces[1]["swd_real"], 1),
        "seeds": {
            "elbo": spread([run["negative_elbo_nats"] for run in seeds["vae_mnist"]], 2),
            "prior": spread([100 * run["legible_prior"] for run in seeds["vae_mnist"]], 1),
            "mixture": spread([100 * run["legible_mixture"] for run in seeds["vae_mnist"]], 1),
            "bits": spread([run["bits_per_dim"] for run in seeds["vae_anime"]], 3),
            "psnr": spread([run["psnr_db"] for run in seeds["vae_anime"]], 2),
            "ratio": spread(
                [run["swd_prior"] / run["swd_reconstructions"] for run in seeds["vae_anime"]], 2
            ),
        },
        "epochs": {
            start: [
                fixed(results[f"vae_anime_{start}kl0{end}"]["swd_prior"], 1)
                for end in ("_epochs1", "_epochs3", "")
            ]
            for start in ("", "random_")
        },
        "test_digits": fixed(digits[1]["test_images"]),
        "test_faces": fixed(faces[1]["test_images"]),
        "saves": percent(1 - math.exp(-200 / PIXELS)),
        "parameters": [fixed(digits[1]["parameters"]), fixed(faces[1]["parameters"])],
        "dc": {name: str(value) for name, value in digits[1]["config"].items()},
        "fc": {name: str(value) for name, value in faces[1]["config"].items()},
        "trade": [
            [row["what"], str(row["epochs"]), fixed(row["negative_elbo_nats"], 1)]
            + [percent(row["legible_prior"], 0)]
            + [percent(row["legible_mixture"], 0) if row["legible_mixture"] else "–"]
            for row in results["trade"]["rows"]
        ],
        "mixtures": [
            [row["what"], str(row["components"] or "–")]
            + [fixed(row["held_out"], 2) if row["held_out"] else "–", percent(row["legible"], 0)]
            for row in results["trade"]["mixtures"]
        ],
        "tried": [
            [row["what"], fixed(row["psnr_db"], 2), fixed(row["bits_per_dim"], 3)]
            + [f"{row['prior']:.1f} / {row['reconstructions']:.1f}"]
            for row in results["tried"]["faces"]["rows"]
        ],
    }
    return summary


def summary():
    """All that report.typ quotes, as strings."""
    results = load_results()
    speed = results["speed"]
    names = ["transformer", "transformer_scratch0"]
    names += [f"{kind}_kl{weight}" for kind in ("vae_mnist", "vae_anime") for weight in LAMBDAS]
    return vae_summary(results) | {
        "news": news_summary(results),
        "seconds": [
            [name, fixed(results[name]["train_seconds"]), fixed(results[name]["wall_seconds"])]
            + [results[name]["commit"][:7]]
            for name in names
        ],
        "machine": {name: str(value) for name, value in results["transformer"]["machine"].items()},
        "versions": results["transformer"]["versions"],
        "encoder": [
            fixed(figures["ratio"], 2)
            for name, figures in speed["encoder"].items()
            if name.startswith("batch")
        ],
        "tokens": fixed(speed["run"]["ratio"], 1),
    }


# -------------------------------------------------------------------------------------------- pdf


def fading(image):
    """Of three rows of codes between two real faces: the row, and beneath it the cross-fade."""
    size = 73.4  # of a cell of the script's picture; the first is at (6, 69)
    whole = Image.new("RGB", (588, 444), "white")
    for i, row in enumerate((0, 1, 3)):
        top = round(69 + size * row)
        strip = image.crop((6, top, 594, top + 74))
        whole.paste(strip, (0, 148 * i))
        ends = strip.crop((0, 0, 74, 74)), strip.crop((514, 0, 588, 74))
        for k in range(8):
            share = min(max((k - 1) / 5, 0), 1)
            whole.paste(Image.blend(*ends, share), (round(size * k), 148 * i + 74))
    return whole


def shown(image, name):
    """The part of a script's picture that the report shows: no title, of 8 rows of images 2 or 4,
    of the posterior mean and variance, of attention one text's heads and every text's words."""
    width, height = image.size
    if name == "vae_anime_kl1_interpolation":
        return fading(image)
    if name.endswith(("reconstructions", "samples", "interpolation")):
        return image.crop((0, 34, width, round(71 + 73.4 * (4 if "kl1_" in name else 2))))
    if name.endswith("posterior"):
        columns = range(2 * width // 3 - 15, width)  # up to the blank before the third panel
        blank = (
            x
            for x in columns
            if image.crop((x, 34, x + 1, height)).convert("L").getextrema()[0] == 255
        )
        return image.crop((0, 34, next(blank), height))
    if name.endswith("attention"):
        parts = [(0, 595), *((603 * i + 480, 603 * i + 590) for i in range(1, 4))]
        whole = Image.new("RGB", (width, 595 + 3 * 112), "white")
        for i, (top, bottom) in enumerate(parts):
            whole.paste(image.crop((0, top, width, bottom)), (0, 483 + 112 * i if i else 0))
        return whole
    return image.crop((0, 34 if name.startswith("vae") else 0, width, height))


def place_picture(path, folder):
    """Put what is shown of a picture into the folder; of faces as JPEG, which halves the report."""
    with Image.open(path) as image:
        picture = shown(image.convert("RGB"), path.stem)
    if "anime" in path.name and not path.stem.endswith(("curves", "posterior")):
        picture.save(folder / f"{path.stem}.jpg", quality=92, subsampling=0)
    else:
        picture.save(folder / path.name)


@contextlib.contextmanager
def source():
    """What typst.compile and typst.query need."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "figures").mkdir()
        for path in REPORT.glob("figures/*.png"):
            place_picture(path, root / "figures")
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
