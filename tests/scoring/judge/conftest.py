"""The judge on the loopback, and a run that it can grade."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from lcbench.scoring.judge.asking import Asker
from lcbench.scoring.judge.cache import ReplyCache
from lcbench.scoring.judge.endpoint import Endpoint
from lcbench.scoring.judge.grading import Grading
from lcbench.store.rundir import RunDirectory
from scoring.judge.stand_in import QUICK, StandIn


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.stop()


@pytest.fixture
def endpoint(stand_in: StandIn) -> Endpoint:
    return Endpoint("judge-1", stand_in.url, patience=QUICK)


@pytest.fixture
def grading(endpoint: Endpoint, tmp_path: Any) -> Callable[..., Grading]:
    """A fresh grading on one cache folder, as a new process would have it."""

    def make(threshold: float = 0.5, **asker: Any) -> Grading:
        judge = asker.pop("judge", endpoint)
        return Grading(Asker(judge, ReplyCache(tmp_path / "home", judge.identity), **asker), threshold)

    return make


@pytest.fixture
def qa_run(make_run: Any) -> Callable[..., RunDirectory]:
    """A run of full on single_doc_qa (base and 8k) and single_doc_sum at 8k, four questions each."""

    def make(changes: Mapping[str, Any] | None = None, without: Mapping[int, str] | None = None) -> RunDirectory:
        facts = [("Who came?", "Ada"), ("Where?", "Oslo"), ("When?", "1900"), ("Why?", "for tea")]
        said = ["It was Ada.", "In Paris.", "blah 1900 blah", ""]
        qa = [
            {
                "pred": pred,
                "answers": [answer],
                "meta": {"question": asked, "question_id": f"q{i}", "context_id": f"c{i}", **(changes or {})},
            }
            for i, ((asked, answer), pred) in enumerate(zip(facts, said, strict=True))
        ]
        reference = "Ada came to Oslo. She had tea."
        sums = [
            {"pred": pred, "answers": [reference], "meta": {"question": "", "question_id": f"s{i}"}}
            for i, pred in enumerate(["Ada came to Oslo. It rained.\nMore.", "She had tea.", "blah blah", ""])
        ]
        alone = [
            {"pred": (without or {}).get(i, "unanswerable"), "answers": [a], "meta": {"question_id": f"q{i}"}}
            for i, (_, a) in enumerate(facts)
        ]
        return make_run({
            ("full", "100-longbench/single_doc_qa@base"): qa,
            ("full", "100-longbench/single_doc_qa@8k"): qa,
            ("full", "100-longbench/single_doc_sum@8k"): sums,
            ("full", "100-longbench/single_doc_qa@no-context"): alone,
        })  # fmt: skip

    return make
