"""h2o, h2o-longctx, snapkv, pyramidkv, tova, vatp, knorm, keydiff and random, beyond the acceptance harness.

The numbers in the names are those of the check lists in the methods' specification.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import evict_a_replay as again
import harness
import numpy as np
import pytest
import torch
from cases_evict_a import h2o_rule, pooled, snap, tova_rule, vatp_rule, window_rows
from harness import HEADS, KV_HEADS, LAYERS, SHAPE, models, prefill, tokens
from torch import Tensor

from lcbench.errors import BadValue
from lcbench.kv import scores, weights
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.layer import DenseLayer
from lcbench.kv.observe import ColumnSums, LastQueries
from lcbench.kv.record import LayerRecord, PrefillRecord, take
from lcbench.methods.base import Method, top_positions
from lcbench.methods.registry import resolve
from lcbench.models import adapter
from lcbench.models.rule import AttentionRule
from tiny import tiny_model

OURS = ("h2o", "h2o-longctx", "snapkv", "pyramidkv", "tova", "vatp", "knorm", "keydiff", "random")
GROUP = HEADS // KV_HEADS


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def eager_attention(family: str, ids: Tensor) -> list[Tensor]:
    """Softmax weights ``[H, L, L]`` of each layer, as transformers' eager attention returns them."""
    with torch.inference_mode():
        return [a[0] for a in models(family).plain(ids[None], output_attentions=True).attentions]


def kept(cache: KVCache, layer: int) -> list[list[int]]:
    """Positions that each head of a layer holds."""
    held: list[list[int]] = cache.layers[layer].positions().tolist()
    return held


def with_values(record: PrefillRecord, change: Callable[[Tensor], Tensor]) -> PrefillRecord:
    """The record as it would be had the values been others; what was observed stays."""
    return _changed(record, lambda key, value: (key, change(value)))


def with_keys(record: PrefillRecord, change: Callable[[Tensor], Tensor]) -> PrefillRecord:
    return _changed(record, lambda key, value: (change(key), value))


def _changed(record: PrefillRecord, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> PrefillRecord:
    layers = [record.layer(i) for i in range(LAYERS)]
    cache = KVCache([DenseLayer(*change(layer.key.clone(), layer.value.clone())) for layer in layers])
    return replace(record, cache=cache)


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("window", [1, 5, 60, 100])
def test_snapkv_4_window_scores_are_rows_of_the_eager_matrix(family: str, window: int) -> None:
    ids = tokens(60, seed=21)
    record = prefill(models(family), ids, resolve(f"snapkv@window={window},kernel=1"))
    for i, matrix in enumerate(eager_attention(family, ids)):
        rows = matrix.double()[:, max(0, 60 - window) :]
        assert torch.allclose(scores.window_sums(record.layer(i), window).double(), rows.sum(dim=1), atol=2e-5)
        cut = scores.window_scores(record.layer(i), window)
        assert cut.dtype == torch.float32
        assert torch.allclose(cut.double(), rows.sum(dim=1)[:, : max(0, 60 - window)], atol=2e-5)
        mean = scores.window_scores(record.layer(i), window, mean=True)
        assert torch.allclose(mean * rows.shape[1], cut, atol=1e-5)


def test_a_longer_observation_serves_a_shorter_window() -> None:
    ids = tokens(60, seed=22)
    short, long = (prefill(models("llama"), ids, resolve(f"snapkv@window={w}")) for w in (5, 20))
    for i in range(LAYERS):
        assert torch.equal(scores.window_scores(short.layer(i), 5), scores.window_scores(long.layer(i), 5))
    with pytest.raises(KeyError, match="LastQueries"):
        scores.window_scores(short.layer(0), 6)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_last_query_weights_are_the_last_row(family: str) -> None:
    ids = tokens(60, seed=23)
    record = prefill(models(family), ids, resolve("tova"))
    for i, matrix in enumerate(eager_attention(family, ids)):
        row = scores.last_query_weights(record.layer(i))
        assert torch.allclose(row, matrix[:, -1], atol=1e-5)
        assert torch.allclose(row.sum(dim=1), torch.ones(HEADS))


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("chunk", [None, 1, 7, 59])
def test_column_sums_are_those_of_the_eager_matrix(family: str, chunk: int | None) -> None:
    ids = tokens(60, seed=24)
    record = prefill(models(family), ids, resolve("h2o"), chunk=chunk)
    for i, matrix in enumerate(eager_attention(family, ids)):
        sums = scores.column_sums(record.layer(i))
        assert sums.dtype == torch.float32
        assert torch.allclose(sums.double(), matrix.double().sum(dim=1), atol=1e-4)
        assert torch.allclose(sums.sum(dim=1), torch.full((HEADS,), 60.0))


def test_a_forked_record_still_knows_the_model_s_sliding_window() -> None:
    record = prefill(models("mistral"), tokens(60), resolve("snapkv@window=5"))
    forked = replace(record, cache=record.cache.fork())
    for i in range(LAYERS):
        assert forked.layer(i).window == harness.WINDOW
        assert torch.equal(scores.window_scores(forked.layer(i), 5), scores.window_scores(record.layer(i), 5))
    assert prefill(models("llama"), tokens(60)).layer(0).window is None


@pytest.mark.parametrize("window", [None, 9])
def test_weights_come_in_small_blocks_that_cover_all(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(HEADS, 40, 16), torch.randn(KV_HEADS, 50, 16)
    whole = weights.weight_sums(query, key, AttentionRule(0.3, window))
    monkeypatch.setattr(weights, "ELEMENTS", 3 * GROUP * 50)
    covered = torch.zeros(HEADS, 40)
    for block in weights.weight_blocks(query, key, AttentionRule(0.3, window)):
        assert block.weights.numel() <= 3 * GROUP * 50
        if window is not None:
            assert block.weights.shape[2] <= window + 2
        covered[block.heads, block.rows] += block.weights.sum(dim=-1)
    assert torch.allclose(covered, torch.ones(HEADS, 40))
    assert torch.allclose(weights.weight_sums(query, key, AttentionRule(0.3, window)), whole, atol=1e-5)
    monkeypatch.setattr(weights, "ELEMENTS", 1)
    assert all(block.weights.shape[1] == 1 for block in weights.weight_blocks(query, key, AttentionRule(0.3)))


def test_half_precision_scores_are_computed_in_fp32() -> None:
    query, key = torch.randn(8, 40, 16).bfloat16(), torch.randn(2, 50, 16).bfloat16()
    sums = weights.weight_sums(query, key, AttentionRule(0.3))
    assert torch.equal(sums, weights.weight_sums(query.float(), key.float(), AttentionRule(0.3)))
    assert scores.group_reduce(sums, 2).dtype == torch.float32


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 20])
def test_pooling(kind: Any, kernel: int, n: int) -> None:
    x = torch.rand(3, n) - 0.5
    expected = pooled(x.double().numpy(), kernel, kind)
    assert np.allclose(scores.pool(x, kernel, kind).double().numpy(), expected, atol=1e-6)


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        scores.pool(torch.rand(1, 9), 4, "max")
    for name in ("snapkv", "pyramidkv"):
        with pytest.raises(BadValue, match=f"{name}@kernel=4"):
            resolve(f"{name}@kernel=4")


def test_groups_are_reduced_over_neighbouring_heads() -> None:
    x = torch.arange(8.0)[:, None] ** 2
    assert scores.group_reduce(x, 2).tolist() == [[3.5], [31.5]]
    assert scores.group_reduce(x, 2, "max").tolist() == [[9.0], [49.0]]
    assert scores.group_reduce(x, 8).tolist() == x.tolist()


def test_take_copies_for_query_heads() -> None:
    layer = prefill(models("llama"), tokens(20)).layer(1)
    index = torch.stack([torch.randperm(20)[:5].sort().values for _ in range(HEADS)])
    key, value = take(layer, index)
    for head in range(HEADS):
        assert torch.equal(key[head], layer.key[head // GROUP, index[head]])
        assert torch.equal(value[head], layer.value[head // GROUP, index[head]])


# --- rules that act while decoding, at every step --------------------------------------------------------------------

STEPWISE: list[tuple[str, again.Make]] = [
    ("h2o@heavy=13,recent=7", h2o_rule),
    ("h2o@budget=0.4", h2o_rule),
    ("h2o@budget=70", h2o_rule),
    ("h2o@heavy=9,recent=0.1,granularity=query", h2o_rule),
    ("h2o@budget=70,granularity=query", h2o_rule),
    ("vatp@budget=20,sinks=2,window=9,recent=4", vatp_rule),
    ("vatp@budget=20,sinks=2,base=h2o", vatp_rule),
    ("vatp@budget=20,sinks=12,base=h2o,granularity=query", vatp_rule),
    ("tova@budget=16", tova_rule),
    ("tova@budget=70,keep_last=true", tova_rule),
    ("tova@budget=0.2,keep_last=true", tova_rule),
    ("tova@budget=0.2,decode=false", tova_rule),
]


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize(("spec", "make"), STEPWISE, ids=[spec for spec, _ in STEPWISE])
def test_h2o_3_tova_2_what_is_held_is_what_the_rule_says_at_every_step(
    spec: str, make: again.Make, family: str
) -> None:
    pair, method, ids = models(family), resolve(spec), tokens(60 + 64, seed=31)
    watcher, held, logits = again.watched(pair, method, ids, 60)
    masks = []
    for i in range(LAYERS):
        query, key, value = watcher.layer(i)
        rows, expected = again.replay(make(method, query, key, value, 60, pair.window), query, key, 60, pair.window)
        masks.append(rows)
        for step, (mine, theirs) in enumerate(zip(held, expected, strict=True)):
            assert mine[i].expand(len(theirs), -1).tolist() == theirs, f"layer {i} after {step} tokens"
        gone: list[set[int]] = [set() for _ in expected[0]]
        for step, heads in enumerate(expected):
            for head, positions in enumerate(heads):
                assert not gone[head] & set(positions), "an evicted entry came back"
                gone[head] |= set(range(60 + step)) - set(positions)
    assert harness.largest_difference(logits, harness.masked_logits(pair, ids, masks)[60:]) < 1e-4


@pytest.mark.parametrize("name", ["h2o", "vatp"])
def test_query_heads_that_choose_for_themselves_are_charged(name: str) -> None:
    method = resolve(f"{name}@budget=16,granularity=query")
    for prompt in (60, 10):
        left = method.compress(prefill(models("llama"), tokens(prompt, seed=32), method))
        for step in range(10):
            held = min(prompt + step, 16)
            entry = 2 * SHAPE.head_dim * 4 * HEADS + 4 * HEADS + (4 * HEADS if name == "vatp" else 0)
            assert left.nbytes == LAYERS * held * entry
            assert left.layers[0].positions().shape == (HEADS, held)
            harness.force(models("llama"), left, tokens(1, seed=step))


def test_query_heads_choose_otherwise_than_their_group() -> None:
    ids = tokens(60, seed=33)
    for name in ("snapkv@window=4,budget=20", "h2o@budget=20", "vatp@budget=20,sinks=2"):
        per_head = resolve(name + ",granularity=query")
        sets = kept(per_head.compress(prefill(models("llama"), ids, per_head)), 2)
        assert len({tuple(s) for s in sets[:GROUP]}) > 1


# --- h2o -------------------------------------------------------------------------------------------------------------


def test_h2o_limits() -> None:
    def limits(spec: str, prompt: int) -> tuple[int, int] | None:
        found = resolve(spec).limits(prompt)  # type: ignore[attr-defined]
        return None if found is None else (found.heavy, found.recent)

    assert limits("h2o@heavy=0.1,recent=0.1", 7500) == (750, 750)
    assert limits("h2o@heavy=1024,recent=1024", 7500) == (1024, 1024)
    assert limits("h2o@heavy=1024,recent=1024", 100) == (1024, 1024)
    assert limits("h2o@budget=0.2", 7500) == (750, 750)
    assert limits("h2o@budget=21", 7500) == (10, 11)
    assert limits("h2o@budget=0.5,recent=32", 1000) == (250, 32)
    assert limits("h2o@budget=0.25", 1) == (1, 1)


@pytest.mark.parametrize("spec", ["h2o@heavy=0.5,recent=0.5", "h2o@budget=1.0", "h2o@heavy=0.2,recent=0.9"])
@pytest.mark.parametrize("prompt", [1, 60, 61])
def test_h2o_1_shares_that_add_up_to_one_never_drop(spec: str, prompt: int) -> None:
    method = resolve(spec)
    left = method.compress(prefill(models("llama"), tokens(prompt), method))
    harness.force(models("llama"), left, tokens(20, seed=1))
    assert left.entries == prompt + 20
    assert left.nbytes == SHAPE.full_bytes(prompt + 20)


def test_h2o_4_a_step_sees_heavy_and_recent_and_itself() -> None:
    method = resolve("h2o@heavy=13,recent=7")
    left = method.compress(prefill(models("llama"), tokens(60), method))
    seen: list[int] = []

    class Counting:
        def observe(
            self, layer: int, query: Tensor, key: Tensor, value: Tensor, start: int, store: Any, rule: AttentionRule
        ) -> None:
            seen.append(store.policy.scores.shape[1])

    for step in range(5):
        assert left.entries == 20
        harness.force(models("llama"), left, tokens(1, seed=step), watchers=[Counting()])
    assert seen == [20] * 5 * LAYERS  # after each step; 20 + itself during it, which the replay shows


@pytest.mark.parametrize("preset", ["2x", "4x", "6x", "8x"])
def test_presets_give_the_paper_s_numbers_of_tokens(preset: str) -> None:
    method: Any = resolve(f"h2o-longctx@preset={preset}")
    expected = {"2x": 1875, "4x": 937, "6x": 622, "8x": 468}[preset]
    limits = method.limits(7500 + 1)
    assert (limits.heavy, limits.recent) == (expected, expected)
    assert method.limits(7500) == limits


@pytest.mark.parametrize("preset", ["2x", "8x"])
def test_h2o_2_the_first_decode_forward_of_longctx_is_that_of_the_full_cache(preset: str) -> None:
    pair, ids = models("llama"), tokens(80, seed=41)
    record = prefill(pair, ids[:60], resolve("h2o"))
    full = harness.force(pair, record.cache.fork(), ids[60:])
    bench = harness.force(pair, resolve(f"h2o-longctx@preset={preset}").compress(record), ids[60:])
    paper = harness.force(pair, resolve("h2o@heavy=0.125,recent=0.125").compress(record), ids[60:])
    assert harness.largest_difference(bench[0], full[0]) < 1e-4  # not to the bit: the full cache decodes in a stack
    assert harness.largest_difference(bench[1], full[1]) > 1e-2
    assert harness.largest_difference(paper[0], full[0]) > 1e-2


def test_h2o_4_longctx_opens_exactly_heavy_recent_and_the_new_key() -> None:
    method: Any = resolve("h2o-longctx@heavy=0.2,recent=0.1")
    left = method.compress(prefill(models("llama"), tokens(60), method))
    for step in range(20):
        harness.force(models("llama"), left, tokens(1, seed=step))
        for layer in left.layers:
            unmasked = (~layer.masked).sum(dim=1) + 1  # and the key that comes next
            assert unmasked.tolist() == [12 + 6 + 1] * HEADS
            assert layer.masked.shape == (HEADS, 61 + step)


def test_longctx_masks_nothing_while_everything_fits_and_with_no_recent_keys() -> None:
    for spec, prompt in (("h2o-longctx@heavy=0.9,recent=0.9", 20), ("h2o-longctx@preset=8x", 10)):
        method: Any = resolve(spec)
        left = method.compress(prefill(models("llama"), tokens(prompt), method))
        harness.force(models("llama"), left, tokens(8, seed=1))
        assert not any(layer.masked.any() for layer in left.layers)
        assert method.logical_nbytes(SHAPE, prompt) == SHAPE.full_bytes(prompt)


def test_longctx_reports_the_bytes_it_holds_and_those_it_stands_for() -> None:
    method: Any = resolve("h2o-longctx@preset=4x")
    assert method.traits.memory == "simulated"
    left = method.compress(prefill(models("llama"), tokens(60), method))
    assert left.nbytes == SHAPE.full_bytes(60)
    assert method.logical_nbytes(SHAPE, 60) == 2 * LAYERS * HEADS * SHAPE.head_dim * 4 * (7 + 7)


# --- snapkv, pyramidkv -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", ",reduce=max", ",pooling=avg", ",reduce=max,granularity=query"])
@pytest.mark.parametrize("kernel", [1, 7])
def test_snapkv_2_3_best_scores_and_the_window(kernel: int, options: str) -> None:
    method: Any = resolve(f"snapkv@window=6,kernel={kernel},budget=20{options}")
    record = prefill(models("qwen2"), tokens(70, seed=51), method)
    left = method.compress(record)
    for i in range(LAYERS):
        expected = snap(record.layer(i), method)
        for head, held in enumerate(kept(left, i)):
            assert held[-6:] == list(range(64, 70))
            assert max(held[:-6]) < 64
            order = sorted(range(64), key=lambda j, row=expected[head].tolist(): (-row[j], j))  # type: ignore[misc]
            assert held[:-6] == sorted(order[:14])


def test_snapkv_3_no_score_outweighs_the_window() -> None:
    query, value = torch.ones(HEADS, 4, 2), torch.zeros(KV_HEADS, 20, 2)
    key = torch.zeros(KV_HEADS, 20, 2)
    key[:, [3, 9]] = 30.0  # all the attention of the four last queries: a score of 2 each
    layer = LayerRecord(0, 1, key, value, AttentionRule(1.0), {LastQueries(4): query})
    method: Any = resolve("snapkv@window=4,kernel=1,budget=5")
    assert scores.window_scores(layer, 4)[0, 3] == 2.0
    assert top_positions(method.score(layer), 5).tolist() == [[3, 16, 17, 18, 19]] * KV_HEADS


def test_snapkv_s_window_fits_any_budget() -> None:
    method: Any = resolve("snapkv@budget=0.1")
    assert [method.kept_tokens(n) for n in (20, 33, 34, 200, 1000)] == [20, 33, 33, 33, 100]
    assert resolve("snapkv@budget=5").compress(prefill(models("llama"), tokens(60), method)).entries == 33


def budgets(spec: str, prompt: int, layers: int) -> list[int]:
    found: list[int] = resolve(spec).layer_budgets(prompt, layers)  # type: ignore[attr-defined]
    return found


def test_pyramidkv_gives_the_published_budgets() -> None:
    reference = budgets("pyramidkv@budget=512", 7500, 32)
    assert (reference[0], reference[-1], sum(reference)) == (991, 61, 16832)
    assert sum(budgets("pyramidkv@budget=128", 7500, 32)) == 4272
    assert sum(budgets("pyramidkv@budget=64", 7500, 32)) == 2288
    assert sum(budgets("pyramidkv@budget=16", 7500, 32)) == 768


def test_pyramidkv_3_the_three_regimes() -> None:
    assert budgets("pyramidkv@budget=512", 511, 32) == [511] * 32
    assert budgets("pyramidkv@budget=512", 512, 32) == [512] * 32
    assert budgets("pyramidkv@budget=512", 513, 32) == [512] * 32
    assert budgets("pyramidkv@budget=512", 1007, 32) == [512] * 32
    assert budgets("pyramidkv@budget=512", 1008, 32)[0] == 2 * 504 - 504 // 20 + 8
    clipped = budgets("pyramidkv@budget=512,beta=1000", 1008, 32)  # max = 1000 = L - w, min = 1008 - 1000
    assert clipped == [1000 - i * (992 // 31) + 8 for i in range(32)]
    assert clipped[0] == 1008


def test_pyramidkv_1_equal_shares_are_snapkv() -> None:
    record = prefill(models("llama"), tokens(60), resolve("snapkv@window=8"))
    pyramid = resolve("pyramidkv@beta=1,budget=20").compress(record)
    snapkv = resolve("snapkv@window=8,budget=20").compress(record)
    for i in range(LAYERS):
        assert kept(pyramid, i) == kept(snapkv, i)


@pytest.mark.parametrize("layers", [1, 2, 4, 32])
def test_pyramidkv_2_4_budgets_fall_and_add_up(layers: int) -> None:
    for prompt in (30, 60, 133, 1000, 7500):
        for mean in (9, 10, 16, 27, 64, 200, 512):
            for beta in (1, 3, 20, 1000):
                found = budgets(f"pyramidkv@budget={mean},beta={beta}", prompt, layers)
                if mean >= prompt:
                    assert found == [prompt] * layers
                    continue
                assert found == sorted(found, reverse=True)
                assert min(found) >= 9
                assert max(found) <= prompt
                assert abs(sum(found) - layers * mean) <= layers * (layers - 1)


@pytest.mark.parametrize("layers", [1, 2, 4, 7, 32])
def test_pyramidkv_ratios_add_up_exactly(layers: int) -> None:
    for prompt in (30, 60, 133, 1000, 7500):
        for ratio in (0.05, 0.125, 0.17, 0.25, 0.5, 0.9):
            for beta in (1, 3, 20, 1000):
                found = budgets(f"pyramidkv@budget={ratio},beta={beta}", prompt, layers)
                assert sum(found) == layers * max(int(ratio * prompt + 1e-9), 9)
                assert found == sorted(found, reverse=True)
                assert 9 <= min(found) <= max(found) <= prompt


def test_pyramidkv_s_layers_fit_each_prompt_anew() -> None:
    method: Any = resolve("pyramidkv@budget=0.25,window=4,beta=4")
    long, short = (prefill(models("llama"), tokens(n, seed=n), method) for n in (100, 40))
    for record in (long, short, long):
        left = method.compress(record)
        found = budgets("pyramidkv@budget=0.25,window=4,beta=4", record.length, LAYERS)
        assert [layer.entries for layer in left.layers] == found
        assert left.entries == record.length // 4
        assert left.storage_nbytes == left.nbytes == SHAPE.full_bytes(1) * sum(found) // LAYERS


def test_pyramidkv_kvpress_budgets() -> None:
    spec = "pyramidkv@variant=kvpress,window=64,kernel=5,pooling=avg"
    for prompt, ratio, layers in ((7500, 0.5, 32), (7500, 0.125, 32), (3000, 0.4, 28), (6001, 0.25, 4)):
        mean = prompt * ratio
        high, low = 2 * mean - mean / 20, mean / 20
        if high >= prompt - 64:
            high, low = prompt - 64, 2 * mean - (prompt - 64)
        expected = [round(float(x)) for x in np.linspace(high, low, layers)]
        if low < 64:
            expected = [round(mean)] * layers
        assert budgets(f"{spec},budget={ratio}", prompt, layers) == expected
    assert budgets(f"{spec},budget=0.125", 7500, 32) == [938] * 32  # 47 would not hold the window of 64
    assert budgets(f"{spec},budget=0.25", 7500, 32)[0] == 3656
    left = resolve("pyramidkv@variant=kvpress,window=2,budget=0.4").compress(
        prefill(models("llama"), tokens(60), resolve("snapkv@window=2"))
    )
    assert [layer.entries for layer in left.layers] == budgets("pyramidkv@variant=kvpress,window=2,budget=0.4", 60, 4)


# --- tova ------------------------------------------------------------------------------------------------------------


def test_tova_3_4_one_set_of_exactly_b_for_all_heads() -> None:
    method = resolve("tova@budget=16")
    left = method.compress(prefill(models("llama"), tokens(60), method))
    for step in range(40):
        for layer in left.layers:
            assert layer.positions().shape == (16,)
            assert layer.tensors().__next__().shape[1] == 16
        harness.force(models("llama"), left, tokens(1, seed=step))


def test_tova_may_drop_the_newest_token_unless_told_not_to() -> None:
    ids = tokens(60 + 64, seed=61)
    missing = {}
    for keep_last in ("false", "true"):
        method = resolve(f"tova@budget=16,keep_last={keep_last}")
        _, held, _ = again.watched(models("llama"), method, ids, 60)
        newest = [60 + step - 1 in positions for step, layers in enumerate(held) for positions in layers]
        missing[keep_last] = newest.count(False)
    assert missing["true"] == 0
    assert missing["false"] > 0


# --- vatp ------------------------------------------------------------------------------------------------------------


def test_vatp_1_values_of_equal_norm_choose_as_attention_alone() -> None:
    record = prefill(models("llama"), tokens(60), resolve("h2o"))
    equal = with_values(record, lambda value: 3 * value / value.abs().sum(dim=-1, keepdim=True))
    vatp = resolve("vatp@base=h2o,sinks=0,budget=20").compress(equal)
    h2o = resolve("h2o@budget=20").compress(equal)
    assert [kept(vatp, i) for i in range(LAYERS)] == [kept(h2o, i) for i in range(LAYERS)]
    other = resolve("vatp@base=h2o,sinks=0,budget=20").compress(record)
    assert [kept(other, i) for i in range(LAYERS)] != [kept(h2o, i) for i in range(LAYERS)]


@pytest.mark.parametrize("base", ["h2o", "scissorhands"])
def test_vatp_2_a_loud_value_stays(base: str) -> None:
    method = resolve(f"vatp@base={base},sinks=0,budget=20")
    record = prefill(models("llama"), tokens(60), method)
    before = method.compress(record)
    weak = next(j for j in range(40) if j not in kept(before, 3)[1])

    def louder(value: Tensor) -> Tensor:
        value[1, weak] *= 1000
        return value

    after = method.compress(with_values(record, louder))
    assert weak in kept(after, 3)[1]


def test_vatp_3_sinks_stay_as_long_as_there_is_room() -> None:
    method = resolve("vatp@base=h2o,sinks=6,budget=20")
    left = method.compress(prefill(models("llama"), tokens(60), method))
    for step in range(30):
        assert all(positions[:6] == list(range(6)) for i in range(LAYERS) for positions in kept(left, i))
        harness.force(models("llama"), left, tokens(1, seed=step))
    crowded = resolve("vatp@base=h2o,sinks=20,budget=20")
    left = crowded.compress(prefill(models("llama"), tokens(60), crowded))
    assert kept(left, 0)[0] == [*range(10), *range(50, 60)]


def test_vatp_4_limits() -> None:
    def limits(spec: str, prompt: int) -> tuple[int, int] | None:
        found = resolve(spec).limits(prompt)  # type: ignore[attr-defined]
        return None if found is None else (found.heavy, found.recent)

    assert limits("vatp@budget=0.5", 1000) == (490, 10)
    assert limits("vatp@budget=0.5,base=h2o", 1000) == (250, 250)
    assert limits("vatp@budget=0.5,recent=32", 1000) == (468, 32)
    assert limits("vatp@budget=0.01", 100) == (1, 10)
    assert limits("vatp@budget=1.0", 1000) is None


def test_vatp_uses_all_rows_of_a_prompt_shorter_than_its_window() -> None:
    ids = tokens(60, seed=71)
    long = resolve("vatp@budget=20,sinks=0,window=400")
    exact = resolve("vatp@budget=20,sinks=0,window=60")
    sets = [m.compress(prefill(models("llama"), ids, m)) for m in (long, exact)]
    assert [kept(sets[0], i) for i in range(LAYERS)] == [kept(sets[1], i) for i in range(LAYERS)]
    assert torch.equal(next(iter(_policies(sets[0]))).scores, next(iter(_policies(sets[1]))).scores)


def _policies(cache: KVCache) -> Iterator[Any]:
    for layer in cache.layers:
        assert isinstance(layer, DenseLayer)
        yield layer.policy


# --- knorm, keydiff, random ------------------------------------------------------------------------------------------


def _quieter(key: Tensor) -> Tensor:
    key[0, 30] *= 0.01
    return key


def test_knorm_2_a_small_key_stays_and_keydiff_does_not_mind() -> None:
    record = prefill(models("llama"), tokens(60))
    norms = resolve("knorm@budget=10").compress(record)
    layer = next(i for i in range(LAYERS) if 30 not in kept(norms, i)[0])
    smaller = with_keys(record, _quieter)
    assert 30 in kept(resolve("knorm@budget=10").compress(smaller), layer)[0]
    for spec in ("keydiff@budget=10", "keydiff@budget=10,block=7"):
        before, after = (resolve(spec).compress(r) for r in (record, smaller))
        assert [kept(before, i) for i in range(LAYERS)] == [kept(after, i) for i in range(LAYERS)]


def test_knorm_leaves_the_first_layers_alone_on_request() -> None:
    record = prefill(models("llama"), tokens(60))
    left = resolve("knorm@budget=10,skip_layers=2").compress(record)
    assert [layer.entries for layer in left.layers] == [60, 60, 10, 10]
    assert kept(left, 2) == kept(resolve("knorm@budget=10").compress(record), 2)
    assert resolve("knorm@budget=10,skip_layers=9").compress(record).entries == 60


def keydiff_by_blocks(keys: np.ndarray, keep: int, block: int, recent: int) -> list[int]:
    """Survivors of one head, ``keys [L, d]`` fp64."""
    left = list(range(keep))
    for start in range(keep, len(keys), block):
        left += range(start, min(start + block, len(keys)))
        unit = keys[left] / np.linalg.norm(keys[left], axis=1)[:, None]
        anchor = unit.mean(axis=0)
        likeness = unit @ anchor / np.linalg.norm(anchor)
        order = sorted(range(len(left)), key=lambda r: (left[r] < len(keys) - recent, likeness[r]))
        left = sorted(left[r] for r in order[:keep])
    return left


@pytest.mark.parametrize("recent", [0, 5])
@pytest.mark.parametrize("block", [1, 7, 45, 60, 999])
def test_keydiff_3_blocks(block: int, recent: int) -> None:
    record = prefill(models("mistral"), tokens(60, seed=81))
    method = resolve(f"keydiff@budget=0.25,block={block},protect_recent={recent}")
    left = method.compress(record)
    at_once = resolve(f"keydiff@budget=0.25,protect_recent={recent}").compress(record)
    for i in range(LAYERS):
        for head, held in enumerate(kept(left, i)):
            keys = record.layer(i).key[head].double().numpy()
            assert held == keydiff_by_blocks(keys, 15, block, recent)
            assert held[15 - recent :] == list(range(60 - recent, 60))
        assert (kept(left, i) == kept(at_once, i)) or block < 45
    assert any(kept(left, i) != kept(at_once, i) for i in range(LAYERS)) or block >= 45


def test_random_follows_the_global_seed() -> None:
    record = prefill(models("llama"), tokens(60))

    def sets(seed: int) -> list[list[list[int]]]:
        torch.manual_seed(seed)
        left = resolve("random@budget=10").compress(record)
        return [kept(left, i) for i in range(LAYERS)]

    assert sets(1) == sets(1)
    assert sets(1) != sets(2)
    assert len({tuple(head) for layer in sets(3) for head in layer}) == LAYERS * KV_HEADS


def test_random_takes_every_position_equally_often() -> None:
    record = prefill(models("llama"), tokens(30))
    torch.manual_seed(5)
    counts = np.zeros(30)
    for _ in range(50):
        left = resolve("random@budget=10").compress(record)
        for i in range(LAYERS):
            for head in kept(left, i):
                counts[head] += 1
    draws = 50 * LAYERS * KV_HEADS  # 400
    assert np.abs(counts - draws / 3).max() < 4 * np.sqrt(draws / 3 * 2 / 3)


# --- all of them -----------------------------------------------------------------------------------------------------


def half_precision() -> tuple[Any, CacheShape]:
    model = tiny_model("llama", layers=2, dtype=torch.bfloat16)
    adapter.install(model)
    return model, CacheShape(2, HEADS, KV_HEADS, 32, torch.bfloat16, torch.device("cpu"))


@pytest.mark.parametrize("name", OURS)
def test_bfloat16_models(name: str) -> None:
    model, shape = half_precision()
    method: Method = resolve(f"{name}@preset=4x" if name == "h2o-longctx" else f"{name}@budget=40")
    ids = tokens(100, seed=91)
    cache = KVCache.dense(2, expected=100)
    observers = {wish: wish.observer(2, 100) for wish in method.observes()}
    positions = torch.arange(100)[None]
    logits = adapter.forward(model, ids[None], positions, [cache], [list(observers.values())])
    observed = {wish: observer.results for wish, observer in observers.items()}
    left = method.compress(PrefillRecord(cache, logits[0, -1], shape, 32**-0.5, observed))
    assert left.storage_nbytes == left.nbytes
    for step in range(20):
        position = torch.tensor([[100 + step]])
        logits = adapter.forward(model, tokens(1, seed=step)[None], position, [left])
        assert torch.isfinite(logits).all()
    assert all(t.dtype in (torch.bfloat16, torch.float32, torch.bool) for x in left.layers for t in x.tensors())


@pytest.mark.parametrize("name", ["h2o", "snapkv", "vatp", "tova", "pyramidkv"])
def test_a_prompt_read_in_chunks_keeps_the_same(name: str) -> None:
    method = resolve(f"{name}@budget=40")
    pair, ids = models("mistral"), tokens(100, seed=92)
    whole, chunked = (method.compress(prefill(pair, ids, method, chunk=chunk)) for chunk in (None, 13))
    for i in range(LAYERS):
        assert kept(whole, i) == kept(chunked, i)


def test_what_is_observed_is_what_is_needed() -> None:
    assert resolve("h2o").observes() == {ColumnSums()}
    assert resolve("vatp").observes() == {LastQueries(400)}
    assert resolve("vatp@base=h2o").observes() == {ColumnSums()}
    assert resolve("snapkv").observes() == {LastQueries(32)}
    assert resolve("pyramidkv").observes() == {LastQueries(8)}
    assert resolve("tova").observes() == {LastQueries(1)}
    assert all(not resolve(name).observes() for name in ("knorm", "keydiff", "random", "h2o-longctx"))


def test_the_oracle_of_the_window_can_fail() -> None:
    record = prefill(models("mistral"), tokens(60), resolve("snapkv@window=5"))
    right = window_rows(record.layer(0), 5, harness.WINDOW)
    wrong = window_rows(record.layer(0), 5, None)
    assert np.abs(right - wrong).max() > 1e-3
