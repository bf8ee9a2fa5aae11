"""The commands as a user types them, on a tiny model saved as a local folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny import save_tiny

TASK = "passkey@lengths=20/60,depths=3,repeats=1,digits=3,max_new_tokens=5"
PROMPT_BY_PROMPT = (
    "128500KiB"  # little more than one prompt needs: several groups, so that there is work left to break off
)
METHODS = "full,kivi@group_size=32,residual_length=64,streamingllm@budget=64"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture
def arguments(folder: Path) -> list[str]:
    return ["run", "--model", str(folder), "--method", METHODS, "--task", TASK]


def predictions(run: Path) -> dict[str, bytes]:
    return {str(f.relative_to(run)): f.read_bytes() for f in sorted((run / "predictions").rglob("*.jsonl"))}


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for data in predictions(run).values() for line in data.splitlines()]


def test_run_score_report_without_naming_the_run(cli: Callable[..., Any], arguments: list[str]) -> None:
    done = cli(*arguments)
    assert done.code == 0, done.err
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("tiny-llama-passkey")
    found = lines(run)
    assert len(found) == 18
    assert {r["status"] for r in found} == {"ok"}
    assert len({r["pred"] for r in found}) > 6
    scored = cli("score")
    assert scored.code == 0, scored.err
    assert (run / "scores.json").exists()
    assert "passkey" in scored.out
    reported = cli("report", "--format", "json")
    assert reported.code == 0, reported.err
    assert json.loads(reported.out)
    for shape in ("table", "md", "csv"):
        shown = cli("report", "--format", shape)
        assert shown.code == 0, shown.err
        assert "kivi" in shown.out
    again = cli(*arguments)
    assert again.code == 0
    assert "18 were there already" in again.out
    assert lines(run) == found


def test_dry_run_runs_nothing(cli: Callable[..., Any], arguments: list[str]) -> None:
    done = cli(*arguments, "--dry-run")
    assert done.code == 0, done.err
    assert "6 prefills" in done.out
    assert "18 samples" in done.out
    assert "prompt begins" in done.out
    assert not Path("runs").exists()


def test_dry_run_says_each_note_once(cli: Callable[..., Any], folder: Path) -> None:
    task = "passkey@lengths=20/2000,depths=1,repeats=1,max_new_tokens=4"
    done = cli("run", "--model", folder, "--task", task, "--over-length", "skip", "--dry-run")
    assert done.code == 0, done.err
    assert (done.out + done.err).count("longer than the window") == 1, done.out + done.err


def test_run_json_keeps_the_notes_of_every_method(cli: Callable[..., Any], folder: Path) -> None:
    task = "passkey@lengths=20/2000,depths=1,repeats=1,max_new_tokens=2"
    done = cli("run", "--model", folder, "--task", task, "--method", "full,infllm,lift@epochs=0", "--out", "out")
    assert done.code == 1, done.err
    (facts,) = json.loads(Path("out/run.json").read_text())["provenance"]["tasks"].values()
    too_long = "2 of 4 prompts are longer than the window and will be errors"
    assert {too_long, "lift@epochs=0: 2 of 4 prompts are cut in the middle to fit the window"} <= set(facts["notes"])
    assert any(note.startswith("infllm") for note in facts["notes"])
    assert len(facts["notes"]) == len(set(facts["notes"]))


def test_yaml_and_command_line(cli: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "study.yaml"
    config.write_text(f"model: {folder}\nmethods: [full, kivi]\ntask: '{TASK}'\nset: {{bits: 4}}\nlimit: 1\n")
    done = cli("run", "--config", config, "--limit", 2, "--out", "out")
    assert done.code == 0, done.err
    spec = json.loads(Path("out/run.json").read_text())["spec"]
    assert spec["methods"] == ["full", "kivi@bits=4"]
    assert spec["limit"] == 2
    assert len(lines(Path("out"))) == 4


def test_a_prompt_beyond_the_window_is_an_error_row(cli: Callable[..., Any], folder: Path) -> None:
    task = "passkey@lengths=20/2000,depths=1,repeats=1,max_new_tokens=4"
    done = cli("run", "--model", folder, "--task", task, "--out", "out")
    assert done.code == 1
    assert "window" in done.out
    assert "another try would not change; --over-length says what to do" in done.out
    assert "run the same command" not in done.out
    assert [r["status"] for r in lines(Path("out"))] == ["ok", "ok", "error", "error"]
    scored = cli("score", "out")
    assert scored.code == 1, scored.err  # counted and shown, in no mean
    assert "2" in scored.out
    skipped = cli("run", "--model", folder, "--task", task, "--out", "skip", "--over-length", "skip")
    assert skipped.code == 0, skipped.err
    assert all(r["status"] == "ok" for r in lines(Path("skip")))
    assert "skipped" in skipped.err
    facts = json.loads(Path("skip/run.json").read_text())["provenance"]["tasks"]
    (own,) = facts.values()
    assert own["skipped_by_method"] == {"full": {"rows": 2, "lengths": {"2000": 2}}}
    counted = cli("score", "skip", "--longscore")
    assert counted.code == 0, counted.err
    assert "No sample was scored at 2000 (2 longer than the window and skipped)" in " ".join(counted.out.split())


def test_a_changed_spec_is_refused_and_shown(cli: Callable[..., Any], arguments: list[str]) -> None:
    assert cli(*arguments, "--out", "out", "--limit", 1).code == 0
    before = predictions(Path("out"))
    done = cli(*arguments, "--out", "out", "--limit", 2)
    assert done.code == 2
    assert "limit: was 1, now 2" in done.err
    assert predictions(Path("out")) == before


def test_a_second_process_is_refused_and_ctrl_c_says_how_to_go_on(
    arguments: list[str], tmp_path: Path, cli: Callable[..., Any]
) -> None:
    run = tmp_path / "shared"
    asked = [*arguments, "--out", str(run), "--group-memory", PROMPT_BY_PROMPT]
    first = _start(asked)
    _wait_for_records(first, run, 3)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        held = predictions(run)
        second = cli(*asked)
        assert predictions(run) == held
        first.send_signal(signal.SIGINT)  # comes when it goes on, in the middle of its work
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert second.code == 2
    assert "Traceback" not in second.err
    assert str(first.pid) in second.err
    out, err = first.communicate(timeout=120)
    assert first.returncode == 130, err
    assert "To continue, run the same command" in out
    assert "Traceback" not in err
    assert 3 <= len(lines(run)) < 18  # whole lines
    assert cli(*asked).code == 0
    assert len(lines(run)) == 18


def test_kill_at_any_moment_and_the_run_ends_the_same(
    arguments: list[str], tmp_path: Path, cli: Callable[..., Any]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    asked = [*arguments, "--group-memory", PROMPT_BY_PROMPT, "--out"]
    assert cli(*asked, whole).code == 0
    for records in (1, 9):  # a new run; one that goes on
        process = _start([*asked, str(broken)])
        _wait_for_records(process, broken, records)
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL, "it ended before it could be killed"
    (torn,) = (broken / "predictions" / "full").glob("*.jsonl")
    with torn.open("ab") as file:
        file.write(b'{"pred": "torn')  # what a kill in the middle of a write leaves
    done = cli(*asked, broken)
    assert done.code == 0, done.err
    assert "unfinished last line" in done.err
    assert predictions(broken) == predictions(whole)


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lcbench", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait_for_records(process: subprocess.Popen[str], run: Path, wanted: int) -> None:
    """Until so many records are on the disk, or the process has ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if sum(data.count(b"\n") for data in predictions(run).values()) >= wanted:
            return
        time.sleep(0.005)
