"""What one dense pass over a prompt leaves behind: the cache, the last logits, and what observers saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.layer import DenseLayer


@dataclass(frozen=True)
class LayerRecord:
    """One layer of a prefill record, as a scorer sees it. Never modify the tensors.

    Attributes:
        index: layer number, 0 at the bottom. layers: how many there are.
        key, value: ``[Hk, L, d]`` after RoPE, model dtype.
        scaling: factor the model puts on q.k.
        observed: observation to what its observer kept for this layer (see `kv.observe`).
    """

    index: int
    layers: int
    key: Tensor
    value: Tensor
    scaling: float
    observed: Mapping[Any, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return int(self.key.shape[1])


@dataclass(frozen=True)
class PrefillRecord:
    """The shared result of one unmodified dense forward over a prompt. Methods fork it; nobody writes to it.

    Attributes:
        cache: dense, L tokens a layer.
        logits: ``[vocab]`` of the last prompt token.
        shape: of the model's cache.
        scaling: factor the model puts on q.k.
        observed: observation to a list of per-layer results.
        question_tokens: how many of the last tokens are the question (0 when not known).
    """

    cache: KVCache
    logits: Tensor
    shape: CacheShape
    scaling: float
    observed: Mapping[Any, list[Any]] = field(default_factory=dict)
    question_tokens: int = 0

    @property
    def length(self) -> int:
        return self.cache.seen

    def layer(self, index: int) -> LayerRecord:
        """Layer ``index`` as scorers and transforms see it."""
        store = self.cache.layers[index]
        assert isinstance(store, DenseLayer) and store.key is not None and store.value is not None
        return LayerRecord(
            index,
            len(self.cache.layers),
            store.key,
            store.value,
            self.scaling,
            {what: per_layer[index] for what, per_layer in self.observed.items()},
        )


def take(record: LayerRecord, index: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of the keys and values at ``index``: ``[n]`` for all KV heads alike, or ``[Hk, n]`` head by head."""
    if index.ndim == 1:
        return record.key.index_select(1, index), record.value.index_select(1, index)
    wide = index[..., None]
    return (
        torch.gather(record.key, 1, wide.expand(-1, -1, record.key.shape[2])),
        torch.gather(record.value, 1, wide.expand(-1, -1, record.value.shape[2])),
    )
