"""The numbered checks of infllm, quest, squeezed-attention, shadowkv and longcache that the harness does not make."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import explicit_model
import harness
import pytest
import retrieve_oracle as oracle
import torch
from explicit_model import one_query, turned
from harness import HEAD_DIM, HEADS, KV_HEADS, LAYERS, SCALING, SHAPE, Models, force, largest_difference, models, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.engine.generate import check_chunk, decode
from lcbench.engine.generate import prefill as engine_prefill
from lcbench.errors import BadValue, UsageError
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer
from lcbench.kv.lowrank import low_rank
from lcbench.kv.record import PrefillRecord
from lcbench.kv.rope import LayerRope, unrotated
from lcbench.methods.registry import resolve
from lcbench.methods.retrieve.infllm import InfLLM, InfLLMLayer
from lcbench.methods.retrieve.longcache import LongCache, LongCacheLayer
from lcbench.methods.retrieve.quest import Quest, QuestLayer
from lcbench.methods.retrieve.shadowkv import ShadowKV, ShadowLayer
from lcbench.methods.retrieve.squeezed_attention import SqueezedAttention, SqueezedLayer, quantile
from lcbench.models import adapter
from lcbench.models.rule import AttentionRule
from tiny import loaded_tiny, tiny_model


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


INFLLM = "infllm@n_init=3,n_local=16,topk=2,block_size=8,repr_topk=2,exc_block_size=8"
LONGCACHE = "longcache@global_size=3,local_size=16,chunk_size=8,scope=24,align=8,mid_size=2,span_size=4,recall_clip=3"


# --- methods that read the prompt themselves -------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("spec", [INFLLM, INFLLM + ",remainder=whole", LONGCACHE, LONGCACHE + ",mid_size=0"])
def test_the_prompt_too_equals_the_reference_in_pieces_of_whole_runs(spec: str, family: str) -> None:
    """InfLLM's check 4, and LongCache's runs."""
    spec = spec.replace("mid_size=2,span_size=4,recall_clip=3,mid_size=0", "mid_size=0")
    pair, method = models(family), resolve(spec)
    ids = torch.randperm(260, generator=torch.Generator().manual_seed(1))[:80]
    rule = oracle.infllm if isinstance(method, InfLLM) else oracle.longcache
    expected = explicit_model.logits(pair.plain, ids, rule(pair, method, 70))
    for chunk in (None, 8, 24):
        record = harness.prefill(pair, ids[:70], method, chunk=chunk)
        assert largest_difference(record.logits, expected[69]) < 1e-4
        assert largest_difference(force(pair, method.compress(record), ids[70:]), expected[70:]) < 1e-4


@pytest.mark.parametrize("spec", [INFLLM, LONGCACHE])
def test_pieces_that_cut_a_run_are_refused(spec: str) -> None:
    pair, method = models("llama"), resolve(spec)
    with pytest.raises(UsageError, match="runs of 8 tokens") as error:
        harness.prefill(pair, tokens(70), method, chunk=12)
    assert "prefill_chunk" in error.value.next_step
    assert method.name in error.value.message


@pytest.mark.parametrize(
    "spec",
    [INFLLM, LONGCACHE, "streamingllm-longctx@n_init=2,n_local=10", "quest@budget=16,page_size=4,dense_layers=0",
     "squeezed-attention@obs=6,percentile=0.8", "shadowkv@budget=8,chunk_size=4,outliers=1,min_prompt=8,rank=24"],
)  # fmt: skip
def test_the_engine_reads_and_answers(spec: str) -> None:
    """Through the engine as it is, in one piece and in several."""
    loaded, method = loaded_tiny("qwen2", layers=2), resolve(spec)
    ids, answers = tokens(60, seed=3).tolist(), []
    for chunk in (None, 16):
        own = method.prefill_cache(loaded.shape(), len(ids)) if method.traits.prefill == "own" else None
        record = engine_prefill(loaded, ids, observe=method.observes(), cache=own, chunk=chunk)
        cache = method.compress(record)
        held = cache.storage_nbytes
        assert held == cache.nbytes
        answers.append((held, decode(loaded, cache, record.logits, max_new_tokens=20, min_new_tokens=20).ids))
        assert cache.seen == len(ids) + 19
    assert answers[0] == answers[1]


# --- infllm ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_infllm_without_lookups_is_a_window_first_tokens_and_what_is_left_between(family: str) -> None:
    """Check 2, with the regions in closed form: 3 first tokens, blocks of 8 that nobody sees, all at n_local - 1."""
    pair, ids, n_local = models(family), tokens(90, seed=4), 16
    method = resolve("infllm@n_init=3,n_local=16,topk=0,block_size=8,repr_topk=2,exc_block_size=1")

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = []
        for i in range(len(ids)):
            first = min(3, max(0, i - n_local))
            rest = first + max(0, i - first - n_local) // 8 * 8
            near = oracle.kept_away(i, list(range(max(0, i - n_local + 1), i + 1)), pair)
            far = oracle.kept_away(i, [*range(first), *range(rest, i - n_local + 1)], pair)
            asked = [turned(pair.plain, query[:, i : i + 1], [at])[:, 0] for at in (i, n_local - 1)]
            sections = [(asked[0], turned(pair.plain, key[:, near], near), value[:, near])]
            sections.append((asked[1], key[:, far], value[:, far]))
            rows.append(one_query(sections)[0])
        return torch.stack(rows, dim=1)

    expected = explicit_model.logits(pair.plain, ids, attention)
    record = harness.prefill(pair, ids[:50], method)
    assert largest_difference(record.logits, expected[49]) < 1e-4
    assert largest_difference(force(pair, method.compress(record), ids[50:]), expected[50:]) < 1e-4


def test_infllm_with_all_blocks_sees_everything_and_is_not_the_full_cache() -> None:
    """Check 3: the one distance of everything far away."""
    pair, ids = models("llama"), tokens(100, seed=5)
    everything = resolve(INFLLM.replace(",topk=2", ",topk=99"))
    expected = explicit_model.logits(pair.plain, ids, oracle.infllm(pair, everything, 60))[60:]
    record = harness.prefill(pair, ids[:60], everything)
    left = everything.compress(record)
    logits = force(pair, left, ids[60:])
    assert largest_difference(logits, expected) < 1e-4
    layer = left.layers[0]
    assert isinstance(layer, InfLLMLayer)
    assert layer.rest == 3 + 8 * layer.block_count == 83
    assert layer.resident_nbytes == layer.nbytes  # nothing is left out
    full = force(pair, harness.prefill(pair, ids[:60]).cache, ids[60:])
    assert largest_difference(logits, full) > 0.1


def test_infllm_reads_what_the_formula_says() -> None:
    pair = models("llama")
    left = resolve(INFLLM).compress(harness.prefill(pair, tokens(60, seed=6), resolve(INFLLM)))
    token, vector = 2 * KV_HEADS * HEAD_DIM * 4, HEADS * HEAD_DIM * 4
    for layer in left.layers:
        assert isinstance(layer, InfLLMLayer)
        assert (layer.first, layer.block_count, layer.rest) == (3, 5, 43)
        assert layer.resident_nbytes == token * (3 + 2 * 8 + 17) + 5 * vector + 4 * HEADS * 17
        assert layer.nbytes == token * 60 + 5 * vector + 4 * HEADS * 17


@pytest.mark.parametrize(
    ("preset", "length", "cap", "expected"),
    [
        ("2x", 7500, 7500, (78, 2520, 9)),
        ("4x", 9999, 7500, (39, 1324, 4)),
        ("6x", 7500, None, (26, 865, 3)),
        ("8x", 7500, 7500, (19, 662, 2)),
        ("2x", 31500, 31500, (330, 10428, 39)),
        ("4x", 31500, 31500, (165, 5278, 19)),
        ("6x", 31500, None, (112, 3579, 13)),
        ("8x", 50000, 31500, (82, 2703, 9)),
        ("2x", 2000, 7500, (21, 723, 2)),
        ("4x", 2000, None, (10, 512, 1)),
        ("6x", 2000, None, (7, 512, 0)),
        ("8x", 2000, None, (5, 512, 0)),
    ],
)
def test_infllm_presets_are_the_papers_tokens(
    preset: str, length: int, cap: int | None, expected: tuple[int, int, int]
) -> None:
    method = resolve(f"infllm@preset={preset}" + (f",cap={cap}" if cap else ""))
    assert isinstance(method, InfLLM)
    assert method.sizes(length) == expected


def test_infllm_budgets() -> None:
    assert InfLLM().sizes(100) == InfLLM().sizes(10**6) == (128, 4096, 16)
    assert InfLLM(budget=Budget(tokens=3750)).sizes(5) == (78, 2520, 9)
    assert InfLLM(budget=Budget(ratio=0.5)).sizes(7500) == (78, 2520, 9)
    assert InfLLM(preset="2x", n_init=1, topk=3).sizes(7500) == (1, 2520, 3)
    for wrong in ({"preset": "2x", "budget": Budget(tokens=9)}, {"repr_topk": 200}, {"n_local": 100}):
        with pytest.raises(BadValue, match=f"infllm@{next(iter(wrong))}"):
            InfLLM(**wrong)


# --- quest -----------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 40), page=st.integers(1, 7), new=st.integers(0, 12), seed=st.integers(0, 10**6))
def test_quest_bounds_are_never_below_a_product_of_their_page(length: int, page: int, new: int, seed: int) -> None:
    """Check 2, for full and open pages, of the prompt and after it; a page's bound is reached by no less than its own
    greatest product."""
    keys, query = numbers(2, length + new, 4, seed=seed), numbers(6, 4, seed=seed + 1)
    layer = QuestLayer(keys[:, :length].clone(), keys[:, :length].clone(), 1, page, choosers=3)
    for at in range(length, length + new):
        layer.append(keys[:, at : at + 1], keys[:, at : at + 1])
    scores = layer.scores(query, length + new)
    assert scores.shape == (6, math.ceil((length + new) / page))
    for head in range(6):
        products = keys[head // 3] @ query[head]
        for p, pages in enumerate(products.split(page)):
            assert float(scores[head, p]) >= float(pages.max()) - 1e-5


def test_quest_with_pages_of_one_token_reads_the_true_best() -> None:
    """Check 3."""
    keys, query = numbers(KV_HEADS, 50, HEAD_DIM, seed=1), numbers(HEADS, HEAD_DIM, seed=2)
    layer = QuestLayer(keys, keys, 12, 1, choosers=HEADS // KV_HEADS)
    scores = layer.scores(query, 50)
    products = torch.einsum("hd,hnd->hn", query, keys.repeat_interleave(HEADS // KV_HEADS, dim=0))
    assert torch.allclose(scores, products, atol=1e-5)
    expected = products.topk(12).indices.sort().values
    assert torch.equal(layer.places(scores, 50), expected)


def test_quest_leaves_the_first_layers_as_they_are() -> None:
    """Check 4: what enters layer 2 is that of the full cache; what enters layer 3 is not."""
    pair, ids = models("llama"), tokens(80, seed=7)
    record = harness.prefill(pair, ids[:60])
    cache = Quest(budget=Budget(tokens=12), page_size=4).compress(record)
    assert [type(layer) for layer in cache.layers] == [DenseLayer, DenseLayer, QuestLayer, QuestLayer]
    everything = Quest(budget=Budget(ratio=1.0)).compress(record)
    assert [type(layer) for layer in everything.layers] == [DenseLayer] * 4
    ours, full = harness.KeysAndValues(), harness.KeysAndValues()
    force(pair, cache, ids[60:], watchers=[ours])
    force(pair, record.cache.fork(), ids[60:], watchers=[full])
    apart = [largest_difference(a, b) for (a, _), (b, _) in zip(ours.layers(), full.layers(), strict=True)]
    assert max(apart[:3]) == 0.0
    assert apart[3] > 0.1


def test_quest_reads_what_the_formula_says() -> None:
    keys = numbers(KV_HEADS, 61, HEAD_DIM)
    token = 2 * KV_HEADS * HEAD_DIM * 4
    for choosers in (1, 4):
        layer = QuestLayer(keys, keys, 16, 4, choosers)
        assert layer.nbytes == token * 61 + token * 15
        assert layer.resident_nbytes == token * 15 + token * min(61, 16 * choosers)
    assert QuestLayer(keys, keys, 8, 4).read == 3  # never fewer than three pages
    assert QuestLayer(keys, keys, 100, 4).resident_nbytes == token * 15 + token * 61


# --- squeezed-attention ----------------------------------------------------------------------------------------------


def squeezed(method: SqueezedAttention, pair: Models, ids: Tensor, question: int = 0) -> tuple[PrefillRecord, KVCache]:
    record = replace(harness.prefill(pair, ids, method), question_tokens=question)
    return record, method.compress(record)


@pytest.mark.parametrize("coarse", [0.0, 0.1])
def test_squeezed_scores_sum_to_one_and_keep_their_share(coarse: float) -> None:
    """Checks 3 and 4: on the queries that made the threshold, over all layers and heads."""
    pair, ids = models("llama"), tokens(150, seed=8)
    method = SqueezedAttention(clusters=0.2, percentile=0.8, coarse=coarse, percentile_lower=0.6, obs=10)
    record, cache = squeezed(method, pair, ids)
    count = 130
    for level, share in ((0, 0.8), (1, 0.6))[: 2 if coarse else 1]:
        kept = []
        for i, layer in enumerate(cache.layers):
            assert isinstance(layer, SqueezedLayer)
            query = method._context_queries(record.layer(i), count)
            assert query.shape == (HEADS, 10, HEAD_DIM)
            scores = layer.scores(query, AttentionRule(SCALING), level)
            sizes = layer.levels[level].sizes
            assert int(sizes.sum()) == KV_HEADS * count
            sums = (scores * sizes.repeat_interleave(HEADS // KV_HEADS, dim=0)[:, None]).sum(dim=-1)
            assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
            kept.append(layer.key_scores(query, AttentionRule(SCALING), level) > layer.thresholds[level])
        assert len({layer.thresholds[level] for layer in cache.layers}) == 1
        fraction = float(torch.stack(kept).float().mean())
        assert abs(fraction - (1 - share)) < 0.02  # keys of a set pass together


def test_squeezed_with_one_key_a_set_scores_are_the_softmax() -> None:
    """Check 2."""
    pair, ids = models("llama"), tokens(60, seed=9)
    method = SqueezedAttention(clusters=1.0, percentile=0.5, obs=6)
    record, cache = squeezed(method, pair, ids)
    for i, layer in enumerate(cache.layers):
        assert isinstance(layer, SqueezedLayer)
        assert torch.equal(layer.levels[0].sizes, torch.ones(KV_HEADS, 48, dtype=torch.int32))
        query = method._context_queries(record.layer(i), 48)
        keys = record.layer(i).key[:, :48].repeat_interleave(HEADS // KV_HEADS, dim=0)
        expected = torch.softmax(query @ keys.transpose(1, 2) * SCALING, dim=-1).mean(dim=1)
        assert torch.allclose(layer.key_scores(query, AttentionRule(SCALING), 0), expected, atol=1e-6)


@pytest.mark.parametrize("coarse", [0.0, 0.15])
def test_squeezed_a_question_after_the_context_reads_one_set_of_keys(coarse: float) -> None:
    pair, ids = models("llama"), tokens(80, seed=10)
    more = f",coarse={coarse},percentile_lower=0.4"
    method = resolve(f"squeezed-attention@clusters=0.4,percentile=0.6,obs=6{more}")
    watcher = harness.KeysAndValues()
    record = harness.prefill(pair, ids[:60], method, watchers=[watcher])
    cache = method.compress(record)
    logits = torch.cat([force(pair, cache, ids[60:69], at_once=9, watchers=[watcher]), force(pair, cache, ids[69:])])
    seen = watcher.layers()
    joint = explicit_model.logits(pair.plain, ids, oracle.squeezed(pair, method, ids, 60, seen, joint=9))[60:]
    each = explicit_model.logits(pair.plain, ids, oracle.squeezed(pair, method, ids, 60, seen))[60:]
    assert largest_difference(logits, joint) < 1e-4
    assert largest_difference(joint, each) > 0.05


def test_squeezed_the_question_is_where_the_record_says() -> None:
    pair, ids = models("llama"), tokens(60, seed=11)
    method = SqueezedAttention(clusters=0.3, obs=6)
    for question, count in ((0, 48), (6, 48), (20, 34), (54, 0), (60, 0), (53, 1)):
        record, cache = squeezed(method, pair, ids, question)
        assert method.clustered(record) == count
        layer = cache.layers[0]
        if count == 0:
            assert isinstance(layer, DenseLayer)
            assert cache.nbytes == SHAPE.full_bytes(60)
            continue
        assert isinstance(layer, SqueezedLayer)
        assert layer.levels[0].labels.shape == (KV_HEADS, count)
        query = method._context_queries(record.layer(0), count)
        expected = next(iter(record.observed.values()))[0][:, count : count + 6]
        assert torch.equal(query, expected)


def test_squeezed_reads_what_the_formula_says() -> None:
    pair, ids = models("llama"), tokens(112, seed=12)
    _, cache = squeezed(SqueezedAttention(clusters=0.1, percentile=0.75, obs=6), pair, ids)
    layer = cache.layers[0]
    assert isinstance(layer, SqueezedLayer)
    sets = KV_HEADS * (10 * (HEAD_DIM * 4 + 4) + 4 * 100)
    assert layer.resident_nbytes == sets + 2 * KV_HEADS * HEAD_DIM * 4 * (25 + 12)
    assert layer.nbytes == sets + 2 * KV_HEADS * HEAD_DIM * 4 * 112


def test_quantile_is_numpys() -> None:
    values = numbers(1001, seed=13)
    for share in (0.0, 0.1234, 0.5, 0.9, 1.0):
        assert quantile(values, share) == pytest.approx(float(torch.quantile(values.double(), share)), abs=1e-7)
    assert quantile(torch.tensor([3.0]), 0.7) == 3.0


# --- shadowkv --------------------------------------------------------------------------------------------------------

SHADOW = "shadowkv@budget=12,rank=20,chunk_size=4,outliers=2,local_chunks=1,min_prompt=20"


def shadow(spec: str, pair: Models, ids: Tensor) -> tuple[PrefillRecord, list[ShadowLayer]]:
    method = resolve(spec)
    record = harness.prefill(pair, ids, method)
    layers = method.compress(record).layers
    assert all(isinstance(layer, ShadowLayer) for layer in layers)
    return record, layers  # type: ignore[return-value]


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-1)])
def test_shadowkv_of_full_rank_rebuilds_every_key(
    dtype: torch.dtype, close: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check 1; the logits are in the harness. Keys of the tiny models go up to 10: 1e-1 is 1e-2 of that."""
    pair = models("llama", dtype)
    record, layers = shadow(SHADOW.replace("rank=20", "rank=999"), pair, tokens(60, seed=14))
    places = torch.arange(60).expand(KV_HEADS, -1)
    for i, layer in enumerate(layers):
        rope = record.layer(i).observed[LayerRope()]
        monkeypatch.setattr("lcbench.methods.retrieve.shadowkv.observed_rope", lambda rope=rope: rope)
        key = record.layer(i).key
        assert float(key.abs().max()) > 4
        assert largest_difference(layer.rebuilt(places).float(), key.float()) < close


def test_shadowkv_errors_are_the_energy_left_out() -> None:
    """Check 2, against torch's own decomposition."""
    pair = models("llama")
    record, layers = shadow(SHADOW, pair, tokens(60, seed=15))
    for i, layer in enumerate(layers):
        plain = unrotated(record.layer(i).observed[LayerRope()], record.layer(i).key, torch.arange(60))
        joined = plain.transpose(0, 1).flatten(1).double()
        values = torch.linalg.svdvals(joined)
        error = (layer.shadow.left.double() @ layer.shadow.right.double() - joined).square().sum()
        assert float(error / values.square().sum()) == pytest.approx(
            float(values[20:].square().sum() / values.square().sum()), rel=1e-3
        )


def test_shadowkv_rotation_would_cost_rank() -> None:
    """Check 4: keys made from 16 hidden channels have rank 16 before RoPE and more after it."""
    plain = tiny_model("llama", layers=2, hidden=16)
    ours = copy.deepcopy(plain)
    adapter.install(ours)
    pair = Models("llama", ours, plain, None)
    ids, method = tokens(60, seed=16), resolve(SHADOW.replace("rank=20", "rank=16"))
    cache = KVCache.dense(2, expected=60)
    observer = LayerRope().observer(2, 60)
    adapter.forward(pair.ours, ids[None], torch.arange(60)[None], [cache], [[observer]])
    shape = replace(SHAPE, layers=2)
    record = PrefillRecord(cache, torch.zeros(1), shape, SCALING, {LayerRope(): observer.results})
    for i, layer in enumerate(method.compress(record).layers):
        assert isinstance(layer, ShadowLayer)
        key, rope = record.layer(i).key, record.layer(i).observed[LayerRope()]
        errors = []
        for matrix in (unrotated(rope, key, torch.arange(60)), key):
            joined = matrix.transpose(0, 1).flatten(1)
            left, right = low_rank(joined, 16, torch.float32)
            errors.append(float((left @ right - joined).norm() / joined.norm()))
        held = (layer.shadow.left @ layer.shadow.right).view(60, KV_HEADS, -1).transpose(0, 1)
        assert largest_difference(held, unrotated(rope, key, torch.arange(60))) < 1e-3
        assert errors[0] < 1e-4
        assert errors[1] > 0.1


@settings(max_examples=15, deadline=None)
@given(length=st.integers(24, 70), outliers=st.integers(0, 3), local=st.integers(0, 2), seed=st.integers(0, 10**6))
def test_shadowkv_sets_are_disjoint_and_together_the_prompt(length: int, outliers: int, local: int, seed: int) -> None:
    """Check 3."""
    rules = ShadowKV(budget=4, rank=4, chunk_size=4, outliers=outliers, local_chunks=local, min_prompt=0)
    key = numbers(2, length, 6, seed=seed)
    layer = ShadowLayer(key, key, low_rank(key.transpose(0, 1).flatten(1), 4, torch.float32), rules)
    chosen = layer.tokens(layer.chosen(numbers(4, 6, seed=seed + 1), AttentionRule(1.0), length + 1))
    choosable = layer.tokens(layer.ids)
    for head in range(2):
        parts = [layer.outlying[head].tolist(), list(range(layer.local_start, length)), choosable[head].tolist()]
        assert sorted(place for part in parts for place in part) == list(range(length))
        assert set(chosen[head].tolist()) <= set(parts[2])
        assert chosen.shape == (2, 4)


def test_shadowkv_outliers_are_the_chunks_least_like_their_mean() -> None:
    pair, method = models("llama"), resolve(SHADOW)
    record, layers = shadow(SHADOW, pair, tokens(60, seed=17))
    for i, layer in enumerate(layers):
        plain = unrotated(record.layer(i).observed[LayerRope()], record.layer(i).key, torch.arange(60)).double()
        expected = oracle.shadow_of(pair, method, plain)
        assert layer.outlying.tolist() == [
            [token for c in chunks for token in range(4 * c, 4 * c + 4)] for chunks in expected.outlying
        ]
        assert layer.ids.tolist() == [sorted(landmarks) for landmarks in expected.landmarks]


@pytest.mark.parametrize(
    ("prompt", "applies"),
    [(1, False), (4096, False), (4097, True), (100000, True)],
)
def test_shadowkv_leaves_short_prompts_alone(prompt: int, applies: bool) -> None:
    assert ShadowKV().applies(prompt) is applies


def test_shadowkv_leaves_prompts_alone_that_it_cannot_choose_from() -> None:
    assert ShadowKV(min_prompt=0).applies(2048) is False  # no more than the budget
    few = ShadowKV(budget=80, min_prompt=0)  # 48 outliers, 4 local chunks, 10 to choose
    assert [few.applies(8 * chunks) for chunks in (61, 62, 63)] == [False, True, True]
    with pytest.raises(BadValue, match="budget=10"):
        ShadowKV(budget=10)


def test_shadowkv_reads_what_the_formula_says() -> None:
    pair = models("llama")
    _, layers = shadow(SHADOW, pair, tokens(61, seed=18))
    wide, chunks = KV_HEADS * HEAD_DIM, 61 // 4 - 1
    local = 61 - 4 * chunks
    for layer in layers:
        fixed = 4 * 61 * 20 + 4 * 20 * wide + (chunks - 2) * (4 * wide + 4 * KV_HEADS)
        assert layer.resident_nbytes == fixed + 2 * 4 * wide * (local + 8 + 12)
        assert layer.nbytes == fixed + 2 * 4 * wide * (local + 8) + 4 * wide * 61


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_shadowkv_values_lie_in_pinned_host_memory() -> None:
    pair, method, ids = models("llama"), resolve(SHADOW), tokens(80, seed=19)
    expected = force(pair, method.compress(harness.prefill(pair, ids[:60], method)), ids[60:])
    model = copy.deepcopy(pair.ours).cuda()
    cache, observer = KVCache.dense(LAYERS, expected=60), LayerRope().observer(LAYERS, 60)
    adapter.forward(model, ids[None, :60].cuda(), torch.arange(60).cuda()[None], [cache], [[observer]])
    shape = replace(SHAPE, device=torch.device("cuda:0"))
    record = PrefillRecord(cache, torch.zeros(1), shape, SCALING, {LayerRope(): observer.results})
    left = method.compress(record)
    assert left.storage_nbytes == left.nbytes
    for layer in left.layers:
        assert isinstance(layer, ShadowLayer)
        assert layer.values.device.type == "cpu"
        assert layer.values.is_pinned()
        assert all(t.device.type == "cuda" for t in layer._kept())
    rows = []
    for position in range(60, 80):
        step = ids[position].view(1, 1).cuda()
        at = torch.tensor([[position]]).cuda()
        rows.append(adapter.forward(model, step, at, [left])[0, -1].cpu())
    assert largest_difference(torch.stack(rows), expected) < 1e-3


# --- longcache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", ["", ",original=true"])
def test_longcache_does_not_know_where_the_text_begins(more: str) -> None:
    """Check 3: the same text at positions 1000 later."""
    pair, method = models("llama"), resolve(LONGCACHE + more)
    ids = torch.randperm(260, generator=torch.Generator().manual_seed(2))[:90]
    runs = []
    for offset in (0, 1000):
        cache = method.prefill_cache(SHAPE, 60)
        positions = torch.arange(offset, offset + 90)
        adapter.forward(pair.ours, ids[None, :60], positions[None, :60], [cache])
        rows = [
            adapter.forward(pair.ours, ids[None, i : i + 1], positions[None, i : i + 1], [cache])[0, -1]
            for i in range(60, 90)
        ]
        runs.append(torch.stack(rows))
    assert largest_difference(*runs) < 2e-3  # angles near 1000 round more


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seen=st.integers(20, 200), span=st.integers(1, 12), align=st.integers(1, 9))
def test_longcache_spans_stay_in_the_middle(data: Any, seen: int, span: int, align: int) -> None:
    """Check 4: between the first and the newest tokens, around what was found, each token once, in order."""
    rules = LongCache(global_size=3, local_size=16, chunk_size=1, scope=20, align=align, span_size=span, recall_clip=5)
    layer = LongCacheLayer(rules, 1)
    low, high = layer.middle(seen)
    assert low == 3
    assert (high - low) % align == 0
    assert 16 - align <= seen - high < 16
    found = data.draw(st.lists(st.integers(low, high - 1), unique=True, max_size=5)) if high > low else []
    spans = layer.around(torch.tensor(found, dtype=torch.int64), low, high)
    covered = [j for first, stop in spans for j in range(first, stop)]
    assert covered == sorted(set(covered))
    assert set(covered) == {j for at in found for j in range(at - span // 2, at - span // 2 + span) if low <= j < high}


def test_longcache_finds_what_the_rule_finds() -> None:
    """Whole look-ups of a run, ties included: equal keys, of which the older is taken."""
    rules = LongCache(global_size=2, local_size=12, chunk_size=4, scope=14, align=4, mid_size=2, recall_clip=4)
    for seed in range(5):
        key = numbers(KV_HEADS, 60, HEAD_DIM, seed=seed).round(decimals=1)
        key[:, 20:30] = key[:, 5:15]
        query = numbers(HEADS, 60, HEAD_DIM, seed=seed + 50)
        layer = LongCacheLayer(rules, 60)
        layer.append(key, key)
        low, high = layer.middle(60)
        found = layer._found(query[:, 56:], 56, low, high, None)
        _, expected = oracle.longcache_seen(rules, query, key, (56, 60), 60)
        assert found.tolist() == expected


def test_longcache_reads_at_most_its_scope() -> None:
    layer = LongCacheLayer(LongCache(global_size=2, local_size=12, chunk_size=4, scope=20, align=4, span_size=4,
                                     recall_clip=3), 60)  # fmt: skip
    key = numbers(KV_HEADS, 60, HEAD_DIM)
    token = 2 * KV_HEADS * HEAD_DIM * 4
    layer.append(key[:, :20], key[:, :20])
    assert layer.resident_nbytes == token * 20
    layer.append(key[:, 20:], key[:, 20:])
    assert layer.resident_nbytes == token * (2 + 12 + 12)
    assert layer.nbytes == token * 60
    assert LongCache().global_size + LongCache().local_size + 32 * 127 == 8192


def test_longcache_refuses_sizes_that_overlap() -> None:
    with pytest.raises(BadValue, match="local_size=600"):
        LongCache(local_size=600)
    with pytest.raises(BadValue, match="scope=4000"):
        LongCache(scope=4000)


@pytest.mark.parametrize(
    ("spec", "chunk", "fits"),
    [
        ("infllm", 512, True),
        ("infllm", 1024, True),
        ("infllm", 100, False),
        ("em-llm@exc_block_size=64", 96, False),
        ("em-llm@exc_block_size=64", 128, True),
        ("longcache@scope=8192,chunk_size=256", 512, True),
        ("longcache@scope=8192,chunk_size=256", 300, False),
        ("full", 7, True),
    ],
)
def test_pieces_that_cut_runs_are_refused_before_any_work(spec: str, chunk: int, fits: bool) -> None:
    info = loaded_tiny("llama").info
    if fits:
        check_chunk(info, chunk, [resolve(spec)])
        return
    with pytest.raises(BadValue) as error:
        check_chunk(info, chunk, [resolve("full"), resolve(spec)])
    assert "--prefill-chunk" in error.value.next_step
