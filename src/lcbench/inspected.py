"""What `lcbench inspect` found, as plain data: the engine fills it in, reporting shows it, `to_json` prints it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["InspectedLayer", "Inspection", "Merging", "Piece"]

Heads = Sequence[Sequence[int]]
"""Text positions, ascending, head by head."""


@dataclass(frozen=True)
class Merging:
    """Entries that were added to others: text positions of both."""

    sources: Sequence[int]
    into: Sequence[int]


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt that a method rewrote: "kept", "cut" from the original, or "added" to it."""

    text: str
    kind: Literal["kept", "cut", "added"]


@dataclass(frozen=True)
class InspectedLayer:
    """One layer.

    Attributes:
        kept: prompt tokens held right after compression, one list a stored head: KV heads, or query heads where a
            method gives every one of them tokens of its own.
        kv_bytes: bytes held; memory that several layers share counts in the first of them.
        errors: relative L2 error of the keys and of the values of each stored head, where they are held in another
            form than the model made them.
        merged: what was merged into what, head by head, in the prompt and in the steps after it.
        fetched: of each step what it looked up, head by head; None for a step that reads all.
    """

    kept: Heads
    kv_bytes: int
    errors: Sequence[tuple[float, float]] | None = None
    merged: Sequence[Sequence[Merging]] | None = None
    fetched: Sequence[Heads | None] = ()

    def to_json(self, *, details: bool) -> dict[str, Any]:
        data: dict[str, Any] = {"kept": [list(head) for head in self.kept], "kv_bytes": self.kv_bytes}
        if not details:
            return data
        if self.errors is not None:
            data["errors"] = {"keys": [key for key, _ in self.errors], "values": [value for _, value in self.errors]}
        if self.merged is not None:
            data["merged"] = [
                [{"from": list(one.sources), "into": list(one.into)} for one in head] for head in self.merged
            ]
        if self.fetched:
            data["fetched"] = [None if step is None else [list(head) for head in step] for step in self.fetched]
        return data


@dataclass(frozen=True)
class Inspection:
    """One prompt and one method.

    Attributes:
        model, method: name and id. memory: "real" or "simulated".
        ids: token ids of the prompt. texts: what each of them adds to the text; "" for one that ends in the middle of a
            character; None where no tokenizer was there.
        layers: from the lowest.
        kv_bytes: bytes held right after compression, as a run records them. kv_bytes_full: of the uncompressed cache.
        resident_bytes: of the bytes held, those that a step reads.
        pieces: the prompt's text with what was cut, where the method rewrites it.
        shortened_from: tokens of the prompt given, where the method shortens prompts; 0 for all other methods.
        remark: a sentence on what a reader may not expect: a prompt that was not shortened, a budget that was passed,
            nothing that was quantized; "" for none.
        fed: token ids of the steps after the prompt. logits: fp32 ``[steps][vocab]``, those at each of them.
    """

    model: str
    method: str
    memory: str
    ids: Sequence[int]
    texts: Sequence[str] | None
    layers: Sequence[InspectedLayer]
    kv_bytes: int
    kv_bytes_full: int
    resident_bytes: int
    pieces: Sequence[Piece] = ()
    shortened_from: int = 0
    remark: str = ""
    fed: Sequence[int] = ()
    logits: Sequence[Sequence[float]] | None = None

    @property
    def prompt_tokens(self) -> int:
        return len(self.ids)

    @property
    def given_tokens(self) -> int:
        """Tokens of the prompt given, before any method shortened it."""
        return self.shortened_from or self.prompt_tokens

    @property
    def stored_heads(self) -> int:
        """Heads of all layers together."""
        return sum(len(layer.kept) for layer in self.layers)

    def kept_by(self) -> list[int]:
        """How many heads of how many layers kept each token."""
        counts = [0] * self.prompt_tokens
        for layer in self.layers:
            for head in layer.kept:
                for position in head:
                    counts[position] += 1
        return counts

    def to_json(self, *, details: bool = False) -> dict[str, Any]:
        """``prompt_tokens``, ``layers``, ``kv_bytes``, ``kv_bytes_full``; with logits also ``forced``,
        ``logits_positions`` and ``logits``; with ``details`` what else is known."""
        data: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "layers": [layer.to_json(details=details) for layer in self.layers],
            "kv_bytes": self.kv_bytes,
            "kv_bytes_full": self.kv_bytes_full,
        }
        if self.logits is not None:
            first = self.prompt_tokens
            data["forced"] = list(self.fed)
            data["logits_positions"] = list(range(first, first + len(self.logits)))
            data["logits"] = [list(row) for row in self.logits]
        if details:
            data |= {"model": self.model, "method": self.method, "memory": self.memory, "token_ids": list(self.ids)}
            data |= {"resident_bytes": self.resident_bytes, "steps": list(self.fed)}
            if self.shortened_from:
                data["prompt_tokens_before"] = self.shortened_from
            if self.pieces:
                data["text"] = [{"text": piece.text, "kind": piece.kind} for piece in self.pieces]
        return data
