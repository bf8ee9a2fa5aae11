"""Runs that are really killed, and torn files of every kind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcbench.store.jsonl import cut_torn, read_lines, torn_bytes
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

MakeRecord = Callable[..., PredictionRecord]

WRITER = textwrap.dedent(
    """
    import sys
    from lcbench.store.rundir import RunDirectory
    from lcbench.store.schema import PredictionRecord

    spec = {"methods": ["full", "kivi@bits=2"], "tasks": ["qasper", "passkey"]}
    with RunDirectory.create_or_continue(sys.argv[1], spec, {}) as run:
        print("begun", flush=True)
        for task in run.tasks:
            done = {method: run.done(method, task) for method in run.methods}
            for sample in range(40):
                for method in run.methods:
                    if str(sample) in done[method]:
                        continue
                    failed = sample % 13 == 5
                    run.record_timing(method, task, str(sample), {"decode": 0.5})
                    run.append(method, task, PredictionRecord(
                        pred="" if failed else f"{task} {method} {sample} \\u7b54 " * 2000,
                        answers=["x"], all_classes=None, length=1, id=str(sample),
                        status="error" if failed else "ok", error="too long" if failed else None,
                    ))
    """
)


def _predictions(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted((path / "predictions").rglob("*.jsonl"))}


def test_a_run_killed_again_and_again_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    command = [sys.executable, str(script)]
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    whole_seconds = time.monotonic() - began
    chance = random.Random(2)
    killed = 0
    partial = set()
    for _ in range(60):
        child = subprocess.Popen([*command, str(tmp_path / "broken")], stdout=subprocess.PIPE)
        assert child.stdout is not None
        if killed < 8:
            # Some die while they start, most while they write.
            if chance.random() < 0.8:
                child.stdout.readline()
            time.sleep(chance.random() * whole_seconds / 20)
            os.kill(child.pid, signal.SIGKILL)
        code = child.wait()
        child.stdout.close()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        if (tmp_path / "broken/predictions").exists():
            partial.add(sum(len(data) for data in _predictions(tmp_path / "broken").values()))
    assert code == 0
    assert killed >= 5
    assert len(partial) >= 3  # kills did fall into the writing
    assert _predictions(tmp_path / "broken") == _predictions(tmp_path / "whole")
    run = RunDirectory.open(tmp_path / "broken")
    assert len(run.done("full", "qasper")) == 37
    assert set(run.timings("full", "qasper")) == {str(i) for i in range(40)}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_cut_at_any_byte_ends_like_a_whole_one(data: st.DataObject) -> None:
    spec = {"methods": ["m"], "tasks": ["t"]}
    texts = data.draw(st.lists(st.text(max_size=40), min_size=1, max_size=6), label="predictions")
    records = [PredictionRecord(text, [text], None, 1, str(i)) for i, text in enumerate(texts)]
    with TemporaryDirectory() as folder:
        with RunDirectory.create_or_continue(Path(folder) / "r", spec, {}) as run:
            for record in records:
                run.append("m", "t", record)
        file = run.predictions_path("m", "t")
        whole = file.read_bytes()
        cut = data.draw(st.integers(0, len(whole)), label="cut")
        junk = data.draw(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), label="junk")
        file.write_bytes(whole[:cut] + junk)
        torn = len(whole[:cut] + junk) - (whole[:cut].rfind(b"\n") + 1)
        kept = [r.id for r in RunDirectory.open(run.path).records("m", "t")]
        with RunDirectory.create_or_continue(run.path, spec, {}) as run:
            assert [r.id for r in run.records("m", "t")] == kept
            assert len(run.repaired) == (1 if torn else 0)
            if torn:
                assert f" {torn} bytes" in run.repaired[0]
                assert "predictions/m/t.jsonl" in run.repaired[0]
            done = run.done("m", "t")
            for record in records:
                if record.id not in done:
                    run.append("m", "t", record)
        assert file.read_bytes() == whole


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200), block=st.sampled_from([1, 2, 3, 7, 65536]))
def test_the_torn_part_is_what_follows_the_last_newline(content: bytes, block: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("lcbench.store.jsonl._BLOCK", block)
        file = Path(folder) / "x.jsonl"
        file.write_bytes(content)
        expected = content[: content.rfind(b"\n") + 1]
        assert torn_bytes(file) == len(content) - len(expected)
        assert cut_torn(file) == len(content) - len(expected)
        assert file.read_bytes() == expected
        assert cut_torn(file) == 0


def test_no_file_is_an_empty_file(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "none")) == []
    assert cut_torn(tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()


def test_torn_timings_and_efficiency_are_repaired_too(tmp_path: Path, spec: dict[str, Any], record: MakeRecord) -> None:
    with RunDirectory.create_or_continue(tmp_path / "r", spec, {}) as run:
        run.record_timing("full", "qasper", "a", {"decode": 1})
        run.append_efficiency({"n": 1})
    for name in ("timings/full/qasper.jsonl", "efficiency.jsonl"):
        with open(run.path / name, "ab") as file:
            file.write(b'{"_id": "b", "dec')
    assert run.timings("full", "qasper") == {"a": {"decode": 1.0}}
    assert run.efficiency() == [{"n": 1}]
    with RunDirectory.create_or_continue(tmp_path / "r", spec, {}) as run:
        assert run.repaired == ["timings/full/qasper.jsonl: cut off an unfinished last line of 17 bytes."]
        run.record_timing("full", "qasper", "b", {"decode": 2})
        run.append_efficiency({"n": 2})
        assert run.timings("full", "qasper") == {"a": {"decode": 1.0}, "b": {"decode": 2.0}}
        assert run.efficiency() == [{"n": 1}, {"n": 2}]


def test_ctrl_c_inside_a_write_leaves_whole_lines(
    tmp_path: Path, spec: dict[str, Any], record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDirectory.create_or_continue(tmp_path / "r", spec, {}) as run:
        run.append("full", "qasper", record(1))
        before = run.predictions_path("full", "qasper").read_bytes()

        def interrupt(fd: int) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run.append("full", "qasper", record(2))
        assert run.predictions_path("full", "qasper").read_bytes() == before
        run.append("full", "qasper", record(2))
        assert [json.loads(line)["_id"] for line in run.predictions_path("full", "qasper").open()] == ["1", "2"]


def test_every_record_and_every_new_folder_is_synced(
    tmp_path: Path, spec: dict[str, Any], record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name what was synced")
    with RunDirectory.create_or_continue(tmp_path / "r", spec, {}) as run:
        monkeypatch.setattr(os, "fsync", note)
        file = run.predictions_path("full", "qasper")
        run.append("full", "qasper", record(1))
        assert set(synced) == {str(path) for path in (file, file.parent, file.parent.parent, run.path)}
        synced.clear()
        run.append("full", "qasper", record(2))
        assert synced == [str(file)]
