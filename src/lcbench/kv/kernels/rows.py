"""Stores whose memory may lie in an arena: who is in which, moving in, moving out."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from lcbench.kv import kernels
from lcbench.kv.kernels.pages import TOKENS, PageLayout, Row
from lcbench.models.lots import in_lots
from lcbench.models.rule import AttentionRule

if TYPE_CHECKING:  # needs Triton
    from lcbench.kv.kernels.batch import PagedBatch

COLUMNS = 16  # query heads of a KV head, at most


class Housed(Protocol):
    """A store of KIVI's form that can give its memory to an arena and take it back."""

    seen: int
    residual: int
    place: Place | None

    @property
    def held(self) -> int:
        """Tokens in the store."""

    @property
    def bits(self) -> int: ...

    @property
    def group(self) -> int: ...

    @property
    def kv_heads(self) -> int: ...

    def row(self) -> Row: ...

    def house(self, place: Place) -> None:
        """Forget the own tensors: from now on they are what ``place`` holds."""


class Place:
    """A slot of an arena, given back when its store is gone."""

    def __init__(self, arena: PagedBatch, slot: int, store: Housed) -> None:
        self.arena, self.slot = arena, slot
        self._finalizer = weakref.finalize(store, arena.drop, slot)

    def row(self) -> Row:
        return self.arena.row(self.slot)

    def leave(self) -> Row:
        """What the slot holds, in memory of its own; the slot is given back."""
        row = self.row()
        self._finalizer()
        return row


def served(stores: Sequence[Housed], query: Tensor, rule: AttentionRule) -> list[bool]:
    """Of each row whether the kernels can do its step: one new token of 16-bit numbers (any in the interpreter), plain
    attention, a residual of 128 tokens, 2 or 4 bits, groups and heads of fitting sizes."""
    _, heads, new, d = query.shape
    rounded = query.device.type == "cuda" and query.dtype == torch.float32  # the kernels round operands to 16 bits
    if not kernels.wanted(query.device) or new != 1 or not rule.plain or rounded:
        return [False] * len(stores)
    kinds = [(store.bits, store.group, store.residual, store.kv_heads) for store in stores]
    fit = {
        (bits, group, residual, kv_heads): residual == TOKENS
        and heads <= COLUMNS * kv_heads
        and PageLayout(bits, group, d).serves()
        for bits, group, residual, kv_heads in set(kinds)
    }
    inside = rule.window or sys.maxsize
    return [fit[kind] and store.seen < inside for kind, store in zip(kinds, stores, strict=True)]


def attend(stores: Sequence[Housed], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """One new token of each row, as `LayerKV.attend_rows`; stores that are in no common arena move into one."""

    def attend_lot(kind: tuple[int, int], rows: Sequence[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        some = [stores[row] for row in rows]
        return _attend(some, query[:, :, 0], key[:, :, 0], value[:, :, 0], rule.scaling)[:, :, None]

    out = in_lots([(store.bits, store.group) for store in stores], query, key, value, attend_lot)
    for store in stores:
        store.seen += 1
    return out


def _attend(stores: Sequence[Housed], query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    first = stores[0].place
    arena = first.arena if first is not None else None
    slots = tuple(-1 if s.place is None or s.place.arena is not arena else s.place.slot for s in stores)
    if arena is None or -1 in slots:
        arena = _move_in(stores, key)
        slots = tuple(range(len(stores)))
    return arena.attend(slots, query, key, value, scaling)


def _move_in(stores: Sequence[Housed], key: Tensor) -> PagedBatch:
    """An arena for these stores; each gives up its memory before the next is copied."""
    from lcbench.kv.kernels.batch import PagedBatch

    _, kv_heads, d = key.shape
    pages = sum(store.held // TOKENS for store in stores)
    layout = PageLayout(stores[0].bits, stores[0].group, d)
    arena = PagedBatch(layout, kv_heads, len(stores), pages, dtype=key.dtype, device=key.device)
    for slot, store in enumerate(stores):
        arena.load(slot, store.row() if store.place is None else store.place.leave())
        store.house(Place(arena, slot, store))
    return arena
