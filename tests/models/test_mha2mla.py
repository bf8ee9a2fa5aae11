"""MHA2MLA: full rank is the plain model, both forms of attention agree, a rank loses what its singular values say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lcbench.errors import BadValue, ModelError
from lcbench.kv.native import NativeCache
from lcbench.models import adapter
from lcbench.models.info import model_facts
from lcbench.models.mha2mla.conversion import check, convert, decompose, full_rank, rows_of, select_pairs
from tiny import tiny_model

HEADS, KV_HEADS, WIDTH, LAYERS = 8, 2, 32, 4


def text(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(seed))


def converted(model: Any, rope_dims: int, rank: int | None = None, selection: Any = "high", **more: Any) -> Any:
    pairs = select_pairs(model.config, rope_dims, selection, **more)
    return convert(model, pairs, rope_dims, rank or full_rank(model.config, rope_dims))


def stepwise(model: Any, ids: Tensor, prompt: int) -> Tensor:
    cache = NativeCache.empty(model)
    rows = [adapter.forward(model, ids[:, :prompt], torch.arange(prompt)[None], [cache])[0, -1]]
    for i in range(prompt, ids.shape[1]):
        rows.append(adapter.forward(model, ids[:, i : i + 1], torch.tensor([[i]]), [cache])[0, -1])
    return torch.stack(rows)


@pytest.mark.parametrize("bias", [False, True])
def test_everything_rotated_and_full_rank_is_the_plain_model(bias: bool) -> None:
    model, ids = tiny_model("llama", attention_bias=bias), text(40)
    latent = converted(model, WIDTH)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits[0]
        assert (latent(input_ids=ids, use_cache=False).logits[0] - expected).abs().max() < 1e-4
    assert (stepwise(latent, ids, 30) - expected[29:]).abs().max() < 1e-4


def partly_rotated(model: Any, pairs: Any, ids: Tensor) -> Tensor:
    """The plain model with rotation taken off all pairs but the kept ones: an oracle that knows no latents."""
    from transformers.models.llama import modeling_llama

    layers = {id(layer.self_attn): i for i, layer in enumerate(model.model.layers)}
    running: list[int] = []
    hooks = [
        layer.self_attn.register_forward_pre_hook(lambda m, a, k: running.append(layers[id(m)]), with_kwargs=True)
        for layer in model.model.layers
    ]
    plain = modeling_llama.apply_rotary_pos_emb

    def partial(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
        turned_q, turned_k = plain(q, k, cos, sin, **more)
        kept = torch.zeros(KV_HEADS, WIDTH, dtype=torch.bool)
        for head, chosen in enumerate(pairs[running[-1]]):
            for p in chosen:
                kept[head, p] = kept[head, p + WIDTH // 2] = True
        for_q = kept.repeat_interleave(HEADS // KV_HEADS, dim=0)[None, :, None]
        return torch.where(for_q, turned_q, q), torch.where(kept[None, :, None], turned_k, k)

    modeling_llama.apply_rotary_pos_emb = partial
    try:
        with torch.inference_mode():
            logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    finally:
        modeling_llama.apply_rotary_pos_emb = plain
        for hook in hooks:
            hook.remove()
    return logits


@pytest.mark.parametrize("selection", ["high", "low", "uniform", "2-norm"])
def test_full_rank_with_part_of_the_rotation_is_the_plain_model_with_part_of_its_rotation(selection: str) -> None:
    model, ids = tiny_model("llama"), text(36)
    norms = torch.rand(LAYERS, KV_HEADS, WIDTH // 2, generator=torch.Generator().manual_seed(3))
    pairs = select_pairs(model.config, 8, selection, norms=norms)  # type: ignore[arg-type]
    latent = convert(model, pairs, 8, full_rank(model.config, 8))
    expected = partly_rotated(model, pairs, ids)
    with torch.inference_mode():
        assert (latent(input_ids=ids, use_cache=False).logits[0] - expected).abs().max() < 2e-4
        assert (expected - model(input_ids=ids).logits[0]).abs().max() > 0.1
    assert (stepwise(latent, ids, 30) - expected[29:]).abs().max() < 2e-4


@pytest.mark.parametrize("bias", [False, True])
def test_attention_over_latents_is_attention_over_rebuilt_keys(bias: bool) -> None:
    latent = converted(tiny_model("llama", attention_bias=bias), 8, rank=20)
    attention = latent.model.layers[1].self_attn
    generator = torch.Generator().manual_seed(1)
    rotated, free = (torch.randn(1, HEADS, 1, n, generator=generator) for n in (8, WIDTH - 8))
    latents, key = torch.randn(1, 25, 20, generator=generator), torch.randn(1, KV_HEADS, 25, 8, generator=generator)
    with torch.inference_mode():
        one = attention.attend_rebuilt(rotated, free, latents, key, None)
        other = attention.attend_latent(rotated, free, latents, key, None)
    assert one.shape == other.shape == (1, HEADS, 1, WIDTH)
    assert (one - other).abs().max() < 1e-4


def test_high_and_low_are_complements_at_half_and_uniform_takes_every_second() -> None:
    config = tiny_model("llama").config
    high, low, uniform = (
        select_pairs(config, WIDTH // 2, how)  # type: ignore[arg-type]
        for how in ("high", "low", "uniform")
    )
    assert set(high[0][0]) | set(low[0][0]) == set(range(WIDTH // 2))
    assert not set(high[0][0]) & set(low[0][0])
    assert uniform[0][0] == list(range(0, WIDTH // 2, 2))
    assert select_pairs(config, WIDTH // 2, "uniform", start=1)[3][1] == list(range(1, WIDTH // 2, 2))


def test_rows_are_head_by_head() -> None:
    rotated, free = rows_of([[0], [1]], heads=4, head_dim=4)  # pairs (0, 2) and (1, 3)
    assert rotated.tolist() == [0, 2, 4, 6, 9, 11, 13, 15]
    assert free.tolist() == [1, 3, 5, 7, 8, 10, 12, 14]


def test_what_a_rank_loses_is_the_rest_of_the_singular_values() -> None:
    matrix = torch.randn(50, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(matrix)
    for rank in (1, 12, 30):
        up, down = decompose(matrix, rank)
        assert (matrix - up @ down).norm().item() == pytest.approx(values[rank:].norm().item(), abs=1e-9)
        assert torch.allclose(down @ down.T, torch.eye(rank, dtype=torch.float64))


def test_bytes_are_the_latent_and_the_rotated_keys() -> None:
    latent = converted(tiny_model("llama"), 8, rank=20)
    facts = model_facts(latent, None)
    assert (facts["kv_heads"], facts["head_dim"]) == (KV_HEADS, WIDTH)
    assert facts["state"].token_bytes == LAYERS * 4 * (20 + KV_HEADS * 8)
    assert facts["state"].state_bytes == 0


def test_a_saved_conversion_is_read_as_a_model(tmp_path: Any, own_home: Any) -> None:
    from lcbench.config.spec import ModelSpec
    from lcbench.models.load import load
    from tiny import byte_tokenizer

    latent, ids = converted(tiny_model("llama"), 8, rank=20), text(12)
    latent.save_pretrained(tmp_path / "mla")
    byte_tokenizer().save_pretrained(tmp_path / "mla")
    loaded = load(ModelSpec(str(tmp_path / "mla")), own_home)
    assert (loaded.info.architecture, loaded.info.attn) == ("Mha2MlaForCausalLM", "sdpa")
    with torch.inference_mode():
        expected, found = (m(input_ids=ids, use_cache=False).logits for m in (latent, loaded.model))
    assert (expected - found).abs().max() < 1e-5


def test_what_cannot_be_converted_is_refused() -> None:
    llama = tiny_model("llama").config
    with pytest.raises(ModelError, match="qwen2"):
        check(tiny_model("qwen2").config, 8, 20)
    for rope_dims in (0, 7, 34):
        with pytest.raises(BadValue, match="rope-dims"):
            check(llama, rope_dims, 20)
    for rank in (0, 65):
        with pytest.raises(BadValue, match="rank"):
            check(llama, 8, rank)
    with pytest.raises(BadValue, match="evenly"):
        select_pairs(llama, 10, "uniform")
