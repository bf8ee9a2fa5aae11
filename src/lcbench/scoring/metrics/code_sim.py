"""code_sim: similarity of one line of code to the right one (`code_sim_score` in `LongBench/metrics.py`).

The official scorer calls `fuzzywuzzy.fuzz.ratio`, and what that computes depends on what else is installed: Python's
difflib as the official requirements leave it, python-Levenshtein's indel similarity where that package is present.
Published tables differ on this, by up to two points on lcc. Here both are computed by lcbench itself, so a score
depends on the definition asked for and on nothing else.
"""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Literal

from lcbench.scoring.metrics.lcs import common_length

CodeSim = Literal["difflib", "levenshtein"]
_UNUSABLE = ("`", "#", "//")


def first_code_line(text: str) -> str:
    """The first line that holds no backtick, no ``#`` and no ``//``; "" when there is none.

    Line feeds at the start are dropped, nothing else is: a line of blanks counts, a carriage return at its end stays,
    and a string with ``#`` or a URL in it disqualifies a line.
    """
    for line in text.lstrip("\n").split("\n"):
        if not any(mark in line for mark in _UNUSABLE):
            return line
    return ""


def code_sim(prediction: str, answer: str, *, definition: CodeSim = "difflib") -> float:
    """Whole percents of similarity, divided by 100: 0 to 1.

    Args:
        definition: "difflib" (official) or "levenshtein".
    """
    line = first_code_line(prediction)
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    similarity = indel_similarity(line, answer) if definition == "levenshtein" else difflib_similarity(line, answer)
    return round(100 * similarity) / 100


def difflib_similarity(prediction: str, answer: str) -> float:
    """2M / T of difflib, M being the characters in its matching blocks.

    The order of the two matters, and so does difflib's rule for long texts, which stays on: when the answer has 200
    characters or more, those that make up over one percent of it do not start a match.
    """
    return SequenceMatcher(None, prediction, answer).ratio()


def indel_similarity(prediction: str, answer: str) -> float:
    """1 - D / (both lengths), D being insertions and deletions alone: `Levenshtein.ratio` of 0.13 to 0.27."""
    length = len(prediction) + len(answer)
    return 1.0 - (length - 2 * common_length(prediction, answer)) / length
