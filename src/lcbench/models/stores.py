"""What a forward pass needs of whoever holds keys and values: stores, caches, observers. `kv` has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lcbench.models.rule import AttentionRule


class LayerStore(Protocol):
    """What a pass needs of one layer's cache of one sequence (`kv.layer.LayerKV`)."""

    @property
    def seen(self) -> int: ...

    @classmethod
    def attend_rows(
        cls, stores: Sequence[Any], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
    ) -> Tensor:
        """Take the new keys and values ``[R, Hk, q, d]`` of R stores of this class and answer their queries
        ``[R, H, q, d]``."""
        ...


class CacheStore(Protocol):
    """What a pass needs of the cache of one sequence (`kv.cache.KVCache`)."""

    @property
    def layers(self) -> Sequence[LayerStore]: ...

    @property
    def seen(self) -> int: ...


@runtime_checkable
class ReadsInRuns(Protocol):
    """A cache whose prompt goes through the whole model run by run, since what the model foretells after one run
    decides how the next is read."""

    @property
    def reading(self) -> bool:
        """Whether prompt tokens are still to come."""
        ...

    def runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The runs that the tokens ``start`` to ``stop`` make up."""
        ...

    def before_run(self, ids: Tensor) -> None:
        """The ids ``[q]`` of the run that comes."""
        ...

    def after_run(self, ids: Tensor, logits: Tensor) -> None:
        """The same ids and the logits ``[q, vocab]`` after each of them."""
        ...


class Observer(Protocol):
    """Watches the attention of one sequence in a forward pass; must not change what it is given.

    ``observe`` gets, for one layer: query ``[H, q, d]`` of the new tokens and key ``[Hk, q, d]``,
    value ``[Hk, q, d]`` of the same tokens (all after RoPE), the position of the first of them, the layer's store
    *after* they were appended and attended, and the layer's rule.
    """

    def observe(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        store: LayerStore,
        rule: AttentionRule,
    ) -> None: ...
