#!/usr/bin/env bash
# torch 2.13.0, nn.TransformerEncoderLayer and nn.TransformerEncoder on a CPU.
#
# A text without a single known token is a row of padding only. In training, and after eval() while
# gradients are on, the layer gives finite numbers for such a row. After eval() under no_grad the very
# same layer, weights and input give NaN; wrapped in nn.TransformerEncoder they give exact zeros; and with
# enable_nested_tensor=False the NaN is back.
#
# One would guess that no_grad() saves memory and changes no number, and that a row which is fine in
# training is fine in evaluation. Under no_grad, eval() takes another ("fast") path, which treats rows of
# padding in its own way.
#
# Why it matters: training a text classifier runs clean, and then the validation loss, or one row of the
# predictions, is NaN because one text was empty.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import sys
import warnings

import torch
from torch import nn

warnings.filterwarnings("ignore", message=".*nested tensors.*")
torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
models = {
    "layer alone": layer,
    "encoder": nn.TransformerEncoder(layer, 1),
    "encoder, not nested": nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
}
x = torch.randn(2, 5, 16)
padding = torch.tensor([[False] * 5, [True] * 5])  # row 0: five tokens, row 1: none

seen = {}
print("torch", torch.__version__.split("+")[0], "- the row of padding only")
for name, model in models.items():
    for training, grad in ((True, True), (True, False), (False, True), (False, False)):
        model.train(training)
        with torch.set_grad_enabled(grad):
            full, empty = model(x, src_key_padding_mask=padding)
        if not full.isfinite().all():
            sys.exit("The behaviour has changed: the row with tokens is not finite.")
        what = "NaN" if empty.isnan().any() else "zeros" if not empty.any() else "finite"
        seen[name, training, grad] = what
        print(f"{name:20} {'train()' if training else 'eval()':8} grad {'on' if grad else 'off':4} {what}")

wanted = dict(zip(models, ("NaN", "zeros", "NaN")))
for (name, training, grad), what in seen.items():
    if what != ("finite" if training or grad else wanted[name]):
        sys.exit(f"The behaviour has changed: {name}, training={training}, grad={grad}: {what}")
PY

# Output seen:
#
#   torch 2.13.0 - the row of padding only
#   layer alone          train()  grad on   finite
#   layer alone          train()  grad off  finite
#   layer alone          eval()   grad on   finite
#   layer alone          eval()   grad off  NaN
#   encoder              train()  grad on   finite
#   encoder              train()  grad off  finite
#   encoder              eval()   grad on   finite
#   encoder              eval()   grad off  zeros
#   encoder, not nested  train()  grad on   finite
#   encoder, not nested  train()  grad off  finite
#   encoder, not nested  eval()   grad on   finite
#   encoder, not nested  eval()   grad off  NaN
