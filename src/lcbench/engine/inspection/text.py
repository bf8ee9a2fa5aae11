"""Token ids as pieces of text, and what a rewritten prompt lost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

from lcbench.inspected import Piece

_BEFORE = 4  # tokens that are decoded along, since some tokenizers drop the space of a text's first word
_LONGEST = 8  # tokens that may make up one character
_BROKEN = "\ufffd"
_SENTENCE = re.compile(r"[^.!?。！？\n]*[.!?。！？\n]+\s*|[^.!?。！？\n]+")
_WORD = re.compile(r"\s*\S+\s*|\s+")


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; a token that ends in the middle of a character adds nothing, and the one that
    ends the character all of it. Joined they are the text, special tokens included."""

    def decoded(start: int, stop: int) -> str:
        return str(
            tokenizer.decode(list(ids[start:stop]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    texts: list[str] = []
    start = 0  # of the tokens whose text is not out yet
    for i in range(len(ids)):
        before, whole = decoded(max(0, start - _BEFORE), start), decoded(max(0, start - _BEFORE), i + 1)
        more = i + 1 < len(ids) and i + 1 - start < _LONGEST
        if whole.endswith(_BROKEN) and more:
            texts.append("")
            continue
        texts.append(whole[len(before) :] if whole.startswith(before) else decoded(start, i + 1))
        start = i + 1
    return texts


def pieces_of(before: str, after: str) -> list[Piece]:
    """What became of a text: sentences that are alike are kept as they are, between them words are compared.

    White space does not count: where it alone differs the text is kept, as it is now. Kept and added pieces are the new
    text; kept and cut ones the old, but for its white space.
    """
    pieces: list[Piece] = []
    old, new = _SENTENCE.findall(before), _SENTENCE.findall(after)
    for kind, a, b, c, d in _differences(old, new):
        if kind == "equal":
            pieces.append(Piece("".join(new[c:d]), "kept"))
        else:
            pieces += _by_words("".join(old[a:b]), "".join(new[c:d]))
    return joined(pieces)


def _by_words(before: str, after: str) -> Iterator[Piece]:
    old, new = _WORD.findall(before), _WORD.findall(after)
    for _, a, b, c, d in _differences(old, new):
        cut, added = "".join(old[a:b]), "".join(new[c:d])
        if _letters(cut) == _letters(added):
            yield Piece(added, "kept")
            continue
        if _letters(cut):
            yield Piece(cut, "cut")
        if added:
            yield Piece(added, "added" if _letters(added) else "kept")


def _differences(old: Sequence[str], new: Sequence[str]) -> Sequence[tuple[str, int, int, int, int]]:
    matcher = SequenceMatcher(None, [_letters(one) for one in old], [_letters(one) for one in new], autojunk=False)
    return matcher.get_opcodes()


def _letters(text: str) -> str:
    """The text without its white space."""
    return "".join(text.split())


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one kind as one piece."""
    out: list[Piece] = []
    for piece in pieces:
        if not piece.text:
            continue
        if out and out[-1].kind == piece.kind:
            out[-1] = Piece(out[-1].text + piece.text, piece.kind)
        else:
            out.append(piece)
    return out
