"""Logits of a plain model whose later queries look at what a method stored, computed a second time.

A *view* says what the query at position p of a layer sees, KV head by KV head, as plain numpy arrays; attention over
it is fp64 and loops over heads. Used for every method that changes keys or values instead of only dropping them.
"""

from __future__ import annotations

import contextvars
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from harness import Models
from torch import Tensor
from transformers import AttentionInterface

Array = np.ndarray


class Seen(NamedTuple):
    """What a query sees of one KV head: keys and values ``[n, d]`` and their text positions ``[n]``."""

    keys: Array
    values: Array
    positions: Array


# (layer, position of the query, keys and values [Hk, T, d] that the reference's own forward makes) -> one a KV head
View = Callable[[int, int, Array, Array], list[Seen]]
# (layer, position of the query, its weights [n] of each query head): told after each step, in order
After = Callable[[int, int, list[Array]], None]


@dataclass(frozen=True)
class _Run:
    view: View
    first: int
    after: After | None


_run: contextvars.ContextVar[_Run] = contextvars.ContextVar("stored_reference_run")


def attend(query: Array, seen: Seen, scaling: float, position: int, window: int | None) -> tuple[Array, Array]:
    """One query head ``[d]``: output ``[d]`` and the weights ``[n]``, fp64."""
    logits = seen.keys.astype(np.float64) @ query * scaling
    if window is not None:
        logits = np.where(seen.positions > position - window, logits, -np.inf)
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    return weights @ seen.values.astype(np.float64), weights


def _causal(query: Array, key: Array, value: Array, scaling: float, window: int | None, rows: int) -> Array:
    """The first rows of a text ``[H, rows, d]``, exactly."""
    groups = query.shape[0] // key.shape[0]
    out = np.zeros((query.shape[0], rows, value.shape[2]))
    distance = np.arange(rows)[:, None] - np.arange(rows)[None]
    mask = (distance >= 0) & (distance < (window or rows))
    for h in range(query.shape[0]):
        logits = np.where(mask, query[h, :rows] @ key[h // groups, :rows].T * scaling, -np.inf)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        out[h] = weights / weights.sum(axis=1, keepdims=True) @ value[h // groups, :rows]
    return out


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
    q, k, v = (t[0].numpy().astype(np.float64) for t in (query, key, value))
    groups = q.shape[0] // k.shape[0]
    out = np.zeros(q.shape)
    if run.first:
        out[:, : run.first] = _causal(q, k, v, scaling, sliding_window, run.first)
    for p in range(run.first, q.shape[1]):
        heads = run.view(module.layer_idx, p, k, v)
        weights = []
        for h in range(q.shape[0]):
            out[h, p], own = attend(q[h, p], heads[h // groups], scaling, p, sliding_window)
            weights.append(own)
        if run.after is not None:
            run.after(module.layer_idx, p, weights)
    return torch.from_numpy(out).to(query.dtype).transpose(0, 1)[None].contiguous(), None


AttentionInterface.register("stored_reference", _attention)


@cache
def _model(pair: Models) -> Any:
    model = copy.deepcopy(pair.plain)
    model.set_attn_implementation("stored_reference")
    return model


def logits(pair: Models, ids: Tensor, first: int, view: View, after: After | None = None) -> Tensor:
    """Logits ``[T, vocab]`` of a text; the queries from position ``first`` on look through ``view``."""
    token = _run.set(_Run(view, first, after))
    try:
        with torch.inference_mode():
            return _model(pair)(input_ids=ids[None], use_cache=False).logits[0]
    finally:
        _run.reset(token)


def arrays(seen: list[tuple[Tensor, Tensor]]) -> list[tuple[Array, Array]]:
    """Keys and values ``[Hk, T, d]`` of each layer, as the run under test saw them, fp32."""
    return [(k.float().numpy(), v.float().numpy()) for k, v in seen]
