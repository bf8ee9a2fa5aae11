"""An endpoint that misbehaves in every way: what is tried again, what is a failure, what ends everything."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from lcbench.endpoint.client import NoReply
from lcbench.errors import BadValue, NetworkError, UsageError
from lcbench.scoring.judge.endpoint import OPENAI, Endpoint, Patience, key_for
from lcbench.scoring.judge.rubric import Question
from scoring.judge.stand_in import QUICK, StandIn

PROMPT = Question("fluency", "Well said.").prompt


def test_a_good_answer_and_what_was_asked(endpoint: Endpoint, stand_in: StandIn) -> None:
    assert endpoint.ask("be fair", PROMPT).endswith('{"fluency": 1}')
    (asked,) = stand_in.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.body == {
        "model": "judge-1",
        "messages": [{"role": "system", "content": "be fair"}, {"role": "user", "content": PROMPT}],
        "temperature": 0.1,
        "top_p": 0.9,
        "max_tokens": 1024,
    }
    assert "authorization" not in asked.headers


@pytest.mark.parametrize("trouble", ["429", "500", "503/0", "cut", "raw:not json", "raw:{}", "text: "])
def test_what_may_go_better_is_tried_again(endpoint: Endpoint, stand_in: StandIn, trouble: str) -> None:
    stand_in.script = ["good", trouble, trouble]
    assert endpoint.ask("", PROMPT)
    assert endpoint.ask("", PROMPT)
    assert len(stand_in.asked) == 4


@pytest.mark.parametrize(
    ("trouble", "reason"), [("429", "429"), ("500", "500"), ("raw:[]", "no chat completion"), ("text: ", "empty")]
)
def test_what_never_goes_better_is_a_failure_of_this_question(
    endpoint: Endpoint, stand_in: StandIn, trouble: str, reason: str
) -> None:
    stand_in.always = trouble
    with pytest.raises(NoReply, match=reason):
        endpoint.ask("", PROMPT)
    stand_in.always = "good"
    assert endpoint.ask("", PROMPT)


def test_a_refused_question_is_not_tried_again(endpoint: Endpoint, stand_in: StandIn) -> None:
    stand_in.always = "400"
    with pytest.raises(NoReply, match="400"):
        endpoint.ask("", PROMPT)
    assert len(stand_in.asked) == 1


@pytest.mark.parametrize(("code", "words"), [("401", "key"), ("403", "key"), ("404", "judge-1"), ("302", "redirects")])
def test_a_wrong_key_model_or_address_ends_it_at_once(
    endpoint: Endpoint, stand_in: StandIn, code: str, words: str
) -> None:
    stand_in.always = code
    with pytest.raises(UsageError, match=words) as raised:
        endpoint.ask("", PROMPT)
    assert len(stand_in.asked) == 1
    assert raised.value.next_step


def test_a_server_that_asks_to_wait_is_waited_for(endpoint: Endpoint, stand_in: StandIn) -> None:
    stand_in.script = ["429/1"]
    begun = time.monotonic()
    endpoint.ask("", PROMPT)
    assert time.monotonic() - begun >= 1.0


@pytest.mark.parametrize("trouble", ["slow:2", "silent:2", "drip:0.05"])
def test_a_late_answer_is_none(stand_in: StandIn, trouble: str) -> None:
    impatient = Endpoint("m", stand_in.url, patience=Patience(attempts=2, timeout=0.3, first_wait=0.01))
    stand_in.script = ["good", trouble]
    impatient.ask("", PROMPT)
    begun = time.monotonic()
    assert impatient.ask("", PROMPT)
    assert 0.25 < time.monotonic() - begun < 1.9
    assert len(stand_in.asked) == 3


def test_a_server_that_never_answered_is_given_up_soon(stand_in: StandIn) -> None:
    stand_in.stop()
    gone = Endpoint("m", stand_in.url, patience=QUICK)
    with pytest.raises(NetworkError, match="does not answer"):
        gone.ask("", PROMPT)


def test_a_server_that_went_away_fails_some_questions_and_then_everything(stand_in: StandIn) -> None:
    judge = Endpoint("m", stand_in.url, patience=Patience(attempts=2, timeout=0.2, first_wait=0.01, silent=3))
    judge.ask("", PROMPT)
    stand_in.always = "silent:1"
    for _ in range(2):
        with pytest.raises(NoReply):
            judge.ask("", PROMPT)
    with pytest.raises(NetworkError):
        judge.ask("", PROMPT)


def test_the_key_goes_into_the_header_and_nowhere_else(stand_in: StandIn, monkeypatch: Any) -> None:
    monkeypatch.setenv("LCBENCH_JUDGE_KEY", "sk-secret")
    judge = Endpoint("m", stand_in.url, key_for(stand_in.url), QUICK)
    judge.ask("", PROMPT)
    assert stand_in.asked[0].headers["authorization"] == "Bearer sk-secret"
    for text in (repr(judge), judge.label, json.dumps(dict(judge.identity))):
        assert "sk-secret" not in text
    stand_in.always = "401"
    with pytest.raises(UsageError) as raised:
        judge.ask("", PROMPT)
    assert "sk-secret" not in raised.value.message + raised.value.next_step


def test_openais_own_key_is_sent_to_openai_alone(monkeypatch: Any) -> None:
    monkeypatch.delenv("LCBENCH_JUDGE_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    assert key_for(OPENAI) == "sk-openai"
    assert key_for("http://127.0.0.1:8000/v1") == ""
    monkeypatch.setenv("LCBENCH_JUDGE_KEY", "sk with blanks")
    with pytest.raises(BadValue):
        key_for(OPENAI)


def test_without_a_key_openai_is_not_even_asked(monkeypatch: Any) -> None:
    monkeypatch.delenv("LCBENCH_JUDGE_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UsageError, match="wants a key") as raised:
        Endpoint("m", OPENAI, key_for(OPENAI), QUICK).ask("", PROMPT)
    assert "OPENAI_API_KEY" in raised.value.next_step


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x/v1", "http://user:word@x/v1", "http://x/v1?key=1", ""])
def test_an_address_that_is_none_or_carries_a_secret_is_refused(url: str) -> None:
    with pytest.raises(BadValue) as raised:
        Endpoint("m", url)
    assert "word" not in raised.value.message


def test_the_full_path_is_understood_too(stand_in: StandIn) -> None:
    judge = Endpoint("m", f"{stand_in.url}/chat/completions", patience=QUICK)
    assert judge.ask("", PROMPT)
    assert judge.url == stand_in.url
