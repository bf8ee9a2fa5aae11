"""A method's loss, taken apart: the parts add up, pairs meet the same draws, and the sentence says what they carry."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from lcbench.errors import UnknownName
from lcbench.scoring.bootstrap import Bootstrap
from lcbench.scoring.longscore.decompose import Split
from lcbench.scoring.longscore.result import LongScoreOptions, LongScores, long_scores

BOOTSTRAP = Bootstrap(seed=0, resamples=1000)
Compare = Callable[..., Split]


def answers(share: float, of: int = 200, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [float(rng.random() < share) for _ in range(of)]


def spoiled(scores: list[float], loss: float, seed: int = 1) -> list[float]:
    """The same answers, some right ones made wrong."""
    rng = random.Random(seed)
    return [s * float(rng.random() >= loss) for s in scores]


@pytest.fixture
def both(scored: Any) -> Callable[..., LongScores]:
    """LongScores of full and of snapkv from their scores by length."""

    def build(full: dict[str, Any], other: dict[str, Any], **options: Any) -> LongScores:
        methods = {
            name: [scored(f"100-longbench/t@{label}", scores) for label, scores in by_length.items()]
            for name, by_length in (("full", full), ("snapkv@budget=0.25", other))
        }
        found = long_scores(methods, LongScoreOptions(**options), BOOTSTRAP)
        assert found is not None
        return found

    return build


FULL = {"base": answers(0.8, seed=1), "8k": answers(0.7, seed=2), "16k": answers(0.6, seed=3)}


def test_equal_answers_differ_by_exactly_nothing(both: Any) -> None:
    one = both(FULL, FULL).splits[0]
    for amount in (one.change, one.base_ability, one.long_context, one.base_change, one.long_score_change):
        assert (amount.value, amount.interval) == (0.0, (0.0, 0.0))
    assert "no loss that these samples can show" in one.sentence


def test_a_loss_at_length_alone_is_long_context_ability(both: Any) -> None:
    other = {**FULL, "8k": spoiled(FULL["8k"], 0.4), "16k": spoiled(FULL["16k"], 0.4)}
    one = both(FULL, other).splits[0]
    assert one.base_ability.value == 0.0
    assert one.long_context.value == one.change.value
    assert one.change.value < -20
    assert one.change.significant
    assert "what it costs is long-context ability" in one.sentence


def test_a_loss_in_the_same_share_everywhere_is_base_ability(both: Any) -> None:
    half = {label: [s * 0.5 for s in scores] for label, scores in FULL.items()}
    one = both(FULL, half).splits[0]
    assert one.long_context.value == pytest.approx(0.0, abs=0.01)
    assert one.base_ability.value == pytest.approx(one.change.value, abs=0.01)
    assert one.long_score_change.value == pytest.approx(0.0, abs=0.02)
    assert "what it costs is base ability" in one.sentence


def test_both_parts_add_up_to_the_change_at_every_length(both: Any) -> None:
    other = {"base": spoiled(FULL["base"], 0.2), "8k": spoiled(FULL["8k"], 0.5), "16k": spoiled(FULL["16k"], 0.6)}
    found = both(FULL, other)
    one = found.splits[0]
    assert one.base_ability.value + one.long_context.value == pytest.approx(one.change.value)
    for each in one.by_length:
        assert each.base_ability + each.long_context == pytest.approx(each.change)
    full, snapkv = (found.curves[m][0] for m in ("full", "snapkv@budget=0.25"))
    assert one.change.value == pytest.approx(snapkv.average - full.average, abs=0.011)
    assert one.long_score_change.value == pytest.approx(snapkv.long_score - full.long_score, abs=0.011)
    assert one.base_change.value == pytest.approx(snapkv.base.score - full.base.score, abs=0.011)
    # By hand, at 8k: B x R with B the base score and R what is left of it.
    b, b2, s, s2 = full.base.score, snapkv.base.score, full.rungs[0].score, snapkv.rungs[0].score
    by_hand = (b2 - b) * (s2 / b2 + s / b) / 2
    assert one.by_length[0].base_ability == pytest.approx(by_hand, abs=0.006)


def test_pairing_makes_the_interval_far_narrower_than_two_independent_samples_would(both: Any) -> None:
    other = {label: spoiled(scores, 0.03) for label, scores in FULL.items()}
    paired = both(FULL, other).splits[0].change
    independent = {label: answers(0.7, seed=50 + i) for i, label in enumerate(FULL)}
    unpaired = both(FULL, independent).splits[0].change
    assert paired.interval[1] - paired.interval[0] < 0.4 * (unpaired.interval[1] - unpaired.interval[0])


def test_only_questions_that_both_answered_are_compared(both: Any) -> None:
    other = {**FULL, "8k": [None, None, *FULL["8k"][2:]]}
    one = both(FULL, other).splits[0]
    assert one.change.value == 0.0
    assert (one.shared, one.left_out) == (598, 2)


@pytest.mark.parametrize(("base", "words"), [(0.0, "its base ability is gone"), (1.0, "of it")])
def test_a_base_of_zero_is_not_split(both: Any, base: float, words: str) -> None:
    other = {**FULL, "base": [s * base for s in FULL["base"]], "8k": spoiled(FULL["8k"], 0.5)}
    one = both(FULL, other).splits[0]
    assert words in one.sentence
    assert (one.base_ability.value is None) == (base == 0.0)


def test_a_method_that_gains_is_not_called_a_loss(both: Any) -> None:
    better = {**FULL, "8k": [1.0] * 200, "16k": [1.0] * 200}
    assert "it scores higher than full" in both(FULL, better).splits[0].sentence


def test_without_full_there_is_a_note_and_another_name_must_be_one(scored: Any, both: Any) -> None:
    tasks = [scored(f"100-longbench/t@{label}", scores) for label, scores in FULL.items()]
    found = long_scores({"a": tasks, "b": tasks}, LongScoreOptions(), BOOTSTRAP)
    assert found is not None
    assert found.splits == ()
    assert "No method full" in found.notes[0]
    with pytest.raises(UnknownName, match="'kivi' to compare with"):
        both(FULL, FULL, against="kivi")


def test_another_method_may_be_the_reference_by_its_bare_name(both: Any) -> None:
    found = both(FULL, FULL, against="snapkv")
    assert [(s.method, s.against) for s in found.splits] == [("full", "snapkv@budget=0.25")]


def test_the_json_form_is_read_back_equal(both: Any) -> None:
    import json

    other = {**FULL, "8k": spoiled(FULL["8k"], 0.4)}
    found = both(FULL, other)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert LongScores.from_dict(json.loads(text)) == found


def test_tasks_have_a_mean_that_comes_first_and_is_split_too(scored: Any) -> None:
    methods: dict[str, list[Any]] = {"full": [], "kivi@bits=2": []}
    for name in ("a", "b"):
        for label, scores in FULL.items():
            methods["full"].append(scored(f"100-longbench/{name}@{label}", scores))
            methods["kivi@bits=2"].append(scored(f"100-longbench/{name}@{label}", spoiled(scores, 0.1)))
    found = long_scores(methods, LongScoreOptions(), BOOTSTRAP)
    assert found is not None
    assert [c.name for c in found.curves["full"]] == ["100-longbench", "100-longbench/a", "100-longbench/b"]
    assert found.curves["full"][0].members == ("100-longbench/a", "100-longbench/b")
    assert [s.task for s in found.splits] == ["100-longbench", "100-longbench/a", "100-longbench/b"]
    whole, a, b = found.splits
    assert whole.change.value == pytest.approx((a.change.value + b.change.value) / 2, abs=0.011)
    assert "on the mean of the tasks" in whole.sentence


def test_tasks_of_two_builds_have_no_common_mean(scored: Any) -> None:
    tasks = [
        scored(f"100-longbench/{name}@{label}{build}", [1.0, 0.0])
        for build in ("", ",build=llama")
        for name in ("a", "b")
        for label in ("base", "8k")
    ]
    found = long_scores({"full": tasks}, LongScoreOptions(), BOOTSTRAP)
    assert found is not None
    assert [c.name for c in found.curves["full"] if c.members] == ["100-longbench", "100-longbench@build=llama"]


def test_other_suites_wait_until_they_are_asked_for(scored: Any) -> None:
    tasks = [scored(f"ruler/niah@{n}", [1.0, 0.0], benchmark="ruler") for n in ("4k", "8k")]
    assert long_scores({"full": tasks}, LongScoreOptions(), BOOTSTRAP) is None
    found = long_scores({"full": tasks}, LongScoreOptions(wanted=True), BOOTSTRAP)
    assert found is not None
    assert found.curves["full"][0].base.label == "4k"


def test_a_base_of_zero_on_few_samples_is_not_called_a_loss(both: Any) -> None:
    few = {"base": [1.0, 0.0], "8k": [0.0, 0.0]}
    sentence = both(few, {"base": [0.0, 0.0], "8k": [0.0, 0.0]}).splits[0].sentence
    assert "snapkv@budget=0.25 has a base score of 0" in sentence
    sentence = both({"base": [0.0, 0.0], "8k": [0.0, 0.0]}, few).splits[0].sentence
    assert "full has a base score of 0" in sentence
