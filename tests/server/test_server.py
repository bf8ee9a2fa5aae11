"""`lcbench serve` as clients see it: OpenAI's own library where it is installed, plain HTTP for the rest."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch

from lcbench.engine.generate import decode, prefill
from lcbench.methods.registry import resolve
from lcbench.models.chat import encode_prompt
from lcbench.models.info import LoadedModel
from lcbench.server.http import Server

Serve = Callable[..., Server]
PROMPT = "The key is 4711. " * 12 + "What is the key?"


@pytest.fixture
def openai() -> Any:
    return pytest.importorskip("openai")


def ours(loaded: LoadedModel, prompt: str, method: str, tokens: int, *, chat: bool) -> tuple[str, int, int]:
    """What the engine answers, step by step: text, prompt tokens, new tokens."""
    ids = encode_prompt(loaded, prompt, chat=chat, chat_option="auto").ids
    one = resolve(method)
    with torch.inference_mode():
        record = prefill(loaded, ids, observe=one.observes())
        made = decode(loaded, one.compress(record), record.logits, max_new_tokens=tokens)
    return loaded.tokenizer.decode(made.ids, skip_special_tokens=True), len(ids), made.new_tokens


@pytest.mark.parametrize(
    "method", ["full", "snapkv@budget=0.25,window=8", "kivi@bits=2,group_size=32,residual_length=32"]
)
def test_the_openai_library_gets_the_engines_answer(
    openai: Any, serve: Serve, loaded: LoadedModel, method: str
) -> None:
    client = openai.OpenAI(base_url=serve(method).url, api_key="none", max_retries=0)
    done = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0)
    text, read, made = ours(loaded, PROMPT, method, 12, chat=False)
    assert (done.choices[0].text, done.usage.prompt_tokens, done.usage.completion_tokens) == (text, read, made)
    said = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": PROMPT}], max_tokens=12, temperature=0
    )
    text, read, made = ours(loaded, PROMPT, method, 12, chat=True)
    assert (said.choices[0].message.content, said.usage.prompt_tokens) == (text, read)
    assert said.usage.completion_tokens == made
    assert said.choices[0].finish_reason in ("stop", "length")


def test_methods_answer_differently(serve: Serve) -> None:
    texts = {
        ask(serve(method), prompt=PROMPT, max_tokens=16)["choices"][0]["text"] for method in ("full", "streamingllm")
    }
    assert len(texts) == 2


def test_streams_add_up_to_the_whole_answer(openai: Any, serve: Serve) -> None:
    client = openai.OpenAI(base_url=serve().url, api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20}
    whole = client.completions.create(**asked)
    pieces = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].text for p in pieces if p.choices) == whole.choices[0].text
    assert pieces[-1].usage == whole.usage
    assert sum(bool(p.choices and p.choices[0].text) for p in pieces) > 2
    chat: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 20}
    said = client.chat.completions.create(**chat)
    deltas = [p.choices[0] for p in client.chat.completions.create(**chat, stream=True)]
    assert deltas[0].delta.role == "assistant"
    assert "".join(d.delta.content or "" for d in deltas) == said.choices[0].message.content
    assert deltas[-1].finish_reason == said.choices[0].finish_reason


def test_models_errors_and_keys_with_the_openai_library(openai: Any, serve: Serve) -> None:
    client = openai.OpenAI(base_url=serve(key="s3cret").url, api_key="s3cret", max_retries=0)
    (model,) = client.models.list().data
    assert (model.id, model.owned_by, model.max_model_len) == ("tiny", "lcbench", 2048)
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048"):
        client.completions.create(model="tiny", prompt="a" * 3000)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def ask(server: Server, path: str = "/completions", **body: Any) -> Any:
    answer = httpx.post(server.url + path, json={"model": "tiny", **body}, timeout=30, trust_env=False)
    return answer.json() | {"status": answer.status_code}


def test_an_answer_ends_before_a_stop_text(serve: Serve) -> None:
    server = serve()
    whole = ask(server, prompt=PROMPT, max_tokens=24)["choices"][0]
    stop = whole["text"][5:7]
    assert len(stop) == 2
    cut = ask(server, prompt=PROMPT, max_tokens=24, stop=stop)["choices"][0]
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]
    assert cut["finish_reason"] == "stop"
    with httpx.stream(
        "POST", server.url + "/completions", timeout=30, trust_env=False,
        json={"model": "tiny", "prompt": PROMPT, "max_tokens": 24, "stop": [stop], "stream": True},
    ) as answer:  # fmt: skip
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]) == cut["text"]


def test_prompts_as_token_ids_and_several_at_once(serve: Serve, loaded: LoadedModel) -> None:
    server = serve()
    ids = encode_prompt(loaded, PROMPT, chat=False, chat_option="none").ids
    text = ask(server, prompt=PROMPT, max_tokens=8)["choices"][0]["text"]
    assert ask(server, prompt=ids, max_tokens=8)["choices"][0]["text"] == text
    both = ask(server, prompt=[ids, ids[:20]], max_tokens=8)
    assert [choice["index"] for choice in both["choices"]] == [0, 1]
    assert both["choices"][0]["text"] == text
    assert both["usage"]["prompt_tokens"] == len(ids) + 20


def test_a_conversation_is_more_than_its_last_turn(serve: Serve) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    long = ask(serve(), "/chat/completions", messages=turns, max_tokens=4)
    assert long["usage"]["prompt_tokens"] == len("<s><|t|>system\nBe brief.<|e|>\n<|t|>user\nHi<|e|>\n<|t|>assistant\n".replace("<s>", "0").replace("<|t|>", "0").replace("<|e|>", "0"))  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": "many"}, "max_tokens"),
        ({"prompt": "a", "stop": 3}, "stop"),
        ({"prompt": "a", "n": 2}, "n"),
        ({"prompt": "a", "logprobs": 5}, "logprobs"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "presence_penalty": 1.0}, "presence_penalty"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "top_p": 2}, "top_p"),
        ({"prompt": "a", "repetition_penalty": 1.1}, "repetition_penalty"),
        ({"prompt": "a", "stop_token_ids": [999]}, "stop_token_ids"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(serve: Serve, body: dict[str, Any], param: str) -> None:
    found = ask(serve(), **body)
    assert found["status"] == 400
    assert found["error"]["param"] == param
    assert found["error"]["message"].endswith(".")


def test_wrong_addresses_and_bodies(serve: Serve) -> None:
    server = serve()
    post = httpx.Client(trust_env=False, timeout=30).post
    assert post(server.url + "/nothing", json={}).json()["error"]["code"] == "not_found"
    assert httpx.get(server.url + "/completions", trust_env=False).status_code == 404
    assert post(server.url + "/completions", content=b"{").json()["error"]["message"] == "The body is not JSON."
    assert post(server.url + "/completions", json=[1]).status_code == 400
    assert ask(server, "/chat/completions", messages=[{"content": "a"}])["error"]["param"] == "messages"
    assert httpx.get(server.url.removesuffix("/v1") + "/health", trust_env=False).json() == {"status": "ok"}


def test_a_client_that_goes_away_does_not_stop_the_server(serve: Serve) -> None:
    server = serve()
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 500, "stream": True}
    with httpx.stream("POST", server.url + "/completions", json=body, timeout=30, trust_env=False) as answer:
        next(answer.iter_lines())
    assert ask(server, prompt="a", max_tokens=2)["status"] == 200


def test_a_client_that_stops_waiting_is_not_answered_to_the_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while its answer is made nor while it waits for its turn: the next in line need not wait for it."""
    from lcbench.server import service as module

    began, made = [], []
    whole = module.answer_one

    def slowly(loaded: Any, method: Any, ids: Any, rules: Any, **more: Any) -> Any:
        began.append(len(ids))

        def finished(new: list[int]) -> bool:
            made.append(len(new))
            time.sleep(0.02)
            return bool(rules.finished(new))

        return whole(loaded, method, ids, replace(rules, finished=finished), **more)

    monkeypatch.setattr(module, "answer_one", slowly)
    server = serve()
    body = {"model": "tiny", "prompt": "The key", "max_tokens": 1500}

    def give_up(seconds: float) -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + "/completions", json=body, timeout=seconds, trust_env=False)

    threads = [threading.Thread(target=give_up, args=(seconds,)) for seconds in (1.5, 0.3, 0.3)]
    for thread in threads:
        thread.start()
        while not began:
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert ask(server, prompt="a", max_tokens=2)["status"] == 200
    assert len(began) == 2, "two that had given up were read all the same"
    assert len(made) < 750


@pytest.mark.parametrize(
    ("messages", "said"), [([], "one message or more"), ([{"role": "wizard", "content": "a"}], "role")]
)
def test_messages_that_no_chat_has_are_refused(serve: Serve, messages: list[Any], said: str) -> None:
    found = ask(serve(), "/chat/completions", messages=messages, max_tokens=1)
    assert found["status"] == 400
    assert said in found["error"]["message"]
