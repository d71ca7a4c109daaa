"""Train a variational autoencoder with a Bernoulli decoder on binarized Tibetan digits (28 x 28).

    python 0123456_vae_mnist.py                    TibetanMNIST.npz in data/, beside the script
    python 0123456_vae_mnist.py --data DIR         the folder where it lies
    python 0123456_vae_mnist.py --kl-weight 100    lambda, the weight of the KL term: 0, 1, 100...

results/vae_mnist/kl1 (kl100, ...) gets metrics.json, model.pt and five pictures. The course's
12,000 digits: -ELBO 86 nats on those held out, after 4 to 10 minutes on one core; --resume goes on
if it was stopped.
"""

import argparse
import hashlib
import io
import json
import math
import os
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path


def stop(signum, frame):
    """Ctrl-C is one line and status 130, even while torch is being imported."""
    print("\nstopped: the same command with --resume goes on", file=sys.stderr, flush=True)
    os._exit(130)  # not an exception, which the import of a library may swallow


if __name__ == "__main__" and "IPython" not in sys.modules:  # a notebook has its own Ctrl-C
    signal.signal(signal.SIGINT, stop)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # a service has none
    os.environ["MPLBACKEND"] = "agg"  # a notebook's setting, inherited, would stop the import

import matplotlib.figure
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

NAME = "vae_mnist"
FILE = "TibetanMNIST.npz"
LATENT_DIM = 32
EPOCHS = 31
BATCH_SIZE = 128
LR = 3e-3
ROUNDS = 1  # points of the learning curve an epoch
CLIP = 100  # norm above which a gradient is scaled down; without, lambda = 100 diverges
KL_WARM_UP = 0.3  # share of training over which the KL term grows to its weight


# --------------------------------------------------------------------------------------- arguments
def parse_args(argv=None):
    """The options as a namespace; argparse says what is wrong with one and exits with status 2."""
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=form)
    gpu = torch.accelerator.current_accelerator(check_available=True)
    devices = ["cpu", gpu.type] if gpu else ["cpu"]
    data = Path(__file__).resolve().parent / "data"
    made = data / "sample"
    if (made / FILE).is_file() and not (data / FILE).is_file():
        data = made
    add = parser.add_argument
    add("--data", type=Path, default=data, help=f"folder of {FILE}")
    add("--out", type=Path, help=f"folder of what is written; None: results/{NAME}/kl...")
    add("--kl-weight", type=float, default=1.0, help="lambda, the weight of the KL term")
    add("--latent-dim", type=int, default=LATENT_DIM, help="dimensions of z")
    add("--epochs", type=int, default=EPOCHS, help="passes over the images")
    add("--batch-size", type=int, default=BATCH_SIZE, help="images a step")
    add("--lr", type=float, default=LR, help="peak learning rate")
    add("--seed", type=int, default=0, help="seed of all but the split")
    add("--device", choices=["auto", *devices], default="auto", help="where to compute")
    add("--resume", action="store_true", help="go on from where an interrupted run was saved")
    add("--eval-only", action="store_true", help="figures and pictures of the model.pt in --out")
    add("--dry-run", action="store_true", help="a little of everything, in a folder of its own")
    args = parser.parse_args(argv)
    least = {"kl_weight": 0, "latent_dim": 1, "epochs": 1, "batch_size": 1, "lr": 1e-9, "seed": 0}
    for name, low in least.items():
        if not low <= getattr(args, name) <= 2**31:
            parser.error(f"argument --{name.replace('_', '-')}: not from {low} to 2**31")
    args.device = args.device.replace("auto", devices[-1])
    args.epochs = 1 if args.dry_run else args.epochs
    dry = "dry_run" if args.dry_run else ""
    args.out = args.out / dry if args.out else Path("results", dry, NAME, f"kl{args.kl_weight:g}")
    if args.data == made:
        print(f"notice: results are of made data, {args.data}", file=sys.stderr)
    return args


# ----------------------------------------------------------------------------------------- helpers
def fail(message):
    """End with status 2 and one line, `error: WHAT: WHAT TO DO`."""
    print("error:", message.replace("\n", " "), file=sys.stderr)
    sys.exit(2)


def write(path, data):
    """Put bytes at `path`, whole or not at all, also beside another run with the same --out."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:
            part = Path(folder, path.name)
            part.write_bytes(data)
            os.replace(part, path)
    except OSError as error:
        fail(f"cannot write {path} ({error.strerror}): make room or name another place")


# -------------------------------------------------------------------------------------------- data
# This section and the next are of digits; the rest serves faces too, so some arguments go unused.
def load_images(args):
    """The digits of TibetanMNIST.npz, uint8 (N, 1, 28, 28): 255 where above 127, else 0."""
    path = args.data / FILE
    try:
        images = np.load(path, allow_pickle=False)["image"]
        images = images.reshape(len(images), 1, 28, 28).astype(np.float32)
    except Exception as error:  # numpy and zipfile raise a dozen kinds for damaged files
        fail(f"no array `image` of 28 x 28 in {path} ({error}): name the file's folder by --data")
    if len(images) < 640:
        fail(f"{len(images)} images in {path}, 640 are needed: name another folder by --data")
    pixels = images * 255 if images.max() < 2 else images
    if not -77 < pixels.min() <= 127 < pixels.max() < 332:  # resizing overshoots by up to 0.3
        fail(f"pixels in {path} are from {images.min()} to {images.max()}: scale them, 0 to 255")
    return torch.from_numpy((pixels > 127) * np.uint8(255))[: 700 if args.dry_run else None]


def training_input(images, progress):
    """x of training images, each moved, turned, stretched and sheared at random, a little; over the
    second half of training less and less."""
    strength = 0.06 * min(1, 2 - 2 * progress)  # half the picture's width is 1
    change = torch.eye(2, 3) + strength * torch.randn(len(images), 2, 3)
    grid = nn.functional.affine_grid(change, images.shape, align_corners=False).to(images.device)
    return nn.functional.grid_sample(images / 255, grid, align_corners=False).round()


# ------------------------------------------------------------------------------------------- model
class Group(nn.Module):
    """A few latents: their posterior, and what they add to the state that becomes the picture."""

    def __init__(self, size, W):
        super().__init__()
        # From features and state, to mean and log-variance.
        self.posterior = nn.Sequential(nn.Linear(2 * W, W), nn.SiLU(), nn.Linear(W, 2 * size))
        self.lift = nn.Linear(size, W)
        self.refine = nn.Sequential(nn.LayerNorm(W), nn.Linear(W, W), nn.SiLU(), nn.Linear(W, W))

    def forward(self, state, z):
        """state (B, W) and the group's z (B, size) -> the state that the next group sees."""
        state = state + self.lift(z)
        return state + self.refine(state)


class VAE(nn.Module):
    """z comes in groups of 4, top down, all with prior N(0, I): a group's posterior sees features
    of x and the state that the groups above make (after Sonderby et al. 2016). p(x|z) is a
    Bernoulli in every pixel."""

    def __init__(self, latent_dim, W=256):
        super().__init__()
        parts = torch.arange(latent_dim).split(4)
        self.groups = nn.ModuleList(Group(len(part), W) for part in parts)
        self.start = nn.Parameter(torch.zeros(W))
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 4, 2, 1),  # (B, 24, 14, 14)
            nn.SiLU(),
            nn.Conv2d(24, 64, 4, 2, 1),  # (B, 64, 7, 7)
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, W),
            nn.LayerNorm(W),
        )
        self.decoder = nn.Sequential(
            nn.LayerNorm(W),
            nn.Linear(W, 64 * 4 * 4),
            nn.SiLU(),
            nn.Unflatten(1, (64, 4, 4)),
            nn.ConvTranspose2d(64, 64, 3, 2, 1),  # (B, 64, 7, 7)
            nn.SiLU(),
            nn.ConvTranspose2d(64, 24, 4, 2, 1),  # (B, 24, 14, 14)
            nn.SiLU(),
            nn.ConvTranspose2d(24, 1, 4, 2, 1),  # (B, 1, 28, 28)
        )
        self.to(memory_format=torch.channels_last)  # the faster order on a CPU

    def sample_posterior(self, x, noise=True, features=None):
        """z, mean and log-variance of q(z|x), (B, Z) each. Those of a group depend on the z of the
        groups above, which is drawn, or without noise the mean. Features given serve again."""
        features = self.features(2 * x - 1) if features is None else features
        state = self.start.expand_as(features)
        parts = []
        for group in self.groups:
            mean, logvar = group.posterior(torch.cat([features, state], 1)).chunk(2, 1)
            logvar = logvar.clamp(-10, 10)  # exp() stays finite
            z = self.reparameterize(mean, logvar) if noise else mean
            state = group(state, z)
            parts.append((z, mean, logvar))
        return [torch.cat(part, 1) for part in zip(*parts, strict=True)]

    def reparameterize(self, mean, logvar):
        """A sample z of q(z|x) through which gradients reach mean and log-variance."""
        return mean + torch.randn_like(mean) * (logvar / 2).exp()

    def encode(self, x):
        """x (B, 1, 28, 28) in {0, 1} -> mean and log-variance of q(z|x), (B, Z) each; random, for
        each group sees what was drawn above it."""
        return self.sample_posterior(x)[1:]

    def decode(self, z):
        """z (B, Z) -> Bernoulli logits (B, 1, 28, 28)."""
        state = self.start.expand(len(z), -1)
        for group, part in zip(self.groups, z.split(4, 1), strict=True):
            state = group(state, part)
        return self.decoder(state)

    def likelihood(self, z):
        """p(x|z), whose mean is the picture."""
        return torch.distributions.Bernoulli(logits=self.decode(z), validate_args=False)

    def forward(self, x):
        """x -> (Bernoulli logits, mean, log-variance), from one sample of z."""
        z, mean, logvar = self.sample_posterior(x)
        return self.decode(z), mean, logvar


def new_model(args, images):
    """The model to be trained on these images."""
    return VAE(args.latent_dim)


def own_figures(model, test, mean, loss):
    """IW-NLL: -log p(x) of 500 test images in nats, on average bounded from above by k = 500
    importance samples each (Burda et al. 2016, equation 8); of fewer images by fewer."""
    x = test[:500] / 255
    features = model.features(2 * x - 1)
    log_weights = []
    for _ in tqdm(range(len(x)), "IW-NLL", disable=None):
        z, mean, logvar = model.sample_posterior(x, features=features)
        log_ratio = (z.square() - (z - mean).square() / logvar.exp() - logvar).sum(1) / 2  # q / p
        log_weights.append(model.likelihood(z).log_prob(x).flatten(1).sum(1) - log_ratio)
    bound = math.log(len(x)) - torch.stack(log_weights).logsumexp(0)
    return {"iw_nll_nats": bound.mean().item()}


# ------------------------------------------------------------------------------- loss and training
def split(images):
    """Training, validation (1 in 20) and test images (1 in 10): the same ones whatever --seed."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, validation, rest = order.tensor_split([len(images) // 10, 3 * len(images) // 20])
    return images[rest], images[validation], images[test]


def elbo_terms(model, x):
    """-log p(x|z) of one sample z of q(z|x), (B,), and KL(q(z|x) || p(z)) of each dimension (Kingma
    and Welling 2014, appendix B), (B, Z); nats. The negative ELBO is the sum of both."""
    z, mean, logvar = model.sample_posterior(x)
    reconstruction = -model.likelihood(z).log_prob(x).flatten(1).sum(1)
    return reconstruction, (mean.square() + logvar.exp() - 1 - logvar) / 2


def learning_rate(progress, peak):
    """Linear warm-up over the first fiftieth of training, then half a cosine down to 0."""
    if progress < 0.02:
        return peak * progress / 0.02
    return peak * (1 + math.cos(math.pi * progress)) / 2


def train_round(args, model, optimizer, images, done):
    """Train for one of the ROUNDS parts of an epoch, after `done` of them, on uint8 images; returns
    reconstruction and KL in nats, their means over the steps."""
    model.train()
    torch.manual_seed(10**6 * args.seed + done)  # a resumed run draws the same
    epoch = torch.Generator().manual_seed(10**6 * args.seed + done // ROUNDS)
    order = torch.randperm(len(images), generator=epoch).to(images.device)
    batches = order.tensor_split(ROUNDS)[done % ROUNDS].split(args.batch_size)
    total = 0
    for step, rows in enumerate(batches):
        progress = (done + step / len(batches)) / (args.epochs * ROUNDS)
        optimizer.param_groups[0]["lr"] = learning_rate(progress, args.lr)
        reconstruction, kl = elbo_terms(model, training_input(images[rows], progress))
        terms = torch.stack([reconstruction.mean(), kl.sum(1).mean()])
        # The KL term grows to its weight (Bowman et al. 2016): the decoder learns to use z first.
        loss = terms[0] + args.kl_weight * min(1, progress / KL_WARM_UP) * terms[1]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        total += terms.detach()
    return (total / len(batches)).tolist()


def train(args, images, validation):
    """Train, or go on training; the checkpoint of the last round is what model.pt holds."""
    # What decides the weights: the options, and the images by their bytes.
    digest = hashlib.sha256(images.numpy()).hexdigest()
    config = {**vars(args), "data": digest, "out": None, "device": None, "resume": None}
    path = args.out / "checkpoint.pt"
    torch.manual_seed(args.seed)
    if args.resume and path.exists():
        model, _ = load_checkpoint(path, args.device)
        if model.saved["config"] != config:
            fail(f"other options or images made {path}: leave out --resume")
    else:
        model = new_model(args, images).to(args.device)
        model.saved = {"config": config, "history": [], "seconds": 0.0, "device": args.device}
    saved = model.saved
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=1e-3, fused=True)
    if saved["history"]:
        optimizer.load_state_dict(saved["optimizer"])
    started = time.perf_counter() - saved["seconds"]
    images = images.to(args.device)
    rounds = range(len(saved["history"]), args.epochs * ROUNDS)
    for done in tqdm(rounds, "training", unit="round", disable=None):
        terms = train_round(args, model, optimizer, images, done)
        reconstruction, kl, _, _ = infer(model, validation)
        point = {
            "reconstruction_nats": terms[0],
            "kl_nats": terms[1],
            "validation_reconstruction_nats": reconstruction.mean().item(),
            "validation_kl_nats": kl.sum(1).mean().item(),
        }
        if not math.isfinite(sum(point.values())):
            fail(f"the loss is not finite in round {done + 1}: take a smaller --lr")
        saved["history"].append(point)
        saved["seconds"] = time.perf_counter() - started
        saved.update(weights=model.state_dict(), optimizer=optimizer.state_dict())
        buffer = io.BytesIO()
        torch.save({NAME: saved}, buffer)
        write(path, buffer.getvalue())
    write(args.out / "model.pt", path.read_bytes())


def load_checkpoint(path, device="cpu"):
    """(model, options) of a model.pt, on a device; the model in eval mode, and model.saved all that
    the file holds. Runs no code from it."""
    try:
        if zipfile.ZipFile(path).testzip():  # torch itself looks at no checksum
            raise ValueError("damaged")
        saved = torch.load(path, map_location="cpu", weights_only=True)[NAME]
        config = argparse.Namespace(**saved["config"])
        model = VAE(config.latent_dim)
        model.load_state_dict(saved["weights"])
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds
        fail(f"cannot load {path} ({error!r}): name another --out or train anew")
    model.saved = saved
    return model.to(device).eval(), config


# -------------------------------------------------------------------------------------- evaluation
@torch.no_grad()
def infer(model, images):
    """Of N uint8 images elbo_terms and, with no noise drawn, mean and log-variance of q(z|x), the
    mean being the image's code; float64 on the CPU."""
    model.eval()
    parts = []
    for batch in images.split(500):
        x = batch.to(next(model.parameters()).device) / 255
        terms = [*elbo_terms(model, x), *model.sample_posterior(x, noise=False)[1:]]
        parts.append([term.cpu().double() for term in terms])
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def sample_mixture(codes, n, components=500, steps=30):
    """n draws (n, Z) of a mixture of Gaussians, of one covariance, that EM fits to codes (N, Z):
    "ex-post density estimation" (Ghosh et al. 2020)."""
    floor = torch.diag(1e-3 * codes.var(0) + 1e-9)
    covariance = 0.2 * codes.T.cov() + floor
    centre = codes[torch.randperm(len(codes))[:components]]  # (K, Z)
    weight = torch.ones(len(centre))  # they need not add up to 1
    for _ in range(steps):
        # E: each component's share in each code, (N, K), from distances where the covariance is I.
        white = torch.linalg.cholesky(covariance).inverse().T
        distance = torch.cdist(codes @ white, centre @ white).square()
        share = (weight.log() - distance / 2).softmax(1)
        # M: the shares' weighted means of the codes, and what covariance is left around them.
        weight = share.sum(0).clamp(min=1e-6)
        centre = share.T @ codes / weight[:, None]
        covariance = (codes.T @ codes - centre.T @ (weight[:, None] * centre)) / len(codes) + floor
    noise = torch.randn(n, len(floor)).double() @ torch.linalg.cholesky(covariance).T
    return centre[weight.multinomial(n, replacement=True)] + noise


def interpolate(one, two, way):
    """Codes (..., Z), a share `way` of the path from one to two: on the line, but drawn out to the
    length of codes, for what is nearer to 0 decodes to something average (White 2016)."""
    length = torch.lerp(one.norm(dim=-1, keepdim=True), two.norm(dim=-1, keepdim=True), way)
    return length * nn.functional.normalize(torch.lerp(one, two, way), dim=-1)


# ----------------------------------------------------------------------------------------- figures
def draw(path, title, panels):
    """Save a PNG of panels {name: values} side by side, their kind told by their shape: bars (Z,),
    curves (rounds, 2) or pictures (N, C, H, W) in [0, 1], 8 in a row."""
    matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
    figure = matplotlib.figure.Figure((4 * len(panels), 4.5), dpi=150, layout="constrained")
    figure.suptitle(title)
    for place, (name, values) in enumerate(panels.items(), start=1):
        axis = figure.add_subplot(1, len(panels), place, title=name)
        if values.ndim == 1:
            axis.bar(range(len(values)), values.numpy(), width=1)
        elif values.ndim == 2:
            epochs = np.arange(1, len(values) + 1) / ROUNDS
            axis.plot(epochs, values.numpy(), marker=".", label=["training", "validation"])
            late = values[len(values) // 4 :].numpy()  # at first a loss can be 1e9
            axis.set_ylim(late.min() - late.std(), late.max() + late.std())
            axis.set(xlabel="epoch", ylabel="nats an image")
            axis.legend()
        else:
            framed = nn.functional.pad(values, (1, 1, 1, 1), value=0.5).unflatten(0, (-1, 8))
            # (rows, 8, C, H, W) -> (rows * H, 8 * W, C)
            picture = framed.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write(path, buffer.getvalue())


# -------------------------------------------------------------------------------------------- main
def main(argv=None):
    """Train (or reload), evaluate, draw; returns what it writes to metrics.json."""
    started = time.perf_counter()
    args = parse_args(argv)
    images, validation, test = split(load_images(args))
    if not args.eval_only:
        train(args, images, validation)
    model, config = load_checkpoint(args.out / "model.pt")  # on the CPU
    model.requires_grad_(False)

    torch.manual_seed(config.seed)
    reconstruction, kl, mean, logvar = infer(model, test)
    loss = (reconstruction + kl.sum(1)).mean().item()
    metrics = {  # at lambda = 1, whatever lambda trained the model
        "negative_elbo_nats": loss,
        "reconstruction_nats": reconstruction.mean().item(),
        "kl_nats": kl.sum(1).mean().item(),
        "kl_per_dimension_nats": kl.mean(0).tolist(),
        "active_units": int((mean.var(0) > 0.01).sum()),  # Burda et al. 2016
        "posterior_variance_mean": logvar.exp().mean().item(),
        **own_figures(model, test, mean, loss),
        "history": model.saved["history"],
        "train_seconds": model.saved["seconds"],
        "test_images": len(test),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "config": model.saved["config"],
        "seed": config.seed,
        "device": model.saved["device"],
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }

    x = test[:64] / 255
    codes = mean.float()
    mixture = sample_mixture(infer(model, images[:10_000])[2], 64).float()
    way = torch.linspace(0, 1, 6)[:, None]
    z = interpolate(codes[:16:2, None], codes[1:16:2, None], way)  # (8, 6, Z)
    between = model.likelihood(z.flatten(0, 1)).mean.unflatten(0, (8, 6))
    strips = torch.cat([x[:16:2, None], between, x[1:16:2, None]], 1).flatten(0, 1)
    history = torch.tensor([[*point.values()] for point in model.saved["history"]])
    distortion, rate = history.view(-1, 2, 2).unbind(2)  # (rounds, 2), training and validation
    objective = distortion + config.kl_weight * rate
    pictures = {
        "curves": {"loss": objective, "reconstruction": distortion, "KL": rate},
        "reconstructions": {"real": x, "reconstructed": model.likelihood(codes[:64]).mean},
        "samples": {
            "prior: N(0, I)": model.likelihood(torch.randn(64, config.latent_dim)).mean,
            "a mixture fitted to the training codes": model.likelihood(mixture).mean,
        },
        "interpolation": {"real, decoded between, real": strips},
        "posterior": {
            "mean in each dimension, one image": mean[0],
            "log-variance, the same image": logvar[0],
            "KL in nats, mean of all images": kl.mean(0),
        },
    }
    for name, panels in pictures.items():
        draw(args.out / f"{name}.png", f"{name}, lambda = {config.kl_weight:g}", panels)

    metrics["wall_seconds"] = time.perf_counter() - started
    write(args.out / "metrics.json", json.dumps(metrics, indent=1).encode())
    table = [f"{k:24} {round(v, 6)}" for k, v in metrics.items() if isinstance(v, int | float)]
    try:
        print(*table, f"metrics.json, model.pt, pictures: {args.out}", sep="\n", flush=True)
    except (OSError, ValueError):  # what cannot be told must not cost the work its exit status
        sys.stdout = None
    return metrics


if __name__ == "__main__":
    main()
