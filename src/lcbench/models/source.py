"""From what the user wrote after --model to where the model lies."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lcbench.config.spec import SERVED
from lcbench.errors import ModelError, nearest

if TYPE_CHECKING:
    from lcbench.models.info import Source

DEMO = "demo"
_GGUF_MAGIC = b"GGUF"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class Found:
    """Where a model lies. ``path`` is a folder or a GGUF file; None for a hub id."""

    name: str
    source: Source
    path: Path | None


def find(name: str) -> Found:
    """Tell demo, GGUF file, local folder and hub id apart; a folder that exists wins over a hub id.

    Raises:
        ModelError: nothing of that name here, and it cannot be a hub id; or a file or folder that holds no model.
    """
    if name.startswith(SERVED):
        raise ModelError(
            f"{name} is a model behind an address; its weights are not here.",
            "`lcbench run` asks such models; here give a hub id, a local folder or a GGUF file.",
        )
    if name == DEMO:
        from lcbench.models.demo import demo_file

        return Found(name, "demo", demo_file())
    path = Path(name).expanduser()
    if path.is_file():
        return Found(name, "gguf", _gguf(path))
    if path.is_dir():
        return Found(name, "folder", _model_folder(path))
    if _is_path(name):
        raise ModelError(f"There is no model folder or GGUF file '{name}'.", _suggestion(path))
    return Found(name, "hub", None)


def suggest(name: str) -> str:
    """A next step for a name that the hub does not know: the nearest model at hand, if any."""
    close = nearest(name, [DEMO, *cached_hub_models()])
    return f"Did you mean '{close}'?" if close else "Use --model demo, a hub id, a local folder or a GGUF file."


def cached_hub_models() -> list[str]:
    """Hub ids of the models in the local hub cache."""
    from huggingface_hub import constants

    try:
        folders = os.listdir(constants.HF_HUB_CACHE)
    except OSError:
        return []
    return sorted(f.removeprefix("models--").replace("--", "/") for f in folders if f.startswith("models--"))


def _is_path(name: str) -> bool:
    return (
        name.startswith((".", "~", "/"))
        or name.lower().endswith((".gguf", ".safetensors", ".bin"))
        or not _HUB_ID.fullmatch(name)
        or ".." in name
    )


def _gguf(path: Path) -> Path:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {error.strerror}.", "Check the permissions of the file.") from None
    if magic != _GGUF_MAGIC:
        raise ModelError(
            f"{path} is a file but not a GGUF file.",
            f"For safetensors give the folder that holds config.json: --model {path.parent}",
        )
    return path.resolve()


def _model_folder(path: Path) -> Path:
    if (path / "config.json").is_file():
        return path.resolve()
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"{path} holds a PEFT adapter, not a whole model.", "Merge it into its base model first, then give that."
        )
    files = sorted(path.glob("*.gguf"))
    if files:
        raise ModelError(f"{path} has no config.json; it holds GGUF files.", f"Give one of them: --model {files[0]}")
    snapshots = sorted(path.glob("snapshots/*/config.json"))
    if snapshots:
        raise ModelError(
            f"{path} is a hub cache folder; the model lies deeper.", f"Give --model {snapshots[-1].parent}"
        )
    raise ModelError(
        f"{path} has no config.json, so it is not a model folder.",
        "Give the folder that save_pretrained or a hub download made.",
    )


def _suggestion(path: Path) -> str:
    """The nearest name beside the path that does not exist, else what is accepted."""
    try:
        beside = {p.name for p in path.parent.iterdir() if p.suffix.lower() == ".gguf" or (p / "config.json").is_file()}
    except OSError:
        beside = set()
    close = nearest(path.name, beside)
    if close:
        return f"Did you mean '{path.parent / close}'?"
    return "Use --model demo, a hub id such as org/name, a local folder or a GGUF file."
