"""passkey: was the hidden key found? exact_match and partial_match, as longctx_bench has them.

Source: `eval/passkey_utils/eval_metrics.py` of henryzhongsc/longctx_bench.
"""

from __future__ import annotations

import re
import string

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def exact_match(prediction: str, answer: str) -> float:
    """1.0 when the normalised key stands anywhere in the normalised response, else 0.0.

    Normalised: lower case, no ASCII punctuation, no a/an/the, blanks collapsed. So "1,043,321" holds the key 1043321,
    "104 3321" does not, and a longer digit string that contains the key passes.
    """
    return float(_normalized(answer) in _normalized(prediction))


def partial_match(prediction: str, answer: str) -> float:
    """Length of the longest common substring of raw key and raw response, over the length of the key; 0 to 1."""
    if not answer:
        return 0.0
    longest = 0
    for start in range(len(answer)):
        # Try only substrings that would beat the best so far, letting them grow.
        while start + longest < len(answer) and answer[start : start + longest + 1] in prediction:
            longest += 1
    return longest / len(answer)


def _normalized(text: str) -> str:
    return " ".join(_ARTICLES.sub("", text.lower().translate(_DELETE_PUNCTUATION)).split())
