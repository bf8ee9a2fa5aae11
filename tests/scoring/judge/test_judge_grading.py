"""From a run to judged scores: the filter, the counts, the cache, failures that are no zeros."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lcbench.errors import BadValue, NetworkError, UsageError
from lcbench.scoring.judge.asking import Budget
from lcbench.scoring.judge.grading import Grading
from lcbench.scoring.longscore.ladder import Counts
from lcbench.scoring.run import ScoreOptions, score_path
from lcbench.scoring.table import ScoreTable, TaskScore
from scoring.judge.stand_in import StandIn

Gradings = Callable[..., Grading]
QUICK = ScoreOptions(resamples=50)
QA, SUM = "100-longbench/single_doc_qa@8k", "100-longbench/single_doc_sum@8k"


def scored(run: Any, grading: Grading) -> ScoreTable:
    return score_path(run.path, QUICK, grading=grading)


def task(table: ScoreTable, name: str = QA) -> TaskScore:
    return table.methods["full"].tasks[name]


def counts(table: ScoreTable) -> Counts:
    """Of single_doc_qa at 8k, as LongScore has them."""
    assert table.longscore is not None
    ladder = next(c for c in table.longscore.curves["full"] if c.name == "100-longbench/single_doc_qa")
    return ladder.rungs[0].counts


def test_a_good_judge_gives_the_benchmarks_scores(qa_run: Any, grading: Gradings, stand_in: StandIn) -> None:
    table = scored(qa_run(), grading())
    # Right and fluent 1, wrong 0, right but not fluent 0, empty 0 without a call.
    assert (task(table).score, task(table).n, task(table).n_error, task(table).metric) == (25.0, 4, 0, "qa_judge")
    # Only the first line counts: 1 of 2 sentences; all of 1; not fluent; empty.
    assert (task(table, SUM).score, task(table, SUM).metric) == (37.5, "summary_judge")
    texts = [asked.prompt for asked in stand_in.asked]
    assert len(texts) == len(set(texts))
    # qa: 3 (base and 8k ask the same); fluency: 3; precision: 2 (none for the text without fluency).
    assert len(texts) == 8
    assert not any("More." in text for text in texts)
    assert list(table.methods["full"].tasks) == ["100-longbench/single_doc_qa@base", QA, SUM]


def test_questions_answered_without_the_context_leave_the_count(qa_run: Any, grading: Gradings) -> None:
    run = qa_run(without={0: "Ada, I think.", 1: "Bergen", 2: "It is Unanswerable.\n1900"})
    table = scored(run, grading())
    one = task(table)
    assert (one.score, one.n, one.n_filtered, one.n_error) == (0.0, 3, 1, 0)
    assert any("2 of 12 graded rows left out" in note for note in table.notes)
    assert (counts(table).kept, counts(table).filtered) == (3, 1)
    off = task(scored(run, grading(threshold=0.0)))
    assert (off.score, off.n, off.n_filtered) == (25.0, 4, 0)


def test_all_rows_filtered_is_null_and_no_division_by_zero(qa_run: Any, grading: Gradings) -> None:
    run = qa_run(without={0: "Ada", 1: "Oslo", 2: "1900", 3: "for tea"})
    one = task(scored(run, grading()))
    assert (one.score, one.n, one.n_filtered, one.interval) == (None, 0, 4, None)


def test_rows_without_a_no_context_answer_are_kept_and_said(make_run: Any, qa_run: Any, grading: Gradings) -> None:
    table = scored(qa_run({"question_id": "unknown"}), grading())
    assert (task(table).n, task(table).n_filtered) == (4, 0)
    assert any("8 not filtered" in note for note in table.notes)


def test_a_rerun_costs_nothing(qa_run: Any, grading: Gradings, stand_in: StandIn) -> None:
    run = qa_run()
    first = scored(run, grading()).to_dict()
    calls = len(stand_in.asked)
    asked: list[Budget] = []
    stand_in.stop()
    again = scored(run, grading(confirm=asked.append)).to_dict()
    assert len(stand_in.asked) == calls
    assert asked == []
    assert again["methods"] == first["methods"]
    assert again["longscore"] == first["longscore"]


def test_replies_that_cannot_be_read_are_failures_and_are_asked_again_next_time(
    qa_run: Any, grading: Gradings, stand_in: StandIn
) -> None:
    run = qa_run()
    stand_in.always = "text:I would say it is fine."
    one = grading()
    table = scored(run, one)
    # The empty prediction is a true 0; the others have no verdict and are no zeros.
    assert (task(table).score, task(table).n, task(table).n_error, task(table).n_judge_failed) == (0.0, 1, 3, 3)
    assert (counts(table).kept, counts(table).judge_failed) == (1, 3)
    assert {failure.reason for failure in one.failures} == {"its reply holds no grades in the form asked for"}
    judge = table.to_dict()["judge"]
    assert judge["failures"][0] == {
        "method": "full",
        "task": "100-longbench/single_doc_qa@base",
        "sample": "0",
        "reason": "its reply holds no grades in the form asked for",
    }
    stand_in.always = "good"
    assert (task(scored(run, grading())).score, task(scored(run, grading())).n_error) == (25.0, 0)


def test_a_verdict_missing_for_one_answer_of_several_is_a_failure_not_a_worse_score(
    make_run: Any, grading: Gradings, stand_in: StandIn
) -> None:
    row = {"pred": "Ada.", "answers": ["Bea", "Ada"], "meta": {"question": "Who?", "question_id": "q"}}
    run = make_run({("full", QA): [row]})
    stand_in.script = ["good", "400"]
    table = scored(run, grading(workers=1))
    assert (task(table).score, task(table).n, task(table).n_judge_failed) == (None, 0, 1)
    assert task(scored(run, grading())).score == 100.0


def test_an_undecided_filter_is_a_failure_too(qa_run: Any, grading: Gradings, stand_in: StandIn) -> None:
    run = qa_run(without={0: "Ada"})
    stand_in.script = ["400"]
    one = task(scored(run, grading(workers=1)))
    assert (one.n, one.n_judge_failed, one.n_filtered) == (3, 1, 0)


def test_model_failures_and_judge_failures_are_counted_apart(
    make_run: Any, grading: Gradings, stand_in: StandIn
) -> None:
    failed = {"pred": "", "status": "error", "error": "too long", "answers": ["x"]}
    run = make_run({("full", QA): [failed, {"pred": "x", "answers": ["x"]}, {"pred": "y", "answers": ["x"]}]})
    stand_in.script = ["400"]
    table = scored(run, grading(workers=1))
    assert (task(table).n, task(table).n_error, task(table).n_judge_failed) == (1, 2, 1)


def test_the_cost_is_told_before_the_first_call_and_can_be_refused(
    qa_run: Any, grading: Gradings, stand_in: StandIn
) -> None:
    told: list[Budget] = []

    def refuse(budget: Budget) -> None:
        told.append(budget)
        raise UsageError("No.")

    run = qa_run()
    with pytest.raises(UsageError):
        scored(run, grading(confirm=refuse))
    assert stand_in.asked == []
    (budget,) = told
    # 3 qa + 3 fluency + 3 precision: the one that fluency makes needless cannot be known before.
    assert (budget.calls, budget.cached, budget.reply_tokens) == (9, 0, 9 * 1024)
    assert 2000 < budget.prompt_tokens < 6000
    scored(run, grading(confirm=told.append))
    assert len(stand_in.asked) == 8


def test_calls_run_side_by_side_up_to_the_limit(make_run: Any, grading: Gradings, stand_in: StandIn) -> None:
    rows = [{"pred": f"answer {i}", "answers": ["x"]} for i in range(12)]
    stand_in.always = "slow:0.05"
    scored(make_run({("full", QA): rows}), grading(workers=3))
    assert 2 <= stand_in.most <= 3
    stand_in.most = 0
    scored(
        make_run({("full", QA): [{"pred": f"other {i}", "answers": ["x"]} for i in range(3)]}, "b"), grading(workers=1)
    )
    assert stand_in.most == 1


def test_a_judge_that_does_not_answer_at_all_ends_it_and_what_came_is_kept(
    make_run: Any, grading: Gradings, stand_in: StandIn, tmp_path: Path
) -> None:
    run = make_run({("full", QA): [{"pred": f"answer {i}", "answers": ["x"]} for i in range(10)]})

    def die(asked: Any) -> None:
        if len(stand_in.asked) == 4:
            stand_in.always = "silent:0"

    stand_in.on_request = die
    with pytest.raises(NetworkError):
        scored(run, grading(workers=1))
    kept = len(list((tmp_path / "home" / "judge").rglob("*.json")))
    assert kept == 4
    stand_in.on_request, stand_in.always = None, "good"
    stand_in.asked.clear()
    assert task(scored(run, grading())).n == 10
    assert len(stand_in.asked) == 10 - kept


def test_damaged_cache_files_are_asked_again(qa_run: Any, grading: Gradings, stand_in: StandIn, tmp_path: Path) -> None:
    run = qa_run()
    scored(run, grading())
    files = sorted((tmp_path / "home" / "judge").rglob("*.json"))
    files[0].write_text("{")
    data = json.loads(files[1].read_text())
    files[1].write_text(json.dumps({**data, "reply": 5}))
    stand_in.asked.clear()
    scored(run, grading())
    assert len(stand_in.asked) == 2


def test_no_key_reaches_any_file(
    qa_run: Any, grading: Gradings, stand_in: StandIn, tmp_path: Path, monkeypatch: Any
) -> None:
    from lcbench.scoring.judge.endpoint import Endpoint, key_for
    from scoring.judge.stand_in import QUICK as PATIENCE

    monkeypatch.setenv("LCBENCH_JUDGE_KEY", "sk-secret")
    judge = Endpoint("m", stand_in.url, key_for(stand_in.url), PATIENCE)
    run = qa_run()
    run.write_scores(scored(run, grading(judge=judge)).to_dict())
    assert stand_in.asked[0].headers["authorization"] == "Bearer sk-secret"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"sk-secret" not in path.read_bytes(), path


def test_a_run_without_such_tasks_and_a_loose_file_have_no_judge(
    make_run: Any, grading: Gradings, write_rows: Any, row: Any, tmp_path: Path
) -> None:
    with pytest.raises(BadValue, match="no task that a judge grades"):
        scored(make_run({("full", "qasper"): [{}]}), grading())
    path = write_rows(tmp_path / "qasper.jsonl", [row()])
    with pytest.raises(BadValue, match="no run directory"):
        score_path(path, QUICK, grading=grading())
