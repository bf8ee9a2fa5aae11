"""Ragged stores: a different number of entries a head, against fp64 loops; bytes, forks, windows, policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer
from lcbench.kv.ragged import RaggedLayer, best_and_recent, kept_layer
from lcbench.kv.record import LayerRecord
from lcbench.models.rule import AttentionRule

H, HK, D, L = 6, 3, 8, 20
SCALE = D**-0.5
KEPT = [[0, 3, 4, 17], [], [1, 2, 5, 6, 7, 11, 12, 19]]


def tokens(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``[H, n, d]``, keys and values ``[HK, n, d]``."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(H, n, D, generator=generator) * 3,
        torch.randn(HK, n, D, generator=generator),
        torch.randn(HK, n, D, generator=generator),
    )


def record(key: Tensor, value: Tensor) -> LayerRecord:
    return LayerRecord(0, 1, key, value, AttentionRule(SCALE))


def ragged(key: Tensor, value: Tensor, kept: Sequence[Sequence[int]] = KEPT, **more: object) -> RaggedLayer:
    index = [torch.tensor(rows, dtype=torch.int64) for rows in kept]
    layer = kept_layer(record(key[:, :L], value[:, :L]), index, **more)  # type: ignore[arg-type]
    assert isinstance(layer, RaggedLayer)
    return layer


def expected(
    query: Tensor, key: Tensor, value: Tensor, held: Sequence[Sequence[int]], at: int, window: int | None = None
) -> Tensor:
    """The query ``[H, d]`` at position ``at`` over the positions its head holds, in fp64."""
    out = torch.zeros(H, D, dtype=torch.float64)
    for h in range(H):
        head = h * len(held) // H
        seen = [p for p in held[head] if p <= at and (window is None or p > at - window)]
        keys, values = key[h * HK // H, seen].double(), value[h * HK // H, seen].double()
        out[h] = torch.softmax(keys @ query[h].double() * SCALE, dim=0) @ values
    return out


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 7, 3])
@pytest.mark.parametrize("at_once", [1, 4, 5])
def test_heads_attend_over_their_own_entries(window: int | None, at_once: int) -> None:
    query, key, value = tokens(L + 20)
    layer = ragged(key, value)
    for start in range(L, L + 20, at_once):
        new = slice(start, start + at_once)
        layer.append(key[:, new], value[:, new])
        out = layer.attend(query[:, new], AttentionRule(SCALE, window))
        for i in range(at_once):
            held = [[*rows, *range(L, start + i + 1)] for rows in KEPT]
            close(out[:, i], expected(query[:, start + i], key, value, held, start + i, window))
    assert layer.seen == layer.taken == L + 20
    assert layer.positions()[0].tolist() == [0, 3, 4, 17, *range(L, L + 20)] + [-1] * 4


def test_every_query_head_may_have_its_own() -> None:
    query, key, value = tokens(L + 6)
    kept = [[0], [0, 5], [], [3, 4, 19], [1], [2, 18]]
    layer = ragged(key, value, kept)
    assert layer.heads == H
    layer.append(key[:, L:], value[:, L:])
    out = layer.attend(query[:, L:], AttentionRule(SCALE))
    for i in range(6):
        held = [[*rows, *range(L, L + i + 1)] for rows in kept]
        close(out[:, i], expected(query[:, L + i], key, value, held, L + i))
    assert layer.nbytes == 2 * 4 * D * (9 + 6 * H)  # the new tokens too, once a query head


def test_bytes_are_those_of_the_entries() -> None:
    query, key, value = tokens(L + 70)
    layer = ragged(key, value)
    assert layer.nbytes == layer.storage_nbytes == 2 * 4 * D * 12
    assert layer.entries == 4
    shared = {t.untyped_storage().data_ptr() for t in (key, value)}
    assert not shared & {t.untyped_storage().data_ptr() for t in layer.tensors()}
    for i in range(L, L + 70):
        layer.append(key[:, i : i + 1], value[:, i : i + 1])
        layer.attend(query[:, i : i + 1], AttentionRule(SCALE))
        assert layer.nbytes == 2 * 4 * D * (12 + HK * (i + 1 - L))
    assert layer.storage_nbytes - layer.nbytes < 2 * 4 * D * HK * 64  # less than a block of slack


def test_keep_frees_the_rest_head_by_head() -> None:
    query, key, value = tokens(L + 8)
    layer = ragged(key, value)
    for i in range(L, L + 4):
        layer.append(key[:, i : i + 1], value[:, i : i + 1])
        layer.attend(query[:, i : i + 1], AttentionRule(SCALE))
    layer.keep([torch.tensor(rows) for rows in ([1, 7], [0, 1, 2], [0, 11])])
    held = [[3, 23], [20, 21, 22], [1, 23]]
    assert [layer.head_positions(h).tolist() for h in range(HK)] == held
    assert layer.nbytes == layer.storage_nbytes == 2 * 4 * D * 7
    for i in range(L + 4, L + 8):
        layer.append(key[:, i : i + 1], value[:, i : i + 1])
        out = layer.attend(query[:, i : i + 1], AttentionRule(SCALE))
        held = [[*rows, i] for rows in held]
        close(out[:, 0], expected(query[:, i], key, value, held, i))
        for h in range(HK):
            own = layer.head(h)
            assert torch.equal(own[0], key[h, held[h]])
            assert torch.equal(own[1], value[h, held[h]])


def test_forks_share_the_prompt_and_nothing_else() -> None:
    query, key, value = tokens(L + 10)
    layer = ragged(key, value)

    def step(store: RaggedLayer, i: int, sign: float) -> Tensor:
        store.append(sign * key[:, i : i + 1], sign * value[:, i : i + 1])
        return store.attend(query[:, i : i + 1], AttentionRule(SCALE))

    step(layer, L, 1)
    fork = layer.fork()
    assert fork.key.data_ptr() == layer.key.data_ptr()
    step(fork, L + 1, -1)
    step(fork, L + 2, -1)
    fork.keep([torch.tensor([0]), torch.tensor([0]), torch.tensor([0])])
    out = step(layer, L + 1, 1)
    held = [[*rows, L, L + 1] for rows in KEPT]
    close(out[:, 0], expected(query[:, L + 1], key, value, held, L + 1))
    assert fork.entries == 1
    assert KVCache([layer]).seen == L + 2


def test_equal_counts_make_a_dense_layer() -> None:
    _, key, value = tokens(L)
    kept = [torch.tensor([1, 2]), torch.tensor([0, 19]), torch.tensor([5, 6])]
    layer = kept_layer(record(key, value), kept)
    assert isinstance(layer, DenseLayer)
    assert layer.positions().tolist() == [[1, 2], [0, 19], [5, 6]]
    assert layer.nbytes == layer.storage_nbytes == 2 * 4 * D * 6


def test_rows_and_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="5 rows in the heads, 4 in memory"):
        RaggedLayer(torch.zeros(4, D), torch.zeros(4, D), kept=torch.zeros(4), lengths=[2, 3], seen=9)


class DropOldest:
    """A policy for tests: keeps the newest ``most`` entries of each head, and writes down what it was told."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.told: list[list[tuple[int, ...]]] = []

    def after_attend(self, layer: RaggedLayer, weights: Sequence[Tensor]) -> None:
        self.told.append([tuple(w.shape) for w in weights])
        assert all(torch.allclose(w.sum(dim=-1), torch.ones(H // HK)) for w in weights)
        layer.keep([torch.arange(max(0, n - self.most), n) for n in (w.shape[1] for w in weights)])

    def tensors(self) -> Iterator[Tensor]:
        yield from ()

    def fork(self) -> DropOldest:
        return DropOldest(self.most)


@pytest.mark.parametrize("at_once", [1, 3, 6])
def test_a_policy_acts_between_tokens_that_come_together(at_once: int) -> None:
    query, key, value = tokens(L + 6)
    policy = DropOldest(3)
    layer = ragged(key, value, policy=policy)
    held = [list(rows) for rows in KEPT]
    for start in range(L, L + 6, at_once):
        new = slice(start, start + at_once)
        layer.append(key[:, new], value[:, new])
        out = layer.attend(query[:, new], AttentionRule(SCALE))
        for i in range(at_once):
            held = [[*rows, start + i] for rows in held]
            close(out[:, i], expected(query[:, start + i], key, value, held, start + i))
            held = [rows[-3:] for rows in held]
    assert [layer.head_positions(h).tolist() for h in range(HK)] == held
    assert policy.told[0] == [(2, 5), (2, 1), (2, 9)]
    assert len(policy.told) == 6


def test_best_and_recent() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    kept = best_and_recent(scores, [2, 3], 2)
    assert [rows.tolist() for rows in kept] == [[1, 2, 5, 6], [0, 1, 2, 5, 6]]  # ties: the lower position
    assert [rows.tolist() for rows in best_and_recent(scores, [0, 5], 1)] == [[5], [0, 1, 2, 3, 4, 5]]


OTHER = [[0, 1, 2, 3, 4, 5, 9], [17, 18, 19], [6]]


def step(layers: Sequence[RaggedLayer], texts: Sequence[tuple[Tensor, Tensor, Tensor]], at: int) -> Tensor:
    """One new token of each layer, computed together: ``[R, H, 1, d]``."""
    query, key, value = (torch.stack([text[i][:, at : at + 1] for text in texts]) for i in range(3))
    return RaggedLayer.attend_rows(layers, query, key, value, AttentionRule(SCALE))


def test_layers_decode_together_as_alone_and_may_leave() -> None:
    kept = [KEPT, OTHER, KEPT]
    texts = [tokens(L + 9, seed) for seed in range(3)]
    layers = [ragged(key, value, heads) for (_, key, value), heads in zip(texts, kept, strict=True)]
    alone = [layer.fork() for layer in layers]
    held = [[list(head) for head in heads] for heads in kept]
    rows = list(range(3))
    for at in range(L, L + 8):
        if at == L + 4:  # one leaves for good, one is looked at and comes back
            rows.remove(0)
            bytes_held = layers[2].nbytes
            assert bytes_held == alone[2].nbytes
            fork = layers[1].fork()
            close(fork.head(0)[0], alone[1].head(0)[0])
        out = step([layers[r] for r in rows], [texts[r] for r in rows], at)
        assert layers[rows[0]]._stacked[0].stack is not None
        for i, r in enumerate(rows):
            query, key, value = texts[r]
            for head in held[r]:
                head.append(at)
            close(out[i, :, 0], expected(query[:, at], key, value, held[r], at))
            alone[r].append(key[:, at : at + 1], value[:, at : at + 1])
            alone[r].attend(query[:, at : at + 1], AttentionRule(SCALE))
    for r in rows:
        assert torch.equal(layers[r].positions(), alone[r].positions())
        assert all(torch.equal(a, b) for a, b in zip(layers[r].tensors(), alone[r].tensors(), strict=True))


def test_a_row_comes_out_the_same_whatever_is_computed_beside_it() -> None:
    texts = [tokens(L + 1, seed) for seed in range(3)]

    def made(chosen: Sequence[int]) -> Tensor:
        layers = [ragged(texts[r][1], texts[r][2], [KEPT, OTHER, KEPT][r]) for r in chosen]
        return step(layers, [texts[r] for r in chosen], L)

    together = made([0, 1, 2])
    for r in range(3):
        assert torch.equal(made([r])[0], together[r])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nor_whatever_else_the_others_do(dtype: torch.dtype) -> None:
    """A row with a policy, or with keys for every query head, attends in a way of its own; its neighbours do not."""
    texts = [tuple(part.to(dtype) for part in tokens(L + 5, seed)) for seed in range(4)]
    twice = [head for head in KEPT for _ in range(2)]

    def made(chosen: Sequence[int]) -> list[Tensor]:
        (_, a, b), (_, c, d), (_, e, f), (_, g, h) = texts
        acting = ragged(c, d, OTHER, policy=DropOldest(4))
        layers = [ragged(a, b), acting, ragged(e, f, twice), ragged(g, h, OTHER)]
        some, words = [layers[r] for r in chosen], [texts[r] for r in chosen]
        return [step(some, words, at) for at in range(L, L + 5)]

    together = made([0, 1, 2, 3])
    for r in range(4):
        for alone, beside in zip(made([r]), together, strict=True):
            assert torch.equal(alone[0], beside[r])


def test_a_window_that_bites_ends_the_stack() -> None:
    query, key, value = tokens(L + 6)
    layer, held = ragged(key, value), [list(head) for head in KEPT]
    window = L + 3
    for at in range(L, L + 6):
        new = slice(at, at + 1)
        out = RaggedLayer.attend_rows(
            [layer], query[None, :, new], key[None, :, new], value[None, :, new], AttentionRule(SCALE, window=window)
        )
        for head in held:
            head.append(at)
        close(out[0, :, 0], expected(query[:, at], key, value, held, at, window))
        assert (layer._stacked[0].stack is None) == (at + 1 > window)
