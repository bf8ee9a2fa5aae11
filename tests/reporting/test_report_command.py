"""`lcbench report` as a user calls it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lcbench.cli import app
from lcbench.errors import CannotWrite, LcbenchError, NotARun, UnknownName
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord


@pytest.fixture
def run() -> Path:
    path = Path("runs/demo-run")
    spec = {"model": {"name": "demo"}, "methods": ["full", "kivi@bits=2"], "tasks": ["qasper"], "limit": 2}
    with RunDirectory.create_or_continue(path, spec, {"model": {"name": "demo"}}) as opened:
        for method in opened.methods:
            for i in range(2):
                record = PredictionRecord("Paris", ["Paris"], None, 3, str(i), kv_bytes=100, kv_bytes_full=700)
                opened.append(method, "qasper", record)
    return path


def call(*words: str) -> Any:
    return CliRunner().invoke(app, ["report", *words])


def test_the_latest_run_as_a_table(run: Path) -> None:
    result = call()
    assert result.exit_code == 0, result.output
    assert "kivi" in result.stdout
    assert "100.00" in result.stdout
    assert "7.00x" in result.stdout
    assert "--limit 2" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_every_file_format_is_pure_on_stdout(run: Path) -> None:
    data = json.loads(call(str(run), "--format", "json").stdout)
    assert [c["score"] for c in data["cells"]] == [100.0, 100.0]
    rows = list(csv.DictReader(io.StringIO(call(str(run), "-f", "csv").stdout)))
    assert [row["ratio"] for row in rows] == ["7.0000", "7.0000"]
    markdown = call(str(run), "-f", "md").stdout
    assert "| qasper | qa_f1 | 2 | 0 | 100.00" in markdown
    for text in (json.dumps(data), markdown, rows[0]["notes"]):
        assert "--limit 2" in text


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("x.md", "Score"),
        ("x.csv", "model,"),
        ("x.json", "{"),
        ("x.txt", "task"),
        ("x.tex", "%"),
        ("x.html", "<!DOCTYPE html>"),
    ],
)
def test_a_file_is_written_in_the_format_of_its_name(run: Path, name: str, begins: str) -> None:
    result = call(str(run), "--out", name)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert f"Written: {name}" in result.stderr
    assert Path(name).read_text(encoding="utf-8").startswith(begins)
    again = call(str(run), "--out", name, "--format", "json")
    if name in ("x.json", "x.txt"):
        assert again.exit_code == 0
        assert Path(name).read_text(encoding="utf-8").startswith("{")
    else:
        assert f"{name} is named as" in str(again.exception)
        assert Path(name).read_text(encoding="utf-8").startswith(begins)


def test_parquet_goes_to_a_file_or_a_pipe(run: Path) -> None:
    assert call(str(run), "--out", "x.parquet").exit_code == 0
    assert Path("x.parquet").read_bytes()[:4] == b"PAR1"
    assert call(str(run), "--format", "parquet").stdout_bytes[:4] == b"PAR1"


def test_extras_belong_to_latex(run: Path) -> None:
    assert "$n$" in call(str(run), "-f", "latex", "--with", "n,interval").stdout
    assert "Known: interval, n" in problem(str(run), "-f", "latex", "--with", "std").next_step
    assert "--format latex" in problem(str(run), "--with", "n").next_step


def problem(*words: str) -> LcbenchError:
    result = call(*words)
    assert isinstance(result.exception, LcbenchError), result.output
    return result.exception


def test_mistakes_are_named(run: Path, tmp_path: Path) -> None:
    unknown = problem(str(run), "--format", "jsn")
    assert isinstance(unknown, UnknownName)
    assert "json" in unknown.next_step
    assert isinstance(problem("nowhere"), NotARun)
    Path("plain").mkdir()
    assert isinstance(problem("plain"), NotARun)
    assert isinstance(problem(str(run), "--out", "no/such/folder/x.md"), CannotWrite)
    assert isinstance(problem(str(run), "--out", "plain"), CannotWrite)


def test_without_any_run(tmp_path: Path) -> None:
    assert isinstance(problem(), NotARun)


@pytest.mark.parametrize(
    "words", [["report", "--format", "csv"], ["report", "--format", "html"], ["compare", "full", "kivi@bits=2"]]
)
def test_reports_need_no_torch(run: Path, words: list[str]) -> None:
    code = (
        "import sys\nfrom lcbench.cli import app\n"
        f"try:\n    app({words!r})\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
