"""An inspection on the terminal: layers as strips, the text shaded by how many heads kept each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lcbench.inspected import InspectedLayer, Inspection
from lcbench.reporting.inspection.words import (
    Cell,
    binned,
    cells,
    error_text,
    fetched_of,
    headline,
    is_rewritten,
    is_shortened,
    kept_share,
    merges_of,
)
from lcbench.reporting.page.visible import visible
from lcbench.reporting.words import bytes_text, clean

_ENDS = 1000  # tokens of each end of the text that are shown
_BLOCKS = "▁▂▃▄▅▆▇█"
# Shades with ink and paper of their own: readable on dark and light terminals alike. The first is for tokens that no
# head kept.
_SHADES = ("bright_black", "black on #deebf7", "black on #9ecae1", "white on #3182bd", "white on #08519c")
_NAMES = ("no head", "up to a quarter", "up to half", "up to three quarters", "more")
_MOST = 8  # merges that are listed


def render(found: Inspection, console: Console) -> RenderableType:
    """The whole view, for this console's width and colours."""
    parts: list[RenderableType] = [Text(headline(found), "bold")]
    parts += [Text(clean(found.remark, 1000))] if found.remark else []
    parts += [Text(), _layers(found, console)]
    parts += _merged(found)
    parts += _fetched(found)
    parts += [Text(), *_text(found, plain=console.color_system is None)]
    if is_rewritten(found):
        parts += [Text(), Text("The prompt as the method rewrote it", "bold"), _rewritten(found)]
    if found.texts is None:
        parts.append(Text("Token ids stand for the text: no tokenizer was read.", "dim"))
    return Group(*parts)


def _layers(found: Inspection, console: Console) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("layer", justify="right", no_wrap=True)
    has_errors = any(layer.errors is not None for layer in found.layers)
    width = min(100, console.width - 34 - (50 if has_errors else 0))
    with_strip = width >= 16  # a narrow terminal has room for errors or for the strip
    if with_strip:
        table.add_column("kept, first to last token"[:width], width=width, overflow="ignore", no_wrap=True)
    for name in ("kept", "KV bytes", *(("key error %", "value error %") if has_errors else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for number, layer in enumerate(found.layers):
        row = [str(number), *([_strip(binned(found, layer, width))] if with_strip else [])]
        row += [f"{100 * kept_share(found, layer):.1f} %", bytes_text(layer.kv_bytes)]
        if layer.errors is not None:
            row += [error_text([key for key, _ in layer.errors]), error_text([value for _, value in layer.errors])]
        table.add_row(*row)
    if has_errors:
        table.caption = "Errors: relative L2, mean over heads (least–greatest); every head's in --json --details."
        table.caption_justify = "left"
    return table


def _strip(shares: Sequence[float]) -> str:
    return "".join("·" if share == 0 else _BLOCKS[min(7, int(share * 8))] for share in shares)


def _merged(found: Inspection) -> Iterator[RenderableType]:
    """How much was merged, and the first merges."""
    if all(layer.merged is None for layer in found.layers):
        return
    total = sum(merges_of(layer) for layer in found.layers)
    yield Text(f"{total:,} entries were merged into others, over all layers and heads. The first:")
    listed = [
        (number, head, one)
        for number, layer in enumerate(found.layers)
        for head, merges in enumerate(layer.merged or ())
        for one in merges
    ]
    for number, head, one in listed[:_MOST]:
        yield Text(f"  layer {number}, head {head}: {_spans(one.sources)} into {_spans(one.into)}")


def _fetched(found: Inspection) -> Iterator[RenderableType]:
    """What the steps looked up: distinct tokens of each step, layer by layer."""
    if not any(layer.fetched for layer in found.layers):
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("layer", justify="right")
    table.add_column("tokens fetched at each step after the prompt, all heads together")
    for names, layer in _alike(found.layers):
        counts = ["all read" if count is None else f"{count:,}" for count in fetched_of(layer)]
        table.add_row(names, " ".join(counts) if set(counts) != {"all read"} else "nothing is looked up: all read")
    yield table
    last = next(layer for layer in reversed(found.layers) if layer.fetched)
    step = last.fetched[-1]
    if step is not None and step:
        yield Text(f"Last layer, last step, head 0: {_spans(step[0])}")


def _alike(layers: Sequence[InspectedLayer]) -> Iterator[tuple[str, InspectedLayer]]:
    """Layers with their numbers; neighbours that fetched as many tokens are one."""
    start = 0
    for i, layer in enumerate(layers):
        if i + 1 == len(layers) or fetched_of(layers[i + 1]) != fetched_of(layer):
            yield (str(i) if i == start else f"{start}–{i}"), layer
            start = i + 1


def _spans(positions: Sequence[int]) -> str:
    """``4–9, 12``: positions with neighbours joined, at most eight spans."""
    spans: list[list[int]] = []
    for at in positions:
        if spans and at == spans[-1][1] + 1:
            spans[-1][1] = at
        else:
            spans.append([at, at])
    words = [str(a) if a == b else f"{a}–{b}" for a, b in spans[:_MOST]]
    return ", ".join(words) + (f" and {len(spans) - _MOST} more" if len(spans) > _MOST else "")


def _text(found: Inspection, *, plain: bool) -> Iterator[RenderableType]:
    """Legend and prompt; without colours, what no head kept stands in brackets."""
    counts, total = found.kept_by(), max(1, found.stored_heads)
    name = "The shortened prompt" if is_shortened(found) else "The prompt"
    if plain and all(counts):
        yield Text(f"{name}; every token was kept by some of the {total} heads of all layers")
    elif plain:
        yield Text(f"{name}; ⟦…⟧ was kept by none of the {total} heads of all layers")
    else:
        legend = Text(f"{name}; kept by, of the {total} heads of all layers: ")
        for word, style in zip(_NAMES, _SHADES, strict=True):
            legend.append(f" {word} ", style).append(" ")
        yield legend
    yield Text()
    body, dropped = Text(), False
    for cell in _shown(cells(found), found.prompt_tokens):
        if cell is None:
            body.append("⟧" if dropped and plain else "")
            dropped = False
            body.append(f"\n… {found.prompt_tokens - 2 * _ENDS:,} tokens are left out here; --html shows all …\n")
            continue
        share = max(counts[cell.start : cell.stop], default=0) / total
        if plain:
            if dropped != (share == 0):
                body.append("⟧" if dropped else "⟦")
                dropped = not dropped
            body.append(cell.text)
        else:
            body.append(_line_feeds(cell.text), _SHADES[0 if share == 0 else 1 + min(3, int(share * 4 - 1e-9))])
    if dropped:
        body.append("⟧")
    yield body


def _shown(made: Sequence[Cell], tokens: int) -> Iterator[Cell | None]:
    """The cells of both ends; None where some are left out."""
    left_out = False
    for cell in made:
        if tokens <= 2 * _ENDS or cell.stop <= _ENDS or cell.start >= tokens - _ENDS:
            yield cell
        elif not left_out:
            left_out = True
            yield None


def _line_feeds(text: str) -> str:
    """A sign before each line feed, so that its shade shows."""
    return text.replace("\n", "↵\n")


def _rewritten(found: Inspection) -> Text:
    body = Text()
    for piece in found.pieces:
        text = visible(piece.text)
        if piece.kind == "kept":
            body.append(text)
        elif piece.kind == "cut":
            body.append(f"⟦{text}⟧", "strike bright_black")
        else:
            body.append(f"⟪{text}⟫", "bold")
    return body
