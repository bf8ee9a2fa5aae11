"""The cache of one sequence: a store a layer, its bytes, its forks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lcbench.kv.layer import DenseLayer, LayerKV
from lcbench.models.shape import CacheShape

__all__ = ["CacheShape", "KVCache", "storage_nbytes"]


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
        return storage_nbytes([self])

    @property
    def resident_nbytes(self) -> int:
        """Bytes of them that the next step reads; less than `nbytes` for methods that look parts up."""
        return sum(layer.resident_nbytes for layer in self.layers)

    @property
    def entries(self) -> float:
        """Entries held, mean over layers and KV heads."""
        return sum(layer.entries for layer in self.layers) / len(self.layers)

    def fork(self) -> KVCache:
        """An independent copy (frozen tensors shared)."""
        return KVCache([layer.fork() for layer in self.layers])

    def let_go(self) -> None:
        """Give the memory back at once; the cache is not used any more (see `LayerKV.let_go`)."""
        for layer in self.layers:
            layer.let_go()


def storage_nbytes(caches: Iterable[KVCache]) -> int:
    """Bytes of the memory behind every tensor of several caches, each storage once: what forks share counts once."""
    held = [t for cache in caches for layer in cache.layers for t in layer.tensors() if t.numel()]
    # All at once: a store may make its tensors when asked, and two that follow one another would get one address.
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())
