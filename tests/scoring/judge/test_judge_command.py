"""``lcbench score --judge`` from the outside: an endpoint, a local model, and words it does not understand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lcbench.cli import app
from lcbench.cli.judge import LocalJudge
from lcbench.endpoint.client import NoReply
from lcbench.errors import LcbenchError, NetworkError, UsageError
from lcbench.store.rundir import RunDirectory
from scoring.judge.stand_in import StandIn

QA = "100-longbench/single_doc_qa@8k"


def run(*arguments: object, **options: Any) -> Any:
    env = {"COLUMNS": "150", "TERM": "dumb"}
    return CliRunner().invoke(app, ["score", *map(str, arguments)], env=env, **options)


def test_a_run_is_graded_written_and_costs_nothing_twice(qa_run: Any, stand_in: StandIn) -> None:
    path = qa_run(without={0: "Ada"}).path
    done = run(path, "--judge", "openai:j", "--judge-url", stand_in.url, "--yes")
    assert done.exit_code == 0, done.output
    assert "at most 10 calls (0 answered before)" in done.stderr
    assert "qa_judge" in done.stdout
    assert "filtered" in done.stdout
    data = RunDirectory.open(path).scores()
    assert data is not None
    assert data["methods"]["full"]["tasks"][QA]["n_filtered"] == 1
    assert (data["judge"]["model"], data["judge"]["qa_filter"]) == ("j", 0.5)
    calls = len(stand_in.asked)
    # Nobody at the keyboard and no --yes: nothing has to be asked.
    again = run(path, "--judge", "openai:j", "--judge-url", stand_in.url)
    assert again.exit_code == 0, again.output
    assert "Judge: 0 questions asked" in again.stderr
    assert len(stand_in.asked) == calls
    assert "replaced" not in again.stderr
    assert "judged scores in scores.json are replaced" in run(path).stderr
    assert "replaced" not in run(path).stderr


def test_without_agreement_nothing_is_asked(qa_run: Any, stand_in: StandIn) -> None:
    path = qa_run().path
    done = run(path, "--judge", "openai:j", "--judge-url", stand_in.url)
    assert isinstance(done.exception, UsageError)
    assert "--yes" in done.exception.next_step
    assert stand_in.asked == []
    assert not (path / "scores.json").exists()


def test_failed_verdicts_give_exit_code_1_and_are_counted(qa_run: Any, stand_in: StandIn) -> None:
    stand_in.always = "text:no idea"
    done = run(qa_run().path, "--judge", "openai:j", "--judge-url", stand_in.url, "--yes")
    assert done.exit_code == 1
    assert "9 without a verdict, in no score" in done.stdout


def test_a_judge_that_is_not_there_is_one_error(qa_run: Any, stand_in: StandIn) -> None:
    stand_in.stop()
    done = run(qa_run().path, "--judge", "openai:j", "--judge-url", stand_in.url, "--yes", "--judge-timeout", "1")
    assert isinstance(done.exception, NetworkError)
    assert "does not answer" in done.exception.message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--judge", "gpt-4o"], "openai:MODEL"),
        (["--judge", "openai:"], "openai:MODEL"),
        (["--judge", "opnai:m"], "openai"),
        (["--judge", "openai:m", "--judge-url", "localhost:1"], "https://"),
        (["--judge", "hf:m", "--judge-url", "http://localhost:1"], "Leave --judge-url out"),
        (["--judge", "openai:m", "--qa-filter", "5"], "0.5"),
        (["--judge", "openai:m", "--judge-calls", "0"], "defaults"),
        (["--judge-url", "http://localhost:1"], "--judge openai:MODEL"),
    ],
)
def test_words_it_does_not_understand(qa_run: Any, words: list[str], said: str) -> None:
    error = run(qa_run().path, *words).exception
    assert isinstance(error, LcbenchError), error
    assert said in error.next_step


@pytest.fixture
def local(monkeypatch: Any) -> LocalJudge:
    """A judge on a tiny random model made in memory."""
    import lcbench.models.load as loading
    import tiny

    model = tiny.loaded_tiny(layers=1)
    model = replace(model, info=replace(model.info, weights_sha256="a" * 64))
    monkeypatch.setattr(loading, "load", lambda spec, home, say=None: model)
    monkeypatch.setattr(loading, "describe", lambda spec, home, say=None: (model.info, model.tokenizer))
    return LocalJudge("tiny", Path("unused"))


def test_a_local_model_is_asked_through_the_engine_and_is_known_by_its_weights(local: LocalJudge) -> None:
    first, second = local.ask("be fair", "grade this"), local.ask("be fair", "grade this")
    assert first == second
    assert first
    assert json.dumps(dict(local.identity))
    assert local.identity["identity"]
    assert not local.concurrent


def test_a_question_longer_than_its_window_is_a_failure(local: LocalJudge) -> None:
    with pytest.raises(NoReply, match="window"):
        local.ask("be fair", "x" * 20000)


def test_the_command_grades_with_a_local_model(local: LocalJudge, qa_run: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(LocalJudge, "ask", lambda self, system, user: '{"fluency": 1, "correctness": 3}')
    path = qa_run().path
    done = run(path, "--judge", "hf:tiny", "--yes")
    data = RunDirectory.open(path).scores()
    assert data is not None
    assert data["judge"]["kind"] == "hf"
    # 3 of 4 rows 1 x 3 / 6, and the empty prediction 0.
    assert data["methods"]["full"]["tasks"][QA]["score"] == 37.5
    # Such a reply says nothing about precision: those two rows have no verdict.
    assert done.exit_code == 1
