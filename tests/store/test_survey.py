"""States of run directories, and `lcbench runs`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lcbench.cli import app
from lcbench.errors import NotARun, UnknownName
from lcbench.store.lock import is_locked
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord
from lcbench.store.survey import find_runs, survey


def made(path: Path, *, good: int = 0, bad: int = 0, rows: int | None = 2, **spec: Any) -> Path:
    resolved = {"model": {"name": "demo"}, "methods": ["full", "kivi"], "tasks": ["qasper"], **spec}
    facts = {} if rows is None else {"tasks": {"qasper": {"rows": rows}}}
    with RunDirectory.create_or_continue(path, resolved, facts) as run:
        for method in ("full", "kivi"):
            for i in range(good):
                run.append(method, "qasper", PredictionRecord("a", ["a"], None, 1, str(i)))
            for i in range(bad):
                error = PredictionRecord("", ["a"], None, 1, f"e{i}", status="error", error="out of memory")
                run.append(method, "qasper", error)
    return path


@pytest.mark.parametrize(
    ("options", "state", "counts"),
    [
        ({"good": 2}, "finished", (4, 0, 4)),
        ({"good": 1}, "unfinished", (2, 0, 4)),
        ({}, "unfinished", (0, 0, 4)),
        ({"good": 1, "bad": 1}, "failing", (2, 2, 4)),
        ({"good": 1, "rows": None}, "finished", (2, 0, None)),
        ({"good": 1, "over_length": "skip"}, "finished", (2, 0, None)),
    ],
)
def test_states(tmp_path: Path, options: dict[str, Any], state: str, counts: tuple[int, int, int | None]) -> None:
    found = survey(made(tmp_path / "r", **options))
    assert found.state == state
    assert (found.done, found.failed, found.wanted) == counts
    assert (found.model, found.methods, found.tasks, found.scored) == ("demo", ("full", "kivi"), ("qasper",), False)


def test_a_sample_that_succeeded_in_the_end_is_no_failure(tmp_path: Path) -> None:
    path = made(tmp_path / "r", good=1, bad=1)
    run = RunDirectory.open(path)
    with RunDirectory.create_or_continue(path, run.spec, run.provenance) as again:
        for method in ("full", "kivi"):
            again.append(method, "qasper", PredictionRecord("a", ["a"], None, 1, "e0"))
    assert survey(path).state == "finished"


def test_a_run_that_is_being_written_is_running(tmp_path: Path) -> None:
    path = made(tmp_path / "r", good=1)
    run = RunDirectory.open(path)
    pid = -1
    assert not is_locked(path)
    with RunDirectory.create_or_continue(path, run.spec, run.provenance):
        pid = os.fork() if hasattr(os, "fork") else -1
        if pid == 0:  # another process asks
            os._exit(0 if survey(path).state == "running" else 1)
        if pid > 0:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert survey(path).state == "unfinished"
    assert not is_locked(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_broken_runs_are_told_and_not_raised(tmp_path: Path) -> None:
    path = made(tmp_path / "r", good=1)
    RunDirectory.open(path).predictions_path("full", "qasper").write_text("nonsense\n")
    found = survey(path)
    assert found.state == "broken"
    assert "line 1" in found.problem
    (path / "run.json").write_text("{")
    assert survey(path).state == "broken"


def test_runs_are_found_below_folders_once(tmp_path: Path) -> None:
    a, b = made(tmp_path / "x/a"), made(tmp_path / "x/y/b")
    made(tmp_path / "x/y/z/deeper/c")
    made(tmp_path / "x/.hidden")
    assert list(find_runs([tmp_path / "x", tmp_path / "x/a"])) == [a, b]
    assert list(find_runs([a])) == [a]


def call(*words: str) -> Any:
    return CliRunner().invoke(app, ["runs", *words])


@pytest.mark.parametrize("width", [80, 200])
def test_the_command_lists_runs(tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)
    assert "No runs in runs/" in call().stdout
    made(Path("runs/demo-passkey@lengths-256-512-kivi@bits-2-streamingllm-0a1b2c"), good=2)
    made(Path("runs/bad"), good=1, bad=1)
    result = call()
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert any("finished" in line and "4/4" in line for line in lines)
    assert any(line.startswith("runs/bad") and "failing" in line and "2/4" in line for line in lines)
    assert ("demo  " in result.stdout) == (width == 200)
    assert "Next:    lcbench report runs/" in result.stdout
    data = json.loads(call("--json", "--state", "failing").stdout)
    assert [one["path"] for one in data] == ["runs/bad"]
    assert (data[0]["failed"], data[0]["done"]) == (2, 2)
    assert isinstance(call("--state", "done").exception, UnknownName)
    assert isinstance(call("nowhere").exception, NotARun)
    assert "No broken runs in runs/" in call("--state", "broken").stdout
