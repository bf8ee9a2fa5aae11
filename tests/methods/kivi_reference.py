"""KIVI a second time: whole text at once, no incremental state, Python loops and numpy, straight from the formulas.

Nothing is quantized twice and key groups start at multiples of G, so what query p (a decoding one, p >= L) sees is a
function of p alone: keys before ``R * floor(p / R)`` and values before ``p - R`` are quantized, the rest is exact.
"""

from __future__ import annotations

import contextvars
import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from harness import Models
from torch import Tensor
from transformers import AttentionInterface


@dataclass(frozen=True)
class Rules:
    """The parameters of one run, and two ways to get KIVI wrong that tests must notice.

    Attributes:
        prompt: L. bits, group, residual: b, G, R.
        transpose_keys: quantize keys per token instead of per channel.
        late: values leave the residual so many steps later than they should.
    """

    prompt: int
    bits: int
    group: int
    residual: int
    transpose_keys: bool = False
    late: int = 0


def quantize_group(x: np.ndarray, bits: int) -> np.ndarray:
    """One group ``[G]`` quantized and restored."""
    levels = 2**bits - 1
    low, high = np.float32(x.min()), np.float32(x.max())
    m = np.float32(np.float16(low))
    s = np.float32(np.float16((high - m) / np.float32(levels)))
    if high == low or s == 0:
        return np.full_like(x, m)
    restored = np.empty_like(x)
    for i, value in enumerate(x):
        code = np.rint(min(max((np.float32(value) - m) / s, 0), levels))  # rint rounds half to even
        restored[i] = np.float32(code) * s + m
    return restored


def per_channel(x: np.ndarray, bits: int, group: int) -> np.ndarray:
    """``[Hk, n, d]``: groups of consecutive tokens of each channel; a last unfilled group is left as it is."""
    out = x.copy()
    for head in range(x.shape[0]):
        for channel in range(x.shape[2]):
            for start in range(0, x.shape[1] - group + 1, group):
                out[head, start : start + group, channel] = quantize_group(
                    x[head, start : start + group, channel], bits
                )
    return out


def per_token(x: np.ndarray, bits: int, group: int) -> np.ndarray:
    """``[Hk, n, d]``: groups of consecutive channels of each token."""
    out = x.copy()
    for head in range(x.shape[0]):
        for token in range(x.shape[1]):
            for start in range(0, x.shape[2], group):
                out[head, token, start : start + group] = quantize_group(x[head, token, start : start + group], bits)
    return out


def restored(key: Tensor, value: Tensor, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values ``[Hk, T, d]`` after quantizing all of them."""
    quantize_keys = per_token if rules.transpose_keys else per_channel
    k, v = key.numpy().astype(np.float32), value.numpy().astype(np.float32)
    return quantize_keys(k, rules.bits, rules.group), per_token(v, rules.bits, rules.group)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    window: int | None,
    rules: Rules,
    quantized: tuple[np.ndarray, np.ndarray],
) -> Tensor:
    """All queries ``[H, T, d]`` of a text on its keys and values ``[Hk, T, d]``; fp64 ``[H, T, d]``.

    Args:
        quantized: what `restored` makes of the keys and values.
    """
    k, v = key.numpy(), value.numpy()
    k_hat, v_hat = quantized
    q = query.numpy().astype(np.float64)
    groups = q.shape[0] // k.shape[0]
    out = np.zeros_like(q)
    for p in range(q.shape[1]):
        first = 0 if window is None else max(0, p - window + 1)
        flushed = p // rules.residual * rules.residual if p >= rules.prompt else 0
        aged = max(0, p - rules.residual - rules.late) if p >= rules.prompt else 0
        for h in range(q.shape[0]):
            kv = h // groups
            keys = np.concatenate([k_hat[kv, :flushed], k[kv, flushed : p + 1]]).astype(np.float64)[first:]
            values = np.concatenate([v_hat[kv, :aged], v[kv, aged : p + 1]]).astype(np.float64)[first:]
            logits = keys @ q[h, p] * scaling
            weights = np.exp(logits - logits.max())
            out[h, p] = weights / weights.sum() @ values
    return torch.from_numpy(out)


@dataclass(frozen=True)
class _Run:
    rules: Rules
    quantized: list[tuple[np.ndarray, np.ndarray]]


_run: contextvars.ContextVar[_Run] = contextvars.ContextVar("kivi_run")


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    run = _run.get()
    quantized = run.quantized[module.layer_idx]
    out = attend(query[0], key[0], value[0], scaling, sliding_window, run.rules, quantized)
    return out.to(query.dtype).transpose(0, 1)[None].contiguous(), None


AttentionInterface.register("kivi_reference", _attention)


@cache
def _model(pair: Models) -> Any:
    model = copy.deepcopy(pair.plain)
    model.set_attn_implementation("kivi_reference")
    return model


def logits(pair: Models, ids: Tensor, rules: Rules, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Logits ``[T - L, vocab]`` of everything after the prompt.

    Args:
        seen: the keys and values ``[Hk, T, d]`` of each layer in the run under test: these are what is quantized, as
            rounding noise of 1e-6 in a key can move its code by one and its restored value by a whole step.
    """
    token = _run.set(_Run(rules, [restored(key, value, rules) for key, value in seen]))
    try:
        with torch.inference_mode():
            return _model(pair)(input_ids=ids[None], use_cache=False).logits[0, rules.prompt :]
    finally:
        _run.reset(token)
