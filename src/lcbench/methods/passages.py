"""A context as passages: what coarse compressors keep or drop as a whole."""

from __future__ import annotations

import re
from itertools import pairwise

_MARKS = (
    re.compile(r"(?m)^(?=Passage \d+:)"),  # hotpotqa, 2wikimqa, musique
    re.compile(r"(?m)^(?=Paragraph \d+:)"),  # passage_retrieval_en, passage_count
    re.compile(r"(?m)^(?=段落\d+[:：])"),  # passage_retrieval_zh
    re.compile(r"(?m)^(?=文章\d+)"),  # dureader
)
_ENDS = re.compile(r"(?<=[.!?。！？])\s+|(?<=[。！？])|\n+")


def split(text: str, size: int, *, overlong: int | None = None) -> list[str]:
    """A text as passages, joined without loss by nothing: at the data set's own marks where it has them, else pieces
    of about ``size`` words (or 2 ``size`` characters of a script without spaces) that end with a sentence.

    Args:
        overlong: words from which a marked passage is cut into pieces too; None for never.
    """
    for mark in _MARKS:
        starts = [m.start() for m in mark.finditer(text)]
        if len(starts) > 1:
            cuts = [0, *(start for start in starts if start > 0), len(text)]
            whole = [text[a:b] for a, b in pairwise(cuts)]
            if overlong is None:
                return whole
            return [piece for one in whole for piece in (_pieces(one, size) if _length(one) > overlong else [one])]
    return _pieces(text, size)


def _pieces(text: str, size: int) -> list[str]:
    ends = [m.end() for m in _ENDS.finditer(text)]
    cuts = [0]
    last = 0
    for end in [*ends, len(text)]:
        if end > last and _length(text[cuts[-1] : end]) > size and last > cuts[-1]:
            cuts.append(last)
        while _length(text[cuts[-1] : end]) > 2 * size:  # a sentence without an end: cut it at a blank
            at = _at_length(text, cuts[-1], size)
            if at >= end:
                break
            cuts.append(at)
        last = max(last, end)
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True) if b > a]


def _length(text: str) -> int:
    """Words; a run without blanks counts a word for every two wide characters in it."""
    wide = sum(1 for c in text if "\u3040" <= c <= "\u9fff")
    return max(len(text.split()), wide // 2)


def _at_length(text: str, start: int, size: int) -> int:
    """Where ``size`` words from ``start`` end."""
    at = start
    for count, match in enumerate(re.finditer(r"\S+\s*", text[start:]), 1):
        at = start + match.end()
        if count >= size:
            break
    return at if len(text[start:at]) <= 12 * size else start + 2 * size
