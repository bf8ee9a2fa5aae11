"""GitHub's Markdown: tables, and text that is shown as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lcbench.reporting.words import clean


def table_lines(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of a table; the first row is its head, the first ``left`` columns are text, the others numbers."""
    rule = ["---" if i < left else "---:" for i in range(len(rows[0]))]
    return [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]


def escape(text: str, longest: int = 300) -> str:
    """``text`` so that Markdown and HTML show it as it is."""
    shown = clean(text, longest).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~!])", r"\\\1", shown)
