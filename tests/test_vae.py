"""Both autoencoders: their losses against torch's distributions, their readers, their runs."""

import io
import json
import math
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLE, error_of, load
from PIL import Image
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

DIGITS = load("vae_mnist")
FACES = load("vae_anime")
MEASURE = DIGITS.data_metrics
SMALL = f"--epochs 3 --batch-size 256 --kl-weight 3 --device cpu --data {SAMPLE} --out".split()
N01 = Normal(torch.zeros(1), 1.0)


@pytest.fixture(scope="module", params=["vae_mnist", "vae_anime"])
def V(request):
    return load(request.param)


@pytest.fixture
def x(V):
    return torch.randint(0, 2, (5, V.CHANNELS, V.SIDE, V.SIDE)).float()


@pytest.fixture
def model(V):
    """With weights that are all at work: at first some are 0."""
    torch.manual_seed(0)
    model = V.VAE(6).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5 / math.sqrt(weight[0].numel()))
    for parameter in model.pixels.parameters():
        parameter.fill_(-0.7)
    return model


def seeded(call, *args):
    torch.manual_seed(1)
    return call(*args)


def close(one, two, tolerance=1e-3):
    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


def test_elbo_terms_are_torchs(V, model, x):
    """-log p(x|z) of the very z that was drawn, summed over pixels; KL of each dimension."""
    reconstruction, kl = seeded(V.elbo_terms, model, x)
    decoded, z, mean, logvar = seeded(model.top_down, model.features(x))
    p = Bernoulli(logits=decoded) if V is DIGITS else Normal(decoded, math.exp(-0.7))
    torch.testing.assert_close(reconstruction, -p.log_prob(x).sum((1, 2, 3)))
    close(kl, kl_divergence(Normal(mean, (logvar / 2).exp()), N01))
    close(model.likelihood(z).mean, p.mean)
    if V is FACES:  # what is told of them
        loss = (reconstruction + kl.sum(1)).mean().item()
        told = V.data_metrics(model, 255 * x.byte(), loss, reconstruction.mean().item())
        assert told["psnr_db"] == pytest.approx(-10 * (decoded - x).square().mean().log10().item())
        assert told["bits_per_dim"] == pytest.approx(8 + loss / (12288 * math.log(2)))


def test_interface(V, model, x):
    """forward gives the picture of the path whose terms it gives; decode takes all, top down."""
    parts = []
    for latent_dim in (5, 16, 1):
        other = V.VAE(latent_dim)
        decoded, mean, logvar = seeded(other, x)
        close(torch.stack(seeded(other.encode, x)[-2:]), torch.stack([mean, logvar]))
        z = seeded(other.top_down, other.features(x))[1]
        close(other.decode(z), decoded)
        below = sum(side * side * sum(latents) for _, side, latents in V.MAPS)
        assert decoded.shape == x.shape and mean.shape == logvar.shape == (5, latent_dim + below)
        assert V is DIGITS or 0 <= other.decode(9 * z).min() < other.decode(9 * z).max() <= 1
    for group in (module for module in other.modules() if isinstance(module, V.Group)):
        group.register_forward_hook(lambda *call: parts.append(call[2]["z"]), with_kwargs=True)
    other.decode(z)
    assert torch.equal(torch.cat([part.flatten(1) for part in parts], 1), z)
    sides = [part.size(-1) for part in parts]
    assert sides == sorted(sides) and sides[0] == 1
    # The first group's posterior is of x alone, the others' of what was drawn above them, too.
    for group in (module for module in model.modules() if isinstance(module, V.Group)):
        group.posterior[-1].bias[group.shape[0] :] = -2
    top = model.groups[0][0]
    first = math.prod(top.shape)
    difference = (model.encode(x)[0] - model.encode(x)[0]).abs()
    assert difference[:, :first].max() < 1e-3 and difference[:, first:].amax(0).min() > 0
    _, z, mean, logvar = model.top_down(model.features(x))
    noise = (z - mean) / (logvar / 2).exp()
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    _, z, *terms = model.top_down(model.features(x), noise=False)
    close(torch.stack(V.infer(model, 255 * x.byte())[2:]).float(), torch.stack(terms))
    assert torch.equal(z, terms[0])
    # With lambda 0 nothing else keeps means and variances from running away.
    for layers in (top.posterior, top.prior):
        layers[-1].bias.fill_(-99)
        logvar = model.encode(x)[1]
        assert logvar.abs().max() <= 2 * V.BOUND and V.elbo_terms(model, x)[1].isfinite().all()


def test_the_learned_prior(V, model, x):
    """A group's state takes h = m + s z: q(h|x) against the learned prior N(m, s^2) is, in KL and
    in density, what q(z|x) is against N(0, I). The features of x are those of the level."""
    features = model.features(x)
    decoded = seeded(model.top_down, features)[0]
    state = model.start.expand(5, -1, -1, -1)
    entered = []
    torch.manual_seed(1)
    for level, groups in enumerate(model.groups):
        for group in groups:
            group.lift.register_forward_hook(lambda module, args, output: entered.append(args[0]))
            m, log_s2 = group.prior(state).chunk(2, 1)
            h_mean, h_logvar = group.posterior(torch.cat([features[level], state], 1)).chunk(2, 1)
            prior = Normal(m, (log_s2 / 2).exp())
            posterior = Normal(h_mean, (h_logvar / 2).exp())
            state, z, mean, logvar = group(state, features[level])
            q = Normal(mean, (logvar / 2).exp())
            h = entered[-1]
            close(h, m + prior.scale * z)
            close(kl_divergence(q, N01), kl_divergence(posterior, prior))
            ratio = posterior.log_prob(h) - prior.log_prob(h)
            close(q.log_prob(z) - N01.log_prob(z), ratio)
        state = model.decoder[level](state)
    close(decoded, V.OUTPUT(state))


@pytest.mark.parametrize("epochs, batch_size", [(20, 30), (3, 7), (1, 30)])
def test_training_step_by_step(V, monkeypatch, epochs, batch_size):
    """Rate, length of the gradient, weight of the KL term, images, where terms are two weights."""
    terms = nn.Parameter(torch.tensor([2.0, 3.0]))
    optimizer = torch.optim.SGD([terms])
    steps = []
    seen = []
    rate = optimizer.param_groups[0]
    optimizer.register_step_pre_hook(lambda *_: steps.append([rate["lr"], *terms.grad.tolist()]))

    def elbo_terms(model, x):
        seen.extend((255 * x).flatten().tolist())
        return terms[0].expand(len(x)), terms[1].expand(len(x), 3)

    changed = {"elbo_terms": elbo_terms, "augment": lambda x, progress: x, "EPOCH_SIZE": 30}
    for name, value in {**changed, "CLIP": 0.125, "KL_START": 4}.items():
        monkeypatch.setattr(V, name, value)
    options = ["--batch-size", str(batch_size), "--epochs", str(epochs), "--lr", "0.25"]
    args = V.parse_args([*SMALL, ".", *options])
    images = torch.arange(40).byte().view(40, 1, 1, 1)
    model = nn.ParameterList([terms])
    means = [V.train_epoch(args, model, optimizer, images, epoch) for epoch in range(epochs)]
    n = epochs * math.ceil(30 / batch_size)
    progress = (np.arange(n) + 0.5) / n
    rates, *gradient = np.array(steps).T
    assert rates == pytest.approx(np.interp(progress, [0, 0.1, 1], [0, 0.25, 0])) and min(rates) > 0
    assert np.hypot(*gradient) == pytest.approx(np.full(n, 0.125), rel=1e-3)
    weights = gradient[1] / gradient[0] / 3  # of 3 dimensions, summed
    end = progress[0] / (1 - math.log(weights[0] / 3, 4))  # from here it is lambda, 3
    assert weights == pytest.approx(3 * 4 ** np.maximum(0, 1 - progress / end), rel=1e-4)
    assert epochs < 20 or (
        0.3 < end < 0.9 and means[0] == pytest.approx([2 + weights[0] * 9, 2, 9])
    )
    orders = {tuple(seen[start : start + 30]) for start in range(0, len(seen), 30)}
    assert len(seen) == 30 * epochs and [len({*order}) for order in orders] == [30] * epochs


def tiny(V, out, *options):
    """Options, 64 images to train on and 20 to validate."""
    out.mkdir(exist_ok=True)
    args = V.parse_args([*SMALL, str(out), "--batch-size", "8", *options])
    pixels = seeded(torch.rand, 84, V.CHANNELS, V.SIDE, V.SIDE)
    return args, *(255 * (pixels < 0.9).byte()).split(64)


def test_training_in_16_bits_follows_that_in_32(V, tmp_path, monkeypatch):
    """Autocast's cache kept the weights of the first step: an epoch then changed nothing."""
    losses = []
    monkeypatch.setattr(V, "data_metrics", lambda *given: {})
    for answer in (False, True):
        bf16 = SimpleNamespace(_is_mkldnn_bf16_supported=lambda answer=answer: answer)
        monkeypatch.setattr(torch.ops, "mkldnn", bf16)
        history = V.main([*SMALL, str(tmp_path), "--batch-size", "64"])["history"]
        losses.append([point["reconstruction_nats"] for point in history])
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.03)
    assert losses[0][1] < 0.8 * losses[0][0]


def test_iw_nll_is_the_integral(monkeypatch):
    """One latent dimension: the importance-weighted bound against p(x) integrated on a grid."""
    monkeypatch.setattr(DIGITS, "MAPS", [(64, 7, [])])
    model = seeded(DIGITS.VAE, 1).eval().requires_grad_(False)
    model.groups[0][0].posterior[-1].bias.copy_(torch.tensor([0.7, 0.5]))  # away from the prior
    images = 255 * torch.randint(0, 2, (2, 1, 28, 28)).byte()
    z = torch.linspace(-8, 8, 2001)[:, None]
    log_p = Bernoulli(logits=model.decode(z)).log_prob(images[:, None] / 255).sum((2, 3, 4))
    exact = (log_p + N01.log_prob(z[:, 0])).logsumexp(1) + math.log(16 / 2000)
    bound = MEASURE(model, images.repeat(10, 1, 1, 1), None, None)["iw_nll_nats"]
    assert bound == pytest.approx(-exact.mean().item(), abs=0.1)


def read(V, folder):
    return V.load_images(V.parse_args(["--data", str(folder)]))


def test_split_augmentation_interpolation(V):
    """Parts are fixed and disjoint; digits move a little, less and less; codes keep their length"""
    parts = V.split(torch.arange(1000))
    assert torch.equal(torch.cat(parts), torch.cat(seeded(V.split, torch.arange(1000))))
    assert [len(part) for part in parts] == [850, 50, 100]
    assert sorted(torch.cat(parts).tolist()) == list(range(1000)) != torch.cat(parts[::-1]).tolist()
    x = read(V, SAMPLE)[:400] / 255
    same = [(V.augment(x, progress) == x).float().mean() for progress in (0, 0.9, 1)]
    assert V is FACES or (0.8 < same[0] < 0.97 and same[0] < same[1] < 1 and same[2] > 0.999)
    assert V is FACES or {*V.augment(x, 0).unique().tolist()} == {0.0, 1.0}
    ends = torch.tensor([[4.0, 0], [0, 2]])
    z = V.interpolate(ends[:1], ends[1:], torch.tensor([[0.0], [0.5], [1]]))
    close(z, torch.stack([ends[0], torch.tensor([2.0, 1]) * 3 / 5**0.5, ends[1]]))


GREY = np.load(SAMPLE / "TibetanMNIST.npz")["image"]


def written(write, *args, **named):
    """The bytes of a file that it writes."""
    file = io.BytesIO()
    write(file, *args, **named)
    return file.getvalue()


WHOLE = written(np.savez, image=GREY)
BROKEN = [written(np.save, GREY), written(np.savez, images=GREY), b"", b"<html>", WHOLE[:-99]]
BROKEN.append(WHOLE[:9000] + b"?" + WHOLE[9001:])
WRONG = [GREY.reshape(-1, 784), GREY / 255, GREY[:639], GREY // 128, GREY * np.uint8(0)]
WRONG += [np.maximum(GREY, 128), np.zeros((640, 32, 32), np.uint8), np.full((640, 28, 28), None)]
BROKEN += [written(np.savez, image=image) for image in (*WRONG, np.uint8(3))]


def test_digits_are_read_or_refused(tmp_path):
    image = GREY.copy()
    image[0, 0, :2] = 127, 128
    path = tmp_path / "TibetanMNIST.npz"
    path.write_bytes(written(np.savez, image=image, label=np.arange(9)))
    images = read(DIGITS, tmp_path)
    assert images.dtype == torch.uint8 and images[0, 0, 0, :2].tolist() == [0, 255]
    np.testing.assert_array_equal(images.numpy(), 255 * (image > 127)[:, None])
    for data in BROKEN:
        path.write_bytes(data)
        assert path.name in error_of(read, DIGITS, tmp_path)


def png(image, kind="PNG"):
    return written(image.save, kind)


PLAIN = [png(Image.new("RGB", (8, 8), (i % 250, i // 250, 0))) for i in range(640)]


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)


def test_faces_of_a_zip_or_of_folders_are_the_same(tmp_path, capsys):
    """Each picture once, whatever its order, name, mode and size; what is none is counted."""
    light = [Image.new("L", (90, 70), 255).convert(mode) for mode in ("L", "RGBA", "P", "LA")]
    members = [(f"deep/er/{image.mode}", png(image)) for image in light]
    tall = Image.new("RGB", (64, 200), "blue")
    tall.paste("yellow", (0, 60, 64, 140))
    members += [("日本.WEBP", png(Image.new("RGB", (64, 64)), "WEBP")), ("tall.png", png(tall))]
    plain = [(f"data/{i}.png", data) for i, data in enumerate(PLAIN)]
    bad = [("cut.png", png(Image.effect_noise((64, 64), 50))[:900]), ("note.txt", b"none")]
    for kind in ("uint16", "int32", "float32"):
        bad.append((kind, png(Image.fromarray(np.full((64, 64), 5, kind)), "TIFF")))
    write_zip(tmp_path / "a.zip", [*bad, *members, *plain])
    zipfile.ZipFile(tmp_path / "a.zip").extractall(tmp_path / "in")
    again = [("tall.png", png(light[0])), ("other.png", png(tall)), ("data/", b"")]
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_zip(tmp_path / "anime-faces.zip", [*plain, *bad[::-1], *members[::-1], *again])
    faces = read(FACES, tmp_path)
    told = capsys.readouterr().err
    assert torch.equal(faces, read(FACES, tmp_path / "in")) and faces.dtype == torch.uint8
    assert faces.shape == (642, 3, 64, 64) and faces[5, :, 9, 9].tolist() == [1, 2, 0]
    assert faces[-1].min() == 255 and faces[-2, 0].min() == 255 and faces[-2, 2].max() == 0
    assert "left out" in told and " 5" in told and "float32" in told and "8 bits" in told
    assert len(told.splitlines()) == 1
    write_zip(tmp_path / "anime-faces.zip", bad + plain[:639])
    assert "639 faces" in error_of(read, FACES, tmp_path)
    (tmp_path / "anime-faces.zip").write_bytes(b"no zip")
    with pytest.raises(zipfile.BadZipFile):  # told at the bottom of the script
        read(FACES, tmp_path)


@pytest.fixture(scope="module")
def finished(V, tmp_path_factory):
    """The folder of a run; the IW-NLL, which takes long, of 20 digits only."""
    DIGITS.data_metrics = lambda model, images, *rest: MEASURE(model, images[:20], *rest)
    out = tmp_path_factory.mktemp("finished")
    V.main([*SMALL, str(out)])
    return out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_run_writes_everything(V, finished):
    names = {"curves.png", "posterior.png", "metrics.json", "model.pt"}
    pictures = ["reconstructions.png", "interpolation.png", "samples.png"]
    assert {*contents(finished)} == {*names, *pictures}
    assert (finished / "model.pt").stat().st_size < 65e6
    metrics = json.loads((finished / "metrics.json").read_text())
    parts = metrics["reconstruction_nats"] + metrics["kl_nats"]  # lambda is 3, but not here
    assert metrics["negative_elbo_nats"] == pytest.approx(parts) and len(metrics["history"]) == 3
    bits = 8 + parts / (12288 * math.log(2))
    assert metrics.get("bits_per_dim", bits) == pytest.approx(bits)
    assert metrics.get("iw_nll_nats", 0) < abs(parts) + 5
    model, config = V.load_checkpoint(finished / "model.pt")
    assert config.latent_dim == V.LATENT_DIM and not model.training
    _, validation, test = V.split(read(V, SAMPLE))
    codes = V.infer(model, test)[2]
    assert metrics["active_units"] == (codes.var(0) > 0.01).sum()
    # The last point of the curve is the saved model's, noise of z and 16 bits aside.
    found = [term.sum().item() / len(validation) for term in V.infer(model, validation)[:2]]
    held = [value for name, value in metrics["history"][-1].items() if "validation" in name]
    assert held == pytest.approx(found, rel=0.1)
    # Real images stand at the left of what is decoded of their codes, and at the ends of paths.
    middle = slice(65, None, 130)  # of each tile
    for k, x in enumerate((test[:32] / 255, model.likelihood(codes[:32].float()).mean)):
        shown = 255 * x[:, :, V.SIDE // 2, V.SIDE // 2].expand(-1, 3).numpy()
        pairs, path, _ = (np.asarray(Image.open(finished / n).convert("RGB")) for n in pictures)
        pairs, path = (p[middle, middle].reshape(64, 3).astype(float) for p in (pairs, path))
        np.testing.assert_allclose(pairs[k::2], shown, atol=2)
        np.testing.assert_allclose(path[k::8], shown[:16:2], atol=2)
        np.testing.assert_allclose(path[7 - k :: 8], shown[1:16:2], atol=2)


def test_resume(V, finished, tmp_path, monkeypatch):
    """Of a finished run, of others' options or images, of nothing."""
    assert len(V.train(*tiny(V, tmp_path, "--resume", "--latent-dim", "4"))) == 3
    monkeypatch.setattr(V, "train_epoch", None)
    before = contents(finished)
    again = [*SMALL, str(finished), "--resume"]
    images, validation, _ = V.split(read(V, SAMPLE))
    images[9, 0, 0, 0] ^= 255  # one pixel
    assert "images was" in error_of(V.train, V.parse_args(again), images, validation)
    line = error_of(V.main, [*again, "--lr", "0.5", "--seed", "7"])
    assert f"lr was {V.LR}, is 0.5" in line and "seed was 0, is 7" in line and "images" not in line
    assert contents(finished) == before
    old = json.loads(before["metrics.json"])
    new = V.main(again)
    assert old.pop("wall_seconds") != new.pop("wall_seconds") and old == new
    assert contents(finished)["model.pt"] == before["model.pt"]


def test_killed_and_resumed_is_the_run_left_alone(V, finished, tmp_path):
    """Bit for bit, where its second epoch was cut."""
    command = [sys.executable, ROOT / f"0123456_{V.NAME}.py", *SMALL, tmp_path]
    process = subprocess.Popen(command)
    while not (tmp_path / "model.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)
    assert process.poll() is None
    process.kill()
    process.wait()
    V.main([*SMALL, str(tmp_path), "--resume"])
    one, two = (torch.load(out / "model.pt", weights_only=True) for out in (finished, tmp_path))
    assert one["history"] == two["history"]
    for name, weight in one["weights"].items():
        assert torch.equal(weight, two["weights"][name]), name


class Code(str):
    """Unpickled, it makes a file of its name."""

    def __reduce__(self):
        return open, (str(self), "w")


def test_models_that_are_damaged_foreign_or_not_finite_are_refused(V, finished, tmp_path):
    whole = (finished / "model.pt").read_bytes()
    members = zipfile.ZipFile(io.BytesIO(whole)).infolist()
    flipped = bytearray(whole)  # a bit of some weight: torch itself does not notice
    flipped[max(members, key=lambda member: member.file_size).header_offset + 200] ^= 1
    faults = [b"", whole[:-99], whole[: len(whole) // 2], bytes(flipped)]
    other = DIGITS if V is FACES else FACES
    foreign = [other.VAE(4).state_dict(), V.VAE(5).state_dict(), Code(tmp_path / "made")]
    for saved in ({"a": 1}, *({"config": {"latent_dim": 4}, "weights": one} for one in foreign)):
        faults.append(written(lambda file, saved=saved: torch.save(saved, file)))
    path = tmp_path / "model.pt"
    for fault in faults:
        path.write_bytes(fault)
        assert "model.pt" in error_of(V.load_checkpoint, path)
        assert "model.pt" in error_of(V.train, *tiny(V, tmp_path, "--resume"))
        assert contents(tmp_path) == {"model.pt": fault}  # no code of it was run
    path.unlink()
    assert "--lr" in error_of(V.train, *tiny(V, tmp_path, "--lr", "1e30"))  # and not finite
    assert not contents(tmp_path)
