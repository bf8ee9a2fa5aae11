"""The numbers of a model that decide the size of its cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StateShape:
    """What a model holds that keeps a state beside keys and values, or instead of them (`models.native`).

    Attributes:
        state_bytes: of convolutions and recurrences, whatever the length of the text.
        token_bytes: of the keys and values of one token, in layers that keep all of them.
        window_bytes: the same in layers that keep the last ``window`` tokens.
        attention_layers: layers with keys and values. hidden: width of the residual stream.
        scan_bytes: memory that a token of a prompt needs while a layer runs, beside activations.
        continues: several tokens may be read at once into a state that is not empty.
        stacks: several sequences can take a step as one batch.
    """

    state_bytes: int
    token_bytes: int
    window_bytes: int
    window: int
    attention_layers: int
    hidden: int
    scan_bytes: int
    continues: bool
    stacks: bool = False

    def bytes_at(self, tokens: int) -> int:
        """Bytes of one sequence of ``tokens``."""
        return self.state_bytes + self.token_bytes * tokens + self.window_bytes * min(tokens, self.window)


@dataclass(frozen=True)
class CacheShape:
    """Everything about a model that decides the size of its cache.

    Attributes:
        layers, heads, kv_heads, head_dim: N, H, Hk, d; H, Hk and d are 0 for a model without attention.
        dtype: of keys and values. device: where they live.
        state: of a model that runs on the cache it brings along; None for one that lcbench's own cache serves.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    state: StateShape | None = None

    @property
    def groups(self) -> int:
        """Query heads a KV head, g = H / Hk."""
        return self.heads // self.kv_heads

    def full_bytes(self, tokens: int) -> int:
        """Bytes of an uncompressed cache of ``tokens``: 2 N Hk d e T, or what a model with a state holds."""
        if self.state is not None:
            return self.state.bytes_at(tokens)
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize * tokens
