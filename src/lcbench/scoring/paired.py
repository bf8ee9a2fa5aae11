"""Two methods on the same samples: how far apart they are, and whether that is more than chance.

Everything is about differences of paired samples, second minus first. Scores are 0 to 1 here, points (percent) in the
results. Sources: McNemar 1947 (exact form: the binomial test on the pairs that differ), Fisher's randomization test
for pairs, Holm 1979, the percentile bootstrap of `lcbench.scoring.bootstrap`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lcbench.scoring.bootstrap import Bootstrap, Replicates, mean_of

_TIE = 1e-12  # scores are ratios of small whole numbers: what differs by less is rounding
_EXACT = 14  # up to this many clusters that differ, every assignment of signs is gone through
_DRAWS = 20_000
_CELLS = 1 << 22


@dataclass(frozen=True)
class PairedResult:
    """What the pairs of one task, or of several together, say.

    Attributes:
        n: pairs. clusters: groups of pairs that are drawn together; n where no two share a context.
        first, second: mean scores over the pairs, 0 to 100. difference: second minus first, in points.
        interval: 95 % bootstrap interval of the difference, in points; None with fewer than two clusters.
        wins, ties, losses: pairs in which the second scores more, the same, less.
        test: "mcnemar" (exact; scores of 0 and 1 alone) or "sign-flip" (randomization test over clusters).
        p: two-sided, of no difference. p_holm: after Holm's correction over tasks; equal to ``p`` until corrected.
    """

    n: int
    clusters: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float] | None
    wins: int
    ties: int
    losses: int
    test: Literal["mcnemar", "sign-flip"]
    p: float
    p_holm: float


@dataclass(frozen=True)
class Pairs:
    """Paired scores of one task.

    Attributes:
        task: names the stream of random numbers. first, second: scores, 0 to 1, the same sample at the same place.
        clusters: a label for each pair; equal labels are drawn together.
    """

    task: str
    first: tuple[float, ...]
    second: tuple[float, ...]
    clusters: tuple[Hashable, ...]

    @property
    def differences(self) -> list[float]:
        return [b - a for a, b in zip(self.first, self.second, strict=True)]

    @property
    def binary(self) -> bool:
        """Whether every score is 0 or 1, so that McNemar's test applies."""
        return {*self.first, *self.second} <= {0.0, 1.0}

    def cluster_sums(self) -> list[float]:
        """Sum of the differences of each cluster."""
        sums: dict[Hashable, float] = {}
        for label, difference in zip(self.clusters, self.differences, strict=True):
            sums[label] = sums.get(label, 0.0) + difference
        return list(sums.values())


def compare_pairs(pairs: Pairs, bootstrap: Bootstrap) -> tuple[PairedResult, Replicates | None]:
    """One task: the result, and the bootstrap replicates of its mean difference. ``pairs`` must hold a pair."""
    differences = pairs.differences
    wins, losses = _signs(differences)
    replicates = bootstrap.replicates(differences, pairs.clusters, pairs.task)
    if pairs.binary:
        p = mcnemar(wins, losses)
    else:
        p = sign_flip(pairs.cluster_sums(), seed=bootstrap.seed, key=pairs.task)
    result = PairedResult(
        n=len(differences),
        clusters=len(set(pairs.clusters)),
        first=_points(pairs.first),
        second=_points(pairs.second),
        difference=_points(differences),
        interval=bootstrap.interval(replicates),
        wins=wins,
        ties=len(differences) - wins - losses,
        losses=losses,
        test="mcnemar" if pairs.binary else "sign-flip",
        p=p,
        p_holm=p,
    )
    return result, replicates


def compare_tasks(tasks: Sequence[Pairs], bootstrap: Bootstrap) -> tuple[list[PairedResult], PairedResult]:
    """Every task, its p corrected over the tasks (Holm), and the mean over tasks, each task weighing the same.

    The test of the mean flips the signs of all clusters of all tasks together. With one task it is that task's own.
    """
    results, drawn = zip(*(compare_pairs(pairs, bootstrap) for pairs in tasks), strict=True)
    corrected = holm([result.p for result in results])
    each = [replace(result, p_holm=p) for result, p in zip(results, corrected, strict=True)]
    if len(each) == 1:
        return each, each[0]
    shares = [s / (len(pairs.first) * len(tasks)) for pairs in tasks for s in pairs.cluster_sums()]
    p = sign_flip(shares, seed=bootstrap.seed, key="all tasks")
    overall = PairedResult(
        n=sum(r.n for r in each),
        clusters=sum(r.clusters for r in each),
        first=_mean([r.first for r in each]),
        second=_mean([r.second for r in each]),
        difference=_mean([r.difference for r in each]),
        interval=bootstrap.interval(mean_of(drawn)),
        wins=sum(r.wins for r in each),
        ties=sum(r.ties for r in each),
        losses=sum(r.losses for r in each),
        test="sign-flip",
        p=p,
        p_holm=p,
    )
    return each, overall


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p of ``wins`` against ``losses`` among the pairs that differ: a fair coin's; 1 without any."""
    n = wins + losses
    if wins == losses:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, tail / (1 << (n - 1)))


def sign_flip(values: Sequence[float], *, seed: int = 0, key: str = "", draws: int = _DRAWS) -> float:
    """Two-sided p of a sum this far from 0, were the sign of each value (a pair's, a cluster's) a fair coin's.

    Exact over all assignments of signs for up to 14 values that are not 0, else by ``draws`` random assignments, the
    observed one counted among them, so that p is never 0.
    """
    import numpy as np

    weights = np.array([v for v in values if abs(v) > _TIE])
    if not len(weights):
        return 1.0
    threshold = abs(float(weights.sum())) - 1e-9 * float(np.abs(weights).sum())
    if len(weights) <= _EXACT:
        codes = np.arange(1 << len(weights))
        signs = 1 - 2.0 * ((codes[:, None] >> np.arange(len(weights))) & 1)
        return float(np.mean(np.abs(signs @ weights) >= threshold))
    generator = np.random.default_rng([seed, zlib.crc32(key.encode()), 1])
    step = max(1, _CELLS // len(weights))
    extreme = 0
    for start in range(0, draws, step):
        signs = 1 - 2.0 * generator.integers(0, 2, size=(min(step, draws - start), len(weights)))
        extreme += int(np.sum(np.abs(signs @ weights) >= threshold))
    return (extreme + 1) / (draws + 1)


def holm(ps: Sequence[float]) -> list[float]:
    """``ps`` corrected for being several (Holm's step-down method), in their order."""
    result = [1.0] * len(ps)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        result[index] = largest
    return result


def _signs(differences: Sequence[float]) -> tuple[int, int]:
    return sum(d > _TIE for d in differences), sum(d < -_TIE for d in differences)


def _points(scores: Sequence[float]) -> float:
    return 100 * math.fsum(scores) / len(scores)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
