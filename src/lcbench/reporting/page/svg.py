"""A figure as a part of the page: in the page's colours, without anything that points outside."""

from __future__ import annotations

import re
from html import escape

from lcbench.reporting.figures.style import COLOURS, GRID, INK, MUTED, PAPER

_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", PAPER: "var(--paper)", GRID: "var(--rule)"}
_COLOURS[COLOURS[0]] = "var(--blue)"  # too dark for names on dark paper


def inline(svg: str, name: str, alt: str) -> str:
    """The ``svg`` element alone, its ids prefixed by ``name``, its inks those of the page, ``alt`` read to those who
    cannot see it."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    for ink, variable in _COLOURS.items():
        body = re.sub(re.escape(ink), variable, body, flags=re.IGNORECASE)
    width = re.search(r'viewBox="0 0 ([\d.]+)', body)
    wide = f"max-width:{float(width.group(1)) * 4 / 3:.0f}px" if width else ""
    return re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>",
        rf'<svg \1 role="img" aria-label="{_safe(alt)}" style="stroke-linejoin:round;stroke-linecap:butt;{wide}">',
        body,
        count=1,
    )


def _safe(alt: str) -> str:
    """As an attribute, and as the replacement of a regular expression."""
    shown = alt if len(alt) <= 1500 else alt[:1499] + "…"
    return escape(shown, quote=True).replace("\\", r"\\")
