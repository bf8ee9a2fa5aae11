"""Harness cases of full, kivi and streamingllm."""

from __future__ import annotations

from typing import Any

import kivi_reference
import torch
from harness import Case, Models
from torch import Tensor

from lcbench.kv.cache import CacheShape
from lcbench.kv.record import LayerRecord


def _everything(method: Any, record: LayerRecord, seen: int) -> Tensor:
    return torch.ones(1, seen, dtype=torch.bool)


FULL = Case(
    spec="full",
    noop=("full",),
    nbytes=lambda shape, prompt, new: shape.full_bytes(prompt + new),
    visible=_everything,
    untouched=lambda length: True,
)


# --- kivi: R = 32 and a prompt of 60, so that 64 forced tokens cross two flushes of keys ---------------------------


def kivi_bytes(bits: int, group: int, residual: int) -> Any:
    """The formula of the specification, keys and values apart."""

    def nbytes(shape: CacheShape, prompt: int, new: int) -> int:
        seen = prompt + new
        r_k, r_v = seen % residual, min(seen, residual)
        total = 0.0
        for exact in (r_k, r_v):
            packed = seen - exact
            total += packed * bits / 8 + 4 * packed / group + shape.dtype.itemsize * exact
        return int(total * shape.layers * shape.kv_heads * shape.head_dim)

    return nbytes


def kivi_logits(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    rules = kivi_reference.Rules(prompt, method.bits, method.group_size, method.residual_length)
    return kivi_reference.logits(pair, ids, rules, seen)


def _kivi(bits: int) -> Case:
    return Case(
        spec=f"kivi@bits={bits},group_size=16,residual_length=32",
        noop=("kivi@residual_length=128", "kivi@bits=4,residual_length=160"),
        nbytes=kivi_bytes(bits, 16, 32),
        reference=kivi_logits,
        short=(1, 2, 31, 32, 33),
        untouched=lambda length: length < 32,
    )


# --- streamingllm --------------------------------------------------------------------------------------------------


def _streaming(n_sink: int, budget: int, roll: bool) -> Case:
    def visible(method: Any, record: LayerRecord, seen: int) -> Tensor:
        cut = seen if roll else record.length
        position = torch.arange(seen)
        return ((position < n_sink) | (position >= cut - (budget - n_sink)))[None]

    def nbytes(shape: CacheShape, prompt: int, new: int) -> int:
        held = min(prompt + new, budget) if roll else min(prompt, budget) + new
        return shape.full_bytes(held)

    return Case(
        spec=f"streamingllm@n_sink={n_sink},budget={budget},roll={str(roll).lower()}",
        noop=("streamingllm@budget=124", "streamingllm@budget=1.0", "streamingllm@budget=60,roll=false"),
        nbytes=nbytes,
        visible=visible,
        short=(1, 2, n_sink or 3, n_sink + 1, budget - 1, budget, budget + 1),
        untouched=lambda length: length <= budget,
    )


CASES: dict[str, list[Case]] = {
    "full": [FULL],
    "kivi": [_kivi(2), _kivi(4), _kivi(8)],
    "streamingllm": [_streaming(4, 20, True), _streaming(4, 20, False), _streaming(0, 12, True)],
}
