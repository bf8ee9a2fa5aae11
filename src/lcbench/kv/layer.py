"""The cache of one layer of one sequence: what is stored, what a query sees, how many bytes that is.

Every way of storing keys and values is a `LayerKV`. `DenseLayer` keeps all tokens (or a chosen subset of them),
`kv.ring.RingLayer` keeps sinks and a rolling window; quantized and other stores live with their methods. Keys are
stored after RoPE, at the angle of their own position in the text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lcbench.kv import attention, stack
from lcbench.kv.buffer import Buffer
from lcbench.kv.pick import rows_at
from lcbench.models.rule import AttentionRule


class LayerKV(ABC):
    """Cache of one layer of one sequence.

    Attributes:
        seen: tokens that went through this layer, dropped ones included; the next token's position.
    """

    seen: int

    def beside(self, query: Tensor, key: Tensor) -> bool:
        """Told, before new tokens come, the queries ``[H, q, d]`` and keys ``[Hk, q, d]`` that a method made of another
        input (`models.routing.other_input`). True when the store takes both; else it gets these instead."""
        return False

    @abstractmethod
    def append(self, key: Tensor, value: Tensor) -> None:
        """Take the keys and values ``[Hk, q, d]`` of q new tokens (after RoPE). Adds q to ``seen``."""

    @abstractmethod
    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        """Attention output ``[H, q, d]`` of the q newest tokens' queries ``[H, q, d]``; called right after `append`.

        A store that changes what it keeps (evicts, quantizes its residual) does so at the end of this call, so that
        the step itself still sees what the method says it sees.
        """

    @classmethod
    def attend_rows(
        cls, stores: Sequence[LayerKV], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
    ) -> Tensor:
        """`append` and `attend` of several sequences at once, each through its own store of this class.

        A class that computes rows together overrides it; the result must be that of the loop here.

        Args:
            stores: R stores. query: ``[R, H, q, d]``. key, value: ``[R, Hk, q, d]``, the new tokens of each.

        Returns:
            ``[R, H, q, d]``.
        """
        outputs = []
        for row, store in enumerate(stores):
            store.append(key[row], value[row])
            outputs.append(store.attend(query[row], rule))
        return outputs[0][None] if len(outputs) == 1 else torch.stack(outputs)

    def let_go(self) -> None:
        """Forget everything; the store is not used any more. Rows that were decoded together and the tensors they share
        refer to each other, and would stay in memory until Python happens to look for such circles."""
        vars(self).clear()

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """Every tensor the method needs between steps: keys, values, codes, scales, indices, statistics.

        Buffers that grow list the part in use. The text positions behind `positions` are not listed: they serve
        inspection and sliding windows, and no published byte count has them.
        """

    @abstractmethod
    def fork(self) -> LayerKV:
        """An independent copy: appending to one never shows in the other. Frozen tensors may be shared."""

    @abstractmethod
    def positions(self) -> Tensor:
        """Text positions of the held entries, ``[n]`` (same for all KV heads) or ``[Hk, n]``, int64, any order;
        in a ragged store -1 fills unused places."""

    @property
    def entries(self) -> float:
        """Held entries, mean over KV heads."""
        held = self.positions()
        return float((held >= 0).sum().item()) / (held.shape[0] if held.ndim == 2 else 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all held tensors by element count."""
        return sum(t.numel() * t.element_size() for t in self.tensors())

    @property
    def resident_nbytes(self) -> int:
        """Bytes of them that the next step reads: what must lie on the accelerator when the rest is kept elsewhere."""
        return self.nbytes

    @property
    def storage_nbytes(self) -> int:
        """Bytes of the memory behind the held tensors, each storage once; equals `nbytes` when nothing is wasted."""
        held = [t for t in self.tensors() if t.numel()]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())


class DecodePolicy(Protocol):
    """Acts on a `DenseLayer` after each decoding step (H2O, TOVA, …). One instance a layer and fork. One that has a
    number ``idle_to`` keeps all entries while a layer holds no more than that."""

    needs_weights: bool

    def after_attend(self, layer: DenseLayer, weights: Tensor | None) -> None:
        """Called after each new token, also when several came in one forward, with the fp32 weights ``[H, 1, n]`` of
        that token's query over the layer's entries (oldest first, its own last), or None. May call ``layer.keep``."""

    def tensors(self) -> Iterator[Tensor]: ...

    def fork(self) -> DecodePolicy: ...


class Tail:
    """Keys and values of newly generated tokens, in buffers that grow by blocks; order = arrival.

    Args:
        keys, values: ``[Hk, n, d]`` buffers of the same length.
    """

    def __init__(self, keys: Buffer, values: Buffer) -> None:
        self._keys, self._values = keys, values

    @classmethod
    def like(cls, key: Tensor, value: Tensor) -> Tail:
        """An empty tail for keys and values shaped and typed like these ``[Hk, n, d]``."""
        return cls(Buffer(key[:, :0].clone()), Buffer(value[:, :0].clone()))

    def append(self, key: Tensor, value: Tensor) -> None:
        self._keys.append(key)
        self._values.append(value)

    @property
    def length(self) -> int:
        return len(self._keys)

    @property
    def key(self) -> Tensor:
        return self._keys.used

    @property
    def value(self) -> Tensor:
        return self._values.used

    def fork(self) -> Tail:
        return Tail(self._keys.fork(), self._values.fork())


class DenseLayer(LayerKV):
    """Uncompressed keys and values: a frozen part (the prompt, or the kept subset of it) and a growing tail.

    The frozen part is never written to, so forks share it. During prefill it is filled in place once, through
    ``expected`` places reserved up front, so a prompt fed in chunks is not copied.

    Args:
        key, value: ``[Hk, n, d]`` of the kept tokens; None for an empty layer.
        kept: their text positions ``[n]`` or, head by head, ``[Hk, n]``, int64, ascending; None means 0..n-1.
        seen: tokens that went through so far; default n.
        expected: tokens that prefill will bring, for an empty layer.
        policy: acts after every new token.
    """

    def __init__(
        self,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        kept: Tensor | None = None,
        seen: int | None = None,
        expected: int = 0,
        policy: DecodePolicy | None = None,
    ) -> None:
        self.key, self.value, self.kept = key, value, kept
        self.filled = 0 if key is None else key.shape[1]
        self.seen = self.filled if seen is None else seen
        self.expected = expected
        self.policy = policy
        self.tail: Tail | None = None
        self.rule: AttentionRule | None = None  # of the model's layer, known once it attended
        self.stack: stack.DenseStack | None = None  # holds keys and values while rows decode together
        self.plan: stack.Plan | None = None
        self._tail_start = self.seen
        self._waiting: tuple[Tensor, Tensor] | None = None

    ring = None  # new entries go to the end

    @classmethod
    def attend_rows(
        cls, stores: Sequence[LayerKV], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
    ) -> Tensor:
        if query.shape[2] > 1 or not rule.plain:
            return super().attend_rows(stores, query, key, value, rule)
        return stack.attend([s for s in stores if isinstance(s, DenseLayer)], query, key, value, rule)

    @property
    def held(self) -> int:
        """Entries a head, new tokens included."""
        return self.filled + (self.seen - self._tail_start if self.tail is None else self.tail.length)

    def may_stack(self, rule: AttentionRule) -> bool:
        """Whether one new token a step can be appended beside other layers' and see every entry (`kv.stack`)."""
        if type(self) is not DenseLayer or self.acts or self._waiting is not None:
            return False  # a subclass attends in its own way
        if rule.window is not None and self.seen >= rule.window:
            return False
        return self.stack is not None or (self.key is not None and self.filled == self.key.shape[1])

    def stacked_into(self, holder: stack.DenseStack) -> None:
        """``holder`` has copied keys and values; let go of them."""
        self.stack, self.key, self.value = holder, None, None
        if self.tail is None:
            self._tail_start = self.seen
        self.tail = None

    def attend_alone(self, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """`append` and `attend`."""
        self.append(key, value)
        return self.attend(query, rule)

    def _leave_stack(self) -> None:
        if self.stack is not None:
            (self.key, self.value), (key, value) = self.stack.give_back(self, self.filled)
            self.stack = self.plan = None
            if key.shape[1]:
                self.tail = Tail(Buffer(key), Buffer(value))

    @property
    def acts(self) -> bool:
        """Whether something happens between one new token and the next, so that several must go one by one."""
        return self.policy is not None

    def append(self, key: Tensor, value: Tensor) -> None:
        self._leave_stack()
        past_prompt = self.key is not None and self.filled == self.key.shape[1]
        if self.acts and past_prompt and key.shape[1] > 1:  # on each of them: see `attend`
            assert self._waiting is None, "attend must follow append"
            self._waiting = (key, value)
            return
        self._append(key, value)

    def _append(self, key: Tensor, value: Tensor) -> None:
        q = key.shape[1]
        if self.key is not None and key.shape[0] != self.key.shape[0]:  # every query head has keys of its own
            copies = self.key.shape[0] // key.shape[0]
            key, value = key.repeat_interleave(copies, dim=0), value.repeat_interleave(copies, dim=0)
        if self.key is None:
            if q >= self.expected:  # whole prompt at once: take the tensors as they are
                self.key, self.value = owned(key), owned(value)
            else:
                self.key = key.new_empty(key.shape[0], self.expected, key.shape[2])
                self.value = value.new_empty(value.shape[0], self.expected, value.shape[2])
                self.key[:, :q], self.value[:, :q] = key, value
            self.filled = q
        elif self.tail is None and self.filled < self.key.shape[1]:
            assert self.value is not None
            if self.filled + q > self.expected:
                raise ValueError(f"{self.filled + q} tokens for a layer that expected {self.expected}")
            self.key[:, self.filled : self.filled + q] = key
            self.value[:, self.filled : self.filled + q] = value
            self.filled += q
        else:
            if self.tail is None:
                assert self.value is not None
                self.tail, self._tail_start = Tail.like(self.key, self.value), self.seen
            self.tail.append(key, value)
        self.seen += q
        if self.tail is None:
            self._tail_start = self.seen

    def parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """Key pieces and value pieces ``[Hk, n_i, d]`` that together hold every entry, oldest first."""
        self._leave_stack()
        assert self.key is not None, "nothing was appended yet"
        assert self.value is not None
        keys, values = [self.key[:, : self.filled]], [self.value[:, : self.filled]]
        if self.tail is not None:
            keys.append(self.tail.key)
            values.append(self.tail.value)
        return keys, values

    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        self.rule = rule
        if self._waiting is None:
            return self._attend(query, rule)
        key, value = self._waiting
        self._waiting = None
        outputs = []
        for i in range(query.shape[1]):  # one by one: what a token's step evicts, the next token does not see
            self._append(key[:, i : i + 1], value[:, i : i + 1])
            outputs.append(self._attend(query[:, i : i + 1], rule))
        return torch.cat(outputs, dim=1)

    def _attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        keys, values = self.parts()
        weights: Tensor | None = None
        if self.tail is None and self.kept is None and query.shape[1] > 1:
            out = attention.causal(query, keys[0], values[0], rule)
        else:
            hidden = outside_window(self.positions, self.seen, query.shape[1], rule.window)
            wants = self.policy is not None and self.policy.needs_weights
            out, weights = attention.over_parts(
                query,
                keys,
                values,
                rule,
                hidden=hidden,
                positions=self.positions,
                seen=self.seen,
                return_weights=wants,
            )
        if self.policy is not None and self.tail is not None:
            self.policy.after_attend(self, weights)
        return out

    def keep(self, index: Tensor) -> None:
        """Keep only the entries at ``index``; frees the rest.

        Args:
            index: int64, ascending: ``[n']`` for all KV heads alike, or ``[Hk, n']`` head by head.
        """
        keys, values = self.parts()
        held = self.positions()
        key, value = torch.cat(keys, dim=1), torch.cat(values, dim=1)
        if index.ndim == 2 and held.ndim == 1:
            held = held.expand(key.shape[0], -1)
        self.key, self.value = rows_at(key, index), rows_at(value, index)
        self.kept = torch.gather(held, -1, index.expand(key.shape[0], -1) if held.ndim == 2 else index)
        self.filled, self.tail = int(index.shape[-1]), None

    def positions(self) -> Tensor:
        self._leave_stack()
        device = None if self.key is None else self.key.device
        base = torch.arange(self.filled, device=device) if self.kept is None else self.kept
        if self.tail is None:
            return base
        new = torch.arange(self._tail_start, self.seen, device=device)
        return torch.cat([base, new.expand(*base.shape[:-1], -1)], dim=-1)

    def tensors(self) -> Iterator[Tensor]:
        self._leave_stack()
        if self.key is not None and self.value is not None:
            yield from (self.key[:, : self.filled], self.value[:, : self.filled])
        if self.tail is not None:
            yield from (self.tail.key, self.tail.value)
        if self.policy is not None:
            yield from self.policy.tensors()

    def fork(self) -> DenseLayer:
        self._leave_stack()
        key, value = self.key, self.value
        if key is not None and value is not None and self.filled < key.shape[1]:  # still being filled in place
            key, value = key.clone(), value.clone()
        new = DenseLayer(
            key,
            value,
            kept=self.kept,
            seen=self.seen,
            expected=self.expected,
            policy=None if self.policy is None else self.policy.fork(),
        )
        new.filled, new.rule = self.filled, self.rule
        new._tail_start = self._tail_start
        if self.tail is not None:
            new.tail = self.tail.fork()
        return new


def owned(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: contiguous, and no view that keeps a larger storage alive."""
    tensor = tensor.contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def text_positions(kept: Tensor | None, entries: int, seen: int, device: torch.device) -> Tensor:
    """Text positions of entries that are stored in order: the kept prompt tokens and then every new one.

    Args:
        kept: ``[n]`` or ``[Hk, n]`` int64; None where nothing was dropped.
        entries: how many are stored, n and the new ones. seen: tokens that went through until the last of them.

    Returns:
        ``[entries]`` or ``[Hk, entries]`` int64.
    """
    if kept is None:
        return torch.arange(entries, device=device)
    new = torch.arange(seen - (entries - kept.shape[-1]), seen, device=device)
    return torch.cat([kept, new.expand(*kept.shape[:-1], -1)], dim=-1)


def outside_window(positions: Callable[[], Tensor], seen: int, q: int, window: int | None) -> Tensor | None:
    """Which entries the q newest queries may not see under a sliding window.

    Args:
        positions: gives the entries' text positions ``[n]`` or ``[Hk, n]``; asked only when the window bites.
        seen: tokens gone through, the q newest included. window: tokens a query sees, itself included; None for all.

    Returns:
        bool ``[1, q, n]`` or ``[Hk, q, n]``; None when every query sees everything.
    """
    if window is None or seen <= window:
        return None
    held = positions()
    rows = torch.arange(seen - q, seen, device=held.device)[:, None]
    hidden = held[..., None, :] <= rows - window
    return hidden if held.ndim == 2 else hidden[None]
