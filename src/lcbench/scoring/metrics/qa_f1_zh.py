"""qa_f1_zh: token F1 of Chinese answers (`qa_f1_zh_score` in `LongBench/metrics.py`)."""

from __future__ import annotations

import string

from lcbench.scoring.metrics.segment import words
from lcbench.scoring.metrics.token_f1 import token_f1

_PUNCTUATION_RANGES = (
    (0x2013, 0x2014),  # dashes
    (0x2018, 0x2019),  # curly quotes
    (0x201B, 0x201F),
    (0x2026, 0x2027),  # ellipsis, hyphenation point
    (0x3001, 0x3003),  # ideographic comma and stop, ditto mark
    (0x300B, 0x3011),  # closing double angle bracket to lenticular brackets; the OPENING one, U+300A, is not listed
    (0x3014, 0x301F),  # tortoise shell brackets to low double prime
    (0x3030, 0x3030),  # wavy dash
    (0x303E, 0x303F),  # variation indicator, half fill space
    (0xFE4F, 0xFE4F),  # wavy low line
    (0xFF01, 0xFF0D),  # full-width ASCII punctuation; the full-width stop, U+FF0E, is not listed
    (0xFF0F, 0xFF0F),
    (0xFF1A, 0xFF20),
    (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF64),  # … and half-width ideographic stop, brackets and comma
)
CHINESE_PUNCTUATION = "".join(chr(c) for first, last in _PUNCTUATION_RANGES for c in range(first, last + 1))
"""The 74 Chinese marks that the official scorer deletes, besides the 32 of ASCII. Gaps are the official ones."""

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation + CHINESE_PUNCTUATION)


def cleaned_words(text: str) -> list[str]:
    """Words of ``text``: segmented first, as it stands, and only then lower-cased and freed of punctuation and blanks.

    Because segmentation sees the raw text, punctuation and neighbours change where words end. Traditional and
    simplified characters, full-width and ASCII letters stay different. Words that become empty are dropped.
    """
    cleaned = ("".join(word.lower().translate(_DELETE_PUNCTUATION).split()) for word in words(text))
    return [word for word in cleaned if word]


def qa_f1_zh(prediction: str, answer: str) -> float:
    """F1 of the cleaned words, 0 to 1."""
    return token_f1(cleaned_words(prediction), cleaned_words(answer))
