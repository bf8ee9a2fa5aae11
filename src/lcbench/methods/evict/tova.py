"""TOVA: the cache is a state of fixed size; what the newest query attends to least leaves it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer
from lcbench.kv.observe import LastQueries, Observation
from lcbench.kv.record import LayerRecord, PrefillRecord, take
from lcbench.kv.scores import last_query_weights
from lcbench.methods.base import QUARTER, Method, Traits, top_positions
from lcbench.methods.registry import method


@method("tova", paper="arXiv:2401.06104", traits=Traits(family="evict"))
@dataclass(frozen=True)
class Tova(Method):
    """After each step the B entries with the most attention from the newest query stay (arXiv:2401.06104, section 4;
    rules as in schwartz-lab-NLP/TOVA src/tova_cache.py).

    The score of an entry is the newest query's softmax weight on it, averaged over all query heads; nothing is
    accumulated. One set of positions serves all heads of a layer. Nothing is protected: the newest token itself may
    leave. The prompt is read with dense attention and then cut to B at once; each new token then costs one entry.
    kvpress (tova_press.py) cuts the prompt only (`decode=false`) and never its last token (`keep_last`). Kept keys
    stay at the angles of their own positions.

    B is the budget. A number of tokens beyond the prompt's length bounds what follows it; a ratio of 1.0 never drops
    anything.

    One layer holds ``2 Hk d e B`` bytes (with ``decode=false`` ``+ 2 Hk d e`` a new token).
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Kept positions of tiny Llama, Mistral (sliding window) and Qwen2 models against the rule in fp64, after the "
        "prompt and after each of 64 forced tokens; their logits against the unmodified transformers model with "
        "every dropped key masked; bytes equal the formula, in elements and in memory."
    )

    budget: Budget = param(QUARTER, "entries of a layer: a ratio of the prompt (0.25) or a number (512)")
    decode: bool = param(True, "evict while decoding, too; false cuts the prompt only")
    keep_last: bool = param(False, "the newest token always stays, as in kvpress")

    def observes(self) -> frozenset[Observation]:
        return frozenset({LastQueries(1)})

    @property
    def leaves_subset(self) -> bool:
        return not self.decode

    def compress(self, record: PrefillRecord) -> KVCache:
        capacity = self.budget.capacity(record.length)
        if capacity is None or (capacity >= record.length and not self.decode):
            return record.cache.fork()
        rule = _Rule(capacity, self.keep_last)
        return KVCache([self._layer(record.layer(i), rule) for i in range(record.shape.layers)])

    def _layer(self, record: LayerRecord, rule: _Rule) -> DenseLayer:
        policy = rule.fork() if self.decode else None
        if rule.capacity >= record.length:
            return DenseLayer(record.key, record.value, policy=policy)
        index = rule.survivors(last_query_weights(record))
        key, value = take(record, index)
        return DenseLayer(key, value, kept=index, seen=record.length, policy=policy)


@dataclass
class _Rule:
    """The eviction rule, and the `DecodePolicy` that applies it to each new token."""

    capacity: int
    keep_last: bool
    needs_weights: bool = True

    @property
    def idle_to(self) -> int:
        """Entries up to which all are kept."""
        return self.capacity

    def survivors(self, weights: Tensor) -> Tensor:
        """Entries that stay ``[B]``, from the newest query's weights ``[H, n]`` over n > B entries."""
        scores = weights.mean(dim=0, keepdim=True)
        if self.keep_last:
            scores[:, -1] = torch.inf
        return top_positions(scores, self.capacity)[0]

    def after_attend(self, layer: DenseLayer, weights: Tensor | None) -> None:
        assert weights is not None, "entries are ranked by attention weights"
        if weights.shape[2] > self.capacity:
            layer.keep(self.survivors(weights[:, 0]))

    def tensors(self) -> Iterator[Tensor]:
        return iter(())

    def fork(self) -> _Rule:
        return replace(self)
