"""LaTeX, Parquet, and tasks folded into categories."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import failed, make, passkey, right, wrong
from rich.console import Console
from test_renderers import HOSTILE, hostile_report
from test_renderers import make as made_report

from lcbench.reporting import latex, parquet, terminal
from lcbench.reporting.best import ranks
from lcbench.reporting.build import build
from lcbench.reporting.folding import folded
from lcbench.reporting.rows import COLUMNS, flat_rows
from lcbench.reporting.table import Cell, Column, Line, Report
from lcbench.scoring.longscore.result import LongScoreOptions
from lcbench.scoring.run import ScoreOptions, score_run

ENGLISH = ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "gov_report", "lcc")


def table(scores: dict[str, list[float | None]], models: tuple[str, ...] = ("demo",)) -> Report:
    columns = tuple(Column(model, f"m{i}") for model in models for i in range(len(next(iter(scores.values())))))
    lines = tuple(Line(name, "qa_f1") for name in scores)
    cells = {
        (line, column): Cell(score, n=5, kv_bytes=2**20, kv_bytes_full=2**22)
        for line in lines
        for column in columns
        if (score := scores[line.name][int(column.method[1:])]) is not None
    }
    return Report(lines, columns, cells)


# -- best and second -------------------------------------------------------------------------------------------------


def test_equal_printed_scores_share_a_rank() -> None:
    report = table({"qasper": [50.0, 50.004, 40.0, 40.0, 30.0]})
    (line,) = report.lines
    assert [ranks(report).get((line, c)) for c in report.columns] == ["best", "best", "second", "second", None]
    assert ranks(table({"qasper": [50.0]})) == {}
    assert ranks(table({"qasper": [50.0, None]})) == {}
    assert ranks(table({"qasper": [0.0, 0.0, 0.001]})) == {}  # a tie of all: none is best


def test_each_model_has_its_own_best() -> None:
    report = table({"qasper": [50.0, 40.0]}, models=("a", "b"))
    (line,) = report.lines
    assert [ranks(report)[line, c] for c in report.columns] == ["best", "second"] * 2


# -- LaTeX -----------------------------------------------------------------------------------------------------------


def test_latex_is_a_booktabs_table_with_best_bold_and_second_underlined() -> None:
    text = latex.render(table({"qasper": [60.0, 58.5, 57.0], "lcc": [1.0, 3.0, 2.0]}))
    lines = text.split("\n")
    assert lines[0] == "% \\usepackage{booktabs}"
    assert "\\begin{tabular}{lrrrr}" in lines
    assert [line for line in lines if "rule" in line] == ["\\toprule", "\\midrule", "\\bottomrule"]
    assert "Method & qasper & lcc & KV cache & Ratio \\\\" in lines
    assert "m0 & \\textbf{60.00} & 1.00 & 1.00 MiB & 4.00$\\times$ \\\\" in lines
    assert "m1 & \\underline{58.50} & \\textbf{3.00} & 1.00 MiB & 4.00$\\times$ \\\\" in lines
    assert "m2 & 57.00 & \\underline{2.00} & 1.00 MiB & 4.00$\\times$ \\\\" in lines
    assert text.count("{") == text.count("}")
    assert lines[-1] == ""


def test_n_and_interval_on_request() -> None:
    report = made_report(2)
    assert "$n$" not in latex.render(report)
    assert "scriptsize" not in latex.render(report)
    text = latex.render(report, ("n", "interval"))
    assert "$n$ & 20 & 20 &  &  &  \\\\" in text.split("\n")
    assert "{\\scriptsize 50.0--70.0}" in text


def test_models_missing_cells_and_simulated_memory_are_marked() -> None:
    report = table({"qasper": [50.0, None], "lcc": [1.0, 2.0]}, models=("org/a_b", "c"))
    text = latex.render(report)
    assert "\\multicolumn{5}{l}{\\textit{org/a\\_b}} \\\\" in text
    assert "m1 & -- & \\textbf{2.00}" in text
    cells = {at: replace(cell, memory="simulated") for at, cell in report.cells.items()}
    marked = latex.render(replace(report, cells=cells))
    assert "4.00$\\times$$^{*}$" in marked
    assert "only count as dropped" in marked


def tabulars(text: str) -> list[list[list[str]]]:
    """Rows of cells of every tabular, without rules."""
    found = []
    for body in re.findall(r"\\begin\{tabular\}\{[lr]+\}\n(.*?)\n\\end\{tabular\}", text, re.S):
        rows = [line for line in body.split("\n") if line.endswith(r"\\")]
        found.append([row.removesuffix(r" \\").split(" & ") for row in rows])
    return found


def merged_variants() -> Report:
    """Three variants of a task at eight lengths, twenty methods with long names."""
    names = [f"passkey@depths={d}" for d in (3, 5, 11)]
    lines = [Line(n, "passkey") for n in names]
    lines += [Line(n, "passkey", kind="length", length=str(256 * 2**k)) for n in names for k in range(8)]
    columns = [Column("demo", f"snapkv@budget=0.{i:02d},window=16,kernel=5,pooling=max") for i in range(20)]
    cells = {
        (line, column): Cell(10.0 * (i % 10) + j, n=5, kv_bytes=2**20, kv_bytes_full=2**22)
        for i, line in enumerate(lines)
        for j, column in enumerate(columns)
    }
    return Report(tuple(lines), tuple(columns), cells)


def test_wide_tables_go_on_below_and_are_never_shrunk() -> None:
    report = merged_variants()
    text = latex.render(report)
    assert "resizebox" not in text
    assert set(re.findall(r"\\(tiny|scriptsize|footnotesize|small)\b", text)) == {"footnotesize"}
    parts = tabulars(text)
    heads = [head for part in parts for head in part[0]]
    assert heads.count("Method") == len(parts) > 2
    turned = [head for head in heads if head != "Method"]
    assert turned == [f"\\rotatebox{{90}}{{{name}}}" for name in expected_heads(report)]
    widths = [len(part[0]) for part in parts]
    assert max(widths) - min(widths) <= 2  # about as many columns in each
    assert parts[-1][0][-2:] == ["\\rotatebox{90}{KV cache}", "\\rotatebox{90}{Ratio}"]
    for part in parts:
        assert len(part) == 1 + 20
        assert all(len(row) == len(part[0]) for row in part)
    labels = re.findall(r"\\label\{([^}]*)\}", text)
    assert labels == ["tab:lcbench"]
    assert text.count("Continued.") == text.count("\\begin{table}") - 1


def expected_heads(report: Report) -> list[str]:
    return [f"{line.name} {line.length}".strip() for line in report.lines] + ["KV cache", "Ratio"]


def test_parts_with_tall_headings_share_no_page_that_is_too_short_for_them() -> None:
    long = "100-longbench/a-task-of-a-very-long-name@base"
    lines = [Line(f"{long}-{i}", "qa_f1") for i in range(24)]
    columns = [Column("demo", f"m{i}@budget=0.25") for i in range(6)]
    cells = {(line, column): Cell(float(i), n=5) for line in lines for i, column in enumerate(columns)}
    text = latex.render(Report(tuple(lines), tuple(columns), cells))
    parts, pages = text.count("\\begin{tabular}"), text.count("\\begin{table}")
    assert (parts, pages) == (3, 3)  # a heading of 47 letters is as tall as twenty rows


def test_columns_that_are_empty_in_all_rows_are_left_out(tmp_path: Path) -> None:
    text = latex.render(run_with_everything(tmp_path / "r"))
    for part in tabulars(text):
        for column in list(zip(*[row for row in part if len(row) == len(part[0])], strict=True))[1:]:
            assert any(column[1:]), column


def test_tables_longer_than_a_page_go_on() -> None:
    models = tuple(f"model{i}" for i in range(6))
    report = table({"qasper": [float(i) for i in range(15)]}, models)
    text = latex.render(report)
    assert text.count("\\begin{table}") == 2
    assert [len(part) <= 51 for part in tabulars(text)] == [True] * 2
    for model in models:
        assert f"\\textit{{{model}}}" in text
    names = [row[0] for part in tabulars(text) for row in part if row[0].startswith("m") and len(row) > 1]
    assert names == [f"m{i}" for i in range(15)] * 6
    second = tabulars(text)[1]
    assert "model3" in second[1][0]  # the model that goes on is named again


def test_a_tie_of_all_methods_is_not_bold() -> None:
    text = latex.render(table({"qasper": [0.0, 0.0, 0.0], "lcc": [1.0, 1.0, 0.5]}))
    rows = tabulars(text)[0][1:]
    assert [row[1] for row in rows] == ["0.00"] * 3
    assert [row[2] for row in rows] == ["\\textbf{1.00}", "\\textbf{1.00}", "\\underline{0.50}"]


def test_hostile_names_are_printed_as_they_are() -> None:
    text = latex.render(hostile_report())
    body = "\n".join(line for line in text.split("\n") if not line.startswith("%"))
    assert "\\textless{}script\\textgreater{}" in body
    assert not re.search(r"(?<!\\)[#$%&_~^](?!\\times|\^\{\*\}|\$)", body.replace(" & ", " ").replace("%\n", "\n"))
    signs = r"\ { } $ & # % _ ~ ^ < > | -- ` ' 中 é ą 😀 ÷"
    assert latex._text(signs).endswith("U+4E2D é U+0105 U+1F600 U+00F7")
    assert "\n" not in latex.render(table({"x\ny": [1.0, 2.0]})).split("\\toprule\n")[1].split(" \\\\")[0]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_it_compiles(tmp_path: Path) -> None:
    reports = (hostile_report(), made_report(3, tasks=9), merged_variants())
    tables = [latex.render(report, latex.EXTRAS) for report in reports]
    source = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}" + "\n".join(tables)
    (tmp_path / "x.tex").write_text(source + "\\end{document}", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_long_names_stay_on_the_page(tmp_path: Path) -> None:
    long = "Org/" + "-".join(["Very-Long-Name"] * 8)
    options = "budget=0.123456789012345678901234567890,window=32,kernel=7,pooling=max,reduce=mean,granularity=query"
    columns = tuple(Column(model, f"snapkv@{options},n={i}") for model in (long, "demo") for i in range(9))
    lines = tuple(Line(f"passkey@lengths=256/512/1024/2048/4096,repeats={i},max_new_tokens=1") for i in (1, 2))
    cells = {(line, c): Cell(50.0, 40.0, 60.0, n=4) for line in lines for c in columns}
    several = latex.render(Report(lines, columns, cells), latex.EXTRAS)
    one = latex.render(Report(lines, columns[:1], {k: v for k, v in cells.items() if k[1] == columns[0]}))
    packages = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n"
    (tmp_path / "x.tex").write_text(f"{packages}{several}{one}\\end{{document}}", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "too large" not in done.stdout
    assert several.count("snapkv@") >= 18


def test_captions_of_longscores_name_tasks_as_the_first_table_does(tmp_path: Path) -> None:
    cells = [(n, d / 10, 0) for n in (256, 512) for d in range(4)]
    task = "passkey@lengths=256/512,depths=4,repeats=1"
    run = make(tmp_path / "r", {(m, task): [passkey(*c, found=True) for c in cells] for m in ("full", "kivi")})
    run.write_scores(score_run(run, ScoreOptions(longscore=LongScoreOptions(wanted=True))))
    text = latex.render(build([run]))
    captions = re.findall(r"\\caption\{(.*)\}", text)
    assert any(caption.startswith("Two rankings: passkey, over") for caption in captions)
    assert not any("@" in caption for caption in captions)


def run_with_everything(path: Path) -> Report:
    cells = [(n, d / 10, 0) for n in (256, 512, 1024) for d in range(11)]
    records = {
        (m, "passkey"): [passkey(*c, found=m == "full" or c[0] < 1024) for c in cells] for m in ("full", "h2o_x")
    }
    run = make(path, records)
    run.write_scores(score_run(run, ScoreOptions(longscore=LongScoreOptions(wanted=True))))
    row = {"method": "h2o_x", "prompt_tokens": 64, "batch": 1, "decode_tokens_per_second": 9.0, "kv_bytes": 1e6}
    run.append_efficiency({**row, "model": "demo"})
    return build([run])


def test_longscores_and_speeds_are_tables_of_their_own(tmp_path: Path) -> None:
    text = latex.render(run_with_everything(tmp_path / "r"))
    assert text.split("\n")[0] == "% \\usepackage{booktabs}"
    assert text.count("\\begin{table}") == text.count("\\end{table}") >= 4
    assert "Two rankings" in text
    assert "\\caption{Speed and memory, each method alone.}" in text
    labels = re.findall(r"\\label\{([^}]*)\}", text)
    assert len(labels) == len(set(labels))
    assert not set("↓▲▼†–") & set("".join(line for line in text.split("\n") if not line.startswith("%")))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_they_compile_too(tmp_path: Path) -> None:
    text = latex.render(run_with_everything(tmp_path / "r"))
    source = f"\\documentclass{{article}}\\usepackage{{booktabs,graphicx}}\\begin{{document}}{text}\\end{{document}}"
    (tmp_path / "x.tex").write_text(source.replace("{document}%", "{document}\n%"), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


# -- Parquet ---------------------------------------------------------------------------------------------------------


def test_parquet_has_the_rows_of_the_csv_with_types() -> None:
    import pyarrow.parquet

    report = made_report(2)
    read = pyarrow.parquet.read_table(io.BytesIO(parquet.render(report)))
    assert read.column_names == list(COLUMNS)
    assert read.to_pylist() == list(flat_rows(report))
    assert str(read.schema.field("score").type) == "double"
    assert str(read.schema.field("n").type) == "int64"
    about = json.loads(read.schema.metadata[b"lcbench"])
    assert about["notes"] == ["only 20 rows a task (--limit 20)"]
    hostile = pyarrow.parquet.read_table(io.BytesIO(parquet.render(hostile_report()))).to_pylist()
    assert hostile[0]["method"] == HOSTILE  # a typed file needs no escapes
    assert parquet.render(table({"x\ud800": [1.0]}))


# -- folding ---------------------------------------------------------------------------------------------------------


def drawn(report: Report, width: int, *, fold: bool) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, force_terminal=False, color_system=None)
    console.print(terminal.render(report, console, fold=fold))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def longbench(tmp_path_factory: pytest.TempPathFactory) -> Report:
    records = {
        (m, t): [right(i, kv_bytes=100 * (k + 1)) if i <= k % 3 else wrong(i, kv_bytes=100 * (k + 1)) for i in range(4)]
        for m in ("full", "kivi@bits=2")
        for k, t in enumerate(ENGLISH)
    }
    return build([make(tmp_path_factory.mktemp("runs") / "r", records)])


def test_many_tasks_fold_into_categories_at_80_columns(longbench: Report) -> None:
    text = drawn(longbench, 80, fold=True)
    assert max(map(len, text.splitlines())) <= 80
    for gone in ("narrativeqa", "hotpotqa", "musique"):
        assert gone not in text
    for kept in ("en/single-doc-qa", "en/multi-doc-qa", "gov_report", "lcc", "--every-task"):
        assert kept in text
    assert "qasper" in drawn(longbench, 80, fold=False)
    wide = drawn(longbench, 200, fold=True)
    assert all(task in wide for task in ENGLISH)


def test_a_folded_category_is_the_mean_of_its_tasks(longbench: Report) -> None:
    report = folded(longbench)
    names = [line.name for line in report.lines if line.kind == "task"]
    assert names == ["en/single-doc-qa", "en/multi-doc-qa", "gov_report", "lcc"]
    line = report.lines[0]
    assert line.metric == "3 tasks"
    cell = report.cells[line, report.columns[0]]
    assert cell.score == pytest.approx((25 + 50 + 75) / 3)
    assert (cell.n, cell.kv_bytes) == (12, 200.0)


def test_few_tasks_are_not_folded(tmp_path: Path) -> None:
    run = make(tmp_path / "r", {(m, t): [right(0)] for m in ("full", "kivi") for t in ENGLISH[:3]})
    assert "narrativeqa" in drawn(build([run]), 60, fold=True)


def test_folding_never_hides_a_score_that_no_category_holds(tmp_path: Path) -> None:
    everything = {("full", t): [wrong(0), wrong(1)] for t in ENGLISH}
    single = {("snapkv", t): [right(0), right(1)] for t in ("qasper", "hotpotqa", "2wikimqa")}
    report = build([make(tmp_path / "a", everything), make(tmp_path / "b", single)])
    folding = folded(report)
    names = [line.name for line in folding.lines if line.kind == "task"]
    assert "qasper" in names
    assert "narrativeqa" in names
    assert "en/multi-doc-qa" in names
    assert "hotpotqa" not in names
    (snapkv,) = [column for column in folding.columns if column.method == "snapkv"]
    multi = [cell.n for (line, column), cell in folding.cells.items() if "multi" in line.name and column == snapkv]
    assert multi == [4]
    shown = {n for (line, _) in folding.cells if line.kind == "task" for n in (line.members or (line.name,))}
    assert shown == {line.name for line in report.lines if line.kind == "task"}


def test_latex_counts_what_is_in_no_score_inside_the_table(tmp_path: Path) -> None:
    made = {("full", "qasper"): [right(0), failed(1)], ("full", "musique"): [], ("h2o", "qasper"): [right(0), right(1)]}
    run = make(tmp_path / "r", made, facts={"musique": {"rows": 3, "skipped": 3}})
    text = latex.render(build([run]))
    inside = text[text.index(r"\begin{tabular}") : text.index(r"\bottomrule")]
    assert "1 failed" in inside
    assert "3 skipped" in inside
    assert "counted below a score" in text
    quiet = make(tmp_path / "q", {("full", "qasper"): [right(0)]})
    assert "counted below" not in latex.render(build([quiet]))
