"""qa_f1: token F1 of English answers after normalisation (`qa_f1_score` in `LongBench/metrics.py`)."""

from __future__ import annotations

import re
import string

from lcbench.scoring.metrics.token_f1 import token_f1

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized_tokens(text: str) -> list[str]:
    """Lower-case, delete ASCII punctuation, blank out a/an/the, split on white space, in this order.

    The order is part of the definition: punctuation goes first, so "a.m." becomes the word "am" and keeps its "a", and
    "state-of-the-art" becomes one token whose "the" is no word of its own. Punctuation outside ASCII stays.
    """
    return _ARTICLES.sub(" ", text.lower().translate(_DELETE_PUNCTUATION)).split()


def qa_f1(prediction: str, answer: str) -> float:
    """F1 of the normalised tokens, 0 to 1. An answer of articles and punctuation alone scores 0 against anything."""
    return token_f1(normalized_tokens(prediction), normalized_tokens(answer))
