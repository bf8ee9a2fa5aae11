"""Google's ROUGE (package `rouge-score`) as additional columns; never the LongBench score.

ROUGE-1, -2, -L and -Lsum F1, without stemming. For Lsum every sentence gets a line of its own first (a blank after
``.``, ``!`` or ``?`` ends one). The package's tokenizer keeps a-z and 0-9 only, so there are no columns for Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from lcbench.errors import UsageError

COLUMNS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def google_rouge(prediction: str, answers: Iterable[str]) -> tuple[float, ...]:
    """F1 for each of `COLUMNS`, 0 to 1, each the maximum over ``answers``; zeros without answers."""
    best = [0.0] * len(COLUMNS)
    scorer = _scorer()
    lines = _SENTENCE_END.sub("\n", prediction)
    for answer in answers:
        found = scorer.score(_SENTENCE_END.sub("\n", answer), lines)
        best = [max(old, found[name].fmeasure) for old, name in zip(best, COLUMNS, strict=True)]
    return tuple(best)


@cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UsageError("The package rouge-score is not installed.", "Install it: pip install rouge-score") from None
    return RougeScorer(list(COLUMNS), use_stemmer=False)
