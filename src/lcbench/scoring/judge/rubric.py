"""What a judge is asked, and what its reply says. The rubric is that of 100-LongBench (after HELMET), the words ours.

Question answering: fluency 0 to 2 times correctness 0 to 3, over 6. Summaries: fluency 0 or 1 times the share of the
summary's sentences that the reference supports; what the reference has and the summary lacks costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

Kind = Literal["qa", "fluency", "precision"]
Grades = Mapping[str, int]

KINDS: tuple[Kind, ...] = ("qa", "fluency", "precision")

_PLACE = re.compile(r"<<(\w+)>>")
_GROUP = re.compile(r"\{[^{}]*\}", re.DOTALL)
_RANGES: Mapping[Kind, Mapping[str, int | None]] = {
    "qa": {"fluency": 2, "correctness": 3},
    "fluency": {"fluency": 1},
    "precision": {"precision": None, "sentence_count": None},
}


@dataclass(frozen=True)
class Question:
    """One thing to ask a judge; equal ones are asked once.

    Attributes:
        kind: which rubric. prediction: text to grade. answer: the right answer, or the reference summary. question: the
        one that was asked, for ``qa``.
    """

    kind: Kind
    prediction: str
    answer: str = ""
    question: str = ""

    @property
    def prompt(self) -> str:
        """The text of the user's turn."""
        values = {"prediction": self.prediction, "answer": self.answer, "question": self.question}
        # One pass, so that a text to grade that looks like a place is not filled in.
        return _PLACE.sub(lambda match: values[match[1]], _text(self.kind))


def system_text() -> str:
    """The text of the system's turn."""
    return _text("system")


def prompts_sha256() -> str:
    """Hex digest over all texts, so that results say which wording they were made with."""
    return hashlib.sha256("\0".join(_text(name) for name in ("system", *KINDS)).encode()).hexdigest()


@cache
def _text(name: str) -> str:
    source = files("lcbench.scoring.judge").joinpath(f"prompts/{name}.txt")
    return source.read_text(encoding="utf-8").rstrip("\n")


def read_reply(kind: Kind, reply: str) -> Grades | None:
    """Grades in a reply: the last group in braces, which must be a JSON object with whole numbers in their ranges.

    Returns:
        None for anything else: a reply that has to be guessed at is no grade.
    """
    groups = _GROUP.findall(reply)
    if not groups:
        return None
    try:
        data = json.loads(groups[-1])
    except ValueError:
        return None
    grades: dict[str, int] = {}
    for name, most in _RANGES[kind].items():
        value = data.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0 or (most is not None and value > most):
            return None
        grades[name] = value
    if kind == "precision" and grades["precision"] > grades["sentence_count"]:
        return None
    return grades


def qa_score(grades: Grades) -> float:
    """0 to 1."""
    return grades["fluency"] * grades["correctness"] / 6


def summary_score(fluency: Grades, precision: Grades) -> float:
    """0 to 1; 0 when the judge counts no sentence, as in the reference."""
    count = precision["sentence_count"]
    return fluency["fluency"] * precision["precision"] / count if count else 0.0
