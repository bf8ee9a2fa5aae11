"""What the renderers draw about LongScore: entries (a method on a model, or a published model) and their rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lcbench.reporting.words import short_names
from lcbench.scoring.longscore.curve import Curve, Interval
from lcbench.scoring.longscore.decompose import Split
from lcbench.scoring.longscore.formula import long_score, mean_score, ranks
from lcbench.scoring.longscore.plain import mean_of_curves
from lcbench.scoring.longscore.result import LongScores
from lcbench.tasks.facts import HUNDRED


@dataclass(frozen=True)
class Entry:
    """One line of a ranking.

    Attributes:
        label: method, with the model where that tells entries apart. curves: by name. published: measured by others
        and not run here; such entries have curves of single tasks, and means are made of an own mean's tasks.
        model, method: what the label is made of.
    """

    label: str
    curves: Mapping[str, Curve]
    published: bool = False
    model: str = ""
    method: str = ""


@dataclass(frozen=True)
class Standing:
    """An entry in a ranking.

    Attributes:
        average, long_score: over the lengths of the ranking. The intervals are None where the entry's own curve has
        other lengths, and for published ones. rank_average, rank_long_score: 1 is best, ties share the smallest.
        breakdown: first length significantly below the base.
    """

    label: str
    published: bool
    base: float | None
    average: float | None
    average_interval: Interval | None
    long_score: float | None
    long_score_interval: Interval | None
    rank_average: int | None
    rank_long_score: int | None
    breakdown: str | None

    @property
    def move(self) -> int:
        """Ranks gained from average score to LongScore; 0 where one of the two is missing."""
        if self.rank_average is None or self.rank_long_score is None:
            return 0
        return self.rank_average - self.rank_long_score

    @property
    def mark(self) -> str:
        """``▲2`` for two ranks up, ``▼1`` for one down, ``=`` for none."""
        if self.rank_average is None or self.rank_long_score is None:
            return ""
        return f"▲{self.move}" if self.move > 0 else f"▼{-self.move}" if self.move < 0 else "="


@dataclass(frozen=True)
class Ranking:
    """All entries that have a curve of one name, over the lengths they share.

    Attributes:
        name: of the curve. members: its tasks, for a mean. lengths: that all entries have. standings: by average score,
        best first. notes: what had to be left out to compare them.
    """

    name: str
    members: tuple[str, ...]
    lengths: tuple[str, ...]
    standings: tuple[Standing, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LongView:
    """Everything about LongScore in a report.

    Attributes:
        entries: own ones first. names: of curves in order. rankings: one a curve name that two entries or more have.
        splits: losses taken apart, each with the model or run it belongs to ("" where there is one only).
        notes: what a reader must know.
    """

    entries: tuple[Entry, ...]
    names: tuple[str, ...]
    rankings: tuple[Ranking, ...]
    splits: tuple[tuple[str, Split], ...] = ()
    notes: tuple[str, ...] = ()

    def title(self, name: str) -> str:
        """A curve's name for headings: a task without suite and options, a mean by what it is."""
        members = self.members(name)
        if members:
            return f"mean of {len(members)} tasks{name.removeprefix(HUNDRED)}"
        return short_names(self.names).get(name, name).removeprefix(f"{HUNDRED}/")

    def members(self, name: str) -> tuple[str, ...]:
        """Tasks of a mean; none for a task."""
        return next((one.curves[name].members for one in self.entries if name in one.curves), ())

    def warnings(self) -> list[str]:
        """Warnings of all curves, equal ones once, each with its methods and tasks."""
        found: dict[str, dict[str, list[str]]] = {}
        own = [entry for entry in self.entries if not entry.published]
        for entry in own:
            for name, curve in entry.curves.items():
                for warning in curve.warnings:
                    tasks = found.setdefault(warning.replace(name, self.title(name)), {})
                    tasks.setdefault(self.title(name), []).append(entry.label)
        return [f"{_where(warning, tasks, len(own))}: {warning}" for warning, tasks in found.items()]


def _where(warning: str, tasks: Mapping[str, Sequence[str]], all_methods: int) -> str:
    """``full, kivi on qasper; all methods on lcc``: tasks of the same methods together."""
    sharing: dict[tuple[str, ...], list[str]] = {}
    for task, methods in tasks.items():
        sharing.setdefault(tuple(methods), []).append(task)
    parts = []
    for methods, names in sharing.items():
        who = f"all {all_methods} methods" if len(methods) == all_methods > 2 else ", ".join(methods)
        said = all(name in warning for name in names)
        parts.append(who if said else f"{who} on {', '.join(names)}")
    return "; ".join(parts)


def view(
    own: Sequence[Entry],
    published: Sequence[Entry] = (),
    splits: Sequence[tuple[str, Split]] = (),
    notes: Sequence[str] = (),
) -> LongView:
    """The view of own entries, with published ones beside them where they have the same tasks."""
    names = tuple(dict.fromkeys(name for one in own for name in one.curves))
    rankings = [made for name in names for made in _rankings(name, own, published)]
    shown = [one for one in published if any(name in one.curves for name in names)]
    return LongView((*own, *shown), names, tuple(rankings), tuple(splits), tuple(notes))


def of_scores(scores: LongScores) -> LongView:
    """The view of one run."""
    own = [Entry(method, {c.name: c for c in curves}, method=method) for method, curves in scores.curves.items()]
    return view(own, splits=[("", one) for one in scores.splits], notes=scores.notes)


def _rankings(name: str, own: Sequence[Entry], published: Sequence[Entry]) -> list[Ranking]:
    """Means over different tasks are not ranked against each other: a ranking for each set of tasks."""
    sets: dict[tuple[str, ...], list[tuple[Entry, Curve]]] = {}
    for one in own:
        if name in one.curves:
            sets.setdefault(one.curves[name].members, []).append((one, one.curves[name]))
    found = []
    for members, entries in sets.items():
        lengths = [label for label in entries[0][1].labels if all(label in curve.labels for _, curve in entries)]
        beside = [(one, curve) for one in published if (curve := _published_curve(one, name, members)) is not None]
        # Published models join where they have every length of one's own; they never take one away.
        whole = [(one, curve) for one, curve in beside if set(lengths) <= set(curve.labels)]
        short = [one.label for one, curve in beside if not set(lengths) <= set(curve.labels)]
        if lengths and len(entries) + len(whole) > 1:
            found.append(_ranking(name, members, lengths, entries + whole, short))
    return found


def _published_curve(one: Entry, name: str, members: Sequence[str]) -> Curve | None:
    """A published model's curve; a mean is made of the tasks that the own one is a mean of."""
    if not members:
        return one.curves.get(name)
    parts = [one.curves[member] for member in sorted(members) if member in one.curves]
    return mean_of_curves(parts, name) if len(parts) == len(members) else None


def _ranking(
    name: str,
    members: tuple[str, ...],
    common: list[str],
    entries: Sequence[tuple[Entry, Curve]],
    short: Sequence[str],
) -> Ranking:
    own = [curve for one, curve in entries if not one.published]
    left_out = list(dict.fromkeys(label for curve in own for label in curve.labels if label not in common))
    notes = []
    if left_out:
        notes.append(f"{name}: ranked over {', '.join(common)}; not every line has {', '.join(left_out)}.")
    if short:
        notes.append(f"{name}: not in the ranking, since not published at all of these lengths: {', '.join(short)}.")
    bases = dict.fromkeys(curve.base.label for _, curve in entries)
    if len(bases) > 1:
        notes.append(f"{name}: the bases differ ({', '.join(bases)}), so LongScores here do not compare.")
    values = [_over(curve, common) for _, curve in entries]
    by_average = ranks(dict(enumerate(average for average, _ in values)))
    by_long = ranks(dict(enumerate(value for _, value in values)))
    standings = []
    for index, ((one, curve), (average, value)) in enumerate(zip(entries, values, strict=True)):
        whole = list(curve.labels) == common
        standings.append(
            Standing(
                one.label,
                one.published,
                curve.base.score,
                average,
                curve.average_interval if whole else None,
                value,
                curve.long_score_interval if whole else None,
                by_average[index],
                by_long[index],
                curve.breakdown,
            )
        )
    standings.sort(key=lambda s: (s.rank_average is None, s.rank_average or 0))
    return Ranking(name, members, tuple(common), tuple(standings), tuple(notes))


def _over(curve: Curve, labels: Sequence[str]) -> tuple[float | None, float | None]:
    """Average score and LongScore over some of a curve's lengths."""
    at = {rung.label: rung.score for rung in curve.rungs}
    scores = [at[label] for label in labels]
    return mean_score(scores), long_score(scores, curve.base.score)
