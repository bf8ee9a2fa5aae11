"""What AdaKV, HeadKV, DynamicKV, ChunkKV, LightTransfer, expected attention and CORM keep, written a second time.

Plain Python and numpy in fp64, straight from the formulas, from the queries, keys and values of a run. Nothing here
imports lcbench's scores, stores or policies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import harness
import numpy as np
import torch
from harness import HEAD_DIM, HEADS, KV_HEADS, LAYERS, SCALING, Models
from torch import Tensor

from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.methods.base import Method

Array = np.ndarray
GROUP = HEADS // KV_HEADS
# For each layer and stored head, the prompt positions kept, ascending.
Kept = list[list[list[int]]]
Oracle = Callable[[Any, PrefillRecord], Kept]


def layers(record: PrefillRecord) -> Iterator[LayerRecord]:
    return (record.layer(i) for i in range(LAYERS))


def rows_of_last_queries(record: LayerRecord, count: int) -> Array:
    """Softmax weights ``[H, min(count, L), L]`` of the last prompt tokens."""
    queries = next(v for v in record.observed.values() if isinstance(v, Tensor)).double().numpy()
    keys, length = record.key.double().numpy(), record.length
    count = min(count, length)
    rows = np.zeros((HEADS, count, length))
    for head in range(HEADS):
        for i in range(count):
            position = length - count + i
            first = 0 if record.window is None else max(0, position - record.window + 1)
            logits = keys[head // GROUP, first : position + 1] @ queries[head, i - count] * SCALING
            weights = np.exp(logits - logits.max())
            rows[head, i, first : position + 1] = weights / weights.sum()
    return rows


def pooled(row: Array, kernel: int, kind: str) -> Array:
    half, out = kernel // 2, np.zeros_like(row)
    for j in range(len(row)):
        near = row[max(0, j - half) : j + half + 1]
        out[j] = near.max() if kind == "max" else near.sum() / kernel
    return out


def window_scores(record: LayerRecord, method: Any, how: str = "mean") -> list[Array]:
    """Pooled window scores of the stored heads, each ``[L - w]``."""
    rows = rows_of_last_queries(record, method.window).sum(axis=1)[:, : record.length - method.window]
    if method.granularity == "kv":
        rows = getattr(rows.reshape(KV_HEADS, GROUP, -1), how)(axis=1)
    return [pooled(row, method.kernel, method.pooling) for row in rows]


def best(row: Array, count: int) -> list[int]:
    """Positions of the highest scores, ties to the lower one, ascending."""
    return sorted(sorted(range(len(row)), key=lambda j: (-row[j], j))[:count])


def budget(method: Any, length: int, least: int) -> int:
    wanted = method.budget.tokens or math.floor(Fraction(str(method.budget.ratio)) * length)
    return max(wanted, least)


def everything(record: PrefillRecord, heads: int = KV_HEADS) -> Kept:
    return [[list(range(record.length)) for _ in range(heads)] for _ in range(LAYERS)]


def adakv(method: Any, record: PrefillRecord) -> Kept:
    keep, w = budget(method, record.length, method.window + 1), method.window
    if keep >= record.length:
        return everything(record, KV_HEADS if method.granularity == "kv" else HEADS)
    kept = []
    for layer in layers(record):
        scores = window_scores(layer, method, method.reduce)
        counts = _adakv_counts(method, scores, keep, layer.index)
        recent = list(range(record.length - w, record.length))
        kept.append([best(row, count) + recent for row, count in zip(scores, counts, strict=True)])
    return kept


def _adakv_counts(method: Any, scores: list[Array], keep: int, layer: int) -> list[int]:
    heads, b, alpha = len(scores), keep - method.window, Fraction(str(method.alpha))
    if layer < method.skip:
        return [b] * heads
    if method.normalize:
        scores = [row * sum(sorted(row, reverse=True)[:b]) / row.sum() for row in scores]
    entries = [(-row[j], h, j) for h, row in enumerate(scores) for j in range(len(row))]
    if method.allocation == "exact":
        sure = [set(best(row, max(0, math.floor(alpha * keep) - method.window))) for row in scores]
        entries = [(-math.inf if j in sure[h] else s, h, j) for s, h, j in entries]
    chosen = sorted(entries)[: heads * b]
    places = [sum(h == head for _, h, _ in chosen) for head in range(heads)]
    if method.allocation == "exact":
        return places
    return [round((1 - alpha) * u + math.floor(alpha * b)) for u in places]


def headkv(method: Any, record: PrefillRecord, table: list[list[float]]) -> Kept:
    keep, w = budget(method, record.length, method.window + 1), method.window
    stored = KV_HEADS if method.granularity == "kv" else HEADS
    if keep >= record.length:
        return everything(record, stored)
    b = keep - w
    pool = math.floor(b / method.beta)
    total = sum(s**method.temp for row in table for s in row)
    kept = []
    for layer in layers(record):
        scores, heads = window_scores(layer, method), []
        for head, row in enumerate(scores):
            group = table[layer.index][head * HEADS // stored : (head + 1) * HEADS // stored]
            share = sum(s**method.temp for s in group) / len(group) / total
            count = round(share * pool * LAYERS * HEADS + b - pool)
            heads.append(best(row, min(count, len(row))) + list(range(record.length - w, record.length)))
        kept.append(heads)
    return kept


def dynamickv(method: Any, record: PrefillRecord) -> Kept:
    keep, w = budget(method, record.length, method.window + 1), method.window
    stored = KV_HEADS if method.granularity == "kv" else HEADS
    if keep >= record.length:
        return everything(record, stored)
    scores = [window_scores(layer, method) for layer in layers(record)]
    b = keep - w
    entries = [
        (-row[j], i, h, j) for i, heads in enumerate(scores) for h, row in enumerate(heads) for j in range(len(row))
    ]
    chosen = sorted(entries)[: b * stored * LAYERS]
    u = [sum(i == layer for _, i, _, _ in chosen) for layer in range(LAYERS)]
    counts = share_out(b * LAYERS, u, min(math.floor(method.r_max * b), record.length - w))
    recent = list(range(record.length - w, record.length))
    return [[best(row, n) + recent for row in heads] for heads, n in zip(scores, counts, strict=True)]


def share_out(total: int, weights: list[int], most: int) -> list[int]:
    """Proportional shares with a cap, exact fractions; what a cap cuts off is shared among the rest again."""
    capped: set[int] = set()
    while True:
        free = [i for i in range(len(weights)) if i not in capped]
        left = total - most * len(capped)
        weigh = {i: Fraction(weights[i]) for i in free}
        if sum(weigh.values()) == 0:
            weigh = {i: Fraction(1) for i in free}
        quota = {i: left * weigh[i] / sum(weigh.values()) for i in free}
        over = {i for i in free if quota[i] >= most}
        if not over:
            break
        capped |= over
    shares = {i: math.floor(q) for i, q in quota.items()}
    for i in sorted(free, key=lambda i: (shares[i] - quota[i], i))[: left - sum(shares.values())]:
        shares[i] += 1
    return [most if i in capped else shares[i] for i in range(len(weights))]


def chunkkv(method: Any, record: PrefillRecord) -> Kept:
    keep, w, size = budget(method, record.length, method.window + 1), method.window, method.length
    if keep >= record.length:
        return everything(record)
    kept: Kept = []
    for layer in layers(record):
        if layer.index % method.reuse:
            kept.append(kept[-1])
            continue
        row = rows_of_last_queries(layer, w).sum(axis=(0, 1))[: record.length - w]
        chunks = [row[i : i + size] for i in range(0, len(row), size)]
        totals = np.array([c.sum() if method.aggregate == "sum" else c.mean() for c in chunks])
        chosen = best(totals, (keep - w) // size)
        positions = [j for c in chosen for j in range(c * size, min((c + 1) * size, len(row)))]
        kept.append([positions + list(range(record.length - w, record.length))] * KV_HEADS)
    return kept


def lazy_scores(method: Any, record: PrefillRecord) -> list[float]:
    scores = []
    for layer in layers(record):
        rows = rows_of_last_queries(layer, method.queries)
        masses = []
        for i in range(rows.shape[1]):
            position = record.length - rows.shape[1] + i
            near = {*range(method.n_sink), *range(max(0, position - method.n_recent + 1), position + 1)}
            masses += [rows[head, i, sorted(near)].sum() for head in range(HEADS)]
        scores.append(float(np.mean(masses)))
    return scores


def lazy_layers(method: Any, record: PrefillRecord) -> set[int]:
    if record.length <= method.n_sink + method.n_recent:
        return set()
    if method.fixed:
        return set(method.fixed)
    scores = lazy_scores(method, record)
    candidates = range(LAYERS - method.keep_last)
    if method.theta is not None:
        return {i for i in candidates if scores[i] > method.theta}
    count = LAYERS // 2 if method.lazy_layers is None else method.lazy_layers
    return set(sorted(candidates, key=lambda i: -scores[i])[:count])


def lighttransfer(method: Any, record: PrefillRecord) -> Kept:
    lazy = lazy_layers(method, record)
    near = [*range(method.n_sink), *range(record.length - method.n_recent, record.length)]
    return [[near if i in lazy else list(range(record.length))] * KV_HEADS for i in range(LAYERS)]


def lighttransfer_reference(
    pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """As `reference`, with lazy layers that roll."""
    lazy = lazy_layers(method, harness.prefill(pair, ids[:prompt], method))
    rows = torch.ones(LAYERS, 1, len(ids), len(ids), dtype=torch.bool)
    for i in lazy:
        for position in range(prompt, len(ids)):
            oldest = position + 1 - method.n_recent if method.roll else prompt - method.n_recent
            rows[i, 0, position, method.n_sink : oldest] = False
    return harness.masked_logits(pair, ids, list(rows))[prompt:]


def reference(oracle: Oracle) -> harness.Reference:
    """The harness's reference of a method that cuts the prompt once: plain transformers, the dropped keys masked."""

    def logits(pair: Models, method: Method, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
        rows = []
        for heads in oracle(method, harness.prefill(pair, ids[:prompt], method)):
            visible = torch.ones(HEADS, len(ids), len(ids), dtype=torch.bool)
            for head in range(HEADS):
                visible[head, prompt:, :prompt] = False
                visible[head, prompt:, heads[head * len(heads) // HEADS]] = True
            rows.append(visible)
        return harness.masked_logits(pair, ids, rows)[prompt:]

    return logits


# --- expected attention ----------------------------------------------------------------------------------------------


class PlainQueries:
    """The queries of a tiny model before RoPE, from hooks on its projections: ``[H, L, d]`` a layer."""

    def __init__(self, pair: Models, ids: Tensor) -> None:
        self.layers: list[Array] = []
        handles = [layer.self_attn.q_proj.register_forward_hook(self._take) for layer in pair.plain.model.layers]
        try:
            with torch.inference_mode():
                pair.plain(input_ids=ids[None], use_cache=False)
        finally:
            for handle in handles:
                handle.remove()

    def _take(self, module: Any, arguments: Any, output: Tensor) -> None:
        self.layers.append(output[0].double().numpy().reshape(-1, HEADS, HEAD_DIM).transpose(1, 0, 2))


def rotation(position: int, theta: float = 10000.0) -> Array:
    """The rotation of RoPE at a position as a matrix ``[d, d]``: channels i and i + d/2 are a pair."""
    half, matrix = HEAD_DIM // 2, np.zeros((HEAD_DIM, HEAD_DIM))
    for i in range(half):
        angle = position * theta ** (-2 * i / HEAD_DIM)
        matrix[i, i] = matrix[i + half, i + half] = math.cos(angle)
        matrix[i, i + half], matrix[i + half, i] = -math.sin(angle), math.sin(angle)
    return matrix


def expected_attention(method: Any, layer: LayerRecord, queries: Array) -> Array:
    """Scores ``[Hk, L]``, infinite for the sinks."""
    length, sinks = layer.length, method.n_sink
    mean_rotation = np.mean([rotation(length + i) for i in range(method.future)], axis=0)
    keys, values = layer.key.double().numpy(), layer.value.double().numpy()
    scores = np.full((KV_HEADS, length), np.inf)
    for kv in range(KV_HEADS):
        total = np.zeros(length - sinks)
        for head in range(kv * GROUP, (kv + 1) * GROUP):
            own = queries[head, sinks:]
            mean = mean_rotation @ own.mean(axis=0)
            z = keys[kv, sinks:] @ mean * SCALING
            if method.covariance:
                spread = mean_rotation @ np.cov(own.T, bias=True) @ mean_rotation.T
                z += np.array([k @ spread @ k for k in keys[kv, sinks:]]) * SCALING**2 / 2
            weights = np.exp(z - z.max())
            total += weights / weights.sum()
        expected = total / GROUP + method.epsilon
        if method.value_norm:
            expected = expected * np.linalg.norm(values[kv, sinks:], axis=-1)
        scores[kv, sinks:] = expected
    return scores


# --- CORM ------------------------------------------------------------------------------------------------------------


class Messages:
    """CORM with the messages themselves: for each KV head and key, what each query that saw it said."""

    def __init__(self, method: Any, prompt_rows: Array, length: int) -> None:
        self.w, self.r = method.window, method.recent
        self.kept = [list(range(length)) for _ in range(KV_HEADS)]
        self.said: list[list[Array]] = []  # for each of the last queries and KV head: important? [L]
        for i in range(prompt_rows.shape[1]):
            self._hear(prompt_rows[:, i], length - prompt_rows.shape[1] + i)
        self._evict(length)

    def _hear(self, weights: Array, position: int) -> None:
        important = weights >= (1 - 1e-6) / (position + 1)
        self.said.append([important[kv * GROUP : (kv + 1) * GROUP].any(axis=0) for kv in range(KV_HEADS)])
        self.said = self.said[-self.w :]

    def _evict(self, seen: int) -> None:
        if len(self.said) < self.w:
            return
        for kv, kept in enumerate(self.kept):
            stays = []
            for j in kept:
                judged = seen - j >= self.w  # seen by as many queries as there are messages
                minor = not any(said[kv][j] for said in self.said if j < len(said[kv]))
                if j >= seen - self.r or not (judged and minor):
                    stays.append(j)
            self.kept[kv] = stays

    def open(self, position: int) -> Array:
        """bool ``[H, position + 1]``: what the query at ``position`` sees, itself included."""
        seen = np.zeros((HEADS, position + 1), dtype=bool)
        for head in range(HEADS):
            seen[head, [*self.kept[head // GROUP], position]] = True
        return seen

    def step(self, position: int, weights: Array) -> None:
        for kept in self.kept:
            kept.append(position)
        self._hear(weights, position)
        self._evict(position + 1)
