"""LongScore as plain tables of text, which the terminal and Markdown only have to frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lcbench.reporting.longscore.view import Entry, LongView, Ranking, Standing
from lcbench.reporting.words import NO_WIDTH, has_no_width, interval_text, score_text
from lcbench.scoring.longscore.curve import Curve, Interval, Rung
from lcbench.scoring.longscore.decompose import Amount
from lcbench.scoring.longscore.ladder import Counts
from lcbench.tasks.facts import HUNDRED

BELOW = "↓"
"""Marks a score that lies significantly below the base."""
INTERVAL = "95 %"
"""Heading of every column with intervals of the column before it."""
PUBLISHED = " †"
"""Marks what others measured."""


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: one line above it. header: of the columns. rows: of texts, as long as the header; what belongs below a
        number comes after a line break. left: how many columns are text (left-aligned); the others are numbers.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


def grids(view: LongView) -> list[Grid]:
    """Rankings, a line a task and method, and what the losses are made of."""
    found = [*(ranking(view, one) for one in _main_rankings(view)), summary(view)]
    return [*found, losses(view)] if view.splits else found


def length_grids(view: LongView) -> list[Grid]:
    """Scores over length, a table a task."""
    return [lengths(view, name) for name in view.names]


def sentences(view: LongView) -> list[str]:
    """The sentence of each method: of the mean where there is one, else of every task."""
    main = [(where, one) for where, one in view.splits if view.members(one.task)] or list(view.splits)
    said = [(where, one.sentence.replace(one.task, view.title(one.task))) for where, one in main]
    return [f"{where}: {sentence}" if where else sentence for where, sentence in said]


def notes(view: LongView) -> list[str]:
    """What a reader must know about these numbers."""
    ranked = [note.replace(one.name, view.title(one.name)) for one in _main_rankings(view) for note in one.notes]
    return [*ranked, *view.notes, *view.warnings()]


def legend(view: LongView) -> list[str]:
    """What the tables' words and marks mean."""
    lines = [
        "LongScore: mean over the lengths of 100 x (score - base score) / base score; 0 keeps the base ability, "
        "-100 loses all of it. The base is not in the average.",
        f"{BELOW} significantly below the base (95 % interval of the difference); breaks: the first such length, "
        "with … when a longer one is not below.",
    ]
    if any(has_no_width(*interval) for interval in _intervals(view)):
        lines.append(f"{NO_WIDTH[0].upper()}{NO_WIDTH[1:]}.")
    if any(one.published for one in view.entries):
        lines.append(f"{PUBLISHED.strip()} published by others, not run here; no samples, so no intervals.")
    return lines


def _intervals(view: LongView) -> Iterator[Interval]:
    """All that the tables show."""
    for curve in (curve for one in view.entries for curve in one.curves.values()):
        found = (curve.average_interval, curve.long_score_interval, *(r.interval for r in (curve.base, *curve.rungs)))
        yield from (interval for interval in found if interval is not None)
    for _, one in view.splits:
        amounts = (one.change.interval, one.long_context.interval, one.base_ability.interval)
        yield from (interval for interval in amounts if interval is not None)


def _main_rankings(view: LongView) -> list[Ranking]:
    """Rankings of means where there are any, else of every task: the tasks' own stand in the summary."""
    return [one for one in view.rankings if one.members] or list(view.rankings)


def ranking(view: LongView, one: Ranking) -> Grid:
    """Average score and LongScore side by side."""
    header = ("", "base", "average", INTERVAL, "rank", "LongScore", INTERVAL, "rank", "move", "breaks")
    return Grid(
        f"Two rankings: {_of(view, one)}, over {', '.join(one.lengths)}",
        header,
        tuple(_standing(line) for line in one.standings),
    )


def _of(view: LongView, one: Ranking) -> str:
    """What is ranked. Means of one name are over other tasks in each ranking, so its own are counted."""
    if one.members:
        return f"mean of {len(one.members)} tasks{one.name.removeprefix(HUNDRED)}"
    return view.title(one.name)


def _standing(line: Standing) -> tuple[str, ...]:
    return (
        line.label + (PUBLISHED if line.published else ""),
        score_text(line.base),
        score_text(line.average),
        _interval(line.average_interval),
        "–" if line.rank_average is None else str(line.rank_average),
        score_text(line.long_score),
        _interval(line.long_score_interval),
        "–" if line.rank_long_score is None else str(line.rank_long_score),
        line.mark,
        line.breakdown or "",
    )


def summary(view: LongView) -> Grid:
    """A line for every task and entry, its samples counted."""
    header = (
        "task",
        "",
        "base",
        "average",
        "LongScore",
        INTERVAL,
        "breaks",
        "kept",
        "failed",
        "filtered",
        "cut",
        "skipped",
    )
    rows = []
    for name in view.names:
        for index, (one, curve) in enumerate(_having(view, name)):
            rows.append(
                (
                    view.title(name) if index == 0 else "",
                    _label(one),
                    score_text(curve.base.score),
                    score_text(curve.average),
                    score_text(curve.long_score),
                    _interval(curve.long_score_interval),
                    breakdown_text(curve),
                    *_counts(sum((rung.counts for rung in curve.rungs), curve.base.counts)),
                )
            )
    return Grid("LongScore by task", header, tuple(rows), left=2)


def lengths(view: LongView, name: str) -> Grid:
    """One task over length: score, its change against the base in percent of the base, and below them the band."""
    found = _having(view, name)
    labels: dict[str, float] = {}
    for _, curve in found:
        labels |= {rung.label: rung.size for rung in curve.rungs}
    ordered = sorted(labels, key=labels.__getitem__)
    rows = []
    for one, curve in found:
        at = {rung.label: rung for rung in curve.rungs}
        base = _below(score_text(curve.base.score), curve.base.interval)
        rows.append((_label(one), base, *(_rung(at.get(label)) for label in ordered)))
    title = f"{view.title(name)}: score (change in % of the base), 95 %"
    return Grid(title, ("", _base_label(found), *ordered), tuple(rows))


def losses(view: LongView) -> Grid:
    """Every method against the reference: the change in points and its two parts."""
    header = ("task", "", "change", INTERVAL, "long-context", INTERVAL, "base", INTERVAL, "shared")
    order = {name: place for place, name in enumerate(view.names)}
    rows = [
        (
            view.title(one.task),
            f"{one.method} ({where})" if where else one.method,
            *_amount(one.change),
            *_amount(one.long_context),
            *_amount(one.base_ability),
            str(one.shared),
        )
        for where, one in sorted(view.splits, key=lambda item: order.get(item[1].task, -1))
    ]
    against = ", ".join(dict.fromkeys(one.against for _, one in view.splits))
    return Grid(f"Change against {against} at length, in points, and what it is made of", header, tuple(rows), left=2)


def _having(view: LongView, name: str) -> list[tuple[Entry, Curve]]:
    return [(one, one.curves[name]) for one in view.entries if name in one.curves]


def _label(one: Entry) -> str:
    return one.label + (PUBLISHED if one.published else "")


def _base_label(found: Sequence[tuple[Entry, Curve]]) -> str:
    return "/".join(dict.fromkeys(curve.base.label for _, curve in found))


def breakdown_text(curve: Curve) -> str:
    """First length significantly below the base; with … when a longer one is not below; "" for none."""
    if curve.breakdown is None:
        return ""
    return curve.breakdown + ("" if curve.lasting else " …")


def _rung(rung: Rung | None) -> str:
    if rung is None:
        return ""
    change = "" if rung.value is None else f" ({rung.value:+.1f})".replace("-", "−")
    return _below(f"{score_text(rung.score)}{BELOW if rung.below_base else ''}{change}", rung.interval)


def _below(number: str, interval: Interval | None) -> str:
    """A number and, on a second line, its interval."""
    return number if interval is None else f"{number}\n{_interval(interval)}"


def _counts(counts: Counts) -> tuple[str, ...]:
    """Kept, failed, filtered, cut and skipped samples; blanks where only scores are known."""
    if counts == Counts():
        return "", "", "", "", ""
    failed = counts.failed + counts.judge_failed
    return str(counts.kept), _nonzero(failed), *map(_nonzero, (counts.filtered, counts.cut, counts.skipped))


def _nonzero(number: int) -> str:
    return str(number) if number else ""


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else interval_text(*interval)


def _amount(amount: Amount) -> tuple[str, str]:
    return ("–" if amount.value is None else f"{amount.value:+.2f}".replace("-", "−")), _interval(amount.interval)
