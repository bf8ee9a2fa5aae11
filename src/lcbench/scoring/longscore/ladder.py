"""A ladder: one task at its base and at several lengths, as units that the bootstrap draws again.

Three kinds of tasks come as ladders: several task ids that differ in the length alone (``name@8k``, ``name@16k``,
``name@base``), the buckets of LongBench-E inside one task, and the lengths of a passkey task.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

from lcbench.errors import BadValue, UnknownName
from lcbench.scoring.aggregate import BUCKETS, Values, bucket_of, bucket_percent, percent
from lcbench.scoring.samples import LONGBENCH_E, Sample, TaskSamples
from lcbench.tasks.facts import HUNDRED
from lcbench.tasks.hundred.names import BASE, NO_CONTEXT

_VARIANT = re.compile(r"(?:length=)?(base|\d+k?)", re.IGNORECASE)


@dataclass(frozen=True)
class Unit:
    """What the bootstrap draws: a sample, or a passkey cell (the mean over its repeats).

    Attributes:
        key: the same for the same question asked of two methods. score: 0 to 1. cluster: equal for units whose prompts
            share a context. samples: that it is the mean of.
    """

    key: str
    score: float
    cluster: Hashable
    samples: int = 1


@dataclass(frozen=True)
class Counts:
    """What became of the samples of one length; only ``kept`` ones are in the score.

    Attributes:
        kept: scored. failed: no answer from the model. judge_failed: no usable verdict from the judge. filtered: left
            out by the QA filter, answered without the context. cut: among the kept, prompts that had been shortened.
        skipped: longer than the window and never asked (--over-length skip), in no other count.
    """

    kept: int = 0
    failed: int = 0
    judge_failed: int = 0
    filtered: int = 0
    cut: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Point:
    """One length of one task.

    Attributes:
        label: "8k", "4-8k", "512"; "base" for a base set. size: what lengths are ordered by.
        task: id of the task the samples come from; with the label the name of the stream of random numbers.
        score: 0 to 100, rounded as the task's scorer rounds; None without a unit.
        units: in file order. counts: of the samples. chance: score in percent that guessing gives, None where unknown.
        lacks: why there is no score, in words; "" where there is one.
    """

    label: str
    size: float
    task: str
    score: float | None
    units: tuple[Unit, ...]
    counts: Counts
    chance: float | None = None
    lacks: str = ""

    @property
    def samples(self) -> int:
        """Samples among the units."""
        return sum(unit.samples for unit in self.units)

    @property
    def clusters(self) -> int:
        """Contexts among the units: what is independent of each other."""
        return len({unit.cluster for unit in self.units})


@dataclass(frozen=True)
class Ladder:
    """One method's answers to one task at several lengths.

    Attributes:
        name: of the task without a length. suite: benchmark. unit: "tokens", "words" or "".
        base: the sets whose mean is the base score: one pooled set, or several short lengths.
        points: the lengths above the base, ascending.
        notes: what a reader should know about it.
    """

    name: str
    suite: str
    unit: str
    base: tuple[Point, ...]
    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scored:
    """All samples of one task by one method, with their scores.

    Attributes:
        task: the samples. values: for each its score first, None for one without a score.
        filtered: indices left out by the QA filter. judge_failed: indices without a usable verdict.
    """

    task: TaskSamples
    values: Sequence[Values | None]
    filtered: frozenset[int] = frozenset()
    judge_failed: frozenset[int] = frozenset()

    def rows(self) -> Iterator[_Row]:
        """Every sample with its score and fate."""
        for index, (sample, value) in enumerate(zip(self.task.samples, self.values, strict=True)):
            score = None if value is None or index in self.filtered else value[0]
            counts = Counts(
                kept=int(score is not None),
                failed=int(not sample.ok),
                judge_failed=int(index in self.judge_failed),
                filtered=int(index in self.filtered),
                cut=int(score is not None and sample.cut),
            )
            yield _Row(sample, score, counts)


@dataclass(frozen=True)
class _Row:
    sample: Sample
    score: float | None
    counts: Counts


def parse_length(text: str) -> float:
    """Tokens (or words) that ``16k``, ``2048`` mean; k is 1024. Raises BadValue."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(k?)", text.strip(), re.IGNORECASE)
    if not match:
        raise BadValue(f"'{text}' is not a length.", "Write a number such as 2048, or 2k.")
    return float(match[1]) * (1024 if match[2] else 1)


def length_label(size: float) -> str:
    """``16k`` for a multiple of 1024, else the number."""
    return f"{size / 1024:g}k" if size and size % 1024 == 0 else f"{size:g}"


def split_task(task: str) -> tuple[str, str] | None:
    """Name and length of a task id, e.g. ``("100-longbench/kv_retrieval", "16k")``; None for an id without a length.

    Other options stay with the name: tasks that differ in more than the length are different ladders.
    """
    name, _, options = task.partition("@")
    rest = []
    label = ""
    for piece in options.split(",") if options else []:
        match = _VARIANT.fullmatch(piece)
        if match and not label:
            label = match[1].lower()
        else:
            rest.append(piece)
    return (f"{name}@{','.join(rest)}" if rest else name, label) if label else None


def is_hundred(task: str) -> bool:
    """Whether a task id is one of 100-LongBench."""
    return task.startswith(f"{HUNDRED}/")


def is_no_context(task: str) -> bool:
    """Whether a task id asks questions without their context: those answers filter others and have no score."""
    return NO_CONTEXT in task.partition("@")[2].split(",")


def find_ladders(tasks: Sequence[Scored], mode: str, base_lengths: Sequence[str] = ()) -> list[Ladder]:
    """The ladders among the tasks of one method, 100-LongBench first, then in order of the tasks.

    Args:
        mode: "reference": the base of 100-LongBench is its base set as a whole; "paper": the mean over the short
            lengths in it. Other tasks do not differ.
        base_lengths: labels whose mean is the base of the other tasks that have them; default: the shortest.

    Raises:
        UnknownName: a task has some of the base lengths and not all. BadValue: no length is left above the base.
    """
    families: dict[str, dict[str, Scored]] = {}
    found: list[Ladder] = []
    for one in tasks:
        split = split_task(one.task.task)
        if split is not None:
            families.setdefault(split[0], {})[split[1]] = one
        elif one.task.benchmark == LONGBENCH_E:
            notes = _unknown_lengths(one)
            found += _other(one.task.task, one.task.benchmark, "words", _bucket_points(one), base_lengths, notes)
        elif one.task.facts.metric == "passkey":
            notes = _unknown_lengths(one)
            found += _other(one.task.task, one.task.benchmark, "words", _passkey_points(one), base_lengths, notes)
    for name, members in families.items():
        points = [_point(one, label) for label, one in members.items() if label != BASE]
        if BASE in members:
            found.append(_with_base(name, members[BASE], points, mode))
        elif is_hundred(name):
            notes = (f"{name}: its base set is not in this run, so it has no LongScore; add {_base_task(name)}.",)
            found.append(Ladder(name, HUNDRED, "tokens", (), _ascending(points), notes))
        else:
            suite = next(iter(members.values())).task.benchmark
            found += _other(name, suite, "tokens", points, base_lengths)
    return sorted((one for one in found if _begun(one)), key=lambda one: one.suite != HUNDRED)


def _begun(ladder: Ladder) -> bool:
    """Whether it has a length above the base, and became anything yet: answers, or prompts that were skipped."""
    return bool(ladder.points) and any(point.counts != Counts() for point in (*ladder.base, *ladder.points))


def _base_task(name: str) -> str:
    """Id of the base set of a ladder: ``name@base``, other options kept."""
    bare, _, options = name.partition("@")
    return f"{bare}@{BASE}{f',{options}' if options else ''}"


def _with_base(name: str, base: Scored, points: Sequence[Point], mode: str) -> Ladder:
    """A ladder with a base set of its own; in paper mode the set is taken apart by the lengths it was built for."""
    notes: tuple[str, ...] = ()
    bases: tuple[Point, ...] = (_point(base, BASE),)
    if mode == "paper" and base.task.samples:
        parts: dict[float, list[_Row]] = {}
        for row in base.rows():
            target = row.sample.meta.get("base_length")
            parts.setdefault(float(target) if isinstance(target, int | float) else math.nan, []).append(row)
        if parts and not any(math.isnan(size) for size in parts):
            skipped = {float(size): count for size, count in base.task.skipped_lengths.items()}
            for size in skipped:
                parts.setdefault(size, [])
            bases = tuple(
                _with_skipped(_gather(base, length_label(size), size, parts[size]), skipped.get(size, 0))
                for size in sorted(parts)
            )
            notes = _unknown_lengths(base)
        else:
            bases = ()
            notes = (
                f"{name}: its base set was not built at short lengths, so the paper's base (their mean) is not known; "
                "build it with --mode paper, or score with --mode reference.",
            )
    return Ladder(name, base.task.benchmark, "tokens", bases, _ascending(points), notes)


def _other(
    name: str,
    suite: str,
    unit: str,
    points: Sequence[Point],
    base_lengths: Sequence[str],
    notes: tuple[str, ...] = (),
) -> list[Ladder]:
    """A ladder whose base are some of its own lengths; none when it has fewer than two."""
    ordered = _ascending(points)
    if len(ordered) < 2:
        return []
    labels = [point.label for point in ordered]
    for label in base_lengths:
        # A run may hold tasks with other lengths; whether any task has these is for the caller to see.
        if label not in labels and set(base_lengths) & set(labels):
            raise UnknownName("base length", label, labels, where=f" of {name}")
    chosen = tuple(p for p in ordered if p.label in base_lengths) or ordered[:1]
    above = tuple(p for p in ordered if p not in chosen and p.size > max(c.size for c in chosen))
    if not above:
        raise BadValue(f"{name} has no length above its base lengths.", f"Choose shorter ones of {', '.join(labels)}.")
    return [Ladder(name, suite, unit, chosen, above, notes)]


def _ascending(points: Iterable[Point]) -> tuple[Point, ...]:
    return tuple(sorted(points, key=lambda point: point.size))


def _point(one: Scored, label: str) -> Point:
    point = _gather(one, label, 0.0 if label == BASE else parse_length(label), list(one.rows()))
    return _with_skipped(point, one.task.skipped, pending=one.task.pending)


def _with_skipped(point: Point, skipped: int, *, pending: bool = False) -> Point:
    """The point with its skipped prompts counted, and the reason where it has no score."""
    counts = point.counts + Counts(skipped=skipped)
    if point.score is not None:
        return replace(point, counts=counts)
    fates = {
        "failed": counts.failed,
        "without a verdict": counts.judge_failed,
        "left out by the QA filter": counts.filtered,
        "longer than the window and skipped": counts.skipped,
    }
    said = ", ".join(f"{number} {fate}" for fate, number in fates.items() if number)
    return replace(point, counts=counts, lacks="not predicted yet" if pending or not said else said)


def _unknown_lengths(one: Scored) -> tuple[str, ...]:
    """A note where prompts were skipped and the run does not say at which of the task's lengths."""
    known = sum(one.task.skipped_lengths.values())
    if one.task.skipped <= known:
        return ()
    return (
        f"{one.task.task}: {one.task.skipped - known} prompts were longer than the window and skipped, and the run "
        "does not say of which length: they are counted on the task alone, and a length may be missing here.",
    )


def _gather(one: Scored, label: str, size: float, rows: Sequence[_Row]) -> Point:
    units = tuple(_unit(row, number) for number, row in enumerate(rows) if row.score is not None)
    rounded = bucket_percent if one.task.benchmark == LONGBENCH_E else percent
    point = Point(
        label, size, one.task.task, rounded([unit.score for unit in units]), units, _total(rows), _chance(rows)
    )
    return _with_skipped(point, 0)


def _unit(row: _Row, number: int) -> Unit:
    assert row.score is not None
    key = row.sample.id or f"row {number}"
    return Unit(key, row.score, key if row.sample.cluster is None else row.sample.cluster)


def _total(rows: Iterable[_Row]) -> Counts:
    return sum((row.counts for row in rows), Counts())


def _chance(rows: Sequence[_Row]) -> float | None:
    """Mean over the kept rows of what guessing gives, in percent, where every row says it."""
    said = [row.sample.meta.get("chance") for row in rows if row.score is not None]
    known = [float(value) for value in said if isinstance(value, int | float) and not isinstance(value, bool)]
    return 100 * sum(known) / len(known) if known and len(known) == len(said) else None


def _bucket_points(one: Scored) -> list[Point]:
    rows: dict[str, list[_Row]] = {bucket: [] for bucket in BUCKETS}
    for row in one.rows():
        if row.sample.length is not None:
            rows[bucket_of(row.sample.length)].append(row)
    skipped = dict.fromkeys(BUCKETS, 0)
    for length, count in one.task.skipped_lengths.items():
        skipped[bucket_of(float(length))] += count
    return [
        _with_skipped(_gather(one, b, float(size), rows[b]), skipped[b])
        for size, b in enumerate(BUCKETS)
        if rows[b] or skipped[b]
    ]


def _passkey_points(one: Scored) -> list[Point]:
    """Repeats of a cell differ in the key alone, so the cell (length and depth) is the unit, as in the task's score."""
    skipped = {float(length): count for length, count in one.task.skipped_lengths.items()}
    cells: dict[float, dict[str, list[_Row]]] = {length: {} for length in skipped}
    for number, row in enumerate(one.rows()):
        length = row.sample.meta.get("length_words", row.sample.length)
        if isinstance(length, int | float):
            depth = row.sample.meta.get("depth")
            cells.setdefault(float(length), {}).setdefault(f"row {number}" if depth is None else str(depth), []).append(
                row
            )
    points = []
    for length, columns in cells.items():
        units = []
        for depth, rows in columns.items():
            scores = [row.score for row in rows if row.score is not None]
            if scores:
                units.append(Unit(depth, sum(scores) / len(scores), depth, len(scores)))
        counts = _total(row for rows in columns.values() for row in rows)
        score = percent([unit.score for unit in units])
        point = Point(f"{length:g}", length, one.task.task, score, tuple(units), counts)
        points.append(_with_skipped(point, skipped.get(length, 0)))
    return points


def in_common(point: Point, other: Point) -> tuple[Point, Point]:
    """Both points with the units that both have, in the order of the second, so that equal draws meet equal units."""
    mine = {unit.key: unit for unit in point.units}
    theirs = tuple(unit for unit in other.units if unit.key in mine)
    return _reduced(point, tuple(mine[unit.key] for unit in theirs)), _reduced(other, theirs)


def _reduced(point: Point, units: tuple[Unit, ...]) -> Point:
    return replace(point, units=units, score=percent([unit.score for unit in units]))
