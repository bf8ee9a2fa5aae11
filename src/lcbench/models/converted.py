"""Models converted from GGUF files, below ``LCBENCH_HOME/models``. Imports no torch."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

MARKER = "lcbench.json"  # written last: a folder with it is finished


def folder_for(sha256: str, home: Path) -> Path:
    """Where the conversion of the GGUF file with this hash lies, or will lie."""
    return home / "models" / f"gguf-{sha256[:16]}"


def is_converted(folder: Path, sha256: str) -> bool:
    """Whether ``folder`` holds the finished conversion of the GGUF file with this hash."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("gguf_sha256") == sha256


def missing_packages() -> list[str]:
    """Packages that reading a GGUF file needs and that are not installed."""
    return [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]


def all_converted(home: Path) -> list[tuple[Path, str]]:
    """Folder and GGUF file name of every finished conversion."""
    found = []
    for marker in sorted((home / "models").glob(f"gguf-*/{MARKER}")):
        try:
            found.append((marker.parent, str(json.loads(marker.read_text(encoding="utf-8"))["gguf_name"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
