"""StreamingLLM, post-prefill form: attention sinks and a rolling window of recent tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.errors import BadValue
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer, LayerKV
from lcbench.kv.record import PrefillRecord, take
from lcbench.kv.ring import RingLayer
from lcbench.methods.base import QUARTER, Method, Traits
from lcbench.methods.registry import method


@method("streamingllm", paper="arXiv:2309.17453", traits=Traits(family="evict"))
@dataclass(frozen=True)
class StreamingLLM(Method):
    """The first `n_sink` tokens and the newest ones; the middle is dropped (arXiv:2309.17453, section 3.2).

    Post-prefill form, as kvpress and KVCache-Factory have it: the prompt is read with dense attention, then every
    layer and head keeps the same B tokens, sinks included, at the RoPE angles of their own positions. (The paper's
    own form windows the prompt's attention too and re-numbers positions inside the cache.)

    B is the budget: a number of tokens, or the floor of a ratio of the prompt's length, and never under n_sink + 1.
    With `roll` B bounds the cache for good: each new token takes the place of the oldest one that is not a sink, so
    the newest query sees the sinks, the B - n_sink - 1 tokens before it, and itself. A prompt within its budget loses
    nothing; if B was given in tokens the cache then fills up to B and rolls from there. A ratio of 1.0 never drops
    anything. Without `roll` only the prompt is cut, as in both repositories, and every new token is added.

    One layer holds ``2 Hk d e B`` bytes (without `roll` ``+ 2 Hk d e`` a new token).
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models over 64 tokens, rolling and "
        "not, against the unmodified transformers model (eager, whole text at once) with every dropped key masked; "
        "kept positions against the rule at each step; bytes equal the formula, in elements and in memory."
    )

    n_sink: int = param(4, "first tokens that always stay", minimum=0)
    budget: Budget = param(QUARTER, "tokens kept, sinks included: a ratio of the prompt (0.25) or a number (512)")
    roll: bool = param(True, "keep the cache within the budget while decoding; false cuts the prompt only")

    def __post_init__(self) -> None:
        if self.n_sink < 0:
            raise BadValue(f"streamingllm@n_sink={self.n_sink} is below the least value 0.", "Use 0 or more.")
        if self.budget.tokens is not None and self.budget.tokens <= self.n_sink:
            raise BadValue(
                f"streamingllm@budget={self.budget} leaves no room for recent tokens beside {self.n_sink} sinks.",
                f"Use a budget of {self.n_sink + 1} tokens or more, or fewer sinks.",
            )

    def capacity(self, prompt_tokens: int) -> int | None:
        """Most entries a layer holds for a prompt of this length; None for no bound."""
        if self.budget.ratio == 1.0:
            return None
        if self.budget.tokens is not None:
            return self.budget.tokens
        return max(self.budget.resolve(prompt_tokens), self.n_sink + 1)

    @property
    def leaves_subset(self) -> bool:
        return not self.roll

    def compress(self, record: PrefillRecord) -> KVCache:
        capacity = self.capacity(record.length)
        if capacity is None or (capacity >= record.length and not self.roll):
            return record.cache.fork()
        kept = self._kept(record, capacity)
        return KVCache([self._store(record, i, kept, capacity) for i in range(record.shape.layers)])

    def _kept(self, record: PrefillRecord, capacity: int) -> Tensor:
        """Positions of the prompt's tokens that stay, ascending, ``[min(L, B)]``."""
        length, device = record.length, record.shape.device
        if capacity >= length:
            return torch.arange(length, device=device)
        recent = torch.arange(length - (capacity - self.n_sink), length, device=device)
        return torch.cat([torch.arange(self.n_sink, device=device), recent])

    def _store(self, record: PrefillRecord, index: int, kept: Tensor, capacity: int) -> LayerKV:
        layer = record.layer(index)
        kept = kept.to(layer.key.device)
        key, value = take(layer, kept)
        if not self.roll:
            return DenseLayer(key, value, kept=kept, seen=record.length)
        return RingLayer(key, value, sinks=self.n_sink, capacity=capacity, kept=kept, seen=record.length)
