"""Which numbers of a table are the best and the second best of their line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lcbench.reporting.table import Column, Line, Report
from lcbench.reporting.words import score_text

Rank = Literal["best", "second"]


def ranks(report: Report) -> Mapping[tuple[Line, Column], Rank]:
    """(line, column) to its rank among the methods of the same model and setting; equal printed scores share a rank.

    Scores of a part of the rows that others have are none to rank. A line with fewer than two others has no best, nor
    has one where all of them tie.
    """
    result: dict[tuple[Line, Column], Rank] = {}
    for line in report.lines:
        for group in dict.fromkeys(column.group for column in report.columns):
            scores = {
                column: float(score_text(cell.score))
                for column in report.columns
                if column.group == group
                and (cell := report.cells.get((line, column))) is not None
                and cell.score is not None
                and not report.part_of(line, column)
            }
            distinct = sorted(set(scores.values()), reverse=True)
            if len(distinct) < 2:
                continue
            for column, score in scores.items():
                if score == distinct[0]:
                    result[line, column] = "best"
                elif score == distinct[1]:
                    result[line, column] = "second"
    return result
