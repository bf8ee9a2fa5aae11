"""Numbers and foreign text as people may read them."""

from __future__ import annotations

import re
from collections.abc import Iterable

# C0 and C1 controls (escape sequences among them), line separators, and marks that turn the direction of writing.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")


def clean(text: str, longest: int = 300) -> str:
    """``text`` on one line, without anything a terminal would obey, cut at ``longest`` characters."""
    plain = _CONTROL.sub(" ", text).strip()
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def short_names(tasks: Iterable[str]) -> dict[str, str]:
    """Task id to its name without options, where no other of the ``tasks`` has that name."""
    tasks = list(dict.fromkeys(tasks))
    bare = [task.partition("@")[0] for task in tasks]
    return {task: name if bare.count(name) == 1 else task for task, name in zip(tasks, bare, strict=True)}


def score_text(score: float | None) -> str:
    """Two decimals, as LongBench prints scores; a dash for none."""
    return "–" if score is None else f"{score:.2f}"


def interval_text(low: float | None, high: float | None) -> str:
    """``[54.1, 60.3]``, or nothing."""
    return "" if low is None or high is None else f"[{low:.1f}, {high:.1f}]"


def bytes_text(count: float | None) -> str:
    """Three significant digits with a binary unit, e.g. ``1.24 MiB``; a dash for none."""
    if count is None:
        return "–"
    unit = 0
    while count >= 999.5 and unit < 5:
        count /= 1024
        unit += 1
    number = f"{count:.0f}" if unit == 0 or count >= 99.95 else f"{count:.1f}" if count >= 9.995 else f"{count:.2f}"
    return f"{number} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[unit]}"


def ratio_text(ratio: float | None) -> str:
    """``3.45x``: how many times the full cache is larger; a dash for none."""
    if ratio is None:
        return "–"
    return f"{ratio:.2f}x" if ratio < 99.995 else f"{ratio:.0f}x"
