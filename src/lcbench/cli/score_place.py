"""Where ``lcbench score`` writes, and what it never writes over: only a scores file of ours is ever replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lcbench.errors import BadValue, CannotWrite

if TYPE_CHECKING:
    from lcbench.scoring.table import ScoreTable

_PREDICTIONS = (".jsonl.gz", ".jsonl")


def default_place(target: Path) -> Path:
    """Where the scores of prediction files go: ``scores.json`` in a folder, ``NAME.scores.json`` beside a file."""
    if target.is_dir():
        return target / "scores.json"
    name = target.name
    for ending in _PREDICTIONS:
        name = name.removesuffix(ending)
    return target.with_name(f"{name}.scores.json")


def is_ours(path: Path) -> bool:
    """Whether the file is one that ``lcbench score`` wrote; False for anything that cannot be read."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    kinds = {"schema_version": int, "lcbench": str, "source": dict, "methods": dict}
    return isinstance(data, dict) and all(isinstance(data.get(key), kind) for key, kind in kinds.items())


def refuse_overwriting(out: Path) -> None:
    """Raise BadValue for a place of ``--out`` that is a folder, is named as predictions are, or holds another file."""
    step = "Name a new .json file, or a scores file that lcbench wrote."
    if str(out) == "-":
        raise BadValue("--out takes a file, and - is none.", "--json prints the scores on stdout.")
    if out.is_dir() or out.name.endswith(_PREDICTIONS):
        raise BadValue(f"--out {out} would overwrite predictions or a folder.", step)
    if (out.exists() or out.is_symlink()) and not is_ours(out):
        raise BadValue(f"--out {out} is there already and was not written by lcbench score.", step)


def write_default(table: ScoreTable, target: Path) -> str:
    """Write the scores of prediction files to their `default_place`; the line that tells the reader what happened."""
    from lcbench.store.files import write_json

    place = default_place(target)
    if (place.exists() or place.is_symlink()) and not is_ours(place):
        return f"Not written: {place} was not written by lcbench score; --out FILE.json chooses another place."
    try:
        write_json(place, table.to_dict())
    except CannotWrite as error:
        return f"Not written: {error.message.rstrip('.')}; --out FILE.json chooses another place."
    return f"Scores written to {place}"
