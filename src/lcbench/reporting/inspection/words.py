"""The sentences and shares that terminal and page have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lcbench.inspected import InspectedLayer, Inspection
from lcbench.reporting.page.visible import visible
from lcbench.reporting.words import bytes_text, clean, ratio_text


@dataclass(frozen=True)
class Cell:
    """A stretch of the prompt that can be shown by itself: a token, or the tokens that make up one character.

    Attributes:
        text: as text, controls named. start, stop: its tokens.
    """

    text: str
    start: int
    stop: int


def cells(found: Inspection) -> list[Cell]:
    """The prompt in cells; ids stand in for texts where no tokenizer was there."""
    if found.texts is None:
        return [Cell(f"{one} ", i, i + 1) for i, one in enumerate(found.ids)]
    made, start = [], 0
    for i, text in enumerate(found.texts):
        if text or i + 1 == len(found.texts):
            made.append(Cell(visible(text), start, i + 1))
            start = i + 1
    return made


def headline(found: Inspection) -> str:
    """Who kept how much."""
    mean = sum(found.kept_by()) / max(1, found.stored_heads)
    share = mean / max(1, found.given_tokens)
    ratio = found.kv_bytes_full / found.kv_bytes if found.kv_bytes else None
    reads = f"; a step reads {bytes_text(found.resident_bytes)}" if found.resident_bytes < found.kv_bytes else ""
    simulated = " (simulated: dropped bytes only count as dropped)" if found.memory == "simulated" else ""
    cut = f"; the prompt was shortened to {found.prompt_tokens:,} tokens" if is_shortened(found) else ""
    return (
        f"{clean(found.method)} on {clean(found.model)}: {mean:,.1f} of {found.given_tokens:,} tokens kept, mean over "
        f"layers and heads ({100 * share:.1f} %){cut}; {bytes_text(found.kv_bytes)} of "
        f"{bytes_text(found.kv_bytes_full)} KV bytes ({ratio_text(ratio)}){reads}{simulated}"
    )


def is_shortened(found: Inspection) -> bool:
    """Whether the method read a shorter prompt than the one given."""
    return found.given_tokens != found.prompt_tokens


def is_rewritten(found: Inspection) -> bool:
    """Whether any of the prompt's text was cut or added."""
    return any(piece.kind != "kept" for piece in found.pieces)


def kept_share(found: Inspection, layer: InspectedLayer) -> float:
    """Kept tokens of a layer, mean over its heads, as a share of the prompt given."""
    return sum(map(len, layer.kept)) / max(1, len(layer.kept) * found.given_tokens)


def binned(found: Inspection, layer: InspectedLayer, bins: int) -> list[float]:
    """Share of the heads' tokens kept in each of ``bins`` stretches of the prompt."""
    count = min(bins, found.prompt_tokens)
    kept = [0] * count
    for head in layer.kept:
        for position in head:
            kept[position * count // found.prompt_tokens] += 1
    sizes = [0] * count
    for position in range(found.prompt_tokens):
        sizes[position * count // found.prompt_tokens] += len(layer.kept)
    return [k / size if size else 0.0 for k, size in zip(kept, sizes, strict=True)]


def error_text(values: Sequence[float]) -> str:
    """Mean and range over heads, in percent."""
    percent = [100 * value for value in values]
    return f"{sum(percent) / len(percent):.2f} ({min(percent):.2f}–{max(percent):.2f})"


def merges_of(layer: InspectedLayer) -> int:
    """Entries of all heads that were merged into others."""
    return sum(len(one.sources) for head in layer.merged or () for one in head)


def fetched_of(layer: InspectedLayer) -> list[int | None]:
    """How many distinct tokens each step looked up, over all heads; None for a step that reads all."""
    return [None if step is None else len({p for head in step for p in head}) for step in layer.fetched]
