"""Prediction files and run directories to score."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

Row = dict[str, Any]


@pytest.fixture
def write_rows() -> Callable[..., Path]:
    """Write rows as an official predictions file; packed when the name ends in .gz."""

    def write(path: Path, rows: Iterable[Row]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
        return path

    return write


@pytest.fixture
def row() -> Callable[..., Row]:
    """One official row; a right answer unless told otherwise."""

    def make(**changes: Any) -> Row:
        return {"pred": "Paris", "answers": ["Paris"], "all_classes": None, "length": 100, **changes}

    return make


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDirectory]:
    """A run directory with the given records; ``rows`` are those it asked for, by task."""

    def make(
        predictions: Mapping[tuple[str, str], Iterable[Mapping[str, Any]]],
        name: str = "run",
        rows: Mapping[str, int] | None = None,
    ) -> RunDirectory:
        methods = list(dict.fromkeys(m for m, _ in predictions))
        tasks = list(dict.fromkeys(t for _, t in predictions))
        spec = {"model": {"name": "demo"}, "methods": methods, "tasks": tasks}
        provenance = {"tasks": {task: {"rows": count} for task, count in (rows or {}).items()}}
        with RunDirectory.create_or_continue(tmp_path / name, spec, provenance) as run:
            for (method, task), records in predictions.items():
                for number, changes in enumerate(records):
                    values = {"pred": "Paris", "answers": ["Paris"], "all_classes": None, "length": 100}
                    run.append(method, task, PredictionRecord(**{**values, "id": str(number), **changes}))
        return RunDirectory.open(tmp_path / name)

    return make
