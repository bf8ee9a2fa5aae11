"""The parity cases: values of the official functions, one by one."""

from __future__ import annotations

import json
from pathlib import Path

from lcbench.scoring import score_row
from lcbench.scoring.metrics import score

MARK = "longbench_metrics.jsonl"


def _cases(shared_data: Path) -> list[dict]:
    text = (shared_data / "metric-cases" / MARK).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_every_case_equals_the_official_value(shared_data: Path) -> None:
    cases = _cases(shared_data)
    assert len(cases) == 206
    wrong = []
    for case in cases:
        rule = (case["prediction"], case["ground_truths"], case["all_classes"])
        if case["level"] == "row":
            ours = score_row(case["dataset"], *rule)
        else:
            ours = score(case["metric"].removesuffix("_score"), *rule)
        if abs(ours - case["score"]) > 1e-9:
            wrong.append((case["id"], ours, case["score"]))
    assert wrong == []


def test_cases_cover_every_metric_and_both_levels(shared_data: Path) -> None:
    cases = _cases(shared_data)
    assert {case["level"] for case in cases} == {"metric", "row"}
    assert len({case["metric"] for case in cases}) == 9


def test_the_levenshtein_definition_moves_ten_of_the_code_cases(shared_data: Path) -> None:
    """The README of the cases counts them: the other definition must be another one, and only for these."""
    moved = 0
    for case in _cases(shared_data):
        if case["metric"] == "code_sim_score":
            rule = (case["prediction"], case["ground_truths"])
            moved += score("code_sim", *rule, code_sim="levenshtein") != score("code_sim", *rule)
    assert moved == 10
