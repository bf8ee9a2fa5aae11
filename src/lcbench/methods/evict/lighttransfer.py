"""LightTransfer / SimLayerKV: layers that look only at the first and the latest tokens keep nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.errors import BadValue, ModelError
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.layer import DenseLayer, LayerKV
from lcbench.kv.observe import LastQueries, Observation
from lcbench.kv.record import LayerRecord, PrefillRecord, take
from lcbench.kv.ring import RingLayer
from lcbench.kv.scores import last_queries
from lcbench.kv.weights import weight_blocks
from lcbench.methods.base import Method, Traits
from lcbench.methods.registry import method


@method("lighttransfer", paper="arXiv:2410.13846", traits=Traits(family="evict"))
@dataclass(frozen=True)
class LightTransfer(Method):
    """Lazy layers become streaming layers, the others keep everything (arXiv:2410.13846, section 3; first version
    SimLayerKV, sail-sg/SimLayerKV).

    The lazy score of a layer is the attention mass, between 0 and 1, that the last `queries` prompt tokens put on the
    first `n_sink` and on the `n_recent` latest keys up to their own, averaged over queries and heads; a key counts
    once. Three ways to choose:

    * `lazy_layers`: the P layers with the highest scores (LightTransfer-Test of the second version; the default, with
      P half of the layers). The saving is fixed.
    * `theta`: every layer whose score exceeds it (SimLayerKV; the authors use 0.9 for Llama-3, 0.65 for Llama-2, 0.8
      for Mistral, 0.85 for Qwen). The saving depends on the text. `keep_last` layers at the top are never cut (2 in
      the authors' Qwen code).

    * `fixed`: these layers, whatever the text: the list of a hybrid that was trained with it (LightTransfer-Train). Its
      checkpoint is the ``--model``; which layers it made lazy stands in its own code.

    Lazy layers keep ``n_sink + n_recent`` tokens, and with `roll` no more than that while decoding (our choice); the
    released code lets them grow (`roll=false`). It also scores the first decoding query; here the prompt's last
    queries score, as in its commented-out prefill form and in kvpress (`queries=1`). Prompts of at most
    ``n_sink + n_recent`` tokens are left alone.

    The cache holds ``2 Hk d e`` bytes for each of the ``n_sink + n_recent`` tokens of a lazy layer and of all tokens
    of the others.
    """

    proof: ClassVar[str] = (
        "Lazy scores against fp64 with Python loops; P and theta forms choose the layers these scores name, the fixed "
        "form those it is given; "
        "teacher-forced logits over 64 tokens, rolling and not, against the plain transformers model with the dropped "
        "keys of the lazy layers masked; theta=1 and P=0 drop nothing, theta=0 makes all layers lazy; bytes equal the "
        "formula, in memory too."
    )

    lazy_layers: int | None = param(None, "number of lazy layers (P); none: half of all", minimum=0)
    theta: float | None = param(None, "instead: layers whose lazy score exceeds this are lazy", minimum=0, maximum=1)
    fixed: tuple[int, ...] = param((), "instead: these layers are lazy, counted from 0 and joined by /", minimum=0)
    n_sink: int = param(4, "first tokens that lazy layers keep", minimum=0)
    n_recent: int = param(1024, "newest tokens that lazy layers keep", minimum=1)
    queries: int = param(32, "last prompt tokens whose attention is looked at", minimum=1)
    keep_last: int = param(0, "layers at the top that are never lazy", minimum=0)
    roll: bool = param(True, "lazy layers drop their oldest recent token for each new one; false lets them grow")

    def __post_init__(self) -> None:
        if self.lazy_layers is not None and self.theta is not None:
            raise BadValue(
                f"lighttransfer@lazy_layers={self.lazy_layers} and theta={self.theta} are two ways to choose layers.",
                "Give one of them.",
            )
        if self.fixed and (self.lazy_layers is not None or self.theta is not None):
            raise BadValue("lighttransfer@fixed names the lazy layers; nothing is left to choose.", "Give fixed alone.")

    def check(self, shape: CacheShape) -> None:
        if max(self.fixed, default=0) >= shape.layers:
            raise ModelError(
                f"lighttransfer@fixed names layer {max(self.fixed)}, and the model has {shape.layers} of them.",
                f"Name layers from 0 to {shape.layers - 1}.",
            )

    def observes(self) -> frozenset[Observation]:
        return frozenset() if self.fixed else frozenset({LastQueries(self.queries)})

    @property
    def leaves_subset(self) -> bool:
        return not self.roll

    def compress(self, record: PrefillRecord) -> KVCache:
        if record.length <= self.n_sink + self.n_recent:
            return record.cache.fork()
        layers = [record.layer(i) for i in range(record.shape.layers)]
        lazy = set(self.fixed) or self.choose([self.lazy_score(layer) for layer in layers])
        full = record.cache.fork()
        return KVCache(
            [self._streaming(layer) if layer.index in lazy else full.layers[layer.index] for layer in layers]
        )

    def choose(self, scores: list[float]) -> set[int]:
        """Which layers are lazy, from the lazy scores of all; ties go to the lower layer."""
        candidates = range(max(0, len(scores) - self.keep_last))
        if self.theta is not None:
            return {i for i in candidates if scores[i] > self.theta}
        count = len(scores) // 2 if self.lazy_layers is None else self.lazy_layers
        return set(sorted(candidates, key=lambda i: (-scores[i], i))[:count])

    def lazy_score(self, record: LayerRecord) -> float:
        """Mean attention mass on sinks and recent keys, in [0, 1]."""
        query, length = last_queries(record, self.queries), record.length
        mass = 0.0
        for block in weight_blocks(query, record.key, record.rule):
            first = length - query.shape[1] + block.rows.start
            row = torch.arange(first, first + block.weights.shape[1], device=query.device)[:, None]
            col = torch.arange(block.cols.start, block.cols.stop, device=query.device)[None]
            near = (col < self.n_sink) | (col > row - self.n_recent)
            mass += float((block.weights * near).sum(dtype=torch.float64))
        return min(1.0, mass / (query.shape[0] * query.shape[1]))

    def _streaming(self, record: LayerRecord) -> LayerKV:
        """The store of a lazy layer."""
        kept = self._kept(record)
        key, value = take(record, kept)
        if not self.roll:
            return DenseLayer(key, value, kept=kept, seen=record.length)
        capacity = self.n_sink + self.n_recent
        return RingLayer(key, value, sinks=self.n_sink, capacity=capacity, kept=kept, seen=record.length)

    def _kept(self, record: LayerRecord) -> Tensor:
        device = record.key.device
        recent = torch.arange(record.length - self.n_recent, record.length, device=device)
        return torch.cat([torch.arange(self.n_sink, device=device), recent])
