"""Random methods, parameters, families, prompt lengths and batches: no crash, no NaN, no trace of another sample.

``LCBENCH_FUZZ=2000 pytest tests/methods/test_fuzz.py`` tries more than the hundred of an ordinary run; combination n is
the same in every run.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import random
import typing
from functools import cache
from typing import Any

import harness
import pytest
import torch
from cases import CASES
from harness import LAYERS, Models
from torch import Tensor
from transformers import GptOssConfig

from lcbench.config.budget import Budget
from lcbench.config.options import format_value
from lcbench.errors import LcbenchError, SampleError
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.record import PrefillRecord
from lcbench.methods.base import Method
from lcbench.methods.registry import all_methods, resolve
from lcbench.models import adapter
from tiny import VOCAB, tiny_model

COMBINATIONS = int(os.environ.get("LCBENCH_FUZZ", "100"))
BATCHES = 10  # tests that the combinations are spread over
STEPS = 6
SLIDING = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "gemma2": {**SLIDING, "attn_logit_softcapping": 5.0},
    "gemma3": SLIDING,
    "smollm3": {"no_rope_layers": [1, 0, 1, 1]},
    "olmo2": {},
    "gpt_oss": {**SLIDING, "rope_parameters": GptOssConfig().rope_parameters},
    "falcon": {},
}


@cache
def models(family: str) -> Models:
    ours = tiny_model(family, layers=LAYERS, **FAMILIES[family])
    adapter.install(ours)
    return Models(family, ours, None, None)


def drawn_value(draw: random.Random, hint: Any, metadata: Any, default: Any) -> Any:
    """A value that the parameter may take; small numbers, so that they bite on short prompts."""
    arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
    if type(None) in typing.get_args(hint):
        return None if draw.random() < 0.5 else drawn_value(draw, arms[0], metadata, default)
    choices = metadata.get("choices") or (arms if typing.get_origin(hint) is typing.Literal else None)
    if choices:
        return draw.choice(list(choices))
    low, high = metadata.get("minimum"), metadata.get("maximum")
    if hint is bool:
        return draw.random() < 0.5
    if hint is int:
        return draw.choice([value for value in (1, 2, 3, 4, 7, 8, 16, 32, 64) if (low or 0) <= value <= (high or 64)])
    if hint is float:
        return round(draw.uniform(low or 0.0, 1.0 if high is None else high), 3)
    if hint is Budget:
        return Budget(ratio=draw.choice([0.1, 0.25, 0.5, 1.0])) if draw.random() < 0.5 else draw.randint(1, 90)
    return default


def drawn_spec(draw: random.Random, name: str) -> str:
    """A method with about half of its parameters drawn."""
    cls = all_methods()[name]
    hints = typing.get_type_hints(cls)
    options = []
    for field in dataclasses.fields(cls):
        if draw.random() < 0.5:
            value = drawn_value(draw, hints[field.name], field.metadata, field.default)
            options.append(f"{field.name}={format_value(value)}")
    return name + ("@" + ",".join(options) if options else "")


def drawn_method(draw: random.Random) -> tuple[str, Method]:
    """A spec and its method; draws again while the parameters do not go together."""
    names = [name for name, own in CASES.items() if own and all_methods()[name].traits.family != "extend"]
    while True:
        spec = drawn_spec(draw, draw.choice(names))
        if draw.random() < 0.25:
            spec += "+" + drawn_spec(draw, draw.choice(("kivi", "flexgen")))
        try:
            method = resolve(spec)
            method = CASES[method.name][0].bind(method) if method.name in CASES else method
            method.check(harness.SHAPE)
        except LcbenchError:  # parameters that do not go together are refused before any work
            continue
        if not method.name.startswith("headkv+") and not method.name.startswith("headkv-r2+"):
            return spec, method


def text(draw: random.Random, length: int) -> Tensor:
    return torch.tensor([draw.randrange(VOCAB) for _ in range(length)])


def compressed(pair: Models, method: Method, ids: Tensor, chunk: int | None) -> KVCache | None:
    """The cache of a prompt; None where the method says of this prompt that it cannot be stored."""
    length, shape = len(ids), CacheShape(LAYERS, 8, 2, 32, torch.float32, torch.device("cpu"))
    cache_ = method.prefill_cache(shape, length)
    observers = {wish: wish.observer(LAYERS, length) for wish in method.observes()}
    for piece in range(0, length, chunk or length):
        part = slice(piece, piece + (chunk or length))
        positions = torch.arange(length)[part][None]
        watching = [list(observers.values())]
        logits = adapter.forward(pair.ours, ids[None, part], positions, [cache_], watching)
    observed = {wish: observer.results for wish, observer in observers.items()}
    torch.manual_seed(17)
    try:
        return method.compress(PrefillRecord(cache_, logits[0, -1], shape, harness.SCALING, observed))
    except SampleError:
        return None


def decoded(pair: Models, caches: list[KVCache], forced: Tensor) -> Tensor:
    """Logits ``[R, STEPS, vocab]`` of forced tokens ``[R, STEPS]``, all rows together."""
    rows = []
    for step in range(forced.shape[1]):
        positions = torch.tensor([[cache_.seen] for cache_ in caches])
        rows.append(adapter.forward(pair.ours, forced[:, step : step + 1], positions, caches)[:, -1])
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_combinations(batch: int) -> None:
    with harness.one_thread():
        for number in range(batch, COMBINATIONS, BATCHES):
            combination(number)


def combination(number: int) -> None:
    """Rows of one method and of others decode together, then the first prompt again alone: the same logits."""
    draw = random.Random(number)
    spec, method = drawn_method(draw)
    pair = models(draw.choice(sorted(FAMILIES)))
    what = f"combination {number}: {spec} on {pair.family}"
    prompts = [text(draw, draw.choice([1, 2, 3, 17, 40, 61, 90])) for _ in range(draw.choice([1, 2, 3]))]
    chunk = draw.choice([None, None, 13]) if method.traits.prefill == "shared" else None
    made = [(ids, compressed(pair, method, ids, chunk)) for ids in prompts]
    kept = [(ids, cache_) for ids, cache_ in made if cache_ is not None]
    if not kept:
        return
    caches = [cache_ for _, cache_ in kept]
    for (ids, _), cache_ in zip(kept, caches, strict=True):
        assert cache_.seen == len(ids), what
        assert cache_.storage_nbytes <= cache_.nbytes or method.traits.family == "retrieve", what
    if draw.random() < 0.5:
        other = compressed(pair, resolve(draw.choice(("full", "kivi", "streamingllm@budget=9"))), prompts[0], None)
        assert other is not None
        caches.append(other)
    forced = torch.stack([text(draw, STEPS) for _ in caches])
    logits = decoded(pair, caches, forced)
    assert torch.isfinite(logits).all(), what
    again = compressed(pair, method, kept[0][0], chunk)
    assert again is not None
    alone = decoded(pair, [again], forced[:1])
    assert float((alone - logits[:1]).abs().max()) < 3e-4, f"{what}: a sample leaves a trace"
    assert again.nbytes == caches[0].nbytes, what
    for layer in (*caches[0].layers, *again.layers):
        assert layer.seen == len(kept[0][0]) + STEPS, what
        copy.copy(layer.fork())
