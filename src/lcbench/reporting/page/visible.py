"""Foreign text made visible: what a page would hide or obey is shown by name."""

from __future__ import annotations

import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """``text`` with line feeds and tabs as they are, and other controls, marks that are invisible or turn the direction
    of writing, and halves of surrogate pairs as ``⟨U+202E⟩``."""
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", text.replace("\r\n", "\n"))


def cut(text: str, longest: int) -> str:
    """``text``, or its begin and end with the number of characters left out between them."""
    if len(text) <= longest:
        return text
    head, tail = longest - longest // 4, longest // 4
    left_out = len(text) - head - tail
    return f"{text[:head]}\n⟨… {left_out:,} characters left out …⟩\n{text[len(text) - tail :]}"
