"""Rows that arrive one by one: the growing memory behind what is held while decoding."""

from __future__ import annotations

from torch import Tensor


class Buffer:
    """A tensor ``[Hk, n, ...]`` that grows at the end of its token axis and shrinks at the front.

    Memory is taken in blocks: once it has grown it may exceed the rows in use, by less than a block and the rows
    dropped since it last grew. A row that was written is never written again, which lets forks share the rows they
    have in common.

    Args:
        rows: the first rows, taken as they are (and never written to): memory of their own, or shared and frozen.
    """

    BLOCK = 64

    def __init__(self, rows: Tensor) -> None:
        self._memory = rows
        self._start, self._stop = 0, int(rows.shape[1])

    def __len__(self) -> int:
        return self._stop - self._start

    @property
    def used(self) -> Tensor:
        """The rows held, oldest first: a view ``[Hk, n, ...]``."""
        return self._memory[:, self._start : self._stop]

    def append(self, rows: Tensor) -> None:
        """Take the rows ``[Hk, q, ...]``, in the buffer's dtype."""
        stop = self._stop + rows.shape[1]
        if stop > self._memory.shape[1]:
            length = len(self)
            size = -(-(length + rows.shape[1]) // self.BLOCK) * self.BLOCK
            memory = self._memory.new_empty(self._memory.shape[0], size, *self._memory.shape[2:])
            memory[:, :length] = self.used
            self._memory, self._start, self._stop = memory, 0, length
            stop = length + rows.shape[1]
        self._memory[:, self._stop : stop] = rows
        self._stop = stop

    def drop(self, count: int) -> Tensor:
        """Forget the ``count`` oldest rows; returns them, a view that stays valid."""
        gone = self._memory[:, self._start : self._start + count]
        self._start += count
        return gone

    def fork(self) -> Buffer:
        """An independent buffer with the same rows."""
        return Buffer(self.used)
