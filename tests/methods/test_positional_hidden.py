"""Scaling a hidden channel: which rows change, other families of models, other methods on it, its calibration."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from harness import LAYERS, Models, force, largest_difference, models, prefill, tokens
from test_families import FAMILIES
from torch import Tensor

from lcbench.engine import calibrate_positional
from lcbench.errors import BadValue, ModelError
from lcbench.methods.extend.positional_hidden import PositionalHidden, attention_modules
from lcbench.methods.registry import resolve
from lcbench.models import adapter
from lcbench.models.routing import made_of
from tiny import loaded_tiny, save_tiny, tiny_model

SPEC = "positional-hidden@channels=5/17,factor=-3,first=1,last=2"
PROMPT, STEPS = 40, 12


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def logits_of(pair: Models, spec: str, ids: Tensor, chunk: int | None = None) -> tuple[Tensor, int]:
    """Logits of the forced tokens after the prompt, and bytes of the cache."""
    method = resolve(spec)
    with method.transform_model(pair.ours, len(ids)):
        left = method.compress(prefill(pair, ids[:PROMPT], method, chunk=chunk))
        nbytes = left.nbytes
        return force(pair, left, ids[PROMPT:]), nbytes


def test_rows_before_the_last_attend_as_ever() -> None:
    """In the first scaled layer; what later layers see of the last row differs."""
    pair, ids = models("llama"), tokens(PROMPT, seed=1)
    outputs: list[Tensor] = []
    module = list(attention_modules(pair.ours))[1]
    handle = module.register_forward_hook(lambda module, args, out: outputs.append(out[0][0].clone()))
    try:
        prefill(pair, ids)
        method = resolve(f"{SPEC},rows=3")
        with method.transform_model(pair.ours, PROMPT):
            prefill(pair, ids, method)
    finally:
        handle.remove()
    plain, _, scaled = outputs  # the middle one only made the scaled queries and keys
    assert torch.equal(plain[:-3], scaled[:-3])
    assert ((plain[-3:] - scaled[-3:]).abs().amax(dim=1) > 0.01).all()


def test_pieces_of_a_prompt_are_the_prompt() -> None:
    pair, ids = models("mistral"), tokens(PROMPT + STEPS, seed=2)
    whole, nbytes = logits_of(pair, f"{SPEC},rows=5", ids)
    assert nbytes == harness.SHAPE.full_bytes(PROMPT)
    for chunk in (1, 7, 38):
        assert largest_difference(logits_of(pair, f"{SPEC},rows=5", ids, chunk)[0], whole) < 5e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    """Keys that are normalised or come out of a fused projection: what is cached is what the module itself makes."""
    model = tiny_model(family, layers=LAYERS, **FAMILIES[family])
    adapter.install(model)
    pair, ids = Models(family, model, None, None), tokens(PROMPT + STEPS, seed=3)
    plain = force(pair, prefill(pair, ids[:PROMPT]).cache, ids[PROMPT:])
    assert largest_difference(logits_of(pair, "positional-hidden@channels=5,factor=1", ids)[0], plain) < 3e-4
    assert largest_difference(logits_of(pair, SPEC, ids)[0], plain) > 0.01
    assert torch.equal(force(pair, prefill(pair, ids[:PROMPT]).cache, ids[PROMPT:]), plain)
    made: dict[str, Tensor] = {}
    module = list(attention_modules(model))[1]

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        made.setdefault("hidden", kwargs.get("hidden_states", args[0] if args else None).clone())
        made.setdefault("cos", kwargs["position_embeddings"][0])
        made.setdefault("sin", kwargs["position_embeddings"][1])

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    method = resolve(SPEC)
    try:
        with method.transform_model(model, PROMPT):
            record = prefill(pair, ids[:PROMPT], method)
    finally:
        handle.remove()
    other = made["hidden"].clone()
    other[..., [5, 17]] *= -3
    with torch.inference_mode():
        expected = made_of(module, other, (made["cos"], made["sin"]))[1][0]
    assert torch.equal(record.layer(1).key, expected)


@pytest.mark.parametrize(
    "inner", ["kivi@group_size=16,residual_length=16", "knorm@budget=20+flexgen", "knorm@budget=20"]
)
def test_methods_that_look_at_keys_work_on_it(inner: str) -> None:
    """What is quantized or dropped are the scaled keys."""
    pair, ids = models("llama"), tokens(PROMPT + STEPS, seed=4)
    method, alone = resolve(f"{SPEC}+{inner}"), resolve(SPEC)
    with method.transform_model(pair.ours, len(ids)):
        record = prefill(pair, ids[:PROMPT], method)
        left = method.compress(record)
        same = resolve(inner).compress(prefill(pair, ids[:PROMPT], alone))
        assert torch.equal(force(pair, left, ids[PROMPT:]), force(pair, same, ids[PROMPT:]))
    plain = resolve(inner)
    record = prefill(pair, ids[:PROMPT], plain)
    assert largest_difference(force(pair, plain.compress(record), ids[PROMPT:]), logits_of(pair, SPEC, ids)[0]) > 0.01


def test_layers_are_those_of_the_paper_in_proportion() -> None:
    method = resolve("positional-hidden")
    assert isinstance(method, PositionalHidden)
    assert list(method.layers(32)) == list(range(10, 26))
    assert list(method.layers(30)) == list(range(9, 24))
    assert list(method.layers(4)) == [1, 2, 3]
    assert method.window_of(4096) == 4096


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    with pytest.raises(ModelError, match="would scale the layers 1 to 9, and the model has 0 to 3"):
        resolve("positional-hidden@channels=1,last=9").bind(loaded.info, tmp_path)
    with pytest.raises(BadValue, match="is after last"):
        resolve("positional-hidden@channels=1,first=3,last=2")
    with pytest.raises(ModelError, match="not one of the model's 64 hidden channels"):
        resolve("positional-hidden@channels=64").transform_model(loaded.model, 10)
    for inner, why in (("snapkv", "scores tokens with attention"), ("infllm", "in its own way")):
        with pytest.raises(BadValue, match=why):
            resolve(f"positional-hidden+{inner}")


def test_calibrated_end_to_end(cli: Callable[..., Any], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", window=4096)
    task = "passkey@lengths=3,depths=0.5,repeats=1,digits=3,max_new_tokens=3"
    run = ("run", "--model", folder, "--task", task, "--method", "positional-hidden", "--out", "run")
    refused = cli(*run)
    assert refused.code == 2
    assert f"lcbench calibrate positional-hidden --model {folder}" in " ".join(refused.err.split())
    made = cli("calibrate", "positional-hidden", "--model", folder, "--samples", 4, "--lengths", 120, "--json")
    assert made.code == 0, made.err
    path = next(Path(tmp_path / "lcbench-home" / "calibration").glob("*/positional-hidden.json"))
    stored = json.loads(path.read_text())
    (channel,) = stored["data"]["channels"]
    assert 0 <= channel < 64
    provenance = stored["provenance"]
    assert provenance["samples"] == 4
    assert provenance["length"] == 120
    losses = provenance["losses"]
    assert min(losses, key=losses.get) == str(channel)
    done = cli(*run)
    assert done.code == 0, done.err
    assert json.loads(Path("run/run.json").read_text())["provenance"]["methods"]["positional-hidden"][
        "calibration_sha256"
    ]
    again = cli("calibrate", "positional-hidden", "--model", folder, "--samples", 4, "--lengths", 120, "--json")
    assert json.loads(path.read_text())["provenance"]["losses"] == losses, again.err
    for option in (("--text", path), ("--from", path), ("--lengths", "5"), ("--lengths", "5000")):
        wrong = cli("calibrate", "positional-hidden", "--model", folder, *option)
        assert wrong.code == 2, option


def test_channels_that_a_model_has_not_are_refused_before_the_run_has_a_directory(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "model", window=4096)
    task = "passkey@lengths=3,depths=0.5,repeats=1,digits=3,max_new_tokens=3"
    refused = cli("run", "--model", folder, "--task", task, "--method", "positional-hidden@channels=64", "--out", "run")
    assert (refused.code, Path("run").exists()) == (2, False)
    assert "not one of the model's 64 hidden channels" in refused.err


def test_a_window_too_short_for_its_prompts_is_known_before_strings_are_read(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    monkeypatch.setattr(calibrate_positional, "mean_inputs", lambda *args, **more: read.append(args))
    folder = save_tiny(tmp_path / "model", window=256)
    refused = cli("calibrate", "positional-hidden", "--model", folder, "--samples", 4, "--lengths", 120)
    assert (refused.code, read) == (2, [])
    assert "too short for prompts of pairs" in refused.err


def test_another_model_in_the_context_is_left_alone() -> None:
    pair, ids = models("llama"), tokens(PROMPT, seed=5)
    other = copy.deepcopy(pair.ours)
    twin = Models("llama", other, None, None)
    plain = prefill(twin, ids).logits
    with resolve(SPEC).transform_model(pair.ours, PROMPT):
        assert torch.equal(prefill(twin, ids).logits, plain)
