from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcbench.store.schema import PredictionRecord

TEXT = st.text(st.characters(), max_size=30)  # lone surrogates included


@given(
    pred=TEXT,
    answers=st.lists(TEXT, max_size=3),
    classes=st.none() | st.lists(TEXT, max_size=3),
    sample=TEXT.filter(bool),
    kept=st.floats(0, 1e9),
    count=st.integers(0, 2**60),
    error=st.none() | TEXT,
)
def test_a_record_survives_its_line(
    pred: str, answers: list[str], classes: list[str] | None, sample: str, kept: float, count: int, error: str | None
) -> None:
    record = PredictionRecord(
        pred,
        answers,
        classes,
        count,
        sample,
        status="ok" if error is None else "error",
        error=error,
        kept_tokens=kept,
        kv_bytes=count,
        memory="simulated",
        shared_prefill=False,
        truncated_from=count,
        meta={"depth": kept, "text": pred},
    )
    line = record.to_line()
    assert "\n" not in line
    assert "\r" not in line
    assert PredictionRecord.from_dict(json.loads(line.encode("utf-8").decode("utf-8"))) == record


def test_text_is_readable_in_the_file(record: Callable[..., PredictionRecord]) -> None:
    assert "答案" in record(0).to_line()


def test_the_official_fields_come_first_under_their_official_names(record: Callable[..., PredictionRecord]) -> None:
    assert list(json.loads(record(0).to_line()))[:5] == ["pred", "answers", "all_classes", "length", "_id"]


def test_an_official_line_is_a_record() -> None:
    line = {"pred": " x", "answers": ["y"], "all_classes": None, "length": 3, "dataset": "qasper"}
    read = PredictionRecord.from_dict(line)
    assert (read.pred, read.answers, read.length, read.status, read.id) == (" x", ["y"], 3, "ok", "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pred", 1),
        ("pred", None),
        ("answers", "a"),
        ("all_classes", "a"),
        ("all_classes", [1]),
        ("length", "12"),
        ("length", True),
        ("status", "OK"),
        ("error", 3),
        ("prompt_tokens", -1),
        ("kept_tokens", float("nan")),
        ("kept_tokens", "7"),
        ("kv_bytes", 1.5),
        ("kv_bytes_full", "1"),
        ("memory", "virtual"),
        ("shared_prefill", 1),
        ("truncated_from", 1.0),
        ("meta", []),
    ],
)
def test_a_field_of_the_wrong_type_is_named(field: str, value: Any, record: Callable[..., PredictionRecord]) -> None:
    line = json.loads(record(0).to_line())
    line[field] = value
    with pytest.raises(TypeError, match=field):
        PredictionRecord.from_dict(line)


@pytest.mark.parametrize("field", ["pred", "answers"])
def test_a_missing_official_field_is_named(field: str, record: Callable[..., PredictionRecord]) -> None:
    line = json.loads(record(0).to_line())
    del line[field]
    with pytest.raises(KeyError, match=field):
        PredictionRecord.from_dict(line)


def test_every_published_longbench_line_is_a_record(shared_data: Path) -> None:
    lines = 0
    for file in sorted((shared_data / "predictions" / "pyramidkv-outputs").rglob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").split("\n"):
            if line:
                published = json.loads(line)
                assert PredictionRecord.from_dict(published).pred == published["pred"]
                lines += 1
    assert lines > 100
