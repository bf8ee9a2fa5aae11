"""retrieval, retrieval_zh: share of the numbers in a prediction that name the right paragraph.

Source: `retrieval_score` and `retrieval_zh_score` in `LongBench/metrics.py`.
"""

from __future__ import annotations

import re

from lcbench.errors import BadValue
from lcbench.scoring.metrics.count import share_of_numbers

_ENGLISH = re.compile(r"Paragraph (\d+)")
_CHINESE = re.compile("\u6bb5\u843d" + r"(\d+)")  # the word for paragraph, no blank before the number


def retrieval(prediction: str, answer: str) -> float:
    """Share of the digit runs that equal the number in the answer's first "Paragraph N". BadValue without one."""
    return share_of_numbers(prediction, _paragraph(_ENGLISH, answer))


def retrieval_zh(prediction: str, answer: str) -> float:
    """The same for Chinese answers. Raises BadValue for an answer that names no paragraph."""
    return share_of_numbers(prediction, _paragraph(_CHINESE, answer))


def _paragraph(pattern: re.Pattern[str], answer: str) -> str:
    match = pattern.search(answer)
    if match is None:
        shown = answer if len(answer) <= 60 else answer[:60] + "…"
        word = pattern.pattern.removesuffix(r"(\d+)")
        raise BadValue(
            f"The answer {shown!r} names no paragraph: '{word}' and a number are not in it.",
            "The official scorer stops there too; mend the answer, or score the file as another task.",
        )
    return match.group(1)
