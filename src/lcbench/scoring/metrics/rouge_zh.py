"""rouge_zh: `rouge` over the words that jieba finds (`rouge_zh_score` in `LongBench/metrics.py`).

Chinese text has no ASCII full stop, so a whole summary is usually one piece; a full stop inside a number or a word
still cuts it.
"""

from __future__ import annotations

from functools import lru_cache

from lcbench.scoring.metrics.rouge import RECURSION_STEPS, rouge_of_pieces
from lcbench.scoring.metrics.segment import words

RECURSION_STEPS_ZH = RECURSION_STEPS - 1
"""One frame of the official script less than `rouge` has: rouge_zh calls it."""


@lru_cache(maxsize=512)
def _pieces(text: str) -> list[list[str]]:
    return [piece.split() or [""] for piece in " ".join(words(text)).split(".") if piece]


def rouge_zh(prediction: str, answer: str, *, strict_recursion: bool = False) -> float:
    """ROUGE-L F1 of the words, 0 to 1. ``strict_recursion`` as in `rouge`, with one step less."""
    most_steps = RECURSION_STEPS_ZH if strict_recursion else None
    return rouge_of_pieces(_pieces(prediction), _pieces(answer), most_steps)
