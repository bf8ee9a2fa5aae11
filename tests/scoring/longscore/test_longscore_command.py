"""``lcbench score --longscore`` from the outside, and what scores.json gains."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lcbench.cli import app
from lcbench.errors import LcbenchError
from lcbench.scoring.longscore.result import LongScores
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

KV = "100-longbench/kv_retrieval"
UUID = "12345678-1234-1234-1234-123456789012"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["score", *map(str, arguments)], env={"COLUMNS": "150", "TERM": "dumb"})


def write(path: Path, predictions: Mapping[tuple[str, str], list[PredictionRecord]]) -> RunDirectory:
    """A run directory, its files written at once."""
    methods = list(dict.fromkeys(m for m, _ in predictions))
    spec = {"model": {"name": "m"}, "methods": methods, "tasks": list(dict.fromkeys(t for _, t in predictions))}
    with RunDirectory.create_or_continue(path, spec, {}) as made:
        for key, records in predictions.items():
            file = made.predictions_path(*key)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{record.to_line()}\n" for record in records), encoding="utf-8")
    return RunDirectory.open(path)


def kv(shares: Mapping[str, float], seed: int = 0, n: int = 60) -> dict[str, list[PredictionRecord]]:
    rng = random.Random(seed)
    made = {}
    for label, share in shares.items():
        metas = [{"base_length": (2048, 4096, 6144)[i % 3]} if label == "base" else {} for i in range(n)]
        preds = [UUID if rng.random() < share else "no" for _ in range(n)]
        made[f"{KV}@{label}"] = [
            PredictionRecord(pred, [UUID], None, 0, f"{label}-{i}", meta=meta)
            for i, (pred, meta) in enumerate(zip(preds, metas, strict=True))
        ]
    return made


@pytest.fixture
def hundred(tmp_path: Path) -> RunDirectory:
    full = kv({"base": 0.9, "8k": 0.8, "16k": 0.7})
    other = kv({"base": 0.9, "8k": 0.3, "16k": 0.1}, seed=1)
    return write(tmp_path / "r", {(m, t): r for m, by in (("full", full), ("h2o", other)) for t, r in by.items()})


def stored(directory: RunDirectory) -> LongScores:
    data = RunDirectory.open(directory.path).scores()
    assert data is not None
    return LongScores.from_dict(data["longscore"])


def test_100_longbench_has_it_without_being_asked(hundred: RunDirectory) -> None:
    done = run(hundred.path)
    assert done.exit_code == 0, done.output
    for piece in ("Two rankings", "LongScore by task", "h2o against full on kv_retrieval"):
        assert piece in done.stdout
    found = stored(hundred)
    curve = found.curves["full"][0]
    scores = {r.label: r.score for r in curve.rungs}
    base = curve.base.score
    assert base is not None
    values = [round(100 * (scores[label] - base) / base, 2) for label in ("8k", "16k")]
    assert curve.long_score == round(sum(values) / 2, 2)
    assert (found.mode, found.splits[0].method, found.splits[0].shared) == ("reference", "h2o", 180)


def test_paper_mode_takes_the_mean_of_the_short_lengths_and_is_written_down(hundred: RunDirectory) -> None:
    assert run(hundred.path, "--mode", "paper").exit_code == 0
    found = stored(hundred)
    assert found.mode == "paper"
    assert found.curves["full"][0].base.label == "2k+4k+6k"


def test_other_suites_have_it_when_asked(tmp_path: Path) -> None:
    records = [
        PredictionRecord("12" if length < 1000 or depth else "x", ["12"], None, length, f"{length}-{depth}",
                         meta={"length_words": length, "depth": depth / 9})
        for length in (128, 512, 1024) for depth in range(10)
    ]  # fmt: skip
    directory = write(tmp_path / "r", {("full", "passkey"): records})
    assert "LongScore" not in run(directory.path).stdout
    done = run(directory.path, "--longscore")
    assert "LongScore by task" in done.stdout
    assert stored(directory).curves["full"][0].rungs[-1].value == -10.0
    assert run(directory.path, "--longscore", "--base-length", "128,512").exit_code == 0
    assert stored(directory).curves["full"][0].base.label == "128+512"


def test_asking_where_there_are_no_lengths_is_answered(tmp_path: Path, make_run: Any) -> None:
    done = run(make_run({("full", "trec"): [{"all_classes": ["Paris"]}]}).path, "--longscore")
    assert done.exit_code == 0
    assert "no task here exists at several lengths" in done.stdout


def test_longbench_e_files_have_it_too(tmp_path: Path, write_rows: Any, row: Any) -> None:
    rows = [row(length=n, pred="Paris" if n < 8000 else "x") for n in range(0, 12000, 200)]
    path = write_rows(tmp_path / "qasper.jsonl", rows)
    done = run(path, "--benchmark", "longbench-e", "--longscore")
    assert "-50.00" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"), [(["--mode", "papr"], "Unknown mode"), (["--base-length", "7k"], "base length")]
)
def test_words_it_does_not_understand(tmp_path: Path, words: list[str], said: str) -> None:
    records = [PredictionRecord("1", ["1"], None, n, str(n), meta={"length_words": n, "depth": 0.5}) for n in (1, 2)]
    error = run(write(tmp_path / "r", {("full", "passkey"): records}).path, *words).exception
    assert isinstance(error, LcbenchError), error
    assert said in error.message
