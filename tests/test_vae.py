"""Both autoencoders: their losses against torch's distributions, their readers, their runs."""

import json
import math
import shutil
import subprocess
import sys
import time
import zipfile

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
SMALL = f"--epochs 3 --batch-size 64 --kl-weight 0.01 --device cpu --data {SAMPLE} --out".split()
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
    model = V.VAE(20).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim > 0:
            torch.nn.init.normal_(weight, std=0.5 / math.sqrt(weight[0].numel()))
    for parameter in model.likelihood.parameters():
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
    decoded, z, mean, logvar = seeded(model.infer, model.features(x))
    p = Bernoulli(logits=decoded) if V is DIGITS else Normal(decoded, math.exp(-0.7))
    torch.testing.assert_close(reconstruction, -p.log_prob(x).sum((1, 2, 3)))
    close(kl, kl_divergence(Normal(mean, (logvar / 2).exp()), N01))
    close(model.likelihood(model.decode(z)).mean, p.mean)
    if V is FACES:  # what is told of them
        loss = (reconstruction + kl.sum(1)).mean().item()
        told = V.data_metrics(model, 255 * x.byte(), loss, reconstruction.mean().item())
        assert told["psnr_db"] == pytest.approx(-10 * (decoded - x).square().mean().log10().item())
        assert told["bits_per_dim"] == pytest.approx(8 + loss / (12288 * math.log(2)))


def test_interface(V, model, x):
    """forward gives the picture of the path whose terms it gives; decode takes all, top down."""
    decoded, mean, logvar = seeded(model, x)
    close(seeded(model.encode, x), (mean, logvar))
    z = seeded(model.infer, model.features(x))[1]
    close(model.decode(z), decoded)
    below = sum(side * side * sum(latents) for _, side, latents in V.MAPS)
    assert decoded.shape == x.shape and mean.shape == logvar.shape == (5, 20 + below)
    assert V is DIGITS or 0 <= model.decode(9 * z).min() < model.decode(9 * z).max() <= 1
    noise = (z - mean) / (logvar / 2).exp()
    assert abs(noise.mean()) < 0.2 and abs(noise.std() - 1) < 0.1
    # The first group's posterior is of x alone, the others' of what was drawn above them, too.
    top = model.groups[0]
    first = math.prod(top.shape)
    difference = (model.encode(x)[0] - model.encode(x)[0]).abs()
    assert difference[:, :first].max() < 1e-3 and difference[:, first:].amax(0).min() > 0
    _, z, *terms = model.infer(model.features(x), is_sampled=False)
    close(torch.stack(V.evaluate(model, 255 * x.byte())[2:]).float(), torch.stack(terms))
    assert torch.equal(z, terms[0])
    # With lambda 0 nothing else keeps means and variances from running away.
    for layers in (top.posterior_net, top.prior_net):
        layers[-2].bias.fill_(-99)
        logvar = model.encode(x)[1]
        assert logvar.abs().max() <= 20 and V.elbo_terms(model, x)[1].isfinite().all()


def test_the_learned_prior(V, model, x):
    """q(h|x) against the learned prior N(m, s^2) is, in KL and density, q(z|x) against N(0, I)."""
    features = model.features(x)[1]
    state = torch.randn_like(features)
    group = model.groups[0]
    group.lift.register_forward_hook(lambda module, args, output: entered.append(args[0]))
    entered = []
    of_state = group.prior_net(state)
    of_h = group.posterior_net(torch.cat([features, state], 1)).chunk(2, 1)
    terms = (of_state.chunk(2, 1), of_h, group.posterior(state, features, of_state))
    prior, posterior, q = (Normal(mean, (logvar / 2).exp()) for mean, logvar in terms)
    z = q.sample()
    group(state, z, of_state)
    close(entered[0], prior.mean + prior.scale * z)
    close(kl_divergence(q, N01), kl_divergence(posterior, prior))
    ratio = posterior.log_prob(entered[0]) - prior.log_prob(entered[0])
    close(q.log_prob(z) - N01.log_prob(z), ratio)


@pytest.mark.parametrize("epochs, batch_size", [(20, 30), (3, 7), (1, 30)])
def test_training_step_by_step(V, monkeypatch, epochs, batch_size):
    """Rate, length of the gradient, weight of the KL term, images, where terms are two weights."""
    terms = nn.Parameter(torch.tensor([2.0, 3.0]))  # reconstruction; KL, of each of 3 dimensions
    optimizer = torch.optim.SGD([terms])
    rate = optimizer.param_groups[0]
    steps = []
    optimizer.register_step_pre_hook(lambda *_: steps.append([rate["lr"], *terms.grad.tolist()]))
    seen = []

    def elbo_terms(model, x):
        seen.extend((255 * x).flatten().tolist())
        return terms[0].expand(len(x)), terms[1].expand(len(x), 3)

    monkeypatch.setattr(V, "elbo_terms", elbo_terms)
    monkeypatch.setattr(V, "augment", lambda x, progress: x)
    for name, value in {"EPOCH_SIZE": 30, "CLIP": 0.125, "KL_START": 4}.items():
        monkeypatch.setattr(V, name, value)
    options = f"--batch-size {batch_size} --epochs {epochs} --lr 0.25 --kl-weight 3".split()
    args = V.parse_args([*SMALL, ".", *options])
    images = torch.arange(40).byte().view(40, 1, 1, 1)
    for epoch in range(epochs):
        means = V.train_epoch(args, nn.ParameterList([terms]), optimizer, images, epoch)
    assert [means["reconstruction_nats"], means["kl_nats"]] == pytest.approx([2, 9], rel=0.2)
    n = epochs * math.ceil(30 / batch_size)
    progress = (np.arange(n) + 0.5) / n
    rates, *gradient = np.array(steps).T
    assert rates == pytest.approx(np.interp(progress, [0, 0.1, 1], [0, 0.25, 0])) and min(rates) > 0
    assert np.hypot(*gradient) == pytest.approx(np.full(n, 0.125), rel=1e-3)
    weights = gradient[1] / gradient[0] / 3  # it falls from 4 lambda to lambda, 3
    assert weights == pytest.approx(3 * 4 ** np.maximum(0, 1 - progress / 0.6), rel=1e-4)
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
        name = "_is_mkldnn_bf16_supported"
        monkeypatch.setattr(torch.ops.mkldnn, name, lambda answer=answer: answer)
        history = V.main([*SMALL, str(tmp_path), "--batch-size", "64"])["history"]
        losses.append([point["reconstruction_nats"] for point in history])
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[0][1] < 0.8 * losses[0][0]


def test_iw_nll_is_the_integral(monkeypatch):
    """One latent dimension: the importance-weighted bound against p(x) integrated on a grid."""
    monkeypatch.setattr(DIGITS, "MAPS", [(64, 4, [])])
    model = seeded(DIGITS.VAE, 1).eval().requires_grad_(False)
    model.groups[0].posterior_net[-2].bias.copy_(torch.tensor([0.7, 0.5]))  # away from the prior
    images = torch.tensor([0, 255]).byte().view(2, 1, 1, 1).expand(2, 1, 28, 28)  # differ in p(x)
    z = torch.linspace(-8, 8, 2001)[:, None]
    log_p = Bernoulli(logits=model.decode(z)).log_prob(images[:, None] / 255).sum((2, 3, 4))
    exact = (log_p + N01.log_prob(z[:, 0])).logsumexp(1) + math.log(16 / 2000)
    bound = MEASURE(model, images.repeat_interleave(10, 0), None, None)["iw_nll_nats"]
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


def test_digits_are_read_or_refused(tmp_path):
    grey = np.load(SAMPLE / "TibetanMNIST.npz")["image"]
    grey[0, 0, :2] = 127, 128
    path = tmp_path / "TibetanMNIST.npz"
    np.savez(path, image=grey, label=np.arange(9))
    images = read(DIGITS, tmp_path)
    assert images.dtype == torch.uint8 and images[0, 0, 0, :2].tolist() == [0, 255]
    np.testing.assert_array_equal(images.numpy(), 255 * (grey > 127)[:, None])
    whole = path.read_bytes()
    other = whole.replace(b"image.npy", b"other.npy")
    for fault in (b"<html>", whole[:-99], whole[:9000] + b"?" + whole[9001:], other):
        path.write_bytes(fault)
        assert path.name in error_of(read, DIGITS, tmp_path)
    wrong = [grey.reshape(-1, 784), grey / 255, grey[:639], np.full((640, 28, 28), None)]
    for image in (*wrong, grey // 128, np.maximum(grey, 128)):  # no ink, no paper
        np.savez(path, image=image)
        assert path.name in error_of(read, DIGITS, tmp_path)


def test_faces_of_a_folder_or_of_its_zip_are_the_same(tmp_path, capsys):
    """Each picture once, whatever its order, name, mode and size; what is none is counted."""
    folder = tmp_path / "in"
    (folder / "deep" / "er").mkdir(parents=True)
    for i in range(640):
        Image.new("RGB", (8, 8), (i % 250, i // 250, 0)).save(folder / f"{i}.png")
    for mode in ("L", "RGBA", "P", "LA"):
        Image.new("L", (90, 70), 255).convert(mode).save(folder / "deep" / "er" / mode, "PNG")
    tall = Image.new("RGB", (64, 200), "blue")
    tall.paste("yellow", (0, 60, 64, 140))
    tall.save(folder / "日本.WEBP", lossless=True)
    for kind in ("uint16", "float32"):
        Image.fromarray(np.full((64, 64), 5, kind)).save(folder / f"bad {kind}.tif")
    (folder / "bad cut.png").write_bytes((folder / "9.png").read_bytes()[:-30])
    (folder / "bad note.txt").write_text("none")
    shutil.make_archive(tmp_path / "anime-faces", "zip", folder)
    faces = read(FACES, folder)
    assert torch.equal(faces, read(FACES, tmp_path)) and faces.dtype == torch.uint8
    assert faces.shape == (642, 3, 64, 64) and faces[5, :, 9, 9].tolist() == [1, 2, 0]
    assert faces[-1].min() == 255 and faces[-2, 0].min() > 250 and faces[-2, 2].max() < 5
    for line in capsys.readouterr().err.splitlines():
        assert "642 faces, left out 4" in line and "bad " in line
    for i in range(3):
        (folder / f"{i}.png").unlink()
    assert "639 faces" in error_of(read, FACES, folder)
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
    metrics = json.loads((finished / "metrics.json").read_text())
    parts = metrics["reconstruction_nats"] + metrics["kl_nats"]  # lambda is 0.01, not here
    assert metrics["negative_elbo_nats"] == pytest.approx(parts) and len(metrics["history"]) == 3
    assert ("bits_per_dim" if V is FACES else "iw_nll_nats") in metrics
    model, config = V.load_checkpoint(finished / "model.pt")
    assert config.latent_dim == V.LATENT_DIM and not model.training
    _, validation, test = V.split(read(V, SAMPLE))
    codes = V.evaluate(model, test)[2]
    assert (codes.var(0) > 0.012).sum() <= metrics["active_units"] <= (codes.var(0) > 0.008).sum()
    # The last point of the curve is the saved model's, noise of z and 16 bits aside.
    found = [term.sum().item() / len(validation) for term in V.evaluate(model, validation)[:2]]
    held = [value for name, value in metrics["history"][-1].items() if "validation" in name]
    assert held == pytest.approx(found, rel=0.1, abs=3e-3 * test[0].numel())
    # Real images stand left of what their codes (of 16 bits) decode to, and at the ends of paths.
    middle = slice(65, None, 130)  # of each tile
    names = ("reconstructions.png", "interpolation.png")
    pictures = [np.asarray(Image.open(finished / name).convert("RGB")) for name in names]
    pairs, path = (image[middle, middle].reshape(64, 3).astype(float) for image in pictures)
    decoded = model.likelihood(model.decode(codes[:32].float())).mean
    for k, x in enumerate((test[:32] / 255, decoded)):
        shown = 255 * x[:, :, V.SIDE // 2, V.SIDE // 2].expand(-1, 3).numpy()
        np.testing.assert_allclose(pairs[k::2], shown, atol=6)
        np.testing.assert_allclose(path[k::8], shown[:16:2], atol=6)
        np.testing.assert_allclose(path[7 - k :: 8], shown[1:16:2], atol=6)


def test_resume(V, finished, tmp_path, monkeypatch):
    """Of a finished run, of others' options or images, of nothing."""
    assert len(V.train(*tiny(V, tmp_path, "--resume", "--latent-dim", "4"))) == 3
    monkeypatch.setattr(V, "train_epoch", None)
    before = contents(finished)
    again = [*SMALL, str(finished), "--resume"]
    images, validation, _ = V.split(read(V, SAMPLE))
    images[9, 0, 0, 0] ^= 255  # one pixel
    assert "with {'images': " in error_of(V.train, V.parse_args(again), images, validation)
    line = error_of(V.main, [*again, "--lr", "0.5", "--seed", "7"])
    assert f"'lr': {V.LR}" in line and "'seed': 0" in line and "images" not in line
    assert contents(finished) == before
    old = json.loads(before["metrics.json"])
    new = V.main(again)
    assert old.pop("wall_seconds") != new.pop("wall_seconds") and old == new
    assert contents(finished)["model.pt"] == before["model.pt"]


def test_killed_and_resumed_is_the_run_left_alone(V, finished, tmp_path):
    """Bit for bit, where its second epoch was cut."""
    process = subprocess.Popen([sys.executable, ROOT / f"0123456_{V.NAME}.py", *SMALL, tmp_path])
    while not (tmp_path / "model.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)
    process.kill()
    assert process.wait() < 0  # it had not ended
    V.main([*SMALL, str(tmp_path), "--resume"])
    one, two = (torch.load(out / "model.pt", weights_only=True) for out in (finished, tmp_path))
    assert one["history"] == two["history"]
    torch.testing.assert_close(one["weights"], two["weights"], rtol=0, atol=0)


def test_models_that_are_damaged_foreign_or_not_finite_are_refused(V, finished, tmp_path):
    whole = (finished / "model.pt").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # a bit of some number: torch itself does not notice
    saved = torch.load(finished / "model.pt", weights_only=True)
    other = DIGITS if V is FACES else FACES
    foreign = [{"a": 1}, {**saved, "weights": other.VAE(V.LATENT_DIM).state_dict()}]
    foreign += [{**saved, "config": {"latent_dim": 5}}, {**saved, "code": SAMPLE}]
    path = tmp_path / "model.pt"
    for fault in (b"", whole[:-99], bytes(flipped), *foreign):
        if isinstance(fault, bytes):
            path.write_bytes(fault)
        else:
            torch.save(fault, path)
        before = contents(tmp_path)
        assert "model.pt" in error_of(V.load_checkpoint, path)
        assert "model.pt" in error_of(V.train, *tiny(V, tmp_path, "--resume"))
        assert contents(tmp_path) == before
    assert "--lr" in error_of(V.train, *tiny(V, tmp_path / "new", "--lr", "1e30"))  # not finite
    assert not contents(tmp_path / "new")
