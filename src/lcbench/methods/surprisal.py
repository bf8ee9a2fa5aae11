"""How surprising a causal language model finds each token of a text: what several prompt compressors rank by.

A `Stream` is a text that is read piece by piece and may go another way from any point: a compressor reads a segment,
decides what stays of it, and goes on from what stayed. The cache of what stayed is kept, so no text is read twice more
than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lcbench.errors import ModelError, SampleError
from lcbench.kv.cache import KVCache
from lcbench.methods.base import PromptTransform
from lcbench.methods.rewriting import Helper
from lcbench.models import adapter
from lcbench.models.info import LoadedModel

_PIECE = 512  # tokens whose logits over the vocabulary are held at once


class LanguageModelTransform(PromptTransform):
    """A prompt transform that reads texts with a causal language model of the user's choice.

    Subclasses have the parameters ``rate`` (share that stays; 1 leaves every text as it is) and ``model``.
    """

    rate: float
    model: str

    @property
    def idle(self) -> bool:
        return self.rate >= 1

    @property
    def helper(self) -> Helper:
        return Helper("causal", self.model)

    @property
    def depends_on(self) -> dict[str, str]:
        return {key: text for key, text in self.parameters.items() if key != "model"}


class Stream:
    """Token ids read by a language model, whose losses are asked for.

    Args:
        loaded: the model. anchor: tokens of the beginning that stay when the text outgrows the window.
    """

    def __init__(self, loaded: LoadedModel, anchor: int = 10) -> None:
        self._loaded, self._anchor = loaded, anchor
        self._cache = KVCache.dense(loaded.info.layers)
        self._ids: list[int] = []
        self._last: Tensor | None = None  # logits [vocab] behind the last token

    @property
    def started(self) -> bool:
        """Whether anything has been read."""
        return bool(self._ids)

    def losses(self, ids: Sequence[int]) -> Tensor:
        """What reading ``ids`` next would cost: ``-ln p`` of each, fp32 ``[n]`` on the CPU; the stream stays where it
        is. The very first token of a stream has no loss: 0."""
        self._make_room(len(ids))
        cache, last = self._cache.fork(), self._last
        found = [torch.zeros(0)]
        for start in range(0, len(ids), _PIECE):
            losses, last = self._forward(cache, ids[start : start + _PIECE], last)
            found.append(losses)
        return torch.cat(found)

    def read(self, ids: Sequence[int]) -> Tensor:
        """Go on behind ``ids``; returns their losses, as `losses`."""
        self._make_room(len(ids))
        found = [torch.zeros(0)]
        for start in range(0, len(ids), _PIECE):
            losses, self._last = self._forward(self._cache, ids[start : start + _PIECE], self._last)
            found.append(losses)
        self._ids += ids
        return torch.cat(found)

    def _forward(self, cache: KVCache, ids: Sequence[int], last: Tensor | None) -> tuple[Tensor, Tensor]:
        device = self._loaded.shape().device
        tokens = torch.tensor([list(ids)], dtype=torch.int64, device=device)
        positions = torch.arange(cache.seen, cache.seen + len(ids), device=device)[None]
        logits = adapter.forward(self._loaded.model, tokens, positions, [cache], all_logits=True)[0].float()
        before = logits[:-1] if last is None else torch.cat([last[None], logits[:-1]])
        losses = torch.nn.functional.cross_entropy(before, tokens[0, len(ids) - len(before) :], reduction="none")
        if last is None:
            losses = torch.cat([losses.new_zeros(1), losses])
        return losses.cpu(), logits[-1]

    def _make_room(self, more: int) -> None:
        """Where the window would be full: start anew from the first tokens and the newest half of the others."""
        window = self._loaded.info.window
        if len(self._ids) + more <= window:
            return
        left = window - more - self._anchor
        if left < 1:
            raise SampleError(
                f"A piece of {more} tokens does not fit the window of {window} of {self._loaded.info.name}."
            )
        ids = self._ids[: self._anchor] + self._ids[max(self._anchor, len(self._ids) - left // 2) :]
        self._cache, self._ids, self._last = KVCache.dense(self._loaded.info.layers), [], None
        self.read(ids)


def suffix_loss(loaded: LoadedModel, before: str, suffix: str) -> float:
    """Mean ``-ln p`` of the tokens of ``suffix`` behind ``before``; the text is tokenized as a whole, special tokens
    included, and its last tokens, from the last one of ``before`` on, are those of the suffix."""
    ids, prefix = tokens(loaded, before + suffix, special=True), tokens(loaded, before, special=True)
    room = loaded.info.window
    if len(ids) > room:  # what is nearest to the suffix decides most
        drop = len(ids) - room
        ids, prefix = ids[drop:], prefix[: max(1, len(prefix) - drop)]
    start = max(1, len(prefix))
    losses = Stream(loaded).losses(ids)[start:]
    return float(losses.mean()) if len(losses) else 0.0


def tokens(loaded: LoadedModel, text: str, *, special: bool = False) -> list[int]:
    """Token ids of a text."""
    return [int(i) for i in loaded.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]]


def with_offsets(loaded: LoadedModel, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text, without special ones, and where each stands in it.

    Raises:
        ModelError: the tokenizer cannot tell.
    """
    if not getattr(loaded.tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer of {loaded.info.name} does not tell which characters its tokens stand for.",
            "Name a model with a fast tokenizer.",
        )
    made: Any = loaded.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [int(i) for i in made["input_ids"]], [(int(a), int(b)) for a, b in made["offset_mapping"]]


def joined(text: str, offsets: Sequence[tuple[int, int]], kept: Sequence[int]) -> str:
    """The characters of some tokens of a text, in order; a character of several tokens stays when one of them does."""
    pieces, last = [], 0
    for i in kept:
        start, end = offsets[i]
        pieces.append(text[max(start, last) : end])
        last = max(last, end)
    return "".join(pieces)


def complete(loaded: LoadedModel, text: str, new_tokens: int) -> str:
    """What the model writes behind a text, greedily, at most ``new_tokens`` tokens."""
    ids = tokens(loaded, text, special=True)[-(loaded.info.window - new_tokens) :]
    device, cache = loaded.shape().device, KVCache.dense(loaded.info.layers)
    written: list[int] = []
    piece = ids
    while len(written) < new_tokens:
        positions = torch.arange(cache.seen, cache.seen + len(piece), device=device)[None]
        logits = adapter.forward(loaded.model, torch.tensor([piece], device=device), positions, [cache])
        piece = [int(logits[0, -1].argmax())]
        if piece[0] in loaded.info.eos_ids:
            break
        written += piece
    return str(loaded.tokenizer.decode(written, skip_special_tokens=True))
