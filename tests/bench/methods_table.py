"""The table of docs/benchmarks/methods-real.md: a run of many methods with a row a method, and what must hold in it.

lcbench run --config docs/benchmarks/methods-real.yaml --out runs/methods-real
python tests/bench/methods_table.py runs/methods-real
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean

from lcbench.methods.registry import resolve
from lcbench.reporting.build import build
from lcbench.reporting.table import Cell, Column, Line, Report
from lcbench.reporting.words import ratio_text
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

WHOLE = "snapkv@budget=4096"  # more than any prompt
EVICTORS = ("evict", "merge", "retrieve")
Records = dict[str, list[PredictionRecord]]


def main(folder: Path) -> None:
    run = RunDirectory.open(folder)
    report = build([run])
    tasks = [line for line in report.lines if line.kind == "task"]
    records: Records = {m: [r for t in run.tasks for r in run.records(m, t) if r.ok] for m in run.methods}
    print(table(report, tasks, records))
    print()
    print("\n".join(f"- {text}" for text in (*sanity(report, tasks, records), *_said(report))))


def table(report: Report, tasks: list[Line], records: Records) -> str:
    """A row a method: scores, entries kept, how many times the full cache is larger, share that a step reads."""
    heads = ["method", *(f"{line.name.partition('@')[0]}" for line in tasks), "kept", "full / KV", "read"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for column in report.columns:
        own = records[column.method]
        scores = [_score(report.cells.get((line, column))) for line in tasks]
        star = "*" if any(r.memory == "simulated" for r in own) else ""
        kept = f"{fmean(r.kept_tokens / r.prompt_tokens for r in own):.0%}" if own else "–"
        ratio = ratio_text(_ratio(own)) if own else "–"
        known = bool(own) and not star and all(r.resident_bytes for r in own)
        read = f"{fmean(r.resident_bytes / r.kv_bytes for r in own):.0%}" if known else "–"
        lines.append("| " + " | ".join([f"`{column.method}`", *scores, kept, ratio + star, read]) + " |")
    return "\n".join(lines)


def sanity(report: Report, tasks: list[Line], records: Records) -> list[str]:
    """Full is at least as good as budgeted methods, these than random, on average; a budget that holds all is full."""
    found = []
    columns = {column.method: column for column in report.columns}
    for line in tasks:
        name = line.name.partition("@")[0]
        full, random = report.cells[line, columns["full"]].score, _mean(report, line, columns, "random")
        families = {m: resolve(m).traits.family for m in columns}
        budgeted = [m for m in columns if families[m] in EVICTORS and not m.startswith(("random", WHOLE))]
        others, kivi = _mean(report, line, columns, *budgeted), _mean(report, line, columns, "kivi@bits=4")
        found.append(
            f"{name}: full {full:.1f}, kivi at 4 bits {kivi:.1f}, {len(budgeted)} budgeted methods {others:.1f}, "
            f"random {random:.1f} (means)"
        )
    whole = [m for m in columns if m.startswith(WHOLE)]
    for method in whole:
        same = all(a.pred == b.pred for a, b in zip(records[method], records["full"], strict=True))
        found.append(f"`{method}`, which holds every prompt, {'answers' if same else 'DOES NOT answer'} as full does")
    return found


def _mean(report: Report, line: Line, columns: dict[str, Column], *names: str) -> float:
    """Mean score of all methods that begin with one of the names."""
    cells = [report.cells.get((line, c)) for m, c in columns.items() if m.startswith(names)]
    return fmean(cell.score for cell in cells if cell is not None and cell.score is not None)


def _score(cell: Cell | None) -> str:
    return "–" if cell is None or cell.score is None else f"{cell.score:.1f}"


def _ratio(own: list[PredictionRecord]) -> float:
    return sum(r.kv_bytes_full for r in own) / sum(r.kv_bytes for r in own)


def _said(report: Report) -> list[str]:
    """The report's own notes, those about what a step reads left out: the table has them."""
    return [note for note in report.notes if "a step reads" not in note]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
