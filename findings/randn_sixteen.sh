#!/usr/bin/env bash
# torch 2.13.0, torch.randn on a CPU.
#
# After the same manual_seed, randn(15) shares no number with the first 15 of randn(16). From 16 numbers on
# another method fills them, in blocks of 16, and a last block that is not full is drawn anew over the last
# 16 places. So randn(20) twice is not randn(40), but randn(32) twice is randn(64).
#
# One would guess that a seeded stream is a stream: the first n numbers do not depend on how many more are
# asked for. That holds for torch.rand and for NumPy's generator.
#
# Why it matters: a VAE with 8 or 20 latents samples other images one at a time than as a batch under the
# same seed, while one with 16 or 32 latents samples the same ones. A test that passes with 32 latents
# fails with 20, and the batch size silently belongs to the seed.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import sys

import numpy as np
import torch


def seeded(draw, *sizes):
    torch.manual_seed(0)
    return torch.cat([draw(n) for n in sizes])


def shared(draw, few, many):
    return int((seeded(draw, few) == seeded(draw, many)[:few]).sum())


print("torch", torch.__version__.split("+")[0])
first = {
    "torch.randn": shared(torch.randn, 15, 16),
    "torch.rand": shared(torch.rand, 15, 16),
    "numpy": int((np.random.default_rng(0).standard_normal(15) == np.random.default_rng(0).standard_normal(16)[:15]).sum()),
}
for name, n in first.items():
    print(f"{name:12} 15 numbers and the first 15 of 16: {n} agree")

batch = {}
for latents in (8, 15, 16, 20, 32):
    alone, together = seeded(torch.randn, *[latents] * 4), seeded(torch.randn, 4 * latents)
    batch[latents] = torch.equal(alone, together)
    print(f"4 codes of {latents:2} latents, one at a time and as a batch: {'the same' if batch[latents] else 'different'}")

if first != {"torch.randn": 0, "torch.rand": 15, "numpy": 15}:
    sys.exit("The behaviour has changed: the first numbers of the streams.")
if batch != {8: False, 15: False, 16: True, 20: False, 32: True}:
    sys.exit("The behaviour has changed: one at a time against a batch.")
PY

# Output seen:
#
#   torch 2.13.0
#   torch.randn  15 numbers and the first 15 of 16: 0 agree
#   torch.rand   15 numbers and the first 15 of 16: 15 agree
#   numpy        15 numbers and the first 15 of 16: 15 agree
#   4 codes of  8 latents, one at a time and as a batch: different
#   4 codes of 15 latents, one at a time and as a batch: different
#   4 codes of 16 latents, one at a time and as a batch: the same
#   4 codes of 20 latents, one at a time and as a batch: different
#   4 codes of 32 latents, one at a time and as a batch: the same
