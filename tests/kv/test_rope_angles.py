"""Keys and queries at other angles, on the position embeddings that models really have."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.record import PrefillRecord
from lcbench.kv.rope import LayerRope, moved, rotated, unrotated
from lcbench.methods.registry import resolve
from lcbench.models import adapter, routing
from lcbench.models import rope as rope_module
from lcbench.models.rope import Rope

LAYERS, PROMPT, TOTAL, HEAD_DIM = 2, 40, 52, 16
SHAPE = CacheShape(LAYERS, 4, 2, HEAD_DIM, torch.float32, torch.device("cpu"))
SCALED = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(kind: str, **config: Any) -> Any:
    """A random model of 2 layers, 4 query and 2 KV heads."""
    settings: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**settings, **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    adapter.install(model)
    return model


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_parameters": {"rope_type": "yarn", **SCALED}}),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **SCALED}}),
    ("qwen3", {}),
    ("smollm3", {"no_rope_layer_interval": 2}),
    ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24}),
    ("stablelm", {}),
    ("cohere", {}),
]
# Settings under which keys and queries are turned and everything is seen where the model sees it.
EVERYTHING = [
    "longcache@global_size=3,local_size=16,chunk_size=8,scope=20,align=8,mid_size=99,span_size=16,recall_clip=999",
    "shadowkv@rank=99,chunk_size=4,budget=36,outliers=0,local_chunks=1,min_prompt=8",
]


def steps(model: Any, cache: KVCache, ids: Tensor) -> Tensor:
    """Logits of the tokens after the prompt, one by one."""
    rows = [
        adapter.forward(model, ids[None, i : i + 1], torch.tensor([[i]]), [cache])[0, -1] for i in range(PROMPT, TOTAL)
    ]
    return torch.stack(rows)


def read(model: Any, ids: Tensor, cache: KVCache) -> PrefillRecord:
    observer = LayerRope().observer(LAYERS, PROMPT)
    logits = adapter.forward(model, ids[None, :PROMPT], torch.arange(PROMPT)[None], [cache], [[observer]])
    scaling = float(model.model.layers[0].self_attn.scaling)
    return PrefillRecord(cache, logits[0, -1], SHAPE, scaling, {LayerRope(): observer.results})


@pytest.mark.parametrize(("kind", "config"), FAMILIES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v)))
@pytest.mark.parametrize("spec", EVERYTHING, ids=lambda spec: spec.split("@")[0])
def test_turned_and_turned_back_it_is_the_full_cache(spec: str, kind: str, config: dict[str, Any]) -> None:
    """Scaled, partial, interleaved, one a layer type, none at all."""
    model, method = model_of(kind, **config), resolve(spec)
    ids = torch.randint(3, 64, (TOTAL,), generator=torch.Generator().manual_seed(1))
    dense = read(model, ids, KVCache.dense(LAYERS, expected=PROMPT))
    own = read(model, ids, method.prefill_cache(SHAPE, PROMPT))
    assert float((dense.logits - own.logits).abs().max()) < 1e-4
    expected = steps(model, dense.cache.fork(), ids)
    cache = method.compress(own)
    assert type(cache.layers[0]) is not type(dense.cache.layers[0])
    assert float((steps(model, cache, ids) - expected).abs().max()) < 1e-4
    assert float(expected.std()) > 0.1


def test_layers_without_an_embedding_are_none() -> None:
    model = model_of("smollm3", no_rope_layer_interval=2)
    ids = torch.randint(3, 64, (TOTAL,))
    ropes = read(model, ids, KVCache.dense(LAYERS, expected=PROMPT)).observed[LayerRope()]
    assert isinstance(ropes[0], Rope)
    assert ropes[1] is None


def test_moving_is_turning_back_and_turning_again() -> None:
    x, positions = torch.randn(2, 5, 8), torch.arange(3, 8)
    for scaling in (1.0, 1.3):
        rope = Rope(torch.tensor([1.0, 0.3, 0.01]), scaling, False)
        at_home = rope.apply(x, positions)
        assert torch.allclose(unrotated(rope, at_home, positions), x, atol=1e-6)
        assert torch.allclose(moved(rope, at_home, positions, positions + 90), rope.apply(x, positions + 90), atol=1e-5)
        assert torch.allclose(moved(rope, at_home, positions, 7), rope.apply(x, torch.full((5,), 7)), atol=1e-5)
        own = torch.stack([positions, positions * 2])
        expected = torch.stack([rope.apply(x[head], own[head]) for head in range(2)])
        assert torch.allclose(rotated(rope, x, own), expected, atol=1e-6)
    half = x.half()
    assert moved(None, half, positions, 0) is half
    assert unrotated(None, half, positions).dtype == rotated(None, half, 3).dtype == torch.float32
    assert moved(rope, half, positions, positions).dtype == torch.float16


def test_how_a_module_rotates_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = model_of("llama"), []
    plain = routing.query_of
    monkeypatch.setattr(routing, "query_of", lambda *arguments: asked.append(arguments) or plain(*arguments))
    ids = torch.randint(3, 64, (TOTAL,))

    def ropes() -> list[Rope]:
        return read(model, ids, KVCache.dense(LAYERS, expected=PROMPT)).observed[LayerRope()]

    first = ropes()
    assert len(asked) == 2 * LAYERS
    model.model.rotary_emb.inv_freq *= 0.5  # as embeddings do that grow with the text
    second = ropes()
    assert len(asked) == 2 * LAYERS
    assert torch.equal(second[0].frequencies, first[0].frequencies * 0.5)
    other = model_of("llama", rope_parameters={"rope_type": "yarn", **SCALED}).model.rotary_emb
    before = model.model.rotary_emb
    model.model.rotary_emb = other  # as methods do that extend the window, and put the old one back later
    third = ropes()
    assert len(asked) > 2 * LAYERS
    assert third[0].scaling > 1.1
    assert torch.equal(third[0].frequencies, other.inv_freq)
    model.model.rotary_emb = before
    assert torch.equal(ropes()[0].frequencies, second[0].frequencies)


def test_what_was_asked_does_not_keep_a_model_alive() -> None:
    before = len(rope_module._found)
    model = model_of("llama")
    read(model, torch.randint(3, 64, (TOTAL,)), KVCache.dense(LAYERS, expected=PROMPT))
    assert len(rope_module._found) >= LAYERS
    del model
    gc.collect()
    assert len(rope_module._found) <= before
