"""CLEX: the differential equation, the checkpoint in its forms, and a run with it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clex_checkpoints
import pytest
import torch
from cases_extend import with_frequencies
from clex_checkpoints import DIMS, THETA
from harness import Models, force, largest_difference, one_thread, prefill, tokens
from torch import Tensor

from lcbench.config.spec import ModelSpec
from lcbench.errors import ModelError
from lcbench.methods.extend.clex import Clex, solved
from lcbench.methods.extension import Trained
from lcbench.methods.registry import resolve
from lcbench.models.clex_checkpoint import DOWN, START, UP, ClexLayer, clex_layer
from lcbench.models.load import describe, load
from lcbench.models.rope_facts import inverse_frequencies
from tiny import save_tiny


def layer(*, time_dt: float = 0.05, act: str = "tanh", log_scale: bool = False, **options: Any) -> ClexLayer:
    held = clex_checkpoints.tensors(**options)
    return ClexLayer(held[UP], held[DOWN], held[START], 8.0, time_dt, act, log_scale)


def euler(one: ClexLayer, t: float, steps: int = 20000) -> Tensor:
    """The equation written pair by pair from the paper, in many small midpoint steps."""
    twice = torch.tensor([2.0 * i for i in range(DIMS // 2)], dtype=torch.float64)

    def slope(time: float, x: Tensor) -> Tensor:
        base = THETA * (2 * time - 1) ** (DIMS / (DIMS - 2))
        f = torch.tensor([base ** (-float(i) / DIMS) for i in twice], dtype=torch.float64)
        acted = {"tanh": torch.tanh, "silu": lambda y: y * torch.sigmoid(y)}[one.act]
        change = torch.tensor([-2 * float(i) / ((DIMS - 2) * (2 * time - 1)) for i in twice], dtype=torch.float64)
        return acted((x + f.log()) @ one.up.double()) @ one.down.double() + change

    x, h = one.start.double().log(), (t - 1) / steps
    for step in range(steps):
        time = 1 + step * h
        x = x + h * slope(time + h / 2, x + h / 2 * slope(time, x))
    return x.exp()


@pytest.mark.parametrize("t", [2, 5, 8])
def test_without_training_it_is_a_larger_base(t: int) -> None:
    own = inverse_frequencies(THETA, DIMS).double()
    expected = own * torch.tensor([(2 * t - 1) ** (-2 * i / (DIMS - 2)) for i in range(DIMS // 2)])
    assert torch.allclose(solved(layer(learned=False), THETA, t).double(), expected, rtol=1e-5)


@pytest.mark.parametrize("act", ["tanh", "silu"])
def test_the_solution_is_that_of_small_steps(act: str) -> None:
    one = layer(act=act)
    found = solved(one, THETA, 3).double()
    assert torch.allclose(found, euler(one, 3, 2000), rtol=1e-4)
    assert torch.allclose(found, solved(layer(act=act, time_dt=0.025), THETA, 3).double(), rtol=1e-4)
    assert not torch.allclose(found, solved(layer(act=act, learned=False), THETA, 3).double(), rtol=0.05)


def bound(one: ClexLayer, spec: str = "clex") -> Clex:
    method = resolve(spec)
    assert isinstance(method, Clex)
    object.__setattr__(method, "_clex_layer", one)
    return method


def test_the_factor_follows_the_text_and_ends_at_the_greatest() -> None:
    one, model = layer(), Trained(THETA, DIMS, 300)
    method = bound(one)
    assert torch.equal(method.angles(model, 300).frequencies, inverse_frequencies(THETA, DIMS))
    assert torch.equal(method.angles(model, 301).frequencies, solved(one, THETA, 2))
    assert torch.equal(method.angles(model, 9000).frequencies, solved(one, THETA, 8))
    assert method.window_of(300) == 2400
    assert method.angles(model, 900).scaling == 1
    grown = bound(layer(log_scale=True)).angles(model, 900).scaling
    assert grown**2 == pytest.approx(math.log(900) / math.log(300))
    assert bound(layer(log_scale=True), "clex@log_scale=false").angles(model, 900).scaling == 1


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin"])
def test_a_checkpoint_in_each_form(form: str, tmp_path: Path) -> None:
    folder = clex_checkpoints.save(tmp_path / "model", form=form, log_scale=True)
    info, _ = describe(ModelSpec(name=str(folder)), tmp_path)
    assert (info.window, info.rope.kind, info.rope.dims, info.rope.theta) == (300, "default", DIMS, THETA)
    one = clex_layer(str(folder), None)
    expected = clex_checkpoints.tensors()
    assert torch.equal(one.up, expected[UP])
    assert torch.equal(one.down, expected[DOWN])
    assert (one.max_factor, one.time_dt, one.act, one.log_scale) == (8.0, 0.05, "tanh", True)
    method = resolve("clex").bind(info, tmp_path)
    assert method.window_of(info.window) == 2400


def test_logits_are_those_of_a_model_with_the_frequencies_written_in(tmp_path: Path) -> None:
    folder = clex_checkpoints.save(tmp_path / "model")
    loaded = load(ModelSpec(name=str(folder), dtype="float32"), tmp_path)
    method = resolve("clex").bind(loaded.info, tmp_path)
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_dict({k: v for k, v in loaded.model.config.to_dict().items() if k != "architectures"})
    plain = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    plain.load_state_dict(loaded.model.state_dict())
    pair, ids = Models("llama", loaded.model, plain.eval(), None), tokens(400, seed=1)
    with one_thread():
        with method.transform_model(loaded.model, len(ids)):
            logits = force(pair, method.compress(prefill(pair, ids[:380], method)), ids[380:])
        other = with_frequencies(pair, euler(clex_layer(str(folder), None), 2, 2000).tolist())
        with torch.inference_mode():
            expected = other.plain(input_ids=ids[None]).logits[0, 380:]
    assert largest_difference(logits, expected) < 2e-3
    with torch.inference_mode():
        unchanged = plain(input_ids=ids[None]).logits[0, 380:]
    assert largest_difference(expected, unchanged) > 0.1


def test_a_run_beyond_the_window(cli: Callable[..., Any], tmp_path: Path) -> None:
    folder = clex_checkpoints.save(tmp_path / "model")
    task = "passkey@lengths=3/40,depths=0.5,repeats=1,digits=3,max_new_tokens=4"
    methods = "full,clex,clex+kivi@group_size=16,residual_length=16"
    done = cli("run", "--model", folder, "--task", task, "--method", methods, "--out", "run")
    assert done.code == 1, done.err  # full is refused the long prompt
    rows = {
        path.parent.name: {r["meta"]["length_words"]: r for r in map(json.loads, path.read_text().splitlines())}
        for path in Path("run", "predictions").glob("*/*.jsonl")
    }
    assert "do not fit" in rows["full"][40]["error"]
    assert rows["clex"][40]["status"] == "ok"
    assert rows["clex"][3]["pred"] == rows["full"][3]["pred"]  # t = 1 is the plain model
    assert rows["clex+kivi@group_size=16,residual_length=16"][40]["kv_bytes"] < rows["clex"][40]["kv_bytes"] / 4


def test_what_is_no_clex_checkpoint_is_refused_before_work(cli: Callable[..., Any], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "plain")
    done = cli("run", "--model", folder, "--task", "passkey@lengths=3", "--method", "clex", "--out", "run")
    assert done.code == 2
    assert "was not trained with CLEX" in " ".join(done.err.split())
    assert not Path("run").exists()
    broken = clex_checkpoints.save(tmp_path / "broken")
    save_tiny(tmp_path / "other", window=300)
    (tmp_path / "other" / "model.safetensors").replace(broken / "model.safetensors")
    done = cli("run", "--model", broken, "--task", "passkey@lengths=3", "--method", "clex", "--out", "run")
    assert done.code == 2
    assert "cannot be read" in " ".join(done.err.split())
    with pytest.raises(ModelError, match="neither tanh nor silu"):
        solved(layer(act="relu"), THETA, 2)
