"""Notes about tasks for people: what many tasks have in common is said once."""

from __future__ import annotations

from collections.abc import Iterable

_LISTED = 3


def said_once(notes: Iterable[tuple[str, str]]) -> list[str]:
    """Lines ``tasks: note`` from (task id, note) pairs, in order; equal notes share a line.

    Up to three tasks are listed, of more the first and a count. A note that begins with its task's name stands alone.
    """
    tasks: dict[str, list[str]] = {}
    for task, note in notes:
        if note and task not in tasks.setdefault(note, []):
            tasks[note].append(task)
    return [
        note if note.startswith(ids[0].partition("@")[0]) else f"{_listed(ids)}: {note}" for note, ids in tasks.items()
    ]


def _listed(ids: list[str]) -> str:
    return ", ".join(ids) if len(ids) <= _LISTED else f"{ids[0]} and {len(ids) - 1} more tasks"
