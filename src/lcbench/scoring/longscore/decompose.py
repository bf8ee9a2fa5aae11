"""What a method loses against the full cache, split into base ability and long-context ability.

A score at a length is base ability times what is left of it there: S = B x R. Two methods differ by

    S' - S  =  (B' - B) x (R' + R)/2   +   (R' - R) x (B' + B)/2
               base ability                long-context ability

which adds up exactly and does not depend on which factor is changed first (the Shapley value of a product of two).
Intervals are paired: both methods answered the same questions, so the same draws are applied to both, and only
questions that both have a score for enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lcbench.scoring.bootstrap import Bootstrap, Replicates, mean_of
from lcbench.scoring.longscore.curve import OVERALL, Drawn, Interval, draw, interval_of, mean_of_ladders, relative
from lcbench.scoring.longscore.formula import long_score, mean_score
from lcbench.scoring.longscore.ladder import Ladder, Point, in_common

_MOSTLY = 2 / 3


@dataclass(frozen=True)
class Amount:
    """A difference in points with its 95 % interval; None where it cannot be computed."""

    value: float | None
    interval: Interval | None = None

    @property
    def significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclass(frozen=True)
class LengthSplit:
    """The split at one length, in points; negative is lost. ``change`` is the sum of the other two."""

    label: str
    change: float | None
    base_ability: float | None
    long_context: float | None


@dataclass(frozen=True)
class Split:
    """One method against another (the full cache) on one task or on the mean of the tasks.

    Attributes:
        task, method, against: what was compared.
        change: mean over lengths of the method's score minus the other's, in points; negative is lost.
        base_ability, long_context: the parts of ``change``.
        base_change: change of the base score itself. long_score_change: change of LongScore.
        by_length: the split at each length.
        shared: samples in the comparison, base included. left_out: samples with a score by one of the two alone.
        sentence: all of it in one sentence.
    """

    task: str
    method: str
    against: str
    change: Amount
    base_ability: Amount
    long_context: Amount
    base_change: Amount
    long_score_change: Amount
    by_length: tuple[LengthSplit, ...]
    shared: int
    left_out: int
    sentence: str


@dataclass(frozen=True)
class Pair:
    """Two methods on one ladder, on the questions both have a score for."""

    mine: Drawn
    other: Drawn
    shared: int
    left_out: int


def pair(mine: Ladder, other: Ladder, bootstrap: Bootstrap) -> Pair | None:
    """The two ladders on their common lengths and units; None when they share no length or no base."""
    labels = [p.label for p in mine.points if p.label in {q.label for q in other.points}]
    if not labels or [p.label for p in mine.base] != [p.label for p in other.base] or not mine.base:
        return None
    bases = [in_common(a, b) for a, b in zip(mine.base, other.base, strict=True)]
    theirs = {point.label: point for point in other.points}
    points = [in_common(p, theirs[p.label]) for p in mine.points if p.label in labels]
    before = [*mine.base, *(p for p in mine.points if p.label in labels), *other.base, *(theirs[n] for n in labels)]
    mine_shared = sum(a.samples for a, _ in [*bases, *points])
    theirs_shared = sum(b.samples for _, b in [*bases, *points])
    return Pair(
        draw(_cut(mine, [a for a, _ in bases], [a for a, _ in points]), bootstrap),
        draw(_cut(other, [b for _, b in bases], [b for _, b in points]), bootstrap),
        min(mine_shared, theirs_shared),
        sum(p.samples for p in before) - mine_shared - theirs_shared,
    )


def _cut(ladder: Ladder, base: Sequence[Point], points: Sequence[Point]) -> Ladder:
    return replace(ladder, base=tuple(base), points=tuple(points))


def mean_pair(pairs: Sequence[Pair]) -> Pair | None:
    """The mean of several tasks' pairs, at the lengths that all of them have."""
    mine = mean_of_ladders([one.mine for one in pairs])
    other = mean_of_ladders([one.other for one in pairs])
    if mine is None or other is None:
        return None
    return Pair(mine, other, sum(p.shared for p in pairs), sum(p.left_out for p in pairs))


def split(one: Pair, method: str, against: str, bootstrap: Bootstrap) -> Split:
    """Split the change of ``method`` against ``against``."""
    mine, other = one.mine, one.other
    labels = [point.label for point in mine.ladder.points]
    lengths = [
        _at(label, mine.base, other.base, a, b) for label, a, b in zip(labels, mine.scores, other.scores, strict=True)
    ]
    change = _mean([each.change for each in lengths])
    base_part = _mean([each.base_ability for each in lengths])
    # The last part is what is left, so that printed parts add up.
    long_part = None if change is None or base_part is None else round(change - base_part, 2)
    drawn = [
        _drawn_parts(mine.base_draws, other.base_draws, a, b) for a, b in zip(mine.draws, other.draws, strict=True)
    ]
    result = Split(
        task=mine.ladder.name,
        method=method,
        against=against,
        change=_amount(change, [part[0] for part in drawn], bootstrap),
        base_ability=_amount(base_part, [part[1] for part in drawn], bootstrap),
        long_context=_amount(long_part, [part[2] for part in drawn], bootstrap),
        base_change=_amount(_minus(mine.base, other.base), [_less(mine.base_draws, other.base_draws)], bootstrap),
        long_score_change=_long_score_change(mine, other, bootstrap),
        by_length=tuple(lengths),
        shared=one.shared,
        left_out=one.left_out,
        sentence="",
    )
    return replace(result, sentence=sentence(result, mine.base, other.base))


def _parts(base: Any, base_other: Any, score: Any, score_other: Any) -> tuple[Any, Any]:
    """Both parts, for numbers or arrays; the bases must not be 0."""
    left, left_other = score / base, score_other / base_other
    return (base - base_other) * (left + left_other) / 2, (left - left_other) * (base + base_other) / 2


def _at(label: str, base: float | None, base_other: float | None, a: float | None, b: float | None) -> LengthSplit:
    change = _minus(a, b)
    if change is None or not base or not base_other:
        return LengthSplit(label, change, None, None)
    part = round(_parts(base, base_other, a, b)[0], 2)
    return LengthSplit(label, change, part, round(change - part, 2))


Parts = tuple["Replicates | None", "Replicates | None", "Replicates | None"]


def _drawn_parts(
    base: Replicates | None, base_other: Replicates | None, a: Replicates | None, b: Replicates | None
) -> Parts:
    """Replicates of the change and its two parts, 0 to 1; parts that have no value (a base of 0) are infinite."""
    import numpy as np

    if a is None or b is None:
        return None, None, None
    if base is None or base_other is None:
        return a - b, None, None
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = _parts(base, base_other, a, b)
    known = (base > 0) & (base_other > 0)
    return a - b, np.where(known, parts[0], np.inf), np.where(known, parts[1], np.inf)


def _amount(value: float | None, draws: Sequence[Replicates | None], bootstrap: Bootstrap) -> Amount:
    mean = mean_of(draws)
    if value is None or mean is None:
        return Amount(value)
    return Amount(value, interval_of(100 * mean, bootstrap))


def _long_score_change(mine: Drawn, other: Drawn, bootstrap: Bootstrap) -> Amount:
    import numpy as np

    value = _minus(long_score(mine.scores, mine.base), long_score(other.scores, other.base))
    values = [mean_of([relative(d, one.base_draws) for d in one.draws]) for one in (mine, other)]
    if value is None or values[0] is None or values[1] is None:
        return Amount(value)
    known = np.isfinite(values[0]) & np.isfinite(values[1])
    difference = np.full(len(known), np.inf)
    np.subtract(values[0], values[1], out=difference, where=known)
    return Amount(value, interval_of(difference, bootstrap))


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else round(a - b, 2)


def _less(a: Replicates | None, b: Replicates | None) -> Replicates | None:
    return None if a is None or b is None else a - b


def _mean(values: Sequence[float | None]) -> float | None:
    return mean_score(values)


# -- the sentence ----------------------------------------------------------------------------------------------------


def sentence(one: Split, base: float | None, base_other: float | None) -> str:
    """What the split says, in one sentence, with nothing in it that the intervals do not carry."""
    where = "on the mean of the tasks" if one.task == OVERALL else f"on {one.task}"
    start = f"{one.method} against {one.against} {where}: "
    if one.change.value is None:
        return f"{start}no comparison, because a length or the base has no sample that both scored."
    total = f"{_signed(one.change)} at length"
    if base == 0 and one.base_change.significant:
        return f"{start}{total}; its base ability is gone (base score 0), so nothing can be said of the rest."
    if not base or not base_other:
        whose = one.method if base_other else one.against
        return f"{start}{total}; {whose} has a base score of 0, so the two abilities cannot be told apart."
    parts = f"{_signed(one.long_context)} long-context ability and {_signed(one.base_ability)} base ability"
    return f"{start}{total}, of it {parts}; {_verdict(one)}."


def _verdict(one: Split) -> str:
    if one.change.interval is None:
        return "too few samples to say whether this is more than chance"
    long_lost = one.long_context.significant and (one.long_context.value or 0) < 0
    base_lost = one.base_ability.significant and (one.base_ability.value or 0) < 0
    change = one.change.value or 0.0
    if not one.change.significant and not (long_lost or base_lost):
        return "no loss that these samples can show"
    if change > 0 and one.change.significant:
        return f"it scores higher than {one.against}"
    if long_lost and base_lost:
        share = (one.long_context.value or 0.0) / change
        if change < 0 and _MOSTLY <= share <= 1:
            return f"{share:.0%} of the loss is long-context ability"
        if change < 0 and 0 <= share <= 1 - _MOSTLY:
            return f"{1 - share:.0%} of the loss is base ability"
        return "it costs both"
    if long_lost:
        return "what it costs is long-context ability"
    if base_lost:
        return "what it costs is base ability"
    return "it loses, and these samples cannot say which ability"


def _signed(amount: Amount) -> str:
    text = f"{amount.value:+.1f}" if amount.value is not None else "?"
    if amount.interval is not None:
        text += f" [{amount.interval[0]:+.1f}, {amount.interval[1]:+.1f}]"
    return f"{text.replace('-', '−')} points" if amount.value is not None else text
