"""LongScore in reports: rankings, published models beside one's own, losses, and the same in every format."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lcbench.cli import app
from lcbench.reporting import csv_, json_, markdown, published
from lcbench.reporting.build import build
from lcbench.reporting.longscore.merge import TABLES, published_entries
from lcbench.reporting.longscore.tables import ranking, sentences
from lcbench.reporting.longscore.view import Entry, view
from lcbench.reporting.terminal import render
from lcbench.scoring.longscore.plain import from_scores, mean_of_curves
from lcbench.scoring.run import score_run
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

PUBLISHED = Path(__file__).parents[3] / "shared/specs/benchmarks/published-results.json"
TASKS = ("kv_retrieval", "passage_count")
RIGHT = {"kv_retrieval": "12345678-1234-1234-1234-123456789012", "passage_count": "7"}
SHARES = {"full": (0.8, 0.7, 0.6), "snapkv@budget=0.25": (0.75, 0.3, 0.1)}


def make_run(
    path: Path,
    *,
    model: str = "demo",
    methods: Sequence[str] = tuple(SHARES),
    lengths: Sequence[str] = ("base", "8k", "16k"),
    tasks: Sequence[str] = TASKS,
) -> RunDirectory:
    rng = random.Random(0)
    names = [f"100-longbench/{task}@{label}" for task in tasks for label in lengths]
    spec = {"model": {"name": model}, "methods": list(methods), "tasks": names}
    with RunDirectory.create_or_continue(path, spec, {"model": {"name": model, "dtype": "float32"}}) as run:
        for method in methods:
            for task in tasks:
                for label, share in zip(("base", "8k", "16k"), SHARES[method], strict=True):
                    right = RIGHT[task]
                    preds = [right if rng.random() < share else "nothing" for _ in range(60 if label in lengths else 0)]
                    records = [
                        PredictionRecord(pred, [right], None, 0, f"{label}-{i}", meta={"context_id": f"c{i}"})
                        for i, pred in enumerate(preds)
                    ]
                    if records:
                        # Written at once: a sync for each of hundreds of lines is what a run needs and a test does not.
                        file = run.predictions_path(method, f"100-longbench/{task}@{label}")
                        file.parent.mkdir(parents=True, exist_ok=True)
                        file.write_text("".join(f"{record.to_line()}\n" for record in records), encoding="utf-8")
    return RunDirectory.open(path)


def test_the_report_of_a_run_has_curves_rankings_and_a_sentence(tmp_path: Path) -> None:
    found = build([make_run(tmp_path / "r")]).longscore
    assert found is not None
    assert found.names == ("100-longbench", "100-longbench/kv_retrieval", "100-longbench/passage_count")
    mean = found.rankings[0]
    assert (mean.name, mean.lengths, len(mean.members)) == ("100-longbench", ("8k", "16k"), 2)
    assert [s.label for s in mean.standings] == ["full", "snapkv@budget=0.25"]
    assert mean.standings[1].breakdown == "8k"
    (sentence,) = sentences(found)
    assert sentence.startswith("snapkv@budget=0.25 against full on the mean of the tasks: −")
    assert "what it costs is long-context ability" in sentence


def test_rank_changes_are_marked() -> None:
    strong = Entry("strong", {"t": from_scores("t", 90.0, {"8k": 60.0})})
    weak = Entry("weak", {"t": from_scores("t", 40.0, {"8k": 38.0})})
    middle = Entry("middle", {"t": from_scores("t", 50.0, {"8k": 45.0})})
    gone = Entry("gone", {"t": from_scores("t", 0.0, {"8k": 1.0})})
    made = view([weak, strong, middle, gone]).rankings[0]
    assert [(s.label, s.rank_average, s.rank_long_score, s.mark) for s in made.standings] == [
        ("strong", 1, 3, "▼2"),
        ("middle", 2, 2, "="),
        ("weak", 3, 1, "▲2"),
        ("gone", 4, None, ""),
    ]
    assert ranking(view([weak, strong, middle, gone]), made).rows[0][-2] == "▼2"


def test_only_lengths_that_all_own_entries_have_are_ranked() -> None:
    a = Entry("a", {"t": from_scores("t", 50.0, {"8k": 50.0, "16k": 0.0})})
    b = Entry("b", {"t": from_scores("t", 50.0, {"8k": 40.0})})
    made = view([a, b]).rankings[0]
    assert made.lengths == ("8k",)
    assert [(s.label, s.average) for s in made.standings] == [("a", 50.0), ("b", 40.0)]
    assert "not every line has 16k" in made.notes[0]


def test_published_models_never_take_a_length_away() -> None:
    own = Entry("own", {"t": from_scores("t", 50.0, {"8k": 50.0, "20k": 40.0})})
    theirs = Entry("theirs", {"t": from_scores("t", 50.0, {"8k": 40.0})}, published=True)
    whole = Entry("whole", {"t": from_scores("t", 50.0, {"8k": 40.0, "20k": 30.0, "64k": 1.0})}, published=True)
    made = view([own], [theirs, whole]).rankings[0]
    assert [s.label for s in made.standings] == ["own", "whole"]
    assert any("theirs" in note for note in made.notes)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="published-results.json is not here")
def test_the_shipped_tables_give_the_published_figures() -> None:
    data = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    entries = {entry.label: entry for entry in published_entries()}
    for table in ("hundred_longbench_instruct", "hundred_longbench_base"):
        for model, facts in data[table]["models"].items():
            lengths = [f"{k}k" for k in facts["lengths_k"] if k]
            curves = []
            for task, expected in facts["tasks"].items():
                whole = entries[model].curves[f"100-longbench/{task}"]
                at = {rung.label: rung.score for rung in whole.rungs}
                one = from_scores(whole.name, whole.base.score, {label: at[label] for label in lengths})
                assert (one.average, one.long_score) == (expected["avg_score"], expected["avg_longscore"])
                assert {f"{k}k": at[f"{k}k"] for k in map(int, expected.get("raw_extra", {}))} == {
                    f"{k}k": v for k, v in expected.get("raw_extra", {}).items()
                }
                curves.append(one)
            mean = mean_of_curves(curves)
            assert mean is not None
            assert mean.long_score == facts["overall_of_averaged_scores"]["avg_longscore"]
    made = view([], published_entries())
    assert made.rankings == ()


@pytest.mark.parametrize(
    ("model", "average", "value"),
    [
        ("llama-3.1-8B", 36.37, -17.46),
        ("llama-3.2-1B", 20.45, -28.88),
        ("llama-3.2-3B", 34.81, -32.06),
        ("phi-3-128k-medium2", 43.28, -24.65),
        ("Qwen2.5-7B", 39.8, -30.69),
        ("llama2-7b-ntk", 15.37, -20.76),
    ],
)
def test_the_shipped_scores_give_the_published_overall_rows(model: str, average: float, value: float) -> None:
    entry = next(one for one in published_entries() if one.label == model)
    longest = "64k" if model == "llama2-7b-ntk" else "128k"
    curves = []
    for name, curve in entry.curves.items():
        at = {rung.label: rung.score for rung in curve.rungs if int(rung.label[:-1]) <= int(longest[:-1])}
        curves.append(from_scores(name, curve.base.score, at))
    mean = mean_of_curves(curves)
    assert mean is not None
    assert len(mean.members) == 8
    assert (mean.average, mean.long_score) == (average, value)


def test_shipped_tables_name_their_sources() -> None:
    for name in TABLES:
        table = published.load(name)
        assert "uservan/100-LongBench" in table.source
        assert table.paper == "arXiv:2505.19293"
        assert table.notes


def test_published_models_stand_beside_with_the_members_of_ones_own_mean(tmp_path: Path) -> None:
    found = build([make_run(tmp_path / "r")], with_published=True).longscore
    assert found is not None
    mean = found.rankings[0]
    line = next(s for s in mean.standings if s.label == "llama-3.1-8B")
    assert line.published
    # Two tasks of its eight: (58.59 + 56.57)/2 at the base, (61 + 22)/2 and (56 + 2)/2 at length.
    assert (line.base, line.average) == (pytest.approx(57.58), 35.25)
    assert any("by a judge" in note or "a judge" in note for note in found.notes)
    assert build([make_run(tmp_path / "r")]).longscore.rankings[0].standings[0].published is False  # type: ignore[union-attr]


def test_two_models_are_two_entries_and_their_losses_say_whose_they_are(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", model="m1"), make_run(tmp_path / "b", model="m2", lengths=("base", "8k"))]
    found = build(runs).longscore
    assert found is not None
    assert {entry.label for entry in found.entries} == {
        "full (m1)", "snapkv@budget=0.25 (m1)", "full (m2)", "snapkv@budget=0.25 (m2)",
    }  # fmt: skip
    assert found.rankings[0].lengths == ("8k",)
    assert all(where for where, _ in found.splits)


def test_tasks_of_two_runs_of_one_model_make_one_mean(tmp_path: Path) -> None:
    found = build([make_run(tmp_path / name, tasks=(name,)) for name in TASKS]).longscore
    assert found is not None
    mean = next(entry for entry in found.entries if entry.label == "full").curves["100-longbench"]
    assert mean.members == tuple(f"100-longbench/{task}" for task in TASKS)
    assert mean.long_score_interval is not None
    assert found.splits[0][1].task == "100-longbench"


def test_lengths_and_methods_of_several_runs_are_one_ladder_and_one_comparison(tmp_path: Path) -> None:
    whole = build([make_run(tmp_path / "whole", tasks=("kv_retrieval",))]).longscore
    assert whole is not None
    runs = [
        make_run(tmp_path / f"{method}-{label}", methods=[method], lengths=[label], tasks=("kv_retrieval",))
        for method in SHARES
        for label in ("base", "8k", "16k")
    ]
    parts = build(runs).longscore
    assert parts is not None
    assert {entry.label for entry in parts.entries} == set(SHARES)
    full = parts.entries[0].curves["100-longbench/kv_retrieval"]
    assert full.labels == ("8k", "16k")
    assert full.long_score_interval is not None
    assert [(split.method, split.against, split.shared) for _, split in parts.splits] == [
        ("snapkv@budget=0.25", "full", 180)
    ]


def test_lengths_of_two_judged_runs_are_put_together_without_intervals(tmp_path: Path) -> None:
    runs = []
    for label in ("base", "8k"):
        run = make_run(tmp_path / label, methods=["full"], lengths=[label])
        run.write_scores({**score_run(run), "judge": {"model": "j"}})
        runs.append(RunDirectory.open(run.path))
    found = build(runs).longscore
    assert found is not None
    mean, kv, _ = found.entries[0].curves.values()
    assert (kv.labels, kv.long_score is not None, kv.long_score_interval) == (("8k",), True, None)
    assert mean.long_score is not None


def test_one_task_in_two_runs_keeps_them_apart(tmp_path: Path) -> None:
    found = build([make_run(tmp_path / name, methods=["full"]) for name in ("a", "b")]).longscore
    assert found is not None
    assert len(found.entries) == 2


def test_markdown_csv_and_json_carry_it_all(tmp_path: Path) -> None:
    report = build([make_run(tmp_path / "r")])
    text = markdown.render(report)
    for piece in ("Two rankings", "LongScore by task", "Change against full", "kv_retrieval: score", "kept"):
        assert piece in text
    rows = list(csv.DictReader(io.StringIO(csv_.render(report))))
    values = [r for r in rows if r["kind"] == "long-context value" and r["task"] == "100-longbench/kv_retrieval"]
    assert [(r["method"], r["length"], r["n"]) for r in values][:2] == [("full", "8k", "60"), ("full", "16k", "60")]
    assert all(float(r["score"]) < 0 for r in values if r["method"] != "full")
    data: dict[str, Any] = json.loads(json_.render(report))["longscore"]
    assert data["splits"][0]["sentence"] == sentences(report.longscore)[0]  # type: ignore[arg-type]
    assert data["rankings"][0]["standings"][0]["move"] == 0
    assert data["entries"][0]["curves"]["100-longbench"]["long_score"] is not None


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_terminal_shows_it_at_any_width(tmp_path: Path, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(build([make_run(tmp_path / "r")], with_published=width == 160), console))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Two rankings" in text
    assert "snapkv" in text
    assert all(len(line) <= width for line in text.splitlines())


def test_the_command_takes_published_models_along(tmp_path: Path) -> None:
    path = make_run(tmp_path / "r").path
    done = CliRunner().invoke(app, ["report", str(path), "--with-published"], env={"COLUMNS": "150", "TERM": "dumb"})
    assert done.exit_code == 0, done.output
    assert "Qwen2.5-7B †" in done.stdout
    assert "Qwen2.5-7B" not in CliRunner().invoke(app, ["report", str(path)], env={"COLUMNS": "150"}).stdout


def test_a_run_without_lengths_has_no_such_section(tmp_path: Path) -> None:
    spec = {"model": {"name": "m"}, "methods": ["full"], "tasks": ["qasper"]}
    with RunDirectory.create_or_continue(tmp_path / "r", spec, {}) as run:
        run.append("full", "qasper", PredictionRecord("a", ["a"], None, 1, "0"))
    report = build([RunDirectory.open(tmp_path / "r")], with_published=True)
    assert report.longscore is None
    assert any("no published scores beside" in note for note in report.notes)
    assert "longscore" not in json.loads(json_.render(report))


def test_judged_scores_are_kept_while_they_fit_and_said_to_be_gone_when_they_do_not(tmp_path: Path) -> None:
    import os
    import time

    task = "100-longbench/single_doc_qa@8k"
    spec = {"model": {"name": "m"}, "methods": ["full"], "tasks": [task, "100-longbench/single_doc_qa@no-context"]}
    with RunDirectory.create_or_continue(tmp_path / "r", spec, {}) as run:
        for i in range(3):
            run.append("full", task, PredictionRecord("Paris", ["Paris"], None, 1, str(i)))
        run.append("full", spec["tasks"][1], PredictionRecord("x", ["Paris"], None, 0, "0"))
        stored = score_run(run)
        score = stored["methods"]["full"]["tasks"][task]
        score.update(metric="qa_judge", score=12.5, n=1, n_error=1, n_judge_failed=1, n_filtered=1)
        run.write_scores({**stored, "judge": {"model": "j"}})
        report = build([RunDirectory.open(run.path)])
        (line,) = report.lines
        assert (line.metric, next(iter(report.cells.values())).score) == ("qa_judge", 12.5)
        run.append("full", task, PredictionRecord("London", ["Paris"], None, 1, "3"))
        later = time.time() + 5
        os.utime(run.predictions_path("full", task), (later, later))
    report = build([RunDirectory.open(tmp_path / "r")])
    assert [line.metric for line in report.lines] == ["qa_f1"]
    assert any("scores.json was made by a judge" in note for note in report.notes)


def test_what_the_filter_left_out_is_counted_in_every_format(tmp_path: Path) -> None:
    task = "100-longbench/single_doc_qa@8k"
    spec = {"model": {"name": "m"}, "methods": ["full"], "tasks": [task]}
    with RunDirectory.create_or_continue(tmp_path / "r", spec, {}) as run:
        for i in range(3):
            run.append("full", task, PredictionRecord("Paris", ["Paris"], None, 1, str(i)))
        stored = score_run(run)
        stored["methods"]["full"]["tasks"][task].update(metric="qa_judge", score=50.0, n=1, n_filtered=2)
        run.write_scores({**stored, "judge": {"model": "j"}})
    report = build([RunDirectory.open(tmp_path / "r")])
    console = Console(file=io.StringIO(), width=60, color_system=None)
    console.print(render(report, console))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in (shown, markdown.render(report)):
        assert "2 filtered" in text
    (row, *_) = csv.DictReader(io.StringIO(csv_.render(report)))
    assert (row["n"], row["filtered"]) == ("1", "2")
    assert json.loads(json_.render(report))["cells"][0]["filtered"] == 2


def test_a_comparison_of_judged_methods_says_that_it_is_by_the_original_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", tasks=("kv_retrieval",))
    command = ["compare", str(run.path)]
    assert "original metrics" not in CliRunner().invoke(app, command, env={"COLUMNS": "150"}).stdout
    run.write_scores({**score_run(run), "judge": {"model": "j"}})
    done = CliRunner().invoke(app, command, env={"COLUMNS": "150"})
    assert "this comparison is by the original metrics" in done.stdout, done.output
