"""Named architectures: their published sizes, and weights made where they are wanted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lcbench.config.spec import Dtype, ModelSpec
from lcbench.errors import ModelError, UnknownName
from lcbench.models.architectures import architectures
from lcbench.models.random_weights import describe_random, load_random

# Parameter counts as the models' cards and papers print them, in billions; layers, heads, KV heads, head dimension.
PUBLISHED = {
    "llama-2-7b": (6.74, 32, 32, 32, 128),
    "llama-3-8b": (8.03, 32, 32, 8, 128),
    "llama-3.1-8b": (8.03, 32, 32, 8, 128),
    "mistral-7b": (7.24, 32, 32, 8, 128),
    "qwen2.5-7b": (7.62, 28, 28, 4, 128),
    "qwen3-8b": (8.19, 36, 32, 8, 128),
    "smollm2-135m": (0.135, 30, 9, 3, 64),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_an_architecture_has_the_published_size(name: str) -> None:
    info = describe_random(ModelSpec(name=name, dtype="bfloat16"))
    billions, *shape = PUBLISHED[name]
    assert info.parameters / 1e9 == pytest.approx(billions, abs=0.005)
    assert [info.layers, info.heads, info.kv_heads, info.head_dim] == shape
    assert info.weight_bytes == 2 * info.parameters
    assert info.source == "random"
    assert len(info.identity) == 64  # of the config and the seed: other weights are another model
    assert info.identity != describe_random(ModelSpec(name=name, dtype="bfloat16"), seed=1).identity


def test_every_architecture_that_ships_is_known() -> None:
    assert set(architectures()) == {*PUBLISHED, "tiny"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_random_in_the_dtype_asked_for(dtype: Dtype) -> None:
    loaded, same = (load_random(ModelSpec(name="tiny", dtype=dtype)) for _ in range(2))
    assert {p.dtype for p in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert not loaded.model.training
    weights, theirs = (one.model.model.layers[0].self_attn.q_proj.weight for one in (loaded, same))
    assert 0.01 < float(weights.float().std()) < 0.03
    assert torch.equal(weights, theirs)
    assert loaded.tokenizer is None
    assert loaded.info == describe_random(ModelSpec(name="tiny", dtype=dtype))


def test_a_config_of_ones_own_is_an_architecture(tmp_path: Path) -> None:
    config = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
        "architectures": ["Qwen2ForCausalLM"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in (tmp_path, tmp_path / "config.json"):
        info = load_random(ModelSpec(name=str(name))).info
        assert (info.layers, info.kv_heads, info.head_dim) == (2, 2, 8)


def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="llama-3-8B") as unknown:
        describe_random(ModelSpec(name="llama-3-8B"))
    assert "llama-3-8b" in unknown.value.next_step
    broken = tmp_path / "config.json"
    for text in ("{", "[]", '{"hidden_size": 3}', '{"model_type": "no-such-family"}'):
        broken.write_text(text)
        with pytest.raises(ModelError, match="not the config"):
            describe_random(ModelSpec(name=str(broken)))
    with pytest.raises(ModelError, match="8 or 4 bits"):
        describe_random(ModelSpec(name="tiny", load_in="4bit"))
