"""The run directory: append-only records that survive a kill, one writer, and a run that can be continued.

    RUN/run.json                              what was asked and with what (`RunDirectory.info`), written once
    RUN/config.yaml                           the same, as a file for `lcbench run --config`
    RUN/predictions/<method-id>/<task>.jsonl  one `PredictionRecord` a line
    RUN/timings/<method-id>/<task>.jsonl      seconds of each sample; outside the byte-for-byte guarantee
    RUN/batching.json                         how large groups may be, measured when the run began (`lcbench.engine`)
    RUN/events.jsonl                          what went differently than planned, e.g. running out of memory
    RUN/scores.json                           written by `lcbench score`
    RUN/efficiency.jsonl                      written by `lcbench bench`

docs/run-directory.md is the contract in full.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from lcbench.errors import CorruptFile, SpecMismatch, StoreError, UsageError
from lcbench.store.files import append_line, cannot_write, make_folder, write_json, write_text
from lcbench.store.identity import as_lines, differences, identity_differences, other_differences, plain
from lcbench.store.jsonl import corrupt, cut_torn, read_lines
from lcbench.store.lock import RunLock
from lcbench.store.names import file_name
from lcbench.store.run_file import RUN_FILE, is_names, load_object, read_info, refuse_foreign
from lcbench.store.schema import SCHEMA_VERSION, PredictionRecord

CONFIG_FILE = "config.yaml"
_CONFIG_HEAD = "# What this run was asked, resolved. To ask it again: lcbench run --config config.yaml --out ANOTHER\n"


class RunDirectory:
    """A run on disk. Opened for reading by `open`, for writing (and locked) by `create_or_continue`.

    Use it as a context manager: leaving it gives the lock back. Reading needs no lock, also while another process
    writes.

    Attributes:
        path: the folder.
        info: run.json as it was written: schema_version, created, spec, provenance.
        continued: whether `create_or_continue` found a run there.
        repaired: one sentence for every torn last line that was cut off.
        warnings: one sentence for every difference that does not forbid continuing.
    """

    def __init__(self, path: Path, info: Mapping[str, Any], lock: RunLock | None = None) -> None:
        self.path = path
        self.info: dict[str, Any] = dict(info)
        self.continued = False
        self.repaired: list[str] = []
        self.warnings: list[str] = []
        self._lock = lock
        self._errors: dict[tuple[str, str], dict[str, str]] = {}

    # -- opening -----------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """Open an existing run for reading (and for writing its scores).

        Raises:
            NotARun: nothing there, a file, a folder without a readable run.json, or one of a newer lcbench.
        """
        path = Path(path)
        return cls(path, read_info(path))

    @classmethod
    def create_or_continue(
        cls, path: Path | str, spec: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> RunDirectory:
        """Start a run in ``path``, or go on with the one that is there. Locks it until `close`.

        Args:
            spec: the resolved `RunSpec` as plain JSON types; ``methods`` and ``tasks`` list the ids.
            provenance: what the run stands on. Entries named in `identity.IDENTITY_KEYS` must be the same for a run to
                be continued, other differences are put into `warnings`.

        Raises:
            SpecMismatch: the run there has another spec or other inputs; the message has a ``key: was X, now Y`` line
                for each difference.
            RunLocked: another process is writing to it.
            NotARun: a folder that holds other things, or a broken run.json.
            CorruptFile: a damaged line before the end of a predictions file; nothing is changed then.
            CannotWrite: a file in the way, no permission, no space.
        """
        path = Path(path)
        make_folder(path)
        if not (path / RUN_FILE).exists():
            refuse_foreign(path)
        lock = RunLock(path)
        lock.acquire()
        try:
            run = cls._begin(path, plain(spec), plain(provenance), lock)
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def _begin(cls, path: Path, spec: dict[str, Any], provenance: dict[str, Any], lock: RunLock) -> RunDirectory:
        if not (path / RUN_FILE).exists():
            for leftover in path.glob(f".{RUN_FILE}.*.tmp"):
                with contextlib.suppress(OSError):
                    leftover.unlink()
            created = datetime.now(timezone.utc).isoformat(timespec="seconds")
            info = {"schema_version": SCHEMA_VERSION, "created": created, "spec": spec, "provenance": provenance}
            if not (is_names(spec.get("methods")) and is_names(spec.get("tasks"))):
                raise UsageError("A run needs methods and tasks, each named once.", "Name every method and task once.")
            write_json(path / RUN_FILE, info)
            return cls(path, info, lock)
        run = cls(path, read_info(path), lock)
        run.continued = True
        run._compare(spec, provenance)
        run._check_and_repair()
        try:
            os.utime(path / RUN_FILE)
        except OSError as error:
            raise cannot_write(path / RUN_FILE, error) from None
        return run

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back. Reading still works."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # -- what the run is ---------------------------------------------------------------------------------------------

    @property
    def spec(self) -> dict[str, Any]:
        """The resolved spec of run.json."""
        result: dict[str, Any] = self.info["spec"]
        return result

    @property
    def provenance(self) -> dict[str, Any]:
        """What the run stands on: model, data, prompts, methods, versions."""
        result: dict[str, Any] = self.info["provenance"]
        return result

    @property
    def methods(self) -> list[str]:
        """Method ids in spec order."""
        return list(self.spec["methods"])

    @property
    def tasks(self) -> list[str]:
        """Task ids in spec order."""
        return list(self.spec["tasks"])

    def methods_of(self, task_id: str) -> list[str]:
        """Ids of the methods that answer a task: all of the run, or ``full`` alone, part of the run or not, when the
        task asks about the model and not about methods (``once`` in its provenance)."""
        tasks = self.provenance.get("tasks")
        facts = tasks.get(task_id) if isinstance(tasks, Mapping) else None
        return ["full"] if isinstance(facts, Mapping) and facts.get("once") is True else self.methods

    # -- predictions -------------------------------------------------------------------------------------------------

    def predictions_path(self, method_id: str, task_id: str) -> Path:
        """Where the records of one method on one task are."""
        return self.path / "predictions" / file_name(method_id) / f"{file_name(task_id)}.jsonl"

    def records(self, method_id: str, task_id: str) -> list[PredictionRecord]:
        """The latest record of every sample, in order of first appearance; a torn last line is left out.

        Raises:
            CorruptFile: a whole line that is not a record (file and line named).
        """
        return [record for _, record in self.numbered_records(method_id, task_id)]

    def numbered_records(self, method_id: str, task_id: str) -> list[tuple[int, PredictionRecord]]:
        """`records`, each with the number of its line (from 1), for messages."""
        latest: dict[str, tuple[int, PredictionRecord]] = {}
        for number, record in self._read(method_id, task_id):
            latest[record.id] = (number, record)
        return list(latest.values())

    def done(self, method_id: str, task_id: str) -> set[str]:
        """Ids of the samples whose latest record is ok."""
        return {record.id for record in self.records(method_id, task_id) if record.ok}

    def write_config(self, text: str) -> None:
        """Keep the resolved options as a file for ``--config``; one that says the same is left alone.

        Raises:
            CannotWrite: as `append`.
        """
        path = self.path / CONFIG_FILE
        text = _CONFIG_HEAD + text
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.read_text(encoding="utf-8") == text:
                return
        write_text(path, text)

    def append(self, method_id: str, task_id: str, record: PredictionRecord) -> None:
        """Add one record; on return it is on the disk.

        An error that a sample's latest record already tells word for word is not written again: retrying what fails
        in the same way leaves the file as an unbroken run leaves it.

        Raises:
            CannotWrite: no permission or no space; the file then ends with its last whole line.
            StoreError: the run was opened for reading, or the method or task is not part of it.
        """
        self._check_writable(method_id, task_id)
        errors = self._known_errors(method_id, task_id)
        line = record.to_line()
        if errors.get(record.id) == line:
            return
        append_line(self.predictions_path(method_id, task_id), line)
        if record.ok:
            errors.pop(record.id, None)
        else:
            errors[record.id] = line

    def _read(self, method_id: str, task_id: str) -> Iterator[tuple[int, PredictionRecord]]:
        path = self.predictions_path(method_id, task_id)
        for number, data in read_lines(path):
            try:
                record = PredictionRecord.from_dict(data)
            except KeyError as error:
                raise corrupt(path, number, f"the field {error} is missing") from None
            except TypeError as error:
                raise corrupt(path, number, str(error)) from None
            if not record.id:
                raise corrupt(path, number, "the field '_id' is missing")
            yield number, record

    def _known_errors(self, method_id: str, task_id: str) -> dict[str, str]:
        key = (method_id, task_id)
        if key not in self._errors:
            records = self.records(method_id, task_id)
            self._errors[key] = {record.id: record.to_line() for record in records if not record.ok}
        return self._errors[key]

    # -- timings, scores, efficiency ---------------------------------------------------------------------------------

    def timings_path(self, method_id: str, task_id: str) -> Path:
        """Where the seconds of one method on one task are."""
        return self.path / "timings" / file_name(method_id) / f"{file_name(task_id)}.jsonl"

    def record_timing(self, method_id: str, task_id: str, sample_id: str, seconds: Mapping[str, float]) -> None:
        """Add one line of seconds for a sample, e.g. ``{"prefill": 1.2, "decode": 0.4}``. Not synced to disk.

        Raises:
            CannotWrite, StoreError: as `append`.
        """
        self._check_writable(method_id, task_id)
        line = json.dumps({"_id": sample_id, **{name: round(float(value), 6) for name, value in seconds.items()}})
        append_line(self.timings_path(method_id, task_id), line, sync=False)

    def timings(self, method_id: str, task_id: str) -> dict[str, dict[str, float]]:
        """Sample id to its latest seconds by name. Raises CorruptFile."""
        path = self.timings_path(method_id, task_id)
        result: dict[str, dict[str, float]] = {}
        for number, data in read_lines(path):
            sample = data.pop("_id", None)
            if not isinstance(sample, str) or not all(_is_number(v) for v in data.values()):
                raise corrupt(path, number, "not a line of timings")
            result[sample] = {name: float(value) for name, value in data.items()}
        return result

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add one line to events.jsonl, with the time. Not synced to disk. Raises CannotWrite."""
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        append_line(self.path / "events.jsonl", json.dumps({"time": when, **plain(event)}), sync=False)

    def events(self) -> list[dict[str, Any]]:
        """Lines of events.jsonl in order. Raises CorruptFile."""
        return [data for _, data in read_lines(self.path / "events.jsonl")]

    def batching(self, measured: Mapping[str, int]) -> dict[str, Any]:
        """How large this run's groups may be: what was stored when it began; ``measured`` is stored where nothing (or
        nothing readable) is. Raises CannotWrite."""
        path = self.path / "batching.json"
        try:
            found = load_object(path)
        except (OSError, ValueError, RecursionError):
            found = {}
        if all(_is_number(found.get(name)) and found[name] >= 1 for name in measured):
            return found
        write_json(path, measured)
        return dict(measured)

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        """Replace scores.json at once; needs no lock. Raises CannotWrite."""
        write_json(self.path / "scores.json", scores)

    def scores(self) -> dict[str, Any] | None:
        """scores.json, or None before the first `lcbench score`. Raises CorruptFile."""
        path = self.path / "scores.json"
        try:
            data = load_object(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            raise CorruptFile(f"{path} cannot be read as scores.", f"Make it anew: lcbench score {self.path}") from None
        return data

    def append_efficiency(self, row: Mapping[str, Any]) -> None:
        """Add one line to efficiency.jsonl, under the run's lock. Raises RunLocked, CannotWrite."""
        path = self.path / "efficiency.jsonl"
        borrowed = None
        if self._lock is None:
            borrowed = RunLock(self.path)
            borrowed.acquire()
        try:
            cut_torn(path)
            append_line(path, json.dumps(plain(row), ensure_ascii=True))
        finally:
            if borrowed is not None:
                borrowed.release()

    def efficiency(self) -> list[dict[str, Any]]:
        """Lines of efficiency.jsonl in order. Raises CorruptFile."""
        return [data for _, data in read_lines(self.path / "efficiency.jsonl")]

    # -- continuing --------------------------------------------------------------------------------------------------

    def _compare(self, spec: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        changed = differences(self.spec, spec)
        noun = "settings"
        if not changed:
            changed = identity_differences(self.provenance, provenance)
            noun = "inputs"
        if changed:
            lines = "".join(f"\n  {line}" for line in as_lines(changed))
            raise SpecMismatch(
                f"{self.path} belongs to a run with other {noun}:{lines}",
                "Choose another folder with --out, or give the original command to continue that run.",
            )
        self.warnings = as_lines(other_differences(self.provenance, provenance))

    def _check_and_repair(self) -> None:
        """Cut torn last lines off, once every whole line has been read without complaint."""
        files: list[Path] = []
        for task_id in self.tasks:
            for method_id in self.methods_of(task_id):
                self._known_errors(method_id, task_id)
                self.timings(method_id, task_id)
                files += [self.predictions_path(method_id, task_id), self.timings_path(method_id, task_id)]
        for file in files:
            torn = cut_torn(file)
            if torn:
                name = file.relative_to(self.path)
                self.repaired.append(f"{name}: cut off an unfinished last line of {torn} bytes.")

    def _check_writable(self, method_id: str, task_id: str) -> None:
        if self._lock is None:
            raise StoreError(f"{self.path} is open for reading only.", "Open it with RunDirectory.create_or_continue.")
        if task_id not in self.spec["tasks"] or method_id not in self.methods_of(task_id):
            raise StoreError(f"{method_id} on {task_id} is not part of the run {self.path}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
