from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lcbench.errors import CannotWrite, CorruptFile, NotARun, SpecMismatch, StoreError, UsageError
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

Spec = dict[str, Any]
MakeRecord = Callable[..., PredictionRecord]


def start(path: Path, spec: Spec, provenance: Spec) -> RunDirectory:
    return RunDirectory.create_or_continue(path, spec, provenance)


def test_a_new_run_is_written_and_read_back(tmp_path: Path, spec: Spec, provenance: Spec) -> None:
    path = tmp_path / "a" / "b" / "run"
    with start(path, {**spec, "methods": tuple(spec["methods"])}, provenance) as run:
        assert not run.continued
        assert run.methods == ["full", "kivi@bits=2"]
        assert run.tasks == ["qasper", "passkey@digits=64"]
    read = RunDirectory.open(path)
    assert read.info["schema_version"] == 1
    assert read.spec == spec
    assert read.provenance == provenance
    assert read.info["created"].endswith("+00:00")
    assert sorted(p.name for p in path.iterdir() if not p.name.startswith(".lock")) == ["run.json"]


def test_records_are_read_in_order_of_first_appearance_and_the_latest_wins(
    tmp_path: Path, spec: Spec, provenance: Spec, record: MakeRecord
) -> None:
    with start(tmp_path / "r", spec, provenance) as run:
        for sample, changes in [
            ("a", {}),
            ("b", {"status": "error", "error": "out of memory", "pred": ""}),
            ("c", {}),
            ("b", {"pred": "second try"}),
        ]:
            run.append("kivi@bits=2", "qasper", record(sample, **changes))
        assert [r.id for r in run.records("kivi@bits=2", "qasper")] == ["a", "b", "c"]
        assert run.records("kivi@bits=2", "qasper")[1].pred == "second try"
        assert run.done("kivi@bits=2", "qasper") == {"a", "b", "c"}
        assert run.records("full", "qasper") == []
        run.append("kivi@bits=2", "qasper", record("c", status="error", error="x"))
        assert run.done("kivi@bits=2", "qasper") == {"a", "b"}
    lines = (tmp_path / "r/predictions/kivi@bits=2/qasper.jsonl").read_bytes().split(b"\n")
    assert len(lines) == 6
    assert lines[-1] == b""


def test_the_same_error_again_leaves_the_file_alone(
    tmp_path: Path, spec: Spec, provenance: Spec, record: MakeRecord
) -> None:
    failed = record("b", status="error", error="too long", pred="")
    file = tmp_path / "r/predictions/full/qasper.jsonl"
    with start(tmp_path / "r", spec, provenance) as run:
        run.append("full", "qasper", record("a"))
        run.append("full", "qasper", failed)
    before = file.read_bytes()
    with start(tmp_path / "r", spec, provenance) as run:
        run.append("full", "qasper", failed)
        assert file.read_bytes() == before
        run.append("full", "qasper", record("b", status="error", error="another reason", pred=""))
        assert file.read_bytes() != before
        run.append("full", "qasper", failed)  # not the latest any more, so it is written
        assert len(file.read_bytes().splitlines()) == 4


def test_an_error_after_a_good_answer_is_written_even_if_it_was_there_before(
    tmp_path: Path, spec: Spec, provenance: Spec, record: MakeRecord
) -> None:
    failed = record("b", status="error", error="too long", pred="")
    with start(tmp_path / "r", spec, provenance) as run:
        for one in (failed, record("b"), failed):
            run.append("full", "qasper", one)
        assert run.done("full", "qasper") == set()


def test_writing_needs_the_lock_and_a_known_method(
    tmp_path: Path, spec: Spec, provenance: Spec, record: MakeRecord
) -> None:
    with start(tmp_path / "r", spec, provenance) as run:
        with pytest.raises(StoreError, match="h2o on qasper is not part"):
            run.append("h2o", "qasper", record(1))
        with pytest.raises(StoreError, match="not part"):
            run.record_timing("full", "hotpotqa", "1", {})
    for closed in (run, RunDirectory.open(tmp_path / "r")):
        with pytest.raises(StoreError, match="for reading only"):
            closed.append("full", "qasper", record(1))


def test_continuing_keeps_run_json_and_touches_it(tmp_path: Path, spec: Spec, provenance: Spec) -> None:
    start(tmp_path / "r", spec, provenance).close()
    file = tmp_path / "r/run.json"
    before = file.read_bytes()
    os.utime(file, (1000, 1000))
    newer = {**provenance, "lcbench": {"version": "0.2.0", "commit": "bbbb"}, "command": "lcbench run --again"}
    with start(tmp_path / "r", {**spec, "methods": tuple(spec["methods"])}, newer) as run:
        assert run.continued
        assert run.warnings == [
            "lcbench.version: was 0.1.0, now 0.2.0",
            "lcbench.commit: was aaaa, now bbbb",
        ]
        assert run.repaired == []
    assert file.read_bytes() == before
    assert file.stat().st_mtime > 1_000_000


def test_another_spec_is_refused_with_its_differences(tmp_path: Path, spec: Spec, provenance: Spec) -> None:
    start(tmp_path / "r", spec, provenance).close()
    changed = {**spec, "limit": 8, "methods": ["full"], "model": {"name": "demo", "dtype": "float16"}, "new_key": None}
    with pytest.raises(SpecMismatch) as caught:
        start(tmp_path / "r", changed, provenance)
    assert caught.value.message.split("\n")[1:] == [
        "  model.dtype: was auto, now float16",
        "  methods: was full, kivi@bits=2, now full",
        "  limit: was 4, now 8",
    ]
    assert "--out" in caught.value.next_step
    start(tmp_path / "r", spec, provenance).close()  # the refused attempt gave the lock back


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("model", "identity"), "model.identity: was sha256:m1, now other"),
        (("model", "dtype"), "model.dtype: was float32, now other"),
        (("model", "chat_template_sha256"), "model.chat_template_sha256: was c1, now other"),
        (("tasks", "qasper", "data_sha256"), "tasks.qasper.data_sha256: was d1, now other"),
        (("tasks", "qasper", "prompts_sha256"), "tasks.qasper.prompts_sha256: was p1, now other"),
        (("tasks", "qasper", "task_version"), "tasks.qasper.task_version: was 1, now other"),
        (("tasks", "passkey@digits=64", "data_sha256"), "tasks.passkey@digits=64.data_sha256: was empty, now other"),
    ],
)
def test_other_inputs_are_refused(
    tmp_path: Path, spec: Spec, provenance: Spec, path: tuple[str, ...], line: str
) -> None:
    start(tmp_path / "r", spec, provenance).close()
    changed = json.loads(json.dumps(provenance))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = "other"
    with pytest.raises(SpecMismatch) as caught:
        start(tmp_path / "r", spec, changed)
    assert caught.value.message.split("\n")[1:] == [f"  {line}"]


def test_keys_with_spaces_are_identities_too(tmp_path: Path, spec: Spec) -> None:
    start(tmp_path / "r", spec, {"data sha256": {"qasper": "1"}}).close()
    with pytest.raises(SpecMismatch, match=r"data sha256\.qasper: was 1, now 2"):
        start(tmp_path / "r", spec, {"data sha256": {"qasper": "2"}})


def test_a_long_difference_is_bounded(tmp_path: Path, spec: Spec, provenance: Spec) -> None:
    start(tmp_path / "r", {**spec, "set": {f"k{i}": "x" * 500 for i in range(50)}}, provenance).close()
    with pytest.raises(SpecMismatch) as caught:
        start(tmp_path / "r", spec, provenance)
    assert len(caught.value.message) < 2000
    assert caught.value.message.endswith("… and 42 more")


def test_a_broken_line_in_the_middle_stops_and_changes_nothing(
    tmp_path: Path, spec: Spec, provenance: Spec, record: MakeRecord
) -> None:
    path = tmp_path / "r"
    with start(path, spec, provenance) as run:
        for sample in range(3):
            run.append("full", "qasper", record(sample))
            run.append("kivi@bits=2", "passkey@digits=64", record(sample))
    torn = path / "predictions/full/qasper.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"pred": "half')
    broken = path / "predictions/kivi@bits=2/passkey@digits=64.jsonl"
    lines = broken.read_bytes().split(b"\n")
    broken.write_bytes(b"\n".join([lines[0], lines[1][:-5], *lines[2:]]))
    os.utime(path / "run.json", (1000, 1000))
    before = {file: file.read_bytes() for file in path.rglob("*.jsonl")}
    for attempt in (lambda: start(path, spec, provenance), lambda: _all_records(RunDirectory.open(path))):
        with pytest.raises(CorruptFile) as caught:
            attempt()
        assert str(broken) in caught.value.message
        assert "line 2" in caught.value.message
    assert {file: file.read_bytes() for file in path.rglob("*.jsonl")} == before
    assert (path / "run.json").stat().st_mtime == 1000


def _all_records(run: RunDirectory) -> list[PredictionRecord]:
    return [r for method in run.methods for task in run.tasks for r in run.records(method, task)]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[1]",
        b'{"pred": "a"}',
        b'{"pred": "a", "answers": []}',
        b'{"pred": 1, "answers": [], "_id": "x"}',
        b'{"pred": "a", "answers": [], "_id": "x", "kv_bytes": "many"}',
        b'\xff{"pred": "a", "answers": [], "_id": "x"}',
        b"\x00" * 20,
        b"[" * 100_000,
    ],
)
def test_whatever_is_not_a_record_is_named(tmp_path: Path, spec: Spec, line: bytes, record: MakeRecord) -> None:
    with start(tmp_path / "r", spec, {}) as run:
        run.append("full", "qasper", record(1))
        file = run.predictions_path("full", "qasper")
        file.write_bytes(file.read_bytes() + line + b"\n")
        with pytest.raises(CorruptFile, match=r"qasper\.jsonl, line 2: "):
            run.records("full", "qasper")


def test_a_predictions_file_that_is_a_folder(tmp_path: Path, spec: Spec) -> None:
    start(tmp_path / "r", spec, {}).close()
    (tmp_path / "r/predictions/full/qasper.jsonl").mkdir(parents=True)
    with pytest.raises(CorruptFile, match="Cannot read"):
        start(tmp_path / "r", spec, {})


def test_timings_scores_and_efficiency(tmp_path: Path, spec: Spec, provenance: Spec) -> None:
    path = tmp_path / "r"
    with start(path, spec, provenance) as run:
        run.record_timing("full", "qasper", "a", {"prefill": 1.23456789, "decode": 2})
        run.record_timing("full", "qasper", "a", {"prefill": 3.0})
        run.append_efficiency({"method": "full", "tokens": 5})
    read = RunDirectory.open(path)
    read.append_efficiency({"method": "kivi", "tokens": 6})
    assert read.timings("full", "qasper") == {"a": {"prefill": 3.0}}
    assert read.timings("full", "passkey@digits=64") == {}
    assert read.efficiency() == [{"method": "full", "tokens": 5}, {"method": "kivi", "tokens": 6}]
    assert read.scores() is None
    read.write_scores({"tasks": {"qasper": 1.5}})
    read.write_scores({"tasks": {"qasper": 2.5}})
    assert read.scores() == {"tasks": {"qasper": 2.5}}
    assert not (path / "predictions").exists()
    (path / "scores.json").write_text("[]")
    with pytest.raises(CorruptFile, match=r"scores\.json") as caught:
        read.scores()
    assert f"lcbench score {path}" in caught.value.next_step
    (path / "timings/full/qasper.jsonl").write_text('{"_id": "a", "prefill": "fast"}\n')
    with pytest.raises(CorruptFile, match="line 1: not a line of timings"):
        read.timings("full", "qasper")


@pytest.mark.parametrize("content", [None, "", "[]", "{", "{}", '{"schema_version": "1"}', "\x00\x00"])
def test_not_a_run(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    if content is not None:
        (folder / "run.json").write_text(content)
    with pytest.raises(NotARun, match="is not a run directory") as caught:
        RunDirectory.open(folder)
    assert str(folder) in caught.value.message
    assert caught.value.next_step


def test_a_run_json_with_odd_names_is_not_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    for methods in ("full", [1], [""], ["full", "full"], None):
        info = {"schema_version": 1, "spec": {"methods": methods, "tasks": []}, "provenance": {}}
        (folder / "run.json").write_text(json.dumps(info))
        with pytest.raises(NotARun):
            RunDirectory.open(folder)


def test_missing_files_and_newer_runs_are_told_apart(tmp_path: Path, spec: Spec) -> None:
    with pytest.raises(NotARun, match="does not exist"):
        RunDirectory.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotARun, match="is a file"):
        RunDirectory.open(tmp_path / "file")
    start(tmp_path / "r", spec, {}).close()
    info = json.loads((tmp_path / "r/run.json").read_text())
    (tmp_path / "r/run.json").write_text(json.dumps({**info, "schema_version": 2}))
    for attempt in (lambda: RunDirectory.open(tmp_path / "r"), lambda: start(tmp_path / "r", spec, {})):
        with pytest.raises(NotARun, match="newer lcbench") as caught:
            attempt()
        assert "upgrade" in caught.value.next_step.lower()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, spec: Spec) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r/thesis.tex").write_text("x")
    with pytest.raises(NotARun, match=r"holds other files \(such as thesis\.tex\)"):
        start(tmp_path / "r", spec, {})
    assert os.listdir(tmp_path / "r") == ["thesis.tex"]


def test_leftovers_of_a_killed_start_do_not_count_as_other_files(tmp_path: Path, spec: Spec) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r/.lock").touch()
    (tmp_path / "r/.run.json.123.tmp").write_text('{"schema_')
    start(tmp_path / "r", spec, {}).close()
    assert RunDirectory.open(tmp_path / "r").spec == spec
    assert not (tmp_path / "r/.run.json.123.tmp").exists()


def test_a_name_given_twice_is_a_usage_error(tmp_path: Path, spec: Spec) -> None:
    with pytest.raises(UsageError, match="each named once"):
        start(tmp_path / "r", {**spec, "methods": ["full", "full"]}, {})


def test_a_file_in_the_way(tmp_path: Path, spec: Spec) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CannotWrite, match="is a file, not a folder"):
        start(tmp_path / "file", spec, {})
    with pytest.raises(CannotWrite, match="Not a directory"):
        start(tmp_path / "file" / "below", spec, {})


def test_hostile_ids_stay_inside_the_run(tmp_path: Path, record: MakeRecord) -> None:
    spec = {"methods": ["../../up", "a/b@x=1/2"], "tasks": ["..", "100-longbench/kv@16k"]}
    path = tmp_path / "deep" / "r"
    with start(path, spec, {}) as run:
        for method in run.methods:
            for task in run.tasks:
                run.append(method, task, record(f"{method} {task}"))
                assert run.predictions_path(method, task).resolve().is_relative_to((path / "predictions").resolve())
        for method in run.methods:
            for task in run.tasks:
                assert [r.id for r in run.records(method, task)] == [f"{method} {task}"]
    assert len(list(path.rglob("*.jsonl"))) == 4
    assert os.listdir(tmp_path / "deep") == ["r"]
