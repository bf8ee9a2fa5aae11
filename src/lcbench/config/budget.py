"""How much of a prompt a method may keep: a share of it, or a number of tokens."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

PRESETS = {"2x": 0.5, "4x": 0.25, "6x": 0.17, "8x": 0.125}  # shares that a published comparison calls so


WRITTEN = (
    r"(?:[2468]x|(?:[0-9]{1,2}(?:\.[0-9]*)?|\.[0-9]+|100(?:\.0*)?)%|0*[1-9][0-9]*|0?\.[0-9]+|1\.0*"
    r"|[1-9](?:\.[0-9]+)?[eE]-0*[1-9][0-9]*)"
)
"""One budget as text, as a regular expression of Python and of JSON Schema; it lets shares of 0 through."""


@dataclass(frozen=True)
class Budget:
    """Tokens kept per (layer, KV head) from the prompt, recent window included.

    Exactly one of the two is set: ``ratio`` in (0, 1], or ``tokens`` >= 1. As text, ``0.25`` (or ``25%``) is a
    ratio and ``512`` is a number of tokens; ``1.0`` is the whole prompt and ``1`` one token. ``2x 4x 6x 8x`` are the
    ratios 0.5, 0.25, 0.17 and 0.125 of "KV Cache Compression, But What Must We Give in Return?" (arXiv:2407.01527).
    """

    ratio: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.tokens is None):
            raise ValueError("a budget is either a ratio or a number of tokens")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError("a ratio lies in (0, 1]")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError("a budget keeps at least one token")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``0.25``, ``25%``, ``512`` or one of `PRESETS`. Raises ValueError for anything else."""
        text = text.strip()
        if text in PRESETS:
            return cls(ratio=PRESETS[text])
        if not re.fullmatch(WRITTEN, text):
            raise ValueError(f"{text} is no budget")
        if text.endswith("%"):
            return cls(ratio=float(text[:-1]) / 100)
        if text.isdecimal():
            return cls(tokens=int(text))
        return cls(ratio=float(text))

    def __str__(self) -> str:
        if self.tokens is not None:
            return str(self.tokens)
        text = f"{self.ratio:.12g}"
        return text if "." in text or "e" in text else text + ".0"

    def resolve(self, prompt_tokens: int, *, at_least: int = 1) -> int:
        """Tokens kept of a prompt of ``prompt_tokens``: floor(ratio x L) or the number, never under ``at_least``,
        never over L. At L the caller keeps everything."""
        wanted = self.tokens if self.tokens is not None else math.floor((self.ratio or 0.0) * prompt_tokens + 1e-9)
        return min(max(wanted, at_least), prompt_tokens)

    def capacity(self, prompt_tokens: int, *, at_least: int = 1) -> int | None:
        """Most entries of a cache that evicts while decoding, too: floor(ratio x L) or the number, which may exceed
        the prompt and then bounds what follows it. Never under ``at_least``; None, no bound, for a ratio of 1."""
        if self.tokens is not None:
            return max(self.tokens, at_least)
        return None if self.ratio == 1.0 else max(self.resolve(prompt_tokens), at_least)
