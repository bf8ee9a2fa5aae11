"""KVMerger, EMS (our approximation) and CaM a second time: Python loops, fp64, straight from the formulas."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
import stored_reference
import torch
from harness import Models
from stored_reference import Array, Seen
from torch import Tensor

from lcbench.kv.observe import ColumnSums, LastQueries
from lcbench.kv.record import LayerRecord, PrefillRecord

Reference = Callable[[Models, Any, Tensor, int, list[tuple[Tensor, Tensor]]], Tensor]


def f64(x: Tensor) -> Array:
    return x.double().numpy()


def by_group(per_query_head: Array, kv_heads: int) -> Array:
    """``[H, n]`` averaged to ``[Hk, n]``."""
    return per_query_head.reshape(kv_heads, -1, per_query_head.shape[1]).mean(axis=1)


def columns(layer: LayerRecord) -> Array:
    return by_group(f64(layer.observed[ColumnSums()]), layer.key.shape[0])


def window_rows(layer: LayerRecord, w: int) -> Array:
    """Attention rows of the last w queries: ``[H, w, L]``."""
    queries, keys = f64(layer.observed[LastQueries(w)]), f64(layer.key)
    length, groups = keys.shape[1], queries.shape[0] // keys.shape[0]
    rows = np.zeros((*queries.shape[:2], length))
    for h in range(queries.shape[0]):
        for i in range(queries.shape[1]):
            p = length - queries.shape[1] + i
            low = 0 if layer.window is None else max(0, p - layer.window + 1)
            logits = keys[h // groups, low : p + 1] @ queries[h, i] * layer.scaling
            weights = np.exp(logits - logits.max())
            rows[h, i, low : p + 1] = weights / weights.sum()
    return rows


# --- kvmerger ---------------------------------------------------------------------------------------------------------


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def merging_sets(method: Any, key: Array, attention: Array) -> list[list[int]]:
    """The sets of one head: keys ``[L, d]``, attention ``[L]``; scanned from the last token to the first."""
    length = len(key)
    keep = None
    if method.epsilon is None:
        ratio = method.budget.ratio if method.budget is not None else 0.5
        keep = method.budget.tokens if ratio is None else math.floor(ratio * length)
        keep = max(keep, method.recent + 1)
    heavy = method.heavy.tokens if method.heavy.ratio is None else math.floor(method.heavy.ratio * length)
    if keep is not None:
        heavy = min(heavy, max(0, (keep - method.recent - 1) // 2))
    recent = min(method.recent, length)
    alone = set(range(length - recent, length))
    alone |= set(sorted(range(length - recent), key=lambda j: (-attention[j], j))[:heavy])
    free = {j: cosine(key[j], key[j + 1]) for j in range(length - 1) if j not in alone and j + 1 not in alone}
    if keep is None:
        joined = {j for j, c in free.items() if c >= method.epsilon}
    else:
        joined = set(sorted(free, key=lambda j: (-free[j], j))[: length - keep])
    sets: list[list[int]] = []
    for j in range(length - 1, -1, -1):
        if j in joined:
            sets[0].insert(0, j)
        else:
            sets.insert(0, [j])
    return sets


def merge_weights(method: Any, key: Array, attention: Array, members: list[int]) -> tuple[int, Array]:
    """Pivot and weights of one set."""
    pivot = max(members, key=lambda j: (attention[j], -j))
    distance = np.array([np.sum((key[pivot] - key[j]) ** 2) for j in members])
    variance = distance.mean()
    g = np.exp(-distance / (2 * variance)) if variance > 0 else np.ones(len(members))
    if method.sigma == "two-pass":
        sigma = g.sum() / (math.sqrt(2) * len(members))
        g = np.exp(-distance / (2 * sigma**2))
    return pivot, g / g.sum()


def kvmerger(method: Any, layer: LayerRecord) -> list[Seen]:
    """Merged keys, values and positions of every KV head."""
    heads = []
    for key, value, attention in zip(f64(layer.key), f64(layer.value), columns(layer), strict=True):
        rows: tuple[list[Array], list[Array], list[int]] = ([], [], [])
        for members in merging_sets(method, key, attention):
            pivot, w = merge_weights(method, key, attention, members)
            rows[0].append(w @ key[members])
            rows[1].append(w @ value[members] * (len(members) if method.value_scale == "times_size" else 1))
            rows[2].append(pivot)
        heads.append(Seen(np.array(rows[0]), np.array(rows[1]), np.array(rows[2])))
    return heads


# --- ems-approx -------------------------------------------------------------------------------------------------------


def ems_scores(method: Any, layer: LayerRecord) -> Array:
    length = layer.length
    rows = np.array([min(length - j, layer.window or length) for j in range(length)])
    overall = columns(layer) / rows
    local = by_group(window_rows(layer, method.window).sum(axis=1), layer.key.shape[0])
    return np.maximum(overall / overall.mean(axis=1, keepdims=True), local / local.mean(axis=1, keepdims=True))


def ems_classes(method: Any, key: Array, scores: Array) -> tuple[list[int], dict[int, int | None]]:
    """Centers (positions, window left out) and the center of each candidate, None for the zero class."""
    length = len(key)
    keep = method.budget.tokens if method.budget.ratio is None else math.floor(method.budget.ratio * length)
    keep = max(keep, method.window + 1)
    ranked = sorted(range(length - method.window), key=lambda j: (-scores[j], j))
    centers = sorted(ranked[: keep - method.window])
    pool = ranked[keep - method.window :][: int(method.merge_pool * keep)]
    classes: dict[int, int | None] = {}
    for j in pool:
        similar = {c: min(1.0, cosine(key[j], key[c])) for c in centers}
        best = max(centers, key=lambda c: (similar[c], -c))
        classes[j] = best if similar[best] > method.tau else None
    return centers, classes


def ems(method: Any, layer: LayerRecord) -> list[Seen]:
    """Kept keys, values and positions of every KV head."""
    heads = []
    for key, value, scores in zip(f64(layer.key), f64(layer.value), ems_scores(method, layer), strict=True):
        centers, classes = ems_classes(method, key, scores)
        keys, values = [], []
        for c in centers:
            members = [c, *(j for j, to in classes.items() if to == c)]
            if len(members) == 1:
                keys.append(key[c])
                values.append(value[c])
                continue
            s = scores[members]
            norms = np.linalg.norm(key[members], axis=1)
            u = s @ (key[members] / norms[:, None])
            keys.append(s @ norms / s.sum() * u / np.linalg.norm(u))
            values.append(s @ value[members] / s.sum())
        recent = list(range(len(key) - method.window, len(key)))
        heads.append(
            Seen(np.array(keys + list(key[recent])), np.array(values + list(value[recent])), np.array(centers + recent))
        )
    return heads


def fixed(entries: Callable[[Any, LayerRecord], list[Seen]], untouched: Callable[[Any, int], bool]) -> Reference:
    """Logits after a prompt that was merged once; everything later is added as it is."""

    def reference(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
        record = harness.prefill(pair, ids[:prompt], method)
        layers = [record.layer(i) for i in range(record.shape.layers)]
        held = None if untouched(method, prompt) else [entries(method, layer) for layer in layers]

        def view(layer: int, p: int, key: Array, value: Array) -> list[Seen]:
            if held is None:
                return [Seen(k[: p + 1], v[: p + 1], np.arange(p + 1)) for k, v in zip(key, value, strict=True)]
            new = slice(prompt, p + 1)
            return [
                Seen(
                    np.concatenate([old.keys, k[new]]),
                    np.concatenate([old.values, v[new]]),
                    np.concatenate([old.positions, np.arange(prompt, p + 1)]),
                )
                for old, k, v in zip(held[layer], key, value, strict=True)
            ]

        return stored_reference.logits(pair, ids, prompt, view)[prompt:]

    return reference


# --- cam --------------------------------------------------------------------------------------------------------------


class CaMReplay:
    """Values and accumulated attention of the whole text, changed step by step; what leaves the window stays here but
    is not looked at."""

    def __init__(self, method: Any, record: PrefillRecord, start: int, recent: int, total: int, seed: int) -> None:
        self.method, self.start, self.recent, self.seed = method, start, recent, seed
        self.prompt = record.length
        self.values: list[Array] = []
        self.received: list[Array] = []
        for i in range(record.shape.layers):
            layer = record.layer(i)
            kv_heads, length, d = layer.key.shape
            value, received = np.zeros((kv_heads, total, d)), np.zeros((kv_heads, total))
            value[:, :length] = f64(layer.value)
            if method.attention == "accumulated":
                received[:, :length] = columns(layer)
            elif method.merge_prompt:
                received[:, :length] = by_group(window_rows(layer, 1)[:, 0], kv_heads)
            self.values.append(value)
            self.received.append(received)
            if method.merge_prompt and start + recent < length:
                self._merge_prompt(i)

    def _merge_prompt(self, layer: int) -> None:
        evicted = range(self.start, self.prompt - self.recent)
        source = random.Random(f"{self.seed}|{layer}|{self.start}")
        draws = [[source.random() for _ in evicted] for _ in self.values[layer]]
        for h in range(len(draws)):
            for x in evicted:
                self._move(layer, h, x, self.prompt - 1, draws[h][x - self.start])

    def _move(self, layer: int, head: int, x: int, newest: int, draw: float) -> None:
        targets = range(x + 1, min(x + self.method.targets, newest) + 1)
        against = targets if self.method.attention == "accumulated" else range(x + 1, newest + 1)
        received = self.received[layer][head]
        mean = np.mean([received[j] for j in against])
        ratio = received[x] / mean if mean > 0 else 0.0
        if draw < (ratio if self.method.chance is None else self.method.chance):
            for j in targets:
                self.values[layer][head, j] += self.values[layer][head, x] / self.method.targets

    def visible(self, p: int) -> list[int]:
        if p + 1 <= self.start + self.recent:
            return list(range(p + 1))
        return [*range(self.start), *range(p + 1 - self.recent, p + 1)]

    def view(self, layer: int, p: int, key: Array, value: Array) -> list[Seen]:
        self.values[layer][:, p] = value[:, p]
        held = np.array(self.visible(p))
        return [Seen(k[held], v[held], held) for k, v in zip(key, self.values[layer], strict=True)]

    def after(self, layer: int, p: int, weights: list[Array]) -> None:
        kv_heads = len(self.values[layer])
        row = np.zeros((kv_heads, self.values[layer].shape[1]))
        row[:, self.visible(p)] = by_group(np.array(weights), kv_heads)
        if self.method.attention == "accumulated":
            self.received[layer] += row
        else:
            self.received[layer] = row
        x = p + 2 - self.recent
        if self.start <= x < p:
            source = random.Random(f"{self.seed}|{layer}|{x}")
            for h in range(kv_heads):
                self._move(layer, h, x, p, source.random())


def cam_counts(method: Any, prompt: int) -> tuple[int, int] | None:
    """Start and recent entries, where both are set alike: by half of a budget, or as numbers."""
    if method.start is not None and method.recent is not None:
        return method.start.tokens, method.recent.tokens
    if method.budget.tokens is not None:
        return method.budget.tokens // 2, method.budget.tokens - method.budget.tokens // 2
    half = math.floor(method.budget.ratio / 2 * prompt + 1e-9)
    return (half, half) if half else None


def cam_logits(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    counts = cam_counts(method, prompt)
    record = harness.prefill(pair, ids[:prompt], method)
    start, recent = counts if counts is not None else (0, len(ids))
    torch.manual_seed(17)  # as `harness.compressed` does
    replay = CaMReplay(method, record, start, recent, len(ids), int(torch.randint(2**31, ())))
    return stored_reference.logits(pair, ids, prompt, replay.view, replay.after)[prompt:]
