"""LongScore: how much of a model's own short-context ability is left at length (100-LongBench, arXiv:2505.19293).

Scores are percentages. The order of operations and every rounding are those of the authors' `analysis/utils.py`: the
long-context value of a length is rounded before the mean over lengths is taken, and the mean is rounded again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key")


def long_context_value(score: float, base: float) -> float | None:
    """Change against the base in percent of the base, two decimals: 0 keeps the base ability, -100 loses all of it.

    Args:
        score: score at a length. base: score on the base set.

    Returns:
        None when the base is 0: nothing can be lost or kept then (the reference divides by zero).
    """
    return None if base == 0 else round(100 * (score - base) / base, 2)


def mean_score(scores: Sequence[float | None]) -> float | None:
    """Mean of values over lengths, two decimals; None when there are none, or one of them is None.

    A length that has no score is not left out silently: means over different lengths cannot be compared.
    """
    known = [score for score in scores if score is not None]
    return round(sum(known) / len(known), 2) if known and len(known) == len(scores) else None


def long_score(scores: Sequence[float | None], base: float | None) -> float | None:
    """LongScore: the mean of the long-context values of ``scores``, the base not among them.

    Returns:
        None when the base is 0 or missing, or a length has no score.
    """
    if base is None:
        return None
    return mean_score([None if score is None else long_context_value(score, base) for score in scores])


def mean_over_tasks(scores: Sequence[float | None]) -> float | None:
    """Score of all tasks at one length, not rounded; None when a task has no score there.

    The overall LongScore is made of these means: it is not the mean of the tasks' LongScores.

    Args:
        scores: one a task, in alphabetical order of the tasks: floats are added one by one, and the last digit of a
            rounded value can depend on the order.
    """
    total = 0.0
    for score in scores:
        if score is None:
            return None
        total += score
    return total / len(scores) if scores else None


def radar_value(long_score: float | None, limit: float = 50.0) -> float | None:
    """A task's LongScore as the published radar figure draws it: values above ``limit`` become 0."""
    return 0.0 if long_score is not None and long_score > limit else long_score


def ranks(values: Mapping[Key, float | None]) -> dict[Key, int | None]:
    """Rank of every value, the greatest 1; ties share the smallest rank, None has none."""
    known = [value for value in values.values() if value is not None]
    return {key: None if v is None else 1 + sum(other > v for other in known) for key, v in values.items()}
