"""Attention with far keys at other distances, written from the papers: an explicit position for every query and key.

In fp64, one query at a time, on queries and keys that no rotation has touched (`explicit_model`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import explicit_model
import torch
from explicit_model import Attention
from harness import HEADS, KV_HEADS, SCALING, Models
from torch import Tensor

# (i, j) -> the distance at which query i sees key j, or None where it does not
Distance = Callable[[int, int], int | None]


def selfextend(group: int, neighbours: int) -> Distance:
    def distance(i: int, j: int) -> int | None:
        if j > i:
            return None
        return i - j if i - j < neighbours else i // group + (neighbours - neighbours // group) - j // group

    return distance


def lm_infinite(n_local: int, n_global: int) -> Distance:
    def distance(i: int, j: int) -> int | None:
        if j > i:
            return None
        return i - j if i - j < n_local else (n_local if j < n_global else None)

    return distance


def matrix(distance: Distance, total: int) -> tuple[Tensor, Tensor]:
    """Distances ``[T, T]``, and where a key is seen, bool ``[T, T]``."""
    table = [[distance(i, j) for j in range(total)] for i in range(total)]
    seen = torch.tensor([[d is not None for d in row] for row in table])
    return torch.tensor([[d or 0 for d in row] for row in table]), seen


def attention(pair: Models, distance: Distance, visible: Sequence[Tensor] | None = None) -> Attention:
    """The logit of query i and key j is that of a query turned by their distance and a key that is not turned.

    Args:
        visible: for each layer bool ``[H, T, T]`` of the keys that are held; None for all.
    """

    def out(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        total = query.shape[1]
        distances, seen = matrix(distance, total)
        if pair.window is not None:
            seen = seen & (torch.arange(total)[:, None] - torch.arange(total)[None] < pair.window)
        still = explicit_model.turned(pair.plain, key, [0] * total)
        rows = []
        for i in range(total):
            asked = query[:, i, None].expand(-1, total, -1)  # a turn of its own for each key
            turned = explicit_model.turned(pair.plain, asked, distances[i].tolist())
            logits = (turned.view(KV_HEADS, -1, total, turned.shape[-1]) * still[:, None]).sum(-1).flatten(0, 1)
            mask = seen[i].expand(HEADS, -1) if visible is None else seen[i] & visible[layer][:, i]
            weights = torch.softmax((logits * SCALING).masked_fill(~mask, -torch.inf), dim=-1)
            rows.append((weights.view(KV_HEADS, -1, total) @ value).flatten(0, 1))
        return torch.stack(rows, dim=1)

    return out


def logits(pair: Models, ids: Tensor, distance: Distance, visible: Sequence[Tensor] | None = None) -> Tensor:
    """Logits ``[T, vocab]`` of the whole text."""
    return explicit_model.logits(pair.plain, ids, attention(pair, distance, visible))
