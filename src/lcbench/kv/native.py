"""The cache of a model that brings its own (`models.native`), seen as a `KVCache`: bytes, held tokens, copies.

Nothing is stored here and nothing attends: the model does both. What the engine asks of a cache it gets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor

from lcbench.kv.cache import KVCache
from lcbench.kv.layer import LayerKV
from lcbench.models.native import NativeState
from lcbench.models.rule import AttentionRule


class NativeCache(KVCache):
    """One sequence's cache as its model keeps it.

    Attributes:
        native: what `models.adapter.forward` feeds.
    """

    def __init__(self, native: NativeState) -> None:
        super().__init__([_NativeLayer(native, layer) for layer in range(native.layers)])
        self.native = native

    @classmethod
    def empty(cls, model: Any) -> NativeCache:
        """For a model of one of `models.families.FAMILIES`."""
        return cls(NativeState.empty(model))

    def fork(self) -> NativeCache:
        return NativeCache(self.native.fork())


class _NativeLayer(LayerKV):
    """What one layer of the model holds."""

    def __init__(self, native: NativeState, layer: int) -> None:
        self._native, self._layer = native, layer

    @property
    def seen(self) -> int:  # type: ignore[override]
        return self._native.seen

    def tensors(self) -> Iterator[Tensor]:
        yield from self._native.by_layer()[self._layer]

    def positions(self) -> Tensor:
        """The newest tokens, as many as keys are held; none in a layer that has a state alone."""
        return torch.arange(self.seen - self._native.entries(self._layer), self.seen)

    def append(self, key: Tensor, value: Tensor) -> NoReturn:
        raise TypeError("the model keeps this cache itself")

    def attend(self, query: Tensor, rule: AttentionRule) -> NoReturn:
        raise TypeError("the model attends itself")

    def fork(self) -> NoReturn:
        raise TypeError("the layers of a model's own cache are copied together")
