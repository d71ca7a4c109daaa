#!/usr/bin/env bash
# torch 2.13.0, three ways to the Bernoulli log-likelihood of a pixel, float32.
#
# A decoder that is sure and wrong: logit +20 on a black pixel, or logit -20 on a white one. By symmetry each
# costs 20 nats. F.binary_cross_entropy(sigmoid(logit)) makes it 100 nats and a gradient of exactly 0 for
# the black pixel, but 20 nats and a gradient of -1 for the white one. Bernoulli(probs=...) makes it 15.94 nats
# for both. Only F.binary_cross_entropy_with_logits gives 20 and 20, with gradients 1 and -1.
#
# One would guess a small rounding error. But in float32 a sigmoid can be as small as 1e-38 and yet reaches
# 1 exactly from about 17 on, so log(1 - p) is cut to -100 on one side long before the other, and the cost of
# the black pixel leaps from 16 to 100 nats at once.
#
# Why it matters: the reconstruction term of a VAE on digits then depends on whether ink is 1 or 0, a few
# pixels can lift -ELBO by hundreds of nats, and nothing pulls those pixels back.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import sys

import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli

ways = {
    "binary_cross_entropy": lambda x, t: F.binary_cross_entropy(torch.sigmoid(x), t, reduction="none"),
    "Bernoulli(probs)": lambda x, t: -Bernoulli(probs=torch.sigmoid(x)).log_prob(t),
    "..._with_logits": lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction="none"),
}
seen = {}
print("torch", torch.__version__.split("+")[0])
print("logit  way                   nats: black   white   gradient: black   white")
for size in (10.0, 16.0, 20.0):
    for name, way in ways.items():
        logit = torch.tensor([size, -size], requires_grad=True)  # sure of white, sure of black
        nats = way(logit, torch.tensor([0.0, 1.0]))  # the pixels are black, white
        (slope,) = torch.autograd.grad(nats.sum(), logit)
        seen[size, name] = [*nats.tolist(), *slope.tolist()]
        print("{:5.0f}  {:21} {:11.2f} {:7.2f} {:17.3f} {:7.3f}".format(size, name, *seen[size, name]))


def close(got, want):
    return all(abs(a - b) < 0.1 for a, b in zip(got, want))


if not close(seen[20.0, "binary_cross_entropy"], (100, 20, 0, -1)):
    sys.exit("The behaviour has changed: binary_cross_entropy.")
if not close(seen[20.0, "Bernoulli(probs)"][:2], (15.94, 15.94)):
    sys.exit("The behaviour has changed: Bernoulli(probs).")
if not close(seen[20.0, "..._with_logits"], (20, 20, 1, -1)):
    sys.exit("The behaviour has changed: binary_cross_entropy_with_logits.")
PY

# Output seen:
#
#   torch 2.13.0
#   logit  way                   nats: black   white   gradient: black   white
#      10  binary_cross_entropy        10.00   10.00             1.000  -1.000
#      10  Bernoulli(probs)            10.00   10.00             1.000  -1.000
#      10  ..._with_logits             10.00   10.00             1.000  -1.000
#      16  binary_cross_entropy        15.94   16.00             1.000  -1.000
#      16  Bernoulli(probs)            15.94   15.94             1.000   0.000
#      16  ..._with_logits             16.00   16.00             1.000  -1.000
#      20  binary_cross_entropy       100.00   20.00             0.000  -1.000
#      20  Bernoulli(probs)            15.94   15.94             0.000   0.000
#      20  ..._with_logits             20.00   20.00             1.000  -1.000
