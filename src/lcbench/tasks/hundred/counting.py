"""Token counters: what decides how long "8k" is. The pluggable part of a build; no tokenizer is known here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class TokenCounter(Protocol):
    """Counts tokens of texts.

    Attributes:
        name: what the user called it. identity: hash that is equal only for equal counts, e.g. of the tokenizer.
    """

    name: str
    identity: str

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens that the tokenizer adds to a text included."""


def shortened(text: str, tokens: int, counter: TokenCounter) -> tuple[str, int]:
    """The beginning of ``text`` that has at most ``tokens`` tokens, ending between two words, and its tokens.

    A few counts of short texts: the cut is guessed from the characters a token has, and moved until it is close.
    Returns ("", 0) when not even the first word fits.
    """
    total = counter.count([text])[0] if len(text) < 16 * tokens + 256 else tokens + 1
    if total <= tokens:
        return text, total
    low, high = 0, len(text)  # the cut lies between: low fits, high does not
    best, best_tokens = "", 0
    place = min(len(text) - 1, 4 * tokens)
    for _ in range(12):
        cut = _between_words(text, place)
        count = counter.count([text[:cut]])[0] if cut else 0
        if count <= tokens:
            if cut > len(best):
                best, best_tokens = text[:cut], count
            low = max(low, place)
        else:
            high = min(high, place)
        if (best and 0 <= tokens - best_tokens <= 2) or high - low <= 4:
            break
        rate = max(1.0, cut / count) if count else 4.0
        place = int(cut + (tokens - count) * rate)
        if not low < place < high:
            place = (low + high) // 2
    return best, best_tokens


def _between_words(text: str, place: int) -> int:
    """The last place up to ``place`` at which a word has just ended; 0 when the first word is longer."""
    while place > 0 and not (text[place : place + 1].isspace() and not text[place - 1].isspace()):
        place -= 1
    return place
