"""Reports of run directories, scored on the way where that was not done."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from made_runs import failed, make, right, wrong

from lcbench.errors import CorruptFile, NotARun
from lcbench.reporting.build import build
from lcbench.reporting.samples import samples_of
from lcbench.reporting.table import Cell, Report
from lcbench.reporting.words import NO_WIDTH
from lcbench.scoring.run import ScoreOptions, score_run
from lcbench.store.rundir import RunDirectory


def cell(report: Report, task: str, method: str, run: str = "") -> Cell:
    line = next(line for line in report.lines if line.title == task)
    column = next(c for c in report.columns if c.method == method and c.run == run)
    return report.cells[line, column]


def test_one_run_never_scored_before(tmp_path: Path) -> None:
    run = make(
        tmp_path / "r",
        {
            ("full", "qasper"): [right(0, kv_bytes=1000), right(1, kv_bytes=1000)],
            ("kivi@bits=2", "qasper"): [right(0), wrong(1, kv_bytes=150, kv_bytes_full=600), failed(2)],
        },
    )
    report = build([run])
    assert [c.method for c in report.columns] == ["full", "kivi@bits=2"]
    assert [(line.name, line.metric) for line in report.lines] == [("qasper", "qa_f1")]
    found = cell(report, "qasper", "kivi@bits=2")
    assert (found.score, found.n, found.errors) == (50.0, 2, 1)
    assert (found.kv_bytes, found.kv_bytes_full, found.ratio) == (200.0, 800.0, 4.0)
    assert cell(report, "qasper", "full").score == 100.0
    assert cell(report, "qasper", "full").ratio == 1.0
    assert run.scores() is None
    assert any("1 sample failed and is not in the scores" in note for note in report.notes)


def test_scores_json_is_used_while_it_fits_and_left_when_it_does_not(tmp_path: Path) -> None:
    run = make(tmp_path / "r", {("full", "qasper"): [right(0), wrong(1)]})
    scores = score_run(run)
    scores["methods"]["full"]["tasks"]["qasper"]["score"] = 12.34
    run.write_scores(scores)
    assert cell(build([run]), "qasper", "full").score == 12.34
    os.utime(run.path / "scores.json", (1, 1))
    assert cell(build([run]), "qasper", "full").score == 50.0
    os.utime(run.path / "scores.json", (time.time() + 10, time.time() + 10))
    assert cell(build([run]), "qasper", "full").score == 12.34
    with RunDirectory.create_or_continue(run.path, run.spec, run.provenance) as again:
        again.append("full", "qasper", right(2))
    os.utime(run.path / "scores.json", (time.time() + 10, time.time() + 10))
    assert cell(build([run]), "qasper", "full").n == 3  # the number of rows tells


@pytest.mark.parametrize("broken", ["{", "[]", "{}", '{"methods": {"full": 3}}', '{"lcbench": "0.1.0", "methods": []}'])
def test_broken_scores_are_made_anew(tmp_path: Path, broken: str) -> None:
    run = make(tmp_path / "r", {("full", "qasper"): [right(0)]})
    (run.path / "scores.json").write_text(broken)
    assert cell(build([run]), "qasper", "full").score == 100.0


def test_scores_of_another_version_are_made_anew(tmp_path: Path) -> None:
    run = make(tmp_path / "r", {("full", "qasper"): [right(0)]})
    scores = score_run(run)
    scores["methods"]["full"]["tasks"]["qasper"]["score"] = 12.34
    run.write_scores({**scores, "lcbench": "0.0.1"})
    assert cell(build([run]), "qasper", "full").score == 100.0


def test_stale_scores_are_made_anew_with_their_own_options(tmp_path: Path) -> None:
    code = right(0, pred="abxcd abcd", answers=["abcd abxcd ab"])
    run = make(tmp_path / "r", {("full", "lcc"): [code]})
    expected = score_run(run, ScoreOptions(code_sim="levenshtein"))["methods"]["full"]["tasks"]["lcc"]["score"]
    assert expected != score_run(run)["methods"]["full"]["tasks"]["lcc"]["score"]
    run.write_scores(score_run(run, ScoreOptions(code_sim="levenshtein")))
    os.utime(run.path / "scores.json", (1, 1))
    assert cell(build([run]), "lcc", "full").score == expected


def test_notes_say_what_is_special(tmp_path: Path) -> None:
    run = make(
        tmp_path / "r",
        {
            ("full", "qasper"): [right(0), right(1)],
            ("snapkv@budget=0.25", "qasper"): [right(0, memory="simulated")],
        },
        facts={"qasper": {"rows": 2, "notes": ["qasper: subset, first 18 of 200 rows", "2 of 2 prompts are cut"]}},
        limit=2,
        max_input_tokens=1024,
        over_length="error",
    )
    report = build([run])
    assert cell(report, "qasper", "snapkv@budget=0.25").memory == "simulated"
    text = "\n".join(report.notes)
    assert "--limit 2" in text
    assert "--max-input-tokens 1024" in text
    assert "qasper: subset, first 18 of 200 rows" in report.notes
    assert "qasper: 2 of 2 prompts are cut" in report.notes
    assert "unfinished: snapkv@budget=0.25 has 1 of 2 rows of qasper" in report.notes
    assert "simulated" in text
    assert "--over-length" not in text
    plain = build([make(tmp_path / "plain", {("full", "qasper"): [right(0)]}, limit=None, max_input_tokens=None)])
    assert plain.notes == ("model demo in float32 on ?; ratios are to its uncompressed float32 cache",)


def test_a_method_that_reads_part_of_what_it_holds_is_named(tmp_path: Path) -> None:
    kept = {"kv_bytes": 1_000_000, "kv_bytes_full": 900_000}
    run = make(
        tmp_path / "r",
        {
            ("full", "qasper"): [right(0, resident_bytes=250), right(1, resident_bytes=250)],
            ("quest", "qasper"): [right(0, resident_bytes=300_000, **kept), right(1, resident_bytes=200_000, **kept)],
            ("old", "qasper"): [right(0), right(1)],
        },
    )
    said = [note for note in build([run]).notes if "a step reads" in note]
    assert said == ["quest: of the bytes it holds a step reads 244 KiB (25%)"]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("truncation", "exact-ids", "--truncation exact-ids"),
        ("context", "none", "--context none"),
        ("over_length", "skip", "--over-length skip"),
        ("model", {"name": "demo", "load_in": "4bit"}, "4bit"),
        ("model", {"name": "demo", "chat": "official"}, "--chat official"),
    ],
)
def test_options_that_move_scores_are_said(tmp_path: Path, option: str, value: Any, said: str) -> None:
    defaults = {"truncation": "middle", "context": "full", "over_length": "error"}
    spec = {"methods": ["full"], "tasks": ["qasper"], "model": {"name": "demo", "chat": "auto"}, **defaults}
    for changed in (False, True):
        path = tmp_path / str(changed)
        with RunDirectory.create_or_continue(path, {**spec, option: value} if changed else spec, {}) as run:
            run.append("full", "qasper", right(0))
        assert any(said in note for note in build([run]).notes) == changed


def test_skipped_prompts_are_not_unfinished(tmp_path: Path) -> None:
    predictions = {("full", "qasper"): [right(0), right(1)], ("kivi", "qasper"): [right(0)]}
    run = make(tmp_path / "r", predictions, facts={"qasper": {"rows": 9}}, over_length="skip")
    notes = [note for note in build([run]).notes if "unfinished" in note]
    assert notes == ["unfinished: kivi has 1 of 2 rows of qasper"]


def test_a_method_without_predictions_is_said(tmp_path: Path) -> None:
    run = make(tmp_path / "r", {("full", "qasper"): [right(0)], ("kivi", "qasper"): []})
    report = build([run])
    assert [c.method for c in report.columns] == ["full"]
    assert any("kivi has no predictions for qasper" in note for note in report.notes)


def test_a_method_whose_samples_all_failed_is_shown_without_a_score(tmp_path: Path) -> None:
    found = cell(build([make(tmp_path / "r", {("full", "qasper"): [failed(0), failed(1)]})]), "qasper", "full")
    assert (found.score, found.n, found.errors, found.kv_bytes, found.ratio) == (None, 0, 2, None, None)


def test_runs_without_predictions_and_broken_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotARun, match="no predictions yet"):
        build([make(tmp_path / "r", {("full", "qasper"): []})])
    run = make(tmp_path / "s", {("full", "qasper"): [right(0)]})
    run.predictions_path("full", "qasper").write_text("nonsense\n")
    with pytest.raises(CorruptFile, match="line 1"):
        build([run])


def test_runs_with_different_tasks_share_a_column(tmp_path: Path) -> None:
    a = make(tmp_path / "a", {("full", "qasper"): [right(0)], ("kivi", "qasper"): [wrong(0)]}, limit=1)
    b = make(tmp_path / "b", {("full", "hotpotqa"): [wrong(0)]})
    report = build([a, b, RunDirectory.open(tmp_path / "a")])
    assert [(c.method, c.run) for c in report.columns] == [("full", ""), ("kivi", "")]
    assert [line.name for line in report.lines] == ["qasper", "hotpotqa", "macro_en, part: 2 tasks"]
    assert cell(report, "qasper", "full").score == 100.0
    assert cell(report, "hotpotqa", "full").score == 0.0
    assert cell(report, "hotpotqa", "full").run == str(tmp_path / "b")
    assert cell(report, "macro_en, part: 2 tasks", "full").score == 50.0  # over the tasks of both runs
    assert len(report.cells) == 4  # kivi has one task: no mean
    assert report.runs == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert next(note for note in report.notes if "--limit 1" in note).startswith(f"{tmp_path / 'a'}: ")


def test_the_same_task_twice_gives_a_column_a_run(tmp_path: Path) -> None:
    a = make(tmp_path / "a", {("full", "qasper"): [right(0)], ("kivi", "qasper"): [right(0)]})
    b = make(tmp_path / "b", {("full", "qasper"): [wrong(0)]})
    report = build([a, b])
    assert [(c.method, c.run) for c in report.columns] == [("full", "a"), ("kivi", ""), ("full", "b")]
    assert cell(report, "qasper", "full", "a").score == 100.0
    assert cell(report, "qasper", "full", "b").score == 0.0
    assert report.label(report.columns[0]) == "full (a)"


def test_folders_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make(tmp_path / d / "r", {("full", "qasper"): [right(0)]}) for d in ("a", "b")]
    assert [c.run for c in build(runs).columns] == [str(run.path) for run in runs]


def test_other_weights_under_one_name_are_not_merged(tmp_path: Path) -> None:
    a = make(tmp_path / "a", {("full", "qasper"): [right(0)]})
    b = make(tmp_path / "b", {("full", "hotpotqa"): [right(0)]}, identity="w2")
    report = build([a, b])
    assert [report.label(c) for c in report.columns] == ["full (demo [weights w1])", "full (demo [weights w2])"]
    assert report.notes[0] == (
        "demo is the name of 2 models here, which are not compared. "
        f"demo [weights w1]: {a.path}; demo [weights w2]: {b.path}"
    )


def test_models_are_named_when_there_are_several(tmp_path: Path) -> None:
    a = make(tmp_path / "a", {("full", "qasper"): [right(0)]})
    b = make(tmp_path / "b", {("full", "qasper"): [right(0)]}, model="org/other", identity="w2")
    report = build([a, b])
    assert [report.label(c) for c in report.columns] == ["full (demo)", "full (org/other)"]


def test_means_say_when_they_are_only_a_part(tmp_path: Path) -> None:
    tasks = ["qasper", "multifieldqa_en", "hotpotqa"]
    run = make(tmp_path / "r", {("full", task): [right(0)] for task in tasks})
    report = build([run])
    means = {line.name: report.cells[line, report.columns[0]].score for line in report.lines if line.kind == "mean"}
    assert means["macro_en, part: 3 tasks"] == 100.0
    assert "micro15, part: 3 tasks" not in means  # says nothing that macro_en does not say
    assert any(note.startswith("macro_en, part: 3 tasks: LongBench") for note in report.notes)
    other = make(tmp_path / "s", {("full", "passkey"): [right(0)], ("kivi", "passkey"): [right(0)]})
    merged = build([run, other])
    assert {line.name: line.members for line in merged.lines if line.kind == "mean"} == {
        "en/single-doc-qa, part: 2 tasks": ("qasper", "multifieldqa_en"),
        "macro_en, part: 3 tasks": ("qasper", "multifieldqa_en", "hotpotqa"),
    }
    assert any(note.startswith("macro_en, part: 3 tasks: LongBench") for note in merged.notes)


def test_lengths_follow_their_task(tmp_path: Path) -> None:
    records = [
        right(i, pred=pred, answers=["12345"], length=length, meta={"length": length, "depth": 0.5, "repeat": 0})
        for i, (pred, length) in enumerate([("12345", 256), ("12345", 512), ("999", 1024)])
    ]
    run = make(tmp_path / "r", {("full", "passkey"): records, ("full", "qasper"): [right(0)]})
    report = build([run])
    names = [line.title for line in report.lines]
    assert names == ["passkey", "passkey, length 256", "passkey, length 512", "passkey, length 1024", "qasper"]
    assert cell(report, "passkey, length 1024", "full").score == 0.0
    assert cell(report, "passkey, length 256", "full").score == 100.0
    assert cell(report, "passkey, length 256", "full").n == 1


def test_an_interval_without_width_is_explained(tmp_path: Path) -> None:
    alike = make(tmp_path / "alike", {("full", "qasper"): [right(i) for i in range(4)]})
    assert cell(build([alike]), "qasper", "full").low == cell(build([alike]), "qasper", "full").high == 100.0
    assert NO_WIDTH in build([alike]).notes
    mixed = make(tmp_path / "mixed", {("full", "qasper"): [right(0), wrong(1), right(2)]})
    assert NO_WIDTH not in build([mixed]).notes
    one = make(tmp_path / "one", {("full", "qasper"): [right(0)]})
    assert NO_WIDTH not in build([one]).notes  # no interval at all


def test_a_run_of_an_older_layout_without_provenance_still_has_a_report(tmp_path: Path) -> None:
    with RunDirectory.create_or_continue(tmp_path / "r", {"methods": ["full"], "tasks": ["qasper"]}, {}) as run:
        run.append("full", "qasper", right(0))
    odd = {"model": "demo", "tasks": {"qasper": 7}}
    info = json.loads((tmp_path / "r/run.json").read_text())
    for provenance in ({}, odd, {"model": [], "tasks": []}):
        (tmp_path / "r/run.json").write_text(json.dumps({**info, "provenance": provenance}))
        report = build([RunDirectory.open(tmp_path / "r")])
        assert cell(report, "qasper", "full").score == 100.0
        assert report.columns[0].model == "unknown model"


def parametrized(path: Path, task: str, methods: dict[str, str], records: Any) -> RunDirectory:
    """A run whose methods have a name and a budget in run.json."""
    run = make(path, {(method, task): records for method in methods}, facts={task: {"notes": ["one background"]}})
    facts = {m: {"name": m.partition("@")[0], "parameters": {"budget": b}} for m, b in methods.items()}
    (run.path / "run.json").write_text(json.dumps({**run.info, "provenance": {**run.provenance, "methods": facts}}))
    return RunDirectory.open(run.path)


def test_one_method_spelled_twice_has_one_column_and_its_samples(tmp_path: Path) -> None:
    one = parametrized(tmp_path / "one", "qasper", {"snapkv": "0.25", "h2o": "0.5"}, [right(0), wrong(1)])
    explicit = {"snapkv@budget=0.25": "0.25", "snapkv@budget=0.5": "0.5"}
    two = parametrized(tmp_path / "two", "multifieldqa_en", explicit, [right(0), right(1), right(2), wrong(3)])
    report = build([one, two])
    assert [c.method for c in report.columns] == ["snapkv@budget=0.25", "h2o", "snapkv@budget=0.5"]
    assert cell(report, "qasper", "snapkv@budget=0.25").score == 50.0
    assert cell(report, "multifieldqa_en", "snapkv@budget=0.25").score == 75.0
    (mean,) = [line for line in report.lines if line.category]
    assert report.cells[mean, report.columns[0]].score == 62.5
    assert f"{one.path}: snapkv is shown as snapkv@budget=0.25: the same parameters" in report.notes
    behind = {(line.name, c.method): len(own) for (line, c), own in samples_of(report, [one, two]).items()}
    assert behind["qasper", "snapkv@budget=0.25"] == 2
    assert behind["multifieldqa_en", "snapkv@budget=0.25"] == 4


def test_one_name_with_other_parameters_is_another_method(tmp_path: Path) -> None:
    one = parametrized(tmp_path / "one", "qasper", {"snapkv": "0.25"}, [right(0)])
    two = parametrized(tmp_path / "two", "hotpotqa", {"snapkv": "0.5"}, [right(0)])
    assert [(c.method, c.run) for c in build([one, two]).columns] == [("snapkv", "one"), ("snapkv", "two")]


def test_what_all_runs_say_is_said_once(tmp_path: Path) -> None:
    one = parametrized(tmp_path / "one", "passkey@depths=3", {"full": ""}, [right(0)])
    two = parametrized(tmp_path / "two", "passkey@depths=5", {"full": ""}, [right(0)])
    three = make(tmp_path / "three", {("full", "qasper"): [right(0)]}, limit=1)
    notes = build([one, two, three]).notes
    assert sum("ratios are to its uncompressed" in note for note in notes) == 1
    assert "passkey@depths=3, passkey@depths=5: one background" in notes
    assert f"{three.path}: only the first rows of each task were asked for (--limit 1)" in notes


def test_means_of_one_name_over_other_tasks_are_told_apart(tmp_path: Path) -> None:
    one = {("full", task): [right(0)] for task in ("qasper", "hotpotqa", "gov_report")}
    other = {("full", task): [right(0)] for task in ("qasper", "2wikimqa", "qmsum")}
    report = build([make(tmp_path / "a", one), make(tmp_path / "b", other)])
    titles = [line.title for line in report.lines if line.kind == "mean"]
    assert len(set(titles)) == len(titles)
    assert {"macro_en, part: 3 tasks, set 1", "macro_en, part: 3 tasks, set 2"} <= set(titles)
    (note,) = [note for note in report.notes if note.startswith("macro_en, part: 3 tasks, set 2: ")]
    assert note.endswith("; over qasper, 2wikimqa, qmsum")
    assert "LongBench" in note
    alone = build([make(tmp_path / "c", one)])
    assert not any("set 1" in line.title for line in alone.lines)
