"""Paired statistics against scipy and against definitions written out."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lcbench.scoring.bootstrap import Bootstrap
from lcbench.scoring.paired import Pairs, compare_pairs, compare_tasks, holm, mcnemar, sign_flip


@pytest.mark.parametrize(
    ("wins", "losses"), [(0, 0), (1, 0), (0, 5), (5, 5), (3, 12), (20, 7), (150, 110), (1000, 900), (0, 2000)]
)
def test_mcnemar_is_the_exact_binomial_test(wins: int, losses: int) -> None:
    expected = stats.binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_sign_flips_by_the_definition(values: list[int]) -> None:
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=len(values))
    ]
    expected = sum(total >= abs(sum(values)) for total in sums) / len(sums)
    assert sign_flip([v / 7 for v in values]) == pytest.approx(expected)


def test_sign_flips_against_scipy() -> None:
    first = np.array([0.1, 0.5, 0.9, 0.3, 0.25, 1.0, 0.0, 0.66, 0.4, 0.8])
    second = np.array([0.0, 0.45, 0.4, 0.35, 0.0, 0.5, 0.1, 0.6, 0.3, 0.2])
    expected = stats.permutation_test(
        (first, second), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(list(second - first)) == pytest.approx(expected.pvalue)


def test_many_values_are_drawn_and_close_to_the_normal_limit() -> None:
    values = list(np.random.default_rng(0).normal(0.2, 1.0, 400))
    z = abs(sum(values)) / np.sqrt(np.sum(np.square(values)))
    assert sign_flip(values) == pytest.approx(2 * stats.norm.sf(z), abs=0.004)
    assert sign_flip(values, seed=1) == sign_flip(values, seed=1)
    assert sign_flip([1.0] * 300) == 1 / 20_001  # never 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
@settings(max_examples=60, deadline=None)
def test_holm_is_closed_testing_with_bonferroni(ps: list[float]) -> None:
    """The corrected p of i is the largest Bonferroni p of all sets of hypotheses that i is in."""
    indices = range(len(ps))
    sets = [chosen for size in range(1, len(ps) + 1) for chosen in combinations(indices, size)]
    for i, corrected in enumerate(holm(ps)):
        expected = max(min(1.0, len(s) * min(ps[j] for j in s)) for s in sets if i in s)
        assert corrected == pytest.approx(expected)


def pairs(first: list[float], second: list[float], clusters: list[object] | None = None, task: str = "t") -> Pairs:
    return Pairs(task, tuple(first), tuple(second), tuple(clusters or range(len(first))))


def test_the_interval_is_the_percentile_bootstrap_of_the_differences() -> None:
    draw = np.random.default_rng(1)
    first, second = draw.uniform(size=120), draw.uniform(size=120) * 0.8
    result, _ = compare_pairs(pairs(list(first), list(second)), Bootstrap(resamples=20_000))
    expected = stats.bootstrap(
        (second - first,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert result.interval == pytest.approx((100 * expected.low, 100 * expected.high), abs=0.35)
    assert result.difference == pytest.approx(100 * np.mean(second - first))
    assert (result.first, result.second) == pytest.approx((100 * first.mean(), 100 * second.mean()))
    assert result.test == "sign-flip"


def test_scores_of_0_and_1_get_mcnemar_and_counts() -> None:
    first, second = [1.0] * 12 + [0.0] * 8, [1.0] * 3 + [0.0] * 9 + [1.0] * 2 + [0.0] * 6
    result, _ = compare_pairs(pairs(first, second), Bootstrap())
    assert (result.wins, result.ties, result.losses, result.test) == (2, 9, 9, "mcnemar")
    assert result.p == pytest.approx(stats.binomtest(2, 11, 0.5).pvalue)


def test_rounding_is_no_win() -> None:
    result, _ = compare_pairs(pairs([0.1 + 0.2, 0.5], [0.3, 0.4]), Bootstrap())
    assert (result.wins, result.ties, result.losses) == (0, 1, 1)


def test_clusters_are_drawn_and_flipped_whole() -> None:
    first, second = [0.0] * 40, [0.5, 0.25] * 20
    alone, _ = compare_pairs(pairs(first, second), Bootstrap())
    together, _ = compare_pairs(pairs(first, second, ["a"] * 20 + ["b"] * 20), Bootstrap())
    assert alone.p < 0.001
    assert together.p == 0.5  # two clusters on one side: half of the four sign patterns are as far out
    assert together.interval == (37.5, 37.5)
    single, _ = compare_pairs(pairs(first, second, ["a"] * 40), Bootstrap())
    assert single.interval is None
    assert (single.n, single.clusters) == (40, 1)


def test_several_tasks_are_corrected_and_weigh_the_same() -> None:
    draw = np.random.default_rng(3)
    worse = pairs(list(draw.uniform(0.5, 1, 60)), list(draw.uniform(0, 0.5, 60)), task="worse")
    same = pairs(list(draw.uniform(size=20)), list(draw.uniform(size=20)), task="same")
    each, overall = compare_tasks([worse, same], Bootstrap())
    assert [r.p_holm for r in each] == holm([r.p for r in each])
    assert overall.difference == pytest.approx(np.mean([r.difference for r in each]))
    assert overall.n == 80
    assert overall.p < 0.001
    assert overall.interval is not None
    assert overall.interval[1] < 0
    (one,), alone = compare_tasks([worse], Bootstrap())
    assert one == alone
    assert one.p == one.p_holm
