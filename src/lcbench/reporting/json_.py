"""The report as JSON, for programs."""

from __future__ import annotations

import dataclasses
import json

from lcbench.reporting.longscore.data import data_of
from lcbench.reporting.table import Report


def render(report: Report) -> str:
    """An object with ``runs``, ``methods``, ``tasks``, ``cells``, ``efficiency``, ``notes`` and, where tasks exist at
    several lengths, ``longscore``; scores 0 to 100, bytes as numbers.

    ``cells`` is a list; each names its model, method and line, and carries the fields of `table.Cell` and ``ratio``.
    """
    cells = []
    for line in report.lines:
        for column in report.columns:
            cell = report.cells.get((line, column))
            if cell is not None:
                what = {"task": line.name, "kind": line.kind, "length": line.length, "metric": line.metric}
                cells.append(
                    {
                        "model": column.model,
                        "method": column.method,
                        **what,
                        **dataclasses.asdict(cell),
                        "ratio": cell.ratio,
                    }
                )
    data = {
        "schema_version": 1,
        "runs": list(report.runs),
        "methods": [dataclasses.asdict(column) for column in report.columns],
        "tasks": [dataclasses.asdict(line) for line in report.lines],
        "cells": cells,
        "efficiency": [
            {**dataclasses.asdict(row), "ratio": row.ratio, "of_limit": row.of_limit} for row in report.efficiency
        ],
        "notes": list(report.notes),
        **({} if report.longscore is None else {"longscore": data_of(report.longscore)}),
    }
    return json.dumps(data, indent=2, ensure_ascii=True) + "\n"
