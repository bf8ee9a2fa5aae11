"""Everything that stands in the page, put into its template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from lcbench.reporting.best import ranks
from lcbench.reporting.efficiency import efficiency_notes
from lcbench.reporting.efficiency_table import cells_of, columns_of
from lcbench.reporting.figures.drawn import Drawn
from lcbench.reporting.figures.naming import told_apart
from lcbench.reporting.figures.style import svg_text
from lcbench.reporting.longscore.view import LongView, Ranking, Standing
from lcbench.reporting.page.embed import embed
from lcbench.reporting.page.environment import environment, trimmings
from lcbench.reporting.page.svg import inline
from lcbench.reporting.page.visible import visible
from lcbench.reporting.samples import Samples
from lcbench.reporting.table import Cell, Column, Line, Report
from lcbench.reporting.words import bytes_text, clean, explained, interval_text, ratio_text, score_text, short_names
from lcbench.store.rundir import RunDirectory
from lcbench.tasks.facts import HUNDRED


def render(
    report: Report,
    samples: Samples,
    runs: Sequence[RunDirectory],
    figures: Sequence[Drawn],
    remarks: Sequence[str] = (),
) -> str:
    """The whole page. ``remarks``: sentences about what could not be drawn."""
    data, ids, longest = embed(report, samples, runs)
    pages = environment()
    pages.filters["breakable"] = _breakable
    template = pages.from_string(_part("template.html"))
    return template.render(
        **trimmings(_part("style.css"), _part("script.js")),
        title=_title(report),
        data=data,
        longest=f"{longest:,}",
        lines=_lines(report),
        rows=_rows(report, ids),
        several_models=report.several_models,
        figures=[{"title": f.title, "svg": inline(svg_text(f.figure), f.name, f.alt)} for f in figures],
        remarks=[*remarks, *(report.longscore.warnings() if report.longscore else ())],
        rankings=_rankings(report, ids),
        speed=_speed(report),
        notes=[*explained(short_names(line.name for line in report.lines if line.kind == "task")), *report.notes],
        runs=[_run(run) for run in runs],
        any_simulated=any(cell.memory == "simulated" for cell in report.cells.values()),
    )


def _speed(report: Report) -> dict[str, Any] | None:
    """What `lcbench bench` measured, as text."""
    if not report.efficiency:
        return None
    columns = columns_of(report.efficiency)
    rows = [[visible(text) for text in cells_of(row, columns)] for row in report.efficiency]
    return {"columns": columns, "rows": rows, "notes": efficiency_notes(report.efficiency)}


def _breakable(text: str) -> Any:
    """``text`` escaped, with places where a long id may be broken."""
    from markupsafe import Markup, escape

    return Markup("").join(Markup("<wbr>") + sign if sign in "@_/,=" else escape(sign) for sign in text)


def _part(name: str) -> str:
    return files("lcbench.reporting.page").joinpath(name).read_text(encoding="utf-8")


def _title(report: Report) -> str:
    models = list(told_apart((column.model for column in report.columns), 40).values())
    count = len(report.columns)
    of = ", ".join(models[:3]) + (f" and {len(models) - 3} more" if len(models) > 3 else "")
    return f"{of}: {count} method{'' if count == 1 else 's'}"


def _lines(report: Report) -> list[dict[str, str]]:
    names = short_names(line.name for line in report.lines if line.kind == "task")
    found = []
    for line in report.lines:
        name = names.get(line.name, line.name)
        found.append(
            {
                "kind": line.kind,
                "name": visible(name if line.kind != "length" else f"{name} {line.length}"),
                "whole": visible(line.title),
                "metric": visible(line.metric),
            }
        )
    return found


def _rows(report: Report, ids: Mapping[tuple[Line, Column], str]) -> list[dict[str, Any]]:
    places = ranks(report)
    rows = []
    for column in report.columns:
        cells = [_cell(report, line, column, ids, places.get((line, column), "")) for line in report.lines]
        whole = [
            cell
            for line in report.lines
            if line.kind == "task" and (cell := report.cells.get((line, column))) is not None
        ]
        sizes = [cell.kv_bytes for cell in whole if cell.kv_bytes]
        full = [cell.kv_bytes_full for cell in whole if cell.kv_bytes and cell.kv_bytes_full]
        size = sum(sizes) / len(sizes) if sizes else None
        ratio = sum(full) / sum(sizes) if sizes else None
        rows.append(
            {
                "model": visible(column.model),
                "method": visible(column.method),
                "run": visible(column.run),
                "cells": cells,
                "bytes": bytes_text(size),
                "bytes_raw": "" if size is None else f"{size:.0f}",
                "ratio": ratio_text(ratio),
                "ratio_raw": "" if ratio is None else f"{ratio:.6f}",
                "simulated": any(cell.memory == "simulated" for cell in whole),
            }
        )
    return rows


def _cell(
    report: Report, line: Line, column: Column, ids: Mapping[tuple[Line, Column], str], rank: str
) -> dict[str, Any] | None:
    cell = report.cells.get((line, column))
    if cell is None:
        return None
    behind = [ids[at] for at in _behind(report, line, column) if at in ids]
    return {
        "kind": line.kind,
        "score": score_text(cell.score),
        "raw": "" if cell.score is None else f"{cell.score:.6f}",
        "interval": interval_text(cell.low, cell.high).strip("[]").replace(", ", "–"),
        "n": cell.n or "",
        "errors": cell.errors,
        "filtered": cell.filtered,
        "skipped": cell.skipped,
        "bytes": bytes_text(cell.kv_bytes) if line.kind == "task" else "",
        "cells": ",".join(behind),
        "length": line.length,
        "rank": rank,
        "spoken": _spoken(line, column, cell),
    }


def _behind(report: Report, line: Line, column: Column) -> list[tuple[Line, Column]]:
    """The whole tasks whose samples a number was made of."""
    if line.kind == "mean":
        return [(task, column) for task in report.lines if task.kind == "task" and task.name in line.members]
    return [(task, column) for task in report.lines if task.kind == "task" and task.name == line.name]


def _spoken(line: Line, column: Column, cell: Cell) -> str:
    """What a screen reader says of the button: the number is nothing without its row and column."""
    return visible(f"{score_text(cell.score)}, {column.method}, {line.title}: show the samples")


def _rankings(report: Report, ids: Mapping[tuple[Line, Column], str]) -> list[dict[str, Any]]:
    """The two rankings of every LongScore: by average score, and by what of the base ability is left."""
    if report.longscore is None:
        return []
    names = short_names(ranking.name for ranking in report.longscore.rankings)
    return [
        {
            "name": visible(names[ranking.name]),
            "lengths": visible(", ".join(ranking.lengths)),
            "notes": ranking.notes,
            "standings": [
                {
                    "label": visible(one.label) + (" (published)" if one.published else ""),
                    "numbers": _numbers(report, report.longscore, ranking, one, ids),
                    "rank_average": one.rank_average or "–",
                    "rank_long_score": one.rank_long_score or "–",
                    "move": one.mark,
                    "breakdown": visible(one.breakdown or "none"),
                }
                for one in ranking.standings
            ],
        }
        for ranking in report.longscore.rankings
    ]


def _numbers(
    report: Report, view: LongView, ranking: Ranking, one: Standing, ids: Mapping[tuple[Line, Column], str]
) -> dict[str, dict[str, str]]:
    """Base, average and LongScore of one method, each with its interval and the samples behind it."""
    curve = next((e.curves.get(ranking.name) for e in view.entries if e.label == one.label), None)
    base = None if curve is None else curve.base
    tasks = {*ranking.members, ranking.name}
    lines = [line for line in report.lines if line.kind == "task" and {line.name, _suite_task(line.name)} & tasks]
    label = "" if base is None else base.label
    of_base = [line for line in lines if line.name.endswith(f"@{label}")]
    above = [line for line in lines if line not in of_base]
    lengths = {line.length for line in report.lines if line.kind == "length" and line.name == ranking.name}
    found = {}
    for what, value, interval, own, length in (
        ("base", one.base, base and base.interval, of_base or lines, "" if label not in lengths else label),
        ("average", one.average, one.average_interval, above, ""),
        ("LongScore", one.long_score, one.long_score_interval, lines, ""),
    ):
        cells = [
            ids[line, column]
            for line in own
            for column in report.columns
            if report.label(column) == one.label and (line, column) in ids
        ]
        found[what] = {
            "text": score_text(value),
            "interval": interval_text(*(interval or (None, None))).strip("[]").replace(", ", " to "),
            "cells": "" if one.published or value is None else ",".join(cells),
            "length": length,
            "spoken": visible(f"{score_text(value)}, {what} of {one.label}, {ranking.name}: show the samples"),
        }
    return found


def _suite_task(name: str) -> str:
    """A task of 100-LongBench without its length: there each length is a task of its own."""
    return name.partition("@")[0] if name.startswith(f"{HUNDRED}/") else name


def _run(run: RunDirectory) -> dict[str, Any]:
    model = run.provenance.get("model")
    model = model if isinstance(model, Mapping) else {}
    version = run.provenance.get("lcbench")
    version = version if isinstance(version, Mapping) else {}
    facts = {
        "model": model.get("name"),
        "weights": model.get("identity"),
        "dtype": model.get("dtype"),
        "device": model.get("device"),
        "attention": model.get("attn"),
        "lcbench": " ".join(str(version[key]) for key in ("version", "commit") if version.get(key)),
        "python": run.provenance.get("python"),
        "platform": run.provenance.get("platform"),
        "seed": run.spec.get("seed"),
        "started": run.info.get("created"),
    }
    shown = {name: visible(clean(str(value), 120)) for name, value in facts.items() if value not in (None, "")}
    return {"path": visible(str(run.path)), "facts": shown}
