"""Full disks and folders that may not be written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from lcbench.errors import CannotWrite
from lcbench.store.files import write_json
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

SPEC: dict[str, Any] = {"methods": ["m"], "tasks": ["t"]}
MakeRecord = Callable[..., PredictionRecord]

# A file-size limit makes the kernel write half a line and then refuse, as a full disk does.
LIMITED = """
import resource, sys
from lcbench.errors import CannotWrite
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord
with RunDirectory.create_or_continue(sys.argv[1], {"methods": ["m"], "tasks": ["t"]}, {}) as run:
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
    try:
        for i in range(100):
            run.append("m", "t", PredictionRecord("x" * 3000, ["a"], None, 1, str(i)))
    except CannotWrite as error:
        print(len(run.records("m", "t")), error.message)
"""


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "r")], capture_output=True, text=True)
    file = tmp_path / "r/predictions/m/t.jsonl"
    assert done.stdout == f"3 No space left to write {file}.\n"
    assert done.stderr == ""
    content = file.read_bytes()
    assert content.endswith(b"\n")
    assert content.count(b"\n") == 3
    with RunDirectory.create_or_continue(tmp_path / "r", SPEC, {}) as run:
        assert run.repaired == []
        assert run.done("m", "t") == {"0", "1", "2"}


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_no_space_at_any_step_leaves_whole_lines(
    tmp_path: Path, call: str, record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDirectory.create_or_continue(tmp_path / "r", SPEC, {}) as run:
        run.append("m", "t", record(1))
        before = run.predictions_path("m", "t").read_bytes()
        real_write = os.write
        calls = []

        def full_write(fd: int, data: Any) -> int:
            calls.append(fd)
            if len(calls) == 1:
                return real_write(fd, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

        def full_sync(fd: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, call, full_write if call == "write" else full_sync)
            with pytest.raises(CannotWrite, match="No space left") as caught:
                run.append("m", "t", record(2))
        assert "continues" in caught.value.next_step
        assert run.predictions_path("m", "t").read_bytes() == before
        run.append("m", "t", record(2))
        assert run.done("m", "t") == {"1", "2"}


def test_scores_stay_whole_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunDirectory.create_or_continue(tmp_path / "r", SPEC, {}).close()
    run = RunDirectory.open(tmp_path / "r")
    run.write_scores({"a": 1})

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CannotWrite, match=r"scores\.json"):
            run.write_scores({"a": 2})
    assert run.scores() == {"a": 1}
    assert not list(run.path.glob(".scores*"))


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder in which this process may read but not write, also when the tests run as root."""
    here = os.getcwd()
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        os.chdir(folder)
        yield Path(folder)
        if os.geteuid() != os.getuid():
            os.seteuid(os.getuid())
        for path in [Path(folder), *Path(folder).rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
        os.chdir(here)


def _drop_rights(folder: Path) -> None:
    folder.chmod(0o555)
    if os.getuid() == 0:
        os.seteuid(65534)


def test_a_folder_that_may_not_be_written(as_nobody: Path) -> None:
    _drop_rights(as_nobody)
    with pytest.raises(CannotWrite, match=r"Cannot write .*run: Permission denied") as caught:
        RunDirectory.create_or_continue(as_nobody / "run", SPEC, {})
    assert "--out" in caught.value.next_step


def test_a_read_only_run_can_be_read_but_not_continued(as_nobody: Path, record: MakeRecord) -> None:
    with RunDirectory.create_or_continue(as_nobody / "run", SPEC, {}) as run:
        run.append("m", "t", record(1))
    (as_nobody / "run/.lock").chmod(0o444)
    _drop_rights(as_nobody / "run")
    assert RunDirectory.open(as_nobody / "run").done("m", "t") == {"1"}
    with pytest.raises(CannotWrite, match="Permission denied"):
        RunDirectory.create_or_continue(as_nobody / "run", SPEC, {})
    with pytest.raises(CannotWrite, match="Permission denied"):
        RunDirectory.open(as_nobody / "run").write_scores({})


def test_a_run_json_that_may_not_be_read_says_so(as_nobody: Path) -> None:
    from lcbench.errors import NotARun

    RunDirectory.create_or_continue(as_nobody / "run", SPEC, {}).close()
    (as_nobody / "run/run.json").chmod(0)
    _drop_rights(as_nobody / "run")
    with pytest.raises(NotARun, match="Permission denied"):
        RunDirectory.open(as_nobody / "run")
