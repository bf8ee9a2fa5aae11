"""The first number of the answer (100-LongBench: passage_retrieval, passage_count, counting_stars; `acc_score`)."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\d+")


def first_number(prediction: str, answer: str) -> float:
    """1.0 when the first run of digits in ``prediction`` is ``answer`` character by character, else 0.0.

    Nothing is normalised, as in the reference: "03" is not "3".
    """
    found = _NUMBER.search(prediction)
    return float(found is not None and found.group() == answer)
