"""Run directories, files, folders and folders of folders, through the one entry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lcbench.errors import BadValue, CorruptFile, NotARun, UnknownName, UsageError
from lcbench.scoring.run import ScoreOptions, score_path, score_run
from lcbench.store.rundir import RunDirectory
from lcbench.tasks.registry import all_tasks

QUICK = ScoreOptions(resamples=20)
FAILED = {"pred": "", "status": "error", "error": "too long"}


def test_a_run_with_two_methods(make_run: Any) -> None:
    run = make_run({
        ("full", "qasper"): [{}, {}, {"pred": "London"}],
        ("full", "passkey"): [{"pred": "a 12", "answers": ["12"], "meta": {"length_words": 100, "depth": 0.0}}],
        ("kivi@bits=2", "qasper"): [FAILED, {}, {}],
        ("kivi@bits=2", "passkey"): [],
    })  # fmt: skip
    data = score_run(run, QUICK)
    full, kivi = data["methods"]["full"], data["methods"]["kivi@bits=2"]
    assert full["tasks"]["qasper"]["score"] == 66.67
    assert full["tasks"]["passkey"]["score"] == 100.0
    assert (kivi["tasks"]["qasper"]["score"], kivi["tasks"]["qasper"]["n_error"]) == (100.0, 1)
    assert list(kivi["tasks"]) == ["qasper"]
    assert data["source"] == {"kind": "run", "name": "run"}
    assert data["notes"] == ["kivi@bits=2 has no predictions for passkey yet."]
    assert data["options"]["code_sim"] == "difflib"
    run.write_scores(data)
    assert RunDirectory.open(run.path).scores() == data


def test_longbench_e_tasks_of_a_run_have_buckets(make_run: Any) -> None:
    run = make_run({("full", "qasper_e"): [{"length": 100}, {"length": 9000}]})
    task = score_path(run.path, QUICK).methods["full"].tasks["qasper_e"]
    assert (task.benchmark, task.by_length["8k+"].score) == ("longbench-e", 100.0)


def test_a_sample_that_was_tried_again_counts_once(make_run: Any) -> None:
    run = make_run({("full", "qasper"): [{**FAILED, "id": "a"}, {"id": "a"}]})
    task = score_path(run.path, QUICK).methods["full"].tasks["qasper"]
    assert (task.n, task.n_error, task.score) == (1, 0, 100.0)


def test_records_that_share_a_context_are_drawn_together(make_run: Any) -> None:
    run = make_run({("full", "qasper"): [{"meta": {"context_id": c}} for c in ("x", "x", "y")]})
    assert score_path(run.path, QUICK).methods["full"].tasks["qasper"].clusters == 2


def test_the_labels_of_the_last_row_serve_all(tmp_path: Path, write_rows: Any, row: Any) -> None:
    """As the official script does it: its loop keeps the last value."""
    rows = [row(pred="ab", answers=["ab"], all_classes=c) for c in (["ab"], ["a", "b", "ab"])]
    path = write_rows(tmp_path / "trec.jsonl", rows)
    # Labels a, b, ab: the walk removes a and skips b, so each row has 1/2.
    assert score_path(path, QUICK).methods[tmp_path.name].tasks["trec"].score == 50.0


def test_a_bad_sample_is_named_by_file_and_line(tmp_path: Path, write_rows: Any, row: Any) -> None:
    rows = [row(answers=["Paragraph 1"]), row(answers=["nowhere"])]
    path = write_rows(tmp_path / "passage_retrieval_en.jsonl", rows)
    with pytest.raises(CorruptFile, match="line 2: The answer 'nowhere' names no paragraph"):
        score_path(path, QUICK)
    path = write_rows(tmp_path / "trec.jsonl", [row()])
    with pytest.raises(CorruptFile, match=r"line 1: .*all_classes"):
        score_path(path, QUICK)


def test_a_bad_sample_of_a_run_is_named(make_run: Any) -> None:
    run = make_run({("full", "passage_retrieval_en"): [{"id": "abc"}]})
    with pytest.raises(CorruptFile, match=r"passage_retrieval_en\.jsonl, line 1: The answer 'Paris'"):
        score_path(run.path, QUICK)


def test_a_folder_and_a_folder_of_folders(tmp_path: Path, write_rows: Any, row: Any) -> None:
    for model, text in (("good", "Paris"), ("bad", "Rome")):
        write_rows(tmp_path / "all" / model / "narrativeqa.jsonl", [row(pred=text)])
        write_rows(tmp_path / "all" / model / "qmsum.jsonl.gz", [row(pred=text)])
    one = score_path(tmp_path / "all" / "good", QUICK)
    assert {t.score for t in one.methods["good"].tasks.values()} == {100.0}
    both = score_path(tmp_path / "all", QUICK)
    assert list(both.methods) == ["bad", "good"]
    assert both.methods["bad"].tasks["qmsum"].score == 0.0
    assert (both.source, both.name) == ("folder", "all")


def test_numbers_of_rows_are_said(tmp_path: Path, write_rows: Any, row: Any) -> None:
    table = score_path(write_rows(tmp_path / "narrativeqa.jsonl", [row()] * 400), QUICK)
    assert "more rows than the test set has" in table.notes[0]
    assert "narrativeqa 400 of 200" in table.notes[0]
    write_rows(tmp_path / "m" / "musique.jsonl", [row()] * 3)
    write_rows(tmp_path / "m" / "trec.jsonl", [row(all_classes=["Paris"])] * 200)
    assert score_path(tmp_path / "m", QUICK).notes == ("fewer rows than the test set has: musique 3 of 200.",)


def test_versions_that_are_not_the_installed_one_are_said(
    tmp_path: Path, write_rows: Any, row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def notes(*versions: int) -> str:
        rows = [row(_id=str(i), status="ok", task_version=v) for i, v in enumerate(versions)]
        return " ".join(score_path(write_rows(tmp_path / "musique.jsonl", rows), QUICK).notes)

    assert "several task versions (1, 2)" in notes(1, 2)
    assert "predictions of task version 7, this lcbench has version 1 (a newer lcbench made them)" in notes(7)
    assert "version" not in notes(1)
    cls = all_tasks()["musique"]
    monkeypatch.setattr(cls, "version", 3)
    monkeypatch.setattr(cls, "changelog", {1: "first version", 3: "asks twice"})
    assert "version 1, this lcbench has version 3 (since then: asks twice)" in notes(1)


def test_ids_that_come_twice_in_a_loose_file_are_said(tmp_path: Path, write_rows: Any, row: Any) -> None:
    path = write_rows(tmp_path / "musique.jsonl", [row(_id="a"), row(_id="a", pred="x"), row(_id="b")])
    table = score_path(path, QUICK)
    assert table.methods[tmp_path.name].tasks["musique"].n == 3
    assert any("1 row repeats the _id of another (a)" in note for note in table.notes)


def test_what_a_run_lacks_is_said(make_run: Any) -> None:
    run = make_run({("full", "qasper"): [{}, {}, {}], ("kivi", "qasper"): [{}]}, rows={"qasper": 3})
    with open(run.predictions_path("kivi", "qasper"), "ab") as file:
        file.write(b'{"pred": "half')
    notes = score_path(run.path, QUICK).notes
    assert "fewer rows than the test set has: qasper 3 of 200." in notes
    assert "unfinished: kivi has 1 of 3 rows of qasper" in notes
    assert any("kivi, qasper: an unfinished last line of 14 bytes was left out" in note for note in notes)


def test_records_of_other_rows_are_said(make_run: Any) -> None:
    run = make_run({("full", "qasper"): [{"id": "a"}, {"id": "b"}], ("kivi", "qasper"): [{"id": "c"}, {"id": "b"}]},
                   rows={"qasper": 2})  # fmt: skip
    assert "qasper: the records name 3 different rows, but the run asked for 2." in score_path(run.path, QUICK).notes


def test_longbench_e_of_a_run_needs_lengths(make_run: Any) -> None:
    run = make_run({("full", "qasper_e"): [{"length": 1}, {"length": None}]})
    with pytest.raises(CorruptFile, match=r"qasper_e\.jsonl, line 2: 'length' is missing"):
        score_path(run.path, QUICK)


@pytest.mark.parametrize(
    ("changes", "why"), [({"answers": [1]}, "answers is not a list of texts"), ({"_id": 5}, "_id is not text")]
)
def test_records_are_not_coerced(make_run: Any, changes: dict[str, Any], why: str) -> None:
    run = make_run({("full", "qasper"): [{}]})
    with open(run.predictions_path("full", "qasper"), "a", encoding="utf-8") as file:
        file.write(json.dumps({"pred": "x", "answers": ["x"], "_id": "b", **changes}) + "\n")
    with pytest.raises(CorruptFile, match=rf"qasper\.jsonl, line 2: {why}"):
        score_path(run.path, QUICK)


FIELDS = ["pred", "answers", "all_classes", "length", "_id", "status", "meta", "task_version", "new_tokens"]
VALUES = st.none() | st.booleans() | st.integers(-1, 10**30) | st.floats() | st.text(max_size=3)
RECORD = st.dictionaries(st.sampled_from(FIELDS), VALUES | st.lists(st.text(), max_size=2), max_size=3)


@given(st.lists(RECORD, max_size=3), st.binary(max_size=6), st.sampled_from(["qasper_e", "trec", "vcsum", "passkey"]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_records_give_a_score_or_one_of_our_errors(
    tmp_path: Path, make_run: Any, rows: list[dict[str, Any]], end: bytes, task: str
) -> None:
    run = make_run({("full", task): []}, f"run-{len(list(tmp_path.iterdir()))}")
    lines = [{"pred": "a", "answers": ["a"], "_id": str(i), "length": 1, **row} for i, row in enumerate(rows)]
    path = run.predictions_path("full", task)
    path.parent.mkdir(parents=True)
    path.write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode() + end)
    scores, said = {}, ""
    try:
        scores = score_path(run.path, QUICK).to_dict()
    except (CorruptFile, NotARun) as error:
        said = error.message
    json.dumps(scores, allow_nan=False)
    assert scores or "no predictions yet" in said or f"{path}, line " in said


def test_the_definitions_used_are_said(tmp_path: Path, write_rows: Any, row: Any) -> None:
    for name in ("lcc", "gov_report"):
        write_rows(tmp_path / "m" / f"{name}.jsonl", [row()])
    options = ScoreOptions(code_sim="levenshtein", strict_recursion=True, resamples=5)
    notes = score_path(tmp_path / "m", options).notes
    assert "code_sim: levenshtein (as with python-Levenshtein installed)." in notes
    assert any("strict recursion" in note for note in notes)


def test_what_cannot_be_scored_is_refused(tmp_path: Path, make_run: Any, row: Any) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        score_path(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotARun, match="neither a run directory"):
        score_path(tmp_path / "empty")
    run = make_run({("full", "qasper"): [{}]})
    with pytest.raises(NotARun, match="holds run directories"):
        score_path(run.path.parent)
    with pytest.raises(BadValue, match="is a run directory"):
        score_path(run.path, QUICK, "longbench")
    empty = make_run({("full", "qasper"): []}, "unstarted")
    with pytest.raises(NotARun, match="no predictions yet"):
        score_path(empty.path)


@pytest.mark.parametrize("changes", [{"jobs": 0}, {"seed": -1}, {"resamples": 0}])
def test_options_out_of_range_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(BadValue, match=next(iter(changes))):
        ScoreOptions(**changes)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="fuzzy"):
        ScoreOptions(code_sim="fuzzy")  # type: ignore[arg-type]


def test_rouge_columns_are_added_to_rouge_tasks_alone(tmp_path: Path, write_rows: Any, row: Any) -> None:
    for name in ("gov_report", "narrativeqa", "vcsum"):
        write_rows(tmp_path / "m" / f"{name}.jsonl", [row(pred="Paris. Rome.")])
    tasks = score_path(tmp_path / "m", ScoreOptions(rouge_score=True, resamples=5)).methods["m"].tasks
    assert list(tasks["gov_report"].columns) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert tasks["gov_report"].columns["rouge1"] == 66.67
    assert tasks["narrativeqa"].columns == tasks["vcsum"].columns == {}


def test_scoring_needs_no_torch(tmp_path: Path, make_run: Any) -> None:
    run = make_run({("full", "qasper"): [{}, {}], ("full", "vcsum"): [{"pred": "你好", "answers": ["你好"]}]})
    code = (
        "import sys, json\n"
        "for name in ('torch', 'transformers', 'datasets', 'fuzzywuzzy', 'Levenshtein', 'rouge_score'):\n"
        "    sys.modules[name] = None\n"
        "from lcbench.scoring.run import score_path\n"
        f"print(json.dumps(score_path({str(run.path)!r}).to_dict()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["methods"]["full"]["tasks"]["qasper"]["score"] == 100.0
    assert done.stderr == ""
