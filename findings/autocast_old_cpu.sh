#!/usr/bin/env bash
# torch 2.13.0 on an x86-64 CPU: autocast to bfloat16 where oneDNN has no bfloat16 kernels.
#
# With oneDNN held to AVX2 (its own run-time variable, ONEDNN_MAX_CPU_ISA=AVX2), as it holds itself on a CPU
# without AVX-512, a 3 x 3 convolution under torch.autocast("cpu", torch.bfloat16) takes many times as long as in
# float32: 30 to 50 times when this was written (the script asks for 3). Nothing warns.
# torch.cpu.get_capabilities() answers as before, whatever the variable says; only the private
# torch.ops.mkldnn._is_mkldnn_bf16_supported() knows.
#
# One would guess that autocast is at worst as slow as float32 plus two conversions, or that it leaves the
# convolution in float32 where bfloat16 does not pay. It casts all the same, and torch's own fallback runs
# (a profile names aten::_slow_conv2d_forward in the place of aten::mkldnn_convolution).
#
# Why it matters: a VAE that trains faster by autocast on one CPU trains many times slower on the next,
# and a look at the CPU's flags does not tell which, where that variable is set. Time both before you choose.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$dir/probe.py" <<'PY'
import json
import time

import torch

torch.set_num_threads(1)
torch.manual_seed(0)
conv = torch.nn.Conv2d(32, 32, 3, padding=1).requires_grad_(False)
x = torch.randn(8, 32, 32, 32)


def run(bf16):
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = conv(x)
    return time.process_time() - start, y.float()


runs = [(run(False), run(True)) for _ in range(7)]
plain, cast = (min(pair[i][0] for pair in runs) for i in (0, 1))
flags = {k: v for k, v in torch.cpu.get_capabilities().items() if isinstance(v, bool)}
print(
    json.dumps(
        {
            "times as long": round(cast / plain, 1),
            "oneDNN has bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
            "largest difference": round((runs[0][0][1] - runs[0][1][1]).abs().max().item(), 4),
            "flags": flags,
        }
    )
)
PY
env -u ONEDNN_MAX_CPU_ISA "$dir/venv/bin/python" "$dir/probe.py" >"$dir/free.json"
ONEDNN_MAX_CPU_ISA=AVX2 "$dir/venv/bin/python" "$dir/probe.py" >"$dir/held.json"
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import json
import sys

free, held = (json.load(open(name)) for name in ("free.json", "held.json"))
same = free.pop("flags") == held.pop("flags")
print("as the CPU is:", free)
print("held to AVX2: ", held)
print("torch.cpu.get_capabilities() the same in both:", same)
if not same or held["oneDNN has bfloat16"] or not 0 < held["largest difference"] < 0.1:
    sys.exit("The behaviour has changed: flags, support or result.")
if held["times as long"] < 3:
    sys.exit("The behaviour has changed: autocast is no longer many times slower.")
PY

# Output seen:
#
#   as the CPU is: {'times as long': 0.6, 'oneDNN has bfloat16': True, 'largest difference': 0.0097}
#   held to AVX2:  {'times as long': 53.5, 'oneDNN has bfloat16': False, 'largest difference': 0.0097}
#   torch.cpu.get_capabilities() the same in both: True
