"""Heavy hitters and recent tokens: the eviction rule that H2O and its relatives share, at prefill end and after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lcbench.kv.layer import DenseLayer
from lcbench.kv.pick import highest
from lcbench.kv.record import LayerRecord, take
from lcbench.kv.scores import group_reduce


@dataclass(frozen=True)
class Limits:
    """Entries of a head that survive a step.

    Attributes:
        heavy: those with the highest scores among all but the recent ones.
        recent: the newest ones.
        sinks: the first tokens of the text, which count as the heaviest.
    """

    heavy: int
    recent: int
    sinks: int = 0

    @property
    def total(self) -> int:
        return self.heavy + self.recent

    def survivors(self, scores: Tensor) -> Tensor:
        """Which of n entries stay, oldest first: scores ``[h, n]``, n > total, to ``[h, total]`` int64, ascending.

        Ties keep the lower index.
        """
        heads, n = scores.shape
        old = n - self.recent
        candidates = scores[:, :old].float().clone()
        candidates[:, : self.sinks] = torch.inf
        recent = torch.arange(old, n, device=scores.device).expand(heads, -1)
        return torch.cat([highest(candidates, self.heavy), recent], dim=-1)


@dataclass
class HeavyHitters:
    """`DecodePolicy`: adds up the attention that each entry gets, and after each new token keeps what `Limits` says.

    An entry that left never returns, and its score leaves with it.

    Attributes:
        scores: fp32 ``[H, n]``, attention received so far by each entry, per query head (times `gain`, if set).
        limits: see `Limits`.
        gain: fp32 ``[h, n]`` for the h stored heads, the L1 norm of each entry's value, where attention counts times
            it; else None.
    """

    scores: Tensor
    limits: Limits
    gain: Tensor | None = None
    needs_weights: bool = True

    @property
    def idle_to(self) -> int:
        """Entries up to which all are kept."""
        return self.limits.total

    def after_attend(self, layer: DenseLayer, weights: Tensor | None) -> None:
        assert weights is not None, "heavy hitters are found by attention weights"
        received = weights[:, 0]
        if self.gain is not None:
            assert layer.tail is not None
            self.gain = torch.cat([self.gain, value_norms(layer.tail.value[:, -1:])], dim=1)
            received = received * _spread(self.gain, received.shape[0])
        received[:, :-1] += self.scores
        self.scores = received
        if received.shape[1] > self.limits.total:
            keys, _ = layer.parts()
            layer.keep(self._choose(keys[0].shape[0]))

    def _choose(self, stored: int) -> Tensor:
        """The survivors of each stored head ``[h, total]``; forgets the scores of the rest."""
        index = self.limits.survivors(group_reduce(self.scores, stored))
        self.scores = torch.gather(self.scores, 1, _spread(index, self.scores.shape[0]))
        if self.gain is not None:
            self.gain = torch.gather(self.gain, 1, index)
        return index

    def on_prompt(self, record: LayerRecord, stored: int) -> DenseLayer:
        """The layer after the prompt, reduced if there is more than `Limits` allow, with this policy in it.

        Args:
            stored: heads to store, Hk or H.
        """
        kv_heads, length, _ = record.key.shape
        if length <= self.limits.total and stored == kv_heads:
            return DenseLayer(record.key, record.value, policy=self)
        if length <= self.limits.total:
            index = torch.arange(length, device=record.key.device).expand(stored, -1)
        else:
            index = self._choose(stored)
        key, value = take(record, index)
        return DenseLayer(key, value, kept=index, seen=length, policy=self)

    def tensors(self) -> Iterator[Tensor]:
        yield self.scores
        if self.gain is not None:
            yield self.gain

    def fork(self) -> HeavyHitters:
        return replace(self)  # tensors are replaced, never written to


def value_norms(value: Tensor) -> Tensor:
    """L1 norm of each value ``[h, n, d]``: fp32 ``[h, n]``."""
    norms: Tensor = torch.linalg.vector_norm(value, ord=1, dim=-1, dtype=torch.float32)
    return norms


def _spread(per_stored_head: Tensor, heads: int) -> Tensor:
    """Rows of the stored heads ``[h, n]`` to rows of the query heads ``[H, n]``."""
    return per_stored_head.repeat_interleave(heads // per_stored_head.shape[0], dim=0)
