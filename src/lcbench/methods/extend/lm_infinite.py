"""LM-Infinite: the newest tokens, the first ones at a bounded distance, and nothing between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lcbench.config.options import param
from lcbench.kv.cache import KVCache
from lcbench.kv.distances import Distances
from lcbench.kv.layer import LayerKV
from lcbench.kv.record import LayerRecord, PrefillRecord, take
from lcbench.kv.ring import RingLayer
from lcbench.methods.base import Traits
from lcbench.methods.extension import DistanceChange
from lcbench.methods.registry import method
from lcbench.models.rope import Rope


@method("lm-infinite", paper="arXiv:2308.16137", traits=Traits(family="extend", prefill="own"))
@dataclass(frozen=True)
class LMInfinite(DistanceChange):
    """A window and the first tokens, no distance beyond the window (arXiv:2308.16137, section 4; rules as in
    Glaciohound/LM-Infinite models/lambda_attention.py).

    A query at i, of the prompt and after it, sees the keys j with ``i - j < n_local`` at their true distance, and of
    those further away the first `n_global`, all of them at the distance `n_local`, under one softmax. Any number of
    tokens is served; what lies between the two is not seen. 100-LongBench takes 4096 and 10 for Llama-2-7B.

    After the prompt only what later tokens can see is held: ``2 Hk d e (n_global + n_local)`` bytes a layer. With
    `bounded=false` everything stays, as in the authors' code, with the same answers. Where another method works on it
    (lm-infinite+kivi) it is given the whole prompt.
    """

    proof: ClassVar[str] = (
        "Logits of tiny models with grouped queries, prompt and 64 forced tokens, against attention written with an "
        "explicit mask and clipped distances in fp64; the bounded cache gives what the whole one gives; a token "
        "outside what is seen changes nothing in a model of one layer; texts within n_local equal the plain model."
    )

    n_local: int | None = param(None, "newest tokens seen at their true distance; none: the trained window", minimum=1)
    n_global: int = param(10, "first tokens that are always seen", minimum=0)
    bounded: bool = param(True, "hold only what later tokens can see")

    def extended(self, trained: int) -> None:
        return None

    def distances(self, rope: Rope | None, trained: int) -> Distances:
        return Distances(self.n_local or trained, None, self.n_global, rope)

    def compress(self, record: PrefillRecord) -> KVCache:
        if not self.bounded:
            return record.cache.fork()
        return KVCache([self._held(record.layer(i)) for i in range(record.shape.layers)])

    def _held(self, record: LayerRecord) -> LayerKV:
        near = record.rule.distances.near
        sinks = min(self.n_global, record.length)
        first = torch.arange(sinks, device=record.key.device)
        newest = torch.arange(max(sinks, record.length - near), record.length, device=record.key.device)
        kept = torch.cat([first, newest])
        key, value = take(record, kept)
        return RingLayer(key, value, sinks=self.n_global, capacity=self.n_global + near, kept=kept, seen=record.length)
