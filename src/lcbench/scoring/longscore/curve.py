"""Score over length: the LongScore of a ladder, its bands, and the length at which a model breaks down.

Intervals are percentile bootstraps. Base and lengths are drawn again independently of each other, whole contexts at a
time; every replicate goes through the same formula. Scores are rounded as the task's scorer rounds them and enter the
formula rounded; replicates are not rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lcbench.scoring.bootstrap import Bootstrap, Replicates, mean_of
from lcbench.scoring.longscore.formula import long_context_value, long_score, mean_over_tasks, mean_score
from lcbench.scoring.longscore.ladder import Counts, Ladder, Point, Unit
from lcbench.tasks.facts import HUNDRED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Interval = tuple[float, float]

SMALL_BASE = 5.0
"""A base below this many points is called small: a change of one point is then a fifth of it or more."""
FEW_SAMPLES = 30
"""Below this many independent samples the bootstrap's intervals are too narrow to trust."""


@dataclass(frozen=True)
class Rung:
    """One length of a curve.

    Attributes:
        label, size: of the length, "base" and 0 for the base. score: 0 to 100, None when no sample was scored.
        interval: 95 % of the score. value: long-context value in percent of the base, 0 at the base.
        value_interval: 95 % of it, the base's uncertainty included.
        change_interval: 95 % of score minus base score, in points.
        counts: of the samples; clusters: contexts among the kept ones.
    """

    label: str
    size: float
    score: float | None
    interval: Interval | None = None
    value: float | None = None
    value_interval: Interval | None = None
    change_interval: Interval | None = None
    counts: Counts = Counts()
    clusters: int = 0

    @property
    def below_base(self) -> bool:
        """Whether the score lies significantly below the base: the 95 % interval of the change is below 0."""
        return self.change_interval is not None and self.change_interval[1] < 0


@dataclass(frozen=True)
class Curve:
    """One method on one task (or the mean of the tasks) over length.

    Attributes:
        name: task without a length, or `OVERALL`. suite: benchmark. unit: of the lengths.
        base: the base set. rungs: the lengths above it, ascending; the base is in neither mean below.
        average, average_interval: mean score over the lengths. long_score, long_score_interval: LongScore.
        breakdown: label of the first length that lies significantly below the base; None when none does.
        lasting: whether every longer length does so too.
        warnings: why a number should not be leaned on. members: tasks of a mean.
    """

    name: str
    suite: str
    unit: str
    base: Rung
    rungs: tuple[Rung, ...]
    average: float | None
    average_interval: Interval | None
    long_score: float | None
    long_score_interval: Interval | None
    breakdown: str | None
    lasting: bool
    warnings: tuple[str, ...] = ()
    members: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(rung.label for rung in self.rungs)


OVERALL = HUNDRED
"""Name of the curve that is the mean of the 100-LongBench tasks."""


@dataclass(frozen=True)
class Drawn:
    """A ladder with its bootstrap, before the formula.

    Attributes:
        base: score of the base. scores: of the lengths. base_draws, draws: replicates of them, 0 to 1.
    """

    ladder: Ladder
    base: float | None
    scores: tuple[float | None, ...]
    base_draws: Replicates | None
    draws: tuple[Replicates | None, ...]


def draw(ladder: Ladder, bootstrap: Bootstrap) -> Drawn:
    """Scores and replicates of a ladder. Two methods with the same units meet the same draws."""
    bases = [point.score for point in ladder.base]
    return Drawn(
        ladder,
        bases[0] if len(bases) == 1 else mean_over_tasks(bases),
        tuple(point.score for point in ladder.points),
        mean_of([_replicates(point, bootstrap) for point in ladder.base]),
        tuple(_replicates(point, bootstrap) for point in ladder.points),
    )


def _replicates(point: Point, bootstrap: Bootstrap) -> Replicates | None:
    scores = [unit.score for unit in point.units]
    return bootstrap.replicates(scores, [unit.cluster for unit in point.units], f"{point.task} {point.label}")


def mean_of_ladders(drawn: Sequence[Drawn]) -> Drawn | None:
    """The mean over tasks at every length that all of them have; None when there is no such length.

    Args:
        drawn: of 100-LongBench tasks; in alphabetical order they enter the sums.
    """
    ordered = sorted(drawn, key=lambda one: one.ladder.name)
    at = [{point.label: i for i, point in enumerate(one.ladder.points)} for one in ordered]
    common = [label for label in (at[0] if at else ()) if all(label in places for places in at)]
    if not common:
        return None
    left_out = dict.fromkeys(p.label for one in ordered for p in one.ladder.points if p.label not in common)
    notes = [f"{label} is in no overall mean: not every task was run at it." for label in left_out]
    points, scores, draws = [], [], []
    for label in common:
        here = [(one, places[label]) for one, places in zip(ordered, at, strict=True)]
        scores.append(mean_over_tasks([one.scores[i] for one, i in here]))
        draws.append(mean_of([one.draws[i] for one, i in here]))
        points.append(_together(label, [one.ladder.points[i] for one, i in here], scores[-1]))
    base = mean_over_tasks([one.base for one in ordered])
    whole = _together("base", [point for one in ordered for point in one.ladder.base], base)
    whole = replace(whole, lacks=", ".join(f"none for {one.ladder.name}" for one in ordered if one.base is None))
    ladder = Ladder(
        OVERALL, ordered[0].ladder.suite, "tokens", (replace(whole, size=0.0),), tuple(points), tuple(notes)
    )
    return Drawn(ladder, base, tuple(scores), mean_of([one.base_draws for one in ordered]), tuple(draws))


def _together(label: str, points: Sequence[Point], score: float | None) -> Point:
    """Several tasks' samples as one point, for its counts."""
    units = tuple(Unit(unit.key, unit.score, (p.task, unit.cluster)) for p in points for unit in p.units)
    counts = sum((point.counts for point in points), Counts())
    without = ", ".join(dict.fromkeys(f"none for {p.task}" for p in points if p.score is None))
    return Point(label, max((p.size for p in points), default=0.0), OVERALL, score, units, counts, lacks=without)


def curve(drawn: Drawn, bootstrap: Bootstrap, members: tuple[str, ...] = ()) -> Curve:
    """Scores over length, LongScore and breakdown of one task, or of a mean over ``members``."""
    ladder = drawn.ladder
    values = [relative(draws, drawn.base_draws) for draws in drawn.draws]
    rungs = tuple(
        _rung(point, score, drawn.base, draws, drawn.base_draws, bootstrap)
        for point, score, draws in zip(ladder.points, drawn.scores, drawn.draws, strict=True)
    )
    below = [rung.below_base for rung in rungs]
    first = below.index(True) if True in below else None
    result = long_score(drawn.scores, drawn.base)
    base = _base_rung(drawn, bootstrap)
    chance = mean_over_tasks([point.chance for point in ladder.base])
    return Curve(
        name=ladder.name,
        suite=ladder.suite,
        unit=ladder.unit,
        base=base,
        rungs=rungs,
        average=mean_score(drawn.scores),
        average_interval=bootstrap.interval(mean_of(drawn.draws)),
        long_score=result,
        long_score_interval=None if result is None else interval_of(mean_of(values), bootstrap),
        breakdown=None if first is None else rungs[first].label,
        lasting=first is not None and all(below[first:]),
        warnings=(*ladder.notes, *_no_base(ladder), *_doubts(base, chance), *_missing(ladder)),
        members=members,
    )


def _base_rung(drawn: Drawn, bootstrap: Bootstrap) -> Rung:
    points = drawn.ladder.base
    own_set = all(point.size == 0 for point in points)
    return Rung(
        label="base" if own_set else "+".join(point.label for point in points),
        size=max((point.size for point in points), default=0.0),
        score=drawn.base,
        interval=bootstrap.interval(drawn.base_draws),
        value=0.0 if drawn.base else None,
        counts=sum((point.counts for point in points), Counts()),
        clusters=sum(point.clusters for point in points),
    )


def _rung(
    point: Point,
    score: float | None,
    base: float | None,
    draws: Replicates | None,
    base_draws: Replicates | None,
    bootstrap: Bootstrap,
) -> Rung:
    value = None if score is None or base is None else long_context_value(score, base)
    return Rung(
        label=point.label,
        size=point.size,
        score=score,
        interval=bootstrap.interval(draws),
        value=value,
        value_interval=None if value is None else interval_of(relative(draws, base_draws), bootstrap),
        change_interval=bootstrap.interval(difference(draws, base_draws)),
        counts=point.counts,
        clusters=point.clusters,
    )


# -- replicates ------------------------------------------------------------------------------------------------------


def difference(draws: Replicates | None, base: Replicates | None) -> Replicates | None:
    """Replicates of score minus base score, 0 to 1; None without one of them."""
    return None if draws is None or base is None else draws - base


def relative(draws: Replicates | None, base: Replicates | None) -> Replicates | None:
    """Replicates of the long-context value in percent; infinite where the drawn base is 0."""
    import numpy as np

    if draws is None or base is None:
        return None
    result: NDArray[np.float64] = np.full(len(base), np.inf)
    np.divide(100 * (draws - base), base, out=result, where=base > 0)
    return result


def interval_of(replicates: Replicates | None, bootstrap: Bootstrap) -> Interval | None:
    """Both ends of the percentile interval, two decimals; None when it reaches into replicates without a value."""
    import numpy as np

    if replicates is None:
        return None
    tail = 50 * (1 - bootstrap.confidence)
    # "higher": an order statistic, never a mixture of a number and infinity.
    low, high = (float(x) for x in np.percentile(replicates, [tail, 100 - tail], method="higher"))
    return (round(low, 2), round(high, 2)) if math.isfinite(low) and math.isfinite(high) else None


# -- doubts ----------------------------------------------------------------------------------------------------------


def _doubts(base: Rung, chance: float | None) -> list[str]:
    """Why the LongScore over this base means little, in sentences."""
    if base.score is None:
        return []  # `_no_base`, or the ladder's own note, says why
    if base.score == 0:
        return ["The base score is 0: there is no ability to keep or lose, and LongScore is not defined."]
    doubts = []
    half = 0.0 if base.interval is None else (base.interval[1] - base.interval[0]) / 2
    if base.score < SMALL_BASE or half > base.score / 2:
        uncertain = f" ± {half:.1f}" if half else ""
        doubts.append(
            f"The base score is small ({base.score:.2f}{uncertain}): a few samples more or less move LongScore widely."
        )
    if chance and base.score <= chance + (half or _half_width(chance, base.clusters)):
        doubts.append(
            f"The base score ({base.score:.2f}) is not clearly above guessing ({chance:.1f}): LongScore then measures "
            "luck."
        )
    if 0 < base.clusters < FEW_SAMPLES:
        doubts.append(f"The base has few independent samples ({base.clusters}): the intervals are too narrow.")
    return doubts


def _half_width(chance: float, samples: int) -> float:
    """95 % half width of a share around ``chance`` percent; for 100 samples where the number is not known."""
    share = min(max(chance / 100, 0.0), 1.0)
    return 196 * math.sqrt(share * (1 - share) / (samples or 100))


def _no_base(ladder: Ladder) -> list[str]:
    """Why there is no base score, where the base was asked for."""
    without = [point for point in ladder.base if point.score is None]
    if not without:
        return []
    why = without[0].lacks if len(ladder.base) == 1 else _reasons(without)
    return [f"The base has no score ({why}), so there is no LongScore."]


def _missing(ladder: Ladder) -> list[str]:
    """Which lengths have no score, and why, and what follows."""
    without = [point for point in ladder.points if point.score is None]
    if not without:
        return []
    return [
        f"No sample was scored at {_reasons(without)}: no mean over lengths is given, since means over different "
        "lengths cannot be compared."
    ]


def _reasons(points: Sequence[Point]) -> str:
    return ", ".join(f"{point.label} ({point.lacks})" for point in points)
