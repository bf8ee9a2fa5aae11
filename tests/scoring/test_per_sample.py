"""Scores of single samples: their means are the scores of the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcbench.scoring.merged import score_merged
from lcbench.scoring.per_sample import score_samples
from lcbench.scoring.run import score_run
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord


def made(path: Path, tasks: dict[str, list[PredictionRecord]]) -> RunDirectory:
    with RunDirectory.create_or_continue(path, {"methods": ["full"], "tasks": list(tasks)}, {}) as run:
        for task, records in tasks.items():
            for record in records:
                run.append("full", task, record)
    return RunDirectory.open(path)


def key(length: int, depth: float, repeat: int, found: bool) -> PredictionRecord:
    meta = {"length_words": length, "depth": depth, "repeat": repeat}
    return PredictionRecord(
        "12345" if found else "no", ["12345"], None, length, f"{length}-{depth}-{repeat}", meta=meta
    )


def test_means_are_the_scores_of_the_run(tmp_path: Path) -> None:
    answers = [
        PredictionRecord(text, ["the cat sat"], None, 5, str(i)) for i, text in enumerate(["cat sat", "dog", "a"])
    ]
    broken = PredictionRecord("", ["x"], None, 5, "9", status="error", error="out of memory")
    keys = [key(n, d, r, found=n == 256 or r == 0) for n in (256, 512) for d in (0.0, 1.0) for r in (0, 1)]
    run = made(tmp_path / "r", {"qasper": [*answers, broken], "passkey": keys})
    samples = score_samples(run, [("full", "qasper"), ("full", "passkey")])
    tasks = score_run(run)["methods"]["full"]["tasks"]
    for task in ("qasper", "passkey"):
        scores = [s.score for s in samples["full", task] if s.score is not None]
        assert 100 * sum(scores) / len(scores) == pytest.approx(tasks[task]["score"], abs=0.005)
    assert [s.record.id for s in samples["full", "qasper"]] == ["0", "1", "2", "9"]
    assert samples["full", "qasper"][-1].score is None
    assert len({s.cluster for s in samples["full", "passkey"]}) == 4  # repeats of a cell go together


def test_rows_of_one_context_are_one_cluster(tmp_path: Path) -> None:
    rows = [PredictionRecord("a", ["a"], None, 5, str(i), meta={"context_id": i // 2}) for i in range(4)]
    found = score_samples(made(tmp_path / "r", {"qasper": rows}), [("full", "qasper")])["full", "qasper"]
    assert [s.cluster for s in found] == ["0", "0", "1", "1"]


def test_means_of_two_runs_equal_those_of_one(tmp_path: Path) -> None:
    rows = {
        task: [PredictionRecord("a" if i < n else "b", ["a"], None, 5, str(i)) for i in range(4)]
        for n, task in enumerate(["qasper", "hotpotqa", "musique"])
    }
    whole = made(tmp_path / "whole", rows)
    first = made(tmp_path / "first", {"qasper": rows["qasper"]})
    second = made(tmp_path / "second", {task: rows[task] for task in ("hotpotqa", "musique")})
    assert score_merged([first, second], "full") == score_run(whole)["methods"]["full"]
