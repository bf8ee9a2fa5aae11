"""Which tasks are lengths of one another, and what becomes of their samples."""

from __future__ import annotations

from typing import Any

import pytest

from lcbench.errors import BadValue, UnknownName
from lcbench.scoring.bootstrap import Bootstrap
from lcbench.scoring.longscore.ladder import Counts, find_ladders, in_common, length_label, parse_length, split_task
from lcbench.scoring.longscore.result import LongScoreOptions, long_scores


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("100-longbench/kv_retrieval@16k", ("100-longbench/kv_retrieval", "16k")),
        ("100-longbench/kv_retrieval@base", ("100-longbench/kv_retrieval", "base")),
        ("100-longbench/kv_retrieval@16k,build=llama", ("100-longbench/kv_retrieval@build=llama", "16k")),
        ("ruler/niah@length=4096,needles=2", ("ruler/niah@needles=2", "4096")),
        ("100-longbench/single_doc_qa@no-context", None),
        ("qasper", None),
        ("passkey@digits=64", None),
    ],
)
def test_a_length_is_taken_out_of_a_task_id(task: str, expected: tuple[str, str] | None) -> None:
    assert split_task(task) == expected


def test_lengths_in_words_and_numbers() -> None:
    assert [parse_length(text) for text in ("8k", "1000", "16K")] == [8192, 1000, 16384]
    assert [length_label(size) for size in (8192.0, 1000.0, 1024.0)] == ["8k", "1000", "1k"]
    with pytest.raises(BadValue):
        parse_length("long")


def test_one_task_in_several_ids_is_one_ladder_in_order_of_length(scored: Any) -> None:
    names = ["t@16k", "t@base", "t@2000", "u@8k", "u@base", "t@no-context"]
    tasks = [scored(f"100-longbench/{name}", [1.0, 0.0]) for name in names]
    t, u = find_ladders(tasks, "reference")
    assert (t.name, [p.label for p in t.base], [p.label for p in t.points]) == (
        "100-longbench/t",
        ["base"],
        ["2000", "16k"],
    )
    assert (u.suite, u.unit, [p.size for p in u.points]) == ("100-longbench", "tokens", [8192])


def test_every_fate_is_counted_and_only_kept_samples_are_in_the_score(scored: Any) -> None:
    one = scored(
        "100-longbench/t@8k",
        [1.0, None, None, 0.0, 1.0, 1.0],
        judge_failed=frozenset({2}),
        filtered=frozenset({4}),
        cut=(0, 4),
    )
    ladder = find_ladders([scored("100-longbench/t@base", [1.0]), one], "reference")[0]
    point = ladder.points[0]
    assert point.counts == Counts(kept=3, failed=1, judge_failed=1, filtered=1, cut=1)
    assert [unit.key for unit in point.units] == ["0", "3", "5"]
    assert point.score == 66.67


def test_the_papers_base_is_the_mean_of_the_short_lengths(scored: Any) -> None:
    sizes = [2048, 2048, 4096, 4096, 6144]
    base = scored("100-longbench/t@base", [1.0, 1.0, 1.0, 0.0, 0.0], meta=[{"base_length": size} for size in sizes])
    tasks = [base, scored("100-longbench/t@8k", [1.0])]
    pooled = find_ladders(tasks, "reference")[0]
    assert [(p.label, p.score) for p in pooled.base] == [("base", 60.0)]
    paper = find_ladders(tasks, "paper")[0]
    assert [(p.label, p.score) for p in paper.base] == [("2k", 100.0), ("4k", 50.0), ("6k", 0.0)]


def test_a_pooled_base_has_no_paper_form_and_that_is_said(scored: Any) -> None:
    tasks = [scored("100-longbench/t@base", [1.0]), scored("100-longbench/t@8k", [1.0])]
    ladder = find_ladders(tasks, "paper")[0]
    assert ladder.base == ()
    assert "--mode paper" in ladder.notes[0]


def test_a_missing_base_set_is_named(scored: Any) -> None:
    ladder = find_ladders([scored("100-longbench/t@8k,build=b", [1.0])], "reference")[0]
    assert ladder.base == ()
    assert "100-longbench/t@base,build=b" in ladder.notes[0]


def test_other_tasks_take_their_shortest_length_as_base_or_what_is_asked_for(scored: Any) -> None:
    tasks = [scored(f"ruler/niah@{n}", [1.0], benchmark="ruler") for n in ("4k", "8k", "16k")]
    assert [p.label for p in find_ladders(tasks, "reference")[0].base] == ["4k"]
    chosen = find_ladders(tasks, "reference", ("4k", "8k"))[0]
    assert ([p.label for p in chosen.base], [p.label for p in chosen.points]) == (["4k", "8k"], ["16k"])
    with pytest.raises(UnknownName, match="base length '5k'"):
        find_ladders(tasks, "reference", ("4k", "5k"))
    with pytest.raises(UnknownName, match="base length '5k'"):
        long_scores({"full": tasks}, LongScoreOptions(wanted=True, base_lengths=("5k",)), Bootstrap(resamples=10))
    with pytest.raises(BadValue, match="no length above"):
        find_ladders(tasks, "reference", ("16k",))
    assert find_ladders(tasks[:1], "reference") == []


def test_longbench_e_buckets_are_a_ladder(scored: Any) -> None:
    task = scored("qasper_e", [1.0, 0.5, 0.0, 1.0], lengths=[100, 4000, 7999, 8000], benchmark="longbench-e")
    ladder = find_ladders([task], "reference")[0]
    assert [(p.label, p.score) for p in (*ladder.base, *ladder.points)] == [
        ("0-4k", 100.0),
        ("4-8k", 25.0),
        ("8k+", 100.0),
    ]


def test_passkey_cells_are_its_units_however_often_a_cell_is_repeated(scored: Any) -> None:
    meta = [{"length_words": n, "depth": d} for n, d in [(512, 0.0), (512, 0.0), (512, 1.0), (128, 0.0), (128, 1.0)]]
    task = scored("passkey", [1.0, 0.0, None, 1.0, 1.0], meta=meta, metric="passkey", benchmark="passkey")
    ladder = find_ladders([task], "reference")[0]
    assert [(p.label, p.score, len(p.units)) for p in (*ladder.base, *ladder.points)] == [
        ("128", 100.0, 2),
        ("512", 50.0, 1),
    ]
    assert ladder.points[0].counts == Counts(kept=2, failed=1)


def test_chance_is_the_mean_of_what_the_rows_say(scored: Any) -> None:
    meta = [{"chance": 0.2}, {"chance": 0.3}, {"chance": 0.9}]
    base = scored("100-longbench/t@base", [1.0, 0.0, None], meta=meta)
    mixed = scored("100-longbench/t@8k", [1.0, 0.0], meta=[{"chance": 0.2}, {"chance": None}])
    ladder = find_ladders([base, mixed], "reference")[0]
    assert ladder.base[0].chance == pytest.approx(25.0)
    assert ladder.points[0].chance is None


def test_common_units_come_in_the_order_of_the_other(scored: Any) -> None:
    def point(scores: list[float | None]) -> Any:
        return find_ladders([scored("100-longbench/t@8k", scores)], "reference")[0].points[0]

    mine, other = in_common(point([1.0, None, 0.0]), point([None, 1.0, 0.5]))
    assert [(u.key, u.score) for u in mine.units] == [("2", 0.0)]
    assert [(u.key, u.score) for u in other.units] == [("2", 0.5)]
    assert (mine.score, other.score) == (0.0, 50.0)
