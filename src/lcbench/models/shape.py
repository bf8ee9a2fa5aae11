"""The numbers of a model that decide the size of its cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
