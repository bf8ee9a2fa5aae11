"""Every sample of runs in one Parquet file: a row a sample, the record's fields with their types, and its score."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from lcbench.reporting.parquet import utf8
from lcbench.reporting.scored import options_of
from lcbench.scoring.per_sample import score_samples
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

_AS_JSON = ("meta", "served")


def render(runs: Sequence[RunDirectory]) -> bytes:
    """The bytes of the file. ``score`` is 0 to 1, null for samples that failed; ``meta`` and ``served`` are JSON."""
    import pyarrow as pa
    import pyarrow.parquet

    texts, numbers = pa.list_(pa.string()), {"kept_tokens": pa.float64(), "score": pa.float64()}
    whole = ("length", "prompt_tokens", "new_tokens", "kv_bytes", "kv_bytes_full", "resident_bytes", "truncated_from",
             "tokens_before", "task_version", "near_ties")  # fmt: skip
    types = {**dict.fromkeys(whole, pa.int64()), **numbers, "answers": texts, "all_classes": texts}
    types["shared_prefill"] = pa.bool_()
    names = ["model", "run", "method", "task", "score", *(f.name for f in fields(PredictionRecord))]
    schema = pa.schema([(name, types.get(name, pa.string())) for name in names])
    sink = pa.BufferOutputStream()
    with pyarrow.parquet.ParquetWriter(sink, schema) as writer:
        for rows in _rows(runs):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return bytes(sink.getvalue())


def _rows(runs: Sequence[RunDirectory]) -> Iterator[list[dict[str, Any]]]:
    """The rows of one method on one task after the other."""
    for run in runs:
        model = (run.provenance.get("model") or {}).get("name", "")
        keys = [(method, task) for task in run.tasks for method in run.methods_of(task)]
        for (method, task), found in score_samples(run, keys, options_of(run)).items():
            place = {"model": model, "run": str(run.path), "method": method, "task": task}
            yield [{**place, "score": one.score, **_fields(one.record)} for one in found]


def _fields(record: PredictionRecord) -> dict[str, Any]:
    row = {f.name: getattr(record, f.name) for f in fields(PredictionRecord)}
    row |= {name: None if row[name] is None else json.dumps(row[name], sort_keys=True) for name in _AS_JSON}
    row["answers"] = [utf8(answer) for answer in record.answers]
    if record.all_classes is not None:
        row["all_classes"] = [utf8(one) for one in record.all_classes]
    return {name: utf8(value) for name, value in row.items()}
