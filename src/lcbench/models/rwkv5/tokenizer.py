"""The tokenizer of the RWKV "World" models: the longest entry of a byte vocabulary that fits, again and again."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any, ClassVar

from transformers import AddedToken, PreTrainedTokenizer

VOCABULARY = "rwkv_vocab_v20230424.txt"
END = "<|endoftext|>"  # id 0, which the file leaves out


class RwkvWorldTokenizer(PreTrainedTokenizer):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """Bytes to ids by greedy longest match. Inside, a token is a text of as many characters as it has bytes.

    Args:
        vocab_file: lines ``id 'text' length`` or ``id b'bytes' length``, as published.

    Raises:
        ValueError: a line that is not of this form, or with another length than it says.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": VOCABULARY}
    model_input_names: ClassVar[list[str]] = ["input_ids"]

    def __init__(self, vocab_file: str, **more: Any) -> None:
        self.vocab_file = vocab_file
        self._ids = read_vocabulary(Path(vocab_file))
        self._tokens = {index: token for token, index in self._ids.items()}
        self._lengths: dict[bytes, list[int]] = {}
        for token in self._ids:
            self._lengths.setdefault(token[:2], []).append(len(token))
        for start, lengths in self._lengths.items():
            self._lengths[start] = sorted(set(lengths), reverse=True)
        more.setdefault("added_tokens_decoder", {0: AddedToken(END, special=True)})
        super().__init__(**{"bos_token": END, "eos_token": END, "pad_token": END, **more})

    @property
    def vocab_size(self) -> int:
        return max(self._tokens, default=0) + 1

    def get_vocab(self) -> dict[str, int]:
        return {**{token.decode("latin-1"): i for token, i in self._ids.items()}, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **ignored: Any) -> list[str]:
        data, found, at = text.encode("utf-8"), [], 0
        while at < len(data):
            token = self._longest(data, at)
            found.append(token.decode("latin-1"))
            at += len(token)
        return found

    def _longest(self, data: bytes, at: int) -> bytes:
        for length in self._lengths.get(data[at : at + 2], ()):
            if data[at : at + length] in self._ids:
                return data[at : at + length]
        return data[at : at + 1]

    def _convert_token_to_id(self, token: str) -> int:
        data = token.encode("latin-1", errors="replace")
        return self._ids.get(data, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self._tokens.get(index, b"").decode("latin-1")

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).encode("latin-1", errors="replace").decode("utf-8", errors="replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        target = Path(save_directory) / ((f"{filename_prefix}-" if filename_prefix else "") + VOCABULARY)
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)


def read_vocabulary(path: Path) -> dict[bytes, int]:
    """Token to id. Raises ValueError naming the line that cannot be read."""
    found: dict[bytes, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        index, _, rest = line.partition(" ")
        written, _, length = rest.rpartition(" ")
        try:
            token = ast.literal_eval(written)
            data = token.encode("utf-8") if isinstance(token, str) else bytes(token)
            if len(data) != int(length):
                raise ValueError("its length is another")
            found[data] = int(index)
        except (ValueError, SyntaxError, TypeError) as error:
            raise ValueError(f"line {number} of {path.name} is no entry of a World vocabulary: {error}") from None
    return found
