"""How long a run will still take, told only when there is something to tell it from."""

from __future__ import annotations

_LEAST_SHARE = 0.02


class TimeLeft:
    """Time left, from the work that is done and the work that remains.

    Samples that were decoded together are written together: work counts when the next piece begins. Between two of
    these moments the time that passes is taken off. The clock starts with the first prompt, so that loading the model
    is not taken for work. Long prompts come first, and a token of a long prompt takes longer than one of a short
    prompt: what is told early is more likely too long than too short.

    Args:
        total: work to do, in any unit.
    """

    def __init__(self, total: float) -> None:
        self.total = total
        self.done = 0.0
        self._written = 0.0
        self._began: float | None = None
        self._last = 0.0

    def add(self, work: float) -> None:
        """Some work was written; more of the same batch may follow at once."""
        self._written += work

    def settle(self, now: float) -> None:
        """A piece of work begins or a group has ended, at ``now`` in seconds of any clock: what was written counts."""
        if self._began is None:
            self._began = now
        elif self._written:
            self.done, self._written, self._last = self.done + self._written, 0.0, now

    def left(self, now: float) -> float | None:
        """Seconds left, never below 0; None before a fiftieth of the work counts."""
        if self._began is None or self.done <= 0 or self.done < _LEAST_SHARE * self.total:
            return None
        rate = (self._last - self._began) / self.done
        return max(0.0, rate * max(0.0, self.total - self.done) - (now - self._last))
