#!/usr/bin/env bash
# torch 2.13.0 (oneDNN inside), nn.Linear in bfloat16 on a CPU, batches of many different sizes.
#
# On a processor that multiplies in bfloat16 (AVX-512 BF16 or AMX) every new number of rows that meets a linear
# layer leaves 1 to 2 MiB behind: 500 sizes cost the better part of a gigabyte, which does not come back. One
# size 500 times costs nothing, the same 500 sizes a second time cost nothing, and in float32 nothing grows:
# something is made for each shape and kept.
#
# One would guess that half as many bytes a number means less memory.
#
# Why it matters: images come in batches of one size, texts are padded to the longest of each batch, so B x T
# is another number at almost every step. A small Transformer for text that ran in 0.75 GiB takes 1.4 with
# autocast, and it looks like a leak of the training loop.
#
# Output seen (a processor with AMX):
#   torch 2.13.0
#   float32, 500 sizes                       +  -8 MiB
#   bfloat16, one size, 500 times            +   0 MiB
#   bfloat16, 500 sizes                      + 795 MiB
#   bfloat16, the same 500 sizes again       +   2 MiB
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$dir/grow.py" <<'PY'
import sys

import torch

torch.set_num_threads(1)


def resident():
    """MiB of this process that are in memory (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


@torch.no_grad()
def growth(sizes):
    """MiB more after a linear layer has met batches of these sizes."""
    before = resident()
    for rows in sizes:
        layer(torch.zeros(rows, 128, dtype=dtype))
    return resident() - before


dtype = torch.bfloat16 if sys.argv[1] == "bfloat16" else torch.float32
layer = torch.nn.Linear(128, 256, dtype=dtype)
growth([4000] * 50)  # buffers of the allocator
print(growth([4000] * 500), growth(range(3000, 3500)), growth(range(3000, 3500)))
PY
"$dir/venv/bin/python" - "$dir/grow.py" <<'PY'
import subprocess
import sys

import torch

print("torch", torch.__version__.split("+")[0])
if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    sys.exit("this processor does not multiply in bfloat16: nothing to see here")


def run(dtype):
    out = subprocess.check_output([sys.executable, sys.argv[1], dtype], text=True)
    return [float(number) for number in out.split()]


single = run("float32")
half = run("bfloat16")
print(f"float32, 500 sizes                       +{single[1]:4.0f} MiB")
print(f"bfloat16, one size, 500 times            +{half[0]:4.0f} MiB")
print(f"bfloat16, 500 sizes                      +{half[1]:4.0f} MiB")
print(f"bfloat16, the same 500 sizes again       +{half[2]:4.0f} MiB")
as_seen = max(single[1], half[0], half[2]) < 100 and half[1] > 300
sys.exit(0 if as_seen else "this has changed: read the comment above")
PY
