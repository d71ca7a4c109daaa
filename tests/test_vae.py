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
from conftest import FUZZ, SAMPLE, error_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.distributions import Bernoulli, LowRankMultivariateNormal, Normal, kl_divergence

SMALL = "--epochs 3 --latent-dim 6 --batch-size 256".split()
PICTURES = ("curves", "reconstructions", "samples", "interpolation", "posterior")


@pytest.fixture(scope="module", params=["vae_mnist", "vae_anime"])
def V(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def model(V):
    """A model whose codes say something, but not much."""
    torch.manual_seed(0)
    model = V.VAE(6).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.7 / math.sqrt(weight[0].numel()))
    return model


def some_images(V, n=5):
    shape = (n, 1, 28, 28) if V.NAME == "vae_mnist" else (n, 3, 64, 64)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).byte()


# ------------------------------------------------------------------------------- loss and model


@FUZZ
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 10**6))
def test_kl_is_torchs(V, batch, dimensions, seed):
    generator = torch.Generator().manual_seed(seed)
    mean, logvar = torch.randn(2, batch, dimensions, generator=generator).double()
    theirs = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(torch.zeros_like(mean), 1.0))
    torch.testing.assert_close(V.kl_divergence(mean, logvar), theirs)


def test_elbo_terms_are_torchs(V, model):
    """-log p(x|z) of the very z that was drawn, summed over pixels; KL of each dimension."""
    x = V.to_float(some_images(V))
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
    torch.testing.assert_close(kl, V.kl_divergence(mean, logvar))
    assert kl.shape == (5, 6)


def test_elbo_does_not_depend_on_the_batch(V, model):
    """The commonest bug divides the KL term, but not the reconstruction, by the batch."""
    model.reparameterize = lambda mean, logvar: mean
    images = some_images(V, 1)
    one, many = V.infer(model, images), V.infer(model, images.expand(9, -1, -1, -1))
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a.mean(0), b.mean(0), rtol=1e-4, atol=1e-5)


def test_interface(V, model):
    x = V.to_float(some_images(V))
    torch.manual_seed(1)
    decoded, mean, logvar = model(x)
    torch.manual_seed(1)
    again, same_mean, same_logvar = model.sample_posterior(x)
    torch.testing.assert_close(decoded, model.decode(again))  # the picture of that very path
    assert torch.equal(mean, same_mean) and torch.equal(logvar, same_logvar)
    torch.manual_seed(1)
    torch.testing.assert_close(torch.stack(model.encode(x)), torch.stack((mean, logvar)))
    assert decoded.shape == x.shape and mean.shape == logvar.shape == (5, 6)
    if V.NAME == "vae_anime":
        assert 0 <= model.decode(99 * mean).min() and model.decode(99 * mean).max() <= 1


def test_samples_have_the_posteriors_moments(model):
    mean, logvar = torch.tensor([1.0, -2.0]), torch.tensor([0.0, math.log(9)])
    z = model.reparameterize(mean.expand(40000, 2), logvar.expand(40000, 2))
    torch.testing.assert_close(z.mean(0), mean, atol=0.06, rtol=0)
    torch.testing.assert_close(z.var(0), logvar.exp(), atol=0.25, rtol=0)


def test_any_number_of_dimensions(V):
    decoded, mean, _ = V.VAE(5)(V.to_float(some_images(V)))
    assert mean.shape == (5, 5) and decoded.isfinite().all()


def test_later_groups_see_what_was_drawn_for_earlier_ones(vae_mnist):
    """The first group's mean is the encoder's alone, the second's depends on the first's z."""
    torch.manual_seed(0)
    model = vae_mnist.VAE(8).eval()
    x = vae_mnist.to_float(some_images(vae_mnist))
    (one, _), (two, _) = model.encode(x), model.encode(x)
    assert torch.equal(one[:, :4], two[:, :4]) and not torch.allclose(one[:, 4:], two[:, 4:])


def test_loss_is_the_integral(vae_mnist):
    """One latent dimension: the importance-weighted bound against p(x) integrated on a grid."""
    torch.manual_seed(0)
    model = vae_mnist.VAE(1).eval()
    model.groups[0].posterior[-1].bias.data = torch.tensor([0.7, 0.5])  # away from the prior
    images = some_images(vae_mnist, 2)
    z = torch.linspace(-8, 8, 2001)[:, None]
    logits = model.decode(z)
    exact = []
    for x in vae_mnist.to_float(images):
        log_joint = Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
        log_joint += Normal(0.0, 1.0).log_prob(z[:, 0])
        exact.append(log_joint.logsumexp(0).item() + math.log(16 / 2000))
    args = SimpleNamespace(dry_run=False, device="cpu")
    bound = vae_mnist.own_figures(args, model, images, None, 0.0)["iw_nll_nats"]
    assert bound == pytest.approx(-sum(exact) / 2, abs=0.1)


def test_faces_start_as_probabilistic_pca(vae_anime):
    """The best linear VAE's ELBO is tight: the log-likelihood of Tipping and Bishop's solution."""
    torch.manual_seed(0)
    codes = torch.randn(700, 5) * torch.tensor([5.0, 4, 3, 2, 1])
    pixels = codes @ torch.randn(5, 12288) * 0.01 + torch.randn(700, 12288) * 0.03 + 0.5
    images = (pixels.clamp(0, 1) * 255).byte().view(-1, 3, 64, 64)
    args = SimpleNamespace(latent_dim=5)
    model = vae_anime.new_model(args, images)
    flat = vae_anime.to_float(images).flatten(1).double()
    _, singular, components = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    eigenvalues = singular.square() / 700
    variance = eigenvalues[5:].sum() / (12288 - 5)
    signal = model.linear_out.weight.double().square().sum(0) / vae_anime.SLOW**2
    left = (eigenvalues[4] - signal[4]) / variance  # for the noise: one variance
    assert left.item() == pytest.approx(1, abs=0.3)
    factors = components[:5].T * (eigenvalues[:5] - variance).sqrt()
    exact = LowRankMultivariateNormal(flat.mean(0), factors, variance.expand(12288))
    losses = []
    for _ in range(9):
        reconstruction, kl, _, _ = vae_anime.infer(model, images)
        losses.append((reconstruction.mean() + kl.sum(1).mean()).item())
    expected = exact.log_prob(flat).mean().item()
    assert -sum(losses) / 9 == pytest.approx(expected, abs=3)


@pytest.mark.parametrize("kinds", [1, 2])
def test_faces_start_from_images_of_low_rank(vae_anime, kinds):
    images = torch.full((700, 3, 64, 64), 90, dtype=torch.uint8)
    images[::2] += 50 * (kinds - 1)
    model = vae_anime.new_model(SimpleNamespace(latent_dim=8), images)
    reconstruction, kl, _, _ = vae_anime.infer(model, images[:4])
    assert reconstruction.isfinite().all() and kl.isfinite().all()
    assert all(weight.requires_grad for weight in model.parameters())


def test_learning_rate(V):
    rates = [V.learning_rate(i / 1000, 2.0) for i in range(1000)]
    assert rates[0] == 0 and max(rates) == pytest.approx(2.0, rel=0.01) and rates[-1] < 1e-4
    assert rates.index(max(rates)) == 20


def test_the_mixture_finds_the_clusters(V):
    """Codes at three places: samples lie there, in the same shares, and as wide."""
    torch.manual_seed(0)
    centres = torch.tensor([[-9.0, 0], [9, 0], [0, 50]]).double()
    which = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    codes = centres[which] + torch.tensor([0.8, 2.0]) * torch.randn(1000, 2)
    drawn = V.sample_mixture(codes, 4000, components=12).double()
    distance, nearest = torch.cdist(drawn, centres).min(1)
    shares = torch.bincount(nearest) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.03, rtol=0)
    assert distance.max() < 12
    width = (drawn - centres[nearest]).std(0).float()
    torch.testing.assert_close(width, torch.tensor([0.8, 2.0]), rtol=0.2, atol=0)


# ----------------------------------------------------------------------------------------- data


def test_split_is_fixed_and_disjoint(V):
    images = torch.arange(1000).int()[:, None, None, None]
    torch.manual_seed(1)
    parts = V.split(images)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(parts, V.split(images), strict=True))
    assert [len(part) for part in parts] == [850, 50, 100]
    assert sorted(torch.cat(parts).flatten().tolist()) == list(range(1000))


def test_augmentation_moves_a_little_and_fades(vae_mnist):
    args = vae_mnist.parse_args(["--data", str(SAMPLE)])
    images = vae_mnist.load_images(args)[:400]
    x = vae_mnist.to_float(images)
    same = [(vae_mnist.training_input(images, p) == x).float().mean() for p in (0, 0.9, 1.0)]
    assert 0.8 < same[0] < 0.97 and same[0] < same[1] < 1 and same[2] > 0.999


def read_digits(vae_mnist, folder, **arrays):
    np.savez(folder / "TibetanMNIST.npz", **arrays)
    return vae_mnist.load_images(vae_mnist.parse_args(["--data", str(folder)]))


GREY = np.load(SAMPLE / "TibetanMNIST.npz")["image"][:640]
WHITE = GREY > 127


@pytest.mark.parametrize(
    "image",
    [
        GREY,
        WHITE.astype(np.uint8),
        WHITE,
        GREY / 255,
        GREY / 255 * 1.0000000000000004,
        np.where(WHITE, 1.1, -0.1),
        GREY.astype(np.int64),
        GREY.astype(np.float16),
        GREY[..., None],
        GREY[:, None],
        GREY.reshape(640, 784),
    ],
)
def test_digits_that_are_plainly_meant(vae_mnist, tmp_path, image):
    images = read_digits(vae_mnist, tmp_path, image=image)
    assert images.shape == (640, 1, 28, 28) and images.dtype == torch.uint8
    np.testing.assert_array_equal(vae_mnist.to_float(images)[:, 0].numpy(), WHITE)


@pytest.mark.parametrize(
    "name, image, part",
    [
        ("images", GREY, "no array `image`"),
        ("image", np.zeros((640, 32, 32), np.uint8), "28 x 28"),
        ("image", GREY[:3], "at least 640"),
        ("image", np.full((640, 28, 28), "a"), "28 x 28"),
        ("image", np.full((640, 28, 28), None), "allow_pickle"),
        ("image", np.full((640, 28, 28), np.nan), "scale"),
        ("image", np.full((640, 28, 28), 1000), "scale"),
        ("image", GREY / 127.5 - 1, "scale"),
        ("image", GREY // 100, "alike"),
        ("image", np.full((640, 28, 28), 255), "alike"),
    ],
)
def test_digits_that_are_not(vae_mnist, tmp_path, capsys, name, image, part):
    line = error_of(capsys, read_digits, vae_mnist, tmp_path, **{name: image})
    assert part in line and "TibetanMNIST.npz" in line


def png(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(i):
    return png(Image.new("RGB", (64, 64), (i % 256, i // 256, 0)))


def read_faces(vae_anime, folder, members, whole=640):
    """The faces of a zip of `whole` plain ones and the members [(name, bytes)]."""
    with zipfile.ZipFile(folder / "anime-faces.zip", "w") as archive:
        for i in range(whole):
            archive.writestr(f"data/{i}.png", plain(i))
        for name, data in members:
            archive.writestr(name, data)
    return vae_anime.load_images(vae_anime.parse_args(["--data", str(folder)]))


LIGHT = Image.new("L", (70, 90), 200)
DEEP = np.full((64, 64), 51200, np.uint16)  # 200 of 8 bits
UPSIDE_DOWN = Image.Exif()
UPSIDE_DOWN[0x0112] = 3
TURNED = Image.new("RGB", (64, 64), (200, 200, 200))
TURNED.paste((0, 0, 0), (0, 0, 64, 20))


@pytest.mark.parametrize(
    "data",
    [
        *(png(LIGHT.convert(mode)) for mode in ("L", "RGB", "RGBA", "P", "LA")),
        png(LIGHT.convert("CMYK"), "JPEG"),
        png(Image.fromarray(DEEP)),
        png(Image.fromarray(np.full((64, 64), 200, np.int32)), "TIFF"),
        png(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
        png(Image.fromarray(np.full((64, 64), 200 / 255, np.float32)), "TIFF"),
        png(TURNED, "JPEG", exif=UPSIDE_DOWN),
    ],
)
def test_faces_as_a_viewer_shows_them(vae_anime, data):
    """Any mode, depth and orientation: 200 in the upper half."""
    face = vae_anime.read_image(io.BytesIO(data))
    assert face.shape == (3, 64, 64) and face.dtype == torch.uint8
    assert (face[:, :40].float() - 200).abs().max() < 6


def test_faces_are_on_white_and_cropped_to_the_centre(vae_anime):
    palette = png(Image.new("P", (64, 64), 3), "GIF", transparency=3)
    for data in (png(Image.new("RGBA", (64, 64), (9, 9, 9, 0))), palette):
        assert vae_anime.read_image(io.BytesIO(data)).min() == 255
    image = Image.new("RGB", (64, 200), "blue")
    image.paste("red", (0, 60, 64, 140))
    face = vae_anime.read_image(io.BytesIO(png(image)))
    assert face[0].min() > 250 and face[2].max() < 5


def test_every_picture_counts_once_and_the_rest_is_told(vae_anime, tmp_path, capsys):
    red = Image.new("RGB", (64, 64), "red")
    members = [
        ("data/5.png", png(red)),  # a name that is there twice
        ("a.jfif", png(red, "JPEG")),
        ("deep/日本.WEBP", png(red, "WEBP")),
        ("__MACOSX/data/._1.png", b"crumbs"),
        ("data/cut.png", png(Image.effect_noise((64, 64), 50))[:900]),
        ("data/readme.txt", b"no picture"),
    ]
    with pytest.warns(UserWarning, match="Duplicate name"):
        faces = read_faces(vae_anime, tmp_path, members)
    assert len(faces) == 643 and faces[5, 0].max() == 5 and faces[-3:, 0].min() > 250
    notice = capsys.readouterr().err
    assert "left out: 2" in notice and "cut.png" in notice and "MACOSX" not in notice


@pytest.mark.parametrize("name", ["TibetanMNIST.npz", "anime-faces.zip"])
@pytest.mark.parametrize("fault", ["missing", "empty", "text", "cut", "folder"])
def test_bad_files(request, tmp_path, capsys, name, fault):
    V = request.getfixturevalue("vae_mnist" if "npz" in name else "vae_anime")
    whole = (SAMPLE / name).read_bytes()
    data = {"empty": b"", "text": b"GIF89a" * 99, "cut": whole[: len(whole) // 2]}
    if fault == "folder":
        (tmp_path / name).mkdir()
    elif fault != "missing":
        (tmp_path / name).write_bytes(data[fault])
    argv = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert name in error_of(capsys, V.main, argv) and not (tmp_path / "out").exists()


def test_why_a_zip_cannot_be_read_is_told(vae_anime, tmp_path, capsys):
    """A password, or a packing that zipfile does not know: the first member's own reason."""
    with zipfile.ZipFile(tmp_path / "anime-faces.zip", "w") as archive:
        archive.writestr("1.png", plain(1))
    data = bytearray((tmp_path / "anime-faces.zip").read_bytes())
    for offset, value, part in ((8, 1, "encrypted"), (10, 9, "compression")):
        wrong = bytearray(data)
        wrong[wrong.index(b"PK\x01\x02") + offset] = value
        (tmp_path / "anime-faces.zip").write_bytes(wrong)
        args = vae_anime.parse_args(["--data", str(tmp_path)])
        assert part in error_of(capsys, vae_anime.load_images, args)


@st.composite
def damaged(draw, whole):
    """A file with bytes changed, taken out or put in, or its end lost."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(data)))
        stop = start + draw(st.sampled_from([0, 1, 16, 256, 10**6]))
        data[start:stop] = draw(st.binary(max_size=8))
    return bytes(data)


def check_reader(V, folder, data):
    (folder / V.FILE).write_bytes(data)
    try:
        images = V.load_images(V.parse_args(["--data", str(folder)]))
    except SystemExit as stopped:
        assert stopped.code == 2
    else:
        assert images.dtype == torch.uint8 and len(images) >= 640


ARCHIVE = io.BytesIO()
np.savez_compressed(ARCHIVE, image=GREY, label=np.arange(640))
FACES = io.BytesIO()
with zipfile.ZipFile(FACES, "w") as pictures:
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        pictures.writestr(kind, png(Image.effect_noise((8, 8), 50), kind))


@FUZZ
@given(data=damaged(ARCHIVE.getvalue()))
def test_damaged_arrays_are_read_or_refused(vae_mnist, tmp_path_factory, data):
    check_reader(vae_mnist, tmp_path_factory.getbasetemp(), data)


@FUZZ
@given(data=damaged(FACES.getvalue()))
def test_damaged_zips_are_read_or_refused(vae_anime, tmp_path_factory, data):
    check_reader(vae_anime, tmp_path_factory.getbasetemp(), data)


# ----------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The folder of a course of 640 digits and 640 faces."""
    folder = tmp_path_factory.mktemp("course")
    np.savez_compressed(folder / "TibetanMNIST.npz", image=GREY)
    whole = zipfile.ZipFile(SAMPLE / "anime-faces.zip")
    with zipfile.ZipFile(folder / "anime-faces.zip", "w") as part:
        for name in whole.namelist()[:640]:
            part.writestr(name, whole.read(name))
    return folder


@pytest.fixture(scope="module")
def finished(V, course, tmp_path_factory):
    """The folder of a small run."""
    out = tmp_path_factory.mktemp("finished") / "out"
    V.main([*SMALL, "--data", str(course), "--out", str(out)])
    return out


def outcome(out):
    """Figures and weights that two equal runs share."""
    metrics = json.loads((out / "metrics.json").read_text())
    figures = {name: value for name, value in metrics.items() if "seconds" not in name}
    figures.pop("config")
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
    model, config = V.load_checkpoint(finished / "model.pt")
    assert config.latent_dim == 6 and not model.training


def test_validation_curve_is_of_the_saved_model(V, finished, course):
    """With its own sigma: the last point of the curve is the saved model's, noise of z aside."""
    metrics = json.loads((finished / "metrics.json").read_text())
    model, config = V.load_checkpoint(finished / "model.pt")
    config.data, config.device = course, "cpu"
    _, validation, _ = V.split(V.load_images(config))
    reconstruction, kl, _, _ = V.infer(model, validation)
    *_, expected, expected_kl = metrics["history"][-1]
    assert reconstruction.mean().item() == pytest.approx(expected, rel=0.02)
    assert kl.sum(1).mean().item() == pytest.approx(expected_kl, rel=0.1)


def test_eval_only_makes_the_same_again(V, course, finished, tmp_path):
    """And says with which options the model was trained, not those of this command."""
    shutil.copytree(finished, tmp_path / "out")
    before = outcome(finished)
    for path in (tmp_path / "out").glob("*.[pj]*n*"):
        path.unlink()
    V.main(["--eval-only", "--seed", "7", "--data", str(course), "--out", str(tmp_path / "out")])
    assert outcome(tmp_path / "out") == before
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["config"]["latent_dim"] == 6 and metrics["config"]["seed"] == 0
    assert metrics["seed"] == 0


@pytest.mark.parametrize("epoch, finished_it", [(0, False), (1, True), (2, False)])
def test_stopped_and_resumed_is_the_run_never_stopped(
    V, course, finished, tmp_path, monkeypatch, epoch, finished_it
):
    train_round = V.train_round

    def stopped(args, model, optimizer, images, now):
        terms = train_round(args, model, optimizer, images, now) if finished_it else None
        if now == epoch:
            raise KeyboardInterrupt
        return terms or train_round(args, model, optimizer, images, now)

    argv = [*SMALL, "--data", str(course), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(V, "train_round", stopped)
        with pytest.raises(KeyboardInterrupt):
            V.main(argv)
    V.main([*argv, "--resume"])
    assert outcome(tmp_path / "out") == outcome(finished)


def test_resume_of_another_run_is_refused(V, course, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "out")
    argv = [*SMALL, "--resume", "--data", str(course), "--out", str(tmp_path / "out")]
    before = outcome(tmp_path / "out")
    assert "other options" in error_of(capsys, V.main, [*argv, "--lr", "0.5"])
    shutil.copytree(course, tmp_path / "other")
    image = GREY.copy()
    image[:9, 0, 0] ^= 1  # one pixel of a few images, which binarizing hides
    np.savez(tmp_path / "other" / "TibetanMNIST.npz", image=image)
    with zipfile.ZipFile(tmp_path / "other" / "anime-faces.zip", "a") as archive:
        archive.writestr("more.png", plain(1))
    argv[argv.index("--data") + 1] = str(tmp_path / "other")
    assert "other options" in error_of(capsys, V.main, argv)
    assert outcome(tmp_path / "out") == before


def test_a_loss_that_is_not_finite(V, course, tmp_path, capsys):
    argv = [*SMALL, "--data", str(course), "--out", str(tmp_path), "--lr", "1e6"]
    assert "--lr" in error_of(capsys, V.main, argv)
    assert not (tmp_path / "model.pt").exists()


def test_a_gpu_without_float64(V, model, monkeypatch):
    """As Apple's: whatever is made double is on the CPU by then."""
    double, cpu = torch.Tensor.double, torch.Tensor.cpu
    moved = []  # the tensors themselves, so that no other gets the id of one of them

    def only_on_cpu(tensor):
        assert any(tensor is one for one in moved)
        return double(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: moved.append(cpu(t)) or moved[-1])
    monkeypatch.setattr(torch.Tensor, "double", only_on_cpu)
    assert all(part.dtype == torch.float64 for part in V.infer(model, some_images(V)))


def test_a_heavy_kl_collapses(vae_mnist, course, tmp_path):
    """No information in z: the decoder gives every pixel's mean, whose entropy is the loss."""
    argv = "--kl-weight 100 --epochs 12 --batch-size 16 --latent-dim 4".split()
    metrics = vae_mnist.main(["--data", str(course), "--out", str(tmp_path), *argv])
    images, _, _ = vae_mnist.split(torch.from_numpy(GREY)[:, None])
    p = vae_mnist.to_float(images).mean(0)
    entropy = torch.nn.functional.binary_cross_entropy(p, p, reduction="sum").item()
    assert metrics["active_units"] == 0 and metrics["kl_nats"] < 0.1
    assert metrics["reconstruction_nats"] == pytest.approx(entropy, rel=0.1)
