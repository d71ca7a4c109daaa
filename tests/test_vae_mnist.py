import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import SAMPLE, error_line
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Normal, kl_divergence

SMALL = ["--epochs", "3", "--latent-dim", "4", "--batch-size", "256", "--data", SAMPLE]
PICTURES = {f"{name}.png" for name in ("curves", "reconstructions", "samples", "interpolation", "posterior")}
V = None  # the script, as a module


@pytest.fixture(scope="session", autouse=True)
def script(vae_mnist):
    global V
    V = vae_mnist


@pytest.fixture(scope="module", autouse=True)
def brief(script):
    """Fewer importance samples than DESIGN's 500 of 500 images, to save time."""
    assert V.evaluate.__defaults__ == (500, 500)
    V.evaluate.__defaults__ = (50, 200)
    yield
    V.evaluate.__defaults__ = (500, 500)


def small_vae(latent_dim=3):
    torch.manual_seed(0)
    return V.VAE(latent_dim).eval()


def digits(n=6):
    return (torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0)) < 0.3).float()


# ------------------------------------------------------------------------------------------- loss and model


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 10**6))
def test_kl_is_torchs(batch, dimensions, seed):
    mean, logvar = torch.randn(2, batch, dimensions, generator=torch.Generator().manual_seed(seed)).double()
    ours = V.kl_divergence(mean, logvar)
    theirs = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(torch.zeros_like(mean), 1.0))
    torch.testing.assert_close(ours, theirs)


def test_kl_by_hand():
    mean, logvar = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, math.log(4)]])
    torch.testing.assert_close(V.kl_divergence(mean, logvar), torch.tensor([[0, 0.5, (4 - 1 - math.log(4)) / 2]]))


def test_reconstruction_is_torchs_and_summed_over_pixels():
    model, logits, x = small_vae(), torch.randn(6, 1, 28, 28), digits()
    theirs = -Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(model.reconstruction_loss(logits, x), theirs)
    half = model.reconstruction_loss(torch.zeros(6, 1, 28, 28), x)
    torch.testing.assert_close(half, torch.full((6,), 784 * math.log(2)))


def test_elbo_does_not_depend_on_the_batch():
    """The commonest bug divides the KL term, but not the reconstruction, by the batch."""
    model, images = small_vae(), (digits(1) * 255).to(torch.uint8)
    model.reparameterize = lambda mean, logvar: mean
    one, many = V.infer(model, images), V.infer(model, images.expand(9, -1, -1, -1))
    assert one[0] == pytest.approx(many[0], rel=1e-4)
    kl = [V.kl_divergence(*posterior).sum(1).mean().item() for _, *posterior in (one, many)]
    assert kl[0] == pytest.approx(kl[1], rel=1e-4)


def test_interface():
    model, x = small_vae(), digits()
    decoded, mean, logvar = model(x)
    assert decoded.shape == x.shape and mean.shape == logvar.shape == (6, 3)
    assert model.decode(mean).shape == x.shape


def test_reparameterized_samples_have_the_posteriors_moments():
    mean, logvar = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, math.log(9)]])
    z = small_vae().reparameterize(mean.expand(40000, 2), logvar.expand(40000, 2))
    torch.testing.assert_close(z.mean(0), mean[0], atol=0.06, rtol=0)
    torch.testing.assert_close(z.var(0), logvar.exp()[0], atol=0.25, rtol=0)


def test_refined_posterior_is_better_and_each_images_own():
    model, x = small_vae(), digits()
    with torch.inference_mode():
        before = model.encode(x)
        model.refine_steps = 20
        after, alone = model.encode(x), model.encode(x[3:4])
    for one, all_of_them in zip(alone, after, strict=True):
        torch.testing.assert_close(one, all_of_them[3:4], atol=1e-4, rtol=1e-4)
        assert not one.requires_grad
    z = torch.randn(2000, 3)

    def loss(mean, logvar):
        decoded = (model.decode(m + z * (v / 2).exp()) for m, v in zip(mean, logvar, strict=True))
        nll = [
            model.reconstruction_loss(part, image.expand_as(part)).mean()
            for part, image in zip(decoded, x, strict=True)
        ]
        return torch.stack(nll) + V.kl_divergence(mean, logvar).sum(1)

    with torch.no_grad():
        assert (loss(*after) < loss(*before)).all()
    assert all(weight.grad is None for weight in model.parameters())


def test_refinement_stays_where_the_loss_is_flat():
    """A decoder that ignores z, a posterior that is the prior: nothing to gain by a step."""
    model, x = small_vae(), digits()
    for part in (model.encoder[-1], model.decoder[0]):
        part.weight.data.zero_()
    model.encoder[-1].bias.data.zero_()
    model.refine_steps = 20
    mean, logvar = model.encode(x)
    assert mean.abs().max() < 1e-6 and logvar.abs().max() < 1e-6


def test_logvar_is_bounded():
    model = small_vae()
    model.encoder[-1].bias.data.fill_(1e6)
    mean, logvar = model.encode(digits())
    assert logvar.max() == V.LOGVAR_BOUND and V.kl_divergence(mean, logvar).isfinite().all()


def test_running_average_by_hand():
    """Weights that are 0 at first, then 1: the start is forgotten in a few steps; later one step in 200 counts."""
    layer = torch.nn.Linear(1, 1)
    average, seen = V.AveragedModel(layer, multi_avg_fn=V.move_average), []
    for step in range(3):
        torch.nn.init.constant_(layer.weight, float(step > 0))
        average.update_parameters(layer)
        seen.append(average.module.weight.item())
    assert seen == pytest.approx([0, 9 / 11, 1 - (2 / 11) * (3 / 12)])
    average.n_averaged += 10_000
    torch.nn.init.constant_(layer.weight, seen[-1] + 1)
    average.update_parameters(layer)
    assert average.module.weight.item() == pytest.approx(seen[-1] + 0.005)


def test_importance_weighted_bound_is_exact_where_the_posterior_is():
    """A decoder that ignores z, and an encoder that says N(0, 1): every weight is p(x)."""
    model, x = small_vae(), digits()
    for part in (model.encoder[-1], model.decoder[0]):
        part.weight.data.zero_()
    model.encoder[-1].bias.data.zero_()
    nll = model.reconstruction_loss(model.decode(torch.zeros(6, 3)), x).mean().item()
    assert V.importance_weighted_nll(model, (x * 255).to(torch.uint8), 7) == pytest.approx(nll, rel=1e-5)


def test_importance_weighted_bound_is_the_integral():
    """One latent dimension: the bound of many samples against p(x) integrated on a grid."""
    model, x = small_vae(1), digits(2)
    model.decoder[0].weight.data.mul_(5)
    z = torch.linspace(-8, 8, 4001)[:, None]
    log_joint = torch.stack([-model.reconstruction_loss(model.decode(z), image.expand(4001, 1, 28, 28)) for image in x])
    log_joint = log_joint + Normal(0.0, 1.0).log_prob(z)[:, 0]
    exact = -(log_joint.logsumexp(1) + math.log(16 / 4000)).mean().item()
    assert V.importance_weighted_nll(model, (x * 255).to(torch.uint8), 2000) == pytest.approx(exact, abs=0.05)


# ------------------------------------------------------------------------------------------------------ data


def test_split_is_fixed_and_disjoint():
    images = torch.arange(1000).to(torch.int32)[:, None, None, None].expand(1000, 1, 28, 28)
    torch.manual_seed(1)
    parts = V.split(images)
    torch.manual_seed(2)
    again = V.split(images)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    assert [len(part) for part in parts] == [850, 50, 100]
    assert sorted(torch.cat(parts)[:, 0, 0, 0].tolist()) == list(range(1000))


def test_augmentation_moves_a_little_and_fades():
    images = V.split(V.load_images(V.Config(data=str(SAMPLE)))[0])[0][:400]
    torch.testing.assert_close(V.augment(images, 0), images.float(), atol=0.01, rtol=0)
    moved = V.augment(images, 1)
    assert moved.min() >= 0 and moved.max() < 255.1
    same = (V.to_float(moved) == V.to_float(images)).float().mean()
    assert 0.8 < same < 0.97
    assert (V.to_float(V.augment(images, 0.2)) == V.to_float(images)).float().mean() > same


def save(folder, **arrays):
    folder.mkdir(exist_ok=True)
    np.savez(folder / "TibetanMNIST.npz", **arrays)
    return V.Config(data=str(folder))


@pytest.mark.parametrize(
    "form", ["as it is", "zeros and ones", "floats to 1", "bools", "channel last", "channel first"]
)
def test_plainly_meant_images_are_accepted(tmp_path, form):
    grey = np.load(SAMPLE / "TibetanMNIST.npz")["image"][:700]
    binary = (grey > 127).astype(np.uint8)
    forms = {
        "as it is": grey,
        "zeros and ones": binary,
        "floats to 1": grey / 255,
        "bools": binary.astype(bool),
        "channel last": grey[..., None],
        "channel first": grey[:, None],
    }
    images, _ = V.load_images(save(tmp_path, image=forms[form]))
    assert images.shape == (700, 1, 28, 28) and images.dtype == torch.uint8
    np.testing.assert_array_equal(V.to_float(images)[:, 0].numpy(), binary)


BAD = {
    "wrong key": dict(images=np.zeros((700, 28, 28), np.uint8)),
    "wrong shape": dict(image=np.zeros((700, 32, 32), np.uint8)),
    "flat": dict(image=np.zeros((700, 784), np.uint8)),
    "too few": dict(image=np.zeros((3, 28, 28), np.uint8)),
    "text": dict(image=np.full((700, 28, 28), "a")),
    "pickled": dict(image=np.full((700, 28, 28), None)),
    "NaN": dict(image=np.full((700, 28, 28), np.nan)),
    "too bright": dict(image=np.full((700, 28, 28), 1000)),
    "negative": dict(image=np.full((700, 28, 28), -1)),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_arrays(tmp_path, fault):
    save(tmp_path / "course", **BAD[fault])
    assert "TibetanMNIST.npz" in error_line(V, "--data", tmp_path / "course", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["missing", "empty", "no zip", "truncated", "npy", "pickle"])
def test_bad_files(tmp_path, fault):
    whole = (SAMPLE / "TibetanMNIST.npz").read_bytes()
    path = tmp_path / "TibetanMNIST.npz"
    if fault == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros((700, 28, 28), np.uint8))
    elif fault == "pickle":
        path.write_bytes(b"cos\nmkdir\n(S'" + str(tmp_path / "exploded").encode() + b"'\ntR.")
    elif fault != "missing":
        path.write_bytes({"empty": b"", "no zip": b"GIF89a" * 99, "truncated": whole[: len(whole) // 2]}[fault])
    assert "TibetanMNIST.npz" in error_line(V, "--data", tmp_path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "argv, part",
    [
        ("--kl-weight -1", "--kl-weight"),
        ("--kl-weight nan", "--kl-weight"),
        ("--latent-dim 0", "--latent-dim"),
        ("--latent-dim 2.5", "--latent-dim"),
        ("--epochs 0", "--epochs"),
        ("--batch-size 0", "--batch-size"),
        ("--lr inf", "--lr"),
        ("--eval-only", "model.pt"),
        ("--lr 1e5", "loss"),
    ],
)
def test_bad_options(tmp_path, argv, part):
    assert part in error_line(V, "--data", SAMPLE, "--out", tmp_path / "out", *argv.split())
    assert not (tmp_path / "out" / "model.pt").exists()


# ------------------------------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small run on the sample."""
    out = tmp_path_factory.mktemp("finished") / "out"
    V.main([*map(str, SMALL), "--out", str(out)])
    return out


def figures(out):
    metrics = json.loads((out / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if "seconds" not in name and name not in ("argv", "config")}


def test_run_writes_everything(finished):
    assert {path.name for path in finished.iterdir()} == PICTURES | {"metrics.json", "model.pt", "checkpoint.pt"}
    metrics = figures(finished)
    parts = metrics["reconstruction_nats"] + metrics["kl_nats"]
    assert metrics["negative_elbo_nats"] == pytest.approx(parts) == pytest.approx(-metrics["elbo_nats"])
    assert sum(metrics["kl_per_dimension_nats"]) == pytest.approx(metrics["kl_nats"])
    assert metrics["iw_nll_nats"] < metrics["negative_elbo_nats"] + 1
    assert metrics["test_images"] == 200 and 0 <= metrics["active_units"] <= 4


def test_eval_only_makes_the_same_again(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    before = figures(finished)
    for name in PICTURES | {"metrics.json", "checkpoint.pt"}:
        (tmp_path / "out" / name).unlink()
    V.main([*map(str, SMALL), "--out", str(tmp_path / "out"), "--eval-only"])
    assert figures(tmp_path / "out") == before
    assert {path.name for path in (tmp_path / "out").iterdir()} >= PICTURES


def test_a_heavy_kl_collapses_by_identity(tmp_path):
    """No information in z: the decoder gives every pixel's mean, whose entropy is the reconstruction term."""
    argv = "--kl-weight 100 --epochs 8 --batch-size 16 --latent-dim 4".split()
    metrics = V.main(["--data", str(SAMPLE), "--out", str(tmp_path), *argv])
    assert metrics["active_units"] == 0 and metrics["kl_nats"] < 0.1
    assert metrics["train_reconstruction_nats"] == pytest.approx(metrics["pixel_entropy_nats"], rel=0.1)


def test_no_kl_draws_the_aggregate(tmp_path, monkeypatch):
    monkeypatch.setattr(V, "REFINE_STEPS", 2)
    V.main([*map(str, SMALL), "--out", str(tmp_path), "--kl-weight", "0"])
    assert (tmp_path / "samples_aggregate.png").exists()
