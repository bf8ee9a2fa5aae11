"""Eviction rules written a second time, in fp64 and token by token, to be replayed on the queries of a real run.

A run of the method under test is watched; its queries, keys and values are then put through a rule from this file,
which says at each step what each query head may see. Nothing here imports lcbench's scores, policies or stores.
(On the run's own queries, so that rounding noise of the layers below cannot turn a near tie into another choice.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import numpy as np
import torch
from harness import HEADS, KV_HEADS, LAYERS, SCALING, Models
from torch import Tensor

from lcbench.methods.base import Method
from lcbench.models.rule import AttentionRule

Array = np.ndarray
GROUP = HEADS // KV_HEADS


class Attended:
    """Collects every layer's new queries, keys and values; a watcher for `harness.prefill` and `harness.force`."""

    def __init__(self) -> None:
        self._pieces: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in range(LAYERS)]

    def observe(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, start: int, store: Any, rule: AttentionRule
    ) -> None:
        self._pieces[layer].append((query.clone(), key.clone(), value.clone()))

    def layer(self, index: int) -> tuple[Array, Array, Array]:
        """Queries ``[H, T, d]``, keys and values ``[Hk, T, d]`` of one layer, fp64."""
        query, key, value = (torch.cat(p, dim=1).double().numpy() for p in zip(*self._pieces[index], strict=True))
        return query, key, value


def attention_matrix(query: Array, key: Array, window: int | None) -> Array:
    """Causal softmax weights ``[H, T, T]`` of all queries on all keys."""
    total = query.shape[1]
    logits = np.einsum("hid,hjd->hij", query, key.repeat(GROUP, axis=0)) * SCALING
    distance = np.arange(total)[:, None] - np.arange(total)[None]
    unseen = distance < 0
    if window is not None:
        unseen |= distance >= window
    weights = np.exp(np.where(unseen, -np.inf, logits) - logits.max(axis=-1, keepdims=True))
    result: Array = weights / weights.sum(axis=-1, keepdims=True)
    return result


class Rule:
    """What the heads of one layer may see while decoding.

    Attributes:
        kept: for each stored head the positions it holds, ascending.
    """

    kept: list[list[int]]

    def open(self, position: int) -> Array:
        """bool ``[H, position + 1]``: what the query at ``position`` sees, itself included."""
        seen = np.zeros((HEADS, position + 1), dtype=bool)
        for head in range(HEADS):
            seen[head, self.kept[head * len(self.kept) // HEADS]] = True
        seen[:, position] = True
        return seen

    def step(self, position: int, weights: Array) -> None:
        """Take notice of the weights ``[H, position + 1]`` of the query at ``position``."""
        raise AssertionError("a rule has steps")


class Heavy(Rule):
    """Heavy hitters and recent tokens with real eviction; see H2O and VATP.

    Args:
        scores: ``[H, L]`` of the prompt. norms: factor ``[Hk, T]`` on what decoding adds, or None.
    """

    def __init__(
        self, scores: Array, heavy: int, recent: int, stored: int, norms: Array | None = None, sinks: int = 0
    ) -> None:
        self.scores, self.heavy, self.recent, self.norms, self.sinks = scores, heavy, recent, norms, sinks
        self.kept = [list(range(scores.shape[1])) for _ in range(stored)]
        self.evict()

    def evict(self) -> None:
        stored = len(self.kept)
        for head, kept in enumerate(self.kept):
            if len(kept) <= self.heavy + self.recent:
                continue
            mean = self.scores[head * HEADS // stored : (head + 1) * HEADS // stored].mean(axis=0)
            old, new = kept[: len(kept) - self.recent], kept[len(kept) - self.recent :]
            best = sorted(old, key=lambda j: (j >= self.sinks, 0 if j < self.sinks else -mean[j], j))
            self.kept[head] = sorted(best[: self.heavy]) + new

    def step(self, position: int, weights: Array) -> None:
        if self.norms is not None:
            weights = weights * self.norms[:, : position + 1].repeat(GROUP, axis=0)
        self.scores = np.pad(self.scores, ((0, 0), (0, 1))) + weights
        for kept in self.kept:
            kept.append(position)
        self.evict()


class Newest(Rule):
    """The entries that the newest query attends to most, for all heads alike; see TOVA."""

    def __init__(self, last_row: Array, capacity: int, *, decode: bool = True, keep_last: bool = False) -> None:
        self.capacity, self.decode, self.keep_last = capacity, decode, keep_last
        self.kept = [list(range(last_row.shape[1]))]
        self.evict(last_row)

    def evict(self, weights: Array) -> None:
        (kept,) = self.kept
        if len(kept) > self.capacity:
            mean = weights.mean(axis=0)
            first = kept[-1] if self.keep_last else -1
            self.kept = [sorted(sorted(kept, key=lambda j: (j != first, -mean[j], j))[: self.capacity])]

    def step(self, position: int, weights: Array) -> None:
        self.kept[0].append(position)
        if self.decode:
            self.evict(weights)


class Longctx(Rule):
    """The masks of longctx_bench, with the slice that shares memory as it does there."""

    def __init__(self, prompt: int, heavy: float, recent: float) -> None:
        self.shares = heavy, recent
        self.budgets: tuple[int, int] | None = None
        self.scores = np.zeros((HEADS, prompt))
        self.mask = np.ones((HEADS, prompt + 1), dtype=bool)
        self.kept = [list(range(prompt))]

    def open(self, position: int) -> Array:
        return self.mask

    def step(self, position: int, weights: Array) -> None:
        keys = position + 1
        if self.budgets is None:
            self.budgets = int(self.shares[0] * keys), int(self.shares[1] * keys)
        heavy, recent = self.budgets
        self.scores = np.pad(self.scores, ((0, 0), (0, 1))) + weights
        following = np.ones((HEADS, keys + 1), dtype=bool)
        if keys > heavy + recent:
            candidates = self.scores
            if recent:
                following[:, : keys + 1 - recent] = False
                candidates = candidates[:, : keys - recent]
            for head in range(HEADS):
                following[head, np.argsort(-candidates[head], kind="stable")[:heavy]] = True
        alias = following[:, :keys]  # a view: what it opens is open in the mask as well
        alias[:, keys - recent if recent else 0 :] = True
        self.scores = self.scores * alias
        self.mask = following
        self.kept[0].append(position)


# One layer's rule: (method, queries, keys, values, prompt tokens, sliding window) -> Rule
Make = Callable[[Any, Array, Array, Array, int, int | None], Rule]


def replay(
    rule: Rule, query: Array, key: Array, prompt: int, window: int | None
) -> tuple[Tensor, list[list[list[int]]]]:
    """Run a rule over everything after the prompt.

    Returns:
        bool ``[H, T, T]``, what each query sees (all rows of the prompt see all), and what each stored head holds
        after the prompt and after each further token.
    """
    total = query.shape[1]
    rows = torch.ones(HEADS, total, total, dtype=torch.bool)
    held = [[list(kept) for kept in rule.kept]]
    for position in range(prompt, total):
        seen = rule.open(position)
        rows[:, position, : position + 1] = torch.from_numpy(seen)
        if window is not None:
            seen = seen & (np.arange(position + 1) > position - window)
        logits = np.einsum("hd,hjd->hj", query[:, position], key[:, : position + 1].repeat(GROUP, axis=0)) * SCALING
        weights = np.exp(np.where(seen, logits, -np.inf) - logits.max(axis=-1, keepdims=True))
        rule.step(position, weights / weights.sum(axis=-1, keepdims=True))
        held.append([list(kept) for kept in rule.kept])
    return rows, held


def watched(pair: Models, method: Method, ids: Tensor, prompt: int) -> tuple[Attended, list[list[Tensor]], Tensor]:
    """A run of the method over ``ids [T]``.

    Returns:
        What it attended with; the positions each layer holds after the prompt and after each further token; the
        logits ``[T - prompt, vocab]``.
    """
    watcher = Attended()
    left = method.compress(harness.prefill(pair, ids[:prompt], method, watchers=[watcher]))
    held, logits = [[layer.positions() for layer in left.layers]], []
    for position in range(prompt, len(ids)):
        logits.append(harness.force(pair, left, ids[position : position + 1], watchers=[watcher]))
        held.append([layer.positions() for layer in left.layers])
    return watcher, held, torch.cat(logits) if logits else torch.empty(0, harness.VOCAB)


def replayed(make: Make) -> harness.Reference:
    """The harness's reference for a rule: plain transformers, with what the rule hides masked."""

    def reference(pair: Models, method: Method, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
        watcher, _, _ = watched(pair, method, ids, prompt)
        rows = []
        for i in range(LAYERS):
            query, key, value = watcher.layer(i)
            rule = make(method, query, key, value, prompt, pair.window)
            rows.append(replay(rule, query, key, prompt, pair.window)[0])
        return harness.masked_logits(pair, ids, rows)[prompt:]

    return reference
