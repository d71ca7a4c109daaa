"""Both autoencoders: their losses against torch's distributions, their readers, their runs."""

import io
import json
import math
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FUZZ, SAMPLE, error_of, load, spoil
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.distributions import Bernoulli, LowRankMultivariateNormal, Normal, kl_divergence

DIGITS, FACES = load("vae_mnist"), load("vae_anime")
SMALL = "--epochs 3 --latent-dim 6 --batch-size 256".split()
PICTURES = "curves reconstructions samples interpolation posterior".split()


@pytest.fixture(scope="module", params=["vae_mnist", "vae_anime"])
def V(request):
    return load(request.param)


@pytest.fixture
def model(V):
    torch.manual_seed(0)
    model = V.VAE(6).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.7 / math.sqrt(weight[0].numel()))
    return model


@pytest.fixture
def images(V):
    shape = (5, 1, 28, 28) if V.NAME == "vae_mnist" else (5, 3, 64, 64)
    return 255 * torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).byte()


def test_elbo_terms_are_torchs(V, model, images):
    """-log p(x|z) of the very z that was drawn, summed over pixels; KL of each dimension."""
    x = images / 255
    torch.manual_seed(1)
    reconstruction, kl = V.elbo_terms(model, x)
    torch.manual_seed(1)
    z, mean, logvar = model.sample_posterior(x)
    decoded = model.decode(z)
    if V.NAME == "vae_mnist":
        p = Bernoulli(logits=decoded)
        torch.testing.assert_close(p.mean, model.likelihood(z).mean)
    else:
        p = Normal(decoded, math.exp(model.log_sigma.item()))
    torch.testing.assert_close(reconstruction, -p.log_prob(x).sum((1, 2, 3)))
    theirs = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(torch.zeros_like(mean), 1.0))
    torch.testing.assert_close(kl, theirs, rtol=1e-4, atol=1e-5)


def test_interface(V, model, images):
    x = images / 255
    torch.manual_seed(1)
    decoded, mean, logvar = model(x)
    torch.manual_seed(1)
    z, *same = model.sample_posterior(x)
    torch.testing.assert_close(decoded, model.decode(z))  # the picture of that very path
    torch.manual_seed(1)
    for other in (same, model.encode(x)):
        torch.testing.assert_close(torch.stack([*other]), torch.stack([mean, logvar]))
    assert decoded.shape == x.shape and mean.shape == (5, 6)
    assert V.VAE(5)(x)[1].shape == (5, 5)  # any number of dimensions
    z = model.reparameterize(torch.ones(40000), torch.full([40000], math.log(9)))
    assert abs(z.mean() - 1) < 0.1 and abs(z.std() - 3) < 0.1
    if V.NAME == "vae_anime":
        assert 0 <= model.decode(99 * mean).min() and model.decode(99 * mean).max() <= 1


def test_the_kl_term_has_the_weight_lambda(V, images, monkeypatch):
    """From 0, of a model whose terms are its two weights; an epoch's rounds see each image once."""
    model, seen = torch.nn.Module(), []
    model.terms = torch.nn.Parameter(torch.zeros(2))

    def elbo_terms(model, x):
        return model.terms[0].expand(len(x)), model.terms[1].expand(len(x), 3)

    monkeypatch.setattr(V, "elbo_terms", elbo_terms)
    monkeypatch.setattr(V, "training_input", lambda images, progress: seen.append(images) or images)
    args = SimpleNamespace(epochs=2, batch_size=9, lr=1.0, kl_weight=7.0, seed=0)
    for done in range(V.ROUNDS + 1):
        V.train_round(args, model, torch.optim.SGD(model.parameters()), images, done)
        assert model.terms.grad.tolist() == [1.0, 21.0 * (done > 0)]
    sums = (part.flatten(1).sum(1).sort()[0] for part in (images, torch.cat(seen[: V.ROUNDS])))
    assert torch.equal(*sums)


def test_later_groups_see_what_was_drawn_for_earlier_ones():
    model = DIGITS.VAE(8).eval()
    x = torch.ones(5, 1, 28, 28)
    (one, _), (two, _) = model.encode(x), model.encode(x)
    assert torch.equal(one[:, :4], two[:, :4]) and not torch.allclose(one[:, 4:], two[:, 4:])
    z, mean, _ = model.sample_posterior(x, noise=False)  # what pictures are decoded from
    codes = DIGITS.infer(model, 255 * x.byte())[2]
    assert torch.equal(z, mean) and torch.allclose(codes, mean.double(), atol=1e-5)


def test_iw_nll_is_the_integral():
    """One latent dimension: the importance-weighted bound against p(x) integrated on a grid."""
    torch.manual_seed(0)
    model = DIGITS.VAE(1).eval().requires_grad_(False)
    model.groups[0].posterior[-1].bias.data = torch.tensor([0.7, 0.5])  # away from the prior
    images = 255 * torch.randint(0, 2, (2, 1, 28, 28)).byte()
    z = torch.linspace(-8, 8, 2001)[:, None]
    p = Bernoulli(logits=model.decode(z))
    exact = []
    for x in images / 255:
        log_joint = p.log_prob(x).sum((1, 2, 3)) + Normal(0.0, 1.0).log_prob(z[:, 0])
        exact.append(log_joint.logsumexp(0).item() + math.log(16 / 2000))
    bound = DIGITS.own_figures(model, images.repeat(250, 1, 1, 1), None, 0.0)["iw_nll_nats"]
    assert bound == pytest.approx(-sum(exact) / 2, abs=0.1)


def test_faces_start_as_probabilistic_pca():
    """The best linear VAE's ELBO is tight: the log-likelihood of Tipping and Bishop's solution."""
    torch.manual_seed(0)
    codes = torch.randn(700, 5) * torch.tensor([5.0, 4, 3, 2, 1])
    pixels = codes @ torch.randn(5, 12288) * 0.01 + torch.randn(700, 12288) * 0.03 + 0.5
    images = (pixels.clamp(0, 1) * 255).byte().view(-1, 3, 64, 64)
    model = FACES.new_model(SimpleNamespace(latent_dim=5, kl_weight=1), images)
    flat = images.flatten(1).double() / 255
    _, singular, components = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    eigenvalues = singular.square() / 700
    variance = eigenvalues[5:].sum() / (12288 - 5)
    signal = model.linear_out.weight.double().square().sum(0) / FACES.SLOW**2
    assert ((eigenvalues[4] - signal[4]) / variance).item() == pytest.approx(1, abs=0.3)
    factors = components[:5].T * (eigenvalues[:5] - variance).sqrt()
    exact = LowRankMultivariateNormal(flat.mean(0), factors, variance.expand(12288))
    reconstruction, kl, _, _ = FACES.infer(model, images.repeat(9, 1, 1, 1))
    elbo = -(reconstruction.mean() + kl.sum(1).mean()).item()
    assert elbo == pytest.approx(exact.log_prob(flat).mean().item(), abs=3)
    for weight in (30, 1e5):  # where this start is better than that for 1; in the end it collapses
        other = FACES.new_model(SimpleNamespace(latent_dim=5, kl_weight=weight), images)
        terms = [FACES.infer(start, images)[:2] for start in (model, other)]
        losses = [(reconstruction + weight * kl.sum(1)).mean() for reconstruction, kl in terms]
        assert losses[1] < losses[0] and (weight == 30) == (terms[1][1].max() > 1e-6)


def test_faces_start_from_images_of_low_rank():
    images = torch.full((700, 3, 64, 64), 90, dtype=torch.uint8)
    for brighter in (0, 50):
        images[::2] += brighter
        model = FACES.new_model(SimpleNamespace(latent_dim=8, kl_weight=0.0), images)
        assert all(part.isfinite().all() for part in FACES.infer(model, images[:4]))
        assert all(weight.requires_grad for weight in model.parameters())


def test_learning_rate(V):
    rates = [V.learning_rate(i / 1000, 2.0) for i in range(1000)]
    assert rates[0] == 0 and rates[-1] < 1e-4 and rates[20] == max(rates) == pytest.approx(2, 0.01)


def test_the_mixture_finds_the_clusters(V):
    """Codes at three places: samples lie there, in the same shares, and as wide."""
    torch.manual_seed(0)
    centres = torch.tensor([[-9.0, 0], [9, 0], [0, 50]]).double()
    which = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    codes = centres[which] + torch.tensor([0.8, 2.0]) * torch.randn(1000, 2)
    drawn = V.sample_mixture(codes, 4000, components=12).double()
    nearest = torch.cdist(drawn, centres).argmin(1)
    shares = torch.bincount(nearest) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.03, rtol=0)
    width = (drawn - centres[nearest]).std(0).float()
    torch.testing.assert_close(width, torch.tensor([0.8, 2.0]), rtol=0.2, atol=0)


def test_interpolation_keeps_the_length_of_codes(V):
    ends, way = torch.tensor([[4.0, 0], [0, 2]]), torch.tensor([[0.0], [0.5], [1]])
    z = V.interpolate(ends[:1], ends[1:], way)
    torch.testing.assert_close(z[[0, 2]], ends)
    torch.testing.assert_close(z[1], torch.tensor([2.0, 1]) * 3 / 5**0.5)


def test_split_is_fixed_and_disjoint(V):
    parts = V.split(torch.arange(1000))
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(parts, V.split(torch.arange(1000)), strict=True))
    assert [len(part) for part in parts] == [850, 50, 100]
    assert sorted(torch.cat(parts).tolist()) == list(range(1000))


def read(V, folder):
    return V.load_images(V.parse_args(["--data", str(folder)]))


def test_augmentation_moves_a_little_and_fades():
    images = read(DIGITS, SAMPLE)[:400]
    x = images / 255
    same = [(DIGITS.training_input(images, p) == x).float().mean() for p in (0, 0.9, 1.0)]
    assert 0.8 < same[0] < 0.97 and same[0] < same[1] < 1 and same[2] > 0.999


GREY = np.load(SAMPLE / "TibetanMNIST.npz")["image"]
WHITE = GREY > 127
MEANT = [GREY, WHITE, WHITE.astype(np.uint8), GREY / 255 * 1.0000000000000004]
MEANT += [np.where(WHITE, 1.1, -0.1), GREY.astype(np.float16)[..., None]]
MEANT += [GREY.astype(np.int64).reshape(-1, 784)]


@pytest.mark.parametrize("image", MEANT)
def test_digits_that_are_plainly_meant(tmp_path, image):
    np.savez(tmp_path / "TibetanMNIST.npz", image=image)
    images = read(DIGITS, tmp_path)
    assert images.shape == (2000, 1, 28, 28) and images.dtype == torch.uint8
    np.testing.assert_array_equal(images[:, 0].numpy(), 255 * WHITE)


WRONG = [(np.zeros((784, 32, 32), np.uint8), "28 x 28"), (np.full((640, 28, 28), "a"), "28 x 28")]
WRONG += [(np.full((640, 28, 28), None), "allow_pickle"), (GREY[:0], "640 are needed")]
WRONG += [(np.full((640, 28, 28), flat), "scale") for flat in (np.nan, 255, 0)]
WRONG += [(GREY / 127.5 - 1, "scale"), (GREY // 100, "scale")]


@pytest.mark.parametrize("image, part", WRONG)
def test_digits_that_are_not(tmp_path, capsys, image, part):
    np.savez(tmp_path / "TibetanMNIST.npz", image=image)
    line = error_of(capsys, read, DIGITS, tmp_path)
    assert part in line and "TibetanMNIST.npz" in line


def png(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_faces(path, members, whole=640):
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(whole):
            color = (i % 256, i // 256, 0)
            archive.writestr(f"data/{i}.png", png(Image.new("RGB", (64, 64), color)))
        for name, data in members:
            archive.writestr(name, data)


def test_faces_as_a_viewer_shows_them():
    """Any mode, depth and orientation: 200 in the upper half; transparency on white; the centre."""
    light = Image.new("L", (70, 90), 200)
    deep = np.full((64, 64), 51200, np.uint16)  # 200 of 8 bits
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    turned = Image.new("RGB", (64, 64), (200, 200, 200))
    turned.paste((0, 0, 0), (0, 0, 64, 20))
    for data in (
        *(png(light.convert(mode)) for mode in ("L", "RGB", "RGBA", "P", "LA")),
        png(light.convert("CMYK"), "JPEG"),
        png(Image.fromarray(deep)),
        png(Image.fromarray(np.full((64, 64), 200, np.int32)), "TIFF"),
        png(Image.fromarray(deep.astype(np.int32)), "TIFF"),
        png(Image.fromarray(np.full((64, 64), 200 / 255, np.float32)), "TIFF"),
        png(turned, "JPEG", exif=upside_down),
    ):
        face = FACES.read_image(io.BytesIO(data))
        assert face.shape == (3, 64, 64) and face.dtype == torch.uint8
        assert (face[:, :40].float() - 200).abs().max() < 6
    dark = Image.fromarray(np.full((64, 64), 255, np.uint16))
    assert FACES.read_image(io.BytesIO(png(dark))).max() == 0
    palette = png(Image.new("P", (64, 64), 3), "GIF", transparency=3)
    for data in (png(Image.new("RGBA", (64, 64), (9, 9, 9, 0))), palette):
        assert FACES.read_image(io.BytesIO(data)).min() == 255
    image = Image.new("RGB", (64, 200), "blue")
    image.paste("red", (0, 60, 64, 140))
    face = FACES.read_image(io.BytesIO(png(image)))
    assert face[0].min() > 250 and face[2].max() < 5


def test_every_picture_counts_once_and_the_rest_is_told(tmp_path, capsys):
    red = Image.new("RGB", (64, 64), "red")
    members = [("data/5.png", png(red)), ("a.jfif", png(red, "JPEG"))]  # a name that is there twice
    members += [("deep/日本.WEBP", png(red, "WEBP")), ("__MACOSX/data/._1.png", b"crumbs")]
    members += [("data/cut.png", png(Image.effect_noise((64, 64), 50))[:900]), ("a.txt", b"none")]
    members += [("data/data/6.png", png(Image.new("RGB", (64, 64), (6, 0, 0))))]  # a second copy
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_faces(tmp_path / "anime-faces.zip", members)
    faces = read(FACES, tmp_path)
    assert len(faces) == 643 and faces[5, 0].max() == 5 and faces[-3:, 0].min() > 250
    notice = capsys.readouterr().err
    assert "left out: 2" in notice and "cut.png: OSError(" in notice and "MACOSX" not in notice


def test_why_a_zip_cannot_be_read_is_told(tmp_path, capsys):
    """A password, or a packing that zipfile does not know: the first member's own reason."""
    path = tmp_path / "anime-faces.zip"
    for offset, value, part in ((8, 1, "encrypted"), (10, 9, "compression")):
        write_faces(path, [], 1)
        wrong = bytearray(path.read_bytes())
        wrong[wrong.index(b"PK\x01\x02") + offset] = value
        path.write_bytes(wrong)
        assert part in error_of(capsys, read, FACES, tmp_path)


@FUZZ
@given(st.data())
def test_damaged_files_are_read_or_refused(V, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    path = folder / V.FILE
    if not path.exists():
        np.savez_compressed(folder / "TibetanMNIST.npz", image=GREY)
        kinds, noise = "PNG JPEG GIF TIFF WEBP BMP".split(), Image.effect_noise((8, 8), 50)
        write_faces(folder / "anime-faces.zip", [(kind, png(noise, kind)) for kind in kinds], 0)
    whole = path.read_bytes()
    path.write_bytes(spoil(data.draw, whole))
    try:
        images = read(V, folder)
        assert images.dtype == torch.uint8 and len(images) >= 640
    except SystemExit as stopped:
        assert stopped.code == 2
    finally:
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def finished(V, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    V.main([*SMALL, "--data", str(SAMPLE), "--out", str(out)])
    return out


def outcome(out):
    metrics = json.loads((out / "metrics.json").read_text())
    figures = {name: value for name, value in metrics.items() if "seconds" not in name}
    (saved,) = torch.load(out / "model.pt", weights_only=True).values()
    return figures, {name: weight.tolist() for name, weight in saved["weights"].items()}


def test_run_writes_everything(V, finished):
    names = {f"{name}.png" for name in PICTURES} | {"metrics.json", "model.pt", "checkpoint.pt"}
    assert {path.name for path in finished.iterdir()} == names
    metrics = json.loads((finished / "metrics.json").read_text())
    parts = metrics["reconstruction_nats"] + metrics["kl_nats"]
    assert metrics["negative_elbo_nats"] == pytest.approx(parts)
    assert sum(metrics["kl_per_dimension_nats"]) == pytest.approx(metrics["kl_nats"])
    assert metrics["config"]["epochs"] == 3 and len(metrics["history"]) == 3 * V.ROUNDS
    if V.NAME == "vae_mnist":
        assert metrics["iw_nll_nats"] < parts + 1
    else:
        assert metrics["bits_per_dim"] == pytest.approx(8 + parts / (12288 * math.log(2)))
    # The last point of the curve is the saved model's, with its own sigma, noise of z aside.
    model, config = V.load_checkpoint(finished / "model.pt")
    assert config.latent_dim == 6 and not model.training
    config.data = SAMPLE
    _, validation, _ = V.split(V.load_images(config))
    reconstruction, kl, _, _ = V.infer(model, validation)
    found = [reconstruction.mean().item(), kl.sum(1).mean().item()]
    assert found == pytest.approx([*metrics["history"][-1].values()][2:], rel=0.03)


def test_eval_only_makes_the_same_again(V, finished, tmp_path):
    shutil.copy(finished / "model.pt", tmp_path)
    V.main(["--eval-only", "--seed", "7", "--data", str(SAMPLE), "--out", str(tmp_path)])
    assert outcome(tmp_path) == outcome(finished)


def test_resume_of_another_run_is_refused(V, finished, tmp_path, capsys, monkeypatch):
    argv = [*SMALL, "--resume", "--out", str(finished), "--data"]
    before = outcome(finished)
    assert "other options" in error_of(capsys, V.main, [*argv, str(SAMPLE), "--lr", "0.5"])
    image = GREY.copy()
    image[9, 0, 0] ^= 255  # one pixel
    np.savez(tmp_path / "TibetanMNIST.npz", image=image)
    write_faces(tmp_path / "anime-faces.zip", [])
    assert "other options" in error_of(capsys, V.main, [*argv, str(tmp_path)])
    monkeypatch.setattr(V, "train_round", None)  # of the same run nothing is left to train
    V.main([*argv, str(SAMPLE)])
    assert outcome(finished) == before


def test_a_loss_that_is_not_finite(V, tmp_path, capsys):
    argv = [*SMALL, "--data", str(SAMPLE), "--out", str(tmp_path), "--lr", "1e6"]
    assert "--lr" in error_of(capsys, V.main, argv)
    assert not (tmp_path / "model.pt").exists()


def test_a_gpu_without_float64(V, model, images, monkeypatch):
    double, cpu = torch.Tensor.double, torch.Tensor.cpu  # as Apple's
    moved = []  # the tensors themselves, so that no other gets the id of one of them

    def only_on_cpu(tensor):
        assert any(tensor is one for one in moved)
        return double(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: moved.append(cpu(t)) or moved[-1])
    monkeypatch.setattr(torch.Tensor, "double", only_on_cpu)
    assert all(part.dtype == torch.float64 for part in V.infer(model, images))
