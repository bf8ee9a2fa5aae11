"""Published tables: they load, they say what they are, and stand beside one's own run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import make, right
from typer.testing import CliRunner

from lcbench.cli import app
from lcbench.errors import BadValue, LcbenchError, UnknownName
from lcbench.reporting.against_published import beside, verdict
from lcbench.reporting.build import build
from lcbench.reporting.published import find, load, names
from lcbench.tasks.facts import TASK_FACTS

MEANS = {"macro_en", "macro_zh", "micro15", "micro16", "code"}
SPEC = Path(__file__).parents[3] / "shared/specs/benchmarks/published-results.json"


def test_every_table_is_whole() -> None:
    assert {"kivi", "longbench", "longctx_bench"} <= set(names())
    for name in names():
        table = load(name)
        assert table.name == name
        assert table.title
        assert table.source
        assert table.rows
        if table.benchmark == "longbench":
            keys = {key for row in table.rows for key in row.scores}
            assert all(key in TASK_FACTS or key in MEANS or key.split("/")[0] in ("en", "zh") for key in keys)
            assert all(0 <= score <= 100 for row in table.rows for score in row.scores.values())


@pytest.mark.skipif(not SPEC.exists(), reason="the shared specifications are not here")
def test_the_workbench_table_holds_the_numbers_of_the_specification() -> None:
    rows = json.loads(SPEC.read_text())["longctx_bench_longbench"]["rows"]
    table = load("longctx_bench")
    assert len(table.rows) == len(rows)
    for ours, theirs in zip(table.rows, rows, strict=True):
        assert (ours.model, ours.method, ours.setting) == (theirs["model"], theirs["method"], theirs["ratio"] or "")
        assert ours.scores["en/few-shot"] == theirs["few_shot"]
        assert ours.scores["passage_retrieval_en"] == theirs["synthetic"]


def test_averages_follow_from_their_parts() -> None:
    for row in load("kivi").rows:
        tasks = [score for key, score in row.scores.items() if key != "micro15"]
        assert sum(tasks) / 15 == pytest.approx(row.scores["micro15"], abs=0.006)
    for row in load("longctx_bench").rows:
        four = sum(row.scores[f"en/{c}"] for c in ("single-doc-qa", "multi-doc-qa", "summarization", "few-shot"))
        mean = (3 * four + row.scores["passage_retrieval_en"] + 2 * row.scores["code"]) / 15
        assert mean == pytest.approx(row.scores["micro15"], abs=0.01)


def test_a_model_is_found_by_its_beginning() -> None:
    table, rows = find("published:longctx_bench/llama3-8b")
    assert table.name == "longctx_bench"
    assert {row.model for row in rows} == {"llama3-8b-instruct"}
    assert [row.label for row in rows][:2] == ["baseline", "kivi 2bit"]
    assert find("published:longctx_bench/LLAMA3-8B-INSTRUCT")[1] == rows


@pytest.mark.parametrize(
    ("reference", "error", "said"),
    [
        ("published:longctx_bench/lama3", UnknownName, "llama3-8b-instruct"),
        ("published:longctx_bench", BadValue, "published:longctx_bench/mistral-7b-instruct-v0.2"),
        ("published:longctxbench/x", UnknownName, "longctx_bench"),
        ("published:longctx_bench/", UnknownName, "llama3-8b-instruct"),
        ("published:longbench/Chat", BadValue, "ChatGLM2-6B-32k, ChatGLM3-6B-32k"),
        ("published:", BadValue, "published:kivi/"),
    ],
)
def test_wrong_references_name_what_there_is(reference: str, error: type[LcbenchError], said: str) -> None:
    with pytest.raises(error) as caught:
        find(reference)
    assert said in caught.value.next_step


def call(*words: str) -> Any:
    return CliRunner().invoke(app, ["compare", *words])


@pytest.mark.parametrize("width", [80, 200])
def test_own_scores_stand_beside_published_ones(tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    tasks = ["lcc", "repobench-p", "qasper", "multifieldqa_en"]
    records = [
        right(0, pred="x", answers=["x"], all_classes=["x"]),
        right(1, pred="y", answers=["x"], all_classes=["x"]),
    ]
    make(tmp_path / "r", {(m, t): records for m in ("full", "kivi@bits=2") for t in tasks})
    result = call(str(tmp_path / "r"), "--baseline", "published:longctx_bench/llama3-8b")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= width
    text = " ".join(result.stdout.split())
    assert "54.11" in text  # published, code, baseline
    assert "not compared: en/single-doc-qa, part: 2 tasks: the run has only a part of its tasks" in text
    assert "full stands" in text
    assert "not paired" in text
    data = json.loads(call(str(tmp_path / "r"), "-b", "published:longctx_bench/llama3-8b", "--json").stdout)
    (code,) = data["lines"]
    assert code["key"] == "code"
    assert code["published"]["kivi 2bit"] == pytest.approx(48.74, abs=0.01)
    assert code["own"]["full"]["score"] == 50.0
    only = json.loads(call(str(tmp_path / "r"), "full", "-b", "published:kivi/mistral", "--json").stdout)
    assert {m for line in only["lines"] for m in line["own"]} == {"full"}
    assert [line["key"] for line in only["lines"]] == tasks


def test_a_run_without_a_common_line_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "r", {("full", "passkey"): [right(0, meta={"length_words": 1, "depth": 0})]})
    error = call(str(tmp_path / "r"), "-b", "published:longctx_bench/llama3-8b").exception
    assert isinstance(error, BadValue)
    assert "micro15" in error.next_step
    wrong_name = call(str(tmp_path / "r"), "ful", "-b", "published:longctx_bench/llama3-8b").exception
    assert isinstance(wrong_name, UnknownName)


@pytest.mark.parametrize(
    ("method", "kept", "parameters", "label"),
    [
        ("full", 1000, {}, "baseline"),
        ("kivi@bits=2", 260, {}, "kivi 2bit"),
        ("kivi", 260, {"bits": "2"}, "kivi 2bit"),
        ("kivi@bits=4", 380, {"bits": "4"}, None),
        ("flexgen-longctx", 300, {"bits": "4"}, "flexgen 4bit"),
        ("h2o-longctx@budget=0.25", 252, {}, "h2o 4x"),
        ("h2o@budget=0.125", 125, {}, "h2o 8x"),
        ("h2o@budget=0.5", 500, {}, None),
        ("snapkv", 250, {}, None),
    ],
)
def test_a_method_is_set_against_its_own_published_line(
    tmp_path: Path, method: str, kept: int, parameters: dict[str, str], label: str | None
) -> None:
    answer = {"pred": "Paragraph 3", "answers": ["Paragraph 3"]}
    rows = [right(i, kv_bytes=kept, kv_bytes_full=1000, **answer) for i in range(4)]
    report = build([make(tmp_path / "r", {(method, "passage_retrieval_en"): rows})])
    table, published = find("published:longctx_bench/llama3-8b")
    found = beside(report, table, published, {method: parameters})
    assert not any("says nothing of" in note for note in found.notes)
    (column,) = report.columns
    assert found.line_for(column).label == (label or "baseline")
    said = verdict(found, column)
    assert f"from the published {label or 'baseline'}" in said
    assert ("the table has no line of this method and setting" in said) == (label is None)
    assert said.endswith("; 1 own interval has no width, which tells nothing.")  # all four are right
    assert "inside" not in said
    assert found.to_dict()["against"] == {method: label or "baseline"}


def test_parameters_that_a_published_table_does_not_name_are_told(tmp_path: Path) -> None:
    answer = {"pred": "Paragraph 3", "answers": ["Paragraph 3"]}
    rows = [right(i, kv_bytes=200, kv_bytes_full=1000, **answer) for i in range(4)]
    method = "kivi@bits=2,group_size=16"
    report = build([make(tmp_path / "r", {(method, "passage_retrieval_en"): rows})])
    table, published = find("published:longctx_bench/llama3-8b")
    notes = beside(report, table, published, {method: {"bits": "2"}}).notes
    assert f"{method}: the table says nothing of group_size=16, which may make it another setting" in notes
