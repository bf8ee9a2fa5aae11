"""Where answers end: a line feed that may not come first (samsum) is asked of each server in words it understands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from lcbench.config.spec import ModelSpec
from lcbench.methods.registry import resolve
from lcbench.models.load import load
from lcbench.server.service import Service
from lcbench.tasks import registry
from lcbench.tasks.base import Stop
from lcbench.tasks.passkey import Passkey
from remote.conftest import Faults, running
from tiny import byte_tokenizer, tiny_model

TASK = "lined-passkey@lengths=20,depths=3,repeats=1,digits=3,max_new_tokens=9"


@dataclass(frozen=True)
class LinedPasskey(Passkey):
    """Passkeys whose answers end at a line feed, as samsum's."""

    name: ClassVar[str] = "lined-passkey"
    stop: ClassVar[Stop] = "newline"
    min_new_tokens: ClassVar[int] = 1


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._registered, LinedPasskey.name, LinedPasskey)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that would begin its answers with a line feed: the row of its head points where prompts end."""
    place = tmp_path_factory.mktemp("feeding") / "tiny"
    model, tokenizer = tiny_model(window=2048, seed=1), byte_tokenizer(True, True)
    ids = torch.tensor([tokenizer("181 is the pass key.  \nWhat is the pass key? The pass key is ")["input_ids"]])
    with torch.no_grad():
        last = model.model(ids).last_hidden_state[0, -1]
        model.lm_head.weight[tokenizer.encode("\n", add_special_tokens=False)[-1]] = 3 * last / last.norm()
        model.lm_head.weight[128:256] = 0  # no halves of characters
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def service(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    return Service(load(ModelSpec(str(folder)), tmp_path_factory.mktemp("home")), resolve("full"), "tiny")


def as_it_is(body: dict[str, Any]) -> dict[str, Any]:
    return body


def like_llama_cpp(body: dict[str, Any]) -> dict[str, Any]:
    """Passes over fields it does not know, and has ``logit_bias``, here for a single token."""
    body = {k: v for k, v in body.items() if k not in ("stop_token_ids", "min_tokens")}
    bias = body.pop("logit_bias", None)
    if bias is not None:
        assert set(bias.values()) == {-100}
        assert body["max_tokens"] == 1
        body |= {"stop_token_ids": [int(i) for i in bias], "min_tokens": 1}
    return body


def knowing_neither(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "n": 2} if {"stop_token_ids", "logit_bias"} & set(body) else body  # which is refused


def answered(run: str) -> dict[str, Any]:
    (file,) = (Path(run) / "predictions" / "full").iterdir()
    return {r["_id"]: (r["pred"], r["new_tokens"], r["status"]) for r in map(json.loads, file.read_text().splitlines())}


@pytest.mark.parametrize("api", ["completions", "token-ids"])
@pytest.mark.parametrize("words", [as_it_is, like_llama_cpp])
def test_an_end_that_may_not_come_first(
    cli: Callable[..., Any],
    service: Service,
    folder: Path,
    words: Callable[[dict[str, Any]], dict[str, Any]],
    api: str,
) -> None:
    faults = Faults(rewritten=words)
    here = cli("run", "--model", folder, "--task", TASK, "--out", "local")
    assert here.code == 0, here.err
    with running(service, faults) as server:
        where = ["--model", "openai:tiny", "--base-url", server.url, "--api", api, "--tokenizer", folder]
        done = cli("run", *where, "--task", TASK, "--out", "served")
    assert done.code == 0, done.err
    first = [body for body in faults.bodies if body.get("stop") and body["max_tokens"] == 9]
    assert len(first) < len(faults.bodies), "no answer began with a line feed, so nothing was tested"
    local = answered("local")
    assert {k: pred.rstrip("\n") for k, (pred, *_) in answered("served").items()} == {
        k: pred.rstrip("\n") for k, (pred, *_) in local.items()
    }
    assert all(pred and not pred.startswith("\n") for pred, *_ in local.values())


def test_a_server_that_knows_no_such_thing_gets_its_line_feeds_skipped(
    cli: Callable[..., Any], service: Service, folder: Path
) -> None:
    faults = Faults(rewritten=knowing_neither)
    with running(service, faults) as server:
        where = ["--model", "openai:tiny", "--base-url", server.url, "--api", "completions", "--tokenizer", folder]
        done = cli("run", *where, "--task", TASK, "--out", "served")
        assert done.code == 0, done.err
    found = answered("served")
    assert {status for *_, status in found.values()} == {"ok"}
    for pred, *_ in found.values():
        assert "\n" not in pred.lstrip("\n")


def test_token_ids_that_end_an_answer_on_our_server(service: Service) -> None:
    import httpx

    def ask(**more: Any) -> Mapping[str, Any]:
        body = {"model": "tiny", "prompt": "The pass key is", "max_tokens": 8, **more}
        answer = httpx.post(server.url + "/completions", json=body, timeout=30, trust_env=False)
        return {**answer.json(), "status": answer.status_code}

    with running(service) as server:
        text = ask()["choices"][0]["text"]
        code = service.ids_of_text(text[3])[-1]
        cut = ask(stop_token_ids=[code])["choices"][0]
        assert (cut["text"], cut["finish_reason"]) == (text[: text.index(text[3]) + 1], "stop")
        held = ask(stop_token_ids=[service.ids_of_text(text[0])[-1]], min_tokens=1)["choices"][0]["text"]
        assert held[0] != text[0]
        refused = ask(stop_token_ids=["a"])
        assert (refused["status"], refused["error"]["param"]) == (400, "stop_token_ids")
