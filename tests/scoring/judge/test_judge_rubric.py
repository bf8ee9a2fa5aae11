"""Prompts that keep the rubric, and replies read strictly."""

from __future__ import annotations

import pytest

from lcbench.scoring.judge.rubric import Question, prompts_sha256, qa_score, read_reply, summary_score, system_text


def test_the_prompts_carry_the_rubric_and_the_texts() -> None:
    qa = Question("qa", "In Oslo.", "Oslo", "Where?").prompt
    for piece in ("fluency, a whole number from 0 to 2", "correctness, a whole number from 0 to 3", "Question: Where?"):
        assert piece in qa
    assert qa.endswith("Right answer: Oslo\nAnswer to grade: In Oslo.")
    fluency = Question("fluency", "A text.").prompt
    assert '{"fluency": 1}' in fluency
    assert fluency.endswith("Text to grade: A text.")
    precision = Question("precision", "A text.", "A reference.").prompt
    assert '"sentence_count"' in precision
    assert precision.endswith("Reference: A reference.\n\nSummary to grade: A text.")
    assert system_text()
    assert len(prompts_sha256()) == 64


def test_a_text_that_looks_like_a_place_or_a_format_is_left_alone() -> None:
    prompt = Question("qa", "<<answer>> {fluency} \\1", "SECRET", "<<prediction>>").prompt
    assert prompt.count("SECRET") == 1
    assert prompt.endswith("Answer to grade: <<answer>> {fluency} \\1")
    assert "Question: <<prediction>>" in prompt


@pytest.mark.parametrize(
    ("kind", "reply", "expected"),
    [
        ("qa", '{"fluency": 2, "correctness": 3}', {"fluency": 2, "correctness": 3}),
        ("fluency", '{"fluency": 1} no, on reflection: {"fluency":\n 0}', {"fluency": 0}),
        ("qa", '```json\n{"fluency": 2, "correctness": 1, "why": "so"}\n```', {"fluency": 2, "correctness": 1}),
        ("qa", '{"fluency": 2, "correctness": 3} {nothing}', None),
        ("qa", '{"fluency": 2}', None),
        ("qa", '{"fluency": 3, "correctness": 1}', None),
        ("qa", '{"fluency": -1, "correctness": 1}', None),
        ("qa", '{"fluency": "2", "correctness": 1}', None),
        ("qa", '{"fluency": true, "correctness": 1}', None),
        ("qa", '{"fluency": 1.5, "correctness": 1}', None),
        ("qa", "fluency: 2, correctness: 3", None),
        ("qa", "", None),
        ("fluency", '{"fluency": 1}', {"fluency": 1}),
        ("fluency", '{"fluency": 2}', None),
        ("precision", '{"precision": 2, "sentence_count": 5}', {"precision": 2, "sentence_count": 5}),
        ("precision", '{"precision": 0, "sentence_count": 0}', {"precision": 0, "sentence_count": 0}),
        ("precision", '{"precision": 6, "sentence_count": 5}', None),
        ("precision", '{"precision": 1e999, "sentence_count": 5}', None),
    ],
)  # fmt: skip
def test_replies_are_read_strictly(kind: str, reply: str, expected: dict[str, int] | None) -> None:
    assert read_reply(kind, reply) == expected  # type: ignore[arg-type]


def test_scores_are_those_of_the_benchmark() -> None:
    assert qa_score({"fluency": 2, "correctness": 3}) == 1.0
    assert qa_score({"fluency": 1, "correctness": 2}) == pytest.approx(2 / 6)
    assert summary_score({"fluency": 1}, {"precision": 2, "sentence_count": 5}) == pytest.approx(0.4)
    assert summary_score({"fluency": 0}, {"precision": 2, "sentence_count": 5}) == 0.0
    assert summary_score({"fluency": 1}, {"precision": 0, "sentence_count": 0}) == 0.0
