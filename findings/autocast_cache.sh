#!/usr/bin/env bash
# torch 2.13.0, one autocast block around a whole epoch instead of around each step's forward pass.
#
# In a block of torch.autocast a float32 weight that needs a gradient is cast to bfloat16 once, and the copy is
# kept until the outermost block ends. optimizer.step() changes the weight and not the copy: every later step
# of the block computes loss and gradient at the weights of the first step, while the optimizer walks on. The
# loss stands still and in the end the weights blow up; there is no warning. With cache_enabled=False, or a
# block for each step, the same loop trains.
#
# One would guess that a block around the loop over batches is the same as one around each batch, as it is for
# torch.no_grad and torch.inference_mode.
#
# Why it matters: "with autocast: train_epoch(...)" is the shortest way to speed up a VAE on a CPU, and the run
# looks alive: weights change, times are right, only the loss of an epoch is one number all over.
#
# Output seen:
#   torch 2.13.0
#   one block, cache as it is      first loss 1.000, last loss 1.000, weight at the end -1.0000
#   one block, cache_enabled=False first loss 1.000, last loss 0.018, weight at the end +0.1072
#   a block for each step          first loss 1.000, last loss 0.018, weight at the end +0.1072
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import contextlib
import sys

import torch


def train(outer, inner):
    """Ten steps of gradient descent on w x with x = 1, target 0; losses, and the weight at the end."""
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    losses = []
    with outer():
        for _ in range(10):
            with inner():
                loss = layer(torch.ones(1, 1)).float().square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses[0], losses[-1], layer.weight.item()


def cached():
    return torch.autocast("cpu", torch.bfloat16)


def uncached():
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


print("torch", torch.__version__.split("+")[0])
ways = {
    "one block, cache as it is": (cached, contextlib.nullcontext),
    "one block, cache_enabled=False": (uncached, contextlib.nullcontext),
    "a block for each step": (contextlib.nullcontext, cached),
}
seen = {}
for name, way in ways.items():
    seen[name] = train(*way)
    first, last, weight = seen[name]
    print(f"{name:30} first loss {first:.3f}, last loss {last:.3f}, weight at the end {weight:+.4f}")
stuck, free, stepwise = seen.values()
if not (stuck[0] == stuck[1] == 1 and free == stepwise and free[1] < 0.05):
    sys.exit("this has changed: an update within the block is seen, or is not without the cache")
PY
