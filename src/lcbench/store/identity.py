"""What must be the same for a run to be continued, and what only deserves a warning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: A provenance entry whose path has one of these names decides the predictions.
IDENTITY_KEYS = frozenset(
    {"identity", "dtype", "data_sha256", "prompts_sha256", "chat_template_sha256", "task_version", "calibration_sha256"}
)

#: Entries that differ from call to call and say nothing about the predictions.
_VOLATILE = frozenset({"command", "host", "time"})

_MOST_LINES = 8
_LONGEST_VALUE = 80


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key to ``was X, now Y`` for every entry that is not the same; an absent entry equals null."""
    return _dotted(_changes(old, new))


def identity_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """`differences` of two provenances, only the entries that decide the predictions (see `IDENTITY_KEYS`)."""
    return _dotted({path: text for path, text in _changes(old, new).items() if IDENTITY_KEYS & _names(path)})


def other_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """`differences` of two provenances that may be continued over: versions, devices, paths, notes."""
    ignored = IDENTITY_KEYS | _VOLATILE
    return _dotted({path: text for path, text in _changes(old, new).items() if not ignored & _names(path)})


def as_lines(changes: Mapping[str, str]) -> list[str]:
    """``key: was X, now Y`` lines, at most eight of them and a count of the rest."""
    lines = [f"{key}: {change}" for key, change in changes.items()]
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = [f"… and {len(lines) - _MOST_LINES} more"]
    return lines


def plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` as JSON gives it back: tuples are lists, keys are text. Raises TypeError for what JSON cannot hold."""
    result: dict[str, Any] = json.loads(json.dumps(data))
    return result


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[tuple[str, ...], str]:
    before, after = _flatten(plain(old)), _flatten(plain(new))
    return {
        path: f"was {_text(before.get(path))}, now {_text(after.get(path))}"
        for path in {**before, **after}
        if before.get(path) != after.get(path)
    }


def _dotted(changes: Mapping[tuple[str, ...], str]) -> dict[str, str]:
    return {".".join(path): text for path, text in changes.items()}


def _names(path: tuple[str, ...]) -> frozenset[str]:
    """The parts of a path in one spelling, so that "data sha256" is ``data_sha256``."""
    return frozenset(part.strip().lower().replace(" ", "_").replace("-", "_") for part in path)


def _flatten(data: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(data, dict) and data:
        return {p: v for key, value in data.items() for p, v in _flatten(value, (*path, key)).items()}
    return {path: None if data == {} else data}


def _text(value: Any) -> str:
    if value is None:
        text = "not set"
    elif isinstance(value, list):
        text = ", ".join(str(v) for v in value) or "nothing"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = str(value) or "empty"
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
