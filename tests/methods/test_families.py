"""Every method on every family of models that is served: what changes nothing is transformers' own answer, what drops
tokens is transformers' answer with those keys masked, and everything else runs and holds the bytes it should.

All methods of a family decode in one forward pass, a row each, so that rows of different stores are tried as well.
The three families of `test_acceptance` get the full harness; here the choice of tokens is the method's own and its
attention, positions, masks and bytes are tried.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import harness
import pytest
import torch
from cases import CASES
from harness import LAYERS, Case, Models, compressed, expected_bytes, made, prefill, tokens
from torch import Tensor
from transformers import GptOssConfig

from lcbench.kv.cache import KVCache
from lcbench.kv.ring import RingLayer
from lcbench.models import adapter
from tiny import tiny_model

PROMPT, STEPS = 60, 8
SLIDING = {"sliding_window": 48, "layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "phi3": {},
    "gemma2": {**SLIDING, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 20},
    "gemma3": SLIDING,
    "smollm3": {"no_rope_layers": [1, 0, 1, 1]},
    "olmo2": {},
    "gpt_oss": {**SLIDING, "rope_parameters": GptOssConfig().rope_parameters},
    "falcon": {},
}
TOLERANCE = 3e-4


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Models:
    plain = tiny_model(request.param, layers=LAYERS, **FAMILIES[request.param])
    ours = copy.deepcopy(plain)
    adapter.install(ours)
    if plain._can_set_attn_implementation():
        plain.set_attn_implementation("eager")
    return Models(request.param, ours, plain, None)


def cases() -> list[Case]:
    """The first case of each method whose packages are installed. Context extensions, which cannot decode beside
    methods of another model, have `test_extend_families`."""
    return [own[0] for own in CASES.values() if own and made(own[0]).traits.family != "extend"]


def windows(pair: Models) -> list[int | None]:
    """Sliding window of each layer, as the model has told its attention."""
    record = prefill(pair, tokens(2))
    return [record.layer(i).window for i in range(LAYERS)]


def plain_logits(pair: Models, ids: Tensor, visible: list[Tensor]) -> Tensor:
    """Logits ``[R, T, vocab]`` of the unmodified model for R rows of the same text ``ids [T]``.

    Args:
        visible: for each layer bool ``[R, H or 1, T, T]``; causality and sliding windows are added here.
    """
    distance = torch.arange(len(ids))[:, None] - torch.arange(len(ids))[None]
    masks = []
    for window, rows in zip(windows(pair), visible, strict=True):
        causal = (distance >= 0) & (distance < (window or len(ids)))
        masks.append(torch.zeros(rows.shape).masked_fill(~(rows & causal), torch.finfo(torch.float32).min))

    def use(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": masks[module.layer_idx]}

    attentions = [m for m in pair.plain.modules() if hasattr(m, "layer_idx") and type(m).__name__.endswith("Attention")]
    assert len(attentions) == LAYERS
    handles = [module.register_forward_pre_hook(use, with_kwargs=True) for module in attentions]
    try:
        with torch.inference_mode():
            out: Tensor = pair.plain(input_ids=ids.expand(len(visible[0]), -1), use_cache=False).logits
            return out
    finally:
        for handle in handles:
            handle.remove()


def held(caches: list[KVCache], layer: int) -> Tensor:
    """Which positions each row's layer holds: bool ``[R, H, T]``."""
    seen = torch.zeros(len(caches), harness.HEADS, PROMPT + STEPS, dtype=torch.bool)
    for row, cache in enumerate(caches):
        places = cache.layers[layer].positions()
        places = places if places.ndim == 2 else places[None]
        for head in range(harness.HEADS):
            own = places[head * len(places) // harness.HEADS]
            seen[row, head, own[own >= 0]] = True
    return seen


def decode(pair: Models, caches: list[KVCache], ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Force the last `STEPS` of ``ids`` on all caches at once.

    Returns:
        Logits ``[R, STEPS, vocab]``; and for each layer bool ``[R, H, T, T]``, what each row's queries could see.
    """
    rows, visible = [], [torch.ones(len(caches), harness.HEADS, len(ids), len(ids), dtype=torch.bool)] * LAYERS
    visible = [seen.clone() for seen in visible]
    for position in range(PROMPT, len(ids)):
        before = [held(caches, layer) for layer in range(LAYERS)]
        forced = ids[position].expand(len(caches), 1)
        rows.append(adapter.forward(pair.ours, forced, torch.full_like(forced, position), caches)[:, -1])
        for layer in range(LAYERS):
            after = held(caches, layer)
            before[layer][..., position] = True  # what a step drops, it has still seen; a ring drops before it looks
            for row, cache in enumerate(caches):
                ring = isinstance(cache.layers[layer], RingLayer)
                visible[layer][row, :, position] = after[row] if ring else before[layer][row]
    return torch.stack(rows, dim=1), visible


def test_what_changes_nothing_is_the_plain_model(pair: Models) -> None:
    ids = tokens(PROMPT + STEPS, seed=21)
    methods = [(case, case.noop[0]) for case in cases() if case.noop]
    caches = [compressed(c, made(c, s), prefill(pair, ids[:PROMPT], made(c, s))) for c, s in methods]
    logits, _ = decode(pair, caches, ids)
    everything = [torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)] * LAYERS
    expected = plain_logits(pair, ids, everything)[0, PROMPT:]
    for (_, spec), row in zip(methods, logits, strict=True):
        assert float((row - expected).abs().max()) < TOLERANCE, f"{spec} is not the full cache"


def test_what_drops_tokens_is_the_plain_model_with_them_masked(pair: Models) -> None:
    ids = tokens(PROMPT + STEPS, seed=22)
    tried = [(case, made(case)) for case in cases()]
    caches = [compressed(case, method, prefill(pair, ids[:PROMPT], method)) for case, method in tried]
    for (case, method), cache in zip(tried, caches, strict=True):
        without_angles = 4 * harness.HEAD_DIM // 2 if (pair.family, method.name) == ("smollm3", "aqua-kv") else 0
        assert cache.nbytes == expected_bytes(case, cache, PROMPT, 0) - without_angles, case.spec
    logits, visible = decode(pair, caches, ids)
    assert torch.isfinite(logits).all()
    expected = plain_logits(pair, ids, visible)[:, PROMPT:]
    compared = 0
    for row, (case, method) in enumerate(tried):
        assert caches[row].seen == PROMPT + STEPS
        traits = method.traits
        if traits.family in ("baseline", "evict") and traits.prefill == "shared" and traits.memory == "real":
            compared += 1
            difference = float((logits[row] - expected[row]).abs().max())
            assert difference < TOLERANCE, f"{case.spec}: {difference}"
    assert compared >= 15
