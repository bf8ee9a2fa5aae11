"""Dense and ring stores: what is kept, in which order, in how many bytes, and that forks are independent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lcbench.kv import attention
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer, LayerKV, outside_window, owned
from lcbench.kv.ring import RingLayer
from lcbench.models.rule import AttentionRule

H, HK, D = 4, 2, 8
SCALE = D**-0.5


def kv(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(HK, n, D, generator=generator), torch.randn(HK, n, D, generator=generator)


def queries(q: int, seed: int = 99) -> Tensor:
    return torch.randn(H, q, D, generator=torch.Generator().manual_seed(seed)) * 3


def step(layer: LayerKV, key: Tensor, value: Tensor, query: Tensor, window: int | None = None) -> Tensor:
    layer.append(key, value)
    return layer.attend(query, AttentionRule(SCALE, window))


def over(key: Tensor, value: Tensor, positions: Tensor, query: Tensor, at: int, window: int | None = None) -> Tensor:
    """One query ``[H, 1, d]`` at position ``at`` over chosen entries, in fp64."""
    out = torch.zeros(H, 1, D, dtype=torch.float64)
    for h in range(H):
        head = h // (H // HK)
        where = positions[head] if positions.ndim == 2 else positions
        seen = where[(where <= at) & ((where > at - window) if window else (where >= 0))]
        logits = key[head, seen].double() @ query[h, 0].double() * SCALE
        out[h, 0] = torch.softmax(logits, dim=0) @ value[head, seen].double()
    return out


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("expected", [0, 20])
def test_dense_prompt_then_steps(expected: int, window: int | None) -> None:
    key, value = kv(25)
    query = queries(25)
    layer = DenseLayer(expected=expected)
    out = step(layer, key[:, :20], value[:, :20], query[:, :20], window)
    close(out, attention.causal(query[:, :20], key[:, :20], value[:, :20], AttentionRule(SCALE, window)))
    for i in range(20, 25):
        out = step(layer, key[:, i : i + 1], value[:, i : i + 1], query[:, i : i + 1], window)
        close(out, over(key, value, torch.arange(25), query[:, i : i + 1], i, window))
    assert layer.seen == layer.entries == 25
    assert layer.positions().tolist() == list(range(25))
    assert layer.nbytes == 2 * HK * D * 4 * 25


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("sizes", [(20,), (1, 19), (8, 8, 4), (19, 1)])
def test_chunked_prefill_is_unchunked(sizes: tuple[int, ...], window: int | None) -> None:
    key, value = kv(20)
    query = queries(20)
    layer = DenseLayer(expected=20)
    start, outputs = 0, []
    for size in sizes:
        piece = slice(start, start + size)
        outputs.append(step(layer, key[:, piece], value[:, piece], query[:, piece], window))
        start += size
        assert layer.seen == start
        assert layer.nbytes == 2 * HK * D * 4 * start
    close(torch.cat(outputs, dim=1), attention.causal(query, key, value, AttentionRule(SCALE, window)))
    assert layer.tail is None
    assert layer.storage_nbytes == layer.nbytes


def test_more_than_expected_is_refused() -> None:
    key, value = kv(12)
    layer = DenseLayer(expected=10)
    step(layer, key[:, :6], value[:, :6], queries(6))
    with pytest.raises(ValueError, match="12 tokens for a layer that expected 10"):
        layer.append(key[:, 6:], value[:, 6:])


def test_a_question_after_the_prompt_is_causal() -> None:
    key, value = kv(20)
    query = queries(20)
    layer = DenseLayer(expected=12)
    step(layer, key[:, :12], value[:, :12], query[:, :12])
    out = step(layer, key[:, 12:], value[:, 12:], query[:, 12:])
    close(out, attention.causal(query, key, value, AttentionRule(SCALE))[:, 12:])


@pytest.mark.parametrize("window", [None, 9])
def test_keep_head_by_head(window: int | None) -> None:
    key, value = kv(24)
    layer = DenseLayer(key[:, :20], value[:, :20])
    index = torch.tensor([[0, 3, 4, 11, 19], [1, 2, 10, 18, 19]])
    layer.keep(index)
    assert layer.nbytes == layer.storage_nbytes == 2 * HK * D * 4 * 5
    assert layer.positions().tolist() == index.tolist()
    assert layer.entries == 5
    for i in range(20, 24):
        query = queries(1, seed=i)
        out = step(layer, key[:, i : i + 1], value[:, i : i + 1], query, window)
        held = torch.cat([index, torch.arange(20, i + 1).expand(2, -1)], dim=1)
        close(out, over(key, value, held, query, i, window))
        assert layer.positions().tolist() == held.tolist()
    assert layer.seen == 24


def test_keep_again_and_again_with_new_tokens_between() -> None:
    key, value = kv(12)
    layer = DenseLayer(key[:, :8], value[:, :8])
    layer.keep(torch.tensor([0, 2, 5, 7]))
    step(layer, key[:, 8:10], value[:, 8:10], queries(2))
    layer.keep(torch.tensor([[0, 1, 5], [0, 2, 5]]))
    assert layer.positions().tolist() == [[0, 2, 9], [0, 5, 9]]
    layer.keep(torch.tensor([1, 2]))
    assert layer.positions().tolist() == [[2, 9], [5, 9]]
    query = queries(1, seed=5)
    out = step(layer, key[:, 10:11], value[:, 10:11], query)
    close(out, over(key, value, torch.tensor([[2, 9, 10], [5, 9, 10]]), query, 10))


class _DropOldest:
    """Keeps the cache at four entries and remembers what it saw."""

    needs_weights = True

    def __init__(self) -> None:
        self.sums = torch.zeros(0)

    def after_attend(self, layer: DenseLayer, weights: Tensor | None) -> None:
        assert weights is not None
        self.sums = weights.sum(dim=(0, 1))
        assert self.sums.shape == (int(layer.entries),)
        layer.keep(torch.arange(int(layer.entries) - 4, int(layer.entries)))

    def tensors(self) -> Iterator[Tensor]:
        yield self.sums

    def fork(self) -> _DropOldest:
        new = _DropOldest()
        new.sums = self.sums.clone()
        return new


def test_a_policy_acts_after_each_step_and_its_statistics_count() -> None:
    key, value = kv(12)
    layer = DenseLayer(policy=_DropOldest())
    step(layer, key[:, :8], value[:, :8], queries(8))
    assert layer.entries == 8  # not while the prompt is read
    query = queries(1)
    out = step(layer, key[:, 8:9], value[:, 8:9], query)
    close(out, over(key, value, torch.arange(9), query, 8))  # the step itself still sees everything
    assert layer.positions().tolist() == [5, 6, 7, 8]
    assert layer.nbytes == 2 * HK * D * 4 * 4 + 9 * 4
    fork = layer.fork()
    step(fork, key[:, 9:10], value[:, 9:10], query)
    assert fork.positions().tolist() == [6, 7, 8, 9]
    assert layer.positions().tolist() == [5, 6, 7, 8]
    assert layer.policy is not fork.policy


def test_dense_forks_are_independent() -> None:
    key, value = kv(14)
    layer = DenseLayer(expected=10)
    step(layer, key[:, :6], value[:, :6], queries(6))
    half = layer.fork()  # in the middle of a prompt that is filled in place
    step(half, key[:, :4] + 1, value[:, :4] + 1, queries(4))
    step(layer, key[:, 6:10], value[:, 6:10], queries(4))
    assert torch.equal(next(layer.tensors()), key[:, :10])
    fork = layer.fork()
    step(layer, key[:, 10:12], value[:, 10:12], queries(2))
    again = layer.fork()
    step(fork, -key[:, 10:13], -value[:, 10:13], queries(3))
    query = queries(1, seed=3)
    out = step(layer, key[:, 12:13], value[:, 12:13], query)
    close(out, over(key, value, torch.arange(13), query, 12))
    close(step(again, key[:, 12:13], value[:, 12:13], query), out)
    assert (fork.seen, layer.seen, again.seen) == (13, 13, 13)
    assert torch.equal(next(fork.tensors()), key[:, :10])


def test_whole_prompts_do_not_keep_larger_memory_alive() -> None:
    big_key, big_value = torch.randn(3, 1, 5, D), torch.randn(3, 1, 5, D)  # rows of a batch, one KV head
    layer = DenseLayer()
    layer.append(big_key[1], big_value[1])
    assert layer.storage_nbytes == layer.nbytes == 2 * 5 * D * 4
    assert owned(big_key[1]).untyped_storage().nbytes() == 5 * D * 4
    assert owned(big_key).data_ptr() == big_key.data_ptr()


def ring(n: int, sinks: int, capacity: int, key: Tensor, value: Tensor) -> RingLayer:
    kept = torch.arange(n)
    if n > capacity:
        kept = torch.cat([torch.arange(sinks), torch.arange(n - capacity + sinks, n)])
    return RingLayer(key[:, kept], value[:, kept], sinks=sinks, capacity=capacity, kept=kept, seen=n)


def ring_positions(seen: int, sinks: int, capacity: int) -> list[int]:
    recent = range(max(sinks, seen - (capacity - sinks)), seen)
    return [*range(min(sinks, seen)), *recent]


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize(
    ("n", "sinks", "capacity"), [(20, 4, 9), (9, 4, 9), (5, 2, 9), (3, 0, 5), (20, 0, 1), (1, 4, 5)]
)
def test_ring_holds_sinks_and_the_newest(n: int, sinks: int, capacity: int, window: int | None) -> None:
    key, value = kv(n + 3 * capacity)
    layer = ring(n, sinks, capacity, key, value)
    for i in range(n, n + 3 * capacity):
        query = queries(1, seed=i)
        out = step(layer, key[:, i : i + 1], value[:, i : i + 1], query, window)
        held = ring_positions(i + 1, sinks, capacity)
        assert sorted(layer.positions().tolist()) == held
        assert layer.entries == len(held) <= capacity
        assert layer.nbytes == 2 * HK * D * 4 * len(held)
        close(out, over(key, value, torch.tensor(held), query, i, window))
        # each entry in memory is the token its position says
        order = layer.positions()
        stored_key, stored_value = layer.tensors()
        assert torch.equal(stored_key, key[:, order])
        assert torch.equal(stored_value, value[:, order])


@pytest.mark.parametrize(
    "rings",
    [
        [(20, 2, 8)] * 3,  # all full, turning in step
        [(20, 2, 8), (20, 4, 12), (3, 2, 70), (21, 1, 8)],  # of several sizes, one still growing past a block
        [(20, 0, 5), (23, 0, 5)],  # no sinks, out of step
    ],
)
@pytest.mark.parametrize("window", [None, 90])
def test_rings_decode_together_as_alone_and_may_leave(rings: list[tuple[int, int, int]], window: int | None) -> None:
    steps = 75  # the growing one becomes full, and the window bites
    texts = [(*kv(n + steps, seed), queries(n + steps, seed + 50)) for seed, (n, _, _) in enumerate(rings)]
    layers = [ring(n, sinks, room, *text[:2]) for (n, sinks, room), text in zip(rings, texts, strict=True)]
    alone = [layer.fork() for layer in layers]
    rows = list(range(len(rings)))
    for i in range(steps):
        if i == 20:
            rows = rows[1:]  # the first leaves for good, the last is looked at and comes back
            assert layers[-1].nbytes == alone[-1].nbytes
            assert torch.equal(layers[-1].fork().positions(), alone[-1].positions())
        places = [rings[r][0] + i for r in rows]
        new = [
            torch.stack([text[:, at : at + 1] for text, at in zip(column, places, strict=True)])
            for column in zip(*(texts[r] for r in rows), strict=True)
        ]
        out = RingLayer.attend_rows([layers[r] for r in rows], new[2], new[0], new[1], AttentionRule(SCALE, window))
        for j, r in enumerate(rows):
            close(out[j], step(alone[r], new[0][j], new[1][j], new[2][j], window))
            assert torch.equal(layers[r].positions(), alone[r].positions())
            assert (layers[r].stack is None) == (window is not None and places[j] >= window)
    for r in rows:
        assert layers[r].storage_nbytes <= 2 * HK * D * 4 * rings[r][2]
        assert all(torch.equal(a, b) for a, b in zip(layers[r].tensors(), alone[r].tensors(), strict=True))


def test_ring_memory_is_bounded() -> None:
    key, value = kv(500)
    layer = ring(100, 4, 70, key, value)
    assert layer.storage_nbytes == layer.nbytes == 2 * HK * D * 4 * 70
    for i in range(100, 500):
        step(layer, key[:, i : i + 1], value[:, i : i + 1], queries(1))
    assert layer.storage_nbytes == layer.nbytes == 2 * HK * D * 4 * 70
    assert layer.seen == 500


@pytest.mark.parametrize("window", [None, 5])
def test_ring_takes_several_tokens_as_one_by_one(window: int | None) -> None:
    key, value = kv(40)
    query = queries(40)
    single, several = ring(20, 4, 9, key, value), ring(20, 4, 9, key, value)
    expected = torch.cat(
        [step(single, key[:, i : i + 1], value[:, i : i + 1], query[:, i : i + 1], window) for i in range(20, 40)],
        dim=1,
    )
    first = step(several, key[:, 20:33], value[:, 20:33], query[:, 20:33], window)
    second = step(several, key[:, 33:], value[:, 33:], query[:, 33:], window)
    assert torch.equal(torch.cat([first, second], dim=1), expected)
    assert several.seen == 40


def test_ring_forks_are_independent() -> None:
    key, value = kv(60)
    layer = ring(20, 4, 9, key, value)
    for i in range(20, 23):
        step(layer, key[:, i : i + 1], value[:, i : i + 1], queries(1))
    fork = layer.fork()
    for i in range(23, 30):
        step(fork, -key[:, i : i + 1], -value[:, i : i + 1], queries(1))
    query = queries(1, seed=7)
    out = step(layer, key[:, 23:24], value[:, 23:24], query)
    close(out, over(key, value, torch.tensor(ring_positions(24, 4, 9)), query, 23))
    assert sorted(layer.positions().tolist()) == ring_positions(24, 4, 9)
    assert sorted(fork.positions().tolist()) == ring_positions(30, 4, 9)


def test_ring_counts_tokens_when_they_arrive() -> None:
    key, value = kv(30)
    layer = ring(20, 4, 9, key, value)
    layer.append(key[:, 20:22], value[:, 20:22])
    assert layer.seen == 22
    with pytest.raises(AssertionError, match="attend must follow append"):
        layer.append(key[:, 22:23], value[:, 22:23])


@pytest.mark.parametrize("positions", [torch.tensor([0, 1, 5, 6, 7]), torch.tensor([[0, 5, 6, 7], [3, 5, 6, 7]])])
def test_outside_window(positions: Tensor) -> None:
    hidden = outside_window(lambda: positions, seen=8, q=2, window=3)
    assert hidden is not None
    assert hidden.shape == ((1, 2, 5) if positions.ndim == 1 else (2, 2, 4))
    rows = positions[None] if positions.ndim == 1 else positions
    for head, row in enumerate(rows.tolist()):
        for i, at in enumerate((6, 7)):
            assert hidden[head, i].tolist() == [p <= at - 3 for p in row]


def test_no_mask_where_the_window_does_not_bite() -> None:
    def never() -> Tensor:
        raise AssertionError("asked for positions")

    assert outside_window(never, seen=8, q=1, window=8) is None
    assert outside_window(never, seen=800, q=1, window=None) is None


def test_cache_counts_shared_memory_once() -> None:
    key, value = kv(6)
    cache = KVCache([DenseLayer(key, value), DenseLayer(key, value)])
    assert cache.nbytes == 2 * cache.storage_nbytes == 2 * 2 * HK * D * 4 * 6
    assert cache.seen == cache.entries == 6
    fork = cache.fork()
    step(fork.layers[0], key[:, :1], value[:, :1], queries(1))
    assert cache.layers[0].seen == 6
    assert fork.entries == 6.5
