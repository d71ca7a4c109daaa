"""Train a variational autoencoder with a Gaussian decoder on anime faces (64 x 64 RGB).

    python 0123456_vae_anime.py                    data/ beside this script, or the made sample in it
    python 0123456_vae_anime.py --data DIR         the folder with anime-faces.zip
    python 0123456_vae_anime.py --kl-weight 100    lambda, the weight of the KL term: 0, 1, 100 ...

The folder results/vae_anime/kl1 (kl100 ...) gets metrics.json, model.pt and the pictures curves, reconstructions,
samples, samples_aggregate, interpolation and posterior. On the 21,551 real faces those held out cost 6.62 bits a
dimension, at a PSNR of 21.3 dB, after 6 minutes on 2 cores.
"""

import contextlib
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
ACTIVE = 0.01  # a latent dimension is active if E[z|x] varies more than this over the images (Burda et al. 2016)
PIXELS = 3 * 64 * 64
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
ROUNDING = 1e-6  # least variance of p(x|z), about that of rounding to 8 bits
TOO_BIG = 64_000_000  # pixels of an image, or bytes of its file
TOO_MANY = 250_000  # images: read, they take 3 GB, and twice that while they are put together

# ------------------------------------------------------------------------------------------------------------ settings


def option(default, help, low=None, high=None, choices=None):
    """A field of Config: its default, its line in --help, and the values that it may take."""
    return field(default=default, metadata=dict(help=help, low=low, high=high, choices=choices))


@dataclass
class Config:
    data: str = option(None, "folder of anime-faces.zip (default: data beside this script)")
    out: str = option(None, "folder for what is written (default: results/vae_anime/kl and the weight)")
    kl_weight: float = option(1.0, "lambda, the weight of the KL term in training", 0, 1e6)
    latent_dim: int = option(352, "dimensions of z", 1, 1024)
    epochs: int = option(4, "passes over the training faces", 1, 10000)
    batch_size: int = option(32, "faces a step", 1, 2048)
    lr: float = option(1e-3, "peak learning rate", 1e-9, 1e6)
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
from PIL import Image, ImageOps
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


def read_image(data):
    """The image file in these bytes as uint8 (3, 64, 64): alpha on white, centre cropped, resized."""
    with Image.open(io.BytesIO(data)) as image:
        check(math.prod(image.size) <= TOO_BIG, "{} x {} pixels".format(*image.size))
        if image.mode.startswith("I"):  # 16 bits a pixel
            image = image.point(lambda value: value / 256).convert("L")
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = ImageOps.fit(image.convert("RGB"), (64, 64))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def load_images(config):
    """(images, uint8 (N, 3, 64, 64), whether they are made data), straight from the zip. Raises UserError.

    Members that cannot be read are left out, counted and named; members that are no images are ignored.
    """
    path, made = course_file(config.data, "anime-faces.zip")
    images, bad = [], []
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises a dozen kinds for damaged files, as does Pillow
        raise UserError(f"no zip that can be read ({error}) at {path}: take the course's file again") from error
    with archive:
        # Names that begin with ._ are crumbs of macOS.
        names = [n for n in archive.namelist() if Path(n).suffix.lower() in SUFFIXES and "/._" not in f"/{n}"]
        check(len(names) <= TOO_MANY, f"{len(names)} images, over {TOO_MANY}, at {path}: take some out of the zip")
        for name in tqdm(names, "reading faces", unit=" images", disable=None):
            try:
                check(archive.getinfo(name).file_size <= TOO_BIG, f"over {TOO_BIG} bytes")
                images.append(read_image(archive.read(name)))
            except (UserError, Image.DecompressionBombError) as error:
                raise UserError(f"image too big ({error}) at {path}, {name}: take it out of the zip") from None
            except Exception as error:
                bad.append(f"{name} ({type(error).__name__})")
    if bad:
        print(f"notice: {len(bad)} unreadable images left out, such as {', '.join(bad[:5])}", file=sys.stderr)
    check(len(images) >= 640, f"{len(images)} readable images at {path}: at least 640 are needed")
    return torch.stack(images), made


def split(images):
    """Training, validation (1 in 20) and test images (1 in 10): the same ones whatever --seed is."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, rest = len(images) // 10, len(images) // 10 + len(images) // 20
    return images[order[rest:]], images[order[test:rest]], images[order[:test]]


def to_float(images):
    """What the model sees of uint8 images: values in [0, 1]."""
    return images / 255


def training_input(images, done):
    """x of training images: as they are. Faces look to one side more than to the other, so mirroring would mislead."""
    return to_float(images)


# --------------------------------------------------------------------------------------------------------------- model


class VAE(nn.Module):
    """VAE (Kingma and Welling 2014): q(z|x) a diagonal Gaussian, p(x|z) a Gaussian with one variance for all pixels.

    `start` makes it the best linear VAE, probabilistic PCA (Tipping and Bishop 1999; Lucas et al. 2019), whose
    components stay as they are; each gain, and convolutions beside the linear path, learn the rest.
    """

    def __init__(self, latent_dim):
        super().__init__()
        self.register_buffer("average", torch.zeros(PIXELS))
        self.register_buffer("components", torch.zeros(PIXELS, latent_dim))  # unit columns
        self.register_buffer("deviations", torch.ones(latent_dim))  # of the images along them
        self.register_buffer("variance", torch.tensor(1.0))  # of p(x|z)
        self.gain_in, self.gain_out = nn.Parameter(torch.zeros(latent_dim)), nn.Parameter(torch.zeros(latent_dim))
        layers = [nn.PixelUnshuffle(4), nn.Conv2d(48, 64, 3, padding=1), nn.SiLU()]  # (B, 64, 16, 16)
        layers += [nn.Conv2d(64, 128, 4, 2, 1), nn.SiLU(), nn.Conv2d(128, 128, 4, 2, 1), nn.SiLU(), nn.Flatten()]
        self.convolutions = nn.Sequential(*layers)  # (B, 128 * 4 * 4)
        self.encoder = nn.Sequential(nn.Linear(2048 + latent_dim, 1024), nn.SiLU(), nn.Linear(1024, 2 * latent_dim))
        self.features = nn.Sequential(nn.Linear(latent_dim, 16 * 256), nn.Unflatten(1, (16, 16, 16)))
        layers = [layer for _ in range(3) for layer in (nn.Conv2d(64, 64, 3, padding=1), nn.SiLU())]  # (B, 64, 16, 16)
        self.decoder = nn.Sequential(*layers, nn.Conv2d(64, 48, 3, padding=1), nn.PixelShuffle(4))
        for parameter in (*self.encoder[-1].parameters(), *self.decoder[-2].parameters()):
            nn.init.zeros_(parameter)  # the linear path alone speaks at first
        self.to(memory_format=torch.channels_last)  # the faster order on a CPU

    @torch.no_grad()
    def start(self, images):
        """Become the probabilistic PCA of images, uint8 (N, 3, 64, 64); dimensions beyond their rank stay unused."""
        x = to_float(images).flatten(1)
        self.average.copy_(x.mean(0))
        x -= self.average
        rank = min(self.components.shape[1], len(x) // 2)
        _, singular, components = torch.svd_lowrank(x, min(rank + 32, len(x)), niter=2)
        eigenvalues = (singular.square() / len(x))[:rank]
        variance = ((x.norm().square() / len(x) - eigenvalues.sum()) / (PIXELS - rank)).clamp(min=ROUNDING)
        used = eigenvalues > 1e-6 * eigenvalues[0]  # the rest is the noise of 32 bits
        share = torch.where(used, (variance / eigenvalues).clamp(max=1.0), 1.0)  # of noise in what is seen along each
        self.components[:, :rank] = components[:, :rank] * used
        self.deviations[:rank] = torch.where(used, eigenvalues.sqrt(), 1.0)
        self.gain_in[:rank] = self.gain_out[:rank] = (1 - share).sqrt()
        self.encoder[-1].bias[-len(self.gain_in) :][:rank] = share.log()
        self.variance.copy_(variance)
        return self

    def encode(self, x):
        """x (B, 3, 64, 64) in [0, 1] -> mean and log-variance of q(z|x), (B, Z) each."""
        codes = (x.flatten(1) - self.average) @ self.components / self.deviations
        mean, logvar = self.encoder(torch.cat([self.convolutions(2 * x - 1), codes], 1)).chunk(2, 1)
        return mean + self.gain_in * codes, logvar.clamp(-LOGVAR_BOUND, LOGVAR_BOUND)

    def reparameterize(self, mean, logvar):
        """A sample z (B, Z) of q(z|x) through which gradients reach mean and log-variance (section 2.4)."""
        return mean + torch.randn_like(mean) * (logvar / 2).exp()

    def decode(self, z):
        """z (B, Z) -> the Gaussian's mean (B, 3, 64, 64), held in [0, 1] (in training not: gradients would vanish)."""
        linear = (self.average + (z * self.gain_out * self.deviations) @ self.components.T).unflatten(1, (3, 64, 64))
        mean = linear + self.decoder(torch.cat([F.pixel_unshuffle(2 * linear - 1, 4), self.features(z)], 1))
        return mean if self.training else mean.clamp(0, 1)

    def forward(self, x):
        """x -> (Gaussian mean, mean, log-variance), from one sample of z."""
        mean, logvar = self.encode(x)
        return self.decode(self.reparameterize(mean, logvar)), mean, logvar

    def reconstruction_loss(self, decoded, x):
        """-log p(x|z) in nats, (B,): the Gaussian's, summed over pixels (appendix C.2).

        In training the variance is the batch's mean squared error, its optimum (Rybkin et al. 2021); else `variance`.
        """
        error = (decoded - x).square().flatten(1)  # (B, PIXELS)
        if self.training:
            self.variance.copy_(error.detach().mean().clamp(min=ROUNDING))
        return (error.sum(1) / self.variance + PIXELS * torch.log(2 * math.pi * self.variance)) / 2


def new_model(config, images):
    """A model to be trained on these images; it starts from the first 20,000, which take 1 GB as floats."""
    return VAE(config.latent_dim).start(images[:20_000])


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
        model = VAE(config.latent_dim)
        model.load_state_dict(saved["weights"])
    return model.to(device).eval(), config


# ---------------------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def best_variance(model, images):
    """The variance of p(x|z) that fits images best: the mean squared error of one sample of z for each."""
    errors = [(model(x)[0] - x).square().flatten(1).mean(1) for x in map(to_float, images.split(500))]
    return max(torch.cat(errors).mean().item(), ROUNDING)


def laplacian_pyramid(x, levels=3):
    """x (N, C, H, W) as details at H, H / 2 ... and what is left (Burt and Adelson 1983); the finest first."""
    kernel = torch.tensor([1.0, 4, 6, 4, 1], device=x.device) / 16
    kernel = kernel.outer(kernel).expand(x.shape[1], 1, 5, 5)

    def blur(image):
        return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])

    pyramid = []
    for _ in range(levels - 1):
        small = blur(x)[:, :, ::2, ::2]
        large = torch.zeros_like(x)
        large[:, :, ::2, ::2] = 4 * small
        pyramid.append(x - blur(large))
        x = small
    return [*pyramid, x]


def sliced_wasserstein(one, two, patches=32, projections=128):
    """Distance between two sets of as many images (N, 3, 64, 64), x 1000, by level of the pyramid: 64, 32, 16 pixels.

    Of 7 x 7 patches, normalized by channel, along random directions (Karras et al. 2018, section 5).
    """
    distances = []
    for a, b in zip(laplacian_pyramid(one), laplacian_pyramid(two), strict=True):
        generator, descriptors = torch.Generator().manual_seed(0), []
        for images in (a, b):
            N, C, H, _ = images.shape
            top, left = torch.randint(0, H - 6, (2, N * patches, 1), generator=generator) + torch.arange(7)
            which = torch.arange(N).repeat_interleave(patches)[:, None, None]
            part = images[which, :, top[:, :, None], left[:, None]]  # (N * patches, 7, 7, C)
            descriptors.append(((part - part.mean((0, 1, 2))) / part.std((0, 1, 2)).clamp(min=1e-12)).flatten(1))
        directions = F.normalize(torch.randn(49 * C, projections, generator=generator), dim=0).to(one.device)
        a, b = ((part @ directions).sort(0).values for part in descriptors)
        distances.append(1000 * (a - b).abs().mean().item())
    return distances


@torch.no_grad()
def evaluate(model, train, test, codes, kl_weight):
    """Figures of held-out images, at lambda = 1 whatever lambda trained the model; mean and log-variance of q(z|x).

    `codes` {name: z (as many as test images, Z)} are decoded and held against the test images, as are reconstructions
    and as many training images, which say how near two sets of real images are.
    """
    reconstruction, mean, logvar = infer(model, test)
    kl = kl_divergence(mean, logvar).double().mean(0)
    loss = reconstruction + kl.sum().item()
    real, sets = to_float(test), dict(real=to_float(train[: len(test)]))
    for name, z in dict(reconstructions=mean, **codes).items():
        sets[name] = torch.cat([model.decode(part) for part in z.split(500)])
    mse = (sets["reconstructions"] - real).square().flatten(1).mean(1).mean().item()
    metrics = dict(elbo_nats=-loss, negative_elbo_nats=loss, bits_per_dim=8 + loss / (PIXELS * math.log(2)))
    metrics |= dict(reconstruction_nats=reconstruction, kl_nats=kl.sum().item(), mse=mse)
    metrics |= dict(psnr_db=-10 * math.log10(max(mse, 1e-12)), sigma=model.variance.sqrt().item())
    metrics |= dict(active_units=int((mean.var(0) > ACTIVE).sum()), kl_per_dimension_nats=kl.tolist())
    metrics["components_above_lambda_variance"] = int((model.deviations.square() > kl_weight * model.variance).sum())
    metrics |= dict(posterior_variance_mean=logvar.exp().mean().item())
    metrics |= dict(posterior_variance_of_mean=mean.var(0).mean().item())
    for name, images in sets.items():
        metrics[f"swd_{name}_by_level"] = sliced_wasserstein(images, real)
        metrics[f"swd_{name}"] = sum(metrics[f"swd_{name}_by_level"]) / 3
    return metrics, mean.cpu(), logvar.cpu()


# ------------------------------------------------------------------------------------------------------------- figures


def to_pictures(decoded):
    """What the decoder gives, as pictures in [0, 1]: the Gaussian's means."""
    return decoded.cpu()


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
    config.out = config.out or f"results/vae_anime/kl{config.kl_weight:g}"
    config.epochs = 1 if config.dry_run else config.epochs
    device, out = choose_device(config.device), Path(config.out)
    images, made = load_images(config)
    images, validation, test = split(images)
    if not config.eval_only:
        saved = train(config, images, validation, device)
        model = VAE(config.latent_dim).eval()
        model.load_state_dict(saved["weights"])
        seed_everything(config.seed)  # as if every epoch had been run just now
        saved["weights"]["variance"].fill_(best_variance(model, images[:5000]))
        write_whole(out / "model.pt", lambda file: torch.save(saved, file))
    model, trained = load_checkpoint(out / "model.pt", device)
    with saved_file(out / "model.pt") as saved:
        history, best_epoch, train_seconds = (saved[name] for name in ("history", "epoch", "seconds"))

    seed_everything(config.seed)
    images, test = images.to(device), test.to(device)
    _, *posterior = infer(model, images[:5000])
    codes = dict(prior=torch.randn(len(test), trained.latent_dim, device=device))
    codes["aggregate"] = aggregate_codes(*posterior, len(test)).to(device)
    metrics, mean, logvar = evaluate(model, images, test, codes, trained.kl_weight)
    metrics |= dict(kl_weight=trained.kl_weight, best_epoch=best_epoch, train_seconds=train_seconds)
    metrics |= dict(train_images=len(images), test_images=len(test), made_data=made)
    metrics |= dict(parameters=sum(p.numel() for p in model.parameters()))

    x, caption = to_float(test), f"lambda = {trained.kl_weight:g}"
    samples = {"from the prior, N(0, I)": codes["prior"][:64]}
    draw_samples(model, samples, caption, out / "samples.png")
    samples["from a Gaussian fitted to the codes"] = codes["aggregate"][:64]
    draw_samples(model, samples, caption, out / "samples_aggregate.png")
    draw_curves(history, trained.kl_weight, caption, out / "curves.png")
    draw_reconstructions(model, x[:64], caption, out / "reconstructions.png")
    draw_interpolation(model, x[:16], caption, out / "interpolation.png")
    draw_posterior(x[:1], mean, logvar, caption, out / "posterior.png")
    write_metrics(config, argv, device, metrics, started)

    print(f"-ELBO (test)          {metrics['negative_elbo_nats']:.1f} nats, {metrics['bits_per_dim']:.3f} bits/dim")
    print(f"reconstruction + KL   {metrics['reconstruction_nats']:.1f} + {metrics['kl_nats']:.1f} nats")
    print(f"PSNR                  {metrics['psnr_db']:.2f} dB, sigma {metrics['sigma']:.4f}")
    print(f"active units          {metrics['active_units']} of {trained.latent_dim}")
    distances = (f"{metrics[f'swd_{name}']:.1f} {name}" for name in ("real", "reconstructions", "prior", "aggregate"))
    print(f"sliced Wasserstein    {', '.join(distances)}")
    print(f"trained in            {metrics['train_seconds']:.0f} s on {device}; figures and pictures in {out}")
    return metrics


if __name__ == "__main__":
    run(main)
