"""Prompts that are read in runs: which tokens act together, whatever pieces the engine feeds them in."""

from __future__ import annotations

from dataclasses import dataclass

from lcbench.errors import UsageError


@dataclass(frozen=True)
class Runs:
    """Runs of ``size`` prompt tokens from ``first`` on; after ``last`` every token is a run of its own.

    Attributes:
        method: named in the error. first: tokens before it may come in any pieces. last: end of the last run.
    """

    method: str
    size: int
    first: int
    last: int

    def cut(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The runs that make up the tokens ``start`` to ``stop``; those before ``first`` are one.

        Raises:
            UsageError: the piece begins or ends inside a run, so that its tokens cannot act together.
        """
        if self._inside(start) or self._inside(stop):
            raise UsageError(
                f"{self.method} reads prompts in runs of {self.size} tokens, and a piece of tokens {start} to "
                f"{stop - 1} cuts one in two.",
                f"Leave prefill_chunk out, or make it a multiple of {self.size}.",
            )
        runs = []
        while start < stop:
            end = min(stop, self._end(start))
            runs.append((start, end))
            start = end
        return runs

    def _end(self, at: int) -> int:
        """Where the run ends that begins at ``at``."""
        if at >= self.last:
            return at + 1
        if at < self.first:
            return min(self.first, self.last)
        return min(at + self.size, self.last)

    def _inside(self, at: int) -> bool:
        return self.first < at < self.last and (at - self.first) % self.size != 0
