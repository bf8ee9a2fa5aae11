"""One's own scores beside published ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lcbench.errors import BadValue
from lcbench.reporting.comparison import signed
from lcbench.reporting.published import UNCOMPRESSED, Published, PublishedRow
from lcbench.reporting.table import Cell, Column, Report
from lcbench.reporting.words import clean, has_no_width, score_text

FULL = "full"
_MATCHED = ("bits", "budget", "preset")  # parameters that say how many bits, or what ratio
_ALIKE = 0.1  # a ratio this close to a published one is taken for the same setting
_PART = ("fewer rows than the test set has", "only the first rows of each task")


@dataclass(frozen=True)
class BesidePublished:
    """The lines that a run and a published table share.

    Attributes:
        table, rows: what is published of one model. lines: score keys in the report's order, with the run's cells.
        left_out: sentences about lines that cannot be compared. notes: what a reader must know.
        against: column to the published line of the same method and setting; columns without one are absent.
        part: whether the run answered a part of the rows only.
    """

    table: Published
    rows: tuple[PublishedRow, ...]
    columns: tuple[Column, ...]
    lines: tuple[tuple[str, dict[Column, Cell]], ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    against: Mapping[Column, PublishedRow] = field(default_factory=dict)
    part: bool = False

    @property
    def reference(self) -> PublishedRow:
        """The row of the model without any method, else the first."""
        return next((row for row in self.rows if row.method.lower() in UNCOMPRESSED), self.rows[0])

    def line_for(self, column: Column) -> PublishedRow:
        """What a method is set against: the published line of it, else the reference."""
        return self.against.get(column, self.reference)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "published": {"name": self.table.name, "title": self.table.title, "source": self.table.source},
            "model": self.rows[0].model,
            "lines": [
                {
                    "key": key,
                    "published": {row.label: row.scores[key] for row in self.rows if key in row.scores},
                    "own": {c.method: {"score": x.score, "low": x.low, "high": x.high} for c, x in cells.items()},
                }
                for key, cells in self.lines
            ],
            "against": {column.method: self.line_for(column).label for column in self.columns},
            "left_out": list(self.left_out),
            "notes": list(self.notes),
        }


def beside(
    report: Report,
    table: Published,
    rows: tuple[PublishedRow, ...],
    parameters: Mapping[str, Mapping[str, str]] | None = None,
) -> BesidePublished:
    """Put the run's scores next to the published ones.

    Args:
        parameters: method id to its parameters, defaults among them, as far as they are known.

    Raises:
        BadValue: no line of the run is in the table; the message says what the table has.
    """
    published = {key for row in rows for key in row.scores}
    lines, left_out = [], []
    for line in report.lines:
        cells = {c: report.cells[line, c] for c in report.columns if (line, c) in report.cells}
        if line.kind != "length" and line.name in published:
            lines.append((line.name, cells))
        elif line.kind == "mean" and line.name.partition(", part:")[0] in published:
            left_out.append(f"{line.name}: the run has only a part of its tasks")
        elif line.kind == "task" and line.name.partition("@")[0] in published:
            left_out.append(f"{line.name}: the published score is of {line.name.partition('@')[0]} without options")
    if not lines:
        why = f" ({'; '.join(left_out)})" if left_out else ""
        raise BadValue(
            f"Nothing of this run can stand beside published:{table.name}/{rows[0].model}{why}.",
            f"It has scores of: {', '.join(sorted(published))}.",
        )
    notes = [
        f"published: {table.title}, {rows[0].model}; {table.source}",
        *table.notes,
        "own scores and published ones are not paired: other weights, prompts or truncation may explain a difference",
        *report.notes,
    ]
    known = parameters or {}
    notes += [note for column in report.columns if (note := _unmatched(column))]
    pairs = ((column, counterpart(report, column, rows, known.get(column.method, {}))) for column in report.columns)
    against = {column: row for column, row in pairs if row is not None}
    part = any(note.startswith(_PART) for note in report.notes)
    return BesidePublished(table, rows, report.columns, tuple(lines), tuple(left_out), tuple(notes), against, part)


def counterpart(
    report: Report, column: Column, rows: Sequence[PublishedRow], parameters: Mapping[str, str]
) -> PublishedRow | None:
    """The published line of a method of one's own: of its name, and of its bits or about its ratio; None without one.

    ``full`` is the line without any method. Methods named after the workbench (``h2o-longctx``) are its own.
    """
    name = column.method.partition("@")[0].removesuffix("-longctx")
    if name == FULL:
        return next((row for row in rows if row.method.lower() in UNCOMPRESSED), None)
    found = [row for row in rows if row.method.lower() == name and _is_setting(report, column, row, parameters)]
    return found[0] if len(found) == 1 else None


def _unmatched(column: Column) -> str:
    """What was written of a method beside the bits or the ratio that a table names; "" for nothing."""
    given = [option for option in column.method.partition("@")[2].split(",") if option]
    others = [option for option in given if option.partition("=")[0] not in _MATCHED]
    return f"{column.method}: the table says nothing of {', '.join(others)}, which may make it another setting" * bool(
        others
    )


def _is_setting(report: Report, column: Column, row: PublishedRow, parameters: Mapping[str, str]) -> bool:
    given = dict(option.partition("=")[::2] for option in column.method.partition("@")[2].split(","))
    if bits := re.fullmatch(r"(\d+)bit", row.setting):
        return {**parameters, **given}.get("bits") == bits[1]
    if times := re.fullmatch(r"(\d+)x", row.setting):
        own = [cell for (_, c), cell in report.cells.items() if c == column and cell.kv_bytes and cell.kv_bytes_full]
        kept, full = sum(cell.kv_bytes or 0 for cell in own), sum(cell.kv_bytes_full or 0 for cell in own)
        return bool(kept) and abs(full / kept / int(times[1]) - 1) < _ALIKE
    return not row.setting


def verdict(found: BesidePublished, column: Column) -> str:
    """How one's own method stands to the published reference, in one sentence."""
    reference = found.line_for(column)
    inside = outside = flat = 0
    gaps = []
    for key, cells in found.lines:
        cell = cells.get(column)
        if cell is None or cell.score is None or key not in reference.scores:
            continue
        gaps.append(cell.score - reference.scores[key])
        known = cell.low is not None and cell.high is not None
        if has_no_width(cell.low, cell.high):
            flat += 1
            continue
        if known and cell.low <= reference.scores[key] <= cell.high:  # type: ignore[operator]
            inside += 1
        elif known:
            outside += 1
    if not gaps:
        return f"{column.method} has no score that the published table has."
    mean = sum(gaps) / len(gaps)
    apart = f"{signed(mean)} points on average over {len(gaps)} lines" if len(gaps) > 1 else f"{signed(mean)} points"
    which = "" if column in found.against else " (the table has no line of this method and setting)"
    rows = ", from a part of the rows only" if found.part else ""
    lies = [f"the published score lies inside the own 95 % interval in {inside} of {inside + outside}"]
    lies = lies if inside + outside else []
    if flat:
        lies.append(f"{flat} own interval has" if flat == 1 else f"{flat} own intervals have")
        lies[-1] += " no width, which tells nothing"
    stands = f"{column.method} stands {apart} from the published {reference.label}{which}{rows}"
    return "; ".join([stands, *lies]) + "."


def render(found: BesidePublished, console: Console) -> RenderableType:
    """Lines down; published settings, then own methods across where they fit, else one below the other."""
    published = [row.label for row in found.rows]
    own = [column.method for column in found.columns]
    wide = 26 + sum(max(7, len(clean(name)) + 1) for name in published + own)
    parts: list[RenderableType] = [_across(found) if wide <= console.width else _down(found), Text()]
    parts += [Text(f"- {clean(verdict(found, column), 1000)}") for column in found.columns]
    parts += [
        Padding(Text(clean(note, 1000), "dim"), (0, 0, 0, 1)) for note in (*_not_compared(found.left_out), *found.notes)
    ]
    return Group(*parts)


def _not_compared(left_out: Sequence[str]) -> list[str]:
    return [f"not compared: {why}" for why in left_out]


def _across(found: BesidePublished) -> Table:
    table = _new_table("score")
    for row in found.rows:
        table.add_column(Text(f"published\n{clean(row.label)}", "dim"), justify="right", no_wrap=True)
    for column in found.columns:
        table.add_column(Text(f"own\n{clean(column.method)}", "bold"), justify="right", no_wrap=True)
    for key, cells in found.lines:
        shown = [score_text(row.scores.get(key)) for row in found.rows]
        mine = [score_text(cells[c].score) if c in cells else "–" for c in found.columns]
        table.add_row(Text(clean(key)), *(Text(s, "dim") for s in shown), *(Text(s, "bold") for s in mine))
    return table


def _down(found: BesidePublished) -> Table:
    table = _new_table("score")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("to published", justify="right", no_wrap=True)
    for key, cells in found.lines:
        table.add_row(Text(clean(key), "bold"), "", "", "")
        for row in found.rows:
            if key in row.scores:
                table.add_row(Text(f"  published {clean(row.label)}", "dim"), score_text(row.scores[key]), "", "")
        for column, cell in cells.items():
            reference = found.line_for(column).scores.get(key)
            gap = "" if reference is None or cell.score is None else signed(cell.score - reference)
            interval = "" if cell.low is None or cell.high is None else f"{cell.low:.1f}–{cell.high:.1f}"
            table.add_row(Text(f"  own {clean(column.method)}"), score_text(cell.score), interval, gap)
    return table


def _new_table(first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(first, overflow="fold")
    return table
