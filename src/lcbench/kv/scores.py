"""What eviction methods score a prompt's tokens with: attention from its last queries, reduced and pooled.

All scores are fp32 and per query head until `group_reduce` makes them per KV head. A sliding window of the model
counts: a key that a query cannot see gets nothing from it.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lcbench.kv.observe import ColumnSums, LastQueries
from lcbench.kv.record import LayerRecord
from lcbench.kv.weights import weight_sums

Reduction = Literal["mean", "max"]
Pooling = Literal["max", "avg"]


def last_queries(record: LayerRecord, window: int) -> Tensor:
    """The observed queries of the last ``min(window, L)`` prompt tokens, ``[H, min(window, L), d]``.

    Any `LastQueries` at least this long serves. Raises KeyError when none was observed.
    """
    lengths = sorted(w.window for w in record.observed if isinstance(w, LastQueries) and w.window >= window)
    if not lengths:
        raise KeyError(f"no LastQueries({window}) in what was observed")
    queries: Tensor = record.observed[LastQueries(lengths[0])]
    return queries[:, max(0, queries.shape[1] - window) :]


def window_sums(record: LayerRecord, window: int, *, mean: bool = False) -> Tensor:
    """Attention of the last ``min(window, L)`` queries, summed (or averaged) over them, on every key: ``[H, L]``."""
    sums = record.once(
        ("window_sums", window), lambda: weight_sums(last_queries(record, window), record.key, record.rule)
    )
    return sums / min(window, record.length) if mean else sums


def window_scores(record: LayerRecord, window: int, *, mean: bool = False) -> Tensor:
    """The window score of SnapKV (arXiv:2404.14469, section 3): `window_sums` without the window's own keys.

    The softmax runs over everything a query sees, the window's keys included and causal among them; only then is the
    result cut to the keys before the window.

    Returns:
        ``[H, L - w]``, or ``[H, 0]`` for a prompt no longer than the window.
    """
    return window_sums(record, window, mean=mean)[:, : max(0, record.length - window)]


def last_query_weights(record: LayerRecord) -> Tensor:
    """Attention weights of the last prompt token on every key, itself included: ``[H, L]``, rows sum to 1."""
    return window_sums(record, 1)


def column_sums(record: LayerRecord) -> Tensor:
    """Attention that each prompt token received from the whole prompt (observed `ColumnSums`): ``[H, L]``."""
    sums: Tensor = record.observed[ColumnSums()]
    return sums


def group_reduce(scores: Tensor, kv_heads: int, how: Reduction = "mean") -> Tensor:
    """Scores of query heads ``[H, n]`` to scores of the heads that are stored, ``[Hk, n]``, over each group."""
    grouped = scores.view(kv_heads, scores.shape[0] // kv_heads, scores.shape[1])
    return grouped.mean(dim=1) if how == "mean" else grouped.amax(dim=1)


def pool(scores: Tensor, kernel: int, kind: Pooling) -> Tensor:
    """1-D pooling along the tokens, stride 1, same shape ``[h, n]``.

    Beyond the edges are ``kernel // 2`` zeros that the average counts (so the edges weigh less), and nothing that the
    maximum would notice, as in torch. ``kernel`` is odd; 1 changes nothing.
    """
    if kernel % 2 == 0:
        raise ValueError(f"a pooling kernel has a middle; {kernel} is even")
    if kernel == 1 or scores.shape[1] == 0:
        return scores
    if kind == "max":
        return F.max_pool1d(scores[None], kernel, stride=1, padding=kernel // 2)[0]
    return F.avg_pool1d(scores[None], kernel, stride=1, padding=kernel // 2)[0]


def snap_scores(
    record: LayerRecord, window: int, *, stored: int, kernel: int, pooling: Pooling, reduce: Reduction
) -> Tensor:
    """What SnapKV ranks a prompt's tokens by: ``[stored, L]``, `window_scores` reduced to the stored heads and then
    pooled; +inf for the window itself, which always stays. (Reduced first, as KVCache-Factory and AdaKV do for
    grouped queries; the order matters to max pooling only.)
    """
    before = pool(group_reduce(window_scores(record, window), stored, reduce), kernel, pooling)
    return F.pad(before, (0, record.length - before.shape[1]), value=torch.inf)
