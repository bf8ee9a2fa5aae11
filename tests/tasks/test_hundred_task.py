"""How built contexts are asked: names, rows, prompts, questions without context, records of a run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hundred_pools import write_pools

from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.errors import BadValue, ChecksumMismatch, CorruptFile, DataMissing
from lcbench.store.rundir import RunDirectory
from lcbench.tasks.base import Task
from lcbench.tasks.hundred.names import HundredId, parse_id
from lcbench.tasks.longbench import fill
from lcbench.tasks.registry import resolve
from tiny import save_tiny

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """A home with the official prompts and a small build; not to be written to."""
    from typer.testing import CliRunner

    from lcbench.cli import app

    home, pools = tmp_path_factory.mktemp("home"), write_pools(tmp_path_factory.mktemp("pools"))
    build = ["build", "100-longbench", "--lengths", "500,1k", "--rows", "3", "--base-below", "1k", "-q"]
    for command in (
        ["download", "100-longbench", "--from", str(shared_data)],
        [*build, "--pools", str(pools), "--tokenizer", "words"],
    ):
        result = CliRunner(env={"LCBENCH_HOME": str(home)}).invoke(app, command)
        assert result.exit_code == 0, result.output
    return home


@pytest.fixture
def home(made: Path, own_home: Path) -> Path:
    shutil.copytree(made, own_home)
    return own_home


def one(text: str, home: Path) -> Task:
    [task] = resolve(text, home)
    return task


def test_names_stand_for_lengths(home: Path) -> None:
    ids = [task.id for task in resolve("100-longbench/kv_retrieval@16k,1000,qasper", home)]
    assert ids == ["100-longbench/kv_retrieval@16k", "100-longbench/kv_retrieval@1000", "qasper"]
    assert [t.id for t in resolve("100-longbench/kv_retrieval", home)] == [
        f"100-longbench/kv_retrieval@{length}" for length in ("base", "500", "1k")
    ]
    everything = [task.id for task in resolve("100-longbench", home)]
    assert len(everything) == 8 * 3 + 2
    assert everything[3] == "100-longbench/single_doc_qa@no-context"
    some = [task.id for task in resolve("100-longbench@1024", home)]
    assert len(some) == 8 * 2 + 2
    assert "100-longbench/counting_stars@base" in some
    assert [t.id for t in resolve("100-longbench/key-retrieval@1k", home)] == [
        "100-longbench/kv_retrieval@1k", "100-longbench/counting_stars@1k",
    ]  # fmt: skip
    assert one("100-longbench/kv_retrieval@8192,build=x", home).id == "100-longbench/kv_retrieval@8k,build=x"
    again = one(one("100-longbench/kv_retrieval@8k,build=x", home).id, home)
    assert pickle.loads(pickle.dumps(again)) == again


def test_ids_are_taken_apart() -> None:
    assert parse_id("100-longbench/kv_retrieval@16k,build=llama") == HundredId("kv_retrieval", 16384, "llama")
    assert parse_id("100-longbench/single_doc_qa@no-context") == HundredId("single_doc_qa", "no-context")
    assert parse_id("100-longbench/single_doc_qa@base") == HundredId("single_doc_qa", "base")
    assert parse_id("qasper") is parse_id("passkey@digits=7") is parse_id("100-longbench/nothing@8k") is None


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("100-longbench/kv_retrieval@no-context", BadValue, "without its context"),
        ("100-longbench/kv_retrieval@64", BadValue, "too short"),
        ("100-longbench@build=other", DataMissing, "--name other"),
        ("100-longbench/kv_retrieval@build=../x", BadValue, "not a name"),
    ],
)
def test_wrong_names(home: Path, text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        resolve(text, home)
    assert said in f"{caught.value} {caught.value.next_step}"  # type: ignore[attr-defined]


def test_what_is_not_built_is_told_with_the_command(cli: Cli, home: Path) -> None:
    with pytest.raises(DataMissing) as caught:
        one("100-longbench/kv_retrieval@32k", home).load(home)
    assert caught.value.next_step == (
        "Run: lcbench build 100-longbench --lengths 32k --rows 3 --seed 42 --base-below 1k --tokenizer words "
        "--pools DIR"
    )
    shutil.rmtree(home / "data/100-longbench/builds")
    done = cli("run", "--task", "100-longbench", "--dry-run")
    assert done.code == 2
    assert "lcbench build 100-longbench" in done.err


def test_questions_on_one_context_share_their_beginning(home: Path) -> None:
    task = one("100-longbench/single_doc_qa@1k", home)
    loaded = task.load(home)
    by_context: dict[str, list[str]] = {}
    for row in loaded.rows:
        prompt = task.prompt(row, home)
        assert prompt.question_start is not None
        assert prompt.text[prompt.question_start :].count(row.fields["input"]) == 1
        by_context.setdefault(row.meta["context_id"], []).append(prompt.text[: prompt.question_start])
    assert len(loaded.rows) > len(by_context) == 3
    assert all(len(set(beginnings)) == 1 for beginnings in by_context.values())
    assert len({row.id for row in loaded.rows}) == len(loaded.rows)
    assert [r.id for r in task.load(home, 2).rows] == [r.id for r in loaded.rows[:2]]
    assert "built in reference mode, lengths in tokens of words" in loaded.note
    assert "incomplete pools: QA-1" in loaded.note


def test_rows_carry_what_scoring_needs(home: Path) -> None:
    keys = {
        "suite", "task", "target_length", "true_length", "base_length", "context_id", "document_id", "question_id",
        "question", "mode", "build", "faults", "chance",
    }  # fmt: skip
    for task in resolve("100-longbench", home):
        for row in task.load(home).rows:
            assert set(row.meta) == keys
            assert json.dumps(row.meta)
            assert row.answers
            assert all(isinstance(answer, str) for answer in row.answers)
            assert row.length == row.meta["true_length"]
    stars = one("100-longbench/counting_stars@1k", home).load(home).rows[0]
    assert stars.answers[0] in "12345"
    assert stars.meta["chance"] == 0.2
    base = one("100-longbench/kv_retrieval@base", home).load(home, 3).rows
    assert [row.meta["base_length"] for row in base] == [384, 512, 768]


def test_questions_without_context_are_each_asked_once(home: Path) -> None:
    task = one("100-longbench/single_doc_qa@no-context", home)
    alone = task.load(home).rows
    asked = [row for t in resolve("100-longbench/single_doc_qa@base,500,1k", home) for row in t.load(home).rows]
    assert {row.meta["question_id"] for row in alone} == {row.meta["question_id"] for row in asked}
    assert len(alone) == len({row.id for row in alone}) <= len(asked)
    first = [
        row.meta["question_id"]
        for t in resolve("100-longbench/single_doc_qa@500", home)
        for row in t.load(home, 2).rows
    ]
    assert set(first) <= {row.id for row in task.load(home, 2).rows}  # --limit leaves none of them out
    text = task.prompt(alone[0], home).text
    assert alone[0].meta["question"] in text
    assert '"unanswerable"' in text
    assert len(text) < 500
    here = one("100-longbench/single_doc_qa@500", home)
    row = here.load(home).rows[0]
    assert here.prompt(here.without_context(row), home).text == fill(task.template(home), row.fields).text  # type: ignore[attr-defined]
    stars = one("100-longbench/counting_stars@500", home)
    with pytest.raises(BadValue):
        stars.without_context(stars.load(home).rows[0])


def test_a_changed_prompt_or_a_broken_file_is_refused(home: Path) -> None:
    task = one("100-longbench/kv_retrieval@500", home)
    path = home / "data/100-longbench/builds/default/kv_retrieval_500.jsonl"
    good = path.read_text("utf-8")
    for bad, said in (
        ("", "line 1"),
        (good.replace('"format": 1', '"format": 9', 1), "format 9"),
        (good.replace('"_id"', '"id"', 1), "line 2: the field '_id'"),
        (good[:-20], "line 4: not JSON"),
    ):
        path.write_text(bad, "utf-8")
        with pytest.raises(CorruptFile, match=said):
            task.load(home)
    path.write_text(good, "utf-8")
    prompts = home / "data/100-longbench/config/dataset2prompt.json"
    prompts.write_text(prompts.read_text("utf-8").replace("There are some", "Here are some"), "utf-8")
    with pytest.raises(ChecksumMismatch):
        task.load(home)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), layers=1, hidden=16, heads=2, kv_heads=1, window=7000)


def test_a_run_asks_without_context_once_and_counts_what_is_too_long(cli: Cli, home: Path, model: Path) -> None:
    """A byte tokenizer: a context of 500 words has some 3,500 tokens, one of 1024 words over 7,000."""
    task = "100-longbench/kv_retrieval@500,1k,100-longbench/single_doc_qa@no-context"
    arguments = ["--model", model, "--method", "streamingllm,kivi@bits=2", "--task", task, "--limit", 2, "-q"]
    for choice, code in (("error", 1), ("truncate", 0), ("skip", 0)):
        out = home / choice
        done = cli("run", *arguments, "--over-length", choice, "--out", out)
        assert done.code == code, done.err
        run = RunDirectory.open(out)
        alone, short, long = (
            "100-longbench/single_doc_qa@no-context", "100-longbench/kv_retrieval@500", "100-longbench/kv_retrieval@1k",
        )  # fmt: skip
        assert len(run.records("full", alone)) == run.provenance["tasks"][alone]["rows"] >= 2
        assert not run.records("streamingllm", alone)
        assert run.methods_of(alone) == ["full"]
        assert run.provenance["tasks"][alone]["once"] is True
        assert [r.status for r in run.records("streamingllm", short)] == ["ok", "ok"]
        found = run.records("kivi@bits=2", long)
        facts = run.provenance["tasks"][long]
        counts = {"cut": 0, "too_long": 0, "skipped": 0}
        if choice == "error":
            assert [record.status for record in found] == ["error", "error"]
            counts["too_long"] = 2
        elif choice == "truncate":
            assert all(record.ok and (record.truncated_from or 0) > 7000 >= record.prompt_tokens for record in found)
            counts["cut"] = 2
        else:
            assert found == []
            counts["skipped"] = 2
        assert {key: facts[key] for key in counts} == counts
        assert any("2 of 2 prompts" in note for note in facts["notes"])
        report = cli("report", out)
        assert "2 of 2 prompts" in " ".join(report.out.split()), report.out + report.err
        assert "unfinished" not in report.out
    done = cli("run", *arguments, "--over-length", "skip", "--out", home / "skip")
    assert done.code == 0
    assert "there already" in done.out


def test_a_prompt_is_only_cut_where_the_user_says_so() -> None:
    assert RunSpec(model=ModelSpec("x")).over_length == "error"
