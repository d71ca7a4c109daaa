"""Train a variational autoencoder with a Gaussian decoder on anime faces (64 x 64 RGB).

    python 0123456_vae_anime.py                    anime-faces.zip in data/, beside the script
    python 0123456_vae_anime.py --data DIR         the folder where it lies
    python 0123456_vae_anime.py --kl-weight 100    lambda, the weight of the KL term: 0, 1, 100...

results/vae_anime/kl1 (kl100, ...) gets metrics.json, model.pt and five pictures. The course's
21,551 faces: 6.6 bits a dimension and 21 dB on those held out, after 4 to 10 minutes on one core;
--resume goes on if it was stopped.
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
from PIL import Image, ImageOps
from torch import nn
from tqdm import tqdm

NAME = "vae_anime"
FILE = "anime-faces.zip"
LATENT_DIM = 356
EPOCHS = 6
BATCH_SIZE = 64
LR = 1e-3
ROUNDS = 3  # points of the learning curve an epoch
CLIP = 1000  # norm above which a gradient is scaled down
KL_WARM_UP = 0.001  # share of training over which the KL term grows to its weight: hardly any
PIXELS = 3 * 64 * 64


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
# This section and the next are of faces; the rest serves digits too, so some arguments go unused.
def read_image(file):
    """A picture as a viewer shows it, uint8 (3, 64, 64): upright, on white, centre cropped."""
    image = ImageOps.exif_transpose(Image.open(file))
    if image.mode[0] in "IF":  # more than 8 bits a pixel
        values = np.asarray(image, np.float64)
        tops = (65535,) if "16" in image.mode else (1, 255, 65535, 2**32)
        brightest = next(top for top in tops if values.max() <= 1.1 * top)  # resizing overshoots
        image = Image.fromarray((values * (255 / brightest)).clip(0, 255).astype(np.uint8))
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.fit(image.convert("RGB"), (64, 64))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def load_images(args):
    """The faces in anime-faces.zip, uint8 (N, 3, 64, 64); what is no picture is counted."""
    path = args.data / FILE
    images = []
    passed_over = []
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises a dozen kinds for damaged files, as does Pillow
        fail(f"no zip can be read at {path} ({error}): name the file's folder by --data")
    members = [m for m in archive.infolist() if not m.is_dir() and "/._" not in f"/{m.filename}"]
    # Once, though a copy of it may lie in a nested folder.
    members = [*{(Path(m.filename).name, m.CRC): m for m in members}.values()]
    for member in tqdm(members[: 700 if args.dry_run else None], "reading faces", disable=None):
        try:
            images.append(read_image(io.BytesIO(archive.read(member))))
        except Exception as error:
            passed_over.append(f"{member.filename}: {error!r}")
    if len(images) < 640:
        fail(f"{len(images)} pictures in {path}, not 640: name another --data {passed_over[:1]}")
    if passed_over:
        print(f"notice: left out: {len(passed_over)}, such as {passed_over[0]}", file=sys.stderr)
    return torch.stack(images)


def training_input(images, progress):
    """x of training images: as they are, for faces look to one side more than to the other."""
    return images / 255


# ------------------------------------------------------------------------------------------- model
# Adam's steps have one size whatever the gradient: with inputs SLOW times smaller and weights SLOW
# times larger a layer learns SLOW times slower, so that it keeps to its good start.
SLOW = 32


class VAE(nn.Module):
    """q(z|x) is a diagonal Gaussian, p(x|z) a Gaussian with one learned sigma for all pixels
    (Rybkin et al. 2021). Encoder and decoder are each a linear map that convolutions correct."""

    def __init__(self, latent_dim):
        super().__init__()
        self.log_sigma = nn.Parameter(torch.tensor(-2.0))
        self.average = nn.Parameter(torch.zeros(3, 64, 64))
        self.linear_in = nn.Linear(PIXELS, latent_dim)
        self.convolutions = nn.Sequential(
            nn.PixelUnshuffle(4),  # (B, 48, 16, 16)
            nn.Conv2d(48, 32, 3, padding=1),  # (B, 32, 16, 16)
            nn.SiLU(),
            nn.Conv2d(32, 64, 4, 2, 1),  # (B, 64, 8, 8)
            nn.SiLU(),
            nn.Conv2d(64, 128, 4, 2, 1),  # (B, 128, 4, 4)
            nn.SiLU(),
            nn.Flatten(),
        )
        self.encoder = nn.Sequential(
            nn.Linear(128 * 4 * 4 + latent_dim, 512),
            nn.SiLU(),
            nn.Linear(512, 2 * latent_dim),  # mean's correction, log-variance
        )
        self.linear_out = nn.Linear(latent_dim, PIXELS)
        self.lift = nn.Sequential(nn.Linear(latent_dim, 16 * 256), nn.Unflatten(1, (16, 16, 16)))
        self.decoder = nn.Sequential(
            nn.Conv2d(48 + 16, 32, 3, padding=1),  # (B, 32, 16, 16)
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 48, 3, padding=1),
            nn.PixelShuffle(4),  # (B, 3, 64, 64)
        )
        for layer in (self.linear_in, self.linear_out, self.encoder[-1], self.decoder[-2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def encode(self, x):
        """x (B, 3, 64, 64) in [0, 1] -> mean and log-variance of q(z|x), (B, Z) each."""
        codes = self.linear_in((x - self.average).flatten(1) / SLOW)
        seen = torch.cat([self.convolutions(2 * x - 1), codes], 1)
        correction, logvar = self.encoder(seen).chunk(2, 1)
        return codes + correction, logvar.clamp(-10, 10)

    def reparameterize(self, mean, logvar):
        """A sample z of q(z|x) through which gradients reach mean and log-variance."""
        return mean + torch.randn_like(mean) * (logvar / 2).exp()

    def sample_posterior(self, x, noise=True):
        """z, mean and log-variance of q(z|x), (B, Z) each; without noise z is the mean."""
        mean, logvar = self.encode(x)
        z = self.reparameterize(mean, logvar) if noise else mean
        return z, mean, logvar

    def decode(self, z):
        """z (B, Z) -> the Gaussian's mean (B, 3, 64, 64), in eval mode held in [0, 1]."""
        linear = self.average + self.linear_out(z / SLOW).view(-1, 3, 64, 64)
        seen = torch.cat([nn.functional.pixel_unshuffle(2 * linear - 1, 4), self.lift(z)], 1)
        mean = linear + self.decoder(seen)
        return mean if self.training else mean.clamp(0, 1)

    def likelihood(self, z):
        """p(x|z), whose mean is the picture."""
        return torch.distributions.Normal(self.decode(z), self.log_sigma.exp(), validate_args=False)

    def forward(self, x):
        """x -> (Gaussian mean, mean, log-variance), from one sample of z."""
        z, mean, logvar = self.sample_posterior(x)
        return self.decode(z), mean, logvar


@torch.no_grad()
def new_model(args, images):
    """A model that starts as the best linear one for this lambda, at 1 probabilistic PCA of these
    images (Tipping and Bishop 1999; Lucas et al. 2019)."""
    model = VAE(args.latent_dim)
    x = images[:10_000].flatten(1) / 255
    model.average.copy_(x.mean(0).view(3, 64, 64))
    x -= x.mean(0)
    rank = min(args.latent_dim, len(x) // 2)
    _, singular, components = torch.pca_lowrank(x, rank + 32, center=False)
    components = components[:, :rank]
    eigenvalues = (singular[:rank].square() / len(x)).clamp(min=1e-6)
    # With k components sigma^2 is variances[k]; those of more variance than lambda sigma^2 pay.
    rest = x.square().mean(0).sum() - nn.functional.pad(eigenvalues.cumsum(0), (1, 0))
    variances = rest / (PIXELS - args.kl_weight * torch.arange(rank + 1)).clamp(min=1)
    k = (eigenvalues > args.kl_weight * variances[1:]).sum()
    variance = variances[k].clamp(min=1e-6)  # the least is about that of rounding to 8 bits
    share = (args.kl_weight * variance / eigenvalues).clamp(1e-4, 1)  # variance of q(z|x)
    gain = (1 - share).sqrt()
    model.linear_in.weight[:rank] = SLOW * (components * gain / eigenvalues.sqrt()).T
    model.linear_out.weight[:, :rank] = SLOW * components * gain * eigenvalues.sqrt()
    model.encoder[-1].bias[args.latent_dim :][:rank] = share.log()
    model.log_sigma.copy_(variance.log() / 2)
    return model


def own_figures(model, test, mean, loss):
    """Bits a dimension of 8-bit data; PSNR of reconstructions from the posterior's means; sigma."""
    mse = (model.likelihood(mean.float()).mean - test / 255).double().square().mean().item()
    return {
        "bits_per_dim": 8 + loss / (PIXELS * math.log(2)),
        "psnr_db": -10 * math.log10(max(mse, 1e-12)),
        "sigma": model.log_sigma.exp().item(),
    }


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
