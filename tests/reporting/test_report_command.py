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


def measured(path: Path, *settings: dict[str, Any]) -> Path:
    """A folder of `lcbench bench` alone."""
    plain = {"kind": "cell", "method": "full", "model": "demo", "prompt_tokens": 384, "batch": 1, "new_tokens": 8}
    plain |= {"status": "ok", "decode_tokens_per_second": 9.0, "samples_per_second": 2.0, "kv_bytes": 10**6}
    with RunDirectory.create_or_continue(path, {"model": {"name": "demo"}, "methods": [], "tasks": []}, {}) as opened:
        for number, setting in enumerate(settings):
            opened.append_efficiency({**plain, "key": str(number), **setting})
    return path


def test_measurements_that_differ_in_a_setting_say_which() -> None:
    limit = {"kind": "max_batch", "max_batch": 12, "memory_bytes": 2**30}
    path = measured(
        Path("b"), {}, {"new_tokens": 32}, {"prefill_chunk": 64}, {"machine": {"words": "two threads"}}, limit,
    )  # fmt: skip
    rows = json.loads(call(str(path), "-f", "json").stdout)["efficiency"]
    settings = [row["setting"] for row in rows]
    assert len(set(settings)) == 4
    assert "8 new" in settings[0]
    assert "32 new" in settings[1]
    assert "chunks of 64" in settings[2]
    assert "two threads" in settings[3]
    assert [row["fits"] for row in rows] == [12, None, None, None]  # asked with 8 new tokens, read whole, there
    assert "32 new" in call(str(path), "-f", "md").stdout
    same = measured(Path("c"), {"measured": "2026-01-01"}, {"measured": "2026-01-02"}, {"batch": 2})
    assert [row["setting"] for row in json.loads(call(str(same), "-f", "json").stdout)["efficiency"]] == [
        "2026-01-01", "2026-01-02", "",
    ]  # fmt: skip
    alone = measured(Path("d"), {}, {"batch": 2})
    assert "setting" not in call(str(alone), "-f", "md").stdout


def test_what_a_table_of_measurements_leaves_out_is_said() -> None:
    path = measured(Path("b"), {"prompt_tokens": 10**6, "model": "m" * 30}, {"model": "n" * 30})
    narrow = call(str(path)).stdout
    assert "for want of room not shown" in narrow
    for name in ("csv", "parquet"):
        assert "scores alone" in call(str(path), "-f", name, "--out", f"t.{name}").stderr


def test_a_folder_of_measurements_is_nothing_to_compare(run: Path) -> None:
    path = measured(Path("b"), {})
    for words in ([path, run], [run, path], [path], [f"{path}::full", f"{run}::full"]):
        result = CliRunner().invoke(app, ["compare", *map(str, words)])
        assert isinstance(result.exception, LcbenchError)
        assert "no predictions" in result.exception.message
        assert "lcbench report b" in result.exception.next_step


def test_measurements_alone_have_a_figure() -> None:
    pytest.importorskip("matplotlib")
    speed = {"step_bytes": 5e8, "limit_tokens_per_second": 16.0, "weight_bytes": 4e8}
    result = call(str(measured(Path("b"), speed, {**speed, "method": "kivi"})), "--figures", "figures")
    assert result.exit_code == 0
    assert sorted(p.name for p in Path("figures").iterdir()) == [f"efficiency.{s}" for s in ("pdf", "png", "svg")]
    assert "no Pareto figure: no predictions" in result.stderr
    assert "no efficiency figure" not in result.stderr
