"""`python report/pictures.py --data DIR` makes report/figures and report/results/pictures.json of
the runs that experiments.py keeps. The text is 6.69 inches wide: letters have their size in print.
"""

import itertools
import json
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from experiments import RESULTS, ROOT, decode, load_script, source

FIGURES = ROOT / "report" / "figures"
COLOURS = {0: "#0072b2", 1: "#d55e00", 100: "#009e73"}  # of each lambda
CLASSES = ("World", "Sports", "Business", "Sci/Tech")
CURVES = {"loss": "minimized loss", "reconstruction": "reconstruction, −log p(x|z)", "kl": "KL"}


def save(name, pictures, columns):
    """Pictures (N, C, H, W) in [0, 1], so many in a row; digits as PNG, faces as JPEG."""
    framed = torch.nn.functional.pad(pictures, (1, 1, 1, 1), value=0.8)
    rows = framed.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)  # (rows, H, columns, W, C)
    whole = rows.flatten(2, 3).flatten(0, 1).expand(-1, -1, 3).contiguous().numpy()
    file = FIGURES / f"{name}.{'png' if 'digits' in name else 'jpg'}"
    plt.imsave(file, whole, pil_kwargs={"optimize": True, "quality": 90})


def paths(script, model, x, codes, steps):
    """In each row a real picture, the path between the codes of it and the next, and the next."""
    way = torch.linspace(0, 1, steps)[:, None, None]
    z = script.interpolate(codes[: len(x) : 2], codes[1 : len(x) : 2], way)  # (steps, rows, Z)
    path = decode(model, z.flatten(0, 1)).unflatten(0, z.shape[:2])
    return torch.cat([x[None, ::2], path, x[None, 1::2]]).transpose(0, 1).flatten(0, 1)


def draw_curves(name, script):
    """Loss, reconstruction and KL by epoch; solid: training, dashed: validation."""
    figure, axes = plt.subplots(1, 3, figsize=(6.69, 2.4), layout="constrained")
    scales = ["log"] * 3 if name == "digits" else ["linear", "linear", "log"]
    for weight, colour in COLOURS.items():
        run = json.loads((RESULTS / f"{script.NAME}_kl{weight}.json").read_text())
        history = pd.DataFrame(run["history"], index=range(1, 1 + len(run["history"])))
        for axis, scale, (term, title) in zip(axes, scales, CURVES.items(), strict=True):
            axis.set(title=f"{title}, nats", xlabel="epoch", yscale=scale)
            axis.yaxis.set_major_formatter("{x:g}")
            axis.plot(history[f"{term}_nats"], color=colour, label=f"λ = {weight}")
            axis.plot(history.get(f"validation_{term}_nats", []), "--", color=colour)
    axes[0].legend()
    figure.savefig(FIGURES / f"curves_{name}.png", dpi=200)


def draw_images(name, script, test):
    """The pictures of one data set; the posterior of its first test image, and its numbers."""
    x = test[:16] / 255
    numbers = {}
    figure, axes = plt.subplots(3, 2, sharey="col", figsize=(5.63, 3.9), layout="constrained")
    ticks = [-10, 0, 10] if name == "digits" else [-2, 0, 2]
    for weight, row in zip(COLOURS, axes, strict=True):
        run = f"{script.NAME}_kl{weight}"
        model, _ = script.load_checkpoint(ROOT / "results" / "report" / run / "model.pt")
        torch.manual_seed(0)
        _, kl, mean, logvar = script.evaluate(model, test)
        codes = mean[:16].float()
        pairs = torch.cat([x, decode(model, codes)]).view(2, 2, 8, *x.shape[1:]).transpose(0, 1)
        samples = decode(model, torch.randn(32, codes.size(1)))
        if weight == 1:
            save(f"reconstructions_{name}", pairs.flatten(0, 2), 8)
            save(f"samples_{name}", samples, 8)
            save(f"interpolations_{name}", paths(script, model, x, codes, 6), 8)
        save(f"lambda{weight}_reconstructions_{name}", pairs[:, :, :6].flatten(0, 2), 6)
        save(f"lambda{weight}_samples_{name}", samples[:24], 6)
        save(f"lambda{weight}_interpolations_{name}", paths(script, model, x[:8], codes, 4), 6)
        row[0].set(title=f"λ = {weight}: mean m", yscale="symlog", yticks=ticks)
        row[1].set(title=f"λ = {weight}: variance s²", yscale="log")
        for axis, values, prior in zip(row, (mean[0], logvar[0].exp()), (0, 1), strict=True):
            axis.plot(values, "k.", ms=4, mew=0)
            axis.axhline(prior, color="red", lw=0.6)
            axis.yaxis.set_major_formatter("{x:g}")
        made = []  # by each group's layer of the learned prior, m' and log s'^2
        for group in model.groups:
            group.prior_net.register_forward_hook(lambda *seen, made=made: made.append(seen[2]))
        model.decode(codes[:1])
        log_s2 = torch.cat([both.chunk(2, 1)[1].flatten() for both in made])
        floor = -10 - log_s2  # of h the log-variance is -10 at least
        row[1].plot(floor.exp(), ".", color="0.7", ms=3, mew=0, zorder=1)
        levels = itertools.groupby(model.groups, lambda group: group.shape[1])
        sizes = [sum(int(np.prod(group.shape)) for group in level) for _, level in levels]
        numbers[weight] = {
            "mean_abs": mean[0].abs().mean().item(),
            "variance": logvar[0].exp().mean().item(),
            "share_at_floor": (logvar[0] < floor + 0.001).double().mean().item(),
            "kl_nats": kl[0].sum().item(),
            "dimensions_above_0.01_nats": int((kl[0] > 0.01).sum()),
            "test_kl_of_levels_nats": [part.sum().item() for part in kl.mean(0).split(sizes)],
        }
    figure.supxlabel("dimension of z, from the top down", fontsize=7)
    figure.savefig(FIGURES / f"posterior_{name}.png", dpi=200)
    return numbers


def draw_attention(script, args):
    """Attention in two unseen texts, and how often the class changes if a fifth of a text goes."""
    train, test, classes = script.load_news(args)
    vectors = script.load_vectors("auto", {*train["tokens"].explode(), *test["tokens"].explode()})
    model = script.train_fold(args, train, test, 1, classes, vectors)[0].requires_grad_(False)
    held = train[train["fold"] == 1]
    chosen = {}
    changed = np.zeros(2)  # without the words of most attention, without as many others
    for row in held.itertuples():
        text = script.encode([row.tokens], model.vocabulary)[0]
        logits, maps = model.eval()(text[None], return_attention=True)
        weights = maps[-1][0].mean(0)  # (T, T), of all heads
        sure, guess = logits[0].softmax(0).max(0)
        for way, order in enumerate(((-weights).sum(0).argsort(), torch.randperm(len(text)))):
            kept = text[order[len(text) // 5 :].sort().values]
            changed[way] += model(kept[None]).argmax().item() != guess
        is_right = guess.item() == row.target
        if 15 < len(text) < 22 and sure > chosen.get(is_right, [0])[0]:
            chosen[is_right] = sure, row, weights, guess
    figure, axes = plt.subplots(1, 2, figsize=(6.69, 3.3), layout="constrained")
    for axis, (_, row, weights, guess) in zip(axes, (chosen[True], chosen[False]), strict=True):
        picture = axis.imshow(weights, cmap="Reds", vmin=0, vmax=0.3)
        axis.set_xticks(range(len(row.tokens)), row.tokens, rotation=90, parse_math=False)
        axis.set_yticks(range(len(row.tokens)), row.tokens, parse_math=False)
        axis.set_title(f"true class {CLASSES[row.target]}, predicted {CLASSES[guess]}")
    figure.colorbar(picture, ax=axes, label="attention weight", extend="max", shrink=0.7)
    figure.savefig(FIGURES / "attention.png", dpi=200)
    return {"changed_attended_random": (changed / len(held)).tolist(), "texts": len(held)}


if __name__ == "__main__":
    plt.rcParams |= {"font.size": 7, "axes.titlesize": 7, "axes.titlepad": 2, "lines.linewidth": 1}
    news = load_script("transformer")
    result = {"attention": draw_attention(news, news.parse_args(sys.argv[1:]))}
    for kind, name in (("vae_mnist", "digits"), ("vae_anime", "faces")):
        script = load_script(kind)
        draw_curves(name, script)
        images = script.load_images(script.parse_args(sys.argv[1:]))
        result[name] = draw_images(name, script, script.split(images)[2])
    (RESULTS / "pictures.json").write_text(json.dumps(result | source(), indent=1))
