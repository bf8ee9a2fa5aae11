"""What em-llm shows beyond the harness: the prompt itself, its variants, events, boundaries and look-ups by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import events_oracle as oracle
import explicit_model
import harness
import numpy as np
import pytest
import torch
from cases_memory import EVENTS
from harness import SHAPE, force, largest_difference, models, tokens
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lcbench.engine.generate import decode
from lcbench.engine.generate import prefill as engine_prefill
from lcbench.errors import BadValue, ModelError, UsageError
from lcbench.kv.cache import KVCache
from lcbench.kv.events import Cutting, Segments, refined, sizes, split_worth
from lcbench.methods.memory.em_llm import EventCache, EventLayer, filled, neighbours
from lcbench.methods.registry import resolve
from lcbench.models import adapter
from tiny import loaded_tiny

MANY = EVENTS.replace("n_mem=0", "n_mem=500")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def read(family: str, method: Any, ids: Tensor, prompt: int, chunk: int | None = None) -> tuple[KVCache, Tensor]:
    """A prompt's cache and the logits ``[prompt, vocab]`` of all of it."""
    cache, parts = method.prefill_cache(SHAPE, prompt), []
    for start in range(0, prompt, chunk or prompt):
        piece = ids[start : min(prompt, start + (chunk or prompt))]
        positions = torch.arange(start, start + len(piece))[None]
        parts.append(adapter.forward(models(family).ours, piece[None], positions, [cache], all_logits=True)[0])
    return cache, torch.cat(parts)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize(
    "more",
    [
        ",gamma=0.5,contiguity=0.3",
        ",gamma=0.5,contiguity=5",
        ",gamma=0,refine=modularity",
        ",gamma=0,refine=conductance,refine_from=1,contiguity=0.3",
        ",segmentation=uniform",
    ],
)
def test_the_prompt_too_equals_the_reference(more: str, family: str) -> None:
    method, ids = resolve(EVENTS + more), tokens(84, seed=3)
    expected = oracle.em_llm(models(family), method, ids, 60)
    cache, logits = read(family, method, ids, 60)
    assert largest_difference(logits, expected[:60]) < 1e-4
    assert largest_difference(force(models(family), cache.fork(), ids[60:]), expected[60:]) < 1e-4
    assert isinstance(cache, EventCache)
    story = oracle.told(models(family), method, ids, 60)
    assert (cache.segments.first, cache.segments.events) == story.states(61)[-1]


def test_a_prompt_in_pieces_of_whole_runs_is_the_same_and_others_are_refused() -> None:
    method, ids = resolve(f"{EVENTS},gamma=0.5,contiguity=0.3"), tokens(70, seed=4)
    whole, logits = read("llama", method, ids, 70)
    pieces, again = read("llama", method, ids, 70, chunk=32)
    assert isinstance(whole, EventCache)
    assert isinstance(pieces, EventCache)
    assert whole.segments.events == pieces.segments.events
    assert largest_difference(logits, again) < 1e-5
    with pytest.raises(UsageError, match="runs of 16 tokens"):
        read("llama", method, ids, 70, chunk=20)


def test_rows_of_a_batch_are_read_as_they_are_alone() -> None:
    """Prompts of one length side by side, and decoding in one batch with a plain cache."""
    pair, method = models("qwen2"), resolve(f"{EVENTS},gamma=0.5")
    texts = [tokens(50, seed=seed) for seed in (1, 2)]
    alone = [read("qwen2", method, ids, 40) for ids in texts]
    caches = [method.prefill_cache(SHAPE, 40), method.prefill_cache(SHAPE, 40), KVCache.dense(4, expected=40)]
    ids = torch.stack([*(t[:40] for t in texts), texts[0][:40]])
    together = adapter.forward(pair.ours, ids, torch.arange(40).expand(3, -1), caches, all_logits=True)
    for (_, logits), row in zip(alone, together, strict=False):
        assert largest_difference(logits, row) < 1e-4
    plain = harness.prefill(pair, texts[0][:40]).cache
    for position in range(40, 50):
        new = torch.stack([texts[0][position], texts[1][position], texts[0][position]])[:, None]
        batch = adapter.forward(pair.ours, new, torch.full((3, 1), position), caches)[:, -1]
        for row, cache in enumerate([alone[0][0], alone[1][0], plain]):
            assert largest_difference(force(pair, cache, new[row]), batch[row : row + 1]) < 1e-4


def test_uniform_events_that_are_all_seen_are_infllms_blocks() -> None:
    ids, pair = tokens(100, seed=5), models("llama")
    events = resolve(f"{MANY},segmentation=uniform")
    blocks = resolve("infllm@n_init=3,n_local=24,topk=99,block_size=6,repr_topk=2,exc_block_size=16")
    one, two = (harness.prefill(pair, ids[:70], m) for m in (events, blocks))
    assert largest_difference(one.logits, two.logits) < 1e-5
    logits = [force(pair, m.compress(r), ids[70:]) for m, r in ((events, one), (blocks, two))]
    assert largest_difference(*logits) < 1e-5


def test_with_all_events_far_keys_have_one_distance() -> None:
    """Spec check 6: the dense model in which every key older than the window lies n_local - 1 away."""
    ids, pair, n_local = tokens(80, seed=6), models("llama"), 24

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = []
        for i in range(len(ids)):
            near, far = range(max(0, i - n_local + 1), i + 1), range(max(0, i - n_local + 1))
            asked = [explicit_model.turned(pair.plain, query[:, i : i + 1], [at])[:, 0] for at in (i, n_local - 1)]
            sections = [(asked[0], explicit_model.turned(pair.plain, key[:, near], near), value[:, near])]
            sections.append((asked[1], key[:, far], value[:, far]))
            rows.append(explicit_model.one_query(sections)[0])
        return torch.stack(rows, dim=1)

    expected = explicit_model.logits(pair.plain, ids, attention)
    cache, logits = read("llama", resolve(f"{MANY},gamma=0.5"), ids, 60)
    assert largest_difference(logits, expected[:60]) < 1e-4
    assert largest_difference(force(pair, cache, ids[60:]), expected[60:]) < 1e-4


def test_what_is_not_looked_up_changes_nothing() -> None:
    """Spec check 4: keys and values of events that a step does not see may be anything."""
    pair, method, ids = models("llama"), resolve(f"{EVENTS},gamma=0.5"), tokens(61, seed=8)
    cache, _ = read("llama", method, ids, 60)
    assert isinstance(cache, EventCache)
    seen: list[set[int]] = []
    real = EventLayer.look_up

    def look_up(self: EventLayer, asked: Tensor, waiting: int) -> list[tuple[int, int]]:
        found = real(self, asked, waiting)
        seen.append({p for span in found for p in range(*span)})
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EventLayer, "look_up", look_up)
        expected = force(pair, cache.fork(), ids[60:])
    other = cache.fork()
    changed = 0
    for layer, kept in zip(other.layers, seen, strict=True):
        assert isinstance(layer, EventLayer)
        assert layer.key is not None
        assert layer.value is not None
        layer.key, layer.value = layer.key.clone(), layer.value.clone()
        for begin, end in layer.segments.events:
            if begin not in kept:
                layer.key[:, begin:end], layer.value[:, begin:end] = 7.0, -7.0
                changed += 1
    assert changed > 4
    assert torch.equal(force(pair, other, ids[60:]), expected)


def test_the_engine_reads_and_answers() -> None:
    loaded, method = loaded_tiny("qwen2", layers=2), resolve(f"{EVENTS},gamma=0.5,contiguity=0.3,refine=modularity")
    ids, answers = tokens(60, seed=3).tolist(), []
    for chunk in (None, 16):
        cache = method.prefill_cache(loaded.shape(), len(ids))
        record = engine_prefill(loaded, ids, cache=cache, chunk=chunk)
        left = method.compress(record)
        assert left.storage_nbytes == left.nbytes
        assert left.resident_nbytes < left.nbytes
        answers.append(decode(loaded, left, record.logits, max_new_tokens=20, min_new_tokens=20).ids)
    assert answers[0] == answers[1]


# --- events ----------------------------------------------------------------------------------------------------------


def cutting(**more: Any) -> Cutting:
    return Cutting(**{"n_init": 2, "n_local": 8, "shortest": 3, "longest": 7, "gamma": 1.0, "run": 8, **more})


@given(st.lists(st.floats(0, 10), min_size=20, max_size=120), st.integers(1, 5), st.integers(0, 6), st.integers(0, 3))
def test_events_make_up_the_text_within_their_bounds(
    values: list[float], shortest: int, more: int, n_init: int
) -> None:
    rules = cutting(shortest=shortest, longest=shortest + more, n_init=n_init, gamma=0.3)
    segments = Segments(rules)
    for stop in (*range(8, len(values), 8), len(values)):
        segments.read(values[(stop - 1) // 8 * 8 : stop], stop)
        segments.settle(stop)
        segments.settle(stop)  # the next layer asks
    edges = [segments.first, *(end for _, end in segments.events)]
    assert [begin for begin, _ in segments.events] == edges[:-1]
    assert segments.first == min(n_init, max(0, len(values) - 8))
    assert all(rules.shortest <= end - begin <= rules.longest for begin, end in segments.events)
    assert edges[-1] <= max(segments.first, len(values) - rules.n_local)
    assert edges == sorted(set(edges))


def test_a_surprising_token_begins_an_event_one_token_before_it() -> None:
    """Values of 1 and 2, and one of 50 in the second run; in the first none is a deviation above the mean of all."""
    segments = Segments(cutting(n_init=8, n_local=16))
    calm = [1.0, 2.0] * 4
    segments.read(calm, 8)
    assert segments.starts == []
    segments.read([1.0, 2.0, 1.0, 50.0, 1.0, 2.0, 1.0, 2.0], 16)  # 50: the token at 12 follows the one at 11
    assert segments.starts == [11]
    bound = np.mean(calm) + np.std(calm, ddof=1)
    assert bound > 2.0


def test_without_values_to_compare_with_nothing_surprises() -> None:
    segments = Segments(cutting(n_init=0, gamma=0.0))
    segments.read([1.0, 99.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 8)
    assert segments.starts == []
    one = Segments(cutting(n_init=1))  # one value has no deviation
    one.read([1.0, 99.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 8)
    assert one.starts == [1]
    never = Segments(cutting(n_init=8, gamma=math.inf))
    never.read([1.0, 99.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 8)
    assert never.starts == []


def test_sizes() -> None:
    rules = cutting()
    assert sizes(20, [4, 5, 12], rules) == [4, 7]  # 5 is too near, 12 is one past 4 + 7; the rest waits
    assert sizes(20, [2, 9], rules) == [7]  # 2 is too near the beginning, 9 after 7 leaves 2
    assert sizes(20, [], rules) == [7, 7]
    assert sizes(14, [], rules) == [7]  # not longer than the longest: it waits
    assert sizes(14, [], cutting(uniform=True)) == [7, 7]


@pytest.mark.parametrize("metric", ["modularity", "conductance"])
def test_a_split_is_judged_as_the_formula_says(metric: Any) -> None:
    draws = np.random.default_rng(3)
    keys = draws.normal(size=(9, 4)) + 0.8
    alike = keys @ keys.T
    worth = split_worth(torch.tensor(alike), metric)
    assert worth[0] == -math.inf
    for at in range(1, 9):
        assert float(worth[at]) == pytest.approx(oracle.quality(alike, at, metric), rel=1e-9)


@pytest.mark.parametrize("metric", ["modularity", "conductance"])
def test_boundaries_go_where_similarity_parts(metric: Any) -> None:
    """Spec check 5: blocks of 7, 6 and 9 alike tokens; the surprise came two or three tokens late."""
    alike = torch.full((22, 22), 0.01, dtype=torch.float64)
    for begin, end in ((0, 7), (7, 13), (13, 22)):
        alike[begin:end, begin:end] = 1.0
    assert refined([9, 16], alike, 3, metric) == [7, 13]
    assert refined([3], alike, 3, metric) == [3]  # nothing else to try
    assert refined([1, 2], alike, 3, metric) == []


# --- looking up ------------------------------------------------------------------------------------------------------


def test_the_event_that_crosses_the_budget_is_taken_if_that_is_closer() -> None:
    assert filled([2, 0, 1], [4, 5, 6], 10) == [2, 0]
    assert filled([2, 0, 1], [4, 5, 6], 9) == [2, 0]  # 10 is one over, 6 three under
    assert filled([2, 0, 1], [4, 5, 6], 8) == [2]  # both two away
    assert filled([2, 0, 1], [4, 5, 6], 2) == []
    assert filled([0], [9], 0) == []


def test_neighbours_of_the_best_come_first_and_older_ones_stay_while_they_fit() -> None:
    lengths = [3] * 10
    assert neighbours([5, 1], (), lengths, 12) == (6, 4, 2, 0)
    assert neighbours([5, 1], (), lengths, 7) == (6, 4)
    assert neighbours([9], (3, 8, 2), lengths, 9) == (8, 3, 2)  # there is no 10; 8 is not taken twice
    assert neighbours([4, 5], (5, 7), lengths, 99) == (3, 6, 7)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(BadValue, match="n_local=100 is less than exc_block_size=512"):
        resolve("em-llm@n_local=100")
    with pytest.raises(BadValue, match="min_block=9 is more than max_block=8"):
        resolve("em-llm@min_block=9,max_block=8")
    with pytest.raises(ModelError, match="layers 0 to 3"):
        resolve("em-llm@refine=modularity,refine_from=20").check(SHAPE)
    resolve("em-llm@refine=modularity").check(SHAPE)
