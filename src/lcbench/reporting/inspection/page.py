"""An inspection as one HTML file: the text under a slider over layers; nothing is fetched, everything is text."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from lcbench.inspected import InspectedLayer, Inspection
from lcbench.reporting.inspection.words import cells, headline, is_rewritten, is_shortened, kept_share
from lcbench.reporting.page.embed import json_for_script
from lcbench.reporting.page.environment import environment, trimmings
from lcbench.reporting.page.visible import visible
from lcbench.reporting.words import bytes_text, clean

_MOST_MERGES = 20_000  # listed a layer


def render(found: Inspection) -> str:
    """The whole page."""
    counts, total = found.kept_by(), max(1, found.stored_heads)
    shown = [
        {"text": cell.text, "level": level(max(counts[cell.start : cell.stop]), total), "start": cell.start}
        for cell in cells(found)
    ]
    template = environment().from_string(_part("template.html"))
    return template.render(
        **trimmings(_shared("style.css") + _part("style.css"), _part("script.js")),
        title=f"{clean(found.method)} on {clean(found.model)}",
        headline=headline(found),
        remark=clean(found.remark, 1000),
        shortened=is_shortened(found),
        cells=shown,
        total=total,
        layers=[_row(found, number, layer) for number, layer in enumerate(found.layers)],
        steps=len(found.fed) if any(layer.fetched for layer in found.layers) else 0,
        has_errors=any(layer.errors is not None for layer in found.layers),
        has_merges=any(layer.merged is not None for layer in found.layers),
        pieces=[{"text": visible(piece.text), "kind": piece.kind} for piece in found.pieces if is_rewritten(found)],
        is_text=found.texts is not None,
        data=json_for_script(_data(found)),
    )


def level(count: int, total: int) -> int:
    """0 for none, 1 to 8 by the share; 8 is all."""
    return 0 if not count else min(8, 1 + count * 7 // total)


def _row(found: Inspection, number: int, layer: InspectedLayer) -> dict[str, Any]:
    errors = []
    for head, (key, value) in enumerate(layer.errors or ()):
        errors.append({"head": head, "key": f"{100 * key:.2f}", "value": f"{100 * value:.2f}"})
    return {
        "number": number,
        "share": f"{100 * kept_share(found, layer):.1f}",
        "heads": ", ".join(f"{len(head):,}" for head in layer.kept),
        "bytes": bytes_text(layer.kv_bytes),
        "errors": errors,
    }


def _data(found: Inspection) -> dict[str, Any]:
    """For the script: cells, and as bits which tokens each head of each layer kept and fetched."""
    n = found.prompt_tokens
    return {
        "tokens": n,
        "given": found.given_tokens,
        "cells": [[cell.start, cell.stop] for cell in cells(found)],
        "ids": list(found.ids),
        "kept": [[_bits(head, n) for head in layer.kept] for layer in found.layers],
        "fetched": [
            [None if step is None else [_bits(head, n) for head in step] for step in layer.fetched]
            for layer in found.layers
        ],
        "merged": [_merged(layer) for layer in found.layers],
    }


def _merged(layer: InspectedLayer) -> list[list[Any]]:
    """Head, positions merged, positions they went into."""
    listed = [
        [head, list(one.sources), list(one.into)] for head, merges in enumerate(layer.merged or ()) for one in merges
    ]
    return listed[:_MOST_MERGES]


def _bits(positions: Sequence[int], tokens: int) -> str:
    """A bit a prompt token, little end first, in base64."""
    bits = bytearray((tokens + 7) // 8)
    for at in positions:
        if at < tokens:
            bits[at >> 3] |= 1 << (at & 7)
    return base64.b64encode(bytes(bits)).decode()


def _part(name: str) -> str:
    return files("lcbench.reporting.inspection").joinpath(name).read_text(encoding="utf-8")


def _shared(name: str) -> str:
    return files("lcbench.reporting.page").joinpath(name).read_text(encoding="utf-8")
