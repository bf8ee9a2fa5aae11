"""Attention over what a layer holds: dense and causal for prompts, in parts for decoding.

Shapes are those of one sequence: query ``[H, q, d]``, keys and values ``[Hk, n, d]`` with H a multiple of Hk. Grouped
queries never copy keys: the g = H / Hk query heads of a KV head are rows of one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lcbench.kv.sections import Section, over_sections
from lcbench.models import flash
from lcbench.models.rule import AttentionRule

_BLOCK = 512  # query rows per step where logits or masks are materialised
_ELEMENTS = 2**26  # most logits that exist at once: 256 MiB


def causal(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """Dense causal attention of the last q positions on all n keys, in position order.

    Args:
        query: ``[H, q, d]``; row i sits at position n - q + i. key, value: ``[Hk, n, d]``.
        rule: of the layer, its sliding window included.

    Returns:
        ``[H, q, d]`` in the query's dtype.
    """
    q, n = query.shape[1], key.shape[1]
    if rule.distances is not None:
        return _near_and_far(query, key, value, rule)
    if rule.plain and (rule.window is None or rule.window >= n):
        if q == n:
            return _sdpa(query, key, value, rule.scaling, is_causal=q > 1)
        if q == 1:
            return _sdpa(query, key, value, rule.scaling, is_causal=False)
    return _blockwise(query, key, value, rule)


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, *, is_causal: bool, mask: Tensor | None = None
) -> Tensor:
    if is_causal and flash.wanted():
        return flash.causal(query, key, value, scaling)
    heads, q, _ = query.shape
    groups = heads // key.shape[0]
    if mask is not None and groups > 1:
        # The heads of a group as rows of one: torch's GPU kernels take a mask or grouped heads, not both.
        query, mask = query.reshape(key.shape[0], groups * q, -1), mask.repeat(groups, 1)
        return _sdpa(query, key, value, scaling, is_causal=False, mask=mask).reshape(heads, q, -1)
    out = F.scaled_dot_product_attention(
        query[None],
        key[None],
        value[None],
        attn_mask=mask,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=query.shape[0] != key.shape[0],
    )
    return out[0]


def _blockwise(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """Blocks of query rows, each against exactly the keys it can see: no q x n mask, no wasted products."""
    (heads, q, _), n, window = query.shape, key.shape[1], rule.window
    out = torch.empty(*query.shape[:2], value.shape[-1], dtype=query.dtype, device=query.device)
    step = _BLOCK if rule.plain else max(1, min(_BLOCK, _ELEMENTS // (heads * n)))
    for start in range(0, q, step):
        stop = min(start + step, q)
        first, last = n - q + start, n - q + stop  # positions of the block's rows
        low = 0 if window is None else max(0, first - window + 1)
        rows = torch.arange(first, last, device=query.device)[:, None]
        cols = torch.arange(low, last, device=query.device)[None]
        mask = cols <= rows
        if window is not None:
            mask &= cols > rows - window
        block = query[:, start:stop]
        seen_keys, seen_values = key[:, low:last], value[:, low:last]
        if rule.plain:
            out[:, start:stop] = _sdpa(block, seen_keys, seen_values, rule.scaling, is_causal=False, mask=mask)
        else:
            out[:, start:stop], _ = _in_parts(block, [seen_keys], [seen_values], rule, ~mask[None])
    return out


def _near_and_far(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """As `causal`, with far keys at other distances (`kv.distances`). Blocks of query rows, each against the keys that
    are near to one of them, and those that are far and seen."""
    (q, n), distances, window = (query.shape[1], key.shape[1]), rule.distances, rule.window
    plain = replace(rule, distances=None)
    places = torch.arange(n, device=query.device)
    reach = distances.far_stop(n)
    far_keys = distances.far_key(key[:, :reach], places[:reach])
    outputs = []
    for start in range(0, q, _BLOCK):
        first, last = n - q + start, n - q + min(start + _BLOCK, q)
        seen_from = 0 if window is None else max(0, first - window + 1)
        rows, block = places[first:last], query[:, start : start + _BLOCK]
        near, far = slice(max(seen_from, first - distances.near + 1), last), slice(seen_from, distances.far_stop(last))
        away = distances.is_far(rows, places[near])
        hidden = away | (places[near] > rows[:, None])
        if window is not None:
            hidden |= rows[:, None] - places[near] >= window
        sections = [Section(block, key[:, near], value[:, near], hidden)]
        if far.start < far.stop:
            hidden = ~distances.is_far(rows, places[far])
            if window is not None:
                hidden |= rows[:, None] - places[far] >= window
            sections.append(Section(distances.far_query(block, rows), far_keys[:, far], value[:, far], hidden))
        outputs.append(over_sections(sections, plain)[0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


class Stored(Protocol):
    """Keys or values kept in another form (quantized, low rank) that can be multiplied as they are."""

    @property
    def shape(self) -> Sequence[int]:
        """Logical shape of the matrix: keys ``[Hk, d, n]`` (one column a token), values ``[Hk, n, d]``."""

    def product(self, left: Tensor) -> Tensor:
        """``left @ self``, batched over KV heads, fp32."""

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The matrix itself."""


def over_parts(
    query: Tensor,
    keys: Sequence[Tensor | Stored],
    values: Sequence[Tensor | Stored],
    rule: AttentionRule,
    *,
    hidden: Tensor | None = None,
    positions: Callable[[], Tensor] | None = None,
    seen: int = 0,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention over keys and values that lie in several pieces, without joining them.

    Used while decoding: what a method compressed, its exact residual and the new tokens are separate tensors. The
    last q entries are the new tokens themselves, in order; among them attention is causal. Long queries are taken in
    blocks, so that no more than `_ELEMENTS` logits exist at once.

    Args:
        query: ``[H, q, d]``. keys: pieces ``[Hk, n_i, d]``; values: pieces ``[Hk, m_j, d]`` with the same total n;
            the two may be cut at different places (KIVI's residuals differ). A piece may be `Stored`.
        rule: of the layer; its window is not looked at, since only the store knows where its entries come from.
        hidden: bool ``[Hk or 1, q or 1, n]``, True where a query must not look (sliding windows, ragged heads); or
            ``[H, q or 1, n]`` where the query heads of a group look at different keys.
        positions: gives the entries' text positions ``[n]`` or ``[Hk, n]``; asked only where the layer sees far keys at
            other distances (`rule.distances`). seen: tokens gone through, the q newest included.
        return_weights: also return the softmax weights.

    Returns:
        Output ``[H, q, d]`` in the query's dtype, and fp32 weights ``[H, q, n]`` or None.
    """
    heads, q, _ = query.shape
    n = sum(v.shape[1] for v in values)
    step = max(1, _ELEMENTS // (heads * n))
    outputs, rows = [], []
    for start in range(0, q, step):
        stop = min(start + step, q)
        unseen = hidden if hidden is None or hidden.shape[1] == 1 else hidden[:, start:stop]
        if q > 1:
            newest = torch.arange(n - q + start, n - q + stop, device=query.device)
            future = (torch.arange(n, device=query.device)[None] > newest[:, None])[None]
            unseen = future if unseen is None else future | unseen
        places = None
        if rule.distances is not None:
            assert positions is not None, "this store does not say where its keys stand"
            places = torch.arange(seen - q + start, seen - q + stop, device=query.device), positions().to(query.device)
        out, weights = _in_parts(query[:, start:stop], keys, values, rule, unseen, places)
        outputs.append(out)
        if return_weights:
            rows.append(weights)
    if len(outputs) == 1:
        return outputs[0], rows[0] if return_weights else None
    return torch.cat(outputs, dim=1), torch.cat(rows, dim=1) if return_weights else None


def _with_far(
    logits: Tensor, query: Tensor, keys: Sequence[Tensor | Stored], rule: AttentionRule, rows: Tensor, cols: Tensor
) -> tuple[Tensor, Tensor]:
    """Which keys are far, bool ``[q, n]`` or ``[Hk, q, n]``, and products ``[Hk, g q, n]`` in which those with far
    keys are at their other distances."""
    kv_heads, q, n = logits.shape[0], query.shape[1], logits.shape[-1]
    far = rule.distances.is_far(rows, cols)
    if not far.any():
        return far, logits
    exact = [k if isinstance(k, Tensor) else k.dequantize(query.dtype).transpose(1, 2) for k in keys]
    key = rule.distances.far_key(torch.cat(exact, dim=1), cols)
    grouped = rule.distances.far_query(query, rows).reshape(kv_heads, -1, query.shape[2])
    away = torch.matmul(grouped, key.transpose(1, 2)).float().view(kv_heads, -1, q, n)
    mask = far[:, None] if far.ndim == 3 else far
    return far, torch.where(mask, away, logits.view(kv_heads, -1, q, n)).view(kv_heads, -1, n)


def _in_parts(
    query: Tensor,
    keys: Sequence[Tensor | Stored],
    values: Sequence[Tensor | Stored],
    rule: AttentionRule,
    hidden: Tensor | None,
    places: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Output ``[H, q, d]`` and fp32 weights ``[H, q, n]``; nothing is hidden but what `hidden` says.

    Args:
        places: text positions of the queries ``[q]`` and of the entries, for a rule with other distances.
    """
    heads, q, d = query.shape
    kv_heads = keys[0].shape[0]
    shrink = 2.0 ** math.floor(math.log2(rule.scaling))
    # A power of two rounds nothing, and applied before the product it keeps fp16 logits from overflowing.
    grouped = query.reshape(kv_heads, heads // kv_heads * q, d) * shrink
    pieces = [
        (torch.matmul(grouped, k.transpose(1, 2)) if isinstance(k, Tensor) else k.product(grouped)).float()
        for k in keys
        if (k.shape[1] if isinstance(k, Tensor) else k.shape[2])
    ]
    logits = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
    if places is not None:
        far, logits = _with_far(logits, query * shrink, keys, rule, *places)
        unseen = rule.distances.unseen(far, places[1])
        if unseen is not None:
            unseen = unseen if unseen.ndim == 3 else unseen[None]
            hidden = unseen if hidden is None else hidden | unseen
    logits = rule.capped(logits * (rule.scaling / shrink))
    n = logits.shape[-1]
    if hidden is not None:
        shaped = logits.view(kv_heads, heads // kv_heads, q, n)
        per_head = hidden.shape[0] == heads
        mask = hidden.view(kv_heads, -1, *hidden.shape[1:]) if per_head else hidden[:, None]
        shaped.masked_fill_(mask, torch.finfo(torch.float32).min)
    full = rule.weights(logits.view(heads, q, n))
    weights = full.reshape(kv_heads, -1, n)
    cast = weights.to(query.dtype)
    out: Tensor | None = None
    at = 0
    for v in values:
        m = v.shape[1]
        if m:
            part = (
                torch.matmul(cast[..., at : at + m], v)
                if isinstance(v, Tensor)
                else v.product(weights[..., at : at + m])
            )
            out = part if out is None else out + part
            at += m
    assert out is not None
    assert at == n
    return out.view(heads, q, -1).to(query.dtype), full
