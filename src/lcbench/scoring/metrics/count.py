"""count: share of the numbers in a prediction that are the right one (`count_score` in `LongBench/metrics.py`)."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\d+")


def share_of_numbers(text: str, right: str) -> float:
    """Share of the digit runs of ``text`` that equal ``right`` as text, 0.0 without any.

    Runs are maximal and may be of any script's decimal digits; "03" is not "3", and full-width digits are never equal
    to ASCII ones. Several numbers dilute: the right one among three scores 1/3.
    """
    numbers = _NUMBER.findall(text)
    return numbers.count(right) / len(numbers) if numbers else 0.0


def count(prediction: str, answer: str) -> float:
    """`share_of_numbers` that equal the answer, character by character."""
    return share_of_numbers(prediction, answer)
