"""Curves, intervals and breakdown, against scipy, against algebra and by simulation."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from lcbench.scoring.bootstrap import Bootstrap
from lcbench.scoring.longscore.curve import Curve, curve, draw, interval_of, mean_of_ladders
from lcbench.scoring.longscore.ladder import find_ladders

BOOTSTRAP = Bootstrap(seed=0, resamples=2000)


@pytest.fixture
def make(scored: Any) -> Any:
    """The curve of one task from scores by length."""

    def build(base: Any, lengths: dict[str, Any], bootstrap: Bootstrap = BOOTSTRAP, **changes: Any) -> Curve:
        tasks = [scored("100-longbench/t@base", base, **changes)]
        tasks += [scored(f"100-longbench/t@{label}", scores) for label, scores in lengths.items()]
        return curve(draw(find_ladders(tasks, "reference")[0], bootstrap), bootstrap)

    return build


def ones(right: int, of: int) -> list[float]:
    return [1.0] * right + [0.0] * (of - right)


def test_scores_and_long_score_are_those_of_the_formula(make: Any) -> None:
    one = make(ones(60, 100), {"16k": ones(45, 100), "8k": ones(54, 100)})
    assert [(r.label, r.score, r.value) for r in one.rungs] == [("8k", 54.0, -10.0), ("16k", 45.0, -25.0)]
    assert (one.base.score, one.base.value) == (60.0, 0.0)
    assert (one.average, one.long_score) == (49.5, -17.5)
    assert one.labels == ("8k", "16k")


def test_intervals_agree_with_scipy(make: Any) -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(3)
    base, length = ([rng.random() ** 2 for _ in range(n)] for n in (80, 120))

    def value(b: Any, s: Any, axis: int) -> Any:
        mean = np.mean(b, axis=axis)
        return 100 * (np.mean(s, axis=axis) - mean) / mean

    theirs = stats.bootstrap(
        (base, length), value, method="percentile", n_resamples=4000, rng=np.random.default_rng(1), vectorized=True
    ).confidence_interval
    ours = make(base, {"8k": length}, Bootstrap(resamples=4000)).rungs[0].value_interval
    width = theirs.high - theirs.low
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)


def test_the_width_follows_from_both_samples(make: Any) -> None:
    """The delta method: var(S/B) = var(S)/B² + S² var(B)/B⁴; leaving one of the two out would miss by far."""
    one = make(ones(200, 400), {"8k": ones(100, 400)}, Bootstrap(resamples=4000))
    variance = 0.25 * 0.75 / 400 / 0.5**2 + 0.25**2 * 0.5 * 0.5 / 400 / 0.5**4
    low, high = one.rungs[0].value_interval
    assert (high - low) / 2 == pytest.approx(196 * math.sqrt(variance), rel=0.06)
    change = one.rungs[0].change_interval
    expected = 196 * math.sqrt((0.25 + 0.1875) / 400)
    assert (change[1] - change[0]) / 2 == pytest.approx(expected, rel=0.06)


def test_intervals_hold_what_they_promise(make: Any) -> None:
    """Over 200 simulated benchmarks the 95 % interval of LongScore covers the truth about 190 times."""
    rng = random.Random(11)
    covered = 0
    for trial in range(200):
        draws = [[float(rng.random() < p) for _ in range(100)] for p in (0.7, 0.6, 0.4)]
        one = make(draws[0], {"8k": draws[1], "16k": draws[2]}, Bootstrap(seed=trial, resamples=300))
        truth = 100 * ((0.6 - 0.7) / 0.7 + (0.4 - 0.7) / 0.7) / 2
        low, high = one.long_score_interval
        covered += low <= truth <= high
    assert 181 <= covered <= 199


def test_questions_on_one_context_count_as_one_draw(make: Any) -> None:
    scores = [float(i % 2) for i in range(40) for _ in range(5)]
    alone = make(scores, {"8k": ones(100, 200)})
    together = make(scores, {"8k": ones(100, 200)}, clusters=[str(i // 5) for i in range(200)])
    width = [one.base.interval[1] - one.base.interval[0] for one in (alone, together)]
    assert width[1] / width[0] == pytest.approx(math.sqrt(5), rel=0.1)
    assert (alone.base.clusters, together.base.clusters) == (200, 40)
    assert alone.long_score == together.long_score


def test_breakdown_is_the_first_length_significantly_below_the_base(make: Any) -> None:
    one = make(ones(60, 100), {"8k": ones(58, 100), "16k": ones(30, 100), "32k": ones(10, 100)})
    assert [r.below_base for r in one.rungs] == [False, True, True]
    assert (one.breakdown, one.lasting) == ("16k", True)
    recovers = make(ones(60, 100), {"8k": ones(30, 100), "16k": ones(60, 100)})
    assert (recovers.breakdown, recovers.lasting) == ("8k", False)
    never = make(ones(60, 100), {"8k": ones(57, 100), "16k": ones(63, 100)})
    assert (never.breakdown, never.lasting) == (None, False)
    assert make(ones(100, 100), {"8k": ones(0, 100)}).breakdown == "8k"


def test_a_base_of_zero_has_no_long_score_and_says_so(make: Any) -> None:
    one = make(ones(0, 100), {"8k": ones(5, 100)})
    assert (one.long_score, one.long_score_interval, one.rungs[0].value, one.base.value) == (None, None, None, None)
    assert one.average == 5.0
    assert "not defined" in one.warnings[0]


def test_a_small_base_is_doubted_and_an_endless_interval_is_none(make: Any) -> None:
    one = make(ones(2, 100), {"8k": ones(4, 100)})
    assert one.long_score == 100.0
    assert one.long_score_interval is None  # one replicate in eight has a base of 0
    assert any("small" in warning for warning in one.warnings)
    assert not make(ones(60, 100), {"8k": ones(58, 100)}).warnings


def test_a_base_near_guessing_is_doubted(make: Any) -> None:
    chance = [{"chance": 0.2}] * 100
    assert any("guessing" in w for w in make(ones(25, 100), {"8k": ones(20, 100)}, meta=chance).warnings)
    assert not make(ones(60, 100), {"8k": ones(20, 100)}, meta=chance).warnings


def test_few_samples_are_doubted_and_one_has_no_interval(make: Any) -> None:
    one = make([1.0], {"8k": [0.0]})
    assert (one.base.interval, one.long_score_interval, one.breakdown) == (None, None, None)
    assert one.long_score == -100.0
    assert any("few independent samples (1)" in warning for warning in one.warnings)


def test_a_length_without_a_score_takes_the_means_away(make: Any) -> None:
    one = make(ones(60, 100), {"8k": ones(50, 100), "16k": [None] * 10})
    assert (one.average, one.long_score, one.rungs[0].value) == (None, None, -16.67)
    assert any("16k" in warning for warning in one.warnings)


def test_the_overall_curve_is_the_formula_over_mean_scores_not_the_mean_of_long_scores(scored: Any) -> None:
    tasks = []
    for name, base, length in (("a", 80, 40), ("b", 20, 20)):
        tasks += [
            scored(f"100-longbench/{name}@base", ones(base, 100)),
            scored(f"100-longbench/{name}@8k", ones(length, 100)),
        ]
    tasks.append(scored("100-longbench/a@16k", ones(10, 100)))
    drawn = [draw(ladder, BOOTSTRAP) for ladder in find_ladders(tasks, "reference")]
    mean = mean_of_ladders(drawn)
    assert mean is not None
    one = curve(mean, BOOTSTRAP)
    assert (one.base.score, [r.score for r in one.rungs]) == (50.0, [30.0])
    assert one.long_score == -40.0  # the mean of -50 and 0 would be -25
    assert (one.base.counts.kept, one.rungs[0].counts.kept, one.rungs[0].clusters) == (200, 200, 200)
    assert "16k" in one.warnings[0]


def test_infinity_in_the_tail_is_no_interval() -> None:
    values = np.array([1.0] * 960 + [np.inf] * 40)
    assert interval_of(values, BOOTSTRAP) is None
    assert interval_of(np.array([1.0] * 990 + [np.inf] * 10), BOOTSTRAP) == (1.0, 1.0)
    assert interval_of(None, BOOTSTRAP) is None
