"""Decoding with many layers at once: their keys and values in one tensor, their attention in one call.

While several sequences decode together, a step of one layer is the same small computation for each of them. Done row by
row it is launched row by row, and that takes longer than the arithmetic. Here the rows of a layer that are about
equally long lie side by side, aligned at their first entry, so that a step writes once and attends once. The shorter
rows end with places that nobody sees. A ring that is full overwrites its oldest entry; its length stays.

What asks a layer for its tensors makes it leave its stack (`DenseStack.give_back`).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lcbench.models.rule import AttentionRule

_BLOCK = 64  # columns that a stack grows by
_ENDLESS = 2**62  # a capacity that is never reached
_STEP = 16  # columns that are attended at once; torch's CPU kernel sums in blocks of 16
# How much longer than the mean of a stack its longest row may be: what is padded is read in vain, which costs more
# than a further call on a CPU and less than one on a GPU.
_SLACK = {"cpu": 1.1, "cuda": 1.5}


class Stackable(Protocol):
    """What is needed of a layer (`kv.layer.DenseLayer`, a head of `kv.ragged.RaggedLayer`, `kv.ring.RingLayer`)."""

    seen: int
    stack: DenseStack | None
    plan: Plan | None

    @property
    def ring(self) -> Ring | None:
        """Where the next entry goes in a ring; None: to the end."""
        ...

    @property
    def held(self) -> int:
        """Entries a head, new tokens included."""
        ...

    def may_stack(self, rule: AttentionRule) -> bool:
        """Whether one new token a step can be appended and every entry be seen."""
        ...

    def parts(self) -> tuple[list[Tensor], list[Tensor]]: ...

    def stacked_into(self, stack: DenseStack) -> None:
        """The stack has copied the parts; the layer lets go of its own."""
        ...

    def attend_alone(self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor: ...


@dataclass(frozen=True)
class Ring:
    """Fixed memory: once ``capacity`` entries are held, new ones go to the places first .. capacity - 1 in turn; the
    next one to ``place``."""

    first: int
    capacity: int
    place: int


class DenseStack:
    """Keys and values of R layers, ``[R, Hk, W, d]``: row r's entries are the first ``lengths[r]`` of W columns.

    Rows begin at column 0 and are attended in whole blocks of columns, so that what a row's sums add up in which order
    does not depend on the other rows: on a CPU a row comes out to the bit as it does alone.

    Args:
        rows: layers with equally many heads; their tensors are copied and given up one after the other.
    """

    def __init__(self, rows: Sequence[Stackable]) -> None:
        self.rows = list(rows)
        self.lengths = [row.held for row in rows]
        samples = [pieces[0] for pieces in rows[0].parts()]
        size = (len(rows), samples[0].shape[0], _rounded(max(self.lengths) + 1))
        self.key, self.value = (sample.new_empty(*size, sample.shape[2]) for sample in samples)
        for r, row in enumerate(rows):
            at = 0
            for key, value in zip(*row.parts(), strict=True):
                self.key[r, :, at : at + key.shape[1]] = key
                self.value[r, :, at : at + key.shape[1]] = value
                at += key.shape[1]
            self._blank(r, at)
            row.stacked_into(self)
        rings = [row.ring for row in rows]
        self._places = [n if ring is None else ring.place for n, ring in zip(self.lengths, rings, strict=True)]
        self._bounds = [(0, _ENDLESS) if ring is None else (ring.first, ring.capacity) for ring in rings]
        self._ends: Tensor | None = None  # places, on the device
        self._turns: Tensor | None = None  # bounds ``[2, R]``, on the device, where there are rings
        self._seen: Tensor | None = None

    def _blank(self, r: int, start: int) -> None:
        """Clear a row's columns from ``start``: never seen, but an infinity times a weight of zero would be."""
        self.key[r, :, start:] = 0
        self.value[r, :, start:] = 0

    def keep(self, rows: Sequence[Stackable]) -> None:
        """Let all other rows go; the last rows move into the places that become free."""
        staying = {id(row) for row in rows}
        for r in reversed(range(len(self.rows))):
            if id(self.rows[r]) not in staying:
                self._drop(r)

    @torch.inference_mode()  # rows leave outside of a forward pass, too
    def _drop(self, r: int) -> None:
        last = len(self.rows) - 1
        if r != last:
            length = self.lengths[last]
            self.key[r, :, :length] = self.key[last, :, :length]
            self.value[r, :, :length] = self.value[last, :, :length]
            self._blank(r, length)
            self.rows[r], self.lengths[r] = self.rows[last], length
            self._places[r], self._bounds[r] = self._places[last], self._bounds[last]
        for held in (self.rows, self.lengths, self._places, self._bounds):
            held.pop()
        self._ends = self._turns = self._seen = None
        if not self.rows:
            self.key, self.value = self.key.new_empty(0), self.value.new_empty(0)

    def give_back(self, row: Stackable, filled: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Copies of a row's key and value ``[Hk, n, d]``, the first ``filled`` entries and the others; it leaves."""
        r = next(i for i, member in enumerate(self.rows) if member is row)
        end = self.lengths[r]
        first = (self.key[r, :, :filled].clone(), self.value[r, :, :filled].clone())
        rest = (self.key[r, :, filled:end].clone(), self.value[r, :, filled:end].clone())
        self._drop(r)
        return first, rest

    def step(self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """Append a token to each row and attend: query ``[R, H, 1, d]``, key and value ``[R, Hk, 1, d]``, in the order
        of ``rows``; returns ``[R, H, 1, d]``."""
        count, stored = len(self.rows), self.key.shape[1]
        if key.shape[1] != stored:  # every query head has keys of its own
            copies = stored // key.shape[1]
            key, value = key.repeat_interleave(copies, dim=1), value.repeat_interleave(copies, dim=1)
        if max(self.lengths) == self.key.shape[2]:
            self.key, self.value, self._seen = self._grown(self.key), self._grown(self.value), None
        seen = self._append(key, value)
        width = max(self.lengths) if seen is None else seen.shape[-1]
        heads, d = query.shape[1], query.shape[3]
        # The query heads of a group are rows of one product, so that keys are not repeated for them.
        out = F.scaled_dot_product_attention(
            query.reshape(count, stored, heads // stored, d),
            self.key[:count, :, :width],
            self.value[:count, :, :width],
            attn_mask=seen,
            scale=rule.scaling,
        )
        return out.reshape(count, heads, 1, -1)

    def _append(self, key: Tensor, value: Tensor) -> Tensor | None:
        """Write a column of each row; what is seen then, bool ``[R, 1, 1, W]``, or None for all of equal rows."""
        count, at = len(self.rows), self._places[0]
        even = all(place == at for place in self._places)
        if even:
            self.key[:count, :, at] = key[:, :, 0]
            self.value[:count, :, at] = value[:, :, 0]
        else:
            places = (torch.arange(count, device=key.device), self._device_places())
            self.key[places[0], :, places[1]] = key[:, :, 0]
            self.value[places[0], :, places[1]] = value[:, :, 0]
        self.lengths = [min(length + 1, end) for length, (_, end) in zip(self.lengths, self._bounds, strict=True)]
        for row in self.rows:
            row.seen += 1
        masked = key.device.type == "cpu" or any(length != self.lengths[0] for length in self.lengths)
        if masked and self._seen is None:
            columns = torch.arange(self.key.shape[2], device=key.device)
            lengths = torch.tensor(self.lengths, device=key.device)
            self._seen = (columns < lengths[:, None])[:, None, None]
        elif self._seen is not None:
            self._seen[:, 0, 0].scatter_(1, self._device_places()[:, None], True)
        self._turn()
        return self._seen[..., : -(-max(self.lengths) // _STEP) * _STEP] if masked and self._seen is not None else None

    def _device_places(self) -> Tensor:
        if self._ends is None:
            self._ends = torch.tensor(self._places, device=self.key.device)
        return self._ends

    def _turn(self) -> None:
        """On to the next places, without asking the device."""
        self._places = [
            place + 1 if place + 1 < end else first
            for place, (first, end) in zip(self._places, self._bounds, strict=True)
        ]
        if self._ends is None:
            return
        self._ends += 1
        if any(end < _ENDLESS for _, end in self._bounds):
            if self._turns is None:
                self._turns = torch.tensor(self._bounds, device=self.key.device).T.contiguous()
            self._ends = torch.where(self._ends < self._turns[1], self._ends, self._turns[0])

    def _grown(self, buffer: Tensor) -> Tensor:
        count, width = len(self.rows), buffer.shape[2]
        new = buffer.new_zeros(count, buffer.shape[1], _rounded(width + 1), buffer.shape[3])
        new[:, :, :width] = buffer[:count]
        return new


class Plan:
    """How the rows of a step are computed: which in which stack, in which order, which alone.

    It holds as long as the same rows come in the same order.
    """

    def __init__(self, rows: Sequence[Stackable], rule: AttentionRule, device: torch.device) -> None:
        self._rows = [weakref.ref(row) for row in rows]  # one of them holds the plan
        self.alone = [i for i, row in enumerate(rows) if not row.may_stack(rule)]
        for i in self.alone:
            leave(rows[i])
        self._limit = rule.window  # entries beyond a sliding window are seen by no stack
        place = {id(row): i for i, row in enumerate(rows)}
        stacks: dict[int, DenseStack] = {id(row.stack): row.stack for row in rows if row.stack is not None}
        for stack in stacks.values():
            stack.keep([row for row in stack.rows if id(row) in place])
        fresh = [row for i, row in enumerate(rows) if row.stack is None and i not in self.alone]
        slack = _SLACK.get(device.type, 1.1)
        found = [*stacks.values(), *(DenseStack(lot) for lot in _lots(fresh, slack))]
        self.stacks: list[tuple[DenseStack, Tensor | None]] = []
        for stack in found:
            order = [place[id(row)] for row in stack.rows]
            straight = order == list(range(len(rows)))
            self.stacks.append((stack, None if straight else torch.tensor(order, device=device)))
        self.sizes = [len(stack.rows) for stack, _ in self.stacks]

    def serves(self, rows: Sequence[Stackable]) -> bool:
        """Whether these are the rows it was made for, none of which has left since."""
        return (
            len(rows) == len(self._rows)
            and all(row is known() for row, known in zip(rows, self._rows, strict=True))
            and all(len(stack.rows) == size for (stack, _), size in zip(self.stacks, self.sizes, strict=True))
            and (self._limit is None or all(row.seen < self._limit for row in rows))
        )

    def step(self, rows: Sequence[Stackable], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """As `attend`, for the rows that the plan `serves`."""
        if len(self.stacks) == 1 and self.stacks[0][1] is None:
            return self.stacks[0][0].step(query, key, value, rule)
        out = torch.empty(*query.shape[:3], value.shape[-1], dtype=query.dtype, device=query.device)
        for stack, order in self.stacks:
            assert order is not None, "a stack in the rows' order is the only one"
            out[order] = stack.step(query[order], key[order], value[order], rule)
        for i in self.alone:
            out[i] = rows[i].attend_alone(query[i], key[i], value[i], rule)
        return out


def attend(rows: Sequence[Stackable], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """Append one token to each of R dense layers and attend.

    Args:
        query: ``[R, H, 1, d]``. key, value: ``[R, Hk, 1, d]``. rule: plain (no soft cap, no sinks).

    Returns:
        ``[R, H, 1, d]``.
    """
    plan = rows[0].plan
    if plan is None or not plan.serves(rows):
        plan = rows[0].plan = Plan(rows, rule, query.device)
    return plan.step(rows, query, key, value, rule)


def leave(row: Stackable) -> None:
    """Make a layer own its tensors again."""
    if row.stack is not None:
        row.parts()


def _lots(rows: Sequence[Stackable], slack: float) -> list[list[Stackable]]:
    """Rows of equally many heads and about equal length, longest first; the order of equals is kept."""
    lots: list[list[Stackable]] = []
    heads: list[int] = []
    for row in sorted(rows, key=lambda row: -row.held):
        count = int(row.parts()[0][0].shape[0])
        for lot, stored in zip(lots, heads, strict=True):
            mean = (sum(member.held for member in lot) + row.held) / (len(lot) + 1)
            if stored == count and lot[0].held <= slack * mean:
                lot.append(row)
                break
        else:
            lots.append([row])
            heads.append(count)
    return lots


def _rounded(width: int) -> int:
    return -(-width // _BLOCK) * _BLOCK
