"""One writer a run directory, also across processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lcbench.errors import RunLocked
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

HOLD = """
import sys
from lcbench.store.rundir import RunDirectory
run = RunDirectory.create_or_continue(sys.argv[1], {"methods": ["m"], "tasks": ["t"]}, {})
print("held", flush=True)
sys.stdin.read()
"""
SPEC: dict[str, Any] = {"methods": ["m"], "tasks": ["t"]}


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "r")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()
    assert child.stdin is not None
    child.stdin.close()


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path, holder: Any) -> None:
    with pytest.raises(RunLocked) as caught:
        RunDirectory.create_or_continue(tmp_path / "r", SPEC, {})
    assert f"process {holder.pid} on {socket.gethostname()}" in caught.value.message
    assert str(tmp_path / "r") in caught.value.message
    assert caught.value.next_step
    with pytest.raises(RunLocked):
        RunDirectory.open(tmp_path / "r").append_efficiency({"n": 1})
    assert RunDirectory.open(tmp_path / "r").records("m", "t") == []
    assert json.loads((tmp_path / "r/.lock.json").read_text())["pid"] == holder.pid


def test_the_lock_of_a_killed_process_is_free(
    tmp_path: Path, holder: Any, record: Callable[..., PredictionRecord]
) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "r/.lock.json").exists()  # it could not tidy up
    with RunDirectory.create_or_continue(tmp_path / "r", SPEC, {}) as run:
        run.append("m", "t", record(1))
        assert json.loads((tmp_path / "r/.lock.json").read_text())["pid"] == os.getpid()


def test_a_holder_that_cannot_be_read_is_another_process(tmp_path: Path, holder: Any) -> None:
    for content in ("", "[]", '{"pid": "x"}'):
        (tmp_path / "r/.lock.json").write_text(content)
        with pytest.raises(RunLocked, match="in use by another process"):
            RunDirectory.create_or_continue(tmp_path / "r", SPEC, {})


def test_one_process_cannot_open_a_run_twice_for_writing(tmp_path: Path) -> None:
    with RunDirectory.create_or_continue(tmp_path / "r", SPEC, {}) as run:
        with pytest.raises(RunLocked, match=f"process {os.getpid()} "):
            RunDirectory.create_or_continue(tmp_path / "r", SPEC, {})
        run.append_efficiency({"n": 1})
    with RunDirectory.create_or_continue(tmp_path / "r", SPEC, {}) as run:
        assert run.efficiency() == [{"n": 1}]
    run.close()
    assert not (tmp_path / "r/.lock.json").exists()


def test_an_exception_inside_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunDirectory.create_or_continue(tmp_path / "r", SPEC, {}):
        raise ZeroDivisionError
    RunDirectory.create_or_continue(tmp_path / "r", SPEC, {}).close()
