"""LongScore as LaTeX tables: rankings, a line a task and method with its samples counted, and losses."""

from __future__ import annotations

from collections.abc import Callable

from lcbench.reporting.longscore.tables import Grid, grids, legend, notes, sentences
from lcbench.reporting.longscore.view import LongView
from lcbench.reporting.words import clean

_WIDE = 60  # a table of more letters across is scaled to the width of the text


def lines(view: LongView, escape: Callable[[str], str]) -> list[str]:
    """Lines of the tables, a blank one before each; what has to be known of them as comments.

    Args:
        escape: makes a text one that LaTeX prints as it is.
    """
    found = [line for number, grid in enumerate(grids(view), 1) for line in _table(grid, number, escape)]
    said = dict.fromkeys([*sentences(view), *notes(view), *legend(view)])
    return [*found, *(f"% {clean(note, 1000)}".replace("\\", "/") for note in said)]


def _table(grid: Grid, number: int, escape: Callable[[str], str]) -> list[str]:
    """One table. Columns of numbers that are empty in every row are left out."""
    used = [i for i, _ in enumerate(grid.header) if i < grid.left or any(row[i] for row in grid.rows)]
    wide = sum(2 + max(len(row[i]) for row in (grid.header, *grid.rows)) for i in used) > _WIDE
    columns = "".join("l" if i < grid.left else "r" for i in used)

    def row(cells: tuple[str, ...]) -> str:
        return " & ".join(escape(cells[i].replace("\n", " ")) for i in used) + r" \\"

    return [
        "",
        r"\begin{table}[t]",
        r"\centering",
        f"\\caption{{{escape(grid.title)}.}}",
        f"\\label{{tab:lcbench-longscore-{number}}}",
        *([r"\resizebox{\linewidth}{!}{%"] if wide else []),
        f"\\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        row(grid.header),
        r"\midrule",
        *(row(one) for one in grid.rows),
        r"\bottomrule",
        r"\end{tabular}" + ("}" if wide else ""),
        r"\end{table}",
    ]
