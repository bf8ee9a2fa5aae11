"""The text metrics apart from rouge and code_sim: normalisation, the deletion walk, numbers, keys, the public call."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcbench.errors import BadValue, UnknownName
from lcbench.scoring import score_row
from lcbench.scoring.metrics import METRICS, score
from lcbench.scoring.metrics.passkey import exact_match, partial_match
from lcbench.scoring.metrics.qa_f1 import normalized_tokens, qa_f1
from lcbench.scoring.metrics.qa_f1_zh import CHINESE_PUNCTUATION, cleaned_words, qa_f1_zh

# -- qa_f1 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("At 5 a.m. the State-of-the-Art", ["at", "5", "am", "stateoftheart"]),
        ("An  apple\ta\nday", ["apple", "day"]),
        ("«The» answer… “a”", ["«", "»", "answer…", "“", "”"]),
        ("the", []),
        ("!!!", []),
    ],
)
def test_english_normalisation(text: str, tokens: list[str]) -> None:
    assert normalized_tokens(text) == tokens


@given(st.text(alphabet="aA nthe.,-!é'\n\t1", max_size=40), st.text(alphabet="aA nthe.,-!é'\n\t1", max_size=40))
@settings(max_examples=300, deadline=None)
def test_qa_f1_equals_its_definition(prediction: str, answer: str) -> None:
    def tokens(text: str) -> list[str]:
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split()).split()

    p, g = tokens(prediction), tokens(answer)
    same = sum((Counter(p) & Counter(g)).values())
    expected = 0.0 if same == 0 else 2 * (same / len(p)) * (same / len(g)) / (same / len(p) + same / len(g))
    assert qa_f1(prediction, answer) == expected


def test_an_answer_of_articles_and_marks_scores_zero_even_against_itself() -> None:
    assert qa_f1("the", "the") == 0.0
    assert qa_f1("!!!", "!!!") == 0.0


# -- qa_f1_zh ----------------------------------------------------------------------------------------------------------


def test_chinese_punctuation_has_its_official_gaps() -> None:
    assert len(CHINESE_PUNCTUATION) == 74
    for kept in "《〈〉．·":
        assert kept not in CHINESE_PUNCTUATION
    for deleted in "，。！？；：“”‘’（）【】、》…—～｡･"[:-1]:
        assert deleted in CHINESE_PUNCTUATION


def test_chinese_words_are_cut_before_they_are_cleaned() -> None:
    assert cleaned_words("我来到北京清华大学。") == ["我", "来到", "北京", "清华大学"]
    assert cleaned_words("北京，ABC DEF！") == ["北京", "abc", "def"]
    assert cleaned_words("。，") == []
    assert qa_f1_zh("我来到北京", "北京") == pytest.approx(0.5)
    assert qa_f1_zh("。", "。") == 0.0


# -- classification ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "text", "expected"),
    [
        (["Other", "number", "Other number"], "Other number", 0.5),
        (["a", "b", "c", "abc"], "abc", 0.5),
        (["abcd", "d", "c", "b", "a"], "abcd", 1 / 3),
        (["abc", "abcdef"], "abc", 1.0),
        (["Date", "Food"], "date", 0.0),
    ],
)
def test_the_deletion_walk_skips(labels: list[str], text: str, expected: float) -> None:
    assert score("classification", text, [text], labels) == expected


def test_a_longer_label_around_the_answer_stays() -> None:
    assert score("classification", "long label", ["label"], ["label", "long label"]) == 0.5


@given(st.lists(st.text(alphabet="abc", min_size=0, max_size=3), min_size=1, max_size=8), st.data())
@settings(max_examples=300, deadline=None)
def test_classification_equals_the_list_walked_while_it_shrinks(labels: list[str], data: st.DataObject) -> None:
    gold = data.draw(st.sampled_from(labels))
    text = data.draw(st.text(alphabet="abc", max_size=8))
    found = [label for label in labels if label in text]
    for label in found:  # deleting from the list that is being walked, on purpose
        if label in gold and label != gold:
            found.remove(label)
    expected = 1.0 / len(found) if gold in found else 0.0
    assert score("classification", text, [gold], labels) == expected


def test_classification_without_labels_is_refused() -> None:
    with pytest.raises(BadValue, match="all_classes"):
        score("classification", "x", ["x"])


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("There are 3.", "3", 1.0),
        ("3, 4 and 5", "3", 1 / 3),
        ("03", "3", 0.0),
        ("３", "3", 0.0),
        ("٣", "٣", 1.0),
        ("none", "3", 0.0),
        ("33", "3", 0.0),
    ],
)
def test_count(prediction: str, answer: str, expected: float) -> None:
    assert score("count", prediction, [answer]) == expected


def test_retrieval_takes_the_first_paragraph_of_the_answer() -> None:
    assert score("retrieval", "Paragraph 12", ["Paragraph 12, not Paragraph 7"]) == 1.0
    assert score("retrieval", "7", ["Paragraph 12, not Paragraph 7"]) == 0.0
    assert score("retrieval", "12 or 7", ["Paragraph 12"]) == 0.5
    assert score("retrieval_zh", "段落12", ["段落12"]) == 1.0


@pytest.mark.parametrize(("metric", "answer"), [("retrieval", "paragraph 3"), ("retrieval_zh", "段落 3")])
def test_an_answer_without_a_paragraph_is_refused(metric: str, answer: str) -> None:
    with pytest.raises(BadValue, match=re.escape(answer)):
        score(metric, "3", [answer])


# -- passkey -----------------------------------------------------------------------------------------------------------


def test_passkey_matches() -> None:
    assert exact_match("The pass key is 1,043,321.", "1043321") == 1.0
    assert exact_match("104 3321", "1043321") == 0.0
    assert exact_match("991043321", "1043321") == 1.0
    assert exact_match("The Word: 12 the 34", "word 12 34") == 1.0
    assert exact_match("12 34", "12\nA 34.") == 1.0
    assert exact_match("...12345", "0012345") == 0.0
    assert partial_match("...12345", "0012345") == 5 / 7
    assert partial_match("", "0012345") == 0.0
    assert partial_match("x0012345x", "0012345") == 1.0


@given(st.text(alphabet="012", min_size=1, max_size=9), st.text(alphabet="012 ", max_size=25))
@settings(max_examples=300, deadline=None)
def test_partial_match_is_the_longest_common_substring(key: str, response: str) -> None:
    parts = {key[i:j] for i in range(len(key)) for j in range(i, len(key) + 1)}
    assert partial_match(response, key) == max(len(p) for p in parts if p in response) / len(key)


# -- the public call ---------------------------------------------------------------------------------------------------


def test_the_best_answer_counts_and_none_gives_zero() -> None:
    assert score("qa_f1", "Paris", ["London", "Paris", "Rome"]) == 1.0
    for metric in METRICS:
        assert score(metric, "x", [], ["x"]) == 0.0


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(UnknownName, match="rougge") as caught:
        score("rougge", "a", ["a"])
    assert "rouge" in caught.value.next_step
    with pytest.raises(UnknownName, match="code_sim"):
        score("code_sim", "a", ["a"], code_sim="rapidfuzz")  # type: ignore[arg-type]
    with pytest.raises(BadValue, match="one text"):
        score("qa_f1", "a", "abc")
    with pytest.raises(UnknownName, match="qaspr") as caught:
        score_row("qaspr", "a", ["a"])
    assert "qasper" in caught.value.next_step


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (("qa_f1", None, ["a"]), "The prediction is null, not text"),
        (("qa_f1", b"a", ["a"]), "of type bytes, not text"),
        (("qa_f1", "a", None), "answers is null, not a list of texts"),
        (("qa_f1", "a", [5]), "answers holds 5, which is of type int"),
        (("count", "5", [5.0]), "answers holds 5.0, which is of type float"),
        (("count", "1", [True]), "answers holds True, which is of type bool"),
        (("qa_f1", "a", [None]), "answers holds null"),
        (("classification", "a", ["a"], "abc"), "all_classes is one text"),
        (("classification", "a", ["a"], [1]), "all_classes holds 1"),
    ],
)
def test_what_is_no_text_is_refused(call: Any, why: str) -> None:
    with pytest.raises(BadValue, match=why):
        score(*call)
    if call[0] == "classification":
        with pytest.raises(BadValue, match=why):
            score_row("trec", *call[1:])


def test_counts_may_be_whole_numbers() -> None:
    """The official function compares str(ground_truth)."""
    assert score("count", "There are 5", [5]) == score_row("passage_count", "5", ["5"]) == 1.0
    assert score("count", "5 or 6", [5]) == 0.5


@pytest.mark.parametrize("task", ["triviaqa", "triviaqa_e"])
@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("Paris\nQuestion: next", 1.0),
        ("\n\nParis\nmore", 1.0),
        (" \nParis", 0.0),  # the blank is a line of its own: only line feeds are stripped
        ("\r\nParis", 0.0),
    ],
)
def test_first_line_cut(task: str, prediction: str, expected: float) -> None:
    assert score_row(task, prediction, ["Paris"]) == expected


def test_other_tasks_are_not_cut() -> None:
    assert score_row("hotpotqa", "Paris\nand more", ["Paris"]) == 0.5
    assert score_row("passkey@digits=64", "\n\nthe key is 123", ["123"]) == 1.0
