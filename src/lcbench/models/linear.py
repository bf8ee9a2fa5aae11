"""Linear layers of float32 models on an x86 processor, computed by oneDNN.

torch multiplies float32 matrices by MKL, which on processors of other makers takes about twice as long as oneDNN, the
library that torch computes 16-bit products with. Moreover a row of oneDNN's product does not depend on how many rows
stand beside it, from two on, so that answers decoded together come out to the bit as those decoded one by one; a single
row is computed twice for that.

Where memory is short oneDNN may fail to make a product, and once it has, go on failing when there is room again.
torch's own product is then taken: correct, though its last bits may depend on the neighbours.

While gradients are recorded (test-time training), and on every other device and dtype, torch's own product is taken.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_ONEDNN = platform.machine().lower() in ("x86_64", "amd64") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# What oneDNN says for want of memory, in whole and in lower case.
OUT_OF_MEMORY = (
    "could not create a primitive",
    "could not create a memory object",
    "could not execute a primitive",
    "std::bad_alloc",
)


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``rows @ weight.T + bias``, by oneDNN where that is possible.

    Args:
        rows: ``[..., k]``. weight: ``[n, k]``. bias: ``[n]``.

    Returns:
        ``[..., n]``.
    """
    ours = rows.dtype == weight.dtype == torch.float32 and rows.device.type == weight.device.type == "cpu"
    if not _ONEDNN or not ours or torch.is_grad_enabled() or not rows.numel():
        return functional.linear(rows, weight, bias)
    flat = rows.reshape(-1, rows.shape[-1])
    single = len(flat) == 1
    if single:
        flat = flat.repeat(2, 1)
    try:
        made: Tensor = torch.ops.mkldnn._linear_pointwise(flat, weight, bias, "none", [], "")
    except RuntimeError as error:
        if str(error).lower() not in OUT_OF_MEMORY:
            raise
        return functional.linear(rows, weight, bias)
    if single:
        made = made[:1].clone()  # a view would keep both rows in memory
    return made.view(*rows.shape[:-1], weight.shape[0])


class OneDNNLinear(nn.Linear):
    """`torch.nn.Linear` with the same parameters; see `product`."""

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        return product(input, self.weight, self.bias)


def by_onednn(model: Any) -> None:
    """Let the plain linear layers of ``model`` compute by oneDNN where possible; subclasses stay as they are."""
    if _ONEDNN:
        _exchange(model, nn.Linear, OneDNNLinear)


def by_torch(model: Any) -> None:
    """Undo `by_onednn`."""
    _exchange(model, OneDNNLinear, nn.Linear)


def _exchange(model: Any, old: type[nn.Linear], new: type[nn.Linear]) -> None:
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
