"""Numbers and foreign text as people may read them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# C0 and C1 controls (escape sequences among them), line separators, and marks that turn the direction of writing.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")


def clean(text: str, longest: int = 300) -> str:
    """``text`` on one line, without anything a terminal would obey, cut at ``longest`` characters."""
    plain = _CONTROL.sub(" ", text).strip()
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def shorten(text: str, longest: int) -> str:
    """``text`` on one line; where it is longer than that its begin, an ellipsis, and its end."""
    shown = clean(text)
    if len(shown) <= longest:
        return shown
    tail = (longest - 1) // 2
    return f"{shown[: longest - 1 - tail]}…{shown[-tail:]}"


def short_names(tasks: Iterable[str]) -> dict[str, str]:
    """Task id to a name for headings: without options, or with those that tell it from the others of its name.

    ``passkey@lengths=256/512,depths=5`` is ``passkey`` alone, and ``passkey@depths=5`` beside a task that differs in
    the depths only.
    """
    tasks = list(dict.fromkeys(tasks))
    found: dict[str, str] = {}
    for name in dict.fromkeys(task.partition("@")[0] for task in tasks):
        variants = [task for task in tasks if task.partition("@")[0] == name]
        options = [_options(task) for task in variants]
        keys = [
            key for key in dict.fromkeys(k for own in options for k in own) if len({o.get(key) for o in options}) > 1
        ]
        shown = [",".join(f"{key}={own[key]}" if own[key] else key for key in keys if key in own) for own in options]
        shown = [f"{name}@{text}" if text else name for text in shown]
        alike = len(set(shown)) < len(shown)
        found.update(zip(variants, variants if alike else shown, strict=True))
    return {task: found[task] for task in tasks}


def explained(names: Mapping[str, str]) -> list[str]:
    """What each shortened name stands for."""
    return [f"{short}: {name}" for name, short in names.items() if short != name]


def _options(task: str) -> dict[str, str]:
    pieces = (piece.partition("=") for piece in task.partition("@")[2].split(",") if piece)
    return {key.strip(): value.strip() for key, _, value in pieces}


def score_text(score: float | None) -> str:
    """Two decimals, as LongBench prints scores; a dash for none."""
    return "–" if score is None else f"{score:.2f}"


def interval_text(low: float | None, high: float | None) -> str:
    """``[54.1, 60.3]``, or nothing."""
    return "" if low is None or high is None else f"[{low:.1f}, {high:.1f}]"


NO_WIDTH = (
    "a 95 % interval without width, such as [75.0, 75.0], comes from samples (or from contexts with all their samples) "
    "that score alike: drawn again they cannot differ, which does not make the score certain"
)
"""For readers of a table that has such an interval."""


def has_no_width(low: float | None, high: float | None) -> bool:
    """Whether an interval is there and both its ends are the same."""
    return low is not None and low == high


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
