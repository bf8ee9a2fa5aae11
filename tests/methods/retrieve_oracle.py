"""What the retrieval methods attend, written query by query in fp64 from unrotated queries, keys and values.

Nothing here imports a store or a score of lcbench: each function is the paper's rule for one layer of a whole text.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from explicit_model import GROUP, Attention, one_query, turned
from harness import HEAD_DIM, HEADS, Models
from torch import Tensor

FAR = 10**9


def kept_away(i: int, positions: list[int], pair: Models) -> list[int]:
    """Positions that a sliding window of the model's own leaves to query i."""
    return [j for j in positions if j <= i and i - j < (pair.window or FAR)]


# --- streamingllm-longctx --------------------------------------------------------------------------------------------


def streaming(pair: Models, n_init: int, n_local: int, variant: str) -> Attention:
    """Window at true distances; first tokens at angles 0, 1, … from one angle, or from the index in the cache."""

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        total, rows = query.shape[1], []
        for i in range(total):
            near = kept_away(i, [j for j in range(i + 1) if i - j < n_local], pair)
            far = kept_away(i, [j for j in range(min(n_init, i + 1)) if i - j >= n_local], pair)
            angle = n_local + n_init - 1
            if variant == "official":
                cached = sorted({*range(min(n_init, i + 1)), *range(max(0, i + 1 - n_local), i + 1)})
                angle = cached.index(i)
            sections = [
                (
                    turned(pair.plain, query[:, i : i + 1], [at])[:, 0],
                    turned(pair.plain, key[:, seen], seen),
                    value[:, seen],
                )
                for at, seen in ((i, near), (angle, far))
            ]
            rows.append(one_query(sections)[0])
        return torch.stack(rows, dim=1)

    return attention


# --- infllm ----------------------------------------------------------------------------------------------------------


def infllm(pair: Models, method: Any, prompt: int) -> Attention:
    """First tokens, blocks chosen run by run, the remainder, and the window."""
    n_init, n_local, topk = method.sizes(prompt)
    size, run = method.block_size, method.exc_block_size

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        total = query.shape[1]
        edges = [*range(0, prompt - 1, run), *range(prompt - 1, total + 1)]
        far_angle = turned(pair.plain, query, [n_local - 1] * total)
        near_query, near_key = (turned(pair.plain, x, range(total)) for x in (query, key))
        got = torch.zeros(HEADS, total, dtype=torch.float64)
        first: list[int] = []
        blocks: list[tuple[list[int], Tensor]] = []
        rest: list[int] = []  # tokens in neither, the window's included
        rows = []
        for start, stop in pairwise(edges):
            asked = far_angle[:, start:stop].mean(dim=1)
            worth = [float((asked * vector).sum()) for _, vector in blocks]
            ranked = sorted(range(len(blocks)), key=lambda b: (-worth[b], b))
            looked_up = [j for b in sorted(ranked[:topk]) for j in blocks[b][0]]
            rest += range(start, stop)
            mass = torch.zeros_like(got)
            for i in range(start, stop):
                near = kept_away(i, list(range(max(0, i - n_local + 1), i + 1)), pair)
                bound = i if method.remainder == "masked" else stop - 1
                outside = [j for j in rest if bound - j >= n_local]
                far = kept_away(i, [*first, *looked_up, *outside], pair)
                out, weights = one_query(
                    [
                        (near_query[:, i], near_key[:, near], value[:, near]),
                        (far_angle[:, i], key[:, far], value[:, far]),
                    ]
                )
                rows.append(out)
                for head in range(HEADS):
                    mass[head, near] += weights[head][0]
            got += mass
            if len(first) < n_init and len(rest) > n_local:
                count = min(n_init - len(first), len(rest) - n_local)
                first, rest = first + rest[:count], rest[count:]
            while len(rest) - size >= n_local:
                members, rest = rest[:size], rest[size:]
                vector = torch.zeros(HEADS, HEAD_DIM, dtype=torch.float64)
                for head in range(HEADS):
                    best = sorted(members, key=lambda j: (-float(got[head, j]), j))[: method.repr_topk]
                    vector[head] = key[head // GROUP, best].mean(dim=0)
                blocks.append((members, vector))
        return torch.stack(rows, dim=1)

    return attention


# --- longcache -------------------------------------------------------------------------------------------------------


def longcache_runs(prompt: int, total: int, scope: int, chunk: int) -> list[tuple[int, int]]:
    """Dense prompt, runs of the rest of it, then single tokens."""
    edges = [0, *range(min(scope, prompt), prompt, chunk), *range(prompt, total + 1)]
    return list(pairwise(sorted(set(edges))))


def longcache_seen(
    method: Any, query: Tensor, key: Tensor, run: tuple[int, int], prompt: int
) -> tuple[list[int], list[int]]:
    """Positions a run sees and those it found, from unrotated queries ``[H, T, d]`` and keys ``[Hk, T, d]``."""
    start, stop = run
    first, newest = method.global_size, method.local_size
    if stop <= min(method.scope, prompt) or stop <= first + newest:
        return list(range(stop)), []
    if method.mid_size == 0:
        return [*range(first), *range(stop - newest, stop)], []
    local = newest - (method.align - (stop - first - newest) % method.align)
    middle = list(range(first, stop - local))
    assert len(middle) % method.align == 0
    votes = dict.fromkeys(middle, 0)
    for head in range(HEADS):
        products = query[head, start:stop] @ key[head // GROUP, middle].T
        for row in products.tolist():
            for best in sorted(range(len(middle)), key=lambda m: (-row[m], m))[: method.mid_size]:
                votes[middle[best]] += 1
    found = sorted((j for j in middle if votes[j]), key=lambda j: (-votes[j], j))[: method.recall_clip]
    half = method.span_size // 2
    spans = {j for at in found for j in range(at - half, at + half)} & set(middle)
    return [*range(first), *sorted(spans), *range(stop - local, stop)], found


def longcache(pair: Models, method: Any, prompt: int) -> Attention:
    """First tokens, spans around what was found, and the newest, at new positions."""

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = []
        for run in longcache_runs(prompt, query.shape[1], method.scope, method.chunk_size):
            seen, _ = longcache_seen(method, query, key, run, prompt)
            angle = {j: j if method.original else n for n, j in enumerate(seen)}
            for i in range(*run):
                mine = kept_away(i, seen, pair)
                asked = turned(pair.plain, query[:, i : i + 1], [angle[i]])[:, 0]
                keys = turned(pair.plain, key[:, mine], [angle[j] for j in mine])
                rows.append(one_query([(asked, keys, value[:, mine])])[0])
        return torch.stack(rows, dim=1)

    return attention
