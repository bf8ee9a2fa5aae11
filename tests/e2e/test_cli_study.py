"""A study from a file, and what a run says while it goes on, on tiny models saved as local folders."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny import save_tiny

TASK = "passkey@lengths=20/60,depths=2,repeats=1,digits=3,max_new_tokens=5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny-llama", layers=2)


@pytest.fixture
def study(folder: Path) -> Path:
    file = Path("study.yaml")
    models = [str(folder), {"name": str(folder), "dtype": "bfloat16"}]
    asked = {"models": models, "methods": ["full", "snapkv@window=8"], "budgets": [0.5, 64], "tasks": [TASK]}
    file.write_text(yaml.safe_dump({**asked, "out": "both"}))
    return file


def predictions(run: Path) -> dict[str, bytes]:
    return {str(f.relative_to(run)): f.read_bytes() for f in sorted((run / "predictions").rglob("*.jsonl"))}


def test_a_study_is_a_run_a_model_and_goes_on(cli: Callable[..., Any], study: Path, folder: Path) -> None:
    done = cli("run", "--config", study)
    assert done.code == 0, done.err
    runs = sorted(Path("both").iterdir())
    assert len(runs) == 2
    assert [run.name for run in runs] == ["tiny-llama", "tiny-llama-dtype-bfloat16"]
    for run in runs:
        spec = json.loads((run / "run.json").read_text())["spec"]
        assert spec["methods"] == ["full", "snapkv@budget=0.5,window=8", "snapkv@budget=64,window=8"]
        assert "budgets" not in spec
        assert len(predictions(run)) == 3
    assert done.out.count("Done: 12 samples") == 2
    assert f"Next:  lcbench report {runs[0]} {runs[1]}\n" in done.out
    before = [predictions(run) for run in runs]
    again = cli("run", "--config", study)
    assert again.out.count("12 were there already") == 2
    assert [predictions(run) for run in runs] == before
    changed = cli("run", "--config", study, "--limit", 1)
    assert changed.code == 2
    assert "limit: was not set, now 1" in changed.err


def test_the_stored_file_repeats_the_run(cli: Callable[..., Any], folder: Path) -> None:
    asked = ["run", "--model", folder, "--method", "full,snapkv@window=8", "--budget", "0.5", "--task", TASK]
    assert cli(*asked, "--limit", 2, "--out", "first").code == 0
    stored = Path("first/config.yaml").read_text()
    assert yaml.safe_load(stored)["methods"] == ["full", "snapkv@budget=0.5,window=8"]
    done = cli("run", "--config", "first/config.yaml", "--out", "second")
    assert done.code == 0, done.err
    assert predictions(Path("second")) == predictions(Path("first"))
    assert Path("second/config.yaml").read_text() == stored


def test_a_mistake_in_the_last_model_is_told_before_the_first_runs(cli: Callable[..., Any], folder: Path) -> None:
    Path("s.yaml").write_text(f"models: ['{folder}', ./nowhere]\ntasks: ['{TASK}']\nout: both\n")
    done = cli("run", "--config", "s.yaml")
    assert done.code == 2
    assert "nowhere" in done.err
    assert not Path("both").exists()


def test_budgets_that_no_method_takes_are_refused(cli: Callable[..., Any], folder: Path) -> None:
    done = cli("run", "--model", folder, "--method", "full", "--budget", "0.5")
    assert done.code == 2
    assert "no chosen method has it" in done.err


def test_the_json_log_is_one_object_a_line(
    cli: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    asked = ["run", "--model", folder, "--method", "full,kivi@bits=2", "--task", TASK, "--log", "json"]
    done = cli(*asked, "--out", "hf_secretsecret")
    assert done.code == 0, done.err
    events = [json.loads(line) for line in done.err.splitlines()]
    kinds = [event["event"] for event in events]
    assert {"note", "start", "prefill", "decode", "sample", "group", "done"} == set(kinds)
    samples = [event for event in events if event["event"] == "sample"]
    assert len(samples) == 8
    assert {(e["status"], e["task"]) for e in samples} == {("ok", TASK)}
    assert all(0 <= e["score"] <= 1 and 0 <= e["score_so_far"] <= 100 and e["kv_bytes"] > 0 for e in samples)
    assert not any({"pred", "answers"} & set(event) for event in events)
    assert "hf_secretsecret" not in done.err
    assert (kinds[-1], events[-1]["written"], events[-1]["failed"]) == ("done", 8, 0)
    assert "KV bytes" not in done.out  # no table: stdout says what was done, and the next command
    assert "Next:  lcbench score" in done.out
    wrong = cli("run", "--model", folder, "--method", "kiwi", "--log", "json")
    assert wrong.code == 2
    (line,) = wrong.err.splitlines()
    assert json.loads(line)["event"] == "error"
    assert "kivi" in json.loads(line)["next"]
    assert cli("run", "--log", "xml").code == 2


def test_plain_output_has_a_table_and_no_animation(cli: Callable[..., Any], folder: Path) -> None:
    asked = ["run", "--model", folder, "--method", "full,kivi@bits=2", "--task", TASK, "--out", "out"]
    done = cli(*asked)
    assert "\x1b" not in done.out + done.err
    assert "\r" not in done.out + done.err
    assert re.search(r"kivi@bits=2 +4 +\d+\.\d +\d+\.\d %", done.out)
    quiet = cli(*asked, "--quiet")
    assert quiet.err == ""
    assert "KV bytes" not in quiet.out
    assert "Done: 8 samples" in quiet.out


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo terminal")
def test_a_terminal_shows_bars_and_scores_so_far(folder: Path) -> None:
    shown = _on_a_terminal(["run", "--model", str(folder), "--method", "full,kivi@bits=2", "--task", TASK])
    assert "samples, group" in shown
    assert "so far" in shown
    assert "Traceback" not in shown
    assert "Next:  lcbench score" in shown


def _on_a_terminal(arguments: list[str]) -> str:
    """Everything that ``lcbench ARGUMENTS`` writes to a terminal of 100 columns."""
    import fcntl
    import pty
    import struct
    import subprocess
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "lcbench", *arguments], stdout=theirs, stderr=theirs, stdin=theirs, env=environment
    )
    os.close(theirs)
    pieces = []
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(ours)
    assert process.wait(timeout=120) == 0, b"".join(pieces).decode(errors="replace")
    return b"".join(pieces).decode(errors="replace")
