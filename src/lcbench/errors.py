"""Every error lcbench raises on purpose, and what the user can do about it.

LcbenchError                  one sentence + `next_step`; the CLI prints both and exits with 2
├── UsageError                wrong words on the command line, in YAML or in a call
│   ├── UnknownName           a method, task, parameter, key … that does not exist (offers the nearest)
│   └── BadValue              a known name with a value it cannot take
├── DataError                 benchmark data
│   ├── DataMissing           not downloaded yet
│   ├── ChecksumMismatch      the bytes are not the ones expected
│   ├── NetworkError          the other side could not be reached, or went away
│   └── CorruptFile           a file that cannot be read as what it claims (names file and line)
├── ModelError                a model that cannot be loaded, or that a method cannot serve
├── StoreError                run directories
│   ├── NotARun               not a run directory
│   ├── SpecMismatch          the directory belongs to a run with another specification
│   ├── RunLocked             another process is writing to it
│   └── CannotWrite           folder not writable, or no space left
└── SampleError               one sample failed; recorded, counted, and the run goes on
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BadValue",
    "CannotWrite",
    "ChecksumMismatch",
    "CorruptFile",
    "DataError",
    "DataMissing",
    "LcbenchError",
    "ModelError",
    "NetworkError",
    "NotARun",
    "RunLocked",
    "SampleError",
    "SpecMismatch",
    "StoreError",
    "UnknownName",
    "UsageError",
    "nearest",
]


class LcbenchError(Exception):
    """Base of all errors lcbench raises on purpose.

    Args:
        message: one sentence saying what is wrong, with the offending name or path in it.
        next_step: one sentence or command that mends it; empty when there is nothing to do.
    """

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step


class UsageError(LcbenchError):
    """Wrong words on the command line, in a YAML file or in an API call."""


class UnknownName(UsageError):
    """A name that is not registered; the message offers the nearest one that is.

    Args:
        kind: what was looked up, e.g. ``"method"``.
        name: what the user wrote.
        choices: the names that exist.
        where: appended after the name, e.g. ``" of method kivi"``.
        listing: command that shows all choices, e.g. ``"lcbench list methods"``.
    """

    def __init__(self, kind: str, name: str, choices: Iterable[str], *, where: str = "", listing: str = "") -> None:
        names = sorted(choices)
        close = nearest(name, names)
        step = f"Did you mean '{close}'?" if close else ""
        if listing:
            step = f"{step} `{listing}` shows all.".strip()
        elif close and kind == "value":
            step += f" Known: {', '.join(names)}."
        elif not close:
            step = f"Known: {', '.join(names)}." if names else f"Leave it out: no {kind} can be given here."
        super().__init__(f"Unknown {kind} '{name}'{where}.", step)
        self.kind, self.name, self.choices = kind, name, names


class BadValue(UsageError):
    """A known name with a value it cannot take."""


class DataError(LcbenchError):
    """Benchmark data is missing, wrong or unreachable."""


class DataMissing(DataError):
    """A data set or file is not in the data folder yet."""


class ChecksumMismatch(DataError):
    """Bytes that are not the expected ones."""


class NetworkError(DataError):
    """The other side could not be reached, refused, or went away."""


class CorruptFile(DataError):
    """A file that cannot be read as what it claims to be; names the file and, where it can, the line."""


class ModelError(LcbenchError):
    """A model that cannot be found, loaded or placed, or that a method cannot serve."""


class StoreError(LcbenchError):
    """Something about a run directory."""


class NotARun(StoreError):
    """The path is not a run directory."""


class SpecMismatch(StoreError):
    """The run directory was made by another specification; the message shows the differences."""


class RunLocked(StoreError):
    """Another living process writes to this run directory."""


class CannotWrite(StoreError):
    """The folder cannot be written, or the disk is full."""


class SampleError(LcbenchError):
    """One sample cannot be answered (for example: longer than the window). Recorded; the run goes on."""


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``name``, or None when nothing is close."""
    lowered = {choice.lower(): choice for choice in choices}
    hits = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.5)
    return lowered[hits[0]] if hits else None
