"""The score of every single sample of a run, with what it takes to draw or pair them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from lcbench.scoring.run import DEFAULTS, ScoreOptions, _all_values, _of_run
from lcbench.scoring.samples import Sample
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

Key = tuple[str, str]
"""Method id and task id."""


@dataclass(frozen=True)
class ScoredSample:
    """One sample of one method.

    Attributes:
        record: as it stands in the predictions file.
        score: 0 to 1, None for a sample that failed.
        cluster: equal for samples that are drawn together in the bootstrap: rows that share a context, repeats of one
            passkey cell.
    """

    record: PredictionRecord
    score: float | None
    cluster: Hashable


def score_samples(
    run: RunDirectory, keys: Iterable[Key], options: ScoreOptions = DEFAULTS
) -> Mapping[Key, list[ScoredSample]]:
    """Every sample of the given (method, task) pairs, in file order. Their means are the scores of `score_run`.

    Raises:
        CorruptFile, UnknownName: as `score_run`.
    """
    keys = list(dict.fromkeys(keys))
    tasks = [_of_run(run, *key) for key in keys]
    result: dict[Key, list[ScoredSample]] = {}
    for key, task, values in zip(keys, tasks, _all_values(tasks, options), strict=True):
        records = run.records(*key)
        result[key] = [
            ScoredSample(record, None if value is None else value[0], cluster_of(sample, record))
            for record, sample, value in zip(records, task.samples, values, strict=True)
        ]
    return result


def cluster_of(sample: Sample, record: PredictionRecord) -> Hashable:
    """What a sample is drawn together with: its passkey cell, its context, or nothing but itself."""
    length, depth = sample.meta.get("length_words", sample.length), sample.meta.get("depth")
    if depth is not None:
        return length, depth
    return record.id if sample.cluster is None else sample.cluster
