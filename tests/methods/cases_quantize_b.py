"""Harness cases of flexgen, flexgen-longctx, hf-quantized and aqua-kv."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import aqua_reference
import flexgen_reference
import numpy as np
import stored_reference
import torch
from harness import Case, Models
from stored_reference import Array, Seen
from torch import Tensor
from transformers import cache_utils

from lcbench.kv.cache import CacheShape

# --- flexgen ----------------------------------------------------------------------------------------------------------


def flexgen_logits(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    def restore(x: Array) -> Array:
        return flexgen_reference.inverse_scaled(x, method.group_size)

    view = flexgen_reference.view_of(stored_reference.arrays(seen), restore, own_exact=True)
    return stored_reference.logits(pair, ids, prompt, view)[prompt:]


def flexgen_bytes(group: int) -> Any:
    def nbytes(shape: CacheShape, prompt: int, new: int) -> int:
        groups = -(-shape.head_dim // group)
        return 2 * shape.layers * shape.kv_heads * groups * (group // 2 + 4) * (prompt + new)

    return nbytes


def _flexgen(group: int) -> Case:
    return Case(
        spec=f"flexgen@group_size={group}", noop=(), nbytes=flexgen_bytes(group), reference=flexgen_logits, short=(1, 2)
    )


# --- flexgen-longctx --------------------------------------------------------------------------------------------------


def longctx_logits(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    def restore(x: Array) -> Array:
        return flexgen_reference.grouped(x, method.bits, method.group_size)

    view = flexgen_reference.view_of(stored_reference.arrays(seen), restore, own_exact=False)
    return stored_reference.logits(pair, ids, 0, view)[prompt:]


def _longctx(bits: int, group: int) -> Case:
    def nbytes(shape: CacheShape, prompt: int, new: int) -> int:
        elements = 2 * shape.layers * shape.kv_heads * shape.head_dim * (prompt + new)
        return elements * bits // 8 + 4 * elements // group

    return Case(
        spec=f"flexgen-longctx@bits={bits},group_size={group}",
        noop=(),
        nbytes=nbytes,
        reference=longctx_logits,
        short=(1, 2),
    )


# --- hf-quantized: R = 32, so that 64 forced tokens flush twice; no cases without the backends' packages --------------


def library_views(method: Any, layers: list[tuple[Array, Array]], prompt: int) -> stored_reference.View:
    """What the library's own layer shows at each step, fed with the keys and values of the run under test."""
    options = (method.bits, method.axis_key, method.axis_value, method.group_size, method.residual_length)
    shown: list[list[tuple[Array, Array]]] = []
    for key, value in layers:
        library = LIBRARY[method.backend](*options)
        k, v = torch.from_numpy(key)[None], torch.from_numpy(value)[None]
        library.update(k[:, :, :prompt], v[:, :, :prompt])
        steps = [library.update(k[:, :, p : p + 1], v[:, :, p : p + 1]) for p in range(prompt, key.shape[1])]
        shown.append([(keys[0].numpy(), values[0].numpy()) for keys, values in steps])

    def view(layer: int, p: int, key: Array, value: Array) -> list[Seen]:
        keys, values = shown[layer][p - prompt]
        return [Seen(k, v, np.arange(p + 1)) for k, v in zip(keys, values, strict=True)]

    return view


def library_logits(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    view = library_views(method, stored_reference.arrays(seen), prompt)
    return stored_reference.logits(pair, ids, prompt, view)[prompt:]


def library_bytes(backend: str, bits: int, group: int, residual: int) -> Any:
    """Two sorts of codes: quanto packs rows of groups, hqq (axis 0) rows of G; a scale and a zero point a group."""

    def nbytes(shape: CacheShape, prompt: int, new: int) -> int:
        exact = new % residual
        numbers = shape.kv_heads * shape.head_dim * (prompt + new - exact)
        groups = scales = numbers // group
        if backend == "quanto":
            codes = -(-groups * bits // 8) * group
            scales = group if groups == 1 else groups  # it gives the numbers of a lone group a scale each
        else:
            codes = group * bits // 8 * groups
        kept = shape.kv_heads * shape.head_dim * exact
        return 2 * shape.layers * (codes + shape.dtype.itemsize * (2 * scales + kept))

    return nbytes


def _library(backend: str, bits: int) -> Case:
    return Case(
        spec=f"hf-quantized@backend={backend},bits={bits},residual_length=32",
        noop=(),
        nbytes=library_bytes(backend, bits, 64, 32),
        reference=library_logits,
        short=(1, 2),
    )


LIBRARY: dict[str, Any] = {"quanto": cache_utils.QuantoQuantizedLayer, "hqq": cache_utils.HQQQuantizedLayer}


def installed(package: str) -> bool:
    """Whether a module can be found, its parents included."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


HF_QUANTIZED = [_library("quanto", 4)] if installed("optimum.quanto") else []
HF_QUANTIZED += [_library("hqq", 2)] if installed("hqq") else []

# --- aqua-kv: 24 at a time, so that the prompt flushes and 64 forced tokens do so twice more --------------------------


def aqua_bytes(bits: int, sink: int, chunk: int) -> Any:
    def nbytes(shape: CacheShape, prompt: int, new: int) -> int:
        width = shape.kv_heads * shape.head_dim
        done = [n for _, n in aqua_reference.flushes(prompt, prompt + new, sink, chunk)]
        encoded = done[-1] if done else 0
        exact = 2 * shape.layers * width * shape.dtype.itemsize * (prompt + new - encoded)
        codes = 2 * encoded * (width * (4 + (shape.layers - 1) * bits) // 8 + 4 * shape.layers * (width // 64))
        once = (shape.layers - 1) * 2 * (3 * width**2 + 2 * width) + shape.layers * 4 * (shape.head_dim // 2)
        return exact + codes + once

    return nbytes


AQUA = Case(
    spec="aqua-kv@sink=3,buffer=24",
    noop=("aqua-kv@buffer=125",),
    nbytes=aqua_bytes(2, 3, 24),
    reference=aqua_reference.logits,
    short=(1, 2, 3, 4, 26, 27, 28),
    bind=aqua_reference.with_predictors,
)

CASES: dict[str, list[Case]] = {
    "flexgen": [_flexgen(16)],
    "flexgen-longctx": [_longctx(4, 32)],
    "hf-quantized": HF_QUANTIZED,
    "aqua-kv": [AQUA],
}
