"""Make report.pdf from report.typ, references.bib, results/*.json and figures/*.png.

    python report/make_report.py

The same files give the same bytes.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import typst
from PIL import Image

REPORT = Path(__file__).resolve().parent
# Of these pictures, of 8 rows of images, the report shows the first 5 or 4; the others would double its size.
TALL = ("reconstructions.png", "samples.png", "interpolation.png")


def place_picture(path, folder):
    """Put a picture into the folder, without the rows of images that the report does not show."""
    if not path.name.endswith(TALL):
        shutil.copy(path, folder)
        return
    with Image.open(path) as image:
        rows = 5 if path.name == "vae_mnist_samples.png" else 4
        height = 63 + 74 * rows
        image = image.convert("RGB").crop((0, 0, image.width, height))
    if "anime" in path.name:  # as JPEG they halve the report
        image.save(folder / f"{path.stem}.jpg", quality=92, subsampling=0)
    else:
        image.save(folder / path.name)


@contextlib.contextmanager
def source():
    """What typst.compile and typst.query need; report.typ is told the names of the results and figures there are."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(REPORT / "results", root / "results")
        (root / "figures").mkdir()
        for path in REPORT.glob("figures/*.png"):
            place_picture(path, root / "figures")
        for name in ("report.typ", "references.bib"):
            shutil.copy(REPORT / name, root)
        have = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))
        yield dict(
            input=root / "report.typ", root=root, sys_inputs={"have": json.dumps(have)}, ignore_system_fonts=True
        )


def build():
    """The bytes of report.pdf."""
    with source() as files:
        return typst.compile(**files)


if __name__ == "__main__":
    pdf = build()
    (REPORT.parent / "report.pdf").write_bytes(pdf)
    print(f"report.pdf: {len(pdf) / 1e6:.1f} MB")
