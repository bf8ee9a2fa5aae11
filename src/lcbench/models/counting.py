"""Token counters from tokenizers: how long a text is for a model, without its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcbench.config.spec import ModelSpec
from lcbench.errors import UsageError
from lcbench.models.identity import Say
from lcbench.models.load import describe

WORDS = "words"
_BATCH_CHARACTERS = 1 << 22  # of texts tokenized at once: bounds the memory of a count


@dataclass
class TokenizerCounter:
    """Counts with a tokenizer, the special tokens it puts around a text included.

    Attributes:
        name: of the model, without folders. identity: SHA-256 over everything of the tokenizer that decides counts.
        tokenizer: a `tokenizers.Tokenizer`, or any callable of transformers.
    """

    name: str
    identity: str
    tokenizer: Any

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        batch = getattr(self.tokenizer, "encode_batch_fast", None)
        if batch is None:
            return [len(self.tokenizer(text, verbose=False)["input_ids"]) for text in texts]
        counts: list[int] = []
        for group in _groups(texts):
            counts += [len(encoding) for encoding in batch(group)]
        return counts


@dataclass
class WordCounter:
    """Counts words between blanks: no tokenizer is needed, and the same text is as long for every model."""

    name: str = WORDS
    identity: str = "words-between-blanks-1"

    def count(self, texts: Sequence[str]) -> list[int]:
        """Words of each text."""
        return [len(text.split()) for text in texts]


def token_counter(name: str, home: Path, say: Say = lambda text: None) -> TokenizerCounter | WordCounter:
    """The counter that ``name`` means: "words", a ``tokenizer.json`` file, or a model as ``lcbench run --model``.

    Raises:
        UsageError: a file that is not a tokenizer. ModelError: no such model.
    """
    if name == WORDS:
        return WordCounter()
    path = Path(name).expanduser()
    if path.suffix == ".json":
        return _from_file(path)
    info, tokenizer = describe(ModelSpec(name), home, say)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    short = path.name if info.source != "hub" else name
    if backend is None:
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
        return TokenizerCounter(short, _sha256(vocabulary + type(tokenizer).__name__), tokenizer)
    return TokenizerCounter(short, _identity(backend), _plain(backend))


def _from_file(path: Path) -> TokenizerCounter:
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"Cannot read the tokenizer {path}: {error.strerror}.", "Give --tokenizer a model or a tokenizer.json."
        ) from None
    except Exception as error:  # the library raises plain Exception for what it cannot parse
        raise UsageError(f"{path} is not a tokenizer.json.", "Give --tokenizer a model or a tokenizer.json.") from error
    return TokenizerCounter(path.parent.resolve().name, _identity(backend), _plain(backend))


def _plain(backend: Any) -> Any:
    """The tokenizer with neither truncation nor padding, which would make every count the same."""
    backend.no_truncation()
    backend.no_padding()
    return backend


def _identity(backend: Any) -> str:
    data = json.loads(backend.to_str())
    keys = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model")
    return _sha256(json.dumps({key: data.get(key) for key in keys}, sort_keys=True, ensure_ascii=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _groups(texts: Sequence[str]) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    size = 0
    for text in texts:
        if groups[-1] and size + len(text) > _BATCH_CHARACTERS:
            groups.append([])
            size = 0
        groups[-1].append(text)
        size += len(text)
    return [group for group in groups if group]
