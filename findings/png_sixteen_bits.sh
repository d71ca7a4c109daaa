#!/usr/bin/env bash
# Pillow 13.0.0, PNG files with 16 bits a channel, read as 8 bits.
#
# The same ramp from black to white in four valid PNG files. As plain grey, Image.open(...).convert("L") (or
# "RGB") makes every pixel above the first 255: white. As grey with alpha, as RGB and as RGB with alpha the same
# call gives the ramp, scaled to 0 ... 255. Plain grey alone is opened at full depth (mode I;16) and then cut off
# at 255, the others are scaled to 8 bits when opened.
#
# One would guess that convert("L") of a 16-bit picture scales it, or that it at least treats the four PNG
# colour types alike; adding an opaque alpha channel should not turn a white picture into a ramp.
#
# Why it matters: a folder of training images for a VAE is usually read by Image.open(path).convert("RGB"). The 16-bit
# grey ones among them come out white, without a warning.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import io
import struct
import sys
import zlib

import numpy as np
import PIL
from PIL import Image

ramp = np.arange(256) * 257  # 0 ... 65535, one row of pixels


def png(colour_type, channels):
    """A PNG file of one row, 16 bits a channel; the last of 2 or 4 channels is an opaque alpha."""
    row = np.repeat(ramp[:, None], channels, 1)
    if channels in (2, 4):
        row[:, -1] = 65535

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 256, 1, 16, colour_type, 0, 0, 0)
    body = zlib.compress(b"\0" + row.astype(">u2").tobytes())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


print("Pillow", PIL.__version__)
white = {}
for name, colour_type, channels in (("grey", 0, 1), ("grey, alpha", 4, 2), ("RGB", 2, 3), ("RGB, alpha", 6, 4)):
    image = Image.open(io.BytesIO(png(colour_type, channels)))
    grey = np.asarray(image.convert("L"))[0]
    white[name] = [int((grey == 255).sum()), int((np.asarray(image.convert("RGB")) == 255).all(2).sum())]
    print(f"{name:12} mode {image.mode:5} L at pixels 0, 1, 128, 255: {grey[[0, 1, 128, 255]]}  white of 256: {white[name]}")

if white != {"grey": [255, 255], "grey, alpha": [1, 1], "RGB": [1, 1], "RGB, alpha": [1, 1]}:
    sys.exit("The behaviour has changed: 16-bit PNG files read as 8 bits.")
PY

# Output seen:
#
#   Pillow 13.0.0
#   grey         mode I;16  L at pixels 0, 1, 128, 255: [  0 255 255 255]  white of 256: [255, 255]
#   grey, alpha  mode RGBA  L at pixels 0, 1, 128, 255: [  0   1 128 255]  white of 256: [1, 1]
#   RGB          mode RGB   L at pixels 0, 1, 128, 255: [  0   1 128 255]  white of 256: [1, 1]
#   RGB, alpha   mode RGBA  L at pixels 0, 1, 128, 255: [  0   1 128 255]  white of 256: [1, 1]
