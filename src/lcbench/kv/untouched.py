"""Whether a method left a prompt as it was read: its cache is then the full cache, and answers like it."""

from __future__ import annotations

from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer, LayerKV
from lcbench.kv.record import PrefillRecord
from lcbench.kv.ring import RingLayer


def is_untouched(cache: KVCache, record: PrefillRecord, tokens: int) -> bool:
    """Whether a method left the prompt as it was, and will not act before so many tokens of prompt and answer."""
    return all(
        isinstance(theirs, DenseLayer) and _layer(mine, theirs, tokens)
        for mine, theirs in zip(cache.layers, record.cache.layers, strict=True)
    )


def _layer(mine: LayerKV, theirs: DenseLayer, tokens: int) -> bool:
    if isinstance(mine, RingLayer):
        return mine.held == theirs.filled and mine.idle_to >= tokens
    if type(mine) is not DenseLayer or mine.kept is not None or mine.filled != theirs.filled:
        return False  # a subclass looks at its entries in a way of its own (Quest)
    if mine.policy is not None and getattr(mine.policy, "idle_to", 0) < tokens:
        return False
    pairs = ((mine.key, theirs.key), (mine.value, theirs.value))
    return all(a is not None and b is not None and a.data_ptr() == b.data_ptr() for a, b in pairs)
