"""A run directory for the efficiency bench: one that `lcbench run` made, or one with no predictions at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcbench.store.lock import RunLock
from lcbench.store.run_file import RUN_FILE
from lcbench.store.rundir import RunDirectory


def open_for_bench(path: Path, spec: Mapping[str, Any], provenance: Mapping[str, Any]) -> RunDirectory:
    """Open a run directory to add lines to its efficiency.jsonl; locked until it is closed.

    Where there is none, one without methods and tasks is made, of ``spec`` and ``provenance``. An existing one keeps
    its run.json: each line of efficiency.jsonl says for itself what it was measured with.

    Raises:
        NotARun: a folder that holds other things. RunLocked: another process writes to it. CannotWrite.
    """
    if not (path / RUN_FILE).exists():
        return RunDirectory.create_or_continue(path, {**spec, "methods": [], "tasks": []}, provenance)
    info = RunDirectory.open(path).info
    lock = RunLock(path)
    lock.acquire()
    return RunDirectory(path, info, lock)


def is_bench_only(info: Mapping[str, Any]) -> bool:
    """Whether a run.json belongs to a folder that holds nothing but efficiency.jsonl."""
    spec = info.get("spec")
    return isinstance(spec, Mapping) and spec.get("tasks") == []
