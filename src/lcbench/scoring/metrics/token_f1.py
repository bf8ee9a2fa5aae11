"""F1 of two bags of tokens, as the LongBench QA metrics count it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def token_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of the shares of predicted and of reference tokens that find a partner on the other side.

    Repeated tokens count as often as they occur on both sides. No shared token (so also an empty side) gives 0.0.
    Source: `f1_score` in `LongBench/metrics.py`; the operations are in the same order, so results agree to the bit.
    """
    wanted = Counter(reference)
    same = sum(min(count, wanted[token]) for token, count in Counter(prediction).items())
    if same == 0:
        return 0.0
    precision = same / len(prediction)
    recall = same / len(reference)
    return (2 * precision * recall) / (precision + recall)
