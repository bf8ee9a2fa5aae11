"""Reading a model's rotary embedding: taken off, queries are what the projections made of the hidden states."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lcbench.errors import ModelError
from lcbench.kv.cache import KVCache
from lcbench.models import adapter
from lcbench.models.rope import Rope, check_readable, observed_rope
from lcbench.models.rule import AttentionRule

LAYERS, LENGTH, HEAD_DIM = 4, 40, 16
SCALED = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}


def config_of(kind: str, **config: Any) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    return CONFIG_MAPPING[kind](**{**settings, **config})


def model_of(kind: str, **config: Any) -> Any:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config_of(kind, **config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    adapter.install(model)
    return model


class Watcher:
    """Queries before and after rotation, and the embeddings that were read, layer by layer."""

    def __init__(self, model: Any) -> None:
        self.ropes: list[Rope | None] = []
        self.rotated: list[Tensor] = []
        self.plain: list[Tensor] = []
        for layer in model.model.layers:
            attention = layer.self_attn
            getattr(attention, "q_norm", attention.q_proj).register_forward_hook(self._take)

    def _take(self, module: Any, arguments: Any, output: Tensor) -> None:
        if LENGTH not in output.shape:  # a question of the code under test, not the prompt
            return
        rows = output[0].unflatten(-1, (-1, HEAD_DIM)) if output.ndim == 3 else output[0]
        self.plain.append(rows if rows.shape[1] == LENGTH else rows.transpose(0, 1))

    def observe(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, start: int, store: Any, rule: AttentionRule
    ) -> None:
        self.ropes.append(observed_rope())
        self.rotated.append(query.clone())


def watched(model: Any) -> Watcher:
    watcher = Watcher(model)
    ids = torch.randint(3, 64, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    adapter.forward(model, ids, torch.arange(LENGTH)[None], [KVCache.dense(LAYERS, expected=LENGTH)], [[watcher]])
    return watcher


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rope_parameters": {"rope_type": "linear", **SCALED}}),
    ("llama", {"rope_parameters": {"rope_type": "yarn", **SCALED}}),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", **SCALED}, "max_position_embeddings": 16}),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **SCALED}}),
    ("mistral", {}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("olmo2", {}),
    ("smollm3", {"no_rope_layer_interval": 2}),
    ("gemma3_text", {}),
    ("granite", {}),
    ("stablelm", {}),
    ("cohere", {}),
    ("glm", {}),
]


@pytest.mark.parametrize(("kind", "config"), FAMILIES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v)))
def test_taken_off_the_queries_are_those_of_the_projection(kind: str, config: dict[str, Any]) -> None:
    watcher = watched(model_of(kind, **config))
    positions = torch.arange(LENGTH)
    for rope, rotated, plain in zip(watcher.ropes, watcher.rotated, watcher.plain, strict=True):
        if rope is None:
            assert kind == "smollm3"
            torch.testing.assert_close(rotated, plain)
            continue
        torch.testing.assert_close(rope.undo(rotated, positions), plain, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rope.apply(plain, positions), rotated, atol=1e-5, rtol=1e-5)
        assert (rotated - plain).abs().max() > 0.1
    assert [rope is None for rope in watcher.ropes] == [kind == "smollm3" and i % 2 == 1 for i in range(LAYERS)]


def skeleton_of(kind: str, **config: Any) -> Any:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_config(config_of(kind, **config), attn_implementation="eager")


@pytest.mark.parametrize(("kind", "config"), FAMILIES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v)))
def test_it_is_recognised_without_weights(kind: str, config: dict[str, Any]) -> None:
    check_readable(skeleton_of(kind, **config), ["infllm"])


@pytest.mark.parametrize(
    "kind", ["nanochat", "ministral3", "gpt2"]
)  # norms after turning, scales by position, has none
def test_what_is_refused_in_the_prefill_is_refused_without_weights(kind: str) -> None:
    with pytest.raises(ModelError, match=r"^infllm, longcache cannot run: .* that lcbench cannot take off its queries"):
        check_readable(skeleton_of(kind), ["infllm", "longcache"])
    with pytest.raises(ModelError, match="that lcbench cannot take off its queries"):
        observe_alone(model_of(kind))


def observe_alone(model: Any) -> None:
    class Asks:
        def observe(self, layer: int, *rest: Any) -> None:
            observed_rope()

    ids, cache = torch.zeros(1, 3, dtype=torch.int64), KVCache.dense(model.config.num_hidden_layers)
    adapter.forward(model, ids, torch.arange(3)[None], [cache], [[Asks()]])  # type: ignore[list-item]


def test_what_is_read_is_what_the_family_does() -> None:
    assert watched(model_of("cohere")).ropes[0].interleaved  # type: ignore[union-attr]
    partial = watched(model_of("stablelm")).ropes[0]
    assert partial is not None
    assert 2 * partial.frequencies.numel() == HEAD_DIM // 4
    yarn = watched(model_of("llama", rope_parameters={"rope_type": "yarn", **SCALED})).ropes[0]
    assert yarn is not None
    assert yarn.scaling > 1.1
    layers = watched(model_of("gemma3_text", layer_types=["sliding_attention"] * 3 + ["full_attention"])).ropes
    assert not torch.equal(layers[0].frequencies, layers[3].frequencies)  # type: ignore[union-attr]


def test_reading_leaves_frequencies_that_grow_as_they_are() -> None:
    model = model_of("llama", rope_parameters={"rope_type": "dynamic", **SCALED}, max_position_embeddings=16)
    watcher = watched(model)
    assert torch.equal(model.model.rotary_emb.inv_freq, watcher.ropes[0].frequencies)  # type: ignore[union-attr]
    assert not torch.equal(model.model.rotary_emb.original_inv_freq, model.model.rotary_emb.inv_freq)


def test_half_precision_is_recognised() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        ropes = watched(model_of("qwen3").to(dtype)).ropes
        assert all(rope is not None and not rope.interleaved for rope in ropes)


def test_an_embedding_that_is_not_understood_is_refused() -> None:
    model = model_of("llama")
    model.model.rotary_emb.forward = lambda x, position_ids: (  # stretches instead of turning
        torch.full((1, x.shape[1], HEAD_DIM), 0.3),
        torch.linspace(0, 1, HEAD_DIM).expand(1, x.shape[1], -1),
    )
    with pytest.raises(ModelError, match="LlamaForCausalLM has a position embedding that lcbench cannot take off"):
        watched(model)


def test_turning_by_zero_changes_nothing() -> None:
    x = torch.randn(3, 5, HEAD_DIM)
    for interleaved in (False, True):
        rope = Rope(torch.tensor([1.0, 0.1]), 1.0, interleaved)
        assert torch.equal(rope.apply(x, torch.zeros(5)), x)
        moved = rope.apply(x, torch.full((5,), 3))
        assert torch.equal(moved[..., 4:], x[..., 4:])  # channels beyond the rotated ones
        torch.testing.assert_close(moved.norm(dim=-1), x.norm(dim=-1))
