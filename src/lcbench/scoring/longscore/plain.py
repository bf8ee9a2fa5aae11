"""Curves from scores alone, as they are published: no samples, so no intervals and no breakdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lcbench.scoring.longscore.curve import OVERALL, Curve, Rung
from lcbench.scoring.longscore.formula import long_context_value, long_score, mean_over_tasks, mean_score
from lcbench.scoring.longscore.ladder import parse_length, split_task
from lcbench.tasks.facts import HUNDRED
from lcbench.tasks.hundred.names import BASE


def from_scores(
    name: str, base: float | None, lengths: Mapping[str, float | None], members: tuple[str, ...] = ()
) -> Curve:
    """A curve of 100-LongBench.

    Args:
        name: task without a length. base: score of its base set, 0 to 100. lengths: ``"16k"`` to score, in any order.
        members: tasks of a mean.

    Raises:
        BadValue: a label that is no length.
    """
    rungs = tuple(
        Rung(
            label,
            size,
            lengths[label],
            value=None if base is None or (score := lengths[label]) is None else long_context_value(score, base),
        )
        for size, label in sorted((parse_length(label), label) for label in lengths)
    )
    scores = [rung.score for rung in rungs]
    return Curve(
        name=name,
        suite=HUNDRED,
        unit="tokens",
        base=Rung(BASE, 0.0, base, value=0.0 if base else None),
        rungs=rungs,
        average=mean_score(scores),
        average_interval=None,
        long_score=long_score(scores, base),
        long_score_interval=None,
        breakdown=None,
        lasting=False,
        members=members,
    )


def from_tasks(scores: Mapping[str, float]) -> list[Curve]:
    """Curves from task ids with a length (``100-longbench/kv_retrieval@16k``, ``…@base``) to scores.

    Ids without a length are passed over, as are tasks without a length above the base.
    """
    families: dict[str, dict[str, float]] = {}
    for task, score in scores.items():
        split = split_task(task)
        if split is not None:
            families.setdefault(split[0], {})[split[1]] = score
    return [
        from_scores(name, lengths.get(BASE), {k: v for k, v in lengths.items() if k != BASE})
        for name, lengths in families.items()
        if set(lengths) - {BASE}
    ]


def mean_of_curves(curves: Sequence[Curve], name: str = OVERALL) -> Curve | None:
    """The mean of several tasks' curves at the lengths that all of them have; None when there is none."""
    ordered = sorted(curves, key=lambda one: one.name)
    common = [label for label in (ordered[0].labels if ordered else ()) if all(label in c.labels for c in ordered)]
    if not common:
        return None
    at = [{rung.label: rung.score for rung in one.rungs} for one in ordered]
    means = {label: mean_over_tasks([scores[label] for scores in at]) for label in common}
    base = mean_over_tasks([one.base.score for one in ordered])
    return from_scores(name, base, means, tuple(one.name for one in ordered))
