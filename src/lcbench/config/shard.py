"""``--shard 3/8``: which of several equal parts of a run a process answers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lcbench.errors import BadValue

_MOST = 100_000


@dataclass(frozen=True)
class Shard:
    """Part ``number``, from 1, of ``of``: of the run's groups, every ``of``-th from that one on.

    The groups are in the order of their need, so the parts of a run are about equally large.
    """

    number: int
    of: int

    @property
    def folder(self) -> str:
        """Its folder below the run's ``shards/``."""
        return f"{self.number}-of-{self.of}"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, index: int) -> bool:
        """Whether the group with this index (from 0) is its own."""
        return index % self.of == self.number - 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Raises BadValue for anything but K/N with 1 <= K <= N."""
        match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text, re.ASCII)
        number, of = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= of <= _MOST:
            raise BadValue(
                f"--shard {text} is not a part of a run.", "Write --shard 3/8: the third of eight, counted from 1."
            )
        return cls(number, of)
