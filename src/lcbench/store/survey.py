"""What state a run is in: how many samples are done, how many fail, whether somebody writes to it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from lcbench.errors import LcbenchError
from lcbench.store.lock import is_locked
from lcbench.store.run_file import RUN_FILE
from lcbench.store.rundir import RunDirectory
from lcbench.store.shards import SHARD_FILE, read_plan

State = Literal["finished", "unfinished", "failing", "running", "broken"]
_DEPTH = 3  # folders below the given one that are looked into


@dataclass(frozen=True)
class RunState:
    """One run directory.

    Attributes:
        path: the folder. state: "running" while a process holds its lock, "failing" when the latest record of a sample
            is an error, "unfinished" when samples are missing, "broken" when it cannot be read, else "finished".
        model: name. methods, tasks: ids.
        done, failed: samples that are answered, and whose latest record is an error. wanted: of all methods and tasks;
            None when that is not known (prompts left out, or a run.json without rows).
        scored: whether there is a scores.json. changed: last change, UTC. problem: why it is broken, else "".
    """

    path: Path
    state: State
    model: str = ""
    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    done: int = 0
    failed: int = 0
    wanted: int | None = None
    scored: bool = False
    changed: str = ""
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**self.__dict__, "path": str(self.path), "methods": list(self.methods), "tasks": list(self.tasks)}


def find_runs(folders: Iterable[Path]) -> Iterator[Path]:
    """Run directories in and below the given folders, each once; folders inside of runs are not looked into."""
    seen: set[Path] = set()
    for folder in folders:
        for path in _below(folder, _DEPTH):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                yield path


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / RUN_FILE).exists():
        yield folder
        return
    if depth:
        try:
            inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        except OSError:
            return
        for one in inner:
            yield from _below(one, depth - 1)


def survey(path: Path) -> RunState:
    """The state of one run directory; a broken one is told, not raised."""
    try:
        run = RunDirectory.open(path)
        share = read_plan(path) if (path / SHARD_FILE).exists() else None
        counts = [(task, run.records(method, task)) for method in run.methods for task in run.tasks]
    except LcbenchError as error:
        return RunState(path, "broken", changed=_changed(path, []), problem=error.message)
    done = sum(record.ok for _, records in counts for record in records)
    failed = sum(not record.ok for _, records in counts for record in records)
    wanted = _wanted(run) if share is None else share.samples
    model = run.spec.get("model")
    files = [run.predictions_path(method, task) for method in run.methods for task in run.tasks]
    return RunState(
        path,
        _state(path, done, failed, wanted, share is None and any(not records for _, records in counts)),
        str(model.get("name", "")) if isinstance(model, dict) else "",
        tuple(run.methods),
        tuple(run.tasks),
        done,
        failed,
        wanted,
        (path / "scores.json").exists(),
        _changed(path, files),
    )


def _state(path: Path, done: int, failed: int, wanted: int | None, empty: bool) -> State:
    if is_locked(path):
        return "running"
    if failed:
        return "failing"
    return "unfinished" if empty or (wanted is not None and done < wanted) else "finished"


def _wanted(run: RunDirectory) -> int | None:
    """Samples the run is to have. Skipped prompts leave no record, so then nobody can know."""
    tasks = run.provenance.get("tasks")
    if run.spec.get("over_length") == "skip" or not isinstance(tasks, dict):
        return None
    rows = 0
    for task in run.tasks:
        facts = tasks.get(task)
        count = facts.get("rows") if isinstance(facts, dict) else None
        if not isinstance(count, int):
            return None
        rows += count
    return len(run.methods) * rows


def _changed(path: Path, files: Iterable[Path]) -> str:
    times = []
    for file in (path / RUN_FILE, *files):
        try:
            times.append(file.stat().st_mtime)
        except OSError:
            continue
    newest = max(times, default=time.time())
    return datetime.fromtimestamp(newest, timezone.utc).isoformat(timespec="seconds")
