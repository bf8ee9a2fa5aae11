"""The report on a terminal: as wide as there is room for, never wider."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lcbench.reporting import efficiency_table
from lcbench.reporting.folding import foldable, folded
from lcbench.reporting.longscore import terminal as longscore
from lcbench.reporting.table import Cell, Line, Report
from lcbench.reporting.words import (
    NO_WIDTH,
    bytes_text,
    clean,
    explained,
    has_no_width,
    interval_text,
    ratio_text,
    score_text,
    short_names,
)

_MANY_TASKS = 6  # more of them are folded into categories where a line each does not fit
_METHOD_WIDTH = 24  # a method id is folded rather than given more, when other columns need the room


def render(report: Report, console: Console, *, fold: bool = False) -> RenderableType:
    """The table that suits the width of ``console``, and the notes below it.

    With ``fold``, many tasks become one line a category where they do not fit on a line each.

    Methods go across, with everything of a cell on one line where there is room and on two or three where there is
    less; when even that is too wide, methods go down below each task, and the narrower the terminal the fewer columns.
    """
    many = sum(line.kind == "task" for line in report.lines) > _MANY_TASKS
    if fold and many and foldable(report) and not _fits(_one_line(report), console):
        report = folded(report)
    names = short_names(line.name for line in report.lines if line.kind == "task")
    notes = [*explained(names), *report.notes]
    table = _best_table(_renamed(report, names), console)
    if not _shows_flat(table, report):
        notes = [note for note in notes if note != NO_WIDTH]  # a narrow table has no intervals
    parts: list[RenderableType] = [table] if report.lines else []
    parts += [Padding(Text(clean(note, longest=1000), style="dim"), (0, 0, 0, 1)) for note in notes]
    if report.longscore is not None:
        parts.append(longscore.render(report.longscore, console))
    if report.efficiency:
        parts += [""] * bool(parts) + [efficiency_table.render(report.efficiency, console)]
    return Group(*parts)


def _shows_flat(table: Table, report: Report) -> bool:
    """Whether an interval without width stands in the table."""
    texts = {interval_text(c.low, c.high) for c in report.cells.values() if has_no_width(c.low, c.high)}
    cells = (str(cell) for column in table.columns for cell in column.cells)
    return bool(texts) and any(text in cell for cell in cells for text in texts)


def _renamed(report: Report, names: Mapping[str, str]) -> Report:
    renamed = {line: replace(line, name=names.get(line.name, line.name)) for line in report.lines}
    cells = {(renamed[line], column): cell for (line, column), cell in report.cells.items()}
    return replace(report, lines=tuple(renamed.values()), cells=cells)


def _best_table(report: Report, console: Console) -> Table:
    for make in (_one_line, _stacked):
        table = make(report)
        if _fits(table, console):
            return table
    dropped: list[str] = []
    for heading in ("", "95 %", "n", "KV bytes", "ratio"):
        dropped.append(heading)
        table = _methods_down(report, dropped)
        table.columns[0].max_width = _METHOD_WIDTH
        fits = _fits(table, console)
        table.columns[0].max_width = None
        if fits:
            break
    return table


def _fits(table: Table, console: Console) -> bool:
    # A measurement never exceeds what it is offered, so offer plenty.
    options = console.options.update(width=100_000)
    return Measurement.get(console, options, table).maximum <= console.width


def _new_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)


# -- methods across, a cell on one line ------------------------------------------------------------------------------


def _one_line(report: Report) -> Table:
    table = _new_table()
    for heading in ("task", "metric", "n"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "n" else "left")
    columns = []
    for column in report.columns:
        table.add_column(Text(clean(report.label(column))), no_wrap=True)
        columns.append(_aligned([_pieces(report, line, report.cells.get((line, column))) for line in report.lines]))
    for index, line in enumerate(_with_rule(report, table)):
        metric = clean(line.metric) if line.kind == "task" else ""
        facts = (_name(line), Text(metric, "dim"), Text(report.samples(line), "dim"))
        table.add_row(*facts, *(cells[index] for cells in columns))
    return table


def _pieces(report: Report, line: Line, cell: Cell | None) -> list[Text]:
    """Score, interval, bytes, ratio, and last whatever is unusual about the cell."""
    if cell is None:
        return [Text("–", "dim")]
    interval = Text(interval_text(cell.low, cell.high), "dim")
    return [_score(cell), interval, *_saved(line, cell), *_unusual(report, line, cell)]


def _aligned(rows: Sequence[Sequence[Text]]) -> list[Text]:
    """Each row as one text, its pieces right-aligned with those of the other rows."""
    count = max(len(row) for row in rows)
    widths = [max((row[i].cell_len for row in rows if i < len(row)), default=0) for i in range(count)]
    lines = []
    for row in rows:
        pieces = []
        for piece, width in zip(row, widths, strict=False):
            pad = Text(" " * (width - piece.cell_len))
            if width:
                pieces.append(pad + piece)
        lines.append(_join(pieces, "  "))
    return lines


# -- methods across, a cell on several lines -------------------------------------------------------------------------


def _stacked(report: Report) -> Table:
    table = _new_table()
    table.add_column("task", no_wrap=True)
    for column in report.columns:
        table.add_column(Text(_folded(clean(report.label(column)))), no_wrap=True, justify="right")
    for index, line in enumerate(_with_rule(report, table)):
        if index and line.kind == "task":
            table.add_row()
        samples = Text(f"n={n}" if (n := report.samples(line)) else "", "dim")
        if line.kind == "task":
            name = Text(_folded(clean(line.name)), _name(line).style)
            name = _join([name, _join([Text(clean(line.metric), "dim"), samples], " ")], "\n")
        else:
            name = _join([Text(_name(line).plain.strip(), _name(line).style), samples], " ")
        cells = [report.cells.get((line, column)) for column in report.columns]
        table.add_row(name, *(_stack(report, line, cell) for cell in cells))
    return table


def _stack(report: Report, line: Line, cell: Cell | None) -> Text:
    if cell is None:
        return Text("–", "dim")
    return _join([_score(cell), _join(_saved(line, cell), " "), *_unusual(report, line, cell)], "\n")


def _folded(label: str) -> str:
    """Broken where ids have joints, so that a long id makes a high heading and not a wide column."""
    return label.replace("@", "\n@").replace(",", ",\n").replace(" (", "\n(")


# -- methods down ----------------------------------------------------------------------------------------------------


def _methods_down(report: Report, without: Sequence[str]) -> Table:
    table = _new_table()
    labels = {column: clean(report.label(column)) for column in report.columns}
    table.add_column("method", overflow="fold")
    wanted = ["score", "95 %", "KV bytes", "ratio", "n"]
    if any(cell.errors for cell in report.cells.values()):
        wanted.append("failed")
    if any(cell.filtered for cell in report.cells.values()):
        wanted.append("filtered")
    if any(cell.skipped for cell in report.cells.values()):
        wanted.append("skipped")
    told = [_fields(line, cell) for (line, _), cell in report.cells.items()]
    headings = [one for one in wanted if one not in without and any(fields[one] for fields in told)]
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="right")
    for line in _with_rule(report, table):
        title = [_name(line), Text(clean(line.metric), "dim")] if line.kind == "task" else [_name(line)]
        table.add_row(_join(title, " "), *[""] * len(headings))
        for column in report.columns:
            cell = report.cells.get((line, column))
            if cell is not None:
                fields = _fields(line, cell)
                table.add_row(Text(f"  {labels[column]}"), *(fields[heading] for heading in headings))
    return table


def _fields(line: Line, cell: Cell) -> dict[str, Text]:
    size, ratio = _saved(line, cell) or [Text(""), Text("")]
    return {
        "score": _score(cell),
        "95 %": Text(interval_text(cell.low, cell.high), "dim"),
        "KV bytes": size,
        "ratio": ratio,
        "n": Text(str(cell.n) if line.kind != "mean" else "", "dim"),
        "failed": Text(str(cell.errors) if cell.errors else "", "bold red"),
        "filtered": Text(str(cell.filtered) if cell.filtered else "", "dim"),
        "skipped": Text(str(cell.skipped) if cell.skipped else "", "dim"),
    }


# -- pieces ----------------------------------------------------------------------------------------------------------


def _score(cell: Cell) -> Text:
    return Text(score_text(cell.score), "bold")


def _saved(line: Line, cell: Cell) -> list[Text]:
    """Bytes kept and ratio, starred when simulated; nothing where they are not known for the line."""
    if line.kind != "task":
        return []
    star = "*" if cell.memory == "simulated" else ""
    return [Text(bytes_text(cell.kv_bytes)), Text(ratio_text(cell.ratio) + star, "cyan")]


def _unusual(report: Report, line: Line, cell: Cell) -> list[Text]:
    """The number of samples where methods differ in it, failures, and what the QA filter left out."""
    found = []
    if "–" in report.samples(line):
        found.append(Text(f"n={cell.n}", "dim"))
    if cell.errors:
        found.append(Text(f"{cell.errors} failed", "bold red"))
    if cell.filtered:
        found.append(Text(f"{cell.filtered} filtered", "dim"))
    if cell.skipped:
        found.append(Text(f"{cell.skipped} skipped", "dim"))
    return found


def _name(line: Line) -> Text:
    if line.kind == "length":
        return Text(f"  length {clean(line.length)}")
    return Text(clean(line.name), "bold" if line.kind == "task" else "italic")


def _with_rule(report: Report, table: Table) -> Iterable[Line]:
    """The lines of the report, with a rule before the means."""
    previous: Line | None = None
    for line in report.lines:
        if previous is not None and previous.kind != line.kind == "mean":
            table.add_section()
        yield line
        previous = line


def _join(pieces: Iterable[Text], separator: str) -> Text:
    return Text(separator).join(piece for piece in pieces if piece)
