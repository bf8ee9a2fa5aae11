"""StreamingLLM (post-prefill form): budgets, what is kept at every step, and when it starts to roll."""

from __future__ import annotations

from collections.abc import Iterator

import harness
import pytest

from lcbench.errors import BadValue
from lcbench.kv.layer import DenseLayer
from lcbench.kv.ring import RingLayer
from lcbench.methods.evict.streamingllm import StreamingLLM
from lcbench.methods.registry import resolve


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def kept_after(spec: str, prompt: int, steps: int) -> list[list[int]]:
    """Sorted positions in the cache after the prompt and after each new token; the same in all layers."""
    pair, method = harness.models("llama"), resolve(spec)
    cache = method.compress(harness.prefill(pair, harness.tokens(prompt, seed=1)))
    kept = []
    for step in range(steps + 1):
        if step:
            harness.force(pair, cache, harness.tokens(1, seed=step))
        held = [sorted(layer.positions().tolist()) for layer in cache.layers]
        assert all(h == held[0] for h in held)
        kept.append(held[0])
    return kept


def test_defaults() -> None:
    method = resolve("streamingllm")
    assert method == StreamingLLM()
    assert method.parameters == {"n_sink": "4", "budget": "0.25", "roll": "true"}
    assert method.id == "streamingllm"
    assert method.traits.prefill == "shared"
    assert not method.observes()


@pytest.mark.parametrize(
    "spec",
    ["streamingllm@budget=4", "streamingllm@n_sink=8,budget=8", "streamingllm@n_sink=-1", "streamingllm@budget=0",
     "streamingllm@budget=1.5", "streamingllm@roll=maybe"],
)  # fmt: skip
def test_values_it_cannot_take(spec: str) -> None:
    with pytest.raises(BadValue) as caught:
        resolve(spec)
    assert caught.value.next_step


def test_values_it_cannot_take_from_python() -> None:
    with pytest.raises(BadValue, match="n_sink=-1"):
        StreamingLLM(n_sink=-1)


@pytest.mark.parametrize(
    ("spec", "prompt", "capacity"),
    [
        ("streamingllm", 100, 25),
        ("streamingllm", 103, 25),  # floor
        ("streamingllm", 8, 5),  # never under n_sink + 1
        ("streamingllm@n_sink=0", 3, 1),
        ("streamingllm@budget=0.5,n_sink=2", 7, 3),
        ("streamingllm@budget=20", 100, 20),
        ("streamingllm@budget=20", 3, 20),  # a number is a bound, whatever the prompt
        ("streamingllm@budget=1.0", 100, None),
    ],
)
def test_capacity(spec: str, prompt: int, capacity: int | None) -> None:
    method = resolve(spec)
    assert isinstance(method, StreamingLLM)
    assert method.capacity(prompt) == capacity


def test_rolls_within_its_budget() -> None:
    kept = kept_after("streamingllm@n_sink=3", 40, 12)  # B = 10
    for step, held in enumerate(kept):
        assert held == [0, 1, 2, *range(40 + step - 7, 40 + step)]


def test_without_rolling_only_the_prompt_is_cut() -> None:
    kept = kept_after("streamingllm@n_sink=3,budget=10,roll=false", 40, 12)
    for step, held in enumerate(kept):
        assert held == [0, 1, 2, *range(33, 40 + step)]


def test_a_prompt_within_a_number_fills_up_and_then_rolls() -> None:
    kept = kept_after("streamingllm@n_sink=2,budget=10", 6, 12)
    for step, held in enumerate(kept):
        seen = 6 + step
        assert held == (list(range(seen)) if seen <= 10 else [0, 1, *range(seen - 8, seen)])


@pytest.mark.parametrize(
    "spec", ["streamingllm@budget=1.0", "streamingllm@budget=100%", "streamingllm@budget=6,roll=false"]
)
def test_a_whole_budget_never_drops(spec: str) -> None:
    kept = kept_after(spec, 6, 12)
    assert kept == [list(range(6 + step)) for step in range(13)]


def test_a_prompt_shorter_than_the_sinks() -> None:
    kept = kept_after("streamingllm", 2, 6)  # B = n_sink + 1 = 5
    for step, held in enumerate(kept):
        seen = 2 + step
        assert held == (list(range(seen)) if seen <= 5 else [0, 1, 2, 3, seen - 1])


def test_stores() -> None:
    pair = harness.models("llama")
    record = harness.prefill(pair, harness.tokens(40))
    rolling = resolve("streamingllm").compress(record)
    assert all(isinstance(layer, RingLayer) and layer.capacity == 10 for layer in rolling.layers)
    growing = resolve("streamingllm@roll=false").compress(record)
    assert all(isinstance(layer, DenseLayer) for layer in growing.layers)
    assert rolling.nbytes == growing.nbytes == rolling.storage_nbytes == harness.SHAPE.full_bytes(10)


def test_memory_stays_bounded_over_a_long_answer() -> None:
    pair = harness.models("llama")
    cache = resolve("streamingllm@budget=16").compress(harness.prefill(pair, harness.tokens(40)))
    harness.force(pair, cache, harness.tokens(300, seed=2))
    assert cache.seen == 340
    assert cache.storage_nbytes == cache.nbytes == harness.SHAPE.full_bytes(16)
