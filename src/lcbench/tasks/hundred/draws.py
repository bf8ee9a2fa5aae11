"""Random choices that are the same on every platform and Python: all made from `random.Random.random`, whose sequence
Python guarantees for a seed; its `choice`, `shuffle` and `sample` carry no such promise."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """A stream of its own for everything that must not depend on what else is built.

    Args:
        parts: what the stream belongs to, e.g. (42, "kv_retrieval", 16384, 7).
    """

    def __init__(self, *parts: object) -> None:
        text = "|".join(map(str, parts))
        self._random = random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))

    def below(self, bound: int) -> int:
        """A whole number from 0 to ``bound`` - 1."""
        return int(self._random.random() * bound)

    def between(self, least: int, greatest: int) -> int:
        """A whole number, both ends included."""
        return least + self.below(greatest - least + 1)

    def choice(self, items: Sequence[T]) -> T:
        """One of ``items``, which are not empty."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All of ``items`` in a random order."""
        result = list(items)
        for i in range(len(result) - 1, 0, -1):
            j = self.below(i + 1)
            result[i], result[j] = result[j], result[i]
        return result

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """``count`` of ``items`` without replacement, in random order."""
        return self.shuffled(items)[:count]

    def uuid(self) -> str:
        """A random UUID (version 4) in lower case."""
        number = 0
        for _ in range(4):
            number = number << 32 | self.below(1 << 32)
        return str(uuid.UUID(int=number, version=4))
