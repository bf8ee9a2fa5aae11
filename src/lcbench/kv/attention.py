"""Attention over what a layer holds: dense and causal for prompts, in parts for decoding.

Shapes are those of one sequence: query ``[H, q, d]``, keys and values ``[Hk, n, d]`` with H a multiple of Hk. Grouped
queries never copy keys: the g = H / Hk query heads of a KV head are rows of one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lcbench.models import flash

_BLOCK = 512  # query rows per step where logits or masks are materialised


def causal(query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None = None) -> Tensor:
    """Dense causal attention of the last q positions on all n keys, in position order.

    Args:
        query: ``[H, q, d]``; row i sits at position n - q + i. key, value: ``[Hk, n, d]``.
        scaling: factor on the logits.
        window: a query sees only the ``window`` newest positions up to its own, where set.

    Returns:
        ``[H, q, d]`` in the query's dtype.
    """
    q, n = query.shape[1], key.shape[1]
    if window is not None and window < n:
        return _blockwise(query, key, value, scaling, window)
    if q == n:
        return _sdpa(query, key, value, scaling, is_causal=q > 1)
    if q == 1:
        return _sdpa(query, key, value, scaling, is_causal=False)
    return _blockwise(query, key, value, scaling, None)


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, *, is_causal: bool, mask: Tensor | None = None
) -> Tensor:
    if is_causal and flash.wanted():
        return flash.causal(query, key, value, scaling)
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


def _blockwise(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None) -> Tensor:
    """Blocks of query rows, each against exactly the keys it can see: no q x n mask, no wasted products."""
    q, n = query.shape[1], key.shape[1]
    out = torch.empty(*query.shape[:2], value.shape[-1], dtype=query.dtype, device=query.device)
    for start in range(0, q, _BLOCK):
        stop = min(start + _BLOCK, q)
        first, last = n - q + start, n - q + stop  # positions of the block's rows
        low = 0 if window is None else max(0, first - window + 1)
        rows = torch.arange(first, last, device=query.device)[:, None]
        cols = torch.arange(low, last, device=query.device)[None]
        mask = cols <= rows
        if window is not None:
            mask &= cols > rows - window
        out[:, start:stop] = _sdpa(
            query[:, start:stop], key[:, low:last], value[:, low:last], scaling, is_causal=False, mask=mask
        )
    return out


class Stored(Protocol):
    """Keys or values kept in another form (quantized, low rank) that can be multiplied as they are."""

    @property
    def shape(self) -> Sequence[int]:
        """Logical shape of the matrix: keys ``[Hk, d, n]`` (one column a token), values ``[Hk, n, d]``."""

    def product(self, left: Tensor) -> Tensor:
        """``left @ self``, batched over KV heads, fp32."""


def over_parts(
    query: Tensor,
    keys: Sequence[Tensor | Stored],
    values: Sequence[Tensor | Stored],
    *,
    scaling: float,
    hidden: Tensor | None = None,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention over keys and values that lie in several pieces, without joining them.

    Used while decoding: what a method compressed, its exact residual and the new tokens are separate tensors. The
    last q entries are the new tokens themselves, in order; among them attention is causal.

    Args:
        query: ``[H, q, d]``. keys: pieces ``[Hk, n_i, d]``; values: pieces ``[Hk, m_j, d]`` with the same total n;
            the two may be cut at different places (KIVI's residuals differ). A piece may be `Stored`.
        hidden: bool ``[Hk or 1, q or 1, n]``, True where a query must not look (sliding windows, ragged heads); or
            ``[H, q or 1, n]`` where the query heads of a group look at different keys.
        return_weights: also return the softmax weights.

    Returns:
        Output ``[H, q, d]`` in the query's dtype, and fp32 weights ``[H, q, n]`` or None.
    """
    heads, q, d = query.shape
    kv_heads = keys[0].shape[0]
    shrink = 2.0 ** math.floor(math.log2(scaling))
    # A power of two rounds nothing, and applied before the product it keeps fp16 logits from overflowing.
    grouped = query.reshape(kv_heads, heads // kv_heads * q, d) * shrink
    pieces = [
        (torch.matmul(grouped, k.transpose(1, 2)) if isinstance(k, Tensor) else k.product(grouped)).float()
        for k in keys
        if (k.shape[1] if isinstance(k, Tensor) else k.shape[2])
    ]
    logits = (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)) * (scaling / shrink)
    n = logits.shape[-1]
    shaped = logits.view(kv_heads, heads // kv_heads, q, n)
    lowest = torch.finfo(torch.float32).min
    if q > 1:
        age = torch.arange(n - q, n, device=query.device)
        future = torch.arange(n, device=query.device)[None] > age[:, None]
        shaped.masked_fill_(future, lowest)
    if hidden is not None:
        per_head = hidden.shape[0] == heads
        shaped.masked_fill_(hidden.view(kv_heads, -1, *hidden.shape[1:]) if per_head else hidden[:, None], lowest)
    weights = torch.softmax(logits, dim=-1)
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
    full = weights.view(heads, q, n) if return_weights else None
    return out.view(heads, q, -1).to(query.dtype), full
