"""Other tools' files: official predictions in, lm-evaluation-harness and Parquet out."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from lcbench.reporting.lm_eval import files_of, names_of
from lcbench.reporting.samples_parquet import render
from lcbench.scoring.imported import import_predictions
from lcbench.scoring.per_sample import score_samples
from lcbench.scoring.run import score_path
from reporting.made_runs import failed, make, right, wrong

ROWS = [
    {"pred": "Paris.", "answers": ["Paris", "City of Paris"], "all_classes": None, "length": 4097},
    {"pred": "I do not know", "answers": ["Rome"], "all_classes": None, "length": 12},
    {"pred": "Oslo \ud83d", "answers": ["Oslo"], "all_classes": None, "length": 7},
]


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Predictions of two methods as the official script leaves them."""
    for method, rows in (("full", ROWS), ("half", ROWS[::-1])):
        folder = tmp_path / "pred" / method
        folder.mkdir(parents=True)
        for task in ("qasper", "hotpotqa"):
            (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pred"


def test_imported_predictions_score_as_the_files_do(official: Path, tmp_path: Path) -> None:
    run = import_predictions(official, tmp_path / "run", model="theirs")
    assert (run.methods, run.tasks) == (["full", "half"], ["hotpotqa", "qasper"])
    for method in run.methods:
        ours = score_path(tmp_path / "run").methods[method].tasks
        files = score_path(official / method)
        (theirs,) = files.methods.values()
        assert {t: s.score for t, s in ours.items()} == {t: s.score for t, s in theirs.tasks.items()}
    record = run.records("full", "qasper")[0]
    assert (record.id, record.decode, record.length, record.kv_bytes) == ("0", "imported", 4097, None)


def test_importing_again_changes_nothing_and_other_files_are_refused(official: Path, cli: Callable[..., Any]) -> None:
    first = cli("import", official, "--out", "run", "--model", "theirs")
    assert first.code == 0, first.err
    assert "12 predictions, 2 methods, 2 tasks" in first.out
    files = {p: p.read_bytes() for p in Path("run/predictions").rglob("*.jsonl")}
    assert cli("import", official, "--out", "run", "--model", "theirs").code == 0
    assert {p: p.read_bytes() for p in Path("run/predictions").rglob("*.jsonl")} == files
    (official / "full" / "qasper.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    other = cli("import", official, "--out", "run", "--model", "theirs")
    assert other.code == 2
    assert {p: p.read_bytes() for p in Path("run/predictions").rglob("*.jsonl")} == files


def test_reports_and_comparisons_work_on_imported_runs(official: Path, cli: Callable[..., Any]) -> None:
    assert cli("import", official, "--out", "run", "--model", "theirs").code == 0
    for words in (["score", "run"], ["report", "run"], ["report", "run", "--format", "json"]):
        done = cli(*words)
        assert done.code == 0, done.err
    assert "imported" in cli("report", "run").out
    compared = cli("compare", "run", "full", "half")
    assert compared.code == 0, compared.err
    one = cli("import", official / "half" / "qasper.jsonl", "--out", "one", "--method", "kivi")
    assert one.code == 0, one.err
    assert cli("score", "one").code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["import", "nothing", "--out", "x"], "does not exist"),
        (["import", "empty", "--out", "x"], "no predictions"),
        (["import", "pred", "--out", "x", "--method", "m"], "each a method"),
        (["import", "bad.jsonl", "--out", "x"], "bad"),
        (["export", "nothing", "--out", "x"], "nothing"),
        (["export", "run", "--format", "xlsx", "--out", "x"], "xlsx"),
        (["export", "run", "--format", "parquet", "--out", "no/x"], "no folder"),
    ],
)
def test_wrong_words_cost_one_sentence(official: Path, cli: Callable[..., Any], words: list[str], told: str) -> None:
    Path("empty").mkdir()
    Path("bad.jsonl").write_text("{}")
    Path("pred").symlink_to(official)
    if "run" in words:
        import_predictions(official, Path("run"), model="theirs")
    done = cli(*words)
    assert done.code == 2
    assert told in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert not Path("x").exists()


def test_the_harness_format(tmp_path: Path) -> None:
    """Keys, names and hashes of lm-evaluation-harness 0.4; values against means written out here."""
    good = [right(1), wrong(2), right(3, pred="Paris France"), failed(4)]
    facts = {"qasper": {"rows": 5, "max_new_tokens": 128, "task_version": 1}}
    run = make(tmp_path / "run", {("full", "qasper"): good, ("kivi@bits=2", "qasper"): good[:2]}, facts=facts, limit=5)
    files = files_of(run)
    assert len(files) == 4
    folders = {name.split("/")[0] for name in files}
    assert folders == {"demo__full", "demo__kivi@bits=2"}
    (name,) = [n for n in files if n.startswith("demo__full/results_")]
    assert ":" not in name
    found = json.loads(files[name])
    required = {"results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config"}
    assert required <= set(found)
    scores = [1.0, 0.0, 2 * 0.5 / 1.5]  # F1 of Paris, London and Paris France against Paris
    values = found["results"]["longbench_qasper"]
    assert values["qa_f1,none"] == values["score,none"] == pytest.approx(statistics.fmean(scores))
    assert values["score_stderr,none"] == pytest.approx(statistics.stdev(scores) / math.sqrt(3))
    assert values["alias"] == values["name"] == "longbench_qasper"
    assert found["n-samples"] == {"longbench_qasper": {"original": 5, "effective": 3}}
    assert found["configs"]["longbench_qasper"]["metadata"]["lcbench_task"] == "qasper"
    assert found["config"]["limit"] == 5
    (name,) = [n for n in files if n.startswith("demo__full/samples_longbench_qasper_")]
    lines = [json.loads(line) for line in files[name].splitlines()]
    assert [line["doc_id"] for line in lines] == [0, 1, 2, 3]
    first = lines[0]
    assert (first["resps"], first["filtered_resps"], first["target"]) == ([["Paris"]], ["Paris"], "['Paris']")
    assert first["arguments"]["gen_args_0"]["arg_1"]["max_gen_toks"] == 128
    assert first["target_hash"] == hashlib.sha256(b"['Paris']").hexdigest()
    assert [line["score"] for line in lines] == [*map(pytest.approx, scores), None]
    assert lines[3]["lcbench"]["status"] == "error"
    joined = "".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines)
    assert found["task_hashes"]["longbench_qasper"] == hashlib.sha256(joined.encode()).hexdigest()


def test_names_of_tasks_that_the_harness_has() -> None:
    long = "passkey@" + ",".join(f"lengths={n}" for n in range(40))
    tasks = [
        "qasper",
        "qasper_e",
        "passkey@lengths=20/60,depths=3",
        "passkey@lengths=20,60,depths=3",
        "passkey@word=数",
        "passkey@word=码",
        long,
    ]
    names = names_of(tasks)
    assert [names[task] for task in tasks[:4]] == [
        "longbench_qasper",
        "longbench_qasper_e",
        "passkey_lengths_20_60_depths_3",
        "passkey_lengths_20_60_depths_3_",
    ]
    assert len(set(names.values())) == len(tasks)
    assert all(len(name) < 220 and re.fullmatch(r"[\w.~-]+", name, re.ASCII) for name in names.values())


def test_the_harness_finds_what_belongs_together(tmp_path: Path) -> None:
    """As its readers do: a task's file by the name between the first and the last ``_`` of the file's, the newest by
    what stands after it, a model by its folder; W&B's splits names at ``/``. (`lm_eval/utils.py`, `loggers/`, and
    `scripts/zeno_visualize.py` of 0.4.13 read an export of this shape in an environment of their own.)"""
    tasks = ("qasper", "passkey@lengths=20/60,depths=3", "hotpotqa")
    keys = {(method, task): [right(1), wrong(2)] for method in ("full", "kivi@bits=2+x") for task in tasks}
    run = make(tmp_path / "run", keys, model="./models/some model")
    files = files_of(run)
    folders = {name.split("/")[0] for name in files}
    assert folders == {"models__some%20model__full", "models__some%20model__kivi@bits=2+x"}
    for folder in folders:
        own = [name.split("/")[1] for name in files if name.startswith(f"{folder}/")]
        (results,) = [name for name in own if name.startswith("results_")]
        found = json.loads(files[f"{folder}/{results}"])
        assert found["model_name_sanitized"] == folder == re.sub(r"[\"<>:/|\\?*\[\]]+", "__", folder)
        named = {name[name.find("_") + 1 : name.rfind("_")]: name for name in own if name.startswith("samples_")}
        everywhere = ("results", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "task_hashes")
        for part in (*everywhere, "group_subtasks"):
            assert set(found[part]) == set(named), part
        assert {name[name.rfind("_") + 1 :] for name in named.values()} == {results[results.rfind("_") + 1 :] + "l"}
        for task, name in named.items():
            assert "/" not in task
            values = found["results"][task]
            assert {key for key, value in values.items() if isinstance(value, str) and value != "N/A"} == {
                "name",
                "alias",
            }
            lines = [json.loads(line) for line in files[f"{folder}/{name}"].splitlines()]
            assert found["configs"][task]["task"] == task
            for metric in found["configs"][task]["metric_list"]:
                assert [line[metric["metric"]] for line in lines] == [1.0, 0.0]
            for line in lines:
                hashed = json.dumps(line["doc"], indent=2, ensure_ascii=False)
                assert line["doc_hash"] == hashlib.sha256(hashed.encode()).hexdigest()
                assert line["prompt_hash"] == hashlib.sha256(b"").hexdigest()


def test_half_a_character_is_exported(official: Path, cli: Callable[..., Any]) -> None:
    """Official files hold answers that end in half of a pair of surrogates."""
    assert cli("import", official, "--out", "run", "--model", "theirs").code == 0
    done = cli("export", "run", "--format", "lm-eval", "--out", "out")
    assert done.code == 0, done.err
    (file,) = Path("out/theirs__full").glob("samples_longbench_qasper_*.jsonl")
    assert [json.loads(line)["resps"] for line in file.read_text("utf-8").splitlines()][2] == [["Oslo ?"]]


def test_every_sample_as_parquet(official: Path, tmp_path: Path) -> None:
    run = import_predictions(official, tmp_path / "run", model="theirs")
    table = pyarrow.parquet.read_table(io.BytesIO(render([run])))
    assert table.num_rows == 12
    rows = table.to_pylist()
    scored = score_samples(run, [("full", "qasper")])["full", "qasper"]
    mine = [row for row in rows if (row["method"], row["task"]) == ("full", "qasper")]
    assert [row["score"] for row in mine] == [one.score for one in scored]
    assert mine[0]["answers"] == ["Paris", "City of Paris"]
    assert (mine[0]["kv_bytes"], mine[0]["model"], mine[2]["pred"]) == (None, "theirs", "Oslo ?")


def test_real_predictions_of_other_people(shared_data: Path, tmp_path: Path) -> None:
    """A published set: imported, its scores are those that its authors wrote beside it."""
    theirs = shared_data / "predictions" / "adakv" / "mistral-7B-instruct-v0.2"
    if not theirs.is_dir():
        pytest.skip("this set is not here")
    few = tmp_path / "few"
    few.mkdir()
    names = ("qasper", "hotpotqa", "passage_count", "triviaqa")
    for name in names:
        (few / f"{name}.jsonl").write_bytes((theirs / f"{name}.jsonl").read_bytes())
    run = import_predictions(few, tmp_path / "run", model="mistral-7b")
    scores = score_path(tmp_path / "run").methods["full"].tasks
    published = json.loads((theirs / "result.json").read_text())
    assert {name: scores[name].score for name in names} == {name: published[name] for name in names}
    assert [len(run.records("full", name)) for name in run.tasks] == [200] * 4
