"""What one dense pass over a prompt leaves behind: the cache, the last logits, and what observers saw."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.layer import DenseLayer
from lcbench.kv.pick import rows_at
from lcbench.models.rule import AttentionRule


@dataclass(frozen=True)
class LayerRecord:
    """One layer of a prefill record, as a scorer sees it. Never modify the tensors.

    Attributes:
        index: layer number, 0 at the bottom. layers: how many there are.
        key, value: ``[Hk, L, d]`` after RoPE, model dtype.
        rule: how the layer makes weights of products.
        observed: observation to what its observer kept for this layer (see `kv.observe`).
        kept: text positions ``[L]`` or ``[Hk, L]`` int64 where the record holds part of a prompt; None for all of it.
        seen: tokens of that prompt; None for L.
        memo: what was computed of this layer and may be asked for again (see `once`); shared by all methods.
    """

    index: int
    layers: int
    key: Tensor
    value: Tensor
    rule: AttentionRule
    observed: Mapping[Any, Any] = field(default_factory=dict)
    kept: Tensor | None = None
    seen: int | None = None
    memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def length(self) -> int:
        return int(self.key.shape[1])

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """What ``compute`` gives, computed once a layer and prompt for each ``key``. Never modify it.

        Scores that several methods or budgets rank a prompt's tokens by go through here.
        """
        if key not in self.memo:
            self.memo[key] = compute()
        found: Tensor = self.memo[key]
        return found

    @property
    def scaling(self) -> float:
        """Factor on q.k."""
        return self.rule.scaling

    @property
    def window(self) -> int | None:
        """Tokens a query of this layer sees, itself included; None for all."""
        return self.rule.window


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
        memo: of each layer, see `LayerRecord.memo`.
    """

    cache: KVCache
    logits: Tensor
    shape: CacheShape
    scaling: float
    observed: Mapping[Any, list[Any]] = field(default_factory=dict)
    question_tokens: int = 0
    memo: dict[int, dict[Any, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def length(self) -> int:
        return self.cache.seen

    def layer(self, index: int) -> LayerRecord:
        """Layer ``index`` as scorers and transforms see it."""
        store = self.cache.layers[index]
        assert isinstance(store, DenseLayer), "a record holds a dense prompt"
        keys, values = store.parts()
        assert store.tail is None, "a record holds a prompt and nothing after it"
        (key,), (value,) = keys, values
        record = LayerRecord(
            index,
            len(self.cache.layers),
            key,
            value,
            store.rule or AttentionRule(self.scaling),
            {what: per_layer[index] for what, per_layer in self.observed.items()},
        )
        object.__setattr__(record, "memo", self.memo.setdefault(index, {}))  # a changed copy has a memo of its own
        return record


def take(record: LayerRecord, index: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of the keys and values at ``index``.

    Args:
        index: ``[n]`` for all KV heads alike, ``[Hk, n]`` head by head, or ``[H, n]`` query head by query head: each
            of these then gets its own copy ``[H, n, d]`` of what its KV head holds.
    """
    return rows_at(record.key, index), rows_at(record.value, index)
