"""FlexGen's two quantizers a second time, from the formulas in numpy, and what its queries see."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from stored_reference import Array, Seen, View

F16, F32 = np.float16, np.float32


def padded_groups(x: Array, group: int) -> Array:
    """``[..., d]`` as fp32 ``[..., groups, G]``, the last group filled up with zeros."""
    x = np.concatenate([x, np.zeros((*x.shape[:-1], -x.shape[-1] % group), x.dtype)], axis=-1).astype(F32)
    return x.reshape(*x.shape[:-1], -1, group)


def encode(x: Array, group: int) -> tuple[Array, Array, Array]:
    """Codes ``[..., groups, G]``, inverse scales and minima fp16 ``[..., groups]``."""
    groups = padded_groups(x, group)
    low, high = groups.min(axis=-1).astype(F16), groups.max(axis=-1)
    spread = high - low.astype(F32)
    flat = (groups.min(axis=-1) == high) | (spread <= 0)
    inverse = np.where(flat, 0, np.minimum(F32(15) / np.where(flat, F32(1), spread), F32(65504))).astype(F16)
    codes = (groups - low.astype(F32)[..., None]) * inverse.astype(F32)[..., None]
    return np.rint(np.clip(codes, 0, 15)), inverse, low  # rint rounds half to even


def inverse_scaled(x: Array, group: int) -> Array:
    """``[Hk, n, d]`` restored."""
    codes, inverse, low = encode(x, group)
    step = np.divide(F32(1), inverse.astype(F32), out=np.zeros(inverse.shape, F32), where=inverse > 0)
    return (codes * step[..., None] + low.astype(F32)[..., None]).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]


def grouped(x: Array, bits: int, group: int) -> Array:
    """``[Hk, n, d]`` through the quantizer of the longctx variant: an fp16 scale and minimum a group."""
    groups, levels = padded_groups(x, group), F32(2**bits - 1)
    low, high = groups.min(axis=-1).astype(F16), groups.max(axis=-1)
    scale = ((high - low.astype(F32)) / levels).astype(F16)
    step = scale.astype(F32)[..., None]
    codes = np.divide(groups - low.astype(F32)[..., None], step, out=np.zeros_like(groups), where=step > 0)
    restored = np.rint(np.clip(codes, 0, levels)) * step + low.astype(F32)[..., None]
    return restored.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]


def view_of(layers: list[tuple[Array, Array]], restore: Callable[[Array], Array], *, own_exact: bool) -> View:
    """What a query sees: everything restored, itself exact or not.

    Args:
        layers: keys and values ``[Hk, T, d]`` of each layer in the run under test.
    """
    stored = [(restore(k), restore(v)) for k, v in layers]

    def view(layer: int, p: int, key: Array, value: Array) -> list[Seen]:
        heads = []
        for h in range(key.shape[0]):
            k, v = (x[h, : p + 1].astype(np.float64) for x in stored[layer])
            if own_exact:
                k[p], v[p] = key[h, p], value[h, p]
            heads.append(Seen(k, v, np.arange(p + 1)))
        return heads

    return view
