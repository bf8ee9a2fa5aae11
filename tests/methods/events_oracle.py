"""What em-llm does with a text, written query by query in fp64: run by run, since its surprise decides its events.

Nothing here imports a store, a segmentation or a score of lcbench.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from explicit_model import GROUP, LAYERS, Attention, logits, one_query, turned
from harness import HEAD_DIM, HEADS, Models
from retrieve_oracle import kept_away
from torch import Tensor

Span = tuple[int, int]


def runs_of(method: Any, prompt: int, total: int) -> list[Span]:
    edges = [*range(0, prompt - 1, method.exc_block_size), *range(prompt - 1, max(total, prompt) + 1)]
    return list(pairwise([*(edge for edge in edges if edge < total), total]))


def quality(alike: Any, at: int, metric: str) -> float:
    """Of parting a square matrix before place ``at``: larger is better."""
    groups = (list(range(at)), list(range(at, len(alike))))
    total = alike.sum()
    if metric == "modularity":
        m, degree = total / 2, alike.sum(axis=1)
        inside = sum(alike[i, j] - degree[i] * degree[j] / (2 * m) for g in groups for i in g for j in g)
        return float(inside / (4 * m))
    cut = alike[np.ix_(groups[0], groups[1])].sum()
    shares = []
    for group in groups:
        volume = alike[np.ix_(group, group)].sum()
        shares.append(cut / min(volume, total - volume))
    return -float(min(shares))


@dataclass
class Story:
    """What is known of a text so far: surprise of its tokens, and the keys of each run once it was read.

    Attributes:
        surprise: -ln p of the token that follows, by position. keys: of each labelled run, ``[Hk, stop, d]`` a layer.
    """

    method: Any
    prompt: int
    surprise: list[float] = field(default_factory=list)
    keys: list[list[Tensor]] = field(default_factory=list)

    def states(self, total: int) -> list[tuple[int, list[Span]]]:
        """First tokens and events as each run finds them."""
        method, first, rest = self.method, 0, 0
        events: list[Span] = []
        starts: list[int] = []
        found = []
        for number, (start, stop) in enumerate(runs_of(method, self.prompt, total)):
            found.append((first, list(events)))
            if stop < self.prompt and number < len(self.keys) and method.segmentation == "surprise":
                starts += self.boundaries(number, start, stop, rest, starts)
            leaving = stop - rest - method.n_local
            if first < method.n_init and leaving > 0:
                gone = min(method.n_init - first, leaving)
                first, rest = first + gone, rest + gone
            for size in self.cuts(stop - rest - method.n_local, [s - rest for s in starts]):
                events.append((rest, rest + size))
                rest += size
        return found

    def boundaries(self, number: int, start: int, stop: int, rest: int, starts: Sequence[int]) -> list[int]:
        method, own = self.method, self.surprise[start:stop]
        held = self.surprise[rest:stop]
        low, high = max(len(held) - method.n_local, 0), max(len(held) - len(own), method.n_init)
        sample = own if number == 0 and method.refine != "none" else held[low:high]
        if not sample:
            return []
        spread = float(np.std(sample, ddof=1)) if len(sample) > 1 else 0.0
        marked = [start + i for i, value in enumerate(own) if value > np.mean(sample) + method.gamma * spread]
        if method.refine == "none":
            return marked
        origin = start
        if starts and starts[-1] >= start - method.exc_block_size:
            origin = starts[-1]
        alike = np.zeros((stop - origin, stop - origin))
        for layer in range(method.first_refined(LAYERS), LAYERS):
            for head in self.keys[number][layer].double().numpy():
                alike += head[origin:stop] @ head[origin:stop].T
        accepted = [origin]
        for mark in marked:
            before = accepted[-1]
            if mark - before < method.min_block:
                continue
            reach = (mark - before) // 2
            low, high = max(origin, before - reach), min(stop, mark + reach)
            part = alike[low - origin : high - origin, low - origin : high - origin]
            tried = list(range(before + method.min_block, mark)) or [mark]
            if tried != [mark]:
                mark = max(tried, key=lambda t: quality(part, t - low, method.refine))
            accepted.append(mark)
        return accepted[1:]

    def cuts(self, region: int, starts: Sequence[int]) -> list[int]:
        method = self.method
        if method.segmentation == "uniform":
            return [method.max_block] * (max(region, 0) // method.max_block)
        if region <= method.min_block:
            return []
        inside = [s for s in starts if 0 < s < region]
        found: list[int] = []
        if not inside:
            while region - sum(found) > method.max_block:
                found.append(method.max_block)
            return found
        for place in inside:
            while place - sum(found) >= method.max_block:
                found.append(method.max_block)
            if place - sum(found) >= method.min_block:
                found.append(place - sum(found))
        return found


def _chosen(
    method: Any, worth: list[float], sizes: list[int], room: int, near: list[int]
) -> tuple[set[int], list[int]]:
    """Events that a run sees, and the neighbours among them."""
    if sum(sizes) <= room:
        return set(range(len(sizes))), []
    share = method.contiguity
    spare = min(room, int(share * room) if share < 1 else int(share))
    best: list[int] = []
    for event in sorted(range(len(sizes)), key=lambda e: (-worth[e], e)):
        tokens = sum(sizes[e] for e in best)
        if tokens + sizes[event] <= room - spare:
            best.append(event)
            continue
        if tokens + sizes[event] - (room - spare) < room - spare - tokens:
            best.append(event)
        break
    queue = [e for b in best for e in (b + 1, b - 1)] + near
    kept: list[int] = []
    for event in queue:
        if event < 0 or event >= len(sizes) or event in best or event in kept:
            continue
        if sum(sizes[e] for e in kept) + sizes[event] > spare:
            break
        kept.append(event)
    return {*best, *kept}, kept


def attention(pair: Models, story: Story, captured: list[Tensor] | None = None) -> Attention:
    """Attention over a text of which so much is known; ``captured`` takes up each layer's keys."""
    method = story.method

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if captured is not None:
            captured.append(key)
        total, n_local = query.shape[1], method.n_local
        far_query = turned(pair.plain, query, [n_local - 1] * total)
        near_query, near_key = (turned(pair.plain, x, range(total)) for x in (query, key))
        got = torch.zeros(HEADS, total, dtype=torch.float64)
        vectors: list[Tensor] = []
        near: list[int] = []
        rows = []
        for (start, stop), (first, events) in zip(
            runs_of(method, story.prompt, total), story.states(total), strict=True
        ):
            for begin, end in events[len(vectors) :]:
                vector = torch.zeros(HEADS, HEAD_DIM, dtype=torch.float64)
                for head in range(HEADS):
                    best = sorted(range(begin, end), key=lambda j: (-float(got[head, j]), j))[: method.repr_topk]
                    vector[head] = key[head // GROUP, best].mean(dim=0)
                vectors.append(vector)
            rest = events[-1][1] if events else first
            waiting = max(rest, stop - n_local) - rest
            room = max(0, method.n_init + method.exc_block_size + method.n_mem - first - waiting)
            asked = far_query[:, start:stop].mean(dim=1)
            if max(rest, stop - n_local) > 0:
                worth = [float((asked * vector).sum()) for vector in vectors]
                seen, near = _chosen(method, worth, [b - a for a, b in events], room, near)
            else:
                seen = set()
            looked_up = [j for e in sorted(seen) for j in range(*events[e])]
            mass = torch.zeros_like(got)
            for i in range(start, stop):
                window = kept_away(i, list(range(max(0, i - n_local + 1), i + 1)), pair)
                outside = [j for j in range(rest, stop) if i - j >= n_local]
                far = kept_away(i, [*range(first), *looked_up, *outside], pair)
                out, weights = one_query(
                    [
                        (near_query[:, i], near_key[:, window], value[:, window]),
                        (far_query[:, i], key[:, far], value[:, far]),
                    ]
                )
                rows.append(out)
                mass[:, window] += weights[0]
            got += mass
        return torch.stack(rows, dim=1)

    return attend


def told(pair: Models, method: Any, ids: Tensor, prompt: int) -> Story:
    """A prompt's surprise and keys, found by reading it as far as each run."""
    story = Story(method, prompt)
    for start, stop in runs_of(method, prompt, prompt):
        if stop >= prompt:
            break
        captured: list[Tensor] = []
        foretold = logits(pair.plain, ids[:stop], attention(pair, story, captured)).double().log_softmax(dim=-1)
        story.surprise += [-float(foretold[t, ids[t + 1]]) for t in range(start, stop)]
        story.keys.append(captured)
    return story


def em_llm(pair: Models, method: Any, ids: Tensor, prompt: int) -> Tensor:
    """Logits ``[T, vocab]`` of a prompt and what follows it."""
    return logits(pair.plain, ids, attention(pair, told(pair, method, ids, prompt)))
