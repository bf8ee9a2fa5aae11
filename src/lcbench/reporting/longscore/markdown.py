"""LongScore in Markdown."""

from __future__ import annotations

from lcbench.reporting.gfm import escape, table_lines
from lcbench.reporting.longscore.tables import Grid, grids, legend, length_grids, notes, sentences
from lcbench.reporting.longscore.view import LongView


def lines(view: LongView) -> list[str]:
    """Lines of the section, a blank one first."""
    found = [line for grid in grids(view) for line in _titled(grid)]
    for sentence in sentences(view):
        found += ["", escape(sentence, 1000)]
    found += [line for grid in length_grids(view) for line in _titled(grid)]
    found += ["", *(f"- {escape(note, 1000)}" for note in dict.fromkeys([*notes(view), *legend(view)]))]
    return found


def _titled(grid: Grid) -> list[str]:
    rows = [[escape(text.replace("\n", " ")) for text in row] for row in (grid.header, *grid.rows)]
    return ["", f"**{escape(grid.title)}**", "", *table_lines(rows, grid.left)]
