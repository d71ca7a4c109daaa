import io
import json
import math
import shutil
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SAMPLE, error_line
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.distributions import LowRankMultivariateNormal, Normal, kl_divergence

SMALL = ["--epochs", "3", "--latent-dim", "8", "--batch-size", "256", "--data", SAMPLE]
PICTURES = {
    f"{name}.png"
    for name in ("curves", "reconstructions", "samples", "samples_aggregate", "interpolation", "posterior")
}
V = None  # the script, as a module


@pytest.fixture(scope="session", autouse=True)
def script(vae_anime):
    global V
    V = vae_anime


def small_vae(latent_dim=3):
    torch.manual_seed(0)
    return V.VAE(latent_dim).eval()


def faces(n=6):
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def bytes_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def make_zip(folder, members, whole=700):
    """anime-faces.zip of `whole` small faces and the members {name: bytes}; returns its Config."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "anime-faces.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(whole):
            archive.writestr(f"data/{i}.png", bytes_of(Image.new("RGB", (64, 64), (i % 256, i // 256, 0))))
        for name, data in members.items():
            archive.writestr(name, data)
    return V.Config(data=str(folder))


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
    model, mean, x = small_vae(), faces() / 2, faces()
    model.variance.fill_(0.3)
    theirs = -Normal(mean, math.sqrt(0.3)).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(model.reconstruction_loss(mean, x), theirs)
    model.variance.fill_(1 / (2 * math.pi))
    torch.testing.assert_close(model.reconstruction_loss(x, x), torch.zeros(6))
    ones = math.pi * 12288  # half of 12288 squares of 1, over the variance
    torch.testing.assert_close(model.reconstruction_loss(x + 1, x), torch.full((6,), ones))


def test_in_training_the_variance_is_the_best_one():
    """No other variance gives a smaller loss, and the gradient is that of the log-likelihood with it held."""
    model, mean, x = small_vae(), (faces() / 2).requires_grad_(), faces()
    loss = model.train().reconstruction_loss(mean, x).mean()
    best = model.variance.clone()
    torch.testing.assert_close(best, (mean - x).square().mean().detach())
    (gradient,) = torch.autograd.grad(loss, mean)
    torch.testing.assert_close(gradient, ((mean - x) / best / 6).detach())
    for factor in (0.9, 1.1):
        model.eval().variance.copy_(best * factor)
        assert model.reconstruction_loss(mean, x).mean() > loss


def test_elbo_does_not_depend_on_the_batch():
    """The commonest bug divides the KL term, but not the reconstruction, by the batch."""
    model, images = small_vae(), (faces(1) * 255).to(torch.uint8)
    model.reparameterize = lambda mean, logvar: mean
    one, many = V.infer(model, images), V.infer(model, images.expand(9, -1, -1, -1))
    assert one[0] == pytest.approx(many[0], rel=1e-4)
    kl = [V.kl_divergence(*posterior).sum(1).mean().item() for _, *posterior in (one, many)]
    assert kl[0] == pytest.approx(kl[1], rel=1e-4)


def test_interface():
    model, x = small_vae(), faces()
    decoded, mean, logvar = model(x)
    assert decoded.shape == x.shape and mean.shape == logvar.shape == (6, 3)
    assert model.decode(mean).shape == x.shape
    wild = model.decode(100 * torch.randn(6, 3))
    assert wild.min() >= 0 and wild.max() <= 1


def test_starts_as_probabilistic_pca():
    """The best linear VAE's ELBO is tight: it is the log-likelihood of Tipping and Bishop's solution."""
    base, noise = torch.randn(5, 12288), torch.randn(500, 12288)
    codes = torch.randn(500, 5) * torch.tensor([5.0, 4, 3, 2, 1])
    images = ((codes @ base * 0.01 + noise * 0.03 + 0.5).clamp(0, 1) * 255).to(torch.uint8).view(-1, 3, 64, 64)
    model = V.VAE(5).eval()
    model.start(images)
    x = V.to_float(images)
    flat = x.flatten(1).double()
    _, singular, components = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    eigenvalues = singular.square() / 500
    variance = eigenvalues[5:].sum() / (12288 - 5)
    factors = components[:5].T * (eigenvalues[:5] - variance).sqrt()
    exact = LowRankMultivariateNormal(flat.mean(0), factors, variance.expand(12288))
    losses = [V.infer(model, images) for _ in range(10)]
    loss = sum(part[0] for part in losses) / 10 + V.kl_divergence(*losses[0][1:]).sum(1).mean().item()
    assert -loss == pytest.approx(exact.log_prob(flat).mean().item(), abs=3)


@pytest.mark.parametrize("faces", ["all alike", "two kinds"])
def test_starts_from_images_of_low_rank(faces):
    images = torch.full((700, 3, 64, 64), 90, dtype=torch.uint8)
    images[::2] += 0 if faces == "all alike" else 50
    model = V.VAE(8)
    model.start(images)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    decoded, mean, logvar = model.train()(V.to_float(images[:4]))
    loss = model.reconstruction_loss(decoded, V.to_float(images[:4])) + V.kl_divergence(mean, logvar).sum(1)
    assert loss.isfinite().all() and (decoded - V.to_float(images[:4])).abs().max() < 0.02


def test_reparameterized_samples_have_the_posteriors_moments():
    mean, logvar = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, math.log(9)]])
    z = small_vae().reparameterize(mean.expand(40000, 2), logvar.expand(40000, 2))
    torch.testing.assert_close(z.mean(0), mean[0], atol=0.06, rtol=0)
    torch.testing.assert_close(z.var(0), logvar.exp()[0], atol=0.25, rtol=0)


def test_logvar_is_bounded():
    model = small_vae()
    model.encoder[-1].bias.data.fill_(1e6)
    mean, logvar = model.encode(faces())
    assert logvar.max() == V.LOGVAR_BOUND and V.kl_divergence(mean, logvar).isfinite().all()


def test_pyramid_adds_up_to_the_image():
    x = faces(2)
    fine, middle, coarse = V.laplacian_pyramid(x)
    assert fine.shape == x.shape and middle.shape[-1] == 32 and coarse.shape[-1] == 16
    flat = V.laplacian_pyramid(torch.full((1, 3, 64, 64), 0.7))
    assert flat[0][:, :, 4:-4, 4:-4].abs().max() < 1e-5  # no detail in a plain image
    torch.testing.assert_close(flat[2], torch.full((1, 3, 16, 16), 0.7))


def test_sliced_wasserstein_tells_like_from_unlike():
    images = V.load_images(V.Config(data=str(SAMPLE)))[0] / 255
    one, two = images[:200], images[200:400]
    noisy = (two + 0.1 * torch.randn_like(two)).clamp(0, 1)
    blurred = F.avg_pool2d(two, 5, 1, 2)
    near, *far = (sum(V.sliced_wasserstein(part, one)) for part in (two, noisy, blurred))
    assert all(part > 1.5 * near for part in far)


def test_sliced_wasserstein_by_hand(monkeypatch):
    """One level, values sorted: the mean distance of two sets of numbers along each direction."""
    monkeypatch.setattr(V, "laplacian_pyramid", lambda x: [x])
    one, two = torch.randn(2, 50, 1, 7, 7)
    a, b = (((part - part.mean()) / part.std()).flatten(1) for part in (one, two))
    g = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(49, 4000, generator=g), dim=0)
    mine = ((a @ directions).sort(0).values - (b @ directions).sort(0).values).abs().mean().item() * 1000
    (theirs,) = V.sliced_wasserstein(one, two, 1, 4000)
    assert theirs == pytest.approx(mine, rel=0.03)


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


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "LA", "RGBA", "CMYK", "I;16"])
def test_any_mode_becomes_rgb(mode):
    grey = Image.fromarray(
        np.full((64, 64), 51200 if mode == "I;16" else 200, np.uint16 if mode == "I;16" else np.uint8)
    )
    image = grey if mode == "I;16" else grey.convert("L").convert(mode)
    picture = V.read_image(bytes_of(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert picture.shape == (3, 64, 64) and picture.dtype == torch.uint8
    assert (picture.float() - (255 if mode == "1" else 200)).abs().mean() < (130 if mode == "1" else 2)


def test_what_is_transparent_is_white():
    for image in (Image.new("RGBA", (64, 64), (9, 9, 9, 0)), Image.new("LA", (64, 64), (9, 0))):
        assert V.read_image(bytes_of(image)).min() == 255
    palette = Image.new("P", (64, 64), 3)
    assert V.read_image(bytes_of(palette, "GIF", transparency=3)).min() == 255


@pytest.mark.parametrize("size", [(1, 1), (64, 100), (4000, 3000), (7, 300)])
def test_any_size_is_cropped_to_the_centre(size):
    image = Image.new("RGB", size, "blue")
    image.paste("red", (size[0] // 4, size[1] // 4, size[0] - size[0] // 4, size[1] - size[1] // 4))
    picture = V.read_image(bytes_of(image))
    assert picture.shape == (3, 64, 64)
    assert picture[0, 32, 32] > 250 and picture[2, 32, 32] < 5


def test_a_few_unreadable_images_are_left_out_and_named(tmp_path, capsys):
    members = {
        "data/text.png": b"this is no image",
        "data/cut.png": bytes_of(Image.effect_noise((64, 64), 50))[:900],
        "data/empty.jpg": b"",
        "data/readme.txt": b"not an image, and not called one",
        "__MACOSX/data/._1.png": b"crumbs",
        "thumbs.db": b"more crumbs",
        "./deep/er/face.JPG": bytes_of(Image.new("RGB", (64, 64), "red"), "JPEG"),
    }
    images, _ = V.load_images(make_zip(tmp_path, members))
    assert images.shape == (701, 3, 64, 64) and images[-1, 0].min() > 250
    notice = capsys.readouterr().err
    assert "3 unreadable" in notice and all(name in notice for name in ("text.png", "cut.png", "empty.jpg"))
    assert "readme" not in notice and "MACOSX" not in notice


def test_more_images_than_memory_holds_are_refused_before_any_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(V, "TOO_MANY", 699)
    monkeypatch.setattr(V, "read_image", None)
    make_zip(tmp_path, {})
    assert "700 images, over 699" in error_line(V, "--data", tmp_path)


def test_an_encrypted_or_damaged_member_is_left_out(tmp_path, capsys):
    config = make_zip(tmp_path, {})
    path = tmp_path / "anime-faces.zip"
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[second + 8] |= 1  # the directory says: encrypted
    data[data.index(b"PK\x03\x04") + 60] ^= 255  # a bit of the first image's data
    path.write_bytes(data)
    assert len(V.load_images(config)[0]) == 698
    assert "2 unreadable" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fault", ["missing", "empty", "no zip", "truncated", "no images", "too few", "bomb", "big file"]
)
def test_bad_files(tmp_path, fault):
    whole = (SAMPLE / "anime-faces.zip").read_bytes()
    path = tmp_path / "anime-faces.zip"
    if fault in ("no images", "too few"):
        make_zip(tmp_path, {"data/readme.txt": b"hello"}, whole=0 if fault == "no images" else 30)
    elif fault == "bomb":  # 30,000 x 30,000 pixels in 110 kB
        make_zip(tmp_path, {"data/bomb.png": bytes_of(Image.new("1", (30000, 30000)))})
    elif fault == "big file":
        make_zip(tmp_path, {"data/zeros.png": bytes(70_000_000)})
    elif fault != "missing":
        path.write_bytes({"empty": b"", "no zip": b"GIF89a" * 99, "truncated": whole[: len(whole) // 2]}[fault])
    line = error_line(V, "--data", tmp_path, "--out", tmp_path / "out")
    assert "anime-faces.zip" in line and not (tmp_path / "out").exists()
    assert {"bomb": "bomb.png", "big file": "zeros.png"}.get(fault, "") in line


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


def assert_same_run(one, two):
    assert figures(one) == figures(two)
    a, b = (torch.load(out / "model.pt", weights_only=True) for out in (one, two))
    assert a["history"] == b["history"]
    assert all(torch.equal(weight, b["weights"][name]) for name, weight in a["weights"].items())


def test_run_writes_everything(finished):
    assert {path.name for path in finished.iterdir()} == PICTURES | {"metrics.json", "model.pt", "checkpoint.pt"}
    metrics = figures(finished)
    parts = metrics["reconstruction_nats"] + metrics["kl_nats"]
    assert metrics["negative_elbo_nats"] == pytest.approx(parts) == pytest.approx(-metrics["elbo_nats"])
    assert sum(metrics["kl_per_dimension_nats"]) == pytest.approx(metrics["kl_nats"])
    assert metrics["bits_per_dim"] == pytest.approx(8 + parts / (12288 * math.log(2)))
    assert metrics["psnr_db"] == pytest.approx(-10 * math.log10(metrics["mse"]))
    assert metrics["swd_real"] < metrics["swd_reconstructions"] + 20
    assert metrics["test_images"] == 100 and 0 <= metrics["active_units"] <= 8


def test_eval_only_makes_the_same_again(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    before = figures(finished)
    for name in PICTURES | {"metrics.json", "checkpoint.pt"}:
        (tmp_path / "out" / name).unlink()
    V.main([*map(str, SMALL), "--out", str(tmp_path / "out"), "--eval-only"])
    assert figures(tmp_path / "out") == before
    assert {path.name for path in (tmp_path / "out").iterdir()} >= PICTURES


def test_resuming_a_finished_run_changes_nothing(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    V.main([*map(str, SMALL), "--out", str(tmp_path / "out"), "--resume"])
    assert_same_run(finished, tmp_path / "out")


def test_a_heavy_kl_switches_dimensions_off(tmp_path, monkeypatch):
    monkeypatch.setattr(V, "sliced_wasserstein", lambda one, two: [0.0, 0.0, 0.0])
    argv = "--kl-weight 1e5 --epochs 6 --batch-size 32 --latent-dim 4 --lr 2e-2".split()
    metrics = V.main(["--data", str(SAMPLE), "--out", str(tmp_path), *argv])
    assert metrics["active_units"] == 0
    assert metrics["components_above_lambda_variance"] == 0
