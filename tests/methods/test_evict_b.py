"""AdaKV, HeadKV, DynamicKV, ChunkKV, CORM, expected attention, LightTransfer: the checks of their specifications.

Logits, bytes, hygiene and short prompts are held by the acceptance harness (`cases_evict_b`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import evict_a_replay as replaying
import evict_b_oracle as oracle
import harness
import numpy as np
import pytest
import torch
from cases_evict_b import CASES, TABLE, corm_rule, expected_positions, with_table
from harness import HEAD_DIM, HEADS, KV_HEADS, LAYERS, SCALING, SHAPE, Case, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lcbench.errors import BadValue, ModelError
from lcbench.kv.cache import KVCache
from lcbench.kv.observe import LastQueries
from lcbench.kv.query_statistics import QueryMoments, QueryStatistics
from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.kv.ring import RingLayer
from lcbench.methods.evict.dynamickv import DynamicKV, apportion
from lcbench.methods.evict.expected_attention import ExpectedAttention
from lcbench.methods.registry import resolve
from lcbench.models.rope import Rope
from lcbench.models.rule import AttentionRule

PROMPT = 60


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def kept_of(cache: KVCache) -> oracle.Kept:
    """Positions every head of every layer holds, ascending."""
    kept = []
    for layer in cache.layers:
        held = layer.positions()
        rows = held.expand(KV_HEADS, -1) if held.ndim == 1 else held
        kept.append([sorted(p for p in row if p >= 0) for row in rows.tolist()])
    return kept


def compress(spec: str, seed: int = 2, family: str = "llama", method: Any = None) -> tuple[PrefillRecord, KVCache]:
    method = resolve(spec) if method is None else method
    record = harness.prefill(harness.models(family), tokens(PROMPT, seed=seed), method)
    return record, method.compress(record)


def kept_by(spec: str, seed: int = 2, family: str = "llama") -> oracle.Kept:
    return kept_of(compress(spec, seed, family)[1])


def counts(kept: oracle.Kept, window: int) -> list[list[int]]:
    return [[len(rows) - window for rows in heads] for heads in kept]


# --- T2: kept sets, all cases of the harness --------------------------------------------------------------------------

CUT = {
    "adakv": oracle.adakv,
    "headkv": lambda method, record: oracle.headkv(method, record, TABLE),
    "headkv-r2": lambda method, record: oracle.headkv(method, record, TABLE),
    "dynamickv": oracle.dynamickv,
    "chunkkv": oracle.chunkkv,
    "lighttransfer": oracle.lighttransfer,
}


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("case", [c for name in CUT for c in CASES[name]], ids=lambda case: case.spec)
def test_kept_sets(case: Case, family: str) -> None:
    method = harness.made(case)
    for seed in (2, 31):
        record, cache = compress(case.spec, seed, family, method)
        assert kept_of(cache) == CUT[method.name](method, record)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("case", CASES["expected-attention"], ids=lambda case: case.spec)
def test_kept_sets_of_expected_attention(case: Case, family: str) -> None:
    method, pair, ids = harness.made(case), harness.models(family), tokens(PROMPT, seed=2)
    record = harness.prefill(pair, ids, method)
    assert kept_of(method.compress(record)) == expected_positions(pair, method, ids, record)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("case", CASES["corm"], ids=lambda case: case.spec)
def test_corm_holds_what_the_messages_say_at_each_step(case: Case, family: str) -> None:
    pair, method, ids = harness.models(family), harness.made(case), tokens(PROMPT + 64, seed=2)
    watcher, held, _ = replaying.watched(pair, method, ids, PROMPT)
    evicted = 0
    for i in range(LAYERS):
        query, key, value = watcher.layer(i)
        rule = corm_rule(method, query, key, value, PROMPT, pair.window)
        _, expected = replaying.replay(rule, query, key, PROMPT, pair.window)
        for step, layers in enumerate(held):
            ours = [sorted(p for p in row if p >= 0) for row in layers[i].tolist()]
            assert ours == expected[step], f"layer {i}, {step} new tokens"
        evicted += sum(PROMPT + 64 - len(row) for row in expected[-1])
    assert evicted > 100  # it bites


@pytest.mark.parametrize(
    ("spec", "least"),
    [
        ("adakv@window=8,allocation=exact", 9),
        ("headkv@window=8,beta=1000000.0", 9),
        ("dynamickv@window=8", 9),
        ("chunkkv@window=8,length=1", 9),
        ("expected-attention@n_sink=8", 9),
    ],
)
def test_a_window_is_never_alone(spec: str, least: int) -> None:
    for budget in ("1", "8", "0.01"):
        method = resolve(f"{spec},budget={budget}")
        method = with_table(method) if spec.startswith("headkv") else method
        assert compress("", method=method)[1].entries == least


# --- adakv ------------------------------------------------------------------------------------------------------------

ADAKV = "adakv@budget=24,window=8"
SNAPKV = "snapkv@budget=24,window=8,kernel=7,pooling=max"


@pytest.mark.parametrize("granularity", ["kv", "query"])
def test_adakv_with_alpha_1_is_snapkv(granularity: str) -> None:
    ours = kept_by(f"{ADAKV},alpha=1.0,granularity={granularity}")
    assert ours == kept_by(f"{SNAPKV},granularity={granularity}")
    assert {n for heads in counts(ours, 8) for n in heads} == {16}


def test_adakv_with_alpha_0_keeps_the_best_of_the_layer() -> None:
    record, cache = compress(f"{ADAKV},alpha=0.0")
    kept, method = kept_of(cache), resolve(ADAKV)
    for layer in oracle.layers(record):
        rows = oracle.window_scores(layer, method)
        inside = [rows[h][p] for h in range(KV_HEADS) for p in kept[layer.index][h] if p < PROMPT - 8]
        outside = [rows[h][p] for h in range(KV_HEADS) for p in set(range(PROMPT - 8)) - set(kept[layer.index][h])]
        assert len(inside) == KV_HEADS * 16
        assert min(inside) >= max(outside)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("granularity", ["kv", "query"])
def test_adakv_counts(alpha: float, granularity: str) -> None:
    heads = KV_HEADS if granularity == "kv" else HEADS
    rounded = counts(kept_by(f"{ADAKV},alpha={alpha},granularity={granularity}"), 8)
    assert all(n >= math.floor(alpha * 16) for row in rounded for n in row)
    assert all(abs(sum(row) - heads * 16) <= heads / 2 + heads for row in rounded)  # rounding, and floor(alpha b)
    exact = counts(kept_by(f"{ADAKV},alpha={alpha},granularity={granularity},allocation=exact"), 8)
    assert all(sum(row) == heads * 16 for row in exact)
    assert all(n + 8 >= math.floor(alpha * 24) for row in exact for n in row)
    assert len({n for row in exact for n in row}) > 1


def test_adakv_skips_the_first_layers() -> None:
    found = counts(kept_by(f"{ADAKV},alpha=0.0,skip=2"), 8)
    assert found[:2] == [[16, 16]] * 2
    assert found[2:] == counts(kept_by(f"{ADAKV},alpha=0.0"), 8)[2:]


def test_even_pooling_is_refused() -> None:
    for name in ("adakv", "headkv", "headkv-r2", "dynamickv"):
        with pytest.raises(BadValue, match=f"{name}@kernel=4 is even"):
            resolve(f"{name}@kernel=4")


# --- headkv -----------------------------------------------------------------------------------------------------------

HEADKV = "headkv@budget=24,window=8"


def headkv(options: str = "", table: list[list[float]] | None = None) -> oracle.Kept:
    method = with_table(resolve(HEADKV + options), table)
    return kept_of(compress("", method=method)[1])


def test_headkv_with_equal_scores_is_snapkv() -> None:
    equal = [[0.25] * HEADS] * LAYERS
    for beta in ("1.005", "1.5", "10.0"):
        assert headkv(f",beta={beta}", equal) == kept_by(SNAPKV)
    assert headkv(",granularity=query", equal) == kept_by(f"{SNAPKV},granularity=query")


def test_headkv_with_a_large_beta_is_snapkv() -> None:
    assert headkv(",beta=1000000.0") == kept_by(SNAPKV)
    assert headkv(",beta=1.2") != kept_by(SNAPKV)


@pytest.mark.parametrize("granularity", ["kv", "query"])
@pytest.mark.parametrize("beta", [1.005, 1.5, 5])
def test_headkv_budgets_add_up(granularity: str, beta: float) -> None:
    method = with_table(resolve(f"headkv@beta={beta},granularity={granularity}"))
    heads = KV_HEADS if granularity == "kv" else HEADS
    found = method.counts(SHAPE, 120, 10**6)  # type: ignore[attr-defined]
    assert abs(sum(map(sum, found)) - LAYERS * heads * 120) <= LAYERS * heads / 2
    least = 120 - int(120 // beta)
    assert min(min(row) for row in found) >= least
    if beta == 1.005:
        assert least == 1  # nearly everything is shared out
    assert max(max(row) for row in method.counts(SHAPE, 120, 125)) == 125  # type: ignore[attr-defined]


def test_headkv_budgets_follow_layer_and_head() -> None:
    budgets = headkv(",granularity=query,beta=1.005")
    transposed = np.array(TABLE).T.reshape(LAYERS, HEADS).tolist()
    assert counts(budgets, 8) != counts(headkv(",granularity=query,beta=1.005", transposed), 8)
    swapped = [TABLE[1], TABLE[0], *TABLE[2:]]
    found = counts(headkv(",granularity=query,beta=1.005", swapped), 8)
    assert [found[1], found[0], *found[2:]] == counts(budgets, 8)


def test_headkv_power_sharpens_the_shares() -> None:
    flat, sharp = (with_table(resolve(f"headkv@temp={t}")).shares(SHAPE) for t in ("0.5", "3.0"))  # type: ignore[attr-defined]
    assert sharp.max() > flat.max()
    torch.testing.assert_close(sharp.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_headkv_refuses_without_scores() -> None:
    for name in ("headkv", "headkv-r2"):
        with pytest.raises(ModelError, match=f"no {name} calibration") as caught:
            resolve(name).check(SHAPE)
        assert caught.value.next_step == f"Run: lcbench calibrate {name} --model MODEL"
        assert resolve(name).calibration == ""


def test_headkv_refuses_scores_of_another_model() -> None:
    with pytest.raises(ModelError, match="scores are for 4 x 8 heads, the model has 4 layers of 4"):
        with_table(resolve("headkv")).check(dataclasses.replace(SHAPE, heads=4))


def test_headkv_with_scores_is_still_itself() -> None:
    plain = resolve("headkv@budget=0.25")
    bound = with_table(plain)
    assert bound == plain
    assert bound.id == plain.id == "headkv@budget=0.25"
    assert bound.calibration == "0" * 64


# --- dynamickv --------------------------------------------------------------------------------------------------------

DYNAMICKV = "dynamickv@budget=24,window=8"


@given(
    weights=st.lists(st.integers(0, 50), min_size=1, max_size=12),
    most=st.integers(1, 40),
    fill=st.floats(0, 1),
)
@settings(max_examples=300, deadline=None)
def test_apportion(weights: list[int], most: int, fill: float) -> None:
    total = int(fill * most * len(weights))
    shares = apportion(total, weights, most)
    assert sum(shares) == total
    assert all(0 <= share <= most for share in shares)
    assert shares == oracle.share_out(total, weights, most)
    for i, share in enumerate(shares):  # who weighs more never gets less
        assert all(other <= share for j, other in enumerate(shares) if weights[j] < weights[i])


def test_dynamickv_counts_add_up_without_duplicates() -> None:
    for options in ("", ",r_max=1.2", ",granularity=query,pooling=max"):
        kept = kept_by(DYNAMICKV + options)
        for heads in kept:
            assert len({len(rows) for rows in heads}) == 1
            assert all(len(set(rows)) == len(rows) for rows in heads)
        layers = [n[0] for n in counts(kept, 8)]
        assert sum(layers) == 16 * LAYERS
        assert len(set(layers)) > 1


def test_dynamickv_with_r_max_1_is_snapkv() -> None:
    assert kept_by(DYNAMICKV + ",r_max=1.0,pooling=max") == kept_by(SNAPKV)


def test_dynamickv_gives_equal_layers_equal_counts() -> None:
    own = torch.rand(1, KV_HEADS, 50, generator=torch.Generator().manual_seed(1))
    assert DynamicKV().counts(own.expand(6, -1, -1), 12) == [12] * 6
    scores = own.repeat(6, 1, 1)
    scores[4] *= 100  # everything at the top is here, up to the cap
    assert DynamicKV(r_max=3).counts(scores, 12)[4] == 36
    assert DynamicKV(r_max=100).counts(scores, 12)[4] == 50  # no more than there are


# --- chunkkv ----------------------------------------------------------------------------------------------------------


def test_chunkkv_of_single_tokens() -> None:
    record, cache = compress("chunkkv@budget=24,window=8,length=1")
    for layer, heads in zip(oracle.layers(record), kept_of(cache), strict=True):
        row = oracle.rows_of_last_queries(layer, 8).sum(axis=(0, 1))[: PROMPT - 8]
        assert heads == [oracle.best(row, 16) + list(range(PROMPT - 8, PROMPT))] * KV_HEADS


def test_chunkkv_keeps_complete_runs() -> None:
    for seed in range(6):
        for heads in kept_by("chunkkv@budget=30,window=8,length=7", seed):
            early = [p for p in heads[0] if p < PROMPT - 8]
            chunks = {p // 7 for p in early}
            assert len(chunks) == 3
            assert early == [p for p in range(PROMPT - 8) if p // 7 in chunks]
            assert len(early) == 21 - 4 * (7 in chunks)  # the last chunk of the 52 tokens has 3


@pytest.mark.parametrize("reuse", [1, 2, 3])
def test_chunkkv_reuses_positions(reuse: int) -> None:
    kept = kept_by(f"chunkkv@budget=30,window=8,length=4,reuse={reuse}")
    fresh = kept_by("chunkkv@budget=30,window=8,length=4")
    assert kept == [fresh[i - i % reuse] for i in range(LAYERS)]
    assert len({str(heads) for heads in fresh}) == LAYERS


def test_chunkkv_without_room_for_a_chunk_keeps_the_window() -> None:
    assert kept_by("chunkkv@budget=12,window=8,length=5") == [[list(range(52, 60))] * KV_HEADS] * LAYERS


# --- corm -------------------------------------------------------------------------------------------------------------


def lookup(rows: list[list[float]]) -> Tensor:
    """Queries or keys ``[1, n, 32]`` with chosen first components."""
    out = torch.zeros(1, len(rows), HEAD_DIM)
    out[0, :, : len(rows[0])] = torch.tensor(rows)
    return out


def corm_layer(keys: Tensor, queries: Tensor, options: str) -> Any:
    """One head's layer after a prompt with these keys and last queries."""
    method = resolve(f"corm@{options}")
    observed = {LastQueries(method.window): queries[:, -method.window :]}  # type: ignore[attr-defined]
    record = LayerRecord(0, 1, keys, keys, AttentionRule(1.0), observed)
    return method.layer(record, SHAPE)  # type: ignore[attr-defined]


def test_corm_finds_all_of_uniform_attention_important() -> None:
    zeros = torch.zeros(1, 40, HEAD_DIM)
    layer = corm_layer(zeros, zeros, "window=5,recent=3")
    for position in range(40, 75):
        layer.append(zeros[:, :1], zeros[:, :1])
        layer.attend(zeros[:, :1], AttentionRule(1.0))
        assert layer.head_positions(0).tolist() == list(range(position + 1))


@pytest.mark.parametrize(("window", "recent"), [(6, 1), (6, 4), (3, 9)])
def test_corm_drops_an_unseen_key_at_step_w_exactly(window: int, recent: int) -> None:
    shown, unseen = lookup([[1.0]]), lookup([[-1.0]])
    query = lookup([[60.0]])
    keys = shown.repeat(1, 20, 1)
    layer = corm_layer(keys, query.repeat(1, 20, 1), f"window={window},recent={recent}")
    assert layer.head_positions(0).tolist() == list(range(20))
    layer.append(unseen, unseen)  # position 20: its own query is the first that finds it minor
    layer.attend(query, AttentionRule(1.0))
    judged = 1
    while judged < max(window, recent) + 3:
        there = 20 in layer.head_positions(0).tolist()
        assert there == (judged < max(window, recent + 1)), f"after {judged} queries"
        layer.append(shown, shown)
        layer.attend(query, AttentionRule(1.0))
        judged += 1
    assert layer.entries == layer.seen - 1  # nothing else left


def test_corm_evicts_after_the_prompt_only_what_the_last_queries_ignore() -> None:
    keys = lookup([[1.0]]).repeat(1, 30, 1)
    keys[0, [3, 8, 27]] = lookup([[-1.0]])[0, 0]
    query = lookup([[60.0]]).repeat(1, 30, 1)
    layer = corm_layer(keys, query, "window=4,recent=2")
    assert layer.head_positions(0).tolist() == [p for p in range(30) if p not in (3, 8)]  # 27 was judged three times
    assert corm_layer(keys[:, :3], query[:, :3], "window=4,recent=1").entries == 3  # not yet w queries


def test_corm_keeps_the_recent_ones() -> None:
    pair, method = harness.models("llama"), resolve("corm@window=4,recent=7")
    ids = tokens(PROMPT + 20, seed=3)
    cache = method.compress(harness.prefill(pair, ids[:PROMPT], method))
    for position in range(PROMPT, PROMPT + 20):
        for heads in kept_of(cache):
            assert all(set(range(position - 7, position)) <= set(rows) for rows in heads)
        harness.force(pair, cache, ids[position : position + 1])


# --- expected attention -----------------------------------------------------------------------------------------------


def moments_and_record(seed: int = 0, rope: Rope | None = None) -> tuple[QueryMoments, LayerRecord]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(HEADS, HEAD_DIM, generator=generator)
    factor = torch.randn(HEADS, HEAD_DIM, HEAD_DIM, generator=generator) / 5
    moments = QueryMoments(mean, factor @ factor.transpose(1, 2), 50, rope)
    key, value = torch.randn(2, KV_HEADS, 50, HEAD_DIM, generator=generator)
    return moments, LayerRecord(0, 1, key, value, AttentionRule(SCALING), {QueryStatistics(4): moments})


def plain_rope(scaling: float = 1.0) -> Rope:
    return Rope(10000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM), scaling, False)


@pytest.mark.parametrize("scaling", [1.0, 1.3])
def test_without_spread_it_is_the_attention_of_the_mean_query(scaling: float) -> None:
    rope = plain_rope(scaling)
    moments, record = moments_and_record(rope=rope)
    still = dataclasses.replace(moments, covariance=torch.zeros_like(moments.covariance))
    record = dataclasses.replace(record, observed={QueryStatistics(4): still})
    scores = ExpectedAttention(future=1, value_norm=False).score(record)
    query = rope.apply(moments.mean[:, None], torch.tensor([50]))[:, 0]
    logits = torch.einsum("hd,hjd->hj", query, record.key[:, 4:].repeat_interleave(HEADS // KV_HEADS, 0)) * SCALING
    expected = torch.softmax(logits, dim=-1).view(KV_HEADS, -1, 46).mean(dim=1)
    torch.testing.assert_close(scores[:, 4:], expected)
    assert torch.isinf(scores[:, :4]).all()


def test_mean_rotation() -> None:
    rope = plain_rope()
    unit = QueryMoments(torch.zeros(1, HEAD_DIM), torch.eye(HEAD_DIM)[None], 9, rope)
    _, one = ExpectedAttention(future=1).rotated(unit, 100)
    torch.testing.assert_close(one[0], torch.eye(HEAD_DIM), atol=1e-5, rtol=0)  # orthogonal: R I R^T = I
    _, many = ExpectedAttention(future=20000).rotated(unit, 100)
    shrunk = many[0].diagonal()
    assert shrunk[0] < 1e-4  # the fastest pair averages out
    assert shrunk[HEAD_DIM // 2 - 1] > 0.1  # the slowest does not
    matrices = torch.from_numpy(np.mean([oracle.rotation(100 + i) for i in range(64)], axis=0)).float()
    moments, _ = moments_and_record(rope=rope)
    mean, covariance = ExpectedAttention(future=64).rotated(moments, 100)
    torch.testing.assert_close(mean, moments.mean @ matrices.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(covariance, matrices @ moments.covariance @ matrices.T, atol=1e-4, rtol=1e-4)


def test_scores_do_not_depend_on_the_order_within_a_group() -> None:
    moments, record = moments_and_record(rope=plain_rope())
    order = torch.tensor([2, 0, 3, 1, 7, 6, 5, 4])
    swapped = dataclasses.replace(moments, mean=moments.mean[order], covariance=moments.covariance[order])
    again = dataclasses.replace(record, observed={QueryStatistics(4): swapped})
    torch.testing.assert_close(ExpectedAttention().score(record), ExpectedAttention().score(again))
    mixed = torch.tensor([4, 1, 2, 3, 0, 5, 6, 7])
    other = dataclasses.replace(moments, mean=moments.mean[mixed], covariance=moments.covariance[mixed])
    different = dataclasses.replace(record, observed={QueryStatistics(4): other})
    assert not torch.allclose(ExpectedAttention().score(record), ExpectedAttention().score(different))


def test_a_layer_without_rotation_is_not_rotated() -> None:
    moments, record = moments_and_record(rope=None)
    mean, covariance = ExpectedAttention().rotated(moments, 50)
    assert torch.equal(mean, moments.mean)
    assert torch.equal(covariance, moments.covariance)
    assert ExpectedAttention().score(record).shape == (KV_HEADS, 50)


@pytest.mark.parametrize("chunk", [None, 7, 1])
def test_query_moments_are_those_of_the_queries_before_rotation(chunk: int | None) -> None:
    pair, ids = harness.models("qwen2"), tokens(PROMPT, seed=5)
    method = ExpectedAttention(n_sink=3)
    record = harness.prefill(pair, ids, method, chunk=chunk)
    for i, plain in enumerate(oracle.PlainQueries(pair, ids).layers):
        moments: QueryMoments = record.layer(i).observed[QueryStatistics(3)]
        own = plain[:, 3:]
        assert moments.count == PROMPT - 3
        np.testing.assert_allclose(moments.mean, own.mean(axis=1), atol=2e-5)
        for head in range(HEADS):
            np.testing.assert_allclose(moments.covariance[head], np.cov(own[head].T, bias=True), atol=2e-4)


def test_a_prompt_of_sinks_has_no_moments() -> None:
    pair = harness.models("llama")
    record = harness.prefill(pair, tokens(3), ExpectedAttention())
    assert record.layer(0).observed[QueryStatistics(4)] is None
    assert ExpectedAttention().compress(record).entries == 3


# --- lighttransfer ----------------------------------------------------------------------------------------------------

LIGHT = "lighttransfer@n_sink=2,n_recent=18"


def is_lazy(spec: str, seed: int = 2) -> list[bool]:
    return [len(heads[0]) == 20 for heads in kept_by(spec, seed)]


def test_lazy_layers_by_number() -> None:
    record = harness.prefill(harness.models("llama"), tokens(PROMPT, seed=2), resolve(LIGHT))
    scores = oracle.lazy_scores(resolve(LIGHT), record)
    order = sorted(range(LAYERS), key=lambda i: -scores[i])
    for count in range(LAYERS + 2):
        assert is_lazy(f"{LIGHT},lazy_layers={count}") == [i in order[:count] for i in range(LAYERS)]
    assert is_lazy(LIGHT) == [i in order[: LAYERS // 2] for i in range(LAYERS)]


def test_lazy_layers_by_threshold() -> None:
    assert not any(is_lazy(f"{LIGHT},theta=1.0"))
    assert all(is_lazy(f"{LIGHT},theta=0.0"))
    assert is_lazy(f"{LIGHT},theta=0.0,keep_last=2") == [True, True, False, False]
    record = harness.prefill(harness.models("llama"), tokens(PROMPT, seed=2), resolve(LIGHT))
    middle = sorted(oracle.lazy_scores(resolve(LIGHT), record))[1] + 1e-4
    assert sum(is_lazy(f"{LIGHT},theta={middle:.6f}")) == 2


@pytest.mark.parametrize("queries", [1, 5, 32, 80])
def test_lazy_scores(queries: int) -> None:
    method = resolve(f"{LIGHT},queries={queries}")
    for family in ("llama", "mistral"):
        record = harness.prefill(harness.models(family), tokens(PROMPT, seed=2), method)
        scores = [method.lazy_score(layer) for layer in oracle.layers(record)]  # type: ignore[attr-defined]
        assert scores == pytest.approx(oracle.lazy_scores(method, record), abs=1e-6)
        assert all(0 < score < 1 for score in scores)
    wide = resolve("lighttransfer@n_recent=60")
    record = harness.prefill(harness.models("llama"), tokens(PROMPT, seed=2), wide)
    assert wide.lazy_score(record.layer(0)) == pytest.approx(1, abs=1e-6)  # type: ignore[attr-defined]


def test_short_prompts_are_left_alone() -> None:
    pair, method = harness.models("llama"), resolve("lighttransfer@theta=0.0,n_sink=4,n_recent=1024")
    record = harness.prefill(pair, tokens(1028), method, chunk=512)
    assert method.compress(record).nbytes == SHAPE.full_bytes(1028)
    longer = harness.prefill(pair, tokens(1029), method, chunk=512)
    cache = method.compress(longer)
    assert cache.nbytes == cache.storage_nbytes == SHAPE.full_bytes(1028)
    assert all(isinstance(layer, RingLayer) for layer in cache.layers)


def test_two_ways_to_choose_layers_are_refused() -> None:
    with pytest.raises(BadValue, match="two ways to choose layers"):
        resolve("lighttransfer@theta=0.9,lazy_layers=4")


def test_lazy_layers_of_a_trained_hybrid() -> None:
    assert is_lazy(f"{LIGHT},fixed=1/3") == [False, True, False, True]
    assert resolve(f"{LIGHT},fixed=1/3").observes() == frozenset()
    with pytest.raises(BadValue, match="nothing is left to choose"):
        resolve("lighttransfer@fixed=1/3,theta=0.9")
    with pytest.raises(ModelError, match="layer 9"):
        resolve("lighttransfer@fixed=1/9").check(SHAPE)
