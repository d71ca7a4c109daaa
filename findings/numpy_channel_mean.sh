#!/usr/bin/env bash
# numpy 2.4.6, the mean of each colour channel of float32 images; torch 2.13.0 beside it.
#
# 1,500 plain images, 64 x 64, every value 0.9: images.mean(axis=(0, 1, 2)) is 0.954 in every channel, above
# the largest value in the array. With the channel axis first, with one channel, or over all axes the answer
# is 0.900, and so is torch's mean of the same memory over the same axes.
#
# One would guess that np.mean is good to six digits in float32, since NumPy is known for its pairwise sum.
# That sum only works along the axis that is next in memory. Over (image, row, column) with 3 channels last
# each channel is added up one value at a time, in float32. Past 4 million (2**22) such a sum moves in steps of
# 0.5, so every further 0.9 counts as 1.0. Plain images are the worst case: all the errors point one way.
#
# Why it matters: "mean and standard deviation of the training set" of colour images is computed in just
# this way, and images with plain backgrounds are common among drawn faces. dtype=np.float64 mends it.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import sys

import numpy as np
import torch

images = np.full((1500, 64, 64, 3), 0.9, np.float32)
axes = (0, 1, 2)
means = {
    "numpy, channels last": images.mean(axis=axes),
    "numpy, channels last, float64": images.mean(axis=axes, dtype=np.float64),
    "numpy, channels first": np.ascontiguousarray(images.transpose(3, 0, 1, 2)).mean(axis=(1, 2, 3)),
    "numpy, one channel": images[..., :1].copy().mean(axis=axes),
    "numpy, all axes": images.mean(),
    "torch, channels last": torch.from_numpy(images).mean(axes).numpy(),
}
print("numpy", np.__version__, "torch", torch.__version__.split("+")[0], "largest value", images.max())
for name, mean in means.items():
    print(f"{name:30}", np.round(mean, 5))
print("standard deviation, channels last", np.round(images.std(axis=axes), 5), "(of equal values)")

wrong = [name for name, mean in means.items() if np.abs(np.asarray(mean) - 0.9).max() > 1e-3]
if wrong != ["numpy, channels last"] or means["numpy, channels last"].min() < 0.92:
    sys.exit("The behaviour has changed: " + repr(wrong))
PY

# Output seen:
#
#   numpy 2.4.6 torch 2.13.0 largest value 0.9
#   numpy, channels last           [0.95441 0.95441 0.95441]
#   numpy, channels last, float64  [0.9 0.9 0.9]
#   numpy, channels first          [0.9 0.9 0.9]
#   numpy, one channel             [0.9]
#   numpy, all axes                0.9
#   torch, channels last           [0.9 0.9 0.9]
#   standard deviation, channels last [0.05496 0.05496 0.05496] (of equal values)
