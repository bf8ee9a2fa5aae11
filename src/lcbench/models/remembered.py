"""Token ids of texts that have been asked for before, for whoever makes the same prompts for many models.

Plans of a study (`engine.on_paper`) ask about the same rows model after model, and models of one family have one
tokenizer: what it made of a text is kept, in four bytes a token and under a digest of the text.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_PLAIN = {"add_special_tokens", "verbose"}  # keywords of a call that asks for ids and nothing beside them


@dataclass
class _Known:
    """Attributes: ids: of texts, with special tokens or without. texts: of ids, likewise."""

    ids: dict[tuple[bytes, bool], array[int]] = field(default_factory=dict)
    texts: dict[tuple[bytes, bool], str] = field(default_factory=dict)


class TokenMemory:
    """What tokenizers made of texts. Tokenizers that split alike share it, whatever model they came with."""

    def __init__(self) -> None:
        self._of: dict[object, _Known] = {}
        self.computed = 0  # texts that were not there

    def of(self, tokenizer: Any) -> Remembered:
        """The tokenizer, remembering. It takes the place of the one given wherever texts become ids."""
        return Remembered(tokenizer, self._of.setdefault(_alike(tokenizer), _Known()), self)


class Remembered:
    """A tokenizer in front of a `TokenMemory`; whatever is no plain request for ids goes to the tokenizer itself."""

    def __init__(self, tokenizer: Any, known: _Known, memory: TokenMemory) -> None:
        self._tokenizer, self._known, self._memory = tokenizer, known, memory

    def __call__(self, text: Any, **options: Any) -> Any:
        if not isinstance(text, str) or not set(options) <= _PLAIN:
            return self._tokenizer(text, **options)
        special = bool(options.get("add_special_tokens", True))
        key = _digest(text.encode("utf-8", "surrogatepass")), special
        found = self._known.ids.get(key)
        if found is None:
            ids: Sequence[int] = self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
            found = self._known.ids[key] = array("i", ids)
            self._memory.computed += 1
        return {"input_ids": found.tolist()}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        key = _digest(array("i", ids).tobytes()), skip_special_tokens
        if key not in self._known.texts:
            self._known.texts[key] = str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))
        return self._known.texts[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _alike(tokenizer: Any) -> object:
    """Equal for tokenizers that make the same ids of every text: of one class of transformers, and with the same
    vocabulary and rules. Any other tokenizer is like itself alone."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    own = type(tokenizer)
    if backend is None or not own.__module__.startswith("transformers."):
        return object()
    rules = hashlib.sha256(backend.to_str().encode("utf-8", "surrogatepass")).hexdigest()
    return own, rules, getattr(tokenizer, "split_special_tokens", None)
