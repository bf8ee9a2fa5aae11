"""Attention against the textbook formula in fp64: causality, windows, chunks, grouped queries, pieces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lcbench.kv import attention
from lcbench.kv.packing import quantize
from lcbench.models.rule import AttentionRule

H, HK, D = 6, 2, 16
SCALE = D**-0.5


def qkv(q: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((H, q, D), (HK, n, D), (HK, n, D))
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query * 3, key, value


def naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    seen: Tensor,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """``softmax(q k / sqrt d) v`` head by head and row by row in fp64; ``seen`` bool ``[H, q, n]``."""
    out = torch.zeros(query.shape, dtype=torch.float64)
    for h in range(query.shape[0]):
        kv = h // (query.shape[0] // key.shape[0])
        for i in range(query.shape[1]):
            at = seen[h, i].nonzero()[:, 0]
            logits = key[kv, at].double() @ query[h, i].double() * scaling
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            grown = logits.exp()
            below = grown.sum() + (0 if sinks is None else sinks[h].double().exp())
            out[h, i] = grown / below @ value[kv, at].double()
    return out


def causal_mask(q: int, n: int, window: int | None = None) -> Tensor:
    row, column = torch.arange(n - q, n)[:, None], torch.arange(n)[None]
    seen = column <= row
    if window is not None:
        seen &= column > row - window
    return seen.expand(H, -1, -1)


@pytest.mark.parametrize("window", [None, 1, 5, 20, 64])
@pytest.mark.parametrize(("q", "n"), [(1, 1), (20, 20), (1, 20), (7, 20), (19, 20)])
def test_causal_is_the_formula(q: int, n: int, window: int | None) -> None:
    query, key, value = qkv(q, n)
    out = attention.causal(query, key, value, AttentionRule(SCALE, window))
    torch.testing.assert_close(
        out.double(), naive(query, key, value, SCALE, causal_mask(q, n, window)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("window", [None, 3, 9, 40])
def test_blocks_change_nothing(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = qkv(33, 40)
    whole = attention.causal(query, key, value, AttentionRule(SCALE, window))
    monkeypatch.setattr(attention, "_BLOCK", 8)
    torch.testing.assert_close(attention.causal(query, key, value, AttentionRule(SCALE, window)), whole)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("sizes", [(30,), (1, 29), (10, 1, 19), (7, 7, 7, 9)])
def test_a_prompt_in_chunks_is_the_prompt(sizes: tuple[int, ...], window: int | None) -> None:
    query, key, value = qkv(30, 30)
    whole = attention.causal(query, key, value, AttentionRule(SCALE, window))
    start, pieces = 0, []
    for size in sizes:
        stop = start + size
        pieces.append(
            attention.causal(query[:, start:stop], key[:, :stop], value[:, :stop], AttentionRule(SCALE, window))
        )
        start = stop
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


@pytest.mark.parametrize("q", [1, 4])
@pytest.mark.parametrize(("key_cuts", "value_cuts"), [([], []), ([12], [9]), ([5, 5, 18], [19]), ([0, 20], [20])])
def test_pieces_are_the_whole(q: int, key_cuts: list[int], value_cuts: list[int]) -> None:
    query, key, value = qkv(q, 20)
    keys = list(torch.tensor_split(key, key_cuts, dim=1))
    values = list(torch.tensor_split(value, value_cuts, dim=1))
    out, weights = attention.over_parts(query, keys, values, AttentionRule(SCALE), return_weights=True)
    torch.testing.assert_close(out.double(), naive(query, key, value, SCALE, causal_mask(q, 20)), rtol=1e-5, atol=1e-5)
    assert weights is not None
    assert weights.shape == (H, q, 20)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(H, q))
    assert (weights[:, 0, 20 - q + 1 :] == 0).all()
    torch.testing.assert_close(weights[3, 0] @ value[1], out[3, 0])  # query head 3 belongs to KV head 1


def test_weights_only_when_asked() -> None:
    query, key, value = qkv(1, 5)
    assert attention.over_parts(query, [key], [value], AttentionRule(SCALE))[1] is None


@pytest.mark.parametrize("shape", [(1, 1), (HK, 1), (1, 3), (HK, 3)])
def test_hidden_entries_are_not_seen(shape: tuple[int, int]) -> None:
    query, key, value = qkv(3, 20)
    hidden = torch.rand(*shape, 20, generator=torch.Generator().manual_seed(1)) < 0.4
    hidden[..., -3:] = False
    out, _ = attention.over_parts(query, [key], [value], AttentionRule(SCALE), hidden=hidden)
    per_head = hidden.expand(HK, 3, 20).repeat_interleave(H // HK, dim=0)
    expected = naive(query, key, value, SCALE, causal_mask(3, 20) & ~per_head)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_stored_pieces_are_multiplied_as_they_are() -> None:
    query, key, value = qkv(1, 40)
    keys, values = quantize(key[:, :32].transpose(1, 2), 4, 32), quantize(value[:, :24], 4, 16)
    out, _ = attention.over_parts(query, [keys, key[:, 32:]], [values, value[:, 24:]], AttentionRule(SCALE))
    k = torch.cat([keys.dequantize().transpose(1, 2), key[:, 32:]], dim=1)
    v = torch.cat([values.dequantize(), value[:, 24:]], dim=1)
    torch.testing.assert_close(out.double(), naive(query, k, v, SCALE, causal_mask(1, 40)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_half_precision_keeps_dtype_and_value(dtype: torch.dtype, tolerance: float) -> None:
    query, key, value = (t.to(dtype) for t in qkv(1, 50))
    expected = naive(query, key, value, SCALE, causal_mask(1, 50))
    dense = attention.causal(query, key, value, AttentionRule(SCALE))
    parts, _ = attention.over_parts(query, [key], [value], AttentionRule(SCALE))
    for out in (dense, parts):
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


def test_large_fp16_logits_do_not_overflow() -> None:
    query = torch.full((1, 1, 64), 60.0, dtype=torch.float16)
    key = torch.tensor([30.0, 29.9]).view(1, 2, 1).expand(1, 2, 64).half()  # q.k = 115,200 > 65,504 before scaling
    out, weights = attention.over_parts(query, [key], [key], AttentionRule(0.125), return_weights=True)
    assert weights is not None
    assert torch.isfinite(out).all()
    assert weights[0, 0, 0] > 0.99


RULES = {
    "softcap": AttentionRule(SCALE, softcap=1.5),
    "sinks": AttentionRule(SCALE, sinks=torch.tensor([-2.0, 0.0, 1.0, 3.0, -30.0, 0.5])),
    "both, window": AttentionRule(SCALE, window=6, softcap=0.7, sinks=torch.linspace(-3, 2, H)),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("q", "n"), [(1, 1), (20, 20), (1, 20), (7, 20)])
def test_softcap_and_sinks_are_the_formula(
    q: int, n: int, rule: AttentionRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value = qkv(q, n)
    expected = naive(query, key, value, SCALE, causal_mask(q, n, rule.window), rule.softcap, rule.sinks)
    hidden = ~causal_mask(q, n, rule.window)[:1]
    pieces = [key[:, :5], key[:, 5:]], [value[:, :3], value[:, 3:]]
    plain = naive(query, key, value, SCALE, causal_mask(q, n, rule.window))
    assert (expected - plain).abs().max() > 0.02 or (n == 1 and rule.sinks is None)
    for elements in (attention._ELEMENTS, H * n * 3):  # at once, and three rows at a time
        monkeypatch.setattr(attention, "_ELEMENTS", elements)
        whole = attention.causal(query, key, value, rule)
        torch.testing.assert_close(whole.double(), expected, rtol=1e-5, atol=1e-5)
        out, weights = attention.over_parts(query, *pieces, rule, hidden=hidden, return_weights=True)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
        assert weights is not None
        spread = weights.double() @ value.double().repeat_interleave(H // HK, dim=0)
        torch.testing.assert_close(spread, expected, rtol=1e-5, atol=1e-5)


def test_long_questions_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = qkv(9, 20)
    words = quantize(key[:, :16].transpose(1, 2).contiguous(), 8, 4)
    per_head = torch.rand(H, 9, 20, generator=torch.Generator().manual_seed(1)) < 0.3
    per_head[:, torch.arange(9), torch.arange(11, 20)] = False
    for hidden in (None, per_head, per_head[:1], per_head[:, :1] & (torch.arange(20) < 11)):
        whole, all_weights = attention.over_parts(
            query, [words, key[:, 16:]], [value], AttentionRule(SCALE), hidden=hidden, return_weights=True
        )
        with monkeypatch.context() as patch:
            patch.setattr(attention, "_ELEMENTS", 2 * H * 20)
            out, weights = attention.over_parts(
                query, [words, key[:, 16:]], [value], AttentionRule(SCALE), hidden=hidden, return_weights=True
            )
        torch.testing.assert_close(out, whole)
        torch.testing.assert_close(weights, all_weights)
