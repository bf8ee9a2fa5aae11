"""95 % intervals by the percentile bootstrap: samples are drawn again, or whole clusters of them. Seeded.

The draws of a task depend on the seed, its name and how many clusters it has, not on the method or on other tasks: two
methods on the same rows meet the same draws, and adding a task moves no other interval.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Replicates: TypeAlias = "NDArray[np.float64]"
"""Means of resampled scores, shape [resamples]."""

_CELLS = 1 << 22  # most random numbers held at once


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Attributes:
        seed: any whole number of 0 or more.
        resamples: how often the samples are drawn again.
        confidence: share of the replicates inside the interval.
    """

    seed: int = 0
    resamples: int = 2000
    confidence: float = 0.95

    def replicates(self, scores: Sequence[float], clusters: Sequence[Hashable] | None, key: str) -> Replicates | None:
        """Means of ``scores`` drawn again, shape [resamples]; None with fewer than two clusters to draw from.

        Args:
            clusters: a label for each score; equal labels are drawn together. None: each score for itself.
            key: name of the stream of random numbers, e.g. the task.
        """
        import numpy as np

        numbers: dict[Hashable, int] = {}
        labels = range(len(scores)) if clusters is None else clusters
        index = np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.intp)
        count = len(numbers)
        sums, sizes = np.zeros(count), np.zeros(count)
        np.add.at(sums, index, np.asarray(scores, dtype=np.float64))
        np.add.at(sizes, index, 1.0)
        if count < 2:
            return None
        single = bool((sizes == 1).all())
        generator = np.random.default_rng([self.seed, zlib.crc32(key.encode())])
        result = np.empty(self.resamples)
        step = max(1, _CELLS // count)
        for start in range(0, self.resamples, step):
            drawn = generator.integers(0, count, size=(min(step, self.resamples - start), count))
            total = count if single else sizes[drawn].sum(axis=1)
            result[start : start + len(drawn)] = sums[drawn].sum(axis=1) / total
        return result

    def interval(self, replicates: Replicates | None) -> tuple[float, float] | None:
        """Lower and upper end in percent with two decimals, from means of 0 to 1; None without replicates."""
        import numpy as np

        if replicates is None:
            return None
        tail = 50 * (1 - self.confidence)
        low, high = np.percentile(replicates, [tail, 100 - tail])
        return round(100 * float(low), 2), round(100 * float(high), 2)


def mean_of(parts: Sequence[Replicates | None]) -> Replicates | None:
    """Replicates of the plain mean of independent means; None when one of them has none."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    total = known[0].copy()
    for part in known[1:]:
        total += part
    result: Replicates = total / len(known)
    return result
