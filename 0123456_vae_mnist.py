"""Train a variational autoencoder with a Bernoulli decoder on binarized Tibetan digits (28 x 28).

    python 0123456_vae_mnist.py                    data/ beside this script, or the made sample in it
    python 0123456_vae_mnist.py --data DIR         the folder with TibetanMNIST.npz
    python 0123456_vae_mnist.py --kl-weight 100    lambda, the weight of the KL term: 0, 1, 100 ...

The folder results/vae_mnist/kl1 (kl100 ...) gets metrics.json, model.pt and the pictures curves, reconstructions,
samples, interpolation and posterior; at lambda = 0 also samples_aggregate. On the 12,000 real digits -ELBO is 88 nats
on those held out, after 6 minutes on 2 cores.
"""

import contextlib
import copy
import hashlib
import io
import json
import math
import os
import sys
import time
import zipfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

LOGVAR_BOUND = 10.0  # keeps exp(logvar) finite
REFINE_STEPS, REFINE_LR = 20, 0.04  # of the posterior, once trained; the rate falls to 0
TOO_BIG = 256_000_000  # bytes of the array of images
ACTIVE = 0.01  # a latent dimension is active if E[z|x] varies more than this over the images (Burda et al. 2016)

# ------------------------------------------------------------------------------------------------------------ settings


def option(default, help, low=None, high=None, choices=None):
    """A field of Config: its default, its line in --help, and the values that it may take."""
    return field(default=default, metadata=dict(help=help, low=low, high=high, choices=choices))


@dataclass
class Config:
    data: str = option(None, "folder of TibetanMNIST.npz (default: data beside this script)")
    out: str = option(None, "folder for what is written (default: results/vae_mnist/kl and the weight)")
    kl_weight: float = option(1.0, "lambda, the weight of the KL term in training", 0, 1e6)
    latent_dim: int = option(32, "dimensions of z", 1, 1024)
    epochs: int = option(40, "passes over the training digits", 1, 10000)
    batch_size: int = option(128, "digits a step", 1, 4096)
    lr: float = option(3e-3, "peak learning rate", 1e-9, 1e6)
    seed: int = option(0, "seed of weights, order and noise (the split never changes)", 0, 2**31 - 1)
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    resume: bool = option(False, "continue the run whose checkpoint lies in --out")
    eval_only: bool = option(False, "make metrics and pictures again from the model.pt in --out")
    dry_run: bool = option(False, "two batches of everything, to see that it all works")


def parse_args(argv=None):
    """Config from the command line, where each of its fields is an option. Raises UserError."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.error = lambda message: check(False, f"{message} at the command line: see --help")
    for f in fields(Config):
        about = f.metadata["help"] + ("" if f.default is None or f.type is bool else " (default: %(default)s)")
        kind = dict(action="store_true") if f.type is bool else dict(type=f.type, choices=f.metadata["choices"])
        parser.add_argument("--" + f.name.replace("_", "-"), default=f.default, help=about, **kind)
    config = Config(**vars(parser.parse_args(argv)))
    for f in fields(Config):
        value, low, high = getattr(config, f.name), f.metadata["low"], f.metadata["high"]
        fine = low is None or value is None or low <= value <= high  # NaN is not
        check(fine, f"{value} out of range at --{f.name.replace('_', '-')}: give a number from {low} to {high}")
    return config


if __name__ == "__main__" and {"-h", "--help"} & {*sys.argv}:
    parse_args(["--help"])  # ends here: what follows takes seconds to import

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

# --------------------------------------------------------------------------------------------------------- run helpers


class UserError(Exception):
    """What the person at the keyboard can mend; reads `WHAT at WHERE: WHAT TO DO`."""


def check(fine, message):
    if not fine:
        raise UserError(message)


def choose_device(name):
    """torch.device for auto, cpu, cuda or mps. Raises UserError if this machine has none such."""
    there = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True)
    name = next(kind for kind in there if there[kind]) if name == "auto" else name
    check(there[name], f"no such device at --device {name}: use --device auto")
    return torch.device(name)


def seed_everything(*numbers):
    """Seed torch by (seed, stage, epoch, ...), so that a resumed epoch draws what it would have drawn."""
    torch.manual_seed(int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big"))


def course_file(folder, name):
    """(path of a course file, whether it is made data); only if no folder is named may data/sample stand in."""
    beside = Path(__file__).resolve().parent / "data"
    path = Path(folder or beside) / name
    if made := not folder and not os.path.isfile(path):
        path = beside / "sample" / name
        print(f"notice: no {name} in {beside}, so {path} is taken: the results are of made data", file=sys.stderr)
    check(os.path.isfile(path), f"no {name} at {path.parent}: put it there or name its folder by --data")
    return path, made


def write_whole(path, write):
    """Put what write(buffer) writes at `path`, whole or not at all: beside it first, then moved into place."""
    buffer, part = io.BytesIO(), Path(path).parent / f".{Path(path).name}.part"
    write(buffer)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write ({error.strerror}) at {Path(path)}: make room or name another place") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def saved_file(path):
    """What torch.save wrote at `path`, on the CPU; runs no code from it. UserError if that, or the block, fails."""
    try:
        with zipfile.ZipFile(path) as archive:
            check(not archive.testzip(), "damaged")  # torch looks at no checksum
        yield torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a missing, damaged or foreign file
        raise UserError(f"nothing that this script saved at {path}: delete it and train again") from error


def load_resume(config, data):
    """The checkpoint that --resume asks for, or a new one: {"run": all that decides the weights, `data`'s hash too}."""
    aside = ("data", "out", "submission", "embeddings", "device", "resume", "eval_only")
    run = {name: value for name, value in asdict(config).items() if name not in aside}
    run["data hash"] = hashlib.sha256(data).hexdigest()[:12]
    path = Path(config.out) / "checkpoint.pt"
    if not (config.resume and os.path.lexists(path)):
        return {"run": run}
    with saved_file(path) as checkpoint:
        theirs = checkpoint["run"]
        other = ", ".join(f"{key} {theirs.get(key)}, not {run[key]}" for key in run if theirs.get(key) != run[key])
    check(not other, f"checkpoint of another run ({other}) at {path}: give its options or leave out --resume")
    return checkpoint


def write_metrics(config, argv, device, metrics, started):
    """Write metrics.json: the figures, the seconds since `started`, and what it takes to get them again."""
    versions = dict(python=sys.version.split()[0], torch=torch.__version__, numpy=np.__version__)
    metrics |= dict(argv=sys.argv[1:] if argv is None else list(argv), config=asdict(config), seed=config.seed)
    metrics |= dict(device=str(device), versions=versions, wall_seconds=time.perf_counter() - started)
    write_whole(Path(config.out) / "metrics.json", lambda f: f.write(json.dumps(metrics, indent=1).encode()))


def new_figure(width, height, title=None):
    """A matplotlib figure of so many inches; `lambda f: figure.savefig(f)` hands it to write_whole."""
    import matplotlib.figure

    matplotlib.rcParams["text.parse_math"] = False  # a $ is a $
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained", dpi=120)
    figure.suptitle(title)
    return figure


def run(main):
    """Call main; exit with 2 and one line for a UserError, with 130 and one line after Ctrl-C."""
    try:
        main()
    except UserError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped: the same command and --resume go on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


# ---------------------------------------------------------------------------------------------------------------- data


def load_images(config):
    """(grey images, uint8 (N, 1, 28, 28), whether they are made data). Raises UserError.

    Float images from 0 to 1, images of 0 and 1, and a channel axis of size 1 are taken as they are meant.
    """
    path, made = course_file(config.data, "TibetanMNIST.npz")
    try:
        with np.load(path, allow_pickle=False) as archive:
            size = archive.zip.getinfo("image.npy").file_size
            check(size <= TOO_BIG, f"{size} bytes of images, over {TOO_BIG}")
            images = archive["image"]
    except Exception as error:  # numpy and zipfile raise a dozen kinds for damaged files
        raise UserError(f"no npz with an array `image` ({error}) at {path}: take the course's file again") from error
    images = images.reshape([size for i, size in enumerate(images.shape) if i == 0 or size != 1])
    shape = f"image is {images.dtype} {images.shape} at {path}"
    fine = images.shape[1:] == (28, 28) and images.dtype.kind in "buif"
    check(fine and len(images) >= 640, f"{shape}: uint8 (N, 28, 28), at least 640 images, is needed")
    check(0 <= images.min() and images.max() <= 255, f"values out of 0 to 255 at {path}: scale them")  # NaN too
    images = images * np.float32(255) if images.max() <= 1 else images
    return torch.from_numpy(images.astype(np.uint8))[:, None], made


def split(images):
    """Training, validation (1 in 20) and test images (1 in 10): the same ones whatever --seed is."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, rest = len(images) // 10, len(images) // 10 + len(images) // 20
    return images[order[rest:]], images[order[test:rest]], images[order[:test]]


def to_float(images):
    """What the model sees of grey images: 1.0 where a value is above 127, else 0.0."""
    return (images > 127).float()


def augment(images, strength):
    """Each of the images (B, 1, 28, 28) turned (4 degrees), stretched and sheared (5%; standard deviations), and moved
    by up to 1.5 pixels either way, all times strength; grey values between pixels are interpolated."""
    turn, wide, high, shear = torch.randn(4, len(images)) * torch.tensor([[0.07], [0.05], [0.05], [0.05]]) * strength
    move = (torch.rand(2, len(images)) * 2 - 1) * 1.5 / 14 * strength
    above = torch.stack([turn.cos() * wide.exp(), shear - turn.sin() * high.exp(), move[0]], 1)
    below = torch.stack([turn.sin() * wide.exp(), turn.cos() * high.exp(), move[1]], 1)
    grid = F.affine_grid(torch.stack([above, below], 1), images.shape, align_corners=False)
    return F.grid_sample(images.float(), grid.to(images.device), align_corners=False)


def training_input(images, done):
    """x of training images, augmented: less and less over the second half of the run, to end with them as they are."""
    return to_float(augment(images, min(1, 2 - 2 * done)))


# --------------------------------------------------------------------------------------------------------------- model


class ResidualLinear(nn.Linear):
    """x + Linear(SiLU(x))."""

    def forward(self, x):
        return x + super().forward(F.silu(x))


class VAE(nn.Module):
    """Convolutional VAE (Kingma and Welling 2014): q(z|x) a diagonal Gaussian, p(x|z) a Bernoulli in every pixel.

    With refine_steps > 0, `encode` goes on from what the encoder gives by so many gradient steps on each image's own
    loss (semi-amortized inference; Kim et al. 2018, Cremer et al. 2018). Training does without.
    """

    def __init__(self, latent_dim, refine_steps=0, kl_weight=1.0):
        super().__init__()
        self.refine_steps, self.kl_weight = refine_steps, kl_weight
        layers = [nn.Conv2d(1, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.SiLU(), nn.Flatten()]
        layers += [nn.Linear(64 * 7 * 7, 512), ResidualLinear(512, 512), ResidualLinear(512, 512), nn.SiLU()]
        self.encoder = nn.Sequential(*layers, nn.Linear(512, 2 * latent_dim))
        layers = [nn.Linear(latent_dim, 512), nn.SiLU(), nn.Linear(512, 2048), nn.SiLU(), nn.Unflatten(1, (128, 4, 4))]
        layers += [nn.ConvTranspose2d(128, 64, 3, 2, 1), nn.SiLU()]  # (B, 64, 7, 7)
        layers += [nn.ConvTranspose2d(64, 64, 4, 2, 1), nn.SiLU()]  # (B, 64, 14, 14)
        self.decoder = nn.Sequential(*layers, nn.ConvTranspose2d(64, 1, 4, 2, 1))  # (B, 1, 28, 28)
        self.to(memory_format=torch.channels_last)  # the faster order on a CPU

    def encode(self, x):
        """x (B, 1, 28, 28) in {0, 1} -> mean and log-variance of q(z|x), (B, Z) each."""
        mean, logvar = self.encoder(2 * x - 1).chunk(2, 1)
        logvar = logvar.clamp(-LOGVAR_BOUND, LOGVAR_BOUND)
        return self.refine(x, mean, logvar) if self.refine_steps else (mean, logvar)

    def refine(self, x, mean, logvar):
        """mean and logvar after Adam's steps on reconstruction + lambda KL.

        No image depends on another, and the noise is the same every time.
        """
        with torch.inference_mode(False), torch.enable_grad():
            noise = torch.randn(self.refine_steps, 1, mean.shape[1], generator=torch.Generator().manual_seed(0))
            x, mean, logvar = x.clone(), mean.detach().clone(), logvar.detach().clone()
            posterior = [mean.requires_grad_(), logvar.requires_grad_()]
            optimizer = torch.optim.Adam(posterior, betas=(0.9, 0.99), eps=0.1)  # eps: no step where all is flat
            for i, epsilon in enumerate(noise.to(x.device)):
                optimizer.param_groups[0]["lr"] = REFINE_LR * (1 - i / len(noise))
                decoded = self.decode(mean + epsilon * (logvar / 2).exp())
                loss = self.reconstruction_loss(decoded, x).sum() + self.kl_weight * kl_divergence(mean, logvar).sum()
                mean.grad, logvar.grad = torch.autograd.grad(loss, posterior)
                optimizer.step()
        return mean.detach(), logvar.detach().clamp(-LOGVAR_BOUND, LOGVAR_BOUND)

    def reparameterize(self, mean, logvar):
        """A sample z (B, Z) of q(z|x) through which gradients reach mean and log-variance (section 2.4)."""
        return mean + torch.randn_like(mean) * (logvar / 2).exp()

    def decode(self, z):
        """z (B, Z) -> Bernoulli logits (B, 1, 28, 28)."""
        return self.decoder(z)

    def forward(self, x):
        """x -> (Bernoulli logits, mean, log-variance), from one sample of z."""
        mean, logvar = self.encode(x)
        return self.decode(self.reparameterize(mean, logvar)), mean, logvar

    def reconstruction_loss(self, logits, x):
        """-log p(x|z) in nats, (B,): the Bernoulli's, summed over pixels (appendix C.1)."""
        return F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def new_model(config, images):
    """A model to be trained on these images."""
    return VAE(config.latent_dim)


# --------------------------------------------------------------------------------------------------- loss and training


def kl_divergence(mean, logvar):
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, (B, Z): of each dimension (appendix B)."""
    return (mean.square() + logvar.exp() - 1 - logvar) / 2


@torch.no_grad()
def infer(model, images):
    """Mean over images of -log p(x|z) in nats, one z drawn for each; means and log-variances of q(z|x), (N, Z) each."""
    model.eval()
    parts = []
    for x in map(to_float, images.split(500)):
        decoded, mean, logvar = model(x)
        parts.append((model.reconstruction_loss(decoded, x), mean, logvar))
    loss, mean, logvar = (torch.cat(part) for part in zip(*parts, strict=True))
    return loss.double().mean().item(), mean, logvar


def move_average(averages, weights, steps):
    """The next step of AveragedModel's running average: over about a ninth of the steps so far, at most some 200."""
    share = (9 / (10 + steps)).clamp(min=0.005)  # a tensor, so that no step waits for the device
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, share)


def train_epoch(config, model, average, optimizer, images, epoch):
    """One pass; returns the mean reconstruction and KL terms in nats, as they were on the way."""
    model.train()
    groups, figures = torch.randperm(len(images)).to(images.device).split(config.batch_size), []
    for i, rows in enumerate(groups[: 2 if config.dry_run else None]):
        done = (epoch + i / len(groups)) / config.epochs
        # Warm-up over 2% of the run, then a half cosine; the KL term grows over the first tenth (Sonderby et al. 2016).
        optimizer.param_groups[0]["lr"] = config.lr * min(50 * done + 0.01, (1 + math.cos(math.pi * done)) / 2)
        x = training_input(images[rows], done)
        decoded, mean, logvar = model(x)
        reconstruction = model.reconstruction_loss(decoded, x).mean()
        kl = kl_divergence(mean, logvar).sum(1).mean()
        optimizer.zero_grad()
        (reconstruction + config.kl_weight * min(1, 10 * done) * kl).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
        average.update_parameters(model)
        figures.append(torch.stack([reconstruction.detach(), kl.detach()]))
    return torch.stack(figures).mean(0).tolist()


def train(config, images, validation, device):
    """Train, with a checkpoint each epoch. Returns what model.pt holds: config, seconds, the weights of the epoch that
    was best on validation, that epoch, and the history: [reconstruction, KL, the same of validation] an epoch.

    Weights are the running average of the optimizer's.
    """
    checkpoint = load_resume(config, images.numpy().tobytes())
    started = time.perf_counter() - checkpoint.get("seconds", 0.0)
    seed_everything(config.seed)
    model = new_model(config, images).to(device)
    average = AveragedModel(model, multi_avg_fn=move_average)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, weight_decay=1e-3, fused=True)
    images, validation, history = images.to(device), validation.to(device), []
    if "state" in checkpoint:
        with saved_file(Path(config.out) / "checkpoint.pt"):
            history, *states = checkpoint["state"]
            for part, state in zip((model, average, optimizer), states, strict=True):
                part.load_state_dict(state)
    for epoch in tqdm(range(len(history), config.epochs), unit="epoch", disable=None):
        seed_everything(config.seed, epoch)
        figures = train_epoch(config, model, average, optimizer, images, epoch)
        reconstruction, *posterior = infer(average.module, validation)
        kl = kl_divergence(*posterior).sum(1).mean().item()
        history.append([*figures, reconstruction, kl])
        loss = reconstruction + config.kl_weight * kl
        check(math.isfinite(sum(history[-1])), f"loss not finite at epoch {epoch + 1}: take a smaller --lr")
        if loss < checkpoint.get("loss", math.inf):
            weights = {name: weight.clone() for name, weight in average.module.state_dict().items()}
            checkpoint.update(loss=loss, weights=weights, epoch=epoch + 1)
        state = (history, model.state_dict(), average.state_dict(), optimizer.state_dict())
        checkpoint.update(state=state, seconds=time.perf_counter() - started)
        write_whole(Path(config.out) / "checkpoint.pt", lambda file: torch.save(checkpoint, file))
    kept = {name: checkpoint[name] for name in ("weights", "epoch", "seconds")}
    return kept | dict(config=asdict(config), history=history)


def load_checkpoint(path, device="cpu"):
    """(model, config) of a model.pt, the model in eval mode. Raises UserError."""
    with saved_file(path) as saved:
        config = Config(**saved["config"])
        model = VAE(config.latent_dim, REFINE_STEPS, config.kl_weight)
        model.load_state_dict(saved["weights"])
    return model.to(device).eval(), config


# ---------------------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def importance_weighted_nll(model, images, k):
    """-log p(x) in nats, bounded from above by k importance samples an image (Burda et al. 2016, equation 8)."""
    bounds = []
    for x in map(to_float, images.split(max(1, 2000 // k))):
        mean, logvar = (part.repeat_interleave(k, 0) for part in model.encode(x))  # (B * k, Z)
        z = model.reparameterize(mean, logvar)
        log_q_to_p = (z.square() - (z - mean).square() / logvar.exp() - logvar).sum(1) / 2  # log q(z|x) - log p(z)
        log_weight = -model.reconstruction_loss(model.decode(z), x.repeat_interleave(k, 0)) - log_q_to_p
        bounds.append(log_weight.view(-1, k).logsumexp(1) - math.log(k))
    return -torch.cat(bounds).mean().item()


def evaluate(model, train, test, k=500, rows=500):
    """Figures of held-out images, at lambda = 1 whatever lambda trained the model; mean and log-variance of q(z|x)."""
    network = copy.copy(model)  # the same weights
    network.refine_steps = 0
    amortized, *posterior = infer(network, test)
    amortized_kl = kl_divergence(*posterior).sum(1).mean().item()
    reconstruction, mean, logvar = infer(model, test)
    kl = kl_divergence(mean, logvar).double().mean(0)
    p = to_float(train).mean(0).double().cpu()
    entropy = F.binary_cross_entropy(p, p, reduction="sum").item()
    cross_entropy = F.binary_cross_entropy(p, to_float(test).mean(0).double().cpu(), reduction="sum").item()
    metrics = dict(
        elbo_nats=-reconstruction - kl.sum().item(),
        negative_elbo_nats=reconstruction + kl.sum().item(),
        reconstruction_nats=reconstruction,
        kl_nats=kl.sum().item(),
        amortized_negative_elbo_nats=amortized + amortized_kl,
        amortized_reconstruction_nats=amortized,
        amortized_kl_nats=amortized_kl,
        iw_nll_nats=importance_weighted_nll(model, test[:rows], k),
        iw_samples=k,
        iw_images=min(rows, len(test)),
        active_units=int((mean.var(0) > ACTIVE).sum()),
        kl_per_dimension_nats=kl.tolist(),
        posterior_variance_mean=logvar.exp().mean().item(),
        posterior_variance_of_mean=mean.var(0).mean().item(),
        train_reconstruction_nats=infer(network, train)[0],
        pixel_entropy_nats=entropy,
        test_pixel_cross_entropy_nats=cross_entropy,
    )
    return metrics, mean.cpu(), logvar.cpu()


# ------------------------------------------------------------------------------------------------------------- figures


def to_pictures(decoded):
    """What the decoder gives, as pictures in [0, 1]: the Bernoulli's means."""
    return decoded.sigmoid().cpu()


def show(axis, images, columns, title=None):
    """Draw images (N, C, H, W) in [0, 1] as a grid with thin lines between them."""
    images = F.pad(images.cpu(), (1, 1, 1, 1), value=0.5)
    rows = images.unflatten(0, (-1, columns))  # (rows, columns, C, H, W)
    picture = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (rows * H, columns * W, C)
    axis.imshow(picture.squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title)
    axis.axis("off")


def draw_curves(history, weight, caption, path):
    """The training objective and its two terms by epoch, on training and validation images."""
    values = np.array(history)  # (epochs, 4)
    figure = new_figure(11, 3.4, caption)
    panels = {"total = reconstruction + lambda KL": (1, weight), "reconstruction": (1, 0), "KL": (0, 1)}
    for axis, (name, factors) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for part, label, style in ((0, "training", "--"), (2, "validation", "-")):
            axis.plot(range(1, len(values) + 1), values[:, part : part + 2] @ factors, style, label=label)
        axis.set(xlabel="epoch", ylabel="nats an image", title=name)
        axis.legend()
    write_whole(path, lambda file: figure.savefig(file))


@torch.no_grad()
def draw_reconstructions(model, x, caption, path):
    """64 real images beside their reconstructions, decoded from the posterior's means."""
    figure = new_figure(10, 5.4, caption)
    left, right = figure.subplots(1, 2)
    show(left, x, 8, "real")
    show(right, to_pictures(model.decode(model.encode(x)[0])), 8, "reconstructed")
    write_whole(path, lambda file: figure.savefig(file))


@torch.no_grad()
def draw_samples(model, codes, caption, path):
    """An 8 x 8 grid of decoded codes for each {title: z (64, Z)}."""
    figure = new_figure(5 * len(codes), 5.4, caption)
    for axis, (title, z) in zip(figure.subplots(1, len(codes), squeeze=False)[0], codes.items(), strict=True):
        show(axis, to_pictures(model.decode(z)), 8, title)
    write_whole(path, lambda file: figure.savefig(file))


@torch.no_grad()
def draw_interpolation(model, x, caption, path, steps=10):
    """For each pair of real images: the first, the decoded line between the codes of both, the second."""
    mean, _ = model.encode(x)
    share = torch.linspace(0, 1, steps, device=x.device)[None, :, None]
    codes = mean[0::2, None] * (1 - share) + mean[1::2, None] * share  # (pairs, steps, Z)
    path_between = to_pictures(model.decode(codes.flatten(0, 1))).unflatten(0, (-1, steps))
    rows = torch.cat([x[0::2, None].cpu(), path_between, x[1::2, None].cpu()], 1)
    figure = new_figure(9, 0.73 * len(rows) + 0.5, caption)
    show(figure.subplots(), rows.flatten(0, 1), steps + 2, "real, decoded between, real")
    write_whole(path, lambda file: figure.savefig(file))


def draw_posterior(x, mean, logvar, caption, path):
    """Mean and variance of q(z|x) for the first image of x (1, C, H, W), beside the prior's 0 and 1; beneath, the KL of
    each dimension over all N images (mean, logvar: (N, Z)), sorted, active units blue."""
    kl, active = kl_divergence(mean, logvar).mean(0), mean.var(0) > ACTIVE
    mean, logvar = mean[0], logvar[0]
    figure = new_figure(10, 6.5, caption)
    axes = figure.subplot_mosaic("XMM;XVV;KKK", height_ratios=(1, 1, 1.2))
    show(axes["X"], x, 1, "x")
    for name, values, prior in (("M", mean, 0), ("V", logvar.exp(), 1)):
        axes[name].bar(range(len(values)), values.numpy())
        axes[name].axhline(prior, color="black", linestyle="--", label=f"prior: {prior}")
        axes[name].set(xlabel="dimension of z", ylabel={"M": "mean", "V": "variance"}[name])
        axes[name].legend(loc="upper right")
    order = kl.argsort(descending=True)
    axes["K"].bar(range(len(kl)), kl[order].numpy(), color=["tab:blue" if on else "lightgrey" for on in active[order]])
    axes["K"].axvline(active.sum().item() - 0.5, color="black", linestyle="--", label=f"{active.sum()} active units")
    axes["K"].set(xlabel="dimension, sorted", ylabel="KL, nats (test images)")
    axes["K"].legend()
    write_whole(path, lambda file: figure.savefig(file))


def aggregate_codes(mean, logvar, n):
    """n codes of the Gaussian (full covariance) that fits the encoded training images, samples of q(z|x) included."""
    mean, logvar = mean.cpu(), logvar.cpu()
    covariance = torch.atleast_2d(mean.T.cov()) + logvar.exp().mean(0).diag()
    covariance += 1e-6 * torch.eye(len(covariance))
    check(torch.linalg.cholesky_ex(covariance)[1] == 0, "codes that no Gaussian fits at --lr: take a smaller one")
    return torch.distributions.MultivariateNormal(mean.mean(0), covariance).sample((n,))


# ---------------------------------------------------------------------------------------------------------------- main


def main(argv=None):
    """Train (or reload), evaluate, draw; returns what it writes to metrics.json. Raises UserError."""
    started, config = time.perf_counter(), parse_args(argv)
    config.out = config.out or f"results/vae_mnist/kl{config.kl_weight:g}"
    config.epochs = 1 if config.dry_run else config.epochs
    device, out = choose_device(config.device), Path(config.out)
    images, made = load_images(config)
    images, validation, test = split(images)
    if not config.eval_only:
        saved = train(config, images, validation, device)
        write_whole(out / "model.pt", lambda file: torch.save(saved, file))
    model, trained = load_checkpoint(out / "model.pt", device)
    with saved_file(out / "model.pt") as saved:
        history, best_epoch, train_seconds = (saved[name] for name in ("history", "epoch", "seconds"))

    seed_everything(config.seed)
    images, test = images.to(device), test.to(device)
    metrics, mean, logvar = evaluate(model, images, test, *((10, 20) if config.dry_run else ()))
    metrics |= dict(kl_weight=trained.kl_weight, best_epoch=best_epoch, train_seconds=train_seconds)
    metrics |= dict(train_images=len(images), test_images=len(test), made_data=made)
    metrics["parameters"] = sum(p.numel() for p in model.parameters())

    x, caption = to_float(test), f"lambda = {trained.kl_weight:g}"
    prior = torch.randn(64, trained.latent_dim, device=device)
    codes = {"from the prior, N(0, I)": prior}
    draw_curves(history, trained.kl_weight, caption, out / "curves.png")
    draw_reconstructions(model, x[:64], caption, out / "reconstructions.png")
    draw_samples(model, codes, caption, out / "samples.png")
    draw_interpolation(model, x[:16], caption, out / "interpolation.png")
    draw_posterior(x[:1], mean, logvar, caption, out / "posterior.png")
    if trained.kl_weight == 0:
        codes["from a Gaussian fitted to the codes"] = aggregate_codes(*infer(model, images)[1:], 64).to(device)
        draw_samples(model, codes, caption, out / "samples_aggregate.png")
    write_metrics(config, argv, device, metrics, started)

    print(f"-ELBO (test)          {metrics['negative_elbo_nats']:.2f} nats: ", end="")
    print(f"reconstruction {metrics['reconstruction_nats']:.2f} + KL {metrics['kl_nats']:.2f}")
    print(f"  encoder alone       {metrics['amortized_negative_elbo_nats']:.2f} nats")
    print(f"-log p(x) (IW bound)  {metrics['iw_nll_nats']:.2f} nats")
    print(f"active units          {metrics['active_units']} of {trained.latent_dim}")
    print(f"training time         {metrics['train_seconds']:.0f} s on {device}")
    print(f"figures and pictures  {out}")
    return metrics


if __name__ == "__main__":
    run(main)
