"""Softmax attention weights of some queries on a prompt's keys, block by block: what scores are made of.

Everything is computed in fp32 whatever the model's dtype, and never more than `ELEMENTS` weights at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lcbench.models.linear import product
from lcbench.models.rule import AttentionRule

ELEMENTS = 2**24  # weights of a block: 64 MiB
_ROWS = 256  # most query rows of a block: a block of a few thousand keys stays in a processor's cache


class Block(NamedTuple):
    """Weights of a few queries of the query heads that share a KV head.

    Attributes:
        heads: the query heads. rows: which of the queries, 0 the first. cols: the keys that they can see.
        weights: ``[g, rows, cols]`` fp32; zero where a row does not see a key.
    """

    heads: slice
    rows: slice
    cols: slice
    weights: Tensor


def weight_blocks(query: Tensor, key: Tensor, rule: AttentionRule) -> Iterator[Block]:
    """Causal attention weights of the last q positions on all n keys.

    Args:
        query: ``[H, q, d]``; row i sits at position n - q + i. key: ``[Hk, n, d]``; both after RoPE, any dtype.
        rule: of the layer, its sliding window included.

    Yields:
        KV head by KV head, blocks of rows in ascending order that together cover all q rows once.
    """
    (heads, q, _), (kv_heads, n, _) = query.shape, key.shape
    g, window = heads // kv_heads, rule.window
    step = max(1, min(_ROWS, ELEMENTS // (g * n)))
    for kv in range(kv_heads):
        group = slice(kv * g, kv * g + g)
        keys = key[kv].float().contiguous()
        for start in range(0, q, step):
            stop = min(start + step, q)
            first, last = n - q + start, n - q + stop  # positions of the block's rows
            low = 0 if window is None else max(0, first - window + 1)
            asked = query[group, start:stop].float()
            logits = product(asked * rule.scaling, keys[low:last])
            row = torch.arange(first, last, device=key.device)[:, None]
            if rule.distances is not None:
                logits = _with_far(logits, asked, key[kv, low:last], rule, row[:, 0], low)
            logits = rule.capped(logits)
            # Only among the block's own positions are there keys that come after a query.
            logits[..., first - low :].masked_fill_(row.t() > row, -torch.inf)
            if window is not None:
                col = torch.arange(low, last, device=key.device)[None]
                logits.masked_fill_(col <= row - window, -torch.inf)
            weights = rule.of_heads(group).weights(logits)
            yield Block(group, slice(start, stop), slice(low, last), weights)


def _with_far(logits: Tensor, query: Tensor, key: Tensor, rule: AttentionRule, rows: Tensor, low: int) -> Tensor:
    """Scaled products ``[g, rows, cols]`` in which far keys are at their other distances, or not seen.

    Args:
        query: ``[g, rows, d]`` at the positions ``rows``, fp32. key: ``[cols, d]``, the first at position ``low``.
    """
    cols = torch.arange(low, low + key.shape[0], device=key.device)
    far = rule.distances.is_far(rows, cols)
    turned = rule.distances.far_key(key.float(), cols).t()
    logits = torch.where(far, torch.matmul(rule.distances.far_query(query, rows) * rule.scaling, turned), logits)
    unseen = rule.distances.unseen(far, cols)
    return logits if unseen is None else logits.masked_fill(unseen, -torch.inf)


def weight_sums(query: Tensor, key: Tensor, rule: AttentionRule) -> Tensor:
    """Attention that each key gets from the last q positions together: fp32 ``[H, n]``; arguments as above."""
    sums = torch.zeros(query.shape[0], key.shape[1], device=key.device)
    for heads, _, cols, weights in weight_blocks(query, key, rule):
        sums[heads, cols] += weights.sum(dim=1)
    return sums
