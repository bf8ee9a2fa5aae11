"""LongScore on a terminal."""

from __future__ import annotations

from dataclasses import replace

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lcbench.reporting.longscore.tables import INTERVAL, Grid, grids, legend, length_grids, notes, sentences
from lcbench.reporting.longscore.view import LongView
from lcbench.reporting.words import clean

_NAMES = 20  # columns that names get before numbers are squeezed


def render(view: LongView, console: Console, *, over_length: bool = True) -> RenderableType:
    """Rankings, summary, losses with their sentence, scores over length (with ``over_length``), and the notes."""
    parts: list[RenderableType] = [_titled(grid, console) for grid in grids(view)]
    parts += [Padding(Text(clean(sentence, longest=1000)), (1, 0, 0, 1)) for sentence in sentences(view)]
    parts += [_titled(grid, console) for grid in length_grids(view)] if over_length else []
    said = dict.fromkeys([*notes(view), *legend(view)])
    parts += [Padding(Text(clean(note, longest=1000), "dim"), (0, 0, 0, 1)) for note in said]
    return Group(*parts)


def _titled(grid: Grid, console: Console) -> Group:
    table = _table(grid)
    options = console.options.update(width=100_000)
    if Measurement.get(console, options, table).maximum > console.width:
        high = stacked(grid)
        numbers = Measurement.get(console, options, _table(high)).maximum - _longest_name(high)
        # Names get the room that numbers leave, and a little even where they leave none.
        table = _table(high, room=min(_longest_name(high), max(_NAMES, console.width - numbers)))
    return Group(Text(""), Text(clean(grid.title), "bold"), table)


def stacked(grid: Grid) -> Grid:
    """The same with every interval below its number."""
    header: list[str] = []
    columns: list[list[str]] = []
    for i, name in enumerate(grid.header):
        column = [row[i] for row in grid.rows]
        if name == INTERVAL and columns:
            columns[-1] = ["\n".join(filter(None, pair)) for pair in zip(columns[-1], column, strict=True)]
        else:
            header.append(name)
            columns.append(column)
    return replace(grid, header=tuple(header), rows=tuple(zip(*columns, strict=True)))


def _longest_name(grid: Grid) -> int:
    """Letters of the longest name in the first column as it is printed."""
    first = grid.left - 1
    names = [grid.header[0], *(row[first] if first == 0 else f"  {row[first]}" for row in grid.rows)]
    return max(map(len, [*names, *(row[0] for row in grid.rows)]))


def _table(grid: Grid, *, room: int | None = None) -> Table:
    """Columns of numbers that are empty in every row are left out; of two columns of names the first goes above.

    ``room`` is the width of the names; None: as wide as they are.
    """
    first = grid.left - 1
    used = [i for i, _ in enumerate(grid.header) if i == first or (i > first and any(row[i] for row in grid.rows))]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for i in used:
        heading = Text(clean(grid.header[0] if i == first else grid.header[i]))
        if i == first:
            # A fixed width: the room that is missing is taken from the numbers' columns then, not from the names.
            table.add_column(heading, overflow="fold", width=room)
        else:
            table.add_column(heading, justify="right", overflow="fold")
    above = ""
    for row in grid.rows:
        if first and row[0] and row[0] != above:
            above = row[0]
            long = room is not None and len(above) > room
            table.add_row(Text(clean(above).replace("@", "\n@") if long else clean(above), "bold"))
        indent = "  " if first else ""
        table.add_row(*(Text(indent + clean(row[i])) if i == first else _lines(row[i]) for i in used))
    return table


def _lines(cell: str) -> Text:
    """A number, with what stands below it dimmed."""
    top, _, below = cell.partition("\n")
    return Text(clean(top)) + (Text("\n" + clean(below), "dim") if below else Text(""))
