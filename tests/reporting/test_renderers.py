"""Every format of one hand-made report, hostile text included."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lcbench.reporting import csv_, json_, markdown, terminal
from lcbench.reporting.table import Cell, Column, Line, Report
from lcbench.reporting.words import NO_WIDTH, bytes_text, clean, interval_text, ratio_text, score_text

MIB = 2**20
HOSTILE = "[bold red]x[/] | <script>alert(1)</script> `a` \x1b[31m \u202egnp\n=1+1"


def make(methods: int = 3, tasks: int = 2) -> Report:
    columns = tuple(Column("demo", m) for m in ["full", "kivi@bits=2", *(f"m{i}@budget=0.{i}5" for i in range(40))])
    lines = tuple(Line(t, "qa_f1") for t in ["qasper", *(f"task_{i}" for i in range(40))][:tasks])
    mean = Line("mean over tasks", kind="mean")
    cells = {}
    for at, line in enumerate(lines):
        for index, column in enumerate(columns[:methods]):
            cells[line, column] = Cell(
                score=60 - 1.5 * index + at,
                low=50.0,
                high=70.0,
                n=20,
                kv_bytes=9 * MIB / (index + 1),
                kv_bytes_full=9 * MIB,
                run="runs/r",
            )
    for column in columns[:methods]:
        cells[mean, column] = Cell(score=57.25, n=40)
    return Report((*lines, mean), columns[:methods], cells, ("only 20 rows a task (--limit 20)",), ("runs/r",))


def drawn(report: Report, width: int) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, force_terminal=False, color_system=None)
    console.print(terminal.render(report, console))
    return buffer.getvalue()


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


# -- terminal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "told"), [(80, False), (200, True)])
def test_intervals_without_width_are_explained_where_intervals_stand(width: int, told: bool) -> None:
    report = make(3)
    report = replace(report, notes=(*report.notes, NO_WIDTH))
    flat = {key: replace(cell, low=cell.score, high=cell.score) for key, cell in report.cells.items()}
    assert ("without width" in drawn(replace(report, cells=flat), width)) == told
    assert "--limit 20" in drawn(report, width)


def test_80_columns_stack_the_cells() -> None:
    text = drawn(make(3), 80)
    lines = lines_of(text)
    assert lines[0].split() == ["kivi", "m0"]
    assert lines[1].split() == ["task", "full", "@bits=2", "@budget=0.05"]
    assert lines[3].split() == ["qasper", "60.00", "58.50", "57.00"]
    assert lines[4].split() == ["qa_f1", "n=20", "9.00", "MiB", "1.00x", "4.50", "MiB", "2.00x", "3.00", "MiB", "3.00x"]
    assert lines[-1].strip() == "only 20 rows a task (--limit 20)"
    assert "57.25" in text


def test_a_wide_terminal_has_everything_on_one_line() -> None:
    lines = lines_of(drawn(make(4), 200))
    assert lines[0].split() == ["task", "metric", "n", "full", "kivi@bits=2", "m0@budget=0.05", "m1@budget=0.15"]
    assert lines[2].startswith("qasper")
    assert lines[2].split()[:8] == ["qasper", "qa_f1", "20", "60.00", "[50.0,", "70.0]", "9.00", "MiB"]
    assert len(lines) == 2 + 2 + 1 + 1  # heading and rule, tasks, mean, note


def test_many_methods_go_down() -> None:
    lines = lines_of(drawn(make(12), 80))
    assert lines[0].split() == ["method", "score", "95", "%", "KV", "bytes", "ratio", "n"]
    assert lines[2].split() == ["qasper", "qa_f1"]
    assert lines[4].split() == ["kivi@bits=2", "58.50", "[50.0,", "70.0]", "4.50", "MiB", "2.00x", "20"]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("methods", [1, 4, 9, 30])
def test_no_line_is_ever_wider_than_the_terminal_and_no_score_is_lost(width: int, methods: int) -> None:
    report = make(methods, tasks=5)
    text = drawn(report, width)
    assert max(len(line) for line in text.splitlines()) <= width
    if width >= 60 or methods == 1:
        for cell in report.cells.values():
            assert score_text(cell.score) in text


def test_errors_simulated_memory_and_uneven_counts_are_seen_at_every_width() -> None:
    report = make(3)
    line, column = report.lines[0], report.columns[1]
    cells = {**report.cells, (line, column): replace(report.cells[line, column], n=18, errors=2, memory="simulated")}
    report = replace(report, cells=cells)
    for width in (62, 80, 200):
        text = drawn(report, width)
        assert "2.00x*" in text
        assert "18" in text
        assert ("2 failed" in text) or ("failed" in text and "  18       2\n" in text)


def test_a_method_that_did_not_run_a_task_has_a_dash() -> None:
    report = make(2)
    cells = dict(report.cells)
    del cells[report.lines[0], report.columns[1]]
    report = replace(report, cells=cells)
    row = next(line for line in lines_of(drawn(report, 80)) if line.startswith("qasper"))
    assert row.split() == ["qasper", "60.00", "–"]


def hostile_report() -> Report:
    column, line = Column(HOSTILE, HOSTILE, HOSTILE), Line(HOSTILE, HOSTILE)
    other = Column("demo", "full")
    return Report((line,), (column, other), {(line, column): Cell(1.0, n=1)}, (HOSTILE,), (HOSTILE,))


@pytest.mark.parametrize("width", [40, 80, 300])
def test_hostile_text_is_shown_and_not_obeyed(width: int) -> None:
    text = drawn(hostile_report(), width)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold red]" in text.replace("\n", "") or width == 40
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, force_terminal=True, color_system="truecolor")
    console.print(terminal.render(hostile_report(), console))
    assert "\x1b[31m" not in buffer.getvalue()  # the escape sequence of the text itself


# -- Markdown --------------------------------------------------------------------------------------------------------


def test_markdown_has_both_tables_and_the_notes() -> None:
    lines = markdown.render(make(2)).split("\n")
    assert "| task | metric | n | errors | full | kivi@bits=2 |" in lines
    assert "| --- | --- | ---: | ---: | ---: | ---: |" in lines
    assert "| qasper | qa_f1 | 20 | 0 | 60.00 [50.0, 70.0] | 58.50 [50.0, 70.0] |" in lines
    assert "| qasper | 9.00 MiB (1.00x) | 4.50 MiB (2.00x) |" in lines
    assert "| **mean over tasks** |  |  |  | 57.25 | 57.25 |" in lines
    assert "- only 20 rows a task (--limit 20)" in lines
    assert lines[-1] == ""


def test_hostile_text_does_not_break_the_markdown_table() -> None:
    text = markdown.render(hostile_report())
    assert "<script>" not in text
    for line in text.split("\n"):
        if line.startswith("|"):
            bars = line.replace("\\|", "").count("|")
            assert bars in (7, 4)


# -- CSV -------------------------------------------------------------------------------------------------------------


def test_csv_is_one_row_a_method_and_task() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_.render(make(2)))))
    assert len(rows) == 6
    assert rows[1] == {
        "model": "demo",
        "method": "kivi@bits=2",
        "task": "qasper",
        "kind": "task",
        "length": "",
        "metric": "qa_f1",
        "score": "58.5000",
        "low": "50.0000",
        "high": "70.0000",
        "n": "20",
        "errors": "0",
        "filtered": "0",
        "skipped": "0",
        "kv_bytes": "4718592",
        "kv_bytes_full": "9437184",
        "ratio": "2.0000",
        "memory": "real",
        "run": "runs/r",
        "notes": "only 20 rows a task (--limit 20)",
    }
    assert rows[4]["kind"] == "mean"
    assert rows[4]["kv_bytes"] == ""


@given(st.text(st.characters(), max_size=30))
def test_no_csv_cell_is_a_formula(text: str) -> None:
    column, line = Column(text, text, text), Line(text, text)
    report = Report((line,), (column,), {(line, column): Cell(None, run=text)}, (text,), ())
    content = csv_.render(report)
    content.encode("utf-8")
    (row,) = csv.DictReader(io.StringIO(content))
    for name in ("model", "method", "task", "metric", "run", "notes"):
        assert not row[name].startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
        assert "\n" not in row[name]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "＝1"])
def test_formulas_are_kept_as_text(text: str) -> None:
    column, line = Column("demo", text), Line("t")
    report = Report((line,), (column,), {(line, column): Cell(-1.5)})
    (row,) = csv.DictReader(io.StringIO(csv_.render(report)))
    assert row["method"] == "'" + text.strip()
    assert row["score"] == "-1.5000"


# -- JSON ------------------------------------------------------------------------------------------------------------


def test_json_carries_every_cell() -> None:
    report = make(2)
    data = json.loads(json_.render(report))
    assert [m["method"] for m in data["methods"]] == ["full", "kivi@bits=2"]
    assert data["notes"] == ["only 20 rows a task (--limit 20)"]
    assert data["cells"][1]["method"] == "kivi@bits=2"
    assert data["cells"][1]["ratio"] == 2.0
    assert data["cells"][1]["kv_bytes"] == 4.5 * MIB
    assert len(data["cells"]) == len(report.cells)
    assert json.loads(json_.render(hostile_report()))["methods"][0]["method"] == HOSTILE


# -- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (9.994 * 1024, "9.99 KiB"),
        (9.996 * 1024, "10.0 KiB"),
        (123.4 * MIB, "123 MiB"),
        (1023 * MIB, "1.00 GiB"),
        (2**61, "2048 PiB"),
    ],
)
def test_bytes(count: float | None, text: str) -> None:
    assert bytes_text(count) == text


def test_numbers() -> None:
    assert (score_text(None), score_text(57.125), score_text(100.0)) == ("–", "57.12", "100.00")
    assert (interval_text(None, 1.0), interval_text(1.04, 99.96)) == ("", "[1.0, 100.0]")
    assert (ratio_text(None), ratio_text(6.006), ratio_text(99.994), ratio_text(128.0)) == (
        "–",
        "6.01x",
        "99.99x",
        "128x",
    )


@given(st.text(st.characters()))
def test_clean_text_is_one_printable_line(text: str) -> None:
    shown = clean(text)
    assert len(shown) <= 300
    assert "\x1b" not in shown
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


def test_methods_down_have_no_column_that_is_empty_in_every_row() -> None:
    report = make(3)
    assert "95 %" in [column.header for column in terminal._methods_down(report, []).columns]
    bare = replace(report, cells={at: replace(cell, low=None, high=None) for at, cell in report.cells.items()})
    assert "95 %" not in [column.header for column in terminal._methods_down(bare, []).columns]
