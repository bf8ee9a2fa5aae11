"""What minference and em-llm attend, written query by query in fp64 from unrotated queries, keys and values.

Nothing here imports a store or a score of lcbench.
"""

from __future__ import annotations

from typing import Any

import torch
from explicit_model import GROUP, Attention, one_query, turned
from harness import HEADS, SCALING, Models
from torch import Tensor


def _ranked(scores: dict[int, float], count: int) -> set[int]:
    return set(sorted(scores, key=lambda place: (-scores[place], place))[:count])


def _softmax(query: Tensor, key: Tensor, position: int, window: int | None) -> dict[int, float]:
    """Attention of a query ``[d]`` at a position over the keys ``[T, d]`` that it sees, by position."""
    low = 0 if window is None else max(0, position - window + 1)
    shares = torch.softmax(key[low : position + 1] @ query * SCALING, dim=0)
    return {low + i: float(share) for i, share in enumerate(shares)}


def _lines(method: Any, query: Tensor, key: Tensor, window: int | None, sizes: tuple[int, int]) -> Any:
    """The columns and distances of a vertical-slash head, from the queries and keys ``[L, d]`` of the prompt."""
    total = len(query)
    down, along = dict.fromkeys(range(total), 0.0), dict.fromkeys(range(total), 0.0)
    for i in range(max(0, total - method.last_q), total):
        for j, share in _softmax(query[i], key, i, window).items():
            down[j] += share
            along[i - j] += share
    for place in range(total):
        if place < method.first:
            down[place] = float("inf")
        if place < method.recent:
            along[place] = float("inf")
    columns, distances = _ranked(down, sizes[0]), _ranked(along, sizes[1])
    return lambda i, j: j in columns or i - j in distances


def _blocks(method: Any, query: Tensor, key: Tensor, window: int | None, count: int) -> Any:
    size, total = method.block_size, len(query)
    spans = [range(a, min(a + size, total)) for a in range(0, total, size)]
    seen: set[tuple[int, int]] = set()
    for row, asking in enumerate(spans):
        mean = query[list(asking)].mean(dim=0)
        worth = {col: float(mean @ key[list(spans[col])].mean(dim=0)) for col in range(row + 1)}
        seen |= {(row, col) for col in _ranked(worth, count)}
        if window is not None:
            seen.add((row, row))
    return lambda i, j: (i // size, j // size) in seen


def minference(pair: Models, method: Any, prompt: int, patterns: list[list[tuple[str, int, int]]]) -> Attention:
    """A prompt seen through each head's pattern, then dense decoding."""

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        total = query.shape[1]
        asked, held = (turned(pair.plain, x, range(total)) for x in (query, key))
        looks = []
        for head, (kind, first, second) in enumerate(patterns[layer]):
            mine, keys = asked[head, :prompt], held[head // GROUP, :prompt]
            if kind == "a-shape":
                looks.append(lambda i, j, a=first, b=second: j < a or i - j < b)
            elif kind == "vertical-slash":
                looks.append(_lines(method, mine, keys, pair.window, (first, second)))
            else:
                looks.append(_blocks(method, mine, keys, pair.window, first))
        rows = []
        for i in range(total):
            low = 0 if pair.window is None else max(0, i - pair.window + 1)
            seen = list(range(low, i + 1))
            visible = torch.tensor([[i >= prompt or bool(looks[h](i, j)) for j in seen] for h in range(HEADS)])
            rows.append(one_query([(asked[:, i], held[:, seen], value[:, seen])], visible)[0])
        return torch.stack(rows, dim=1)

    return attention
