"""Facts of published architectures, one JSON file each: what `models.random_weights` makes a model of."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def architectures() -> list[str]:
    """Names of the files here, in alphabetical order."""
    return sorted(file.name.removesuffix(".json") for file in _FOLDER.glob("*.json"))


def architecture_file(name: str) -> Path:
    """Where the facts of one of `architectures` are."""
    return _FOLDER / f"{name}.json"
