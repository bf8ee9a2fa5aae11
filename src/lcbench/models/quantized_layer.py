"""Layers of the quantized caches that transformers itself has: made, and read from outside.

With `models.adapter` the only file that touches how transformers is built inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def empty(backend: str, *, bits: int, axis_key: int, axis_value: int, group_size: int, residual_length: int) -> Any:
    """One layer of transformers' own quantized cache (`QuantizedCache`), empty.

    Its ``update(key, value)`` takes ``[1, Hk, q, d]`` and returns all keys and values that the step sees.

    Args:
        backend: "quanto" or "hqq". The rest is what transformers calls nbits, axis_key, axis_value, q_group_size and
            residual_length.

    Raises:
        ImportError: the backend's package, or the class in this version of transformers, is missing.
        ValueError: a value that the backend refuses.
    """
    from transformers import cache_utils

    name = {"quanto": "QuantoQuantizedLayer", "hqq": "HQQQuantizedLayer"}[backend]
    if not hasattr(cache_utils, name):
        raise ImportError(f"transformers has no {name}")
    return getattr(cache_utils, name)(
        nbits=bits,
        axis_key=axis_key,
        axis_value=axis_value,
        q_group_size=group_size,
        residual_length=residual_length,
    )


def contents(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values ``[Hk, n, d]`` that a step would see of a layer: decoded ones, then the residual."""
    pairs = ((layer._quantized_keys, layer.keys), (layer._quantized_values, layer.values))
    keys, values = (
        torch.cat([part[0] for part in (layer._dequantize(codes), exact) if part.numel()], dim=1)
        for codes, exact in pairs
    )
    return keys, values


def tensors(layer: Any) -> Iterator[Tensor]:
    """Every plain tensor behind a layer: codes, scales, zero points, the exact residual."""
    held = (layer._quantized_keys, layer._quantized_values, layer.keys, layer.values)
    yield from _plain_tensors(held)


def _plain_tensors(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        if hasattr(thing, "__tensor_flatten__"):  # a wrapper class: optimum-quanto's, say
            names, _ = thing.__tensor_flatten__()
            yield from _plain_tensors(tuple(getattr(thing, name) for name in names))
        else:
            yield thing
    elif isinstance(thing, tuple | list):
        for part in thing:
            yield from _plain_tensors(part)
    elif isinstance(thing, Mapping):
        yield from _plain_tensors(tuple(thing.values()))
