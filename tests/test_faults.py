"""Faults provoked for real, alike in both autoencoders: kills, full disks, foreign files, wild options, fuzz."""

import io
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLE, error_line, one_line_error
from forked import FORKS, run_forked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

NAMES = ("vae_mnist", "vae_anime")
SMALL = dict(
    vae_mnist="--latent-dim 2 --epochs 3 --batch-size 256".split(),
    vae_anime="--latent-dim 2 --epochs 2 --batch-size 256".split(),
)
FIGURES = "draw_curves draw_reconstructions draw_samples draw_interpolation draw_posterior"
# FUZZ=20000 python -m pytest tests/test_faults.py -k fuzz: so many examples, other ones every time.
FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ", 500)),
    derandomize="FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The folder of a course of 640 digits and 640 faces."""
    folder = tmp_path_factory.mktemp("course")
    np.savez_compressed(folder / "TibetanMNIST.npz", image=np.load(SAMPLE / "TibetanMNIST.npz")["image"][:640])
    with zipfile.ZipFile(SAMPLE / "anime-faces.zip") as whole, zipfile.ZipFile(folder / "anime-faces.zip", "w") as part:
        for name in whole.namelist()[:640]:
            part.writestr(name, whole.read(name))
    return folder


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def module(name, request):
    return request.getfixturevalue(name)


@pytest.fixture
def brief(module, course, monkeypatch):
    """The script without pictures, saving every epoch, and with its images read once."""
    monkeypatch.setattr(module, "SAVE_EVERY", 0, raising=False)
    if hasattr(module, "load_images"):
        name = module.__name__
        IMAGES[name] = IMAGES.get(name) or module.load_images(module.Config(data=str(course)))
        monkeypatch.setattr(module, "load_images", lambda config: IMAGES[name])
    for figure in FIGURES.split():
        monkeypatch.setattr(module, figure, lambda *args: None, raising=False)
    if hasattr(module, "importance_weighted_nll"):
        monkeypatch.setattr(module.evaluate, "__defaults__", (2, 10))
    if hasattr(module, "sliced_wasserstein"):
        monkeypatch.setattr(module, "sliced_wasserstein", lambda one, two: [0.0, 0.0, 0.0])
    return module


IMAGES = {}


def options(name, course, out="out", *more):
    return [*SMALL[name], "--data", course, "--out", out, *more]


@pytest.fixture(scope="module")
def alone(name, course, tmp_path_factory):
    """A run left alone, in a process of its own: (its folder, the lines that ran {function: n}, what a reader saw)."""
    folder = tmp_path_factory.mktemp("alone")
    status, stderr, seen = run_forked(name, options(name, course), folder)
    assert status == 0, stderr
    return folder, seen["lines"], seen["sights"]


def assert_whole(folder):
    """Every file in the folder, but for what a kill left beside its place, can be opened and is all there."""
    for path in folder.rglob("[!.]*"):
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".png":
            Image.open(path).load()


def flat(saved):
    """What torch.load gives, tensors as lists, without what depends on the time it took."""
    if isinstance(saved, dict):
        return {key: flat(value) for key, value in saved.items() if key not in ("seconds", "config")}
    if isinstance(saved, list | tuple):
        return [flat(part) for part in saved]
    return saved.tolist() if torch.is_tensor(saved) else saved


def result(folder):
    """All that must be equal in two equal runs: figures, weights, submission and the names of all files."""
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    aside = ("train_seconds", "wall_seconds", "argv", "config")
    figures = {key: value for key, value in metrics.items() if key not in aside}
    submission = [path.read_bytes() for path in folder.glob("*.csv")]
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return figures, flat(torch.load(folder / "out" / "model.pt", weights_only=True)), submission, names


# ------------------------------------------------------------------------------------- kills, Ctrl-C, full disks


def test_every_file_is_whole_at_every_moment(alone):
    """A reader that looks at every call and return while a file is written sees what was there or what comes."""
    folder, _, sights = alone
    assert all(sights.values()), sights
    assert sights.keys() == {path.name for path in folder.rglob("*.*")}  # nothing is written in another way


def test_killed_at_any_moment_and_resumed_is_the_run_left_alone(name, alone, course, tmp_path):
    """Seven functions from the first to the last, and four moments of writing: each time killed at some line of it."""
    _, lines, _ = alone
    moments, order = random.Random(0), list(lines)
    functions = [order[len(order) * i // 7] for i in range(7)] + ["write_whole"] * 4
    plan = [(function, moments.randint(1, lines[function])) for function in sorted(functions, key=order.index)]
    for moment in plan:
        status, stderr, _ = run_forked(name, options(name, course, "out", "--resume"), tmp_path, moment=moment)
        if status == 0:  # little was left to do: from the start again
            assert result(tmp_path)[:3] == result(alone[0])[:3]
            shutil.rmtree(tmp_path / "out")
            status, stderr, _ = run_forked(name, options(name, course), tmp_path, moment=moment)
        assert status == -signal.SIGKILL, (moment, stderr)
        assert_whole(tmp_path)
    status, stderr, _ = run_forked(name, options(name, course, "out", "--resume"), tmp_path)
    assert status == 0, stderr
    assert result(tmp_path) == result(alone[0])


def test_ctrl_c_at_any_moment(name, alone, course, tmp_path):
    order = list(alone[1])
    for function in ("read_table", "load_images", "train_epoch", "write_whole", "draw_curves"):
        if function in order:
            moment = (function, 9)
            status, stderr, _ = run_forked(
                name, options(name, course, "out", "--dry-run"), tmp_path, signal.SIGINT, moment
            )
            lines = [line for line in stderr.splitlines() if line and not line.startswith("notice:")]
            assert status == 130 and len(lines) == 1 and "--resume" in lines[0], stderr
            assert_whole(tmp_path)
            assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("resumed", [False, True])
def test_full_disk_keeps_what_was_there(name, alone, course, tmp_path, resumed):
    """A limit on the size of files stands for a full disk: the checkpoint, or the model, is written half way."""
    shutil.copytree(alone[0], tmp_path, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    failing = "model.pt" if resumed else "checkpoint.pt"
    limit = len(before[tmp_path / "out" / failing]) - 1 if resumed else 20_000
    argv = options(name, course, "out", *["--resume"] * resumed)
    status, stderr, _ = run_forked(name, argv, tmp_path, limit=limit)
    line = one_line_error(status, stderr)
    assert "cannot write" in line and failing in line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize("place", ["file", "file/under", "/proc/nowhere", "long" * 999])
def test_unwritable_places(name, brief, course, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    assert "cannot write" in error_line(brief, *options(name, course, place, "--dry-run"))
    assert Path("file").read_text() == "mine" and [path.name for path in tmp_path.rglob("*")] == ["file"]


def test_data_in_a_place_that_cannot_be(module):
    assert "--data" in error_line(module, "--data", "long" * 2000)


# ------------------------------------------------------------------------------------------------- determinism


def test_same_command_same_bytes(name, alone, course, tmp_path):
    assert run_forked(name, options(name, course), tmp_path)[0] == 0
    assert result(tmp_path) == result(alone[0])


def test_other_seed_other_result(name, brief, course, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in ("0", "1"):
        brief.main([*map(str, options(name, course, seed, "--dry-run")), "--seed", seed])
    one, two = (flat(torch.load(f"{seed}/model.pt", weights_only=True)) for seed in ("0", "1"))
    assert one != two


# --------------------------------------------------------------------------------------------- foreign files


class Bomb:
    """Pickled code: whoever unpickles it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


def load_saved(module, name, folder, course, kind):
    """What comes of a model.pt or checkpoint.pt in folder/out: the one line of its error, for the other files stay."""
    before = {path: path.read_bytes() for path in (folder / "out").iterdir()}
    if kind == "checkpoint.pt":
        line = error_line(module, *options(name, course, folder / "out", "--resume"))
    else:
        line = error_line(module, *options(name, course, folder / "out", "--eval-only"))
    assert kind in line and before == {path: path.read_bytes() for path in (folder / "out").iterdir()}
    return line


@pytest.mark.parametrize("kind", ["model.pt", "checkpoint.pt"])
def test_foreign_and_damaged_files_are_refused(name, brief, alone, course, tmp_path, kind):
    whole = (alone[0] / "out" / kind).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # of some weight: torch itself does not notice
    right = torch.load(io.BytesIO(whole), weights_only=True)
    inside = "run" if kind == "checkpoint.pt" else "config"
    foreign = dict(
        empty=b"",
        text=b"hello",
        cut=whole[: len(whole) * 2 // 3],
        flipped=bytes(flipped),
        dictionary=saved({"a": 1}),
        list=saved([1, 2]),
        number=saved(3),
        strange=saved(right | {inside: 3}),
        unknown=saved(right | {inside: {"nobody": "knows"}}),
        pickle=pickle.dumps(Bomb(tmp_path / "exploded")),
        code=saved(Bomb(tmp_path / "exploded")),
        hidden=saved(right | {"more": Bomb(tmp_path / "exploded")}),
    )
    if kind == "checkpoint.pt":
        foreign |= dict(state=saved(right | {"state": 3, "models": []}))
        foreign |= dict(weights=saved(right | {"state": ([], {}, {}, {}, {}), "models": []}))
    else:
        foreign |= dict(half=saved({key: right[key] for key in ("config", "weights")}))
        foreign |= dict(shape=saved(right | {"config": right["config"] | {"latent_dim": 3}}))
        foreign |= dict(giant=saved(right | {"config": right["config"] | {"latent_dim": 10**12}}))
    (tmp_path / "out").mkdir()
    for fault, data in foreign.items():
        (tmp_path / "out" / kind).write_bytes(data)
        line = load_saved(brief, name, tmp_path, course, kind)
        assert "nothing that this script saved" in line or (fault, kind) == ("unknown", "checkpoint.pt"), fault
    assert not (tmp_path / "exploded").exists()


def test_resume_of_another_run_names_what_differs(name, brief, alone, course, tmp_path):
    shutil.copytree(alone[0] / "out", tmp_path / "out")
    line = error_line(brief, *options(name, course, tmp_path / "out", "--resume", "--seed", 5, "--lr", 0.5))
    assert "seed 0, not 5" in line and "lr" in line and "epochs" not in line and "checkpoint.pt" in line


# ----------------------------------------------------------------------------------------------------- options


def outcome(module, *argv):
    """None if main runs, else the one line of its error; anything else is a failure."""
    try:
        metrics = module.main([str(word) for word in argv])
        json.dumps(metrics, allow_nan=False)
    except module.UserError as error:
        line = " ".join(str(error).split())
        assert re.fullmatch(".+ at .+: .+", line), line
        return line


def test_numeric_options(name, brief, course, tmp_path, monkeypatch):
    """Each at values within and out of its range: two batches of everything, or one line that names it."""
    monkeypatch.setattr(brief, "load_images", lambda config: (IMAGES[name][0][:100], True))
    for f in fields(brief.Config):
        low, high, flag = f.metadata["low"], f.metadata["high"], "--" + f.name.replace("_", "-")
        if low is None:
            continue
        words = ("-1", "nan", "inf", "-inf", "1e9", "1000000000", "1e400", "9" * 5000, "word", "")
        for value in dict.fromkeys([*words, "0", str(low), str(high)]):
            line = outcome(brief, *options(name, course, tmp_path / "out", "--dry-run", "--batch-size", 8), flag, value)
            try:
                within = low <= f.type(value) <= high
            except ValueError:
                within = False
            assert within or flag in line, (flag, value, line)
            may_fail = ("--lr", "--folds", "--nhead", "--d-model")
            assert not within or line is None or flag in may_fail, (flag, value, line)
    assert not list((tmp_path / "out").glob(".*"))


def test_numbers_in_every_config_have_a_range(module):
    for f in fields(module.Config):
        assert (f.metadata["low"] is None) == (f.type not in (int, float)), f.name


# --------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("lr", ["1e3", "1e6"])
@pytest.mark.parametrize("batch_size", [16, 2048])
def test_diverging_training_stops_or_ends_well(name, brief, alone, course, tmp_path, monkeypatch, lr, batch_size):
    """Never a file of NaN, and what was there stays: the losses are looked at before the checkpoint is written."""
    shutil.copytree(alone[0] / "out", tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.chdir(tmp_path)
    more = ("--lr", lr, "--batch-size", batch_size, "--epochs", 1)
    line = outcome(brief, *options(name, course, tmp_path / "out", *more))
    assert line is None or ("loss" in line and "--lr" in line)
    if line:
        assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert_finite(torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True))


def assert_finite(saved):
    for part in saved.values() if isinstance(saved, dict) else saved:
        if isinstance(part, dict | list | tuple):
            assert_finite(part)
        else:
            assert not isinstance(part, float | torch.Tensor) or bool(torch.as_tensor(part).isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_codes_that_no_gaussian_fits(name, request):
    """As a training that goes far astray, but stays finite, leaves them."""
    module, mean = request.getfixturevalue(name), torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert module.aggregate_codes(mean, torch.zeros(50, 8), 5).shape == (5, 8)
    with pytest.raises(module.UserError, match="--lr"):
        module.aggregate_codes(1e9 * mean[:, :1].expand(50, 8), torch.full((50, 8), -10.0), 5)


def test_no_such_device(module):
    if not torch.cuda.is_available():
        assert "--device cuda" in error_line(module, "--device", "cuda")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_last_good_checkpoint_is_kept(name, brief, alone, course, tmp_path, monkeypatch, moment):
    """Weights turn into NaN before the second epoch's first step, or by its last: the first epoch can be resumed."""
    monkeypatch.chdir(tmp_path)
    train_epoch, epochs = brief.train_epoch, []

    def spoilt(config, model, *rest):
        epochs.append(model)
        if len(epochs) == 2 and moment == "before":
            next(model.parameters()).data.fill_(math.nan)
        figures = train_epoch(config, model, *rest)
        if len(epochs) == 2:
            for part in (model, *rest[:1]):
                if isinstance(part, torch.nn.Module):
                    next(part.parameters()).data.fill_(math.nan)
        return figures

    with monkeypatch.context() as patch:
        patch.setattr(brief, "train_epoch", spoilt)
        line = error_line(brief, *options(name, course))
    assert "loss" in line and "epoch 2" in line and "--lr" in line
    assert_finite(torch.load("out/checkpoint.pt", weights_only=True))
    brief.main([str(word) for word in options(name, course, "out", "--resume")])
    mine, others = (flat(torch.load(folder / "out" / "model.pt", weights_only=True)) for folder in (tmp_path, alone[0]))
    assert mine == others


# ----------------------------------------------------------------------------------------------- images, memory


def zip_of(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def picture(mode="RGB", size=(64, 64), kind="PNG", **options):
    file = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(file, kind, **options)
    return file.getvalue()


def npy(header, data=b""):
    header = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def zip_that_lies(size):
    """An archive whose directory says that its first image takes `size` bytes."""
    data = bytearray(zip_of({f"{i}.png": picture() for i in range(3)}))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = size.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        picture("CMYK", kind="JPEG"),
        picture("P"),
        picture("P", kind="GIF", save_all=True, append_images=[Image.new("P", (64, 64))] * 3),
        picture("L", (1, 1)),
        picture("RGB", (4000, 3000), "JPEG"),
        picture("L", (64, 64), "WEBP"),
    ],
    ids=["CMYK JPEG", "palette", "animated GIF", "1 x 1", "4000 x 3000", "WEBP"],
)
def test_kinds_of_pictures(vae_anime, data):
    image = vae_anime.read_image(data)
    assert image.shape == (3, 64, 64) and image.dtype == torch.uint8


@pytest.mark.parametrize("size, readable", [(0, 2), (10, 2), (10**6, 3)])
def test_a_member_that_lies_about_its_size(vae_anime, tmp_path, size, readable):
    (tmp_path / "anime-faces.zip").write_bytes(zip_that_lies(size))
    assert f"{readable} readable images" in error_line(vae_anime, "--data", tmp_path)


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("name", NAMES)
def test_images_that_are_all_alike(name, tmp_path, monkeypatch, request, value):
    """Nothing to learn, but figures all the same, and none that JSON does not know."""
    module = request.getfixturevalue(name)
    monkeypatch.chdir(tmp_path)
    np.savez("TibetanMNIST.npz", image=np.full((640, 28, 28), value, np.uint8))
    face = io.BytesIO()
    Image.new("RGB", (64, 64), (value, value, value)).save(face, "PNG")
    Path("anime-faces.zip").write_bytes(zip_of({f"{i}.png": face.getvalue() for i in range(640)}))
    for figure in FIGURES.split():
        monkeypatch.setattr(module, figure, lambda *args: None, raising=False)
    assert outcome(module, "--data", ".", "--out", "out", "--dry-run", "--latent-dim", 4) is None


def hostile_files():
    """{what: (script, name of its file, the file)}, each small, and large once it is believed."""
    zeros = io.BytesIO()
    np.savez_compressed(zeros, image=np.zeros((340_000, 28, 28), np.uint8))  # 267 MB
    shape = "{'descr': '|u1', 'fortran_order': False, 'shape': (10000000, 28, 28), }"
    wide = "{'descr': '<U900000000', 'fortran_order': False, 'shape': (700, 28, 28), }"
    canvas = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(canvas, "PNG")
    return dict(
        zeros=("vae_mnist", "TibetanMNIST.npz", zeros.getvalue()),
        shape=("vae_mnist", "TibetanMNIST.npz", zip_of({"image.npy": npy(shape, bytes(1000))})),
        wide=("vae_mnist", "TibetanMNIST.npz", zip_of({"image.npy": npy(wide, bytes(1000))})),
        member=("vae_anime", "anime-faces.zip", zip_of({"a.png": bytes(3 * 10**8)})),
        canvas=("vae_anime", "anime-faces.zip", zip_of({"a.png": canvas.getvalue()})),
        lies=("vae_anime", "anime-faces.zip", zip_that_lies(2**31)),
    )


def read_hostile(folder):
    """In a process of its own: read each of the files within 2 GB; returns the lines of their errors."""
    from conftest import load

    lines, modules = {}, {script: load(script) for script in NAMES}
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * 10**9,) * 2)
    for what, (script, name, data) in hostile_files().items():
        path = Path(folder, what)
        path.mkdir()
        (path / name).write_bytes(data)
        try:
            modules[script].load_images(modules[script].Config(data=str(path)))
        except modules[script].UserError as error:
            lines[what] = str(error)
    Path(folder, "lines.json").write_text(json.dumps(lines))


def test_hostile_files_take_no_memory(tmp_path):
    process = FORKS.Process(target=read_hostile, args=(str(tmp_path),))
    process.start()
    process.join()
    lines = json.loads((tmp_path / "lines.json").read_text())
    assert process.exitcode == 0 and lines.keys() == {path.name for path in tmp_path.iterdir()} - {"lines.json"}
    assert "over 256000000" in lines["zeros"] and "a.png" in lines["member"] and "a.png" in lines["canvas"]


# --------------------------------------------------------------------------------------------------------- fuzz


@st.composite
def mutated(draw, wholes):
    """A valid file with some of its bits flipped, parts cut out, doubled, spliced from another one, or its end lost."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 6))):
        kind, start = draw(st.integers(0, 4)), draw(st.integers(0, max(0, len(data) - 1)))
        stop = start + draw(st.sampled_from([1, 2, 4, 16, 256, 4096]))
        if kind == 0 and data:
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            del data[start:stop]
        elif kind == 2:
            other = draw(st.sampled_from(wholes))
            data[start:start] = other[start:stop]
        elif kind == 3:
            data[start:stop] = draw(st.binary(max_size=8))
        else:
            del data[start:]
    return bytes(data)


def result_or_error(module, read, *args):
    """What a reader gives, or None for a UserError that says what, where and what to do; any other exception fails."""
    try:
        return read(*args)
    except module.UserError as error:
        assert re.fullmatch(".+ at .+: .+", " ".join(str(error).split())), error


def saved_arrays(save, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


DIGITS = np.zeros((640, 28, 28), np.uint8)
DIGITS[:, 3:9, 5:7] = 255
ARCHIVES = [
    saved_arrays(np.savez_compressed, image=DIGITS, label=np.arange(640)),
    saved_arrays(np.savez_compressed, image=DIGITS / 255, label=np.arange(640)),
    saved_arrays(np.savez, image=DIGITS[:3]),
]
SIZES = st.integers(-2, 3) | st.sampled_from([28, 640, 2**31, 2**62, 10**30])
TYPES = ["|u1", "<f8", ">f2", "<i8", "|O", "<U3", "|V0", "|S0", "<M8[s]", "<c16", "|b1", "u1,u1", "nonsense"]


def check_images(module, config):
    read = result_or_error(module, module.load_images, config)
    assert read is None or (read[0].dtype == torch.uint8 and read[0].shape[1:] in ((1, 28, 28), (3, 64, 64)))


@FUZZ
@given(data=mutated(ARCHIVES))
def test_fuzz_mutated_arrays(vae_mnist, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    (folder / "TibetanMNIST.npz").write_bytes(data)
    check_images(vae_mnist, vae_mnist.Config(data=str(folder)))


@FUZZ
@given(
    shape=st.lists(SIZES, max_size=5),
    kind=st.sampled_from(TYPES),
    order=st.sampled_from(["True", "False", "None", "'x'"]),
    data=st.sampled_from([b"", b"x" * 1000, pickle.dumps(Bomb("exploded")), bytes(640 * 784)]),
    end=st.sampled_from(["}", "", "}}", "\0}", ", 'more': 1}", "}" + " " * 999]),
)
def test_fuzz_headers_of_arrays(vae_mnist, tmp_path_factory, monkeypatch, shape, kind, order, data, end):
    folder = tmp_path_factory.getbasetemp()
    os.chdir(folder)
    header = f"{{'descr': {kind!r}, 'fortran_order': {order}, 'shape': ({''.join(f'{n},' for n in shape)}){end}"
    (folder / "TibetanMNIST.npz").write_bytes(zip_of({"image.npy": npy(header, data)}))
    check_images(vae_mnist, vae_mnist.Config(data=str(folder)))
    assert not (folder / "exploded").exists()


PICTURES = {
    "data/1.png": picture("RGB", (9, 9)),
    "2.jpg": picture("L", (8, 8), "JPEG"),
    "3.gif": picture("P", (8, 8), "GIF"),
    "4.tif": picture("CMYK", (8, 8), "TIFF"),
    "5.webp": picture("RGB", (8, 8), "WEBP"),
    "6.bmp": picture("1", (8, 8), "BMP"),
}
ZIPS = [zip_of(PICTURES), zip_of({name: data for name, data in PICTURES.items() if "png" in name or "txt" in name})]


@FUZZ
@given(data=mutated(ZIPS))
def test_fuzz_mutated_zips(vae_anime, tmp_path_factory, capsys, data):
    folder = tmp_path_factory.getbasetemp()
    (folder / "anime-faces.zip").write_bytes(data)
    check_images(vae_anime, vae_anime.Config(data=str(folder)))


@FUZZ
@given(
    data=st.lists(mutated(list(PICTURES.values())), min_size=1, max_size=3),
    suffix=st.sampled_from([".png", ".GIF", ".txt"]),
)
def test_fuzz_mutated_pictures(vae_anime, tmp_path_factory, capsys, data, suffix):
    """In an archive that is sound; each counts as read or as left out."""
    folder = tmp_path_factory.getbasetemp()
    (folder / "anime-faces.zip").write_bytes(zip_of({f"{i}{suffix}": part for i, part in enumerate(data)}))
    check_images(vae_anime, vae_anime.Config(data=str(folder)))
