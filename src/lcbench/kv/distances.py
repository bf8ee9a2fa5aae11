"""Queries that see far keys at another distance than the true one: what SelfExtend and LM-Infinite do to attention.

Keys within the `near` newest tokens of a query are seen as ever. For those further away query and key are turned to
other angles, so that no distance exceeds what the model was trained on. All of them are under one softmax. Keys are
held at the angle of their own position, as every store holds them; they are turned when they are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lcbench.kv.rope import moved
from lcbench.models.rope import Rope


@dataclass(frozen=True, eq=False)
class Distances:
    """The distances of one layer, for queries at positions i and keys at positions j.

    Attributes:
        near: keys with ``i - j < near`` are seen at their true distance (W).
        group: keys further away stand at ``floor(j / group)`` and the query at ``floor(i / group) + W - W / group``;
            None: all of them are seen at the distance ``near``.
        first: of the keys further away only the first so many are seen; None for all.
        rope: the layer's embedding; None for a layer without, where only ``first`` counts.
    """

    near: int
    group: int | None
    first: int | None
    rope: Rope | None

    def far_query(self, query: Tensor, positions: Tensor) -> Tensor:
        """Queries ``[..., q, d]`` at ``positions [q]`` as far keys see them."""
        if self.group is None:
            return moved(self.rope, query, positions, torch.full_like(positions, self.near))
        return moved(self.rope, query, positions, positions // self.group + self.near - self.near // self.group)

    def far_key(self, key: Tensor, positions: Tensor) -> Tensor:
        """Keys ``[..., n, d]`` at ``positions [n]`` or ``[Hk, n]`` as queries far from them see them."""
        return moved(self.rope, key, positions, positions // self.group if self.group else positions * 0)

    def is_far(self, rows: Tensor, cols: Tensor) -> Tensor:
        """bool ``[..., q, n]`` for queries at ``rows [q]`` and keys at ``cols [..., n]``."""
        return rows[:, None] - cols[..., None, :] >= self.near

    def unseen(self, far: Tensor, cols: Tensor) -> Tensor | None:
        """Which of the far keys are not seen at all, like ``far``; None when all are."""
        return None if self.first is None else far & (cols >= self.first)[..., None, :]

    def far_stop(self, last: int) -> int:
        """One past the last position that the queries before ``last`` see as far."""
        stop = max(0, last - self.near)
        return stop if self.first is None else min(stop, self.first)
