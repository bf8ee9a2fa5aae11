"""LongBench or LongBench-E: what decides, and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lcbench.errors import BadValue, CorruptFile, UnknownName
from lcbench.scoring.run import ScoreOptions, score_path
from lcbench.scoring.table import ScoreTable

QUICK = ScoreOptions(resamples=10)


def _benchmarks(table: ScoreTable) -> set[str]:
    return {task.benchmark for method in table.methods.values() for task in method.tasks.values()}


def _guesses(table: ScoreTable) -> list[str]:
    """The notes about the guess, without those about numbers of rows."""
    return [note for note in table.notes if "rows than the test set has" not in note]


def _folder(path: Path, write_rows: Any, row: Any, **rows: int) -> Path:
    for name, count in rows.items():
        write_rows(path / f"{name}.jsonl", [row()] * count)
    return path


def test_a_task_without_e_split_makes_it_longbench(tmp_path: Path, write_rows: Any, row: Any) -> None:
    table = score_path(_folder(tmp_path / "pred_e", write_rows, row, qasper=2, narrativeqa=1), QUICK)
    assert _benchmarks(table) == {"longbench"}
    assert _guesses(table) == []


@pytest.mark.parametrize("parent", ["pred_e", "longbench-e", "LongBench_E"])
def test_the_name_of_the_folder_decides(tmp_path: Path, write_rows: Any, row: Any, parent: str) -> None:
    folder = _folder(tmp_path / parent / "model", write_rows, row, qasper=2, hotpotqa=1)
    table = score_path(folder, QUICK)
    assert _benchmarks(table) == {"longbench-e"}
    assert "by the name of its folder" in table.notes[0]
    assert _benchmarks(score_path(folder / "qasper.jsonl", QUICK)) == {"longbench-e"}


@pytest.mark.parametrize(
    ("result", "expected"), [({"0-4k": 1.0, "4-8k": 2.0, "8k+": 3.0}, "longbench-e"), (31.4, "longbench")]
)
def test_result_json_decides(tmp_path: Path, write_rows: Any, row: Any, result: Any, expected: str) -> None:
    folder = _folder(tmp_path / "model", write_rows, row, qasper=2)
    (folder / "result.json").write_text(json.dumps({"qasper": result}))
    assert _benchmarks(score_path(folder, QUICK)) == {expected}


@pytest.mark.parametrize("text", ["", "[]", "{broken", '{"qasper": "x"}', '{"other": {}}', "\xff"])
def test_a_useless_result_json_is_no_hint(tmp_path: Path, write_rows: Any, row: Any, text: str) -> None:
    folder = _folder(tmp_path / "model", write_rows, row, qasper=2)
    (folder / "result.json").write_bytes(text.encode("latin-1"))
    table = score_path(folder, QUICK)
    assert _benchmarks(table) == {"longbench"}
    assert "Nothing tells" in table.notes[0]


@pytest.mark.parametrize(("rows", "expected", "said"), [(224, "longbench-e", 1), (200, "longbench", 0)])
def test_numbers_of_rows_decide(tmp_path: Path, write_rows: Any, row: Any, rows: int, expected: str, said: int) -> None:
    table = score_path(_folder(tmp_path / "model", write_rows, row, qasper=rows, multifieldqa_en=150), QUICK)
    assert _benchmarks(table) == {expected}
    assert len(table.notes) == said


def test_where_numbers_of_rows_disagree_it_is_longbench(tmp_path: Path, write_rows: Any, row: Any) -> None:
    table = score_path(_folder(tmp_path / "model", write_rows, row, qasper=224, hotpotqa=200), QUICK)
    assert _benchmarks(table) == {"longbench"}
    assert any("more rows" in note and "qasper 224 of 200" in note for note in table.notes)


def test_without_lengths_it_cannot_be_longbench_e(tmp_path: Path, write_rows: Any, row: Any) -> None:
    path = write_rows(tmp_path / "pred_e" / "m" / "qasper.jsonl", [row(length=None)])
    assert _benchmarks(score_path(path, QUICK)) == {"longbench"}
    with pytest.raises(CorruptFile, match="line 1: 'length' is missing"):
        score_path(path, QUICK, "longbench-e")


def test_names_with_e_are_longbench_e(tmp_path: Path, write_rows: Any, row: Any) -> None:
    table = score_path(_folder(tmp_path / "m", write_rows, row, qasper_e=2), QUICK)
    assert _benchmarks(table) == {"longbench-e"}
    assert _guesses(table) == []


def test_what_is_given_wins(tmp_path: Path, write_rows: Any, row: Any) -> None:
    folder = _folder(tmp_path / "pred_e", write_rows, row, qasper=2)
    assert _benchmarks(score_path(folder, QUICK, "longbench")) == {"longbench"}
    assert _benchmarks(score_path(folder, QUICK, "longbench-e")) == {"longbench-e"}
    assert _guesses(score_path(folder, QUICK, "longbench")) == []


def test_wrong_benchmarks_are_refused(tmp_path: Path, write_rows: Any, row: Any) -> None:
    path = write_rows(tmp_path / "narrativeqa.jsonl", [row()])
    with pytest.raises(UnknownName, match="longbenche"):
        score_path(path, QUICK, "longbenche")
    with pytest.raises(UnknownName, match="narrativeqa"):
        score_path(path, QUICK, "longbench-e")
    keys = write_rows(tmp_path / "passkey.jsonl", [row()])
    with pytest.raises(BadValue, match="passkey"):
        score_path(keys, QUICK, "longbench")
