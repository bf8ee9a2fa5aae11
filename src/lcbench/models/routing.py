"""The attention function that transformers calls, and where it sends queries, keys and values.

transformers calls the function named in a model's config with already rotated queries, keys and values. Ours is
``lcb_attention``: it hands the new keys and values of each row to that row's own layer store and lets the store attend,
so that a method decides what is kept and what is seen. No mask function is registered under the name, therefore
transformers builds no mask: causality, sliding windows and ragged lengths are the store's business.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from lcbench.errors import ModelError
from lcbench.models.lots import in_lots
from lcbench.models.rule import AttentionRule
from lcbench.models.stores import CacheStore, LayerStore, Observer

ATTENTION_NAME = "lcb_attention"


@dataclass
class Pass:
    """A forward pass under way.

    Attributes:
        rows, observers, model: as in `through`. layers_seen: layers that attended. attention: the last module that did.
    """

    rows: Sequence[CacheStore]
    observers: Sequence[Sequence[Observer]] = ()
    layers_seen: set[int] = field(default_factory=set)
    model: Any = None
    attention: torch.nn.Module | None = None


_session: contextvars.ContextVar[Pass | None] = contextvars.ContextVar("lcbench_session", default=None)
_distances: contextvars.ContextVar[tuple[tuple[Any, Callable[[], Any]], ...]] = contextvars.ContextVar(
    "lcbench_distances", default=()
)


@contextmanager
def through(model: Any, rows: Sequence[CacheStore], observers: Sequence[Sequence[Observer]] = ()) -> Iterator[Pass]:
    """Context in which what a model attends to goes through the caches of ``rows``, watched by each row's observers."""
    under_way = Pass(rows, observers, model=model)
    token = _session.set(under_way)
    try:
        yield under_way
    finally:
        _session.reset(token)


_instead: contextvars.ContextVar[tuple[tuple[Any, dict[Any, tuple[Tensor, Tensor]]], ...]] = contextvars.ContextVar(
    "lcbench_instead", default=()
)


@contextmanager
def other_input(model: Any, change: Mapping[torch.nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Context in which some attention modules of a model make queries and keys of a changed input, values of their own.

    Stores are told (`kv.layer.LayerKV.beside`); those that do not take both get the changed ones in their place.

    Args:
        change: attention module to what its input ``[B, q, hidden]`` becomes.
    """
    held: dict[Any, tuple[Tensor, Tensor]] = {}
    busy: set[Any] = set()

    def made(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        session = _session.get()
        if module in busy or session is None or session.model is not model:
            return
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        busy.add(module)
        try:
            held[module] = made_of(module, change[module](hidden), kwargs["position_embeddings"])
        finally:
            busy.discard(module)

    handles = [module.register_forward_pre_hook(made, with_kwargs=True) for module in change]
    token = _instead.set(((model, held), *_instead.get()))
    try:
        yield
    finally:
        _instead.reset(token)
        for handle in handles:
            handle.remove()


def _replaced(
    stores: Sequence[Any], query: Tensor, key: Tensor, other_query: Tensor, other_key: Tensor
) -> tuple[Tensor, Tensor]:
    """The queries and keys that stores are given, where there are others of a changed input."""
    both = [store.beside(other_query[row], other_key[row]) for row, store in enumerate(stores)]
    assert all(both) or not any(both), "rows of one pass are prompts or answers"
    return (query, key) if all(both) else (other_query, other_key)


@contextmanager
def distances(model: Any, make: Callable[[], Any]) -> Iterator[None]:
    """Context in which the layers of a model see far keys at other distances.

    Args:
        make: asked in every layer, while it attends, for what goes into `AttentionRule.distances`.
    """
    token = _distances.set(((model, make), *_distances.get()))
    try:
        yield
    finally:
        _distances.reset(token)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function registered as ``lcb_attention``.

    Args:
        query: ``[B, H, q, d]`` after RoPE. key, value: ``[B, Hk, q, d]``, the new tokens only.
        scaling: factor on the logits (``d ** -0.5`` unless the model says otherwise).
        sliding_window, softcap, s_aux: see `AttentionRule` (window, softcap, sinks).

    Returns:
        Output ``[B, q, H, d]`` and no weights.
    """
    session = _session.get()
    if session is None:
        raise ModelError(
            "A model prepared by lcbench was called directly.",
            "Use lcbench.models.adapter.forward, or load it again.",
        )
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    session.layers_seen.add(layer)
    session.attention = module
    rule = AttentionRule(
        query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        int(sliding_window) if sliding_window else None,
        None if softcap is None else float(softcap),
        None if s_aux is None else s_aux.detach(),
        next((make() for model, make in _distances.get() if model is session.model), None),
    )
    stores = [cache.layers[layer] for cache in session.rows]
    for owner, held in _instead.get():
        if owner is session.model and module in held:
            query, key = _replaced(stores, query, key, *held.pop(module))
    starts = [store.seen for store in stores]
    twins, count = len(query), len(stores)
    query, key, value = query[:count], key[:count], value[:count]
    out = _attend_rows(stores, query, key, value, rule).expand(twins, -1, -1, -1)
    for row, observers in enumerate(session.observers):
        for observer in observers:
            observer.observe(layer, query[row], key[row], value[row], starts[row], stores[row], rule)
    return out.transpose(1, 2).contiguous(), None


def _attend_rows(
    stores: Sequence[LayerStore], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
) -> Tensor:
    """Output ``[B, H, q, d]``; rows whose stores are of one class are handed to that class together."""

    def attend_lot(kind: type[LayerStore], rows: Sequence[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return kind.attend_rows([stores[row] for row in rows], query, key, value, rule)

    return in_lots([type(store) for store in stores], query, key, value, attend_lot)


AttentionInterface.register(ATTENTION_NAME, attend)


def observed() -> tuple[Any, torch.nn.Module]:
    """The model that is running and the attention module whose queries are being observed; for observers only."""
    session = _session.get()
    assert session is not None, "no forward pass is under way"
    assert session.attention is not None, "no layer has attended yet"
    return session.model, session.attention


class _Catch:
    """A cache that keeps nothing but the queries and keys it is given."""

    seen = 0

    def __init__(self) -> None:
        self.made: list[tuple[Tensor, Tensor]] = []

    @property
    def layers(self) -> _Catch:
        return self

    def __getitem__(self, layer: int) -> _Catch:
        return self

    @classmethod
    def attend_rows(
        cls, stores: Sequence[_Catch], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
    ) -> Tensor:
        stores[0].made.append((query, key))
        return torch.zeros_like(query)


def query_of(attention: torch.nn.Module, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """The queries ``[H, n, d]`` that an attention module makes of hidden states ``[1, n, hidden]``.

    Args:
        position_embeddings: the cosines and sines ``[1, n, …]`` its layer would hand to it.
    """
    return made_of(attention, hidden, position_embeddings)[0][0]


def made_of(
    attention: torch.nn.Module, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The queries ``[B, H, n, d]`` and keys ``[B, Hk, n, d]`` that an attention module makes of ``[B, n, hidden]``;
    arguments as `query_of`."""
    catch = _Catch()
    with through(None, [catch] * len(hidden)):  # type: ignore[list-item]
        attention(hidden_states=hidden, position_embeddings=position_embeddings, attention_mask=None)
    return catch.made[0]
