"""StreamingLLM as its authors and a published benchmark run it: the prompt, too, is read through a window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.errors import BadValue
from lcbench.kv import attention
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.layer import LayerKV, outside_window
from lcbench.kv.ring import RingLayer
from lcbench.kv.rope import moved
from lcbench.kv.sections import Section, over_sections
from lcbench.methods.base import AttentionMethod, Traits
from lcbench.methods.registry import method
from lcbench.models.rope import observed_rope
from lcbench.models.rule import AttentionRule

PRESETS = {"2x": 0.5, "4x": 0.25, "6x": 0.17, "8x": 0.125}  # tokens kept, as a share of the prompt
INIT_SHARE = 0.021  # of those tokens, the first ones
_ROWS = 512  # queries of a prompt whose logits are made at once


@method("streamingllm-longctx", paper="arXiv:2309.17453", traits=Traits(family="evict", prefill="own"))
@dataclass(frozen=True)
class StreamingLLMLongctx(AttentionMethod):
    """StreamingLLM (arXiv:2309.17453, section 3.2) with a windowed prompt and positions inside the cache, the way "KV
    Cache Compression, But What Must We Give in Return?" measured it (arXiv:2407.01527; rules as in thunlp/InfLLM
    inf_llm/attention/stream_llm.py, which henryzhongsc/longctx_bench runs). `streamingllm` is the form that drops
    tokens after a dense prompt.

    Every query i, of the prompt and after it, sees the keys j with ``0 <= i - j < n_local`` at their true distance,
    and of the first `n_init` those that are further away, under one softmax. To the latter the query stands at the
    angle ``n_local + n_init - 1`` and key j at j, so that no distance exceeds the size of the cache. With `variant`
    official the query stands at its index inside the cache, ``min(i, n_local + n_init - 1)``, as in
    mit-han-lab/streaming-llm (its start_size is `n_init`, its recent_size is ``n_local - 1``: here the query itself
    counts); the two differ only while the window leaves the first `n_init` tokens. Keys are held at the angle of their
    own position and the query is turned instead: only differences of angles count.

    `preset` 2x, 4x, 6x and 8x keep ``T = floor(c min(L, cap))`` tokens, c = 0.5, 0.25, 0.17 and 0.125:
    ``n_init = floor(0.021 T)`` and ``n_local = max(1, T - n_init)``. `cap` is the paper's prompt limit (7500 for
    Llama-3-8B, 31500 for LongChat-7B and Mistral-7B); the prompt itself is read whole. `budget` replaces the preset,
    `n_init` and `n_local` replace what follows from it. A layer with a sliding window of its own sees nothing beyond
    it, first tokens included.

    One layer holds ``2 Hk d e (n_init + n_local)`` bytes.
    """

    turns: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models over 64 tokens, prompt "
        "included, against attention written with explicit masks and angles in fp64, for both variants; told apart "
        "from the other variant and from original angles. Prompts in one piece and in pieces of several sizes; with "
        "room for everything, the full cache; presets give the paper's tokens at 2000, 7500 and 31500; bytes equal "
        "the formula; a text far longer than the cache against indices inside it."
    )

    preset: Literal["2x", "4x", "6x", "8x"] = param("4x", "the paper's budgets: 2x, 4x, 6x or 8x")
    budget: Budget | None = param(None, "tokens kept, first ones included; none: by preset")
    cap: int | None = param(None, "prompt tokens that count for the budget, at most; none: all", minimum=1)
    n_init: int | None = param(None, "first tokens that always stay; none: 2.1% of the budget", minimum=0)
    n_local: int | None = param(None, "newest tokens kept; none: the rest of the budget", minimum=1)
    variant: Literal["infllm", "official"] = param("infllm", "query angle to the first tokens: constant, or official")

    def __post_init__(self) -> None:
        if self.n_local is not None and self.n_local < 1:
            raise BadValue(f"streamingllm-longctx@n_local={self.n_local} keeps no token.", "Use 1 or more.")
        if self.n_init is not None and self.n_init < 0:
            raise BadValue(f"streamingllm-longctx@n_init={self.n_init} is below the least value 0.", "Use 0 or more.")

    def sizes(self, prompt_tokens: int) -> tuple[int, int]:
        """First tokens and newest tokens that are kept of a prompt of this length."""
        counted = min(prompt_tokens, self.cap or prompt_tokens)
        budget = self.budget or Budget(ratio=PRESETS[self.preset])
        total = int((budget.ratio or 0.0) * counted) if budget.tokens is None else budget.tokens
        n_init = int(INIT_SHARE * total) if self.n_init is None else self.n_init
        return n_init, max(1, total - n_init) if self.n_local is None else self.n_local

    def prefill_cache(self, shape: CacheShape, prompt_tokens: int) -> KVCache:
        n_init, n_local = self.sizes(prompt_tokens)
        official = self.variant == "official"
        return KVCache([StreamingLayer(n_init, n_local, official, expected=prompt_tokens) for _ in range(shape.layers)])


class StreamingLayer(LayerKV):
    """First tokens and a window, while the prompt is read and after it.

    Args:
        n_init, n_local: tokens of the two. official: see `StreamingLLMLongctx`. expected: tokens of the prompt.
    """

    def __init__(self, n_init: int, n_local: int, official: bool, *, expected: int) -> None:
        self.seen = 0
        self.n_init, self.n_local, self.official, self.expected = n_init, n_local, official, expected
        self._held: tuple[Tensor, Tensor] | None = None  # while the prompt is read
        self._pending: tuple[Tensor, Tensor] | None = None
        self._ring: _SinkRing | None = None  # once it is

    def append(self, key: Tensor, value: Tensor) -> None:
        if self._ring is not None:
            self._ring.append(key, value)
        else:
            self._pending = (key, value)
        self.seen += key.shape[1]

    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        if self._ring is not None:
            return self._ring.attend(query, rule)
        assert self._pending is not None, "attend must follow append"
        out = self._read(query, *self._pending, rule)
        self._pending = None
        return out

    def _read(self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """Attention of a piece of the prompt; then forgets what no later query sees."""
        start = self.seen - query.shape[1]
        if self._held is not None:
            key, value = torch.cat([self._held[0], key], dim=1), torch.cat([self._held[1], value], dim=1)
        gap = self.seen - key.shape[1]  # tokens forgotten between the first ones and the window
        if self.seen <= self.n_local:
            out = attention.causal(query, key, value, rule)
        else:
            blocks = range(start, self.seen, _ROWS)
            pieces = [(first, min(first + _ROWS, self.seen)) for first in blocks]
            out = torch.cat(
                [
                    self._rows(query[:, first - start : stop - start], key, value, first, gap, rule)
                    for first, stop in pieces
                ],
                dim=1,
            )
        sinks = min(self.n_init, self.seen)
        recent = torch.arange(max(sinks, self.seen - self.n_local), self.seen)
        kept = torch.cat([torch.arange(sinks), recent])
        place = torch.where(kept < sinks, kept, kept - gap).to(key.device)
        key, value = key.index_select(1, place), value.index_select(1, place)
        if self.seen < self.expected:
            self._held = (key, value)
        else:
            self._held, self._ring = None, _SinkRing(self, key, value, kept)
        return out

    def _rows(self, query: Tensor, key: Tensor, value: Tensor, first: int, gap: int, rule: AttentionRule) -> Tensor:
        """Output of the queries from position ``first`` on, over keys that lack ``gap`` tokens after the first ones."""
        stop = first + query.shape[1]
        low = max(0, first - self.n_local + 1)
        rows = torch.arange(first, stop, device=query.device)[:, None]
        near = rows - torch.arange(low, stop, device=query.device)[None]
        hidden = (near < 0) | (near >= min(self.n_local, rule.window or self.n_local))
        inside = slice(low - gap, stop - gap)
        sections = [Section(query, key[:, inside], value[:, inside], hidden)]
        sinks = min(self.n_init, stop - self.n_local)
        if sinks > 0:
            far = rows - torch.arange(sinks, device=query.device)[None]
            hidden = far < self.n_local
            if rule.window is not None:
                hidden |= far >= rule.window
            sections.append(Section(self.far_query(query, first), key[:, :sinks], value[:, :sinks], hidden))
        return over_sections(sections, rule)[0]

    def far_query(self, query: Tensor, first: int) -> Tensor:
        """Queries ``[H, q, d]`` from position ``first`` on at the angles at which they see the first tokens."""
        positions = torch.arange(first, first + query.shape[1], device=query.device)
        angles = torch.full_like(positions, self.n_local + self.n_init - 1)
        return moved(observed_rope(), query, positions, torch.minimum(positions, angles) if self.official else angles)

    def positions(self) -> Tensor:
        assert self._ring is not None, "the prompt is not read yet"
        return self._ring.positions()

    def tensors(self) -> Iterator[Tensor]:
        if self._ring is not None:
            yield from self._ring.tensors()
        elif self._held is not None:
            yield from self._held

    def fork(self) -> StreamingLayer:
        assert self._pending is None, "attend must follow append"
        new = StreamingLayer(self.n_init, self.n_local, self.official, expected=self.expected)
        new.seen, new._held = self.seen, self._held
        new._ring = None if self._ring is None else self._ring.forked(new)
        return new


class _SinkRing(RingLayer):
    """The ring after the prompt: one new token a step, the first tokens seen from their own angle."""

    def __init__(self, layer: StreamingLayer, key: Tensor, value: Tensor, kept: Tensor) -> None:
        super().__init__(
            key, value, sinks=layer.n_init, capacity=layer.n_init + layer.n_local, kept=kept, seen=layer.seen
        )
        self.layer = layer

    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        assert self._pending is not None, "attend must follow append"
        new_key, new_value = self._pending
        self._pending = None
        q = query.shape[1]
        outputs = []
        for i in range(q):  # one by one: a later token may overwrite what an earlier one still sees
            position = self.seen - q + i
            self._push(new_key[:, i], new_value[:, i], position)
            outputs.append(self._one(query[:, i : i + 1], position, rule))
        return outputs[0] if q == 1 else torch.cat(outputs, dim=1)

    def _one(self, query: Tensor, position: int, rule: AttentionRule) -> Tensor:
        held = slice(0, self.length)
        key, value = self._key[:, held], self._value[:, held]
        hidden = outside_window(lambda: self.positions().to(query.device), position + 1, 1, rule.window)
        mask = None if hidden is None else hidden[0]
        sinks = min(self.sinks, max(0, position - self.layer.n_local + 1))  # those the window has left
        near = Section(query, key[:, sinks:], value[:, sinks:], None if mask is None else mask[:, sinks:])
        if sinks == 0:
            return over_sections([near], rule)[0]
        turned = self.layer.far_query(query, position)
        far = Section(turned, key[:, :sinks], value[:, :sinks], None if mask is None else mask[:, :sinks])
        return over_sections([near, far], rule)[0]

    def forked(self, layer: StreamingLayer) -> _SinkRing:
        """A copy that belongs to ``layer``."""
        new = _SinkRing(
            layer,
            self._key[:, : self.length].clone(),
            self._value[:, : self.length].clone(),
            self._kept[: self.length],
        )
        new.seen, new._next = self.seen, self._next
        return new
