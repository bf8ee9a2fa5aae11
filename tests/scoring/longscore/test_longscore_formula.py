"""The formula, held to the published figures and to the worked example of the specification."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcbench.scoring.longscore.formula import (
    long_context_value,
    long_score,
    mean_over_tasks,
    mean_score,
    radar_value,
    ranks,
)

PUBLISHED = Path(__file__).parents[4] / "shared/specs/benchmarks/published-results.json"
TABLES = ("hundred_longbench_instruct", "hundred_longbench_base")


def published() -> Iterator[tuple[str, dict[str, Any]]]:
    if not PUBLISHED.exists():
        return
    data = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    for table in TABLES:
        yield from data[table]["models"].items()


MODELS = dict(published())


@pytest.mark.parametrize("model", MODELS or [pytest.param("", marks=pytest.mark.skip("no published-results.json"))])
def test_published_scores_give_the_published_figures_to_the_last_digit(model: str) -> None:
    facts = MODELS[model]
    lengths = [str(length) for length in facts["lengths_k"] if length]
    for name, task in facts["tasks"].items():
        raw = task["raw"]
        values = {length: long_context_value(raw[length], raw["0"]) for length in lengths}
        assert values == {length: task["lc_per_length"][length] for length in lengths}, name
        assert mean_score([raw[length] for length in lengths]) == task["avg_score"], name
        assert long_score([raw[length] for length in lengths], raw["0"]) == task["avg_longscore"], name
    overall = facts["overall_of_averaged_scores"]
    tasks = [facts["tasks"][name]["raw"] for name in sorted(facts["tasks"])]
    means = {length: mean_over_tasks([raw[length] for raw in tasks]) for length in ["0", *lengths]}
    assert means == {length: overall["raw"][length] for length in means}
    assert long_score([means[length] for length in lengths], means["0"]) == overall["avg_longscore"]
    assert mean_score([means[length] for length in lengths]) == overall["avg_score"]


def test_the_worked_example() -> None:
    base, scores = 58.59, [61, 56, 67, 75, 71]
    assert [long_context_value(s, base) for s in scores] == [4.11, -4.42, 14.35, 28.01, 21.18]
    assert long_score(scores, base) == 12.65
    assert mean_score(scores) == 66.0
    tiny = long_score([1.53, 5.36, 5.39, 12.49, 4.5], 1.8)
    assert tiny == 225.22
    assert radar_value(tiny) == 0.0
    assert radar_value(-5.2) == -5.2
    assert radar_value(None) is None


def test_values_are_rounded_before_their_mean() -> None:
    # Unrounded the mean is 21.694…, which would give 21.69; of 2.27 and 41.12 it is 21.695.
    assert [long_context_value(score, 37.82) for score in (38.68, 53.37)] == [2.27, 41.12]
    assert long_score([38.68, 53.37], 37.82) == 21.7


def test_a_base_of_zero_gives_none_and_a_missing_length_too() -> None:
    assert long_context_value(3.0, 0.0) is None
    assert long_score([3.0], 0.0) is None
    assert long_score([3.0, None], 5.0) is None
    assert long_score([], 5.0) is None
    assert long_score([3.0], None) is None
    assert mean_over_tasks([]) is None
    assert mean_over_tasks([1.0, None]) is None


def test_ranks_share_the_smallest_and_leave_none_out() -> None:
    assert ranks({"a": 1.0, "b": 3.0, "c": 3.0, "d": None, "e": 0.0}) == {"a": 3, "b": 1, "c": 1, "d": None, "e": 4}
    assert ranks({}) == {}


@given(
    scores=st.lists(st.floats(0, 100), min_size=1, max_size=8),
    base=st.floats(0.01, 100),
)
def test_keeping_the_base_is_zero_and_losing_everything_is_minus_100(scores: list[float], base: float) -> None:
    assert long_score([base] * len(scores), base) == 0.0
    assert long_score([0.0] * len(scores), base) == -100.0
    value = long_score(scores, base)
    assert value is not None
    assert value >= -100.0
