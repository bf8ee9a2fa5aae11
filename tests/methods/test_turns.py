"""Which methods need the rotary embedding as numbers, and that a model whose embedding is not understood is refused
before its weights are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from cases import CASES
from harness import Case, compressed, force, made, models, prefill, tokens
from transformers import GPT2Config, GPT2LMHeadModel

from lcbench.methods.registry import resolve
from lcbench.models import routing
from lcbench.models.read import Reader
from tiny import VOCAB, byte_tokenizer

TURNING = "aqua-kv@bits=2 expected-attention infllm longcache shadowkv streamingllm-longctx expected-attention+kivi"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


class Asked(Exception):
    pass


@pytest.mark.parametrize("case", [own[0] for own in CASES.values() if own], ids=lambda case: case.spec.split("@")[0])
def test_a_method_asks_for_the_embedding_exactly_when_it_says_so(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def observed() -> Any:
        raise Asked

    monkeypatch.setattr(routing, "observed", observed)
    method, pair, asked = made(case), models("llama"), False
    try:
        with method.transform_model(pair.ours, case.prompt + 8):
            force(pair, compressed(case, method, prefill(pair, tokens(case.prompt), method)), tokens(8))
    except Asked:
        asked = True
    assert asked == type(method).turns


def test_a_composition_turns_when_one_of_it_does() -> None:
    assert resolve("expected-attention+kivi").turns
    assert not resolve("snapkv+kivi").turns


@pytest.fixture
def no_rope(tmp_path: Path) -> Path:
    """A model with learned positions and no rotary embedding."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=2048, n_embd=64, n_layer=2, n_head=2, bos_token_id=256, eos_token_id=257
    )
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", TURNING.split())
@pytest.mark.parametrize("command", ["run", "inspect", "bench"])
def test_refused_before_the_weights_are_read(
    cli: Callable[..., Any], no_rope: Path, monkeypatch: pytest.MonkeyPatch, method: str, command: str
) -> None:
    def weights(self: Any, *args: Any) -> Any:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(Reader, "weights", weights)
    task = "passkey@lengths=60,depths=1,repeats=1,digits=3,max_new_tokens=3"
    more = ["--lengths", 64] if command == "bench" else ["--task", task]
    done = cli(command, "--model", no_rope, "--method", method, *more)
    assert done.code == 2, done.err
    said = " ".join(done.err.split())
    assert f"{method} cannot run: GPT2LMHeadModel has a position embedding that lcbench cannot take off" in said
    assert "Traceback" not in said


def test_calibration_is_refused_before_too(
    cli: Callable[..., Any], no_rope: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reader, "weights", lambda *args: pytest.fail("the weights were read"))
    done = cli("calibrate", "aqua-kv", "--model", no_rope)
    assert done.code == 2
    assert "aqua-kv cannot run: GPT2LMHeadModel has a position embedding" in " ".join(done.err.split())


def test_other_methods_run_on_it(cli: Callable[..., Any], no_rope: Path) -> None:
    task = "passkey@lengths=100,depths=1,repeats=1,digits=3,max_new_tokens=3"
    done = cli("run", "--model", no_rope, "--method", "full,knorm,snapkv,kivi", "--task", task, "--out", "run")
    assert done.code == 0, done.err
