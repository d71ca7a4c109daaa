#!/usr/bin/env bash
# torch 2.13.0 and numpy 2.4.6, one flipped bit in a saved array.
#
# A .pt file and a .npz file are both zip archives with a CRC-32 of every member. torch.save computes those
# checksums, and Python's zipfile finds the damaged member by them. torch.load never looks at them: it
# returns the damaged weights without a word. np.load raises BadZipFile on the same damage.
#
# One would guess that who spends time to write a checksum also reads it, all the more as torch has a setting
# to leave out the writing (torch.serialization.set_crc32_options).
#
# Why it matters: a checkpoint hurt by a copy or a disk is loaded and trained on or judged. One bit turned a
# weight of 0.5 into 1.7e38 here; a lower bit would have changed the figures and nothing else.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import io
import sys
import zipfile

import numpy as np
import torch


def damaged(data):
    """The archive with one bit of the 100th number flipped, after a look that its checksums are right."""
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None
    data = bytearray(data)
    data[bytes(data).find(weights.tobytes()) + 4 * 100 + 3] ^= 0x40
    return io.BytesIO(bytes(data))


weights = np.full(1000, 0.5, np.float32)
print("torch", torch.__version__.split("+")[0], "numpy", np.__version__)
print("torch writes checksums:", torch.serialization.get_crc32_options())

file = io.BytesIO()
torch.save({"weights": torch.from_numpy(weights)}, file)
file = damaged(file.getvalue())
member = zipfile.ZipFile(file).testzip()
print("zipfile, of the .pt:   damaged member", member)
file.seek(0)
value = torch.load(file)["weights"][100].item()
print(f"torch.load, of the .pt: no error, weight 100 is {value:.3g}")

file = io.BytesIO()
np.savez(file, weights=weights)
try:
    np.load(damaged(file.getvalue()))["weights"]
    error = None
except zipfile.BadZipFile as exception:
    error = exception
print("np.load, of the .npz:  ", repr(error))

if member is None or value == 0.5 or error is None:
    sys.exit("The behaviour has changed: who notices the flipped bit.")
PY

# Output seen:
#
#   torch 2.13.0 numpy 2.4.6
#   torch writes checksums: True
#   zipfile, of the .pt:   damaged member archive/data/0
#   torch.load, of the .pt: no error, weight 100 is 1.7e+38
#   np.load, of the .npz:   BadZipFile("Bad CRC-32 for file 'weights.npy'")
