"""Stores that keep every token and attend a part of them: what retrieval methods stand on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lcbench.kv.layer import DenseLayer

L = TypeVar("L", bound="WholeLayer")


class WholeLayer(DenseLayer):
    """All tokens of a sequence in the order of their positions; a subclass says in ``_attend`` which are seen.

    Give it the prompt's keys and values, or ``expected`` to read the prompt in; see `DenseLayer`.
    """

    def token_nbytes(self, tokens: float) -> int:
        """Bytes of the keys and values of so many tokens."""
        assert self.key is not None
        kv_heads, _, head_dim = self.key.shape
        return round(2 * kv_heads * head_dim * self.key.element_size() * tokens)

    def rows(self, spans: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Keys and values ``[Hk, n, d]`` at the positions of some spans (first, one past the last), in that order; a
        view where they lie together."""
        keys, values = self.parts()
        pieces: list[tuple[Tensor, Tensor]] = []
        for first, stop in spans:
            at = 0
            for key, value in zip(keys, values, strict=True):
                low, high = max(first - at, 0), min(stop - at, key.shape[1])
                if low < high:
                    pieces.append((key[:, low:high], value[:, low:high]))
                at += key.shape[1]
        if not pieces:
            return keys[0][:, :0], values[0][:, :0]
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat([key for key, _ in pieces], dim=1), torch.cat([value for _, value in pieces], dim=1)

    def at(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of keys and values at the positions ``index``: ``[Hk, n]`` head by head, or ``[H, n]`` query head by
        query head, each then with its own copy ``[H, n, d]``."""
        keys, values = self.parts()
        return _gather(keys, index), _gather(values, index)

    def fork(self: L) -> L:
        new = copy.copy(self)
        if self.key is not None and self.value is not None and self.filled < self.key.shape[1]:  # filled in place
            new.key, new.value = self.key.clone(), self.value.clone()
        if self.tail is not None:
            new.tail = self.tail.fork()
        return new


def _gather(pieces: Sequence[Tensor], index: Tensor) -> Tensor:
    """Rows of pieces ``[Hk, n_i, d]`` that follow one another, without joining the pieces."""
    kv_heads, _, d = pieces[0].shape
    wide = index.view(kv_heads, -1, index.shape[1], 1)
    found: Tensor | None = None
    at = 0
    for piece in pieces:
        inside = (wide - at).clamp(0, max(piece.shape[1] - 1, 0)).expand(-1, -1, -1, d)
        if piece.shape[1]:
            rows = torch.gather(piece[:, None].expand(-1, wide.shape[1], -1, -1), 2, inside)
            found = rows if found is None else torch.where(wide < at, found, rows)
        at += piece.shape[1]
    assert found is not None, "nothing was appended yet"
    return found.view(*index.shape, d)
