"""Run directories made by hand, for reports and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

Predictions = Mapping[tuple[str, str], Sequence[PredictionRecord]]


def right(sample: int, **changes: Any) -> PredictionRecord:
    values: dict[str, Any] = {
        "pred": "Paris",
        "answers": ["Paris"],
        "all_classes": None,
        "length": 10,
        "id": str(sample),
        "kv_bytes": 250,
        "kv_bytes_full": 1000,
        "prompt_tokens": 10,
    }
    return PredictionRecord(**{**values, **changes})


def wrong(sample: int, **changes: Any) -> PredictionRecord:
    return right(sample, pred="London", **changes)


def failed(sample: int) -> PredictionRecord:
    return right(sample, pred="", status="error", error="out of memory", kv_bytes=0, kv_bytes_full=0)


def make(
    path: Path | str,
    predictions: Predictions,
    *,
    model: str = "demo",
    identity: str = "w1",
    facts: Mapping[str, Any] | None = None,
    **spec: Any,
) -> RunDirectory:
    methods = list(dict.fromkeys(m for m, _ in predictions))
    tasks = list(dict.fromkeys(t for _, t in predictions))
    resolved = {"model": {"name": model}, "methods": methods, "tasks": tasks, **spec}
    provenance = {"model": {"name": model, "identity": identity, "dtype": "float32"}, "tasks": facts or {}}
    with RunDirectory.create_or_continue(path, resolved, provenance) as run:
        for (method, task), records in predictions.items():
            for record in records:
                run.append(method, task, record)
    return RunDirectory.open(path)


def passkey(length: int, depth: float, repeat: int, found: bool, **changes: Any) -> PredictionRecord:
    """One passkey sample with a key of its own."""
    key = f"{length}{int(100 * depth)}{repeat}"
    meta = {"length_words": length, "depth": depth, "repeat": repeat, "key": key}
    return right(
        0,
        **{
            "id": f"len{length}-depth{depth}-rep{repeat}",
            "pred": f"It is {key}." if found else "no",
            "answers": [key],
            "length": length,
            "meta": meta,
            **changes,
        },
    )
