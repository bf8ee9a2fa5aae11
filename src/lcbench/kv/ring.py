"""Attention sinks and a rolling window in fixed memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lcbench.kv import attention, stack
from lcbench.kv.buffer import Buffer
from lcbench.kv.layer import LayerKV, outside_window
from lcbench.models.rule import AttentionRule


def _grown(buffer: Tensor, used: int, size: int) -> Tensor:
    new = buffer.new_empty(buffer.shape[0], size, buffer.shape[2])
    new[:, :used] = buffer[:, :used]
    return new


class RingLayer(LayerKV):
    """Attention sinks and a rolling window of recent tokens, in fixed memory.

    Sinks are the first tokens of the text; the window is a ring that overwrites its oldest entry, so nothing is moved
    or copied while decoding. Keys keep the angle of their own position, hence their order in memory is free.

    Args:
        key, value: ``[Hk, n, d]``, the kept prompt tokens: ``sinks`` first ones, then recent ones, ascending.
        sinks: how many of them are never overwritten.
        capacity: most entries ever held (>= n, > sinks).
        kept: their positions ``[n]`` int64. seen: tokens gone through so far.
    """

    def __init__(self, key: Tensor, value: Tensor, *, sinks: int, capacity: int, kept: Tensor, seen: int) -> None:
        n = key.shape[1]
        self.sinks, self.capacity, self.seen, self.length = sinks, capacity, seen, n
        self._key, self._value = key.contiguous(), value.contiguous()
        self._kept = kept.to("cpu", torch.int64).clone()
        self._pending: tuple[Tensor, Tensor] | None = None
        self._next = sinks  # where the ring is overwritten next, once full
        self.stack: stack.DenseStack | None = None  # holds keys and values while rows decode together
        self.plan: stack.Plan | None = None

    @classmethod
    def attend_rows(
        cls, stores: Sequence[LayerKV], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
    ) -> Tensor:
        if cls is not RingLayer or query.shape[2] > 1 or not rule.plain:  # a subclass attends in its own way
            return super().attend_rows(stores, query, key, value, rule)
        rings = [store for store in stores if isinstance(store, RingLayer)]
        out = stack.attend(rings, query, key, value, rule)
        for ring in rings:
            if ring.stack is not None:
                ring._place(ring.seen - 1)
        return out

    @property
    def ring(self) -> stack.Ring:
        return stack.Ring(self.sinks, self.capacity, self.length if self.length < self.capacity else self._next)

    @property
    def held(self) -> int:
        return self.length

    @property
    def idle_to(self) -> int:
        """Tokens up to which nothing is overwritten or changed."""
        return self.capacity

    def may_stack(self, rule: AttentionRule) -> bool:
        """Whether one new token a step can be put in beside other rings' and every entry be seen."""
        return self._pending is None and (rule.window is None or self.seen < rule.window)

    def parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values ``[Hk, n, d]`` as they lie in memory."""
        self._leave_stack()
        return [self._key[:, : self.length]], [self._value[:, : self.length]]

    def stacked_into(self, holder: stack.DenseStack) -> None:
        """``holder`` has copied keys and values; let go of them."""
        self.stack = holder
        self._key, self._value = self._key[:, :0].clone(), self._value[:, :0].clone()

    def attend_alone(self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """`append` and `attend`."""
        self.append(key, value)
        return self.attend(query, rule)

    def _leave_stack(self) -> None:
        if self.stack is not None:
            (self._key, self._value), _ = self.stack.give_back(self, self.length)
            self.stack = self.plan = None

    def append(self, key: Tensor, value: Tensor) -> None:
        assert self._pending is None, "attend must follow append"
        self._leave_stack()
        self._pending = (key, value)
        self.seen += key.shape[1]

    def _push(self, key: Tensor, value: Tensor, position: int) -> None:
        if self.length < self.capacity and self.length == self._key.shape[1]:
            size = min(self.capacity, self.length + Buffer.BLOCK)
            self._key = _grown(self._key, self.length, size)
            self._value = _grown(self._value, self.length, size)
        at = self._place(position)
        self._key[:, at], self._value[:, at] = key, value

    def _place(self, position: int) -> int:
        """Where the token at ``position`` goes, which is noted."""
        if self.length < self.capacity:
            at = self.length
            if at == self._kept.shape[0]:
                self._kept = torch.cat([self._kept, self._kept.new_zeros(Buffer.BLOCK)])
            self.length += 1
        else:
            at = self._next
            self._next = at + 1 if at + 1 < self.capacity else self.sinks
        self._kept[at] = position
        return at

    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        assert self._pending is not None, "attend must follow append"
        new_key, new_value = self._pending
        self._pending = None
        q = query.shape[1]
        outputs = []
        for i in range(q):  # one by one: a later token may overwrite what an earlier one still sees
            position = self.seen - q + i
            self._push(new_key[:, i], new_value[:, i], position)
            key, value = self._key[:, : self.length], self._value[:, : self.length]
            hidden = outside_window(lambda: self.positions().to(query.device), position + 1, 1, rule.window)
            out, _ = attention.over_parts(
                query[:, i : i + 1], [key], [value], rule, hidden=hidden, positions=self.positions, seen=position + 1
            )
            outputs.append(out)
        return outputs[0] if q == 1 else torch.cat(outputs, dim=1)

    def positions(self) -> Tensor:
        return self._kept[: self.length].clone()

    def tensors(self) -> Iterator[Tensor]:
        self._leave_stack()
        yield from (self._key[:, : self.length], self._value[:, : self.length])

    def fork(self) -> RingLayer:
        assert self._pending is None, "attend must follow append"
        self._leave_stack()
        new = RingLayer(
            self._key[:, : self.length].clone(),
            self._value[:, : self.length].clone(),
            sinks=self.sinks,
            capacity=self.capacity,
            kept=self._kept[: self.length],
            seen=self.seen,
        )
        new._next = self._next
        return new
