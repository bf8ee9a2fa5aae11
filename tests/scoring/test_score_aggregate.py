"""From samples to tasks: rounding as published, lengths, failed samples, passkey cells, intervals, means over tasks."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcbench.scoring.aggregate import bucket_of, task_score
from lcbench.scoring.bootstrap import Bootstrap, mean_of
from lcbench.scoring.groups import Groups
from lcbench.scoring.metrics import score
from lcbench.scoring.rows import task_facts
from lcbench.scoring.samples import Sample, TaskSamples
from lcbench.scoring.table import MethodScores, ScoreTable, TaskScore
from lcbench.tasks.facts import TaskFacts

QUICK = Bootstrap(seed=0, resamples=50)


def _task(values: list[Any], *, task: str = "qasper", benchmark: str = "longbench", **fields: list[Any]) -> TaskScore:
    samples = tuple(
        Sample("x", ("x",), ok=value is not None, **{name: column[i] for name, column in fields.items()})
        for i, value in enumerate(values)
    )
    inputs = TaskSamples(task, task_facts(task), benchmark, samples, f"{task}.jsonl")
    rows = [None if v is None else v if isinstance(v, tuple) else (v,) for v in values]
    return task_score(inputs, rows, "difflib", QUICK)[0]


# -- rounding and failed samples ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_a_task_is_rounded_as_the_official_scorer_rounds(values: list[float]) -> None:
    total = 0.0
    for value in values:
        total += value
    assert _task(values).score == round(100 * total / len(values), 2)


def test_buckets_are_rounded_as_numpy_rounds_and_tasks_as_python_does() -> None:
    value = 0.99395  # 100 x it is just under 99.395: Python sees that, numpy scales it to a tie and takes the even
    one = _task([value], benchmark="longbench-e", length=[10])
    assert one.by_length["0-4k"].score == float(np.round(100 * np.mean([value]), 2)) == 99.4
    assert one.score == round(100 * value, 2) == 99.39


def test_failed_samples_have_no_score_and_are_counted() -> None:
    one = _task([1.0, None, 0.0, None])
    assert (one.score, one.n, one.n_error) == (50.0, 2, 2)
    none = _task([None, None])
    assert (none.score, none.n, none.n_error, none.interval) == (None, 0, 2, None)


def test_lengths_of_longbench_e() -> None:
    assert [bucket_of(x) for x in (0, 3999, 4000, 7999, 8000, 10**6)] == ["0-4k"] * 2 + ["4-8k"] * 2 + ["8k+"] * 2
    one = _task([1.0, 0.0, None, 1.0], benchmark="longbench-e", length=[10, 20, 30, 4000])
    short, middle, long = one.by_length.values()
    assert (short.score, short.n, short.n_error) == (50.0, 2, 1)
    assert (middle.score, middle.n, middle.interval) == (100.0, 1, None)
    assert (long.score, long.n, long.n_error) == (None, 0, 0)


def test_plain_longbench_has_no_buckets() -> None:
    assert _task([1.0], length=[10]).by_length == {}


# -- passkey -----------------------------------------------------------------------------------------------------------


def _passkey(answered: dict[tuple[int, float, int], tuple[float, float] | None]) -> TaskScore:
    """The main grid, wrong answers everywhere but where given."""
    lengths = [512, 2730, 4949, 7168, 9386, 11605, 13824, 16042, 18261, 20480]
    cells = [(length, k / 9, repeat) for length in lengths for k in range(10) for repeat in range(3)]
    values = [answered.get(cell, (0.0, 0.0)) for cell in cells]
    meta = [{"length_words": w, "depth": d, "repeat": r} for w, d, r in cells]
    return _task(values, task="passkey", benchmark="passkey", meta=meta)


def test_one_repeat_of_one_cell() -> None:
    one = _passkey({(512, 1 / 9, 1): (1.0, 1.0)})
    assert one.passkey is not None
    assert one.passkey["processed_results"]["512"]["0.1111111111111111"]["exact_match"] == pytest.approx(1 / 3)
    assert one.passkey["background_len_wise_results"]["512"]["exact_match"] == pytest.approx(1 / 30)
    assert one.passkey["overall_results"]["exact_match"] == pytest.approx(1 / 300)
    assert one.score == 0.33
    assert one.by_length["512"].score == 3.33
    assert one.by_length["2730"].score == 0.0
    assert (one.n, one.clusters) == (300, 100)
    assert list(one.passkey["processed_results"]["20480"])[::9] == ["0", "1"]


def test_partial_match_is_a_column_of_its_own() -> None:
    one = _passkey({(512, 0.0, 0): (0.0, 5 / 7)})
    assert (one.score, one.partial) == (0.0, round(100 * 5 / 7 / 300, 2))
    assert one.by_length["512"].partial == round(100 * 5 / 7 / 30, 2)


def test_cells_weigh_the_same_when_a_repeat_failed() -> None:
    meta = [{"length_words": 512, "depth": d} for d in (0, 0, 0, 1)]
    one = _task([(1.0, 1.0), None, None, (0.0, 0.0)], task="passkey", benchmark="passkey", meta=meta)
    assert (one.score, one.n, one.n_error) == (50.0, 2, 2)
    assert one.by_length["512"].n_error == 2


def test_a_length_whose_samples_all_failed_has_no_score() -> None:
    meta = [{"length_words": w, "depth": 0.5} for w in (512, 1024)]
    one = _task([(1.0, 1.0), None], task="passkey", benchmark="passkey", meta=meta)
    assert one.score == 100.0
    assert (one.by_length["1024"].score, one.by_length["1024"].n_error) == (None, 1)
    assert one.passkey is not None
    assert "1024" not in one.passkey["background_len_wise_results"]


def test_passkey_rows_without_a_cell_count_one_by_one() -> None:
    one = _task([(1.0, 1.0), (0.0, 0.5)], task="passkey", benchmark="passkey", length=[100, 100])
    assert (one.score, one.partial, one.clusters) == (50.0, 75.0, 2)


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_intervals_are_seeded_and_hold_the_mean() -> None:
    values = [0.0, 1.0] * 50
    a, b = (Bootstrap(0).replicates(values, None, "qasper") for _ in range(2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, Bootstrap(1).replicates(values, None, "qasper"))
    assert not np.array_equal(a, Bootstrap(0).replicates(values, None, "hotpotqa"))
    low, high = Bootstrap(0).interval(a)
    assert low < 50 < high
    # The normal interval of 100 fair coins is 50 ± 9.8.
    assert low == pytest.approx(40.2, abs=1.5)
    assert high == pytest.approx(59.8, abs=1.5)


def test_replicates_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(np.linspace(0, 1, 37))
    whole = Bootstrap(3).replicates(values, None, "t")
    monkeypatch.setattr("lcbench.scoring.bootstrap._CELLS", 100)
    assert np.array_equal(whole, Bootstrap(3).replicates(values, None, "t"))


def test_clusters_are_drawn_as_a_whole() -> None:
    values = [1.0] * 20 + [0.0] * 20
    alone = Bootstrap(0).interval(Bootstrap(0).replicates(values, None, "t"))
    pairs = Bootstrap(0).interval(Bootstrap(0).replicates(values, ["a"] * 20 + ["b"] * 20, "t"))
    assert pairs == (0.0, 100.0)
    assert alone[0] > 20
    assert alone[1] < 80


def test_clusters_of_unequal_size_give_weighted_means() -> None:
    drawn = Bootstrap(0).replicates([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"], "t")
    assert set(np.round(drawn, 9)) == {0.0, 0.75, 1.0}


def test_samples_that_share_a_context_are_one_cluster() -> None:
    assert _task([1.0, 0.0, 1.0], cluster=["x", "x", None]).clusters == 2
    assert _task([1.0, 0.0, 1.0], cluster=["x", "y", None]).clusters == 3


def test_one_cluster_has_no_interval() -> None:
    assert _task([1.0]).interval is None
    assert Bootstrap().replicates([1.0, 0.0], ["a", "a"], "t") is None
    assert Bootstrap().replicates([], None, "t") is None
    assert mean_of([None, np.ones(3)]) is None
    assert mean_of([]) is None


# -- means over tasks --------------------------------------------------------------------------------------------------


def _groups(scores: dict[str, float], benchmark: str = "longbench", **by_length: Any) -> Groups:
    tasks = {}
    for name, value in scores.items():
        tasks[name] = _task([value / 100, value / 100], task=name, benchmark=benchmark, length=[10, 5000])
    return Groups(tasks, dict.fromkeys(tasks), QUICK)


PUBLISHED = {  # llama3-8b-instruct of the published forks
    "multifieldqa_en": 54.09, "triviaqa": 91.34, "qmsum": 23.55, "lcc": 63.19, "passage_retrieval_zh": 95.0,
    "hotpotqa": 44.86, "passage_retrieval_en": 68.0, "lsht": 38.0, "musique": 24.57, "multifieldqa_zh": 61.89,
    "repobench-p": 54.44, "dureader": 34.41, "vcsum": 17.24, "narrativeqa": 22.68, "trec": 69.5, "samsum": 44.44,
    "2wikimqa": 44.9, "passage_count": 6.72, "gov_report": 34.49, "qasper": 44.93, "multi_news": 27.15,
}  # fmt: skip


def test_means_of_a_whole_longbench() -> None:
    groups = _groups(PUBLISHED)
    english = {"single-doc-qa": 40.57, "multi-doc-qa": 38.11, "summarization": 28.4, "few-shot": 68.43}
    found = {key: one.score for key, one in groups.categories.items()}
    assert {f"en/{k}": v for k, v in english.items()}.items() <= found.items()
    assert (found["en/synthetic"], found["code"], found["zh/synthetic"]) == (37.36, 58.81, 95.0)
    assert all(one.complete for one in [*groups.categories.values(), *groups.overall.values()])
    six = [40.57, 38.11, 28.4, 68.43, 37.36, 58.81]
    assert groups.overall["macro_en"].score == round(sum(six) / 6, 2)
    assert groups.overall["macro_zh"].score == round((61.89 + 34.41 + 17.24 + 38.0 + 95.0 + 58.81) / 6, 2)
    chinese = {"multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"}
    sixteen = {k: v for k, v in PUBLISHED.items() if k not in chinese}
    assert groups.overall["micro16"].score == round(sum(sixteen.values()) / 16, 2)
    assert groups.overall["micro15"].score == round((sum(sixteen.values()) - 6.72) / 15, 2)
    assert len(groups.overall["micro15"].members) == 15
    assert "passage_count" not in groups.overall["micro15"].members


def test_a_part_of_a_mean_says_what_is_missing() -> None:
    groups = _groups({"qasper": 40.0, "lcc": 60.0})
    macro = groups.overall["macro_en"]
    assert (macro.score, macro.complete) == (50.0, False)
    assert "en/few-shot" in macro.missing
    assert "narrativeqa" in macro.missing
    assert "macro_zh" not in groups.overall
    assert set(groups.categories) == {"en/single-doc-qa", "code"}


def test_code_alone_makes_no_published_average() -> None:
    assert set(_groups({"lcc": 60.0}).overall) == {"micro15", "micro16"}


def test_means_of_longbench_e_by_length() -> None:
    groups = _groups({"qasper": 40.0, "multifieldqa_en": 20.0, "lcc_e": 60.0}, "longbench-e")
    assert groups.categories["e/single-doc-qa"].by_length == {"0-4k": 30.0, "4-8k": 30.0, "8k+": None}
    macro = groups.overall["macro_e"]
    assert (macro.score, macro.by_length) == (45.0, {"0-4k": 45.0, "4-8k": 45.0, "8k+": None})
    assert set(groups.overall) == {"macro_e"}


def test_other_benchmarks_have_no_means() -> None:
    one = _task([(1.0, 1.0)], task="passkey", benchmark="passkey")
    assert (Groups({"passkey": one}, {"passkey": None}, QUICK).overall) == {}


def test_a_task_without_a_score_is_missing_from_means() -> None:
    scores = {"qasper": _task([None]), "narrativeqa": _task([0.5], task="narrativeqa")}
    groups = Groups(scores, dict.fromkeys(scores), QUICK)
    assert groups.categories["en/single-doc-qa"].missing == ("qasper", "multifieldqa_en")


def test_the_interval_of_a_mean_is_that_of_independent_tasks() -> None:
    values = [0.0, 1.0] * 30
    tasks = {name: _task(values, task=name) for name in ("lcc", "repobench-p")}
    drawn = {name: QUICK.replicates(values, None, name) for name in tasks}
    group = Groups(tasks, drawn, QUICK).categories["code"]
    assert group.interval == QUICK.interval((drawn["lcc"] + drawn["repobench-p"]) / 2)


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_scores_are_plain_json() -> None:
    tasks = {
        "qasper_e": _task([1.0, 0.5], task="qasper_e", benchmark="longbench-e", length=[1, 2]),
        "passkey": _task([(1.0, 1.0)], task="passkey", benchmark="passkey", length=[1]),
    }
    groups = Groups(tasks, dict.fromkeys(tasks), QUICK)
    method = MethodScores(tasks, groups.categories, groups.overall)
    table = ScoreTable("run", "r", {"full": method}, {"code_sim": "difflib"}, ("a note",), "0.1.0")
    data = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert data["schema_version"] == 1
    found = data["methods"]["full"]["tasks"]
    assert found["qasper_e"]["by_length"]["8k+"] == {"score": None, "n": 0, "n_error": 0, "interval": None}
    assert set(found["passkey"]["by_length"]["1"]) == {"score", "n", "n_error", "interval", "partial"}
    assert "columns" not in found["qasper_e"]
    assert "passkey" not in found["qasper_e"]
    assert isinstance(found["qasper_e"]["interval"], list)
    assert data["methods"]["full"]["overall"]["macro_e"]["complete"] is False


def test_a_perfect_rouge_is_not_quite_one() -> None:
    value = score("rouge", "a b", ["a b"])
    assert math.isclose(value, 0.999999995)
    assert _task([value], task="gov_report").score == 100.0


def test_a_task_and_its_only_bucket_have_one_interval() -> None:
    rows = tuple(Sample("x", ("x",), length=9000, where=str(n)) for n in range(8))
    facts = TaskFacts("qasper", "longbench", "c", "en", "qa_f1", False, False, 0, False)
    task = TaskSamples("qasper", facts, "longbench-e", rows, "test")
    score, _ = task_score(task, [(n / 8,) for n in range(8)], "difflib", Bootstrap(resamples=200))
    assert score.interval == score.by_length["8k+"].interval
