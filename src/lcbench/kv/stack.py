"""Decoding with many dense layers at once: their keys and values in one tensor, their attention in one call.

While several sequences decode together, a step of one layer is the same small computation for each of them. Done row by
row it is launched row by row, and that takes longer than the arithmetic. Here the rows of a layer that are about
equally long lie side by side, aligned at their newest token, so that a step writes one column and attends once. The
shorter rows begin with places that nobody sees.

What asks a layer for its tensors makes it leave its stack (`DenseStack.give_back`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lcbench.models.rule import AttentionRule

_BLOCK = 64  # columns that a stack grows by
# How much longer than the mean of a stack its longest row may be: what is padded is read in vain, which costs more
# than a further call on a CPU and less than one on a GPU.
_SLACK = {"cpu": 1.1, "cuda": 1.5}


class Stackable(Protocol):
    """What is needed of a dense layer (`kv.layer.DenseLayer`)."""

    seen: int
    stack: DenseStack | None
    plan: Plan | None

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


class DenseStack:
    """Keys and values of R layers, ``[R, Hk, W, d]``: row r's entries are the last ``W - pads[r]`` of W columns.

    Args:
        rows: layers with equally many heads; their tensors are copied and given up one after the other.
    """

    def __init__(self, rows: Sequence[Stackable]) -> None:
        self.rows = list(rows)
        self.width = max(row.held for row in rows)
        self.pads = [self.width - row.held for row in rows]
        sample = rows[0].parts()[0][0]
        size = (len(rows), sample.shape[0], _rounded(self.width + 1), sample.shape[2])
        self.key, self.value = sample.new_empty(size), sample.new_empty(size)
        for r, row in enumerate(rows):
            keys, values = row.parts()
            at = self.pads[r]
            self.key[r, :, :at] = 0  # never seen, but an infinity times a weight of zero would be
            self.value[r, :, :at] = 0
            for key, value in zip(keys, values, strict=True):
                self.key[r, :, at : at + key.shape[1]] = key
                self.value[r, :, at : at + key.shape[1]] = value
                at += key.shape[1]
            row.stacked_into(self)
        self._mask: Tensor | None = None

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
            self.key[r, :, : self.width] = self.key[last, :, : self.width]
            self.value[r, :, : self.width] = self.value[last, :, : self.width]
            self.rows[r], self.pads[r] = self.rows[last], self.pads[last]
        self.rows.pop()
        self.pads.pop()
        self._mask = None
        if not self.rows:
            self.key, self.value = self.key.new_empty(0), self.value.new_empty(0)

    def give_back(self, row: Stackable, filled: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Copies of a row's key and value ``[Hk, n, d]``, the first ``filled`` entries and the others; it leaves."""
        r = next(i for i, member in enumerate(self.rows) if member is row)
        start, middle = self.pads[r], self.pads[r] + filled
        first = (self.key[r, :, start:middle].clone(), self.value[r, :, start:middle].clone())
        rest = (self.key[r, :, middle : self.width].clone(), self.value[r, :, middle : self.width].clone())
        self._drop(r)
        return first, rest

    def step(self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """Append a token to each row and attend: query ``[R, H, 1, d]``, key and value ``[R, Hk, 1, d]``, in the order
        of ``rows``; returns ``[R, H, 1, d]``."""
        count, stored = len(self.rows), self.key.shape[1]
        if key.shape[1] != stored:  # every query head has keys of its own
            copies = stored // key.shape[1]
            key, value = key.repeat_interleave(copies, dim=1), value.repeat_interleave(copies, dim=1)
        if self.width == self.key.shape[2]:
            self.key, self.value = self._grown(self.key), self._grown(self.value)
        self.key[:count, :, self.width] = key[:, :, 0]
        self.value[:count, :, self.width] = value[:, :, 0]
        self.width += 1
        for row in self.rows:
            row.seen += 1
        heads, d = query.shape[1], query.shape[3]
        # The query heads of a group are rows of one product, so that keys are not repeated for them.
        out = F.scaled_dot_product_attention(
            query.reshape(count, stored, heads // stored, d),
            self.key[:count, :, : self.width],
            self.value[:count, :, : self.width],
            attn_mask=self._visible(),
            scale=rule.scaling,
        )
        return out.reshape(count, heads, 1, -1)

    def _grown(self, buffer: Tensor) -> Tensor:
        count = len(self.rows)
        new = buffer.new_empty(count, buffer.shape[1], _rounded(self.width + 1), buffer.shape[3])
        new[:, :, : self.width] = buffer[:count, :, : self.width]
        return new

    def _visible(self) -> Tensor | None:
        """bool ``[R, 1, 1, W]``, or None when no row is padded."""
        if not any(self.pads):
            return None
        if self._mask is None or self._mask.shape[-1] < self.width:
            columns = torch.arange(_rounded(self.width), device=self.key.device)
            pads = torch.tensor(self.pads, device=self.key.device)
            self._mask = (columns >= pads[:, None])[:, None, None]
        return self._mask[..., : self.width]


class Plan:
    """How the rows of a step are computed: which in which stack, in which order, which alone.

    It holds as long as the same rows come in the same order.
    """

    def __init__(self, rows: Sequence[Stackable], rule: AttentionRule, device: torch.device) -> None:
        self.rows = list(rows)
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
            len(rows) == len(self.rows)
            and all(a is b for a, b in zip(rows, self.rows, strict=True))
            and all(len(stack.rows) == size for (stack, _), size in zip(self.stacks, self.sizes, strict=True))
            and (self._limit is None or all(row.seen < self._limit for row in rows))
        )

    def step(self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """As `attend`."""
        if len(self.stacks) == 1 and self.stacks[0][1] is None:
            return self.stacks[0][0].step(query, key, value, rule)
        out = torch.empty(*query.shape[:3], value.shape[-1], dtype=query.dtype, device=query.device)
        for stack, order in self.stacks:
            assert order is not None, "a stack in the rows' order is the only one"
            out[order] = stack.step(query[order], key[order], value[order], rule)
        for i in self.alone:
            out[i] = self.rows[i].attend_alone(query[i], key[i], value[i], rule)
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
    return plan.step(query, key, value, rule)


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
