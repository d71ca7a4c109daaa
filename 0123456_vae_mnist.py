"""Train a variational autoencoder with a Bernoulli decoder on binarized Tibetan digits (28 x 28).

    python 0123456_vae_mnist.py                               TibetanMNIST.npz in data/, beside it
    python 0123456_vae_mnist.py --data DIR --kl-weight 100    DIR: its folder; lambda = 100

results/vae_mnist/kl1 (kl100, ...) gets metrics.json, model.pt and five pictures. The course's
12,000 digits: -ELBO below 84 nats on those held out, in a minute on two cores.
"""

import argparse
import hashlib
import io
import itertools
import json
import math
import os
import sys
import time
import zipfile
from pathlib import Path

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1500")  # idle threads soon leave the cores to others
os.environ["MPLBACKEND"] = "agg"  # pictures are files; a notebook's own backend would fail here

import numpy as np
import pandas as pd
import torch
from matplotlib.image import imsave
from torch import nn
from torch.distributions import Bernoulli, Normal
from tqdm import tqdm

NAME = "vae_mnist"
FILE = "TibetanMNIST.npz"
DATA = Path(__file__).resolve().parent / "data"
SAMPLE = DATA / "sample"  # made data, where the course's are missing
CHANNELS, SIDE = 1, 28  # of a picture
MAPS = [(64, 4, [1] * 5)]  # width, side, latents a place of each group: 5 groups of 1
TOP_WIDTH, TOP_GROUP = 192, 16  # of the vector above them: its width, latents of each group
LATENT_DIM = 32  # of the vector; with the map's 5 * 4 * 4 that makes Z = 112
OUTPUT = nn.Identity()  # of the decoder: logits
EPOCHS = 20
EPOCH_SIZE = 12_000  # images an epoch at most
BATCH_SIZE = 128
LR = 4e-3
CLIP = 100  # norm above which a gradient is scaled down
KL_START = 8  # the KL term weighs 8 lambda at first, falling to lambda over 60% of training


# --------------------------------------------------------------------------------------- arguments
def parse_args(argv=None):
    """The options as a namespace; argparse says what is wrong with one and exits with status 2."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    gpu = torch.accelerator.current_accelerator(check_available=True)
    devices = ["cpu", gpu.type] if gpu else ["cpu"]
    add = parser.add_argument
    add("--data", type=Path, default=DATA, help=f"folder of {FILE}")
    add("--out", type=Path, help=f"folder of what is written; None: results/{NAME}/kl...")
    add("--kl-weight", type=float, default=1.0, help="lambda, the weight of the KL term")
    add("--latent-dim", type=int, default=LATENT_DIM, help="latents of the top vector")
    add("--epochs", type=int, default=EPOCHS, help=f"of {EPOCH_SIZE:,} random images at most")
    add("--batch-size", type=int, default=BATCH_SIZE, help="images a step")
    add("--lr", type=float, default=LR, help="peak learning rate")
    add("--seed", type=int, default=0, help="seed of all but the split")
    add("--device", choices=devices, default=devices[-1], help="where to train")
    add("--resume", action="store_true", help="go on from model.pt; if finished, draw again")
    add("--dry-run", action="store_true", help="a little of everything, in a folder of its own")
    args = parser.parse_args(argv)
    if not min(args.lr, args.latent_dim, args.epochs, args.batch_size) > 0 <= args.kl_weight:
        parser.error("--lr, --latent-dim, --epochs, --batch-size: above 0; --kl-weight: 0 or more")
    dry = "dry_run" if args.dry_run else ""
    args.out = args.out / dry if args.out else Path("results", dry, NAME, f"kl{args.kl_weight:g}")
    args.epochs = 1 if args.dry_run else args.epochs
    if args.data == DATA and SAMPLE.is_dir() and not (DATA / FILE).is_file():
        args.data = SAMPLE
        print(f"notice: the results are of made data, {SAMPLE}", file=sys.stderr)
    return args


# -------------------------------------------------------------------------------------------- data
def load_images(args):
    """The digits of TibetanMNIST.npz, uint8 (N, 1, 28, 28): 255 where above 127, else 0."""
    path = args.data / FILE
    try:
        images = np.load(path, allow_pickle=False)["image"]
    except Exception as error:  # numpy and zipfile raise a dozen kinds
        sys.exit(f"error: no array `image` in {path} ({error}): name its folder by --data")
    is_digits = images.dtype == np.uint8 and images.shape[1:] == (28, 28) and len(images) >= 640
    if not is_digits or images.min() > 127 or images.max() < 128:
        sys.exit(f"error: {path} needs 640 digits, 28 x 28, uint8, ink from 128 to 255: correct it")
    images = torch.from_numpy((images > 127) * np.uint8(255))[:, None]
    return images[: 700 if args.dry_run else None]


def augment(x, progress):
    """Training digits, each moved, turned, stretched and sheared at random, a little; over the
    second half of training less and less."""
    strength = 0.05 * min(1, 2 - 2 * progress)  # in halves of the picture's width
    change = torch.eye(2, 3) + strength * torch.randn(len(x), 2, 3)
    grid = nn.functional.affine_grid(change.to(x.device), x.shape, align_corners=False)
    return nn.functional.grid_sample(x, grid, align_corners=False).round()


# ------------------------------------------------------------------------------------------- model
class Pointwise(nn.Linear):
    """A linear layer on the channels of a map (B, C, S, S): a 1 x 1 convolution, but faster."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Residual(nn.Sequential):
    """x + f(x) for maps (B, W, S, S); f sees 3 x 3 places, or the one place of a vector."""

    def __init__(self, W, S):
        mix = nn.Conv2d(W, W, 3, padding=1) if S > 1 else Pointwise(W, W)
        super().__init__(nn.SiLU(), mix, nn.SiLU(), Pointwise(W, W))
        nn.init.zeros_(self[-1].weight)

    def forward(self, x):
        return x + super().forward(x)


def reparameterize(mean, logvar):
    """A sample of N(mean, exp(logvar)), through which gradients pass (Kingma and Welling 2014)."""
    return mean + (logvar / 2).exp() * torch.randn_like(mean)


class Group(nn.Module):
    """C latents z at each place of a map. The decoder's state (B, W, S, S) takes h = m + s z, with
    m and s computed from the state: h has a learned prior, N(m, s^2), while z keeps N(0, I)."""

    def __init__(self, W, S, C):
        super().__init__()
        self.shape = (C, S, S)
        cut = nn.Hardtanh(-10, 10)  # with lambda = 0, h would grow without end
        self.prior_net = nn.Sequential(nn.SiLU(), Pointwise(W, 2 * C), cut)  # m and log s^2
        self.posterior_net = nn.Sequential(Pointwise(2 * W, W), nn.SiLU(), Pointwise(W, 2 * C), cut)
        self.lift = Pointwise(C, W)
        self.refine = nn.Sequential(Residual(W, S))  # VAE appends the way to a finer map
        nn.init.zeros_(self.prior_net[1].weight)

    def posterior(self, state, features, prior):
        """Mean and log-variance of q(z|x), (B, C, S, S) each: those of h, for z = (h - m) / s."""
        m, log_s2 = prior.float().chunk(2, 1)
        h_mean, h_logvar = self.posterior_net(torch.cat([features, state], 1)).float().chunk(2, 1)
        return (h_mean - m) / (log_s2 / 2).exp(), h_logvar - log_s2

    def forward(self, state, z, prior):
        """The state for the next group, after z (B, C, S, S) has entered it."""
        m, log_s2 = prior.float().chunk(2, 1)
        return self.refine(state + self.lift(m + (log_s2 / 2).exp() * z))


class VAE(nn.Module):
    """Groups of latents from the top down, of a vector, then of finer maps: a posterior sees the
    features of x and the state that the groups above made (Sonderby et al. 2016; Child 2021)."""

    def __init__(self, latent_dim):
        super().__init__()
        top = [len(part) for part in torch.arange(latent_dim).split(TOP_GROUP)]  # sizes of groups
        maps = [(TOP_WIDTH, 1, top), *MAPS, (CHANNELS, SIDE, [])]
        self.encoder = nn.ModuleList()  # from the picture up
        self.groups = nn.ModuleList()  # from the top down
        for (W, S, latents), (finer_W, finer_S, _) in itertools.pairwise(maps):
            r = finer_S // S  # r x r places of the finer map become one
            n = finer_W * r * r
            down = nn.Sequential(nn.PixelUnshuffle(r), Pointwise(n, W), Residual(W, S))
            up = nn.Sequential(Residual(W, S), nn.SiLU(), Pointwise(W, n), nn.PixelShuffle(r))
            self.encoder.insert(0, down)  # from the finer map to this one
            self.groups.extend(Group(W, S, C) for C in latents)
            self.groups[-1].refine.append(up)  # and back: (B, finer_W, finer_S, finer_S)
        self.sizes = [math.prod(group.shape) for group in self.groups]
        self.start = nn.Parameter(0.1 * torch.randn(1, TOP_WIDTH, 1, 1))  # the first state
        self.likelihood = Likelihood()
        self.to(memory_format=torch.channels_last)  # the faster order on a CPU

    def features(self, x):
        """x (B, C, H, W) in [0, 1] -> {S: the encoder's map (B, W, S, S)}, from the finest on."""
        y = 2 * x - 1
        maps = {}
        for down in self.encoder:
            y = down(y)
            maps[y.size(3)] = y
        return maps

    def infer(self, features, is_sampled=True):
        """Features of x -> what z decodes to, z, and mean and log-variance of q(z|x), (B, Z). Each
        group's z is drawn before the next group is asked; if not is_sampled, it is the mean."""
        state = self.start.expand(len(features[1]), -1, -1, -1)
        path = []
        for group in self.groups:
            prior = group.prior_net(state)
            mean, logvar = group.posterior(state, features[state.size(3)], prior)
            z = reparameterize(mean, logvar) if is_sampled else mean
            state = group(state, z, prior)
            path.append(torch.stack([z, mean, logvar]).flatten(2))  # (3, B, C * S * S)
        return OUTPUT(state.float()), *torch.cat(path, 2)  # ..., z, mean, logvar

    def encode(self, x):
        """x -> mean and log-variance of q(z|x), (B, Z) each, along a path that is drawn."""
        return self(x)[1:]

    def decode(self, z):
        """z (B, Z), from the top down -> Bernoulli logits (B, 1, 28, 28)."""
        state = self.start.expand(len(z), -1, -1, -1)
        for group, part in zip(self.groups, z.split(self.sizes, 1), strict=True):
            state = group(state, part.unflatten(1, group.shape), group.prior_net(state))
        return OUTPUT(state.float())

    def forward(self, x):
        """x -> what one sample z of q(z|x) decodes to, and mean and log-variance of q(z|x)."""
        decoded, _, mean, logvar = self.infer(self.features(x))
        return decoded, mean, logvar


# -------------------------------------------------------------------------------------- likelihood
class Likelihood(nn.Module):
    """p(x|z) of what is decoded, whose mean is the picture: a Bernoulli in every pixel."""

    def forward(self, decoded):
        return Bernoulli(logits=decoded, validate_args=False)


def data_metrics(model, images, *_):
    """IW-NLL: an upper bound on -log p(x) in nats, mean of up to 500 images, by k = 500 importance
    samples each, four at once (Burda et al. 2016, equation 8)."""
    x = (images[:500] / 255).repeat(4, 1, 1, 1)
    features = model.features(x)
    log_weights = torch.empty(125, len(x))  # a list of small parts would keep freed memory
    for row in tqdm(log_weights, "IW-NLL", disable=None):
        decoded, z, mean, logvar = model.infer(features)
        log_p = model.likelihood(decoded).log_prob(x).sum((1, 2, 3))  # of x given z
        log_p += Normal(0, 1).log_prob(z).sum(1)  # of x and z
        log_q = Normal(mean, (logvar / 2).exp()).log_prob(z).sum(1)
        row[:] = log_p - log_q
    bound = math.log(500) - log_weights.view(500, -1).logsumexp(0)
    return {"iw_nll_nats": bound.mean().item()}


# ------------------------------------------------------------------------------- loss and training
def split(images):
    """Training, validation (1 in 20) and test images (1 in 10): the same ones whatever --seed."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, validation, rest = order.tensor_split([len(images) // 10, 3 * len(images) // 20])
    return images[rest], images[validation], images[test]


def elbo_terms(model, x):
    """-log p(x|z) of a sample z of q(z|x), (B,), KL(q(z|x) || p(z)) by dimension, (B, Z); nats."""
    decoded, mean, logvar = model(x)
    reconstruction = -model.likelihood(decoded).log_prob(x).flatten(1).sum(1)
    return reconstruction, (mean.square() + logvar.exp() - 1 - logvar) / 2


def learning_rate(progress, peak):
    """Linear warm-up over the first tenth of training, then linear decay to 0."""
    if progress < 0.1:
        return peak * progress / 0.1
    return peak * (1 - progress) / 0.9


def kl_weight(progress, weight):
    """KL_START times `weight` at first, falling to it: a dear z holds only what tells most of x."""
    if progress < 0.6:
        return weight * KL_START ** (1 - progress / 0.6)
    return weight


def train_epoch(args, model, optimizer, images, epoch):
    """Train on up to EPOCH_SIZE random images; mean loss as minimized, reconstruction, KL; nats."""
    torch.manual_seed(10**6 * args.seed + epoch)  # a resumed run draws the same
    batches = torch.randperm(len(images))[:EPOCH_SIZE].split(args.batch_size)
    totals = torch.zeros(3)
    for step, rows in enumerate(batches):
        progress = (epoch + (step + 0.5) / len(batches)) / args.epochs  # in the middle of the step
        optimizer.param_groups[0]["lr"] = learning_rate(progress, args.lr)
        x = augment(images[rows].to(args.device) / 255, progress)
        reconstruction, kl = elbo_terms(model, x)
        terms = torch.stack([reconstruction.mean(), kl.sum(1).mean()])
        loss = terms[0] + kl_weight(progress, args.kl_weight) * terms[1]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        totals += torch.stack([loss, *terms]).detach().cpu()
    names = ("loss_nats", "reconstruction_nats", "kl_nats")
    return dict(zip(names, (totals / len(batches)).tolist(), strict=True))


def train(args, images, validation):
    """Train, or go on training, with a model.pt after each epoch; the history, a dict an epoch."""
    config = {k: v for k, v in vars(args).items() if k not in ("data", "out", "device", "resume")}
    config["images"] = hashlib.sha256(images.numpy()).hexdigest()
    torch.manual_seed(args.seed)
    model = VAE(args.latent_dim).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, (0.9, 0.95), fused=True)
    history = []
    path = args.out / "model.pt"
    if args.resume and path.exists():
        changed = vars(load_checkpoint(path)[1]).items() - config.items()  # pairs that differ
        if changed:
            sys.exit(f"error: {path} is of a run with {dict(changed)}: repeat it, or change --out")
        saved = torch.load(path, map_location=args.device, weights_only=True)
        model.load_state_dict(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        history = saved["history"]
    for epoch in tqdm(range(len(history), args.epochs), "training", unit="epoch", disable=None):
        point = train_epoch(args, model, optimizer, images, epoch)
        held = evaluate(model, validation)
        point["validation_reconstruction_nats"] = held[0].mean().item()
        point["validation_kl_nats"] = held[1].sum(1).mean().item()
        if not math.isfinite(sum(point.values())):
            sys.exit(f"error: the loss is not finite in epoch {epoch + 1}: take a smaller --lr")
        history.append(point)
        saved = {"config": config, "history": history, "weights": model.state_dict()}
        saved["optimizer"] = optimizer.state_dict()
        buffer = io.BytesIO()  # torch.save itself would not say that the disk is full
        torch.save(saved, buffer)
        path.with_suffix(".part").write_bytes(buffer.getvalue())
        os.replace(path.with_suffix(".part"), path)  # whole or not at all
    return history


def load_checkpoint(path, device="cpu"):
    """(model, options) of a model.pt, on a device; the model in eval mode. Runs no code from it."""
    try:
        assert not zipfile.ZipFile(path).testzip(), "damaged"  # torch looks at no checksum
        saved = torch.load(path, map_location=device, weights_only=True)
        model = VAE(saved["config"]["latent_dim"]).to(device)
        model.load_state_dict(saved["weights"])
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds
        sys.exit(f"error: {path} is no model of {NAME} ({error!r:.200}): name another --out")
    return model.eval().requires_grad_(False), argparse.Namespace(**saved["config"])


# -------------------------------------------------------------------------------------- evaluation
@torch.no_grad()
def evaluate(model, images):
    """Of images: -log p(x|z), (N,), KL, (N, Z), of a drawn path; mean, logvar on that of means."""
    parts = []
    for batch in images.split(250):
        x = batch.to(model.start.device) / 255
        _, _, mean, logvar = model.infer(model.features(x), is_sampled=False)
        parts.append([term.cpu().double() for term in (*elbo_terms(model, x), mean, logvar)])
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def interpolate(one, two, way):
    """Codes (..., Z) on a line, drawn out to full length: a plain form of White's slerp (2016)."""
    length = torch.lerp(one.norm(dim=-1, keepdim=True), two.norm(dim=-1, keepdim=True), way)
    return length * nn.functional.normalize(torch.lerp(one, two, way), dim=-1)


# ----------------------------------------------------------------------------------------- figures
def draw_images(path, images):
    """Pictures (N, C, H, W) in [0, 1], N a multiple of 8, 8 in a row, each 128 pixels wide."""
    framed = nn.functional.pad(nn.functional.interpolate(images, 128), (1, 1, 1, 1), value=0.5)
    rows = [torch.cat([*row], 2) for row in framed.split(8)]  # (C, 130, 8 * 130) each
    imsave(path, torch.cat(rows, 1).expand(3, -1, -1).permute(1, 2, 0).numpy())


# -------------------------------------------------------------------------------------------- main
def main(argv=None):
    """Train, evaluate, draw; returns what it writes to metrics.json."""
    started = time.perf_counter()
    args = parse_args(argv)
    images, validation, test = split(load_images(args))
    args.out.mkdir(parents=True, exist_ok=True)
    is_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    autocast = torch.autocast(args.device, torch.bfloat16, is_bf16, cache_enabled=False)
    with autocast:  # without a cache: it would keep the weights of the first step
        history = train(args, images, validation)
        model, config = load_checkpoint(args.out / "model.pt")  # on the CPU
        torch.manual_seed(args.seed)
        reconstruction, kl, mean, logvar = evaluate(model, test)
        loss = (reconstruction + kl.sum(1)).mean().item()
        own = data_metrics(model, test, loss, reconstruction.mean().item())
    metrics = {  # at lambda = 1, whatever lambda trained the model
        "negative_elbo_nats": loss,
        "reconstruction_nats": reconstruction.mean().item(),
        "kl_nats": kl.sum(1).mean().item(),
        **own,
        "active_units": int((mean.var(0) > 0.01).sum()),  # Burda et al. 2016
        "history": history,
        "wall_seconds": time.perf_counter() - started,  # of this call
        "config": {**vars(config), "device": args.device},
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False))
    panels = [tuple(k for k in history[0] if term in k) for term in ("loss", "recon", "kl")]
    axes = pd.DataFrame(history).plot(subplots=panels, figsize=(8, 9), marker=".", xlabel="epoch")
    axes[0].figure.savefig(args.out / "curves.png")
    posterior = pd.DataFrame({"mean of q(z|x), an image": mean[0], "its log-variance": logvar[0]})
    axes = posterior.plot(subplots=True, figsize=(8, 6), style=".", xlabel="dimension of z")
    axes[0].figure.savefig(args.out / "posterior.png")
    x = test[:32] / 255
    codes = mean.float()
    decoded = model.likelihood(model.decode(codes[:32])).mean
    draw_images(args.out / "reconstructions.png", torch.stack([x, decoded], 1).flatten(0, 1))
    samples = model.likelihood(model.decode(torch.randn(64, codes.size(1)))).mean
    draw_images(args.out / "samples.png", samples)
    strips = []
    for i in range(0, 16, 2):  # from one real image to the next
        z = interpolate(codes[i], codes[i + 1], torch.linspace(0, 1, 6)[:, None])  # (6, Z)
        strips += [x[i : i + 1], model.likelihood(model.decode(z)).mean, x[i + 1 : i + 2]]
    draw_images(args.out / "interpolation.png", torch.cat(strips))
    numbers = [f"{k:24} {v:.6g}" for k, v in metrics.items() if isinstance(v, int | float)]
    print(*numbers, f"metrics.json, model.pt, pictures: {args.out}", sep="\n")
    return metrics


if __name__ == "__main__":
    try:
        main()
    except (OSError, zipfile.BadZipFile) as error:  # a missing or damaged file, a full disk
        sys.exit(f"error: {error}: name another path, by --data or --out, or make room")
    except KeyboardInterrupt:
        sys.exit("stopped: the same command with --resume goes on")
