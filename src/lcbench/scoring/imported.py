"""Official LongBench predictions as a run directory, so that reports and comparisons read them like any other.

A folder of prediction files (``qasper.jsonl``, …) becomes a run of one method; a folder of such folders a run with a
method each. Nothing is invented: what the files do not say (tokens, bytes) is null, and run.json says where they came
from and what their bytes hash to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lcbench.errors import BadValue, NotARun, UsageError
from lcbench.scoring.files import find_files, read_file
from lcbench.scoring.samples import Sample, TaskSamples
from lcbench.store.files import make_folder, write_text
from lcbench.store.provenance import software
from lcbench.store.run_file import RUN_FILE
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import STATUS_ERROR, STATUS_OK, PredictionRecord

SOURCE = "imported"


def import_predictions(path: Path, out: Path, *, model: str, method: str | None = None) -> RunDirectory:
    """Make a run directory from prediction files.

    Args:
        path: a predictions file, a folder of them, or a folder of such folders, each a method of that name.
        out: the new run directory.
        model: name of the model that made them. method: of a file or a single folder; default "full".

    Raises:
        UsageError: nothing there, or ``out`` is taken by something else. BadValue: a method for several folders.
        CorruptFile, UnknownName: a file that cannot be read, or is not named after a task (file and line named).
        SpecMismatch: ``out`` holds a run of other predictions.
    """
    files = _files(path, method)
    tasks = list(dict.fromkeys(task for found in files.values() for task in found))
    read = {(name, task): read_file(file) for name, found in files.items() for task, file in found.items()}
    spec = {"model": {"name": model}, "methods": list(files), "tasks": tasks}
    with RunDirectory.create_or_continue(out, spec, _provenance(files, read, tasks, model)) as run:
        for (name, task), samples in read.items():
            target = run.predictions_path(name, task)
            make_folder(target.parent)
            # All lines are known: the file is written whole and at once, not line by line as answers come.
            write_text(target, "".join(record.to_line() + "\n" for record in _records(samples)))
    return RunDirectory.open(out)


def _files(path: Path, method: str | None) -> dict[str, dict[str, Path]]:
    """Method to task to file."""
    if path.is_file():
        return {method or "full": {read_file(path).task: path}}
    if not path.is_dir():
        raise UsageError(f"{path} does not exist.", "Give a predictions file, or a folder of them.")
    if (path / RUN_FILE).exists():
        raise UsageError(f"{path} is a run directory already.", f"Use it as it is: lcbench report {path}")
    own = find_files(path)
    if own:
        return {method or "full": own}
    below = {folder.name: find_files(folder) for folder in sorted(path.iterdir()) if folder.is_dir()}
    below = {name: found for name, found in below.items() if found}
    if not below:
        raise NotARun(f"{path} holds no predictions (no .jsonl files).", "Give a folder that does.")
    if method is not None:
        raise BadValue(f"{path} holds {len(below)} folders, each a method.", "Leave --method out, or import one.")
    return below


def _provenance(
    files: dict[str, dict[str, Path]], read: dict[tuple[str, str], TaskSamples], tasks: Sequence[str], model: str
) -> dict[str, Any]:
    hashes = {name: {task: _sha256(file) for task, file in found.items()} for name, found in files.items()}
    facts = {}
    for task in tasks:
        samples = [read[name, task] for name in files if (name, task) in read]
        facts[task] = {"rows": max(len(one.samples) for one in samples), "note": "", "notes": []}
    return {
        **software(),
        "model": {"name": model, "source": SOURCE, "identity": None},
        "imported": {"data_sha256": hashes},
        "tasks": facts,
        "methods": {name: {"name": name} for name in files},
    }


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _records(task: TaskSamples) -> list[PredictionRecord]:
    ids = [sample.id for sample in task.samples]
    named = all(ids) and len(set(ids)) == len(ids)
    return [_record(sample, sample.id if named else str(number)) for number, sample in enumerate(task.samples)]


def _record(sample: Sample, name: str) -> PredictionRecord:
    length = sample.length
    return PredictionRecord(
        pred=sample.prediction,
        answers=list(sample.answers),
        all_classes=None if sample.all_classes is None else list(sample.all_classes),
        length=int(length) if length is not None and float(length).is_integer() else None,
        id=name,
        status=STATUS_OK if sample.ok else STATUS_ERROR,
        error=None if sample.ok else "the imported file says so",
        kept_tokens=None,
        kv_bytes=None,
        kv_bytes_full=None,
        resident_bytes=None,
        shared_prefill=False,
        decode=SOURCE,
        near_ties=None,
        meta=dict(sample.meta),
    )
