"""The cache of one sequence: a store a layer, its bytes, its forks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lcbench.kv.layer import DenseLayer, LayerKV


@dataclass(frozen=True)
class CacheShape:
    """Everything about a model that decides the size of its cache.

    Attributes:
        layers, heads, kv_heads, head_dim: N, H, Hk, d.
        dtype: of keys and values. device: where they live.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def groups(self) -> int:
        """Query heads a KV head, g = H / Hk."""
        return self.heads // self.kv_heads

    def full_bytes(self, tokens: int) -> int:
        """Bytes of an uncompressed cache of ``tokens``: 2 N Hk d e T."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize * tokens


class KVCache:
    """One store a layer for one sequence."""

    def __init__(self, layers: Sequence[LayerKV]) -> None:
        self.layers: list[LayerKV] = list(layers)

    @classmethod
    def dense(cls, layers: int, expected: int = 0) -> KVCache:
        """An empty uncompressed cache with room for a prompt of ``expected`` tokens."""
        return cls([DenseLayer(expected=expected) for _ in range(layers)])

    @property
    def seen(self) -> int:
        """Tokens gone through; the next token's position. Equal in all layers."""
        return self.layers[0].seen

    @property
    def nbytes(self) -> int:
        """Bytes of every tensor held, by element count."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def storage_nbytes(self) -> int:
        """Bytes of the memory behind them, each storage once."""
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for layer in self.layers
            for t in layer.tensors()
            if t.numel()
        }
        return sum(storages.values())

    @property
    def entries(self) -> float:
        """Entries held, mean over layers and KV heads."""
        return sum(layer.entries for layer in self.layers) / len(self.layers)

    def fork(self) -> KVCache:
        """An independent copy (frozen tensors shared)."""
        return KVCache([layer.fork() for layer in self.layers])
