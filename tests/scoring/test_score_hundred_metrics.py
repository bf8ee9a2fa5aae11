"""The metrics of 100-LongBench: exact, and after the cut at the first line."""

from __future__ import annotations

import pytest

from lcbench.scoring import score_row
from lcbench.scoring.metrics import score

A, B = "0f8fad5b-d9cb-469f-a165-70867728950e", "7c9e6679-7425-40de-944b-e07fc1f90ae7"


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("7", "7", 1.0),
        ("Passage 7, not 8", "7", 1.0),
        ("not 8 but 7", "7", 0.0),
        ("07", "7", 0.0),
        ("77", "7", 0.0),
        ("-7", "7", 1.0),
        ("3.5", "3", 1.0),
        ("seven", "7", 0.0),
        ("", "7", 0.0),
    ],
)
def test_the_first_number_counts_as_it_is_written(prediction: str, answer: str, expected: float) -> None:
    assert score("first_number", prediction, [answer]) == expected


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (A, 1.0),
        (f"The value of {B} is {A}.", 1.0),
        (f"{A}, whose value is {B}", 0.0),
        (A.upper(), 0.0),
        (A[:-1], 0.0),
        (f"x{A}", 0.0),
        (f"{A}0", 0.0),
        (A.replace("-", ""), 0.0),
        ("", 0.0),
    ],
)
def test_the_last_uuid_counts(prediction: str, expected: float) -> None:
    assert score("last_uuid", prediction, [A]) == expected


def test_of_several_answers_the_best_counts() -> None:
    # counting_stars: the index of the right option, and the option as text, which no number can equal.
    assert score("first_number", "2", ["2", "[3, 9, 41, 7]"]) == 1.0


@pytest.mark.parametrize(
    ("task", "prediction", "answer", "expected"),
    [
        ("100-longbench/passage_retrieval@16k", "\n\n4\n9", "4", 1.0),
        ("100-longbench/passage_count@base", "many\n4", "4", 0.0),
        ("100-longbench/kv_retrieval@8k,build=x", f"{A}\n{B}", A, 1.0),
        ("100-longbench/single_doc_qa@8k", "Oslo\nand more", "Oslo", 1.0),
        ("100-longbench/single_doc_sum@8k", "Nothing.\nAda came.", "Ada came.", 0.0),
        ("100-longbench/multi_doc_sum@8k", "Ada came.\nNothing.", "Ada came.", 1.0),
    ],
)
def test_every_task_looks_at_the_first_line_alone(task: str, prediction: str, answer: str, expected: float) -> None:
    assert score_row(task, prediction, [answer]) == pytest.approx(expected, abs=1e-6)
