"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from lcbench.errors import BadValue

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)
}

LEAST = 10**6
"""A plain number of bytes is at least this: 4 is meant as 4GiB."""

WRITTEN = (
    rf"\s*(?:0*[1-9][0-9]{{{len(str(LEAST)) - 1},}}(?:\.[0-9]+)?\s*[bB]?"
    r"|[0-9]+(?:\.[0-9]+)?\s*[kKmMgGtT][iI]?[bB])\s*"
)
"""An amount as text, as a regular expression of Python and of JSON Schema; it lets 0 of a larger unit through."""


def parse_bytes(text: str, option: str) -> int:
    """``80GiB``, ``512 MiB``, ``24GB`` or a plain number of bytes, from `LEAST`.

    Args:
        option: named in the error, e.g. ``--memory``.

    Raises:
        BadValue: not an amount of memory, none at all, or a number whose unit was left out.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    units = {name.lower(): size for name, size in _UNITS.items()}
    unit = units.get((match[2] or "B").lower()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if match is None or size < 1:
        raise BadValue(f"{option} {text} is not an amount of memory.", f"Write {option} 80GiB or {option} 24GB.")
    if unit == 1 and size < LEAST:
        raise BadValue(
            f"{option} {text} is {size:,} bytes, and no prompt fits into that.",
            f"Name the unit: {option} {match[1] if size < 1000 else 4}GiB.",
        )
    return size
