#!/usr/bin/env bash
# matplotlib 3.11.2, imshow saved as PDF or SVG.
#
# A picture of 300 x 300 pixels in axes of 1.5 inch is stored in the PDF with 150 x 150 pixels: three quarters of
# the pixels are gone, and the dpi of savefig decides how many are left (450 x 450 of them at 300 dpi). SVG is
# the same, and interpolation="nearest" too. Only interpolation="none" stores the picture as it is.
#
# One would guess that a vector format takes the picture whole and scales it on the page, so that dpi has no say,
# and that "nearest" and "none" are the same thing for an image shown without smoothing.
#
# Why it matters: a sheet of VAE samples in a report is judged by its detail. Zooming into the PDF then shows
# matplotlib's blend of neighbouring pixels, not the decoder's, and blurred samples look like the model's fault.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check matplotlib==3.11.2 numpy==2.4.6 pillow==13.0.0
export MPLCONFIGDIR="$dir"
"$dir/venv/bin/python" - <<'PY'
import base64
import io
import re
import sys

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

picture = np.random.default_rng(0).random((300, 300))


def stored(form, **options):
    """The size in pixels of the one picture in the saved file."""
    dpi = options.pop("dpi", 100)
    figure = plt.figure(figsize=(1.5, 1.5))
    axes = figure.add_axes([0, 0, 1, 1])
    axes.imshow(picture, cmap="gray", **options)
    axes.axis("off")
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=dpi)
    plt.close(figure)
    if form == "svg":
        (data,) = re.findall(rb'base64,\s*([^"]+)"', file.getvalue())
        return Image.open(io.BytesIO(base64.b64decode(data))).size
    (width,), (height,) = (re.findall(rb"/%s (\d+)" % key, file.getvalue()) for key in (b"Width", b"Height"))
    return int(width), int(height)


cases = (
    ({"form": "pdf"}, 150),
    ({"form": "pdf", "dpi": 300}, 450),
    ({"form": "pdf", "interpolation": "nearest"}, 150),
    ({"form": "pdf", "interpolation": "none"}, 300),
    ({"form": "pdf", "interpolation": "none", "dpi": 72}, 300),
    ({"form": "svg"}, 150),
    ({"form": "svg", "interpolation": "none"}, 300),
)
print("matplotlib", matplotlib.__version__, "- a picture of 300 x 300, axes of 1.5 inch, dpi 100 if not named")
for options, want in cases:
    size = stored(**options)
    print(f"{str(options):57} {size[0]} x {size[1]}")
    if size != (want, want):
        sys.exit("The behaviour has changed: the size of the stored picture.")
PY

# Output seen:
#
#   matplotlib 3.11.2 - a picture of 300 x 300, axes of 1.5 inch, dpi 100 if not named
#   {'form': 'pdf'}                                           150 x 150
#   {'form': 'pdf', 'dpi': 300}                               450 x 450
#   {'form': 'pdf', 'interpolation': 'nearest'}               150 x 150
#   {'form': 'pdf', 'interpolation': 'none'}                  300 x 300
#   {'form': 'pdf', 'interpolation': 'none', 'dpi': 72}       300 x 300
#   {'form': 'svg'}                                           150 x 150
#   {'form': 'svg', 'interpolation': 'none'}                  300 x 300
