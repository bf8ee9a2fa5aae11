"""A layer whose KV heads hold different numbers of entries, in memory of exactly that size.

Budgets that differ from head to head (AdaKV, HeadKV) or that the data decide (CORM) save nothing in a rectangular
tensor. Here the kept prompt lies head after head in one flat tensor ``[sum_h n_h, d]``; new tokens, which every head
gets, are a rectangular tail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from lcbench.kv import attention, stack
from lcbench.kv.buffer import Buffer
from lcbench.kv.layer import DenseLayer, LayerKV, Tail, outside_window
from lcbench.kv.record import LayerRecord, take
from lcbench.models.lots import in_lots
from lcbench.models.rule import AttentionRule


class RaggedPolicy(Protocol):
    """Drops entries of a `RaggedLayer` head by head while decoding (CORM). One instance a layer and fork."""

    def after_attend(self, layer: RaggedLayer, weights: Sequence[Tensor]) -> None:
        """Called after each new token with its fp32 weights ``[g, n_h]`` over the entries of each KV head.
        May call ``layer.keep``."""

    def tensors(self) -> Iterator[Tensor]: ...

    def fork(self) -> RaggedPolicy: ...


class RaggedLayer(LayerKV):
    """Keys and values of the kept prompt in flat memory, and a growing tail of new tokens.

    The flat part is never written to, so forks share it. Each KV head attends over its own rows. While sequences decode
    one token a step and no policy acts, heads of about equal length, of whatever sequence, lie in one tensor and attend
    in one call (`kv.stack`); what asks the layer for its tensors makes it own them again.

    Args:
        key, value: ``[sum_h n_h, d]``, the rows of head 0, then those of head 1, …; memory of their own.
        kept: their text positions ``[sum_h n_h]``, int64, ascending within a head.
        lengths: ``n_h`` of each KV head; zero is allowed.
        seen: tokens that went through so far.
        policy: acts after every new token; tokens that arrive together are then taken one by one.
    """

    def __init__(
        self,
        key: Tensor,
        value: Tensor,
        *,
        kept: Tensor,
        lengths: Sequence[int],
        seen: int,
        policy: RaggedPolicy | None = None,
    ) -> None:
        if sum(lengths) != key.shape[0]:
            raise ValueError(f"{sum(lengths)} rows in the heads, {key.shape[0]} in memory")
        self.key, self.value, self.kept = key, value, kept
        self.lengths, self._rows = tuple(lengths), _spans(lengths)
        self.seen, self.policy = seen, policy
        self.tail: Tail | None = None
        self._tail_start = seen
        self._pending: tuple[Tensor, Tensor] | None = None
        self._stacked = [_Head(self, head) for head in range(len(self.lengths))]

    @classmethod
    def attend_rows(
        cls, stores: Sequence[LayerKV], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
    ) -> Tensor:
        if query.shape[2] > 1 or not rule.plain:
            return super().attend_rows(stores, query, key, value, rule)
        layers = [store for store in stores if isinstance(store, RaggedLayer)]

        def attend(heads: int, rows: Sequence[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            some = [layers[row] for row in rows]
            if not heads:
                return super(RaggedLayer, cls).attend_rows(some, query, key, value, rule)
            return _attend_stacked(some, query, key, value, rule)

        # Whether a row stacks does not depend on its neighbours: the two ways differ in the last bits.
        return in_lots([layer.heads if layer.may_stack(rule) else 0 for layer in layers], query, key, value, attend)

    def may_stack(self, rule: AttentionRule) -> bool:
        """Whether one new token can be appended beside layers of as many heads and every entry be seen."""
        inside = rule.window is None or self.seen < rule.window
        return self.policy is None and self._pending is None and inside

    def _leave_stack(self) -> None:
        """Own keys and values again."""
        if self._stacked[0].stack is None:
            return
        held = [head.given_back() for head in self._stacked]
        self.key = torch.cat([key[0] for (key, _), _ in held])
        self.value = torch.cat([value[0] for (_, value), _ in held])
        new = [pair for _, pair in held]
        if new[0][0].shape[1]:
            self.tail = Tail(Buffer(torch.cat([key for key, _ in new])), Buffer(torch.cat([value for _, value in new])))

    def _stacked_by_now(self) -> None:
        """A head's entries were copied; once all are, let go of the own tensors."""
        if all(head.stack is not None for head in self._stacked):
            self.key, self.value, self.tail = self.key[:0].clone(), self.value[:0].clone(), None

    def let_go(self) -> None:
        for head in self._stacked:
            vars(head).clear()
        super().let_go()

    @property
    def heads(self) -> int:
        """KV heads stored; the model's H where a method keeps one copy a query head."""
        return len(self.lengths)

    @property
    def taken(self) -> int:
        """Tokens whose entries are in the store; less than ``seen`` while several new ones are taken one by one."""
        if self._stacked[0].stack is not None:
            return self.seen
        return self._tail_start + (0 if self.tail is None else self.tail.length)

    def append(self, key: Tensor, value: Tensor) -> None:
        assert self._pending is None, "attend must follow append"
        self._leave_stack()
        self._pending = (key, value)
        self.seen += key.shape[1]

    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        assert self._pending is not None, "attend must follow append"
        key, value = self._pending
        self._pending = None
        q = query.shape[1]
        if self.policy is None:
            self._take(key, value)
            return self._over_heads(query, self.seen, rule)[0]
        outputs = []
        for i in range(q):  # one by one: what a token's step evicts, the next token no longer sees
            new = slice(i, i + 1)
            self._take(key[:, new], value[:, new])
            out, weights = self._over_heads(query[:, new], self.seen - q + i + 1, rule)
            outputs.append(out)
            self.policy.after_attend(self, weights)
        return outputs[0] if q == 1 else torch.cat(outputs, dim=1)

    def _take(self, key: Tensor, value: Tensor) -> None:
        copies = self.heads // key.shape[0]
        if copies > 1:
            key, value = key.repeat_interleave(copies, dim=0), value.repeat_interleave(copies, dim=0)
        if self.tail is None:
            self.tail = Tail.like(key, value)
        self.tail.append(key, value)

    def _over_heads(self, query: Tensor, seen: int, rule: AttentionRule) -> tuple[Tensor, Sequence[Tensor]]:
        """Output ``[H, q, d]`` of the q newest queries and, for a policy, the weights ``[g, n_h]`` of each head."""
        assert self.tail is not None
        heads, q, _ = query.shape
        groups = heads // self.heads
        out = query.new_empty(*query.shape[:2], self.value.shape[1])
        kept_weights: list[Tensor] = []
        for head, rows in enumerate(self._rows):
            mine = slice(head * groups, (head + 1) * groups)
            hidden = outside_window(partial(self.head_positions, head), seen, q, rule.window)
            out[mine], weights = attention.over_parts(
                query[mine],
                [self.key[None, rows], self.tail.key[head, None]],
                [self.value[None, rows], self.tail.value[head, None]],
                rule.of_heads(mine),
                hidden=hidden,
                positions=partial(self.head_positions, head),
                seen=seen,
                return_weights=self.policy is not None,
            )
            if weights is not None:
                kept_weights.append(weights[:, 0])
        return out, kept_weights

    def head(self, head: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[n_h, d]`` of one head, in the order of `head_positions`; a copy once there is a tail."""
        self._leave_stack()
        rows = self._rows[head]
        if self.tail is None:
            return self.key[rows], self.value[rows]
        return (
            torch.cat([self.key[rows], self.tail.key[head]]),
            torch.cat([self.value[rows], self.tail.value[head]]),
        )

    def head_positions(self, head: int) -> Tensor:
        """Text positions ``[n_h]`` of one head's entries, int64, ascending."""
        kept = self.kept[self._rows[head]]
        if self.taken == self._tail_start:
            return kept
        new = torch.arange(self._tail_start, self.taken, device=kept.device)
        return torch.cat([kept, new])

    def keep(self, index: Sequence[Tensor]) -> None:
        """Keep only some entries of each head and free the rest.

        Args:
            index: for each KV head int64 ``[n'_h]``, ascending, into the order of `head_positions`.
        """
        pairs = [self.head(head) for head in range(self.heads)]
        positions = [self.head_positions(head)[rows] for head, rows in enumerate(index)]
        taken = self.taken
        self.key = torch.cat([key[rows] for (key, _), rows in zip(pairs, index, strict=True)])
        self.value = torch.cat([value[rows] for (_, value), rows in zip(pairs, index, strict=True)])
        self.kept = torch.cat(positions)
        self.lengths = tuple(int(rows.numel()) for rows in index)
        self._rows = _spans(self.lengths)
        self.tail, self._tail_start = None, taken
        self._stacked = [_Head(self, head) for head in range(self.heads)]

    def positions(self) -> Tensor:
        """As in `LayerKV`: ``[Hk, max_h n_h]``, filled up with -1."""
        rows = [self.head_positions(head) for head in range(self.heads)]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)

    def tensors(self) -> Iterator[Tensor]:
        self._leave_stack()
        yield from (self.key, self.value)
        if self.tail is not None:
            yield from (self.tail.key, self.tail.value)
        if self.policy is not None:
            yield from self.policy.tensors()

    def fork(self) -> RaggedLayer:
        assert self._pending is None, "attend must follow append"
        self._leave_stack()
        new = RaggedLayer(
            self.key,
            self.value,
            kept=self.kept,
            lengths=self.lengths,
            seen=self.seen,
            policy=None if self.policy is None else self.policy.fork(),
        )
        new._tail_start = self._tail_start
        if self.tail is not None:
            new.tail = self.tail.fork()
        return new


def _attend_stacked(
    layers: Sequence[RaggedLayer], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
) -> Tensor:
    """`RaggedLayer.attend_rows` for layers of equally many heads that may stack: each head is a row of a stack."""
    heads = layers[0].heads
    copies = heads // key.shape[1]
    if copies > 1:
        key, value = key.repeat_interleave(copies, dim=1), value.repeat_interleave(copies, dim=1)
    rows = [head for layer in layers for head in layer._stacked]
    asked = query.reshape(len(rows), query.shape[1] // heads, 1, -1)
    out = stack.attend(rows, asked, key.reshape(len(rows), 1, 1, -1), value.reshape(len(rows), 1, 1, -1), rule)
    for layer in layers:
        layer.seen += 1
    return out.reshape(*query.shape[:3], -1)


class _Head:
    """One KV head of a ragged layer, as a row of a stack (`kv.stack.Stackable`). All heads of a layer are in stacks or
    none is."""

    ring = None  # new entries go to the end

    def __init__(self, layer: RaggedLayer, head: int) -> None:
        self.layer, self.head, self.seen = layer, head, layer.seen
        self.stack: stack.DenseStack | None = None
        self.plan: stack.Plan | None = None

    @property
    def held(self) -> int:
        return self.layer.lengths[self.head] + self.layer.taken - self.layer._tail_start

    def may_stack(self, rule: AttentionRule) -> bool:
        return True  # its layer was asked

    def parts(self) -> tuple[list[Tensor], list[Tensor]]:
        if self.stack is not None:
            self.layer._leave_stack()
        rows, tail = self.layer._rows[self.head], self.layer.tail
        keys, values = [self.layer.key[None, rows]], [self.layer.value[None, rows]]
        if tail is not None:
            keys.append(tail.key[self.head, None])
            values.append(tail.value[self.head, None])
        return keys, values

    def stacked_into(self, holder: stack.DenseStack) -> None:
        self.stack, self.seen = holder, self.layer.seen
        self.layer._stacked_by_now()

    def given_back(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Its keys and values ``[1, n, d]``: those of the prompt, and those of new tokens; it leaves its stack."""
        assert self.stack is not None
        held = self.stack.give_back(self, self.layer.lengths[self.head])
        self.stack = self.plan = None
        return held

    def attend_alone(self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        raise AssertionError("a head is computed with its layer")


def _spans(lengths: Sequence[int]) -> list[slice]:
    """The rows of each head in the flat part."""
    ends = list(accumulate(lengths))
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def best_and_recent(scores: Tensor, counts: Sequence[int], recent: int) -> list[Tensor]:
    """Kept positions of each head when heads keep different numbers of tokens.

    Args:
        scores: ``[h, n]`` of the prompt's first n tokens. counts: how many of them each head keeps, the highest; ties
            keep the lower position.
        recent: tokens after those n, which all stay.

    Returns:
        For each head int64 ``[counts[h] + recent]``, ascending.
    """
    n = scores.shape[1]
    order = torch.sort(scores.float(), dim=-1, descending=True, stable=True).indices
    last = torch.arange(n, n + recent, device=scores.device)
    return [torch.cat([torch.sort(best[:count]).values, last]) for best, count in zip(order, counts, strict=True)]


def kept_layer(record: LayerRecord, kept: Sequence[Tensor], *, policy: RaggedPolicy | None = None) -> LayerKV:
    """A store of chosen prompt tokens: ragged where the heads' counts differ or a policy acts, dense where not.

    Args:
        record: the layer's full prompt; its tensors are copied, never viewed.
        kept: positions ``[n_h]`` int64, ascending, of each stored head: Hk of them, or H (a multiple of Hk) where the
            method keeps a copy for every query head.
        policy: see `RaggedLayer`.
    """
    lengths = [int(rows.numel()) for rows in kept]
    if policy is None and len(set(lengths)) == 1:
        index = torch.stack(list(kept))
        key, value = take(record, index)
        return DenseLayer(key, value, kept=index, seen=record.length)
    copies = len(kept) // record.key.shape[0]
    return RaggedLayer(
        torch.cat([record.key[head // copies, rows] for head, rows in enumerate(kept)]),
        torch.cat([record.value[head // copies, rows] for head, rows in enumerate(kept)]),
        kept=torch.cat(list(kept)),
        lengths=lengths,
        seen=record.length,
        policy=policy,
    )
