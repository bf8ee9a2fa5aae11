"""What retrieval methods stand on: runs, sections, whole stores, k-means, low rank."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lcbench.errors import UsageError
from lcbench.kv import kmeans as kmeans_module
from lcbench.kv import sections as sections_module
from lcbench.kv.kmeans import kmeans, means
from lcbench.kv.lowrank import low_rank
from lcbench.kv.runs import Runs
from lcbench.kv.sections import Section, over_sections
from lcbench.kv.whole import WholeLayer
from lcbench.models.rule import AttentionRule


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- runs ------------------------------------------------------------------------------------------------------------


def test_runs_of_a_prompt_and_of_what_follows() -> None:
    runs = Runs("some", 4, 0, 10)
    assert runs.cut(0, 13) == [(0, 4), (4, 8), (8, 10), (10, 11), (11, 12), (12, 13)]
    dense_first = Runs("some", 4, 6, 13)
    assert dense_first.cut(0, 15) == [(0, 6), (6, 10), (10, 13), (13, 14), (14, 15)]
    assert dense_first.cut(2, 5) == [(2, 5)]  # what is dense may come in any pieces
    assert Runs("some", 4, 20, 13).cut(0, 14) == [(0, 13), (13, 14)]
    assert Runs("some", 4, 0, 0).cut(0, 1) == [(0, 1)]


@given(size=st.integers(1, 6), first=st.integers(0, 12), last=st.integers(0, 30), data=st.data())
def test_runs_do_not_depend_on_the_pieces(size: int, first: int, last: int, data: st.DataObject) -> None:
    runs, total = Runs("some", size, first, last), last + 5
    whole = runs.cut(0, total)
    assert [at for run in whole for at in range(*run)] == list(range(total))
    edges = sorted({0, total, *data.draw(st.lists(st.sampled_from([stop for _, stop in whole])))})
    assert [run for a, b in pairwise(edges) for run in runs.cut(a, b)] == whole
    for wrong in range(first + 1, last):
        if all(wrong not in run for run in whole):
            with pytest.raises(UsageError, match="some reads prompts in runs"):
                runs.cut(0, wrong)


# --- sections --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1, 40, 2**24])
def test_sections_are_one_softmax(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Head by head in fp64, whatever number of heads is computed at once."""
    monkeypatch.setattr(sections_module, "ELEMENTS", elements)
    heads, kv_heads, q, d = 6, 2, 3, 8
    near = Section(numbers(heads, q, d), numbers(kv_heads, 5, d, seed=1), numbers(kv_heads, 5, d, seed=2))
    hidden = torch.tensor([[False, True, False, False], [True, True, False, True], [False, False, False, False]])
    far = Section(
        numbers(heads, q, d, seed=3), numbers(kv_heads, 4, d, seed=4), numbers(kv_heads, 4, d, seed=5), hidden
    )
    none = Section(numbers(heads, q, d, seed=6), numbers(kv_heads, 0, d), numbers(kv_heads, 0, d))
    out, received = over_sections([near, far, none], AttentionRule(0.3), received=True)
    assert received is not None
    for head in range(heads):
        logits = [s.query[head].double() @ s.key[head // 3].double().T * 0.3 for s in (near, far)]
        logits[1][hidden] = -torch.inf
        weights = torch.softmax(torch.cat(logits, dim=1), dim=1)
        values = torch.cat([s.value[head // 3] for s in (near, far)]).double()
        assert torch.allclose(out[head].double(), weights @ values, atol=1e-6)
        assert torch.allclose(received[head].double(), weights[:, :5].sum(dim=0), atol=1e-6)
    assert over_sections([near], AttentionRule(0.3))[1] is None


def test_sections_in_half_precision_do_not_overflow() -> None:
    big = Section(torch.full((2, 1, 64), 60.0).half(), torch.full((1, 3, 64), 60.0).half(), numbers(1, 3, 64).half())
    out, _ = over_sections([big], AttentionRule(64**-0.5))
    assert out.dtype == torch.float16
    assert torch.allclose(out[0, 0].float(), big.value[0].float().mean(dim=0), atol=1e-2)


# --- whole stores ----------------------------------------------------------------------------------------------------


def test_a_whole_store_gives_spans_and_places_across_prompt_and_tail() -> None:
    key, value = numbers(2, 20, 4, seed=1), numbers(2, 20, 4, seed=2)
    layer = WholeLayer(key[:, :12].clone(), value[:, :12].clone())
    layer.append(key[:, 12:17], value[:, 12:17])
    layer.append(key[:, 17:], value[:, 17:])
    for spans in ([(0, 20)], [(3, 7)], [(10, 14)], [(14, 19)], [(0, 2), (11, 13), (15, 16)], [(4, 4)], []):
        places = [j for a, b in spans for j in range(a, b)]
        found = layer.rows(spans)
        assert torch.equal(found[0], key[:, places])
        assert torch.equal(found[1], value[:, places])
    index = torch.tensor([[0, 11, 12, 19], [5, 13, 2, 12]])
    found = layer.at(index)
    assert torch.equal(found[0], torch.stack([key[head, index[head]] for head in range(2)]))
    per_query = torch.tensor([[0, 19], [12, 1], [11, 3], [4, 4]])
    found = layer.at(per_query)
    assert torch.equal(found[1], torch.stack([value[head // 2, per_query[head]] for head in range(4)]))


def test_a_fork_of_a_half_read_prompt_goes_its_own_way() -> None:
    key = numbers(1, 6, 4)
    layer = WholeLayer(expected=6)
    layer.append(key[:, :3], key[:, :3])
    fork = layer.fork()
    fork.append(-key[:, 3:], -key[:, 3:])
    layer.append(key[:, 3:], key[:, 3:])
    assert torch.equal(layer.rows([(0, 6)])[0], key)
    assert torch.equal(fork.rows([(3, 6)])[0], -key[:, 3:])


# --- k-means ---------------------------------------------------------------------------------------------------------


def spread(points: Tensor, labels: Tensor) -> float:
    """Sum of squared distances from the mean of one's own set."""
    return sum(float((own - own.mean(dim=0)).square().sum()) for c in labels.unique() for own in [points[labels == c]])


def test_kmeans_finds_sets_that_lie_apart() -> None:
    centres = torch.tensor([[10.0, 0], [0, 10], [-10, 0], [0, -10]])
    truth = torch.arange(4).repeat(25)
    points = centres[truth] + numbers(100, 2) * 0.3
    labels = kmeans(points[None], 4)[0]
    assert len({(int(a), int(b)) for a, b in zip(truth, labels, strict=True)}) == 4


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 60), share=st.floats(0.05, 1), seed=st.integers(0, 1000))
def test_kmeans_is_reproducible_and_where_lloyd_ends(n: int, share: float, seed: int) -> None:
    k = max(1, int(share * n))
    points = numbers(2, n, 3, seed=seed)
    labels = kmeans(points, k, seed=seed, tolerance=0.0)
    assert torch.equal(labels, kmeans(points, k, seed=seed, tolerance=0.0))
    assert labels.min() >= 0
    assert labels.max() < k
    for own, of_head in zip(points, labels, strict=True):
        centres = means(own, of_head, k)
        used = torch.bincount(of_head, minlength=k) > 0
        away = torch.cdist(own.double(), centres.double())
        away[:, ~used] = torch.inf
        mine = away[torch.arange(n), of_head]
        assert float((mine - away.min(dim=1).values).max()) < 1e-4  # nobody is nearer to another centre
    if k == n:
        assert labels.sort(dim=1).values.tolist() == [list(range(n))] * 2


def test_kmeans_gets_better_with_iterations_and_needs_no_memory_for_all_distances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = numbers(1, 300, 5, seed=3)
    once, often = (spread(points[0], kmeans(points, 12, iterations=count)[0]) for count in (1, 100))
    assert often < once
    whole = kmeans(points, 12)
    monkeypatch.setattr(kmeans_module, "ELEMENTS", 50)
    assert torch.equal(kmeans(points, 12), whole)


def test_kmeans_of_equal_points_and_means_of_empty_sets() -> None:
    labels = kmeans(torch.ones(1, 8, 3), 3)
    assert labels.shape == (1, 8)
    found = means(torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([2, 2]), 4)
    assert found.tolist() == [[0, 0], [0, 0], [2, 3], [0, 0]]
    other = means(torch.ones(2, 2), torch.tensor([1, 1]), 2, empty=torch.full((2, 2), 7.0))
    assert other.tolist() == [[7, 7], [1, 1]]


# --- low rank --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "m", "rank"), [(50, 12, 5), (50, 12, 12), (50, 12, 99), (6, 12, 4), (6, 12, 99), (1, 3, 2)]
)
def test_low_rank_is_the_truncated_decomposition(n: int, m: int, rank: int) -> None:
    matrix = numbers(n, m) * torch.logspace(0, -3, m)
    left, right = low_rank(matrix, rank, torch.float32)
    kept = min(rank, n, m)
    assert left.shape == (n, kept)
    assert right.shape == (kept, m)
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    expected = (u[:, :kept] * s[:kept]) @ v[:kept]
    assert float((left.double() @ right.double() - expected).abs().max()) < 1e-5
    assert torch.allclose(left.T @ left, torch.eye(kept), atol=1e-3)


def test_low_rank_of_a_matrix_with_fewer_directions() -> None:
    matrix = numbers(40, 2) @ numbers(2, 9, seed=1)
    left, right = low_rank(matrix, 6, torch.float32)
    assert torch.isfinite(left).all()
    assert torch.allclose(left @ right, matrix, atol=1e-4)
    left, right = low_rank(torch.zeros(5, 4), 3, torch.bfloat16)
    assert left.dtype == right.dtype == torch.bfloat16
    assert float((left @ right).abs().max()) == 0.0
