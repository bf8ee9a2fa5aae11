"""CaM: a value that is about to be evicted is added, by chance, to the values after it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.kv import attention
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import LayerKV, outside_window
from lcbench.kv.observe import ColumnSums, LastQueries, Observation
from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.kv.ring import RingLayer
from lcbench.kv.scores import column_sums, group_reduce, last_query_weights
from lcbench.kv.witness import Merge, tell_merged
from lcbench.methods.base import Method, Traits
from lcbench.methods.registry import method
from lcbench.models.rule import AttentionRule


@method("cam", paper="OpenReview:LCTmppB165", traits=Traits(family="merge"))
@dataclass(frozen=True)
class CaM(Method):
    """Cache merging (ICML 2024; rules as in zyxxmu/cam cam_hf/utils_hh/modify_llama_cam.py): a rolling window with
    attention sinks in which values that leave are merged forward.

    The prompt is read with dense attention. Then each KV head keeps its first `start` entries and the `recent` newest,
    and at each new token the oldest recent one leaves. Let x be the oldest of those that the *next* token will see,
    a the step's attention (mean over the group) and K the newest position: after the step's output is computed ::

        r = min(1, a_x / mean(a_x+1 .. a_K)),   z = 1 with probability r, else 0
        v_j += z v_x / m    for j = x + 1 .. min(x + m, K)

    Keys are not touched. x is still seen by the next token, so that its value counts twice there, as in the authors'
    code. Not-a-number counts as r = 0. The divisor is m = `targets` even when fewer tokens follow. The middle of the
    prompt is dropped without merging, as in the code; `merge_prompt` evicts it token by token instead, in the order
    of the text, each merged into the m tokens after it (our choice; r from the last prompt token's attention).

    ``attention=accumulated`` is the paper's ratio: a is the attention received so far from all queries, the prompt's
    included, and the mean is over the m targets. `chance` sets r for all alike: 1 merges always, 0 is StreamingLLM.

    `start` and `recent` are ratios of the prompt or numbers; one that is not given is half of the budget (0.1 each by
    default, as in the authors' scripts; the recent half is the larger one of an odd number). Ratios that add up to 1
    evict nothing, nor does a prompt so short that its share leaves no recent entry. Below the total nothing is
    evicted until it is reached. Draws are fixed by the sample's seed, the layer and the position, whatever else runs.

    One layer holds ``2 Hk d e (start + recent)`` bytes, and with accumulated attention ``4 Hk (start + recent)`` more.
    """

    proof: ClassVar[str] = (
        "Teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models over 64 tokens, merging by "
        "chance and always, against a replay in fp64 with Python loops that draws the same numbers; chance=0 equals "
        "streamingllm with as many sinks, bit for bit; chance=1 with one target adds exactly the evicted value; keys "
        "stay bit-identical; merges are as frequent as r says within four standard deviations; bytes equal the formula."
    )

    budget: Budget = param(Budget(ratio=0.2), "start and recent entries together: a ratio of the prompt or a number")
    start: Budget | None = param(None, "first tokens that always stay: a ratio or a number; none: half of the budget")
    recent: Budget | None = param(None, "newest entries: a ratio or a number; none: half of the budget")
    targets: int = param(32, "tokens that a value is spread over (m)", minimum=1)
    attention: Literal["current", "accumulated"] = param("current", "what the chance of a merge is made of")
    merge_prompt: bool = param(False, "merge the prompt's middle, too, instead of dropping it")
    chance: float | None = param(None, "probability of every merge; none: by attention", minimum=0, maximum=1)

    def observes(self) -> frozenset[Observation]:
        if self.attention == "accumulated":
            return frozenset({ColumnSums()})
        return frozenset({LastQueries(1)}) if self.merge_prompt and self.chance is None else frozenset()

    def counts(self, prompt_tokens: int) -> tuple[int, int] | None:
        """Start and recent entries for a prompt of this length; None where nothing is evicted."""
        half = None if self.budget.ratio is None else self.budget.ratio / 2
        ratios = [half if part is None else part.ratio for part in (self.start, self.recent)]
        if sum(ratio for ratio in ratios if ratio is not None) >= 1:
            return None
        total = self.budget.tokens or 0
        halves = (total // 2, total - total // 2)
        start, recent = (
            int(ratio * prompt_tokens + 1e-9) if ratio is not None else (part.tokens or 0) if part is not None else half
            for ratio, part, half in zip(ratios, (self.start, self.recent), halves, strict=True)
        )
        return (start, recent) if recent else None

    def compress(self, record: PrefillRecord) -> KVCache:
        counts = self.counts(record.length)
        if counts is None:
            return record.cache.fork()
        seed = int(torch.randint(2**31, ()))
        return KVCache([self._layer(record.layer(i), *counts, seed) for i in range(record.shape.layers)])

    def _layer(self, record: LayerRecord, start: int, recent: int, seed: int) -> LayerKV:
        kv_heads, length, _ = record.key.shape
        draw = Draws(seed, record.index, kv_heads)
        kept = torch.arange(length, device=record.key.device)
        value, received = record.value, None
        if self.attention == "accumulated":
            received = group_reduce(column_sums(record), kv_heads)
        if start + recent < length:
            if self.merge_prompt:
                value = self._merged_prompt(record, received, range(start, length - recent), draw)
            kept = torch.cat([kept[:start], kept[length - recent :]])
        return CaMLayer(
            record.key[:, kept],
            value[:, kept],
            start=start,
            recent=recent,
            kept=kept,
            seen=length,
            method=self,
            draw=draw,
            received=None if received is None else received[:, kept],
        )

    def ratio(self, attention: Tensor, followers: Tensor) -> Tensor:
        """Probability of a merge: attention of x, and the mean that it is held against; all of one shape."""
        if self.chance is not None:
            return torch.full_like(attention, self.chance)
        return (attention / followers).nan_to_num(nan=0.0, posinf=1.0).clamp(0, 1)

    def _merged_prompt(self, record: LayerRecord, received: Tensor | None, evicted: range, draw: Draws) -> Tensor:
        """The prompt's values with the evicted ones merged forward one after another: a copy ``[Hk, L, d]``."""
        value, m = record.value.float().clone(), self.targets
        if received is None and self.chance is None:
            received = group_reduce(last_query_weights(record), value.shape[0])
        elif received is None:
            received = value.new_ones(value.shape[:2])
        reach = m if self.attention == "accumulated" else record.length
        sums = torch.nn.functional.pad(received.double().cumsum(dim=-1), (1, 0))
        x = torch.arange(evicted.start, evicted.stop, device=value.device)
        stop = (x + 1 + reach).clamp(max=record.length)
        followers = ((sums[:, stop] - sums[:, x + 1]) / (stop - x - 1)).float()
        z = draw(evicted.start, len(evicted)).to(value.device) < self.ratio(received[:, x], followers)
        tell_merged(
            record.index,
            lambda: [
                [
                    Merge((i,), tuple(range(i + 1, min(i + m, record.length - 1) + 1)))
                    for i, chosen in zip(evicted, row.tolist(), strict=True)
                    if chosen
                ]
                for row in z
            ],
        )
        for i in evicted:
            value[:, i + 1 : i + 1 + m] += (z[:, i - evicted.start, None] * value[:, i] / m)[:, None]
        return value.to(record.value.dtype)


@dataclass(frozen=True)
class Draws:
    """Uniform numbers in [0, 1) for each position of one layer, always the same ones.

    Attributes:
        seed: of the sample. layer: its number. heads: numbers to draw, one a KV head.
    """

    seed: int
    layer: int
    heads: int

    def __call__(self, position: int, count: int = 1) -> Tensor:
        """The numbers ``[heads, count]`` that decide on ``count`` tokens from this position on."""
        source = random.Random(f"{self.seed}|{self.layer}|{position}")
        drawn = [[source.random() for _ in range(count)] for _ in range(self.heads)]
        return torch.tensor(drawn, dtype=torch.float64)  # fp32 would round some of them up to 1


class CaMLayer(RingLayer):
    """A `RingLayer` whose values move on before they are overwritten.

    Args:
        key, value: ``[Hk, n, d]`` of the kept prompt tokens, in memory of their own.
        start, recent: entries that never leave, and those of the ring.
        kept: positions ``[n]`` int64. seen: tokens gone through so far.
        method: its parameters. draw: decides on merges.
        received: accumulated attention fp32 ``[Hk, n]``, or None where it does not count.
    """

    def __init__(
        self,
        key: Tensor,
        value: Tensor,
        *,
        start: int,
        recent: int,
        kept: Tensor,
        seen: int,
        method: CaM,
        draw: Draws,
        received: Tensor | None,
    ) -> None:
        super().__init__(key, value, sinks=start, capacity=start + recent, kept=kept, seen=seen)
        self.recent, self.method, self.draw, self.received = recent, method, draw, received
        self._origin = seen - recent if seen > start + recent else start  # position of the ring's first place

    @property
    def idle_to(self) -> int:
        return self.capacity - 2  # merges come a step before what is merged goes

    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        assert self._pending is not None, "attend must follow append"
        new_key, new_value = self._pending
        self._pending = None
        q = query.shape[1]
        outputs = []
        for i in range(q):  # one by one: each step changes what the next one sees
            position = self.seen - q + i
            self._push(new_key[:, i], new_value[:, i], position)
            key, value = self._key[:, : self.length], self._value[:, : self.length]
            hidden = outside_window(lambda: self.positions().to(query.device), position + 1, 1, rule.window)
            out, weights = attention.over_parts(
                query[:, i : i + 1], [key], [value], rule, hidden=hidden, return_weights=True
            )
            assert weights is not None
            outputs.append(out)
            self._merge(self._counted(group_reduce(weights[:, 0], key.shape[0]), position), position)
        return outputs[0] if q == 1 else torch.cat(outputs, dim=1)

    def _places(self, first: int, stop: int) -> Tensor:
        """Where in memory the entries of the positions first .. stop - 1 lie."""
        positions = torch.arange(first, stop, device=self._value.device)
        in_ring = self.sinks + (positions - self._origin) % self.recent
        return torch.where(positions < self.sinks, positions, in_ring)

    def _counted(self, weights: Tensor, position: int) -> Tensor:
        """The attention that decides, place by place ``[Hk, n]``, after the step of the token at ``position``."""
        if self.received is None:
            return weights
        if self.received.shape[1] < self.length:
            self.received = torch.nn.functional.pad(self.received, (0, 1))
        before = self.received.clone()
        before[:, self._places(position, position + 1)] = 0  # the place is the new token's now
        self.received = before + weights
        return self.received

    def _merge(self, weights: Tensor, newest: int) -> None:
        """Perhaps add the value at x to those after it; x is the oldest recent position of the next step."""
        x = newest + 2 - self.recent
        if x < self._first_recent or x >= newest:
            return
        place = self._places(x, x + 1)
        to = self._places(x + 1, min(x + self.method.targets, newest) + 1)
        against = to if self.received is not None else self._places(x + 1, newest + 1)
        chance = self.method.ratio(weights[:, place], weights[:, against].mean(dim=-1, keepdim=True))
        z = self.draw(x).to(weights.device) < chance
        share = self._value[:, place].float() * (z.float() / self.method.targets)[:, :, None]
        self._value[:, to] = (self._value[:, to].float() + share).to(self._value.dtype)
        into = tuple(range(x + 1, min(x + self.method.targets, newest) + 1))
        tell_merged(self.draw.layer, lambda: [[Merge((x,), into)] if chosen else [] for chosen in z[:, 0].tolist()])

    @property
    def _first_recent(self) -> int:
        """The oldest position that was ever in the ring."""
        return max(self.sinks, self._origin)

    def tensors(self) -> Iterator[Tensor]:
        yield from super().tensors()
        if self.received is not None:
            yield self.received

    def fork(self) -> CaMLayer:
        assert self._pending is None, "attend must follow append"
        new = CaMLayer(
            self._key[:, : self.length].clone(),
            self._value[:, : self.length].clone(),
            start=self.sinks,
            recent=self.recent,
            kept=self._kept[: self.length],
            seen=self.seen,
            method=self.method,
            draw=self.draw,
            received=self.received,
        )
        new._next, new._origin = self._next, self._origin
        return new
