"""LongScore on a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lcbench.reporting.longscore.tables import Grid, grids, legend, sentences
from lcbench.reporting.longscore.view import LongView
from lcbench.reporting.words import clean


def render(view: LongView, *, over_length: bool = True) -> RenderableType:
    """Rankings, summary, losses with their sentence, scores over length (with ``over_length``), and the notes."""
    parts: list[RenderableType] = []
    for grid in grids(view, over_length=over_length):
        parts += [Text(""), Text(clean(grid.title), "bold"), _table(grid)]
    for sentence in sentences(view):
        parts.append(Padding(Text(clean(sentence, longest=1000)), (0, 0, 0, 1)))
    notes = [*(note for one in view.rankings for note in one.notes), *view.notes, *view.warnings(), *legend(view)]
    parts += [Padding(Text(clean(note, longest=1000), "dim"), (0, 0, 0, 1)) for note in dict.fromkeys(notes)]
    return Group(*parts)


def _table(grid: Grid) -> Table:
    """Columns of numbers that are empty in every row are left out."""
    used = [i for i, _ in enumerate(grid.header) if i < grid.left or any(row[i] for row in grid.rows)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for i in used:
        text = i < grid.left
        table.add_column(Text(clean(grid.header[i])), justify="left" if text else "right", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(clean(row[i])) for i in used))
    return table
