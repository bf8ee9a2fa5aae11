"""What the retrieval methods attend, written query by query in fp64 from unrotated queries, keys and values.

Nothing here imports a store or a score of lcbench: each function is the paper's rule for one layer of a whole text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from explicit_model import GROUP, Attention, dense, logits, one_query, turned
from harness import HEAD_DIM, HEADS, KV_HEADS, SCALING, Models
from torch import Tensor

FAR = 10**9


def kept_away(i: int, positions: list[int], pair: Models) -> list[int]:
    """Positions that a sliding window of the model's own leaves to query i."""
    return [j for j in positions if j <= i and i - j < (pair.window or FAR)]


# --- streamingllm-longctx --------------------------------------------------------------------------------------------


def streaming(pair: Models, n_init: int, n_local: int, variant: str) -> Attention:
    """What the cache holds for each query: with the authors' variant at the indices inside it, else window and first
    tokens apart, the latter asked from one angle."""

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        total, rows = query.shape[1], []
        for i in range(total):
            cached = sorted({*range(min(n_init, i + 1)), *range(max(0, i + 1 - n_local), i + 1)})
            index = {j: n for n, j in enumerate(cached)}
            seen = kept_away(i, cached, pair)
            parts = [(index[i], seen, [index[j] for j in seen])]
            if variant == "infllm":
                near, far = ([j for j in seen if (i - j < n_local) == inside] for inside in (True, False))
                parts = [(i, near, near), (n_local + n_init - 1, far, far)]
            sections = [
                (
                    turned(pair.plain, query[:, i : i + 1], [at])[:, 0],
                    turned(pair.plain, key[:, held], angles),
                    value[:, held],
                )
                for at, held, angles in parts
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
                mass[:, near] += weights[0]
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


# --- what leaves the prompt alone: dense up to its end, then one token after another ---------------------------------

# (layer, position, query [H, d], keys [Hk, T, d], values) of a later token, rotated -> what it sees, and of which keys
Step = Callable[[int, int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def after_prompt(pair: Models, prompt: int, step: Step) -> Attention:
    """Dense attention of the prompt; a later token attends the keys and values that ``step`` gives, where visible
    ``[H, n]``."""

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        total, rows = query.shape[1], []
        asked, keys = (turned(pair.plain, x, range(total)) for x in (query, key))
        for i in range(total):
            if i < prompt:
                mine = kept_away(i, list(range(i + 1)), pair)
                rows.append(one_query([(asked[:, i], keys[:, mine], value[:, mine])])[0])
            else:
                seen, held, visible = step(layer, i, asked[:, : i + 1], keys[:, : i + 1], value[:, : i + 1])
                rows.append(one_query([(asked[:, i], seen, held)], visible)[0])
        return torch.stack(rows, dim=1)

    return attention


# --- quest -----------------------------------------------------------------------------------------------------------


def quest_bounds(query: Tensor, keys: Tensor, page: int) -> list[list[float]]:
    """Upper bound of each page ``[H][pages]`` for a query ``[H, d]``, channel by channel."""
    bounds: list[list[float]] = []
    for kv, mine in enumerate(keys):
        pages = [mine[at : at + page] for at in range(0, len(mine), page)]
        least = torch.stack([held.min(dim=0).values for held in pages])
        greatest = torch.stack([held.max(dim=0).values for held in pages])
        for asked in query[kv * GROUP : (kv + 1) * GROUP]:
            bounds.append(torch.maximum(asked * least, asked * greatest).sum(dim=1).tolist())
    return bounds


def quest(pair: Models, method: Any, prompt: int) -> Attention:
    """Pages with the highest bounds, from the third layer on."""
    page = method.page_size
    budget = method.budget.tokens or math.floor(method.budget.ratio * prompt)

    def step(layer: int, i: int, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        allowed = torch.zeros(i + 1, dtype=torch.bool)
        inside = set(kept_away(i, list(range(i + 1)), pair))
        allowed[sorted(inside)] = True
        visible = allowed.repeat(HEADS, 1)
        if layer < method.dense_layers or i + 1 <= budget:
            return keys, values, visible
        bounds = quest_bounds(query[:, i], keys, page)
        for head in range(HEADS):
            group = range(head // GROUP * GROUP, head // GROUP * GROUP + GROUP)
            worth = bounds[head]
            if method.granularity == "kv":
                worth = [max(bounds[h][p] for h in group) for p in range(len(worth))]
            pages = [p for p in range(len(worth)) if min((p + 1) * page - 1, i) in inside]
            best = sorted(pages, key=lambda p: (-worth[p], p))[: max(3, budget // page)]
            read = torch.zeros(i + 1, dtype=torch.bool)
            for p in best:
                read[p * page : (p + 1) * page] = True
            visible[head] &= read
        return keys, values, visible

    return after_prompt(pair, prompt, step)


# --- squeezed-attention ----------------------------------------------------------------------------------------------


def clustered(points: Tensor, sets: int, method: Any, head: int, heads: int) -> list[int]:
    """K-means of vectors ``[n, d]``: seeds drawn by squared distance, then Lloyd; the set of each."""
    generator = torch.Generator().manual_seed(method.seed)
    draws = torch.rand(heads, sets, generator=generator, dtype=torch.float64)[head].tolist()
    points = points / points.norm(dim=1, keepdim=True)
    count = len(points)
    chosen = [int(draws[0] * count)]
    for draw in draws[1:]:
        away = [min(float((point - points[c]).square().sum()) for c in chosen) for point in points]
        target, mass = draw * sum(away), 0.0
        for at, weight in enumerate(away):
            mass += weight
            if mass > target:
                chosen.append(at)
                break
        else:
            chosen.append(count - 1)
    centres = [points[c] for c in chosen]
    least = 1e-4 * float(points.var(dim=0, unbiased=False).mean())
    labels = nearest(points, centres)
    for _ in range(method.iterations):
        members = [[i for i in range(count) if labels[i] == c] for c in range(sets)]
        moved = [points[m].mean(dim=0) if m else centre for m, centre in zip(members, centres, strict=True)]
        shift = sum(float((a - b).square().sum()) for a, b in zip(moved, centres, strict=True))
        centres, before = moved, labels
        labels = nearest(points, centres)
        if shift <= least or labels == before:
            break
    return labels


def nearest(points: Tensor, centres: list[Tensor]) -> list[int]:
    return [min(range(len(centres)), key=lambda c: (float((point - centres[c]).square().sum()), c)) for point in points]


def centroids(keys: Tensor, labels: list[int], sets: int) -> Tensor:
    """Mean of the keys ``[n, d]`` of each set; zero for an empty one."""
    means = torch.zeros(sets, keys.shape[1], dtype=torch.float64)
    for c in range(sets):
        members = [i for i, label in enumerate(labels) if label == c]
        if members:
            means[c] = keys[members].mean(dim=0)
    return means


@dataclass
class Sets:
    """Sets of the keys of one KV head on one level."""

    centres: Tensor
    of_keys: list[int]

    def scores(self, query: Tensor, alive: set[int] | None = None) -> list[float]:
        """Score of each set that is left, for a query ``[d]``; 0 for the others."""
        sizes = torch.tensor([self.of_keys.count(c) for c in range(len(self.centres))]).double()
        if alive is not None:
            sizes *= torch.tensor([c in alive for c in range(len(sizes))])
        grown = torch.exp(self.centres @ query * SCALING) * (sizes > 0)
        return (grown / (sizes @ grown) if alive is None or alive else grown).tolist()


def squeezed_levels(method: Any, keys: Tensor, count: int) -> list[list[Sets]]:
    """Levels of each KV head, fine first, from keys ``[Hk, T, d]``."""
    result = []
    for head in range(KV_HEADS):
        mine = keys[head, :count].double()
        sets = max(1, math.floor(method.clusters * count))
        fine = Sets(torch.empty(0), clustered(mine, sets, method, head, KV_HEADS))
        fine.centres = centroids(mine, fine.of_keys, sets)
        levels = [fine]
        if method.coarse:
            above = max(1, min(sets, math.floor(method.coarse * count)))
            parents = clustered(fine.centres, above, method, head, KV_HEADS)
            levels.append(Sets(centroids(fine.centres, parents, above), [parents[c] for c in fine.of_keys]))
        result.append(levels)
    return result


def quantile(values: list[float], share: float) -> float:
    ordered, at = sorted(values), share * (len(values) - 1)
    low = math.floor(at)
    return ordered[low] + (ordered[min(low + 1, len(values) - 1)] - ordered[low]) * (at - low)


def squeezed(
    pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]], joint: int = 0
) -> Attention:
    """Keys of sets above the threshold, and everything after them.

    Args:
        seen: keys and values of the run; its sets are made from them. joint: tokens after the prompt that choose
            together.
    """
    count = max(0, prompt - 2 * method.obs)
    asked: list[Tensor] = []

    def catch(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        asked.append(turned(pair.plain, query, range(query.shape[1])))
        return dense(pair)(layer, query, key, value)

    logits(pair.plain, ids[:prompt], catch)
    levels = [squeezed_levels(method, key, count) for key, _ in seen] if count else []
    thresholds = []
    for level, share in ((0, method.percentile), (1, method.percentile_lower)):
        if not count or level >= len(levels[0][0]):
            break
        averages = []
        for layer, of_layer in enumerate(levels):
            for head in range(HEADS):
                sets = of_layer[head // GROUP][level]
                rows = [sets.scores(asked[layer][head, count + i]) for i in range(method.obs)]
                means = [sum(row[c] for row in rows) / len(rows) for c in range(len(sets.centres))]
                averages += [means[c] for c in sets.of_keys]
        thresholds.append(quantile(averages, share) if share > 0 else -1.0)

    def passed(layer: int, head: int, queries: list[Tensor]) -> set[int]:
        """Clustered keys that a query head reads for the mean of its queries' scores."""
        of_head = levels[layer][head // GROUP]
        alive: set[int] | None = None
        if len(of_head) > 1:
            upper = mean_rows([of_head[1].scores(query) for query in queries])
            keys = [i for i, c in enumerate(of_head[1].of_keys) if upper[c] > thresholds[1]]
            alive = {of_head[0].of_keys[i] for i in keys}
        fine = mean_rows([of_head[0].scores(query, alive) for query in queries])
        kept = {c for c in range(len(fine)) if fine[c] > thresholds[0] and (alive is None or c in alive)}
        return {i for i, c in enumerate(of_head[0].of_keys) if c in kept}

    together: dict[tuple[int, int], set[int]] = {}

    def step(layer: int, i: int, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        visible = torch.zeros(HEADS, i + 1, dtype=torch.bool)
        visible[:, count:] = True
        for head in range(HEADS if count else 0):
            if i < prompt + joint:
                read = together[layer, head]
            else:
                read = passed(layer, head, [query[head, i]])
            for mate in range(head // GROUP * GROUP, head // GROUP * GROUP + GROUP):
                visible[mate, sorted(read)] = True
        allowed = torch.zeros(i + 1, dtype=torch.bool)
        allowed[kept_away(i, list(range(i + 1)), pair)] = True
        return keys, values, visible & allowed

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if joint and count:
            rotated = turned(pair.plain, query, range(query.shape[1]))
            for head in range(HEADS):
                together[layer, head] = passed(layer, head, list(rotated[head, prompt : prompt + joint]))
        return after_prompt(pair, prompt, step)(layer, query, key, value)

    return attention


def mean_rows(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


# --- shadowkv --------------------------------------------------------------------------------------------------------


@dataclass
class Shadow:
    """What is known of one layer's prompt of L tokens, for each KV head.

    Attributes:
        rebuilt: ``[Hk, L, d]``, keys before RoPE as the low-rank product gives them.
        outlying, landmarks: chunks that stay exact, and those that can be chosen, with their means after RoPE.
    """

    rebuilt: Tensor
    outlying: list[list[int]]
    landmarks: list[dict[int, Tensor]]


def shadow_of(pair: Models, method: Any, plain_key: Tensor) -> Shadow:
    """From unrotated keys ``[Hk, L, d]`` of the prompt."""
    length, size = plain_key.shape[1], method.chunk_size
    joined = plain_key.transpose(0, 1).reshape(length, -1)
    left, values, right = torch.linalg.svd(joined, full_matrices=False)
    rank = min(method.rank, len(values))
    rebuilt = (left[:, :rank] * values[:rank]) @ right[:rank]
    rotated = turned(pair.plain, plain_key, range(length))
    count = length // size - method.local_chunks
    outlying, landmarks = [], []
    for head in range(KV_HEADS):
        chunks = [rotated[head, c * size : (c + 1) * size] for c in range(count)]
        least = [min(float(chunk.mean(0) @ k / chunk.mean(0).norm() / k.norm()) for k in chunk) for chunk in chunks]
        out = sorted(range(count), key=lambda c: (least[c], c))[: method.outliers]
        outlying.append(sorted(out))
        landmarks.append({c: chunks[c].mean(0) for c in range(count) if c not in out})
    return Shadow(rebuilt.view(length, KV_HEADS, -1).transpose(0, 1), outlying, landmarks)


def shadow_chunks(pair: Models, method: Any, shadow: Shadow, query: Tensor, i: int) -> list[list[int]]:
    """Chunks of each KV head that the query ``[H, d]`` at position i chooses."""
    size, chosen = method.chunk_size, []
    for kv in range(KV_HEADS):
        near = [c for c in shadow.landmarks[kv] if kept_away(i, list(range(c * size, (c + 1) * size)), pair)]
        worth = dict.fromkeys(near, 0.0)
        for head in range(kv * GROUP, (kv + 1) * GROUP):
            grown = {c: math.exp(float(query[head] @ shadow.landmarks[kv][c]) * SCALING) for c in near}
            for c in near:
                worth[c] = max(worth[c], grown[c] / sum(grown.values()))
        chosen.append(sorted(near, key=lambda c: (-worth[c], c))[: method.budget // size])
    return chosen


def shadowkv(pair: Models, method: Any, prompt: int) -> Attention:
    """Exact local tokens, outliers and new tokens; rebuilt keys of chosen chunks; nothing else."""
    size = method.chunk_size

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not method.applies(prompt):
            return dense(pair)(layer, query, key, value)
        shadow = shadow_of(pair, method, key[:, :prompt])
        rebuilt = turned(pair.plain, shadow.rebuilt, range(prompt))
        local = (prompt // size - method.local_chunks) * size

        def step(number: int, i: int, asked: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            keys = keys.clone()
            visible = torch.zeros(HEADS, i + 1, dtype=torch.bool)
            for kv, chunks in enumerate(shadow_chunks(pair, method, shadow, asked[:, i], i)):
                heads = slice(kv * GROUP, (kv + 1) * GROUP)
                visible[heads, local:] = True
                for c in shadow.outlying[kv]:
                    visible[heads, c * size : (c + 1) * size] = True
                for c in chunks:
                    visible[heads, c * size : (c + 1) * size] = True
                    keys[kv, c * size : (c + 1) * size] = rebuilt[kv, c * size : (c + 1) * size]
            allowed = torch.zeros(i + 1, dtype=torch.bool)
            allowed[kept_away(i, list(range(i + 1)), pair)] = True
            return keys, values, visible & allowed

        return after_prompt(pair, prompt, step)(layer, query, key, value)

    return attention
