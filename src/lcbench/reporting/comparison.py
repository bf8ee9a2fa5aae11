"""Two methods compared: the statistics of their pairs, the samples that changed most, and a verdict in one sentence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lcbench.reporting.pairing import PairedTask, pair
from lcbench.reporting.same_method import same
from lcbench.reporting.scored import shared_options
from lcbench.reporting.sides import Side
from lcbench.scoring.bootstrap import Bootstrap
from lcbench.scoring.paired import PairedResult, compare_tasks, holm
from lcbench.scoring.per_sample import ScoredSample

LEVEL = 0.05


@dataclass(frozen=True)
class Change:
    """One sample and what the two methods made of it. Scores are 0 to 100."""

    task: str
    id: str
    first: float
    second: float
    first_text: str
    second_text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What `lcbench compare` found about a pair of methods.

    Attributes:
        first, second: the sides. tasks: task id, metric and result, the p corrected over tasks.
        overall: the mean over tasks; with one task that task's result.
        p_holm: of ``overall``, corrected over several comparisons with one baseline; else ``overall.p``.
        changes: the samples that changed most, the largest first. kv_bytes: mean bytes a sample of each side,
        None where they are not known.
        failed, unmatched: pairs left out. refused: task id to why it cannot be paired. notes: sentences.
        differs: what the runs differ in beside the methods; the verdict says it.
    """

    first: Side
    second: Side
    tasks: tuple[tuple[str, str, PairedResult], ...]
    overall: PairedResult
    p_holm: float
    changes: tuple[Change, ...]
    kv_bytes: tuple[float | None, float | None]
    failed: int
    unmatched: int
    refused: dict[str, str]
    notes: tuple[str, ...]
    differs: tuple[str, ...] = ()

    def verdict(self) -> str:
        """Whether the difference is real, in one sentence."""
        return verdict(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; scores in percent, p between 0 and 1."""
        return {
            "first": {"run": str(self.first.run.path), "method": self.first.method, "kv_bytes": self.kv_bytes[0]},
            "second": {"run": str(self.second.run.path), "method": self.second.method, "kv_bytes": self.kv_bytes[1]},
            "verdict": self.verdict(),
            "overall": {**asdict(self.overall), "p_holm": self.p_holm},
            "tasks": [{"task": task, "metric": metric, **asdict(result)} for task, metric, result in self.tasks],
            "changes": [asdict(change) for change in self.changes],
            "failed": self.failed,
            "unmatched": self.unmatched,
            "refused": self.refused,
            "differs": list(self.differs),
            "notes": list(self.notes),
        }


def compare(a: Side, b: Side, *, show: int = 5) -> Comparison:
    """Compare two methods on every task that can be paired.

    Args:
        show: how many of the samples that changed most are kept.

    Raises:
        BadValue: nothing can be paired, with the reason. CorruptFile: a broken predictions file.
    """
    pairing = pair(a, b)
    options = shared_options([a.run, b.run])
    results, overall = compare_tasks(
        [task.pairs() for task in pairing.tasks], Bootstrap(options.seed, options.resamples)
    )
    notes = list(pairing.notes)
    if any(r.test == "mcnemar" and r.clusters < r.n for r in results):
        notes.append("McNemar's test takes samples for independent; some share a context, which the interval minds")
    return Comparison(
        first=a,
        second=b,
        tasks=tuple((t.task, t.metric, r) for t, r in zip(pairing.tasks, results, strict=True)),
        overall=overall,
        p_holm=overall.p,
        changes=tuple(_changes(pairing.tasks)[:show]),
        kv_bytes=_kv_bytes(pairing.tasks),
        failed=sum(t.failed for t in pairing.tasks),
        unmatched=sum(t.unmatched for t in pairing.tasks),
        refused=dict(pairing.refused),
        notes=tuple(notes),
        differs=pairing.differs,
    )


def compare_all(sides: Sequence[tuple[Side, Side]], *, show: int = 5) -> list[Comparison]:
    """Several comparisons, the p of each corrected for their number (Holm)."""
    found = [compare(a, b, show=show) for a, b in sides]
    corrected = holm([one.overall.p for one in found])
    return [replace(one, p_holm=p) for one, p in zip(found, corrected, strict=True)]


def _changes(tasks: Sequence[PairedTask]) -> list[Change]:
    found = [
        Change(
            task.task,
            a.record.id,
            100 * (a.score or 0.0),
            100 * (b.score or 0.0),
            a.record.pred,
            b.record.pred,
            tuple(a.record.answers),
        )
        for task in tasks
        for a, b in zip(task.first, task.second, strict=True)
        if abs((a.score or 0.0) - (b.score or 0.0)) > 1e-12
    ]
    return sorted(found, key=lambda change: -abs(change.second - change.first))


def _kv_bytes(tasks: Sequence[PairedTask]) -> tuple[float | None, float | None]:
    """Mean bytes a sample: the mean over tasks of their means, as every task weighs the same in the score; None where
    a sample's are not known."""

    def mean(samples: Sequence[ScoredSample]) -> float:
        held = [sample.record.kv_bytes for sample in samples]
        return math.nan if None in held else statistics.fmean(size or 0 for size in held)

    first, second = (statistics.fmean(mean(getattr(t, side)) for t in tasks) for side in ("first", "second"))
    return None if math.isnan(first) else first, None if math.isnan(second) else second


# -- the sentence ----------------------------------------------------------------------------------------------------


def verdict(found: Comparison) -> str:
    """One sentence: real, not shown, or on the edge; how large, how sure, and what else the runs differ in."""
    overall, several = found.overall, len(found.tasks) > 1
    first, second = _names(found)
    over = f" over {len(found.tasks)} tasks" if several else ""
    also = _also(found)
    if not overall.wins and not overall.losses:
        every = f"every one of the {_pairs(overall.n)}" if overall.n > 1 else "the one pair"
        return f"No difference{also}: {second} scores exactly as {first} on {every}{over}."
    says = f"{second} scores {_apart(overall.difference)} {first}{over}"
    evidence = f"{_interval(overall)}, {p_text(found.p_holm)}, {_pairs(overall.n)}"
    excludes = overall.interval is not None and not overall.interval[0] <= 0 <= overall.interval[1]
    small = found.p_holm < LEVEL
    tail = _in_tasks(found) if several else ""
    if small and excludes:
        return f"The difference is real{also}: {says} ({evidence}){tail}."
    if small or excludes:
        other = "the test finds it" if small else "the interval excludes 0"
        against = "the interval includes 0" if small else "the test does not find it"
        return f"The difference is on the edge, {other} but {against}{also}: {says} ({evidence}){tail}."
    return f"No difference is shown{also}: {says}, which may well be chance ({evidence}){tail}."


def _also(found: Comparison) -> str:
    """What else may have made or hidden a difference, so that the method is not blamed for it."""
    if not found.differs:
        return ""
    what = " and in ".join(found.differs)
    if _one_method(found):
        return f" (one method in two runs that differ in {what})"
    return f", but it is not between the methods alone (the runs also differ in {what})"


def _one_method(found: Comparison) -> bool:
    return same(found.first.run, found.first.method, found.second.run, found.second.method)


def _names(found: Comparison) -> tuple[str, str]:
    if found.differs or _one_method(found):
        return found.first.name, found.second.name
    return found.first.method, found.second.method


def _apart(difference: float) -> str:
    points = f"{abs(difference):.1f} point" + ("" if f"{abs(difference):.1f}" == "1.0" else "s")
    return f"{points} {'less' if difference < 0 else 'more'} than"


def _interval(overall: PairedResult) -> str:
    if overall.interval is None:
        return "no interval from so few samples"
    low, high = overall.interval
    return f"95 % interval {signed(low)} to {signed(high)}"


def _in_tasks(found: Comparison) -> str:
    real = sum(result.p_holm < LEVEL for _, _, result in found.tasks)
    return f"; after Holm's correction it stands in {real} of the {len(found.tasks)} tasks"


def _pairs(n: int) -> str:
    return f"{n:,} pair" + ("" if n == 1 else "s")


def signed(points: float) -> str:
    """``+1.2``, ``−3.4``, ``0.0``; what one digit would round to nothing has a digit that shows its side of 0."""
    size = abs(points)
    if size < 1e-9:
        return "0.0"
    digits = next((n for n in (1, 2, 3) if round(size, n)), None)
    return ("−" if points < 0 else "+") + (f"{size:.0e}" if digits is None else f"{size:.{digits}f}")


def p_text(p: float) -> str:
    """``p = 0.012``, or ``p < 0.0001``."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p_number(p)}"


def p_number(p: float) -> str:
    """Two significant digits; ``< 0.0001`` below that."""
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.2f}" if p >= 0.0995 else f"{p:.3f}" if p >= 0.00995 else f"{p:.4f}"
