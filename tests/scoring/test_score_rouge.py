"""rouge and rouge_zh: against a slow restatement, against the package itself, and the facts of the specification."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_oracle import recovered, rouge_l

from lcbench.scoring.metrics import score
from lcbench.scoring.metrics.lcs import common_length, recovered_words, walk_steps
from lcbench.scoring.metrics.rouge import rouge
from lcbench.scoring.metrics.rouge_zh import rouge_zh
from lcbench.scoring.metrics.segment import words

WORDS = st.lists(st.sampled_from("abcdef"), max_size=30)
ODD = st.lists(st.sampled_from(["a", "b", "c", ".", ". ", " ", "  ", "\n", "x.y", "\u3000", "1"]), max_size=30).map(
    "".join
)
SENTENCES = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6).map(" ".join), max_size=5).map(". ".join)
TEXT = ODD | SENTENCES


@given(WORDS, WORDS)
@settings(max_examples=400, deadline=None)
def test_recovered_words_are_those_of_the_cell_by_cell_walk(x: list[str], y: list[str]) -> None:
    theirs, steps = recovered(x, y)
    assert recovered_words(x, y, set(x) & set(y)) == theirs[::-1]
    assert walk_steps(x, y) == steps
    assert common_length("".join(x), "".join(y)) == len(theirs)


@given(TEXT, TEXT)
@settings(max_examples=400, deadline=None)
def test_score_equals_the_slow_definition(prediction: str, answer: str) -> None:
    assert rouge(prediction, answer) == rouge_l(prediction, answer)


def test_ties_are_broken_as_published() -> None:
    """Another longest common subsequence would do as well for the length, but its words differ."""
    assert recovered_words(["a", "b"], ["b", "a"], {"a", "b"}) == ["b"]
    assert recovered_words(["b", "a"], ["a", "b"], {"a", "b"}) == ["a"]


@given(WORDS, WORDS, st.data())
@settings(max_examples=100, deadline=None)
def test_words_without_a_partner_change_steps_but_no_words(x: list[str], y: list[str], data: st.DataObject) -> None:
    padded = [w for word in x for w in ["-"] * data.draw(st.integers(0, 2)) + [word]] + ["-"]
    assert recovered_words(padded, y, set(x) & set(y)) == recovered_words(x, y, set(x) & set(y))
    assert recovered(padded, y)[0] == recovered(x, y)[0]


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("a b.", "a b", 0.999999995),
        ("a b. ", "a b", 0.799999995),  # the blank after the stop is a piece: one empty word
        ("the the the cat", "the cat", 0.999999995),
        ("", "a", 0.0),
        ("a", "", 0.0),
        ("...", "a", 0.0),
        (" ", "a", 0.0),
        ("A b", "a b", 0.499999995),
        ("b a", "a b", 0.499999995),
        ("It cost 1.5 million", "It cost 1 . 5 million", 0.999999995),
    ],
)
def test_known_values(prediction: str, answer: str, expected: float) -> None:
    assert rouge(prediction, answer) == pytest.approx(expected, abs=1e-9)


def _pair(steps: int) -> tuple[str, str]:
    """A pair of pieces whose walk takes exactly ``steps`` steps, with one common word."""
    left = steps // 2
    return " ".join(["k"] + ["y"] * (steps - 1 - left)), " ".join(["k"] + ["x"] * left)


@pytest.mark.parametrize(("metric", "last"), [("rouge", 990), ("rouge_zh", 989)])
def test_strict_recursion_gives_zero_beyond_the_official_stack(metric: str, last: int) -> None:
    for steps in (last, last + 1):
        prediction, answer = _pair(steps)
        assert walk_steps(answer.split(), prediction.split()) == steps
        assert score(metric, prediction, [answer]) == pytest.approx(0.5, abs=1e-6)
    assert score(metric, *_listed(_pair(last)), strict_recursion=True) == pytest.approx(0.5, abs=1e-6)
    assert score(metric, *_listed(_pair(last + 1)), strict_recursion=True) == 0.0


def _listed(pair: tuple[str, str]) -> tuple[str, list[str]]:
    return pair[0], [pair[1]]


def test_long_texts_need_no_recursion() -> None:
    text = " ".join(f"w{i}" for i in range(5000))
    assert rouge(text, text) == pytest.approx(0.999999995, abs=1e-12)


@given(TEXT, TEXT)
@settings(max_examples=150, deadline=None)
def test_equal_to_the_package_where_it_is_installed(prediction: str, answer: str) -> None:
    package = pytest.importorskip("rouge")
    try:
        theirs = package.Rouge().get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
    except ValueError:
        theirs = 0.0
    assert rouge(prediction, answer) == theirs


def test_chinese_is_segmented_first() -> None:
    prediction, answer = "我来到北京清华大学", "他来到北京清华大学"
    assert words(prediction) == ("我", "来到", "北京", "清华大学")
    assert rouge_zh(prediction, answer) == pytest.approx(0.75, abs=1e-8)
    assert rouge(prediction, answer) == 0.0
