"""``lcbench score`` from the outside: what it prints, writes and exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lcbench.cli import app
from lcbench.errors import CannotWrite, CorruptFile, LcbenchError, NotARun, UnknownName, UsageError
from lcbench.store.locate import remember_run
from lcbench.store.rundir import RunDirectory

FAILED = {"pred": "", "status": "error", "error": "too long"}


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["score", *map(str, arguments)], env={"COLUMNS": "150", "TERM": "dumb"})


def refused(*arguments: object) -> LcbenchError:
    error = run(*arguments).exception
    assert isinstance(error, LcbenchError), error
    return error


def test_a_run_is_scored_written_and_the_next_command_is_named(make_run: Any) -> None:
    directory = make_run({("full", "qasper"): [{}, {"pred": "x"}], ("kivi@bits=2", "qasper"): [{"pred": "x"}]})
    done = run(directory.path)
    assert done.exit_code == 0, done.output
    assert "50.00" in done.stdout
    assert "kivi@bits=2" in done.stdout
    assert f"lcbench report {directory.path}" in done.stdout
    stored = RunDirectory.open(directory.path).scores()
    assert stored is not None
    assert stored["methods"]["full"]["tasks"]["qasper"]["score"] == 50.0


def test_failed_samples_are_shown_and_give_exit_code_1(make_run: Any) -> None:
    done = run(make_run({("full", "qasper"): [{}, FAILED]}).path)
    assert done.exit_code == 1
    assert "1 sample failed" in done.stdout
    assert "100.00" in done.stdout


def test_without_an_argument_the_latest_run_is_scored(make_run: Any) -> None:
    directory = make_run({("full", "qasper"): [{}]})
    remember_run(directory.path)
    assert run().exit_code == 0
    assert (directory.path / "scores.json").exists()


def test_without_any_run_it_says_so() -> None:
    assert isinstance(refused(), NotARun)


def test_json_is_the_official_result_with_ours_beside_it(tmp_path: Path, write_rows: Any, row: Any) -> None:
    write_rows(tmp_path / "model" / "narrativeqa.jsonl", [row(), row(pred="x")])
    write_rows(tmp_path / "model" / "lcc.jsonl", [row()])
    done = run(tmp_path / "model", "--json", "--code-sim", "levenshtein")
    data = json.loads(done.stdout)
    ours = data.pop("lcbench")
    assert data == {"lcc": 100.0, "narrativeqa": 50.0}
    assert ours["methods"]["model"]["tasks"]["lcc"]["code_sim"] == "levenshtein"
    assert not (tmp_path / "model" / "result.json").exists()


def test_json_of_longbench_e_has_buckets_and_nan_as_published(tmp_path: Path, write_rows: Any, row: Any) -> None:
    path = write_rows(tmp_path / "qasper.jsonl", [row(length=1)])
    done = run(path, "--json", "--benchmark", "longbench-e")
    assert '"4-8k": NaN' in done.stdout
    data = json.loads(done.stdout)
    assert data["qasper"]["0-4k"] == 100.0
    by_length = data["lcbench"]["methods"][tmp_path.name]["tasks"]["qasper"]["by_length"]
    assert by_length["4-8k"]["score"] is None


def test_json_of_a_run_with_one_method_has_the_official_shape(make_run: Any) -> None:
    data = json.loads(run(make_run({("full", "qasper"): [{}], ("full", "passkey"): [{}]}).path, "--json").stdout)
    assert set(data) == {"qasper", "passkey", "lcbench"}
    assert data["qasper"] == 100.0
    assert data["lcbench"]["methods"]["full"]["tasks"]["qasper"]["n"] == 1


def test_json_of_several_methods_is_one_result_a_method(make_run: Any) -> None:
    done = run(make_run({("full", "qasper"): [{}], ("kivi", "qasper"): [{"pred": "x"}]}).path, "--json")
    data = json.loads(done.stdout)
    assert data["full"] == {"qasper": 100.0}
    assert data["kivi"] == {"qasper": 0.0}
    assert set(data) == {"full", "kivi", "lcbench"}


def test_scores_of_files_are_written_where_asked(tmp_path: Path, write_rows: Any, row: Any) -> None:
    path = write_rows(tmp_path / "narrativeqa.jsonl", [row()])
    assert run(path, "--out", tmp_path / "scores.json").exit_code == 0
    assert json.loads((tmp_path / "scores.json").read_text())["source"]["kind"] == "file"


def test_scores_of_a_folder_and_of_a_file_are_written_without_being_asked(
    tmp_path: Path, write_rows: Any, row: Any
) -> None:
    path = write_rows(tmp_path / "m" / "qasper.jsonl.gz", [row()])
    official = tmp_path / "m" / "result.json"
    official.write_text('{"qasper": 1.0}')
    for target, place in ((path.parent, "scores.json"), (path, "qasper.scores.json")) * 2:  # again, over our own
        done = run(target)
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines()[-1] == f"Scores written to {path.parent / place}"
        assert "m" in json.loads((path.parent / place).read_text())["methods"]
    assert official.read_text() == '{"qasper": 1.0}'
    assert json.loads(run(path.parent, "--json").stdout)["qasper"] == 100.0  # the line goes to stderr


def test_scores_of_ours_are_not_scored_again(tmp_path: Path, write_rows: Any, row: Any) -> None:
    path = write_rows(tmp_path / "qasper.jsonl", [row()])
    assert run(path).exit_code == 0
    error = refused(tmp_path / "qasper.scores.json")
    assert "holds scores, not predictions" in error.message
    assert "predictions" in error.next_step


def test_a_file_that_is_not_ours_is_never_replaced(tmp_path: Path, write_rows: Any, row: Any) -> None:
    path = write_rows(tmp_path / "qasper.jsonl", [row()])
    for other in ("scores.json", "result.json"):
        (tmp_path / other).write_text('{"qasper": 1.0}')
        error = refused(path, "--out", tmp_path / other)
        assert "was not written by lcbench score" in error.message
        assert (tmp_path / other).read_text() == '{"qasper": 1.0}'
    done = run(tmp_path)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1].startswith(f"Not written: {tmp_path / 'scores.json'} was not written by")
    assert (tmp_path / "scores.json").read_text() == '{"qasper": 1.0}'


def test_a_place_that_cannot_be_written_is_one_line_below_the_table(
    tmp_path: Path, write_rows: Any, row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "qasper.jsonl", [row()])

    def full(place: Path, data: object) -> None:
        raise CannotWrite(f"Cannot write {place}: Read-only file system.", "Elsewhere.")

    monkeypatch.setattr("lcbench.store.files.write_json", full)
    done = run(path)
    assert done.exit_code == 0
    assert "100.00" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"Not written: Cannot write {tmp_path / 'qasper.scores.json'}")
    assert "--out FILE.json" in done.stdout.splitlines()[-1]


def test_every_category_is_shown_also_those_of_one_task(tmp_path: Path, write_rows: Any, row: Any) -> None:
    for name in ("dureader", "vcsum", "lcc"):
        write_rows(tmp_path / "m" / f"{name}.jsonl", [row()] * 2)
    done = CliRunner().invoke(app, ["score", str(tmp_path / "m")], env={"COLUMNS": "80"})
    lines = [line.split() for line in done.stdout.splitlines()]
    for category, tasks in (("zh/multi-doc-qa", ["1"]), ("zh/summarization", ["1"]), ("code", ["1", "of", "2"])):
        assert any(line[: 1 + len(tasks)] == [category, *tasks] for line in lines), done.stdout


def test_the_definition_of_code_similarity_is_named(tmp_path: Path, write_rows: Any, row: Any) -> None:
    path = write_rows(tmp_path / "lcc.jsonl", [row()])
    assert "code_sim: difflib" in run(path).stdout
    assert "code_sim: levenshtein" in run(path, "--code-sim", "levenshtein").stdout


def test_seed_and_jobs_and_recursion(tmp_path: Path, write_rows: Any, row: Any) -> None:
    long = " ".join(["k"] + ["x"] * 600)
    rows = [row(pred=long, answers=[long.replace("x", "y")]), row(), row(pred="x")] * 3
    path = write_rows(tmp_path / "gov_report.jsonl", rows)
    one, other = (json.loads(run(path, "--json", "--seed", s, "--jobs", 1).stdout)["lcbench"] for s in (0, 1))
    task = [x["methods"][tmp_path.name]["tasks"]["gov_report"] for x in (one, other)]
    assert task[0]["score"] == task[1]["score"] == 50.0
    assert (one["options"]["seed"], other["options"]["seed"]) == (0, 1)
    strict = json.loads(run(path, "--json", "--strict-recursion").stdout)
    assert strict["gov_report"] == 33.33


def test_hostile_names_print_as_they_are(tmp_path: Path, write_rows: Any, row: Any) -> None:
    path = write_rows(tmp_path / "[red]model[bold]" / "narrativeqa.jsonl", [row()])
    done = run(path)
    assert done.exit_code == 0, done.output
    assert "[red]model[bold]" in done.stdout


def test_everything_fits_a_narrow_terminal(tmp_path: Path, write_rows: Any, row: Any) -> None:
    for name in ("passage_retrieval_en_e", "gov_report_e", "trec_e"):
        answers = ["Paragraph 1"] if "retrieval" in name else ["Paris"]
        rows = [row(length=n, pred="Paragraph 1, Paris", answers=answers, all_classes=["Paris"]) for n in (1, 5000)]
        write_rows(tmp_path / "m" / f"{name}.jsonl", rows * 2)
    done = CliRunner().invoke(app, ["score", str(tmp_path / "m"), "--rouge-score"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert any(line[:4] == ["gov_report_e", "rouge", "4", "0"] for line in lines)
    assert any(line[:4] == ["length", "4-8k", "2", "0"] for line in lines)
    assert not any(line[:2] == ["length", "8k+"] for line in lines)  # no rows, so no line
    assert any(line[:3] == ["Google", "rouge-score", "rouge1"] for line in lines)
    assert "…" not in done.stdout


def test_lengths_stand_in_order(make_run: Any) -> None:
    rows = [{"meta": {"length_words": n, "depth": 0.5}} for n in (1152, 384, 96)]
    said = [line.split() for line in run(make_run({("full", "passkey"): rows}).path).stdout.splitlines()]
    assert [line[1] for line in said if line[:1] == ["length"]] == ["96", "384", "1152"]


def test_a_run_says_what_it_was_asked_for_and_what_it_lacks(make_run: Any) -> None:
    directory = make_run({("full", "qasper"): [{}], ("kivi", "qasper"): []}, rows={"qasper": 2})
    info = json.loads((directory.path / "run.json").read_text())
    info["spec"]["limit"] = 2
    (directory.path / "run.json").write_text(json.dumps(info))
    said = run(directory.path).stdout
    assert "--limit 2" in said
    assert "unfinished: full has 1 of 2 rows of qasper" in said
    assert "kivi has no predictions for qasper yet" in said
    assert "fewer rows than the test set has: qasper 2 of 200" in said


def test_a_mean_of_some_tasks_says_that_it_is_incomplete(tmp_path: Path, write_rows: Any, row: Any) -> None:
    for name in ("qasper", "narrativeqa", "musique"):
        write_rows(tmp_path / "m" / f"{name}.jsonl", [row()] * 2)
    done = run(tmp_path / "m", "--json")
    overall = json.loads(done.stdout)["lcbench"]["methods"]["m"]["overall"]
    macro, micro = overall["macro_en"], overall["micro15"]
    assert macro["label"] == "LongBench, English, incomplete (3 of 16 tasks): mean of their 2 categories"
    assert (macro["n_tasks"], macro["of_tasks"], macro["complete"]) == (3, 16, False)
    assert micro["label"] == (
        "LongBench, incomplete (3 of 15 tasks): mean of English and code tasks, no passage_count"
    )  # fmt: skip
    assert "3 of 16" in run(tmp_path / "m").stdout


def test_what_is_no_predictions_file_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# hello")
    error = refused(tmp_path / "README.md")
    assert "is not a predictions file: its name does not end in .jsonl or .jsonl.gz" in error.message
    assert "does not exist" in refused(tmp_path / "nothing.jsonl").message
    assert "Cannot read" in refused(tmp_path / ("a" * 5000)).message
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "qasper.jsonl").symlink_to("nowhere")
    assert "a link to a file that is not there" in refused(tmp_path / "m").message


def test_wrong_input_is_refused_with_nothing_written(tmp_path: Path, write_rows: Any, make_run: Any) -> None:
    path = tmp_path / "qasper.jsonl"
    path.write_text('{"pred": 1}\n')
    out = tmp_path / "scores.json"
    error = refused(path, "--out", out)
    assert isinstance(error, CorruptFile)
    assert "qasper.jsonl, line 1" in error.message
    assert not out.exists()
    directory = make_run({("full", "passage_retrieval_en"): [{}]})
    assert isinstance(refused(directory.path), CorruptFile)
    assert not (directory.path / "scores.json").exists()


def test_wrong_words_are_refused(tmp_path: Path) -> None:
    assert isinstance(refused(tmp_path / "nothing"), UsageError)
    assert isinstance(refused(tmp_path, "--code-sim", "rapidfuzz"), UnknownName)
    (tmp_path / "narrativeqa.jsonl").write_text('{"pred": "a", "answers": []}')
    assert isinstance(refused(tmp_path, "--benchmark", "longbench-f"), UnknownName)


@pytest.mark.parametrize("content", ["{", "[]", '{"pred": []}', "\x00"])
def test_the_real_command_exits_with_2_and_no_traceback(tmp_path: Path, content: str) -> None:
    path = tmp_path / "qasper.jsonl"
    path.write_text(content)
    code = "from lcbench.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "score", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "qasper.jsonl, line 1" in done.stderr
    assert "Next:" in done.stderr


def test_skipped_prompts_are_counted_in_every_table(make_run: Any) -> None:
    tasks = [f"100-longbench/kv_retrieval@{length}" for length in ("base", "8k")]
    directory = make_run({("full", task): [{}, {}] for task in tasks}, rows=dict.fromkeys(tasks, 9))
    info = json.loads((directory.path / "run.json").read_text())
    info["spec"]["over_length"] = "skip"
    info["provenance"]["tasks"][tasks[1]]["skipped"] = 7
    (directory.path / "run.json").write_text(json.dumps(info))
    done = run(directory.path)
    assert done.stdout.count("skipped") >= 2, done.stdout  # the tasks' table and LongScore's
    stored = json.loads((directory.path / "scores.json").read_text())
    assert stored["methods"]["full"]["tasks"][tasks[1]]["n_skipped"] == 7
    for form in ([], ["--format", "md"], ["--format", "csv"], ["--format", "html"]):
        arguments = ["report", str(directory.path), *form]
        shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "150", "TERM": "dumb"})
        assert shown.exit_code == 0, shown.output
        assert "skipped" in shown.stdout, form


def test_a_run_of_which_all_was_skipped_says_how_many(make_run: Any) -> None:
    directory = make_run({("full", "qasper"): []}, rows={"qasper": 3})
    info = json.loads((directory.path / "run.json").read_text())
    info["provenance"]["tasks"]["qasper"]["skipped"] = 3
    (directory.path / "run.json").write_text(json.dumps(info))
    assert "all 3 prompts were longer than the window and skipped (qasper: 3)" in refused(directory.path).message


def test_a_task_of_which_all_was_skipped_is_named_with_its_count(make_run: Any) -> None:
    directory = make_run({("full", "qasper"): [{}], ("full", "musique"): []}, rows={"qasper": 1, "musique": 4})
    info = json.loads((directory.path / "run.json").read_text())
    info["provenance"]["tasks"]["musique"]["skipped"] = 4
    (directory.path / "run.json").write_text(json.dumps(info))
    said = run(directory.path).stdout
    assert "full: prompts longer than the window were skipped, none is left: musique (4)." in said
    assert "no predictions for musique" not in said
