"""What was measured or fitted on a model once and is kept: head scores, predictors.

A calibration is one file, ``calibration/<identity>/<name>.json`` or ``.safetensors`` below LCBENCH_HOME, where the
identity is that of the weights (commit or hash): another model, or other weights under the same name, never get it.
It carries its provenance. `lcbench calibrate NAME --model M` makes it, `Method.bind` reads it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from lcbench.errors import CannotWrite, CorruptFile, ModelError

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo

M = TypeVar("M")
SCHEMA = 1
_HEADER = "lcbench"  # key of the safetensors metadata


@dataclass(frozen=True)
class Calibration:
    """One file, read.

    Attributes:
        path: where it lies. sha256: of its bytes.
        data: what was stored by `save_json`; empty for tensors. tensors: by `save_tensors`; empty for JSON.
        provenance: how it was made.
    """

    path: Path
    sha256: str
    data: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    provenance: Mapping[str, Any]


def folder(info: ModelInfo, home: Path) -> Path:
    """Where the calibrations of a model lie. Raises ModelError for a model without identity (made in memory)."""
    if not info.identity:
        raise ModelError(
            f"The model {info.name} has no commit and no weight hash, so no calibration can be kept for it.",
            "Save it as a folder and give that to --model.",
        )
    return home / "calibration" / info.identity


def save_json(name: str, info: ModelInfo, home: Path, data: Mapping[str, Any], provenance: Mapping[str, Any]) -> Path:
    """Store JSON data under ``name`` for a model; an older file is replaced at once or not at all.

    Raises:
        CannotWrite, ModelError.
    """
    text = json.dumps({**_header(name, info, provenance), "data": data}, indent=1) + "\n"
    return _replace(folder(info, home) / f"{name}.json", text.encode())


def save_tensors(
    name: str, info: ModelInfo, home: Path, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]
) -> Path:
    """Store tensors under ``name`` for a model, as `save_json`."""
    from safetensors.torch import save

    packed = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    return _replace(
        folder(info, home) / f"{name}.safetensors",
        save(packed, {_HEADER: json.dumps(_header(name, info, provenance))}),
    )


def load_json(name: str, info: ModelInfo, home: Path) -> Calibration:
    """What `save_json` stored.

    Raises:
        ModelError: there is none; the next step is the command that makes it. CorruptFile: it cannot be read.
    """
    path = folder(info, home) / f"{name}.json"
    raw = _read(path, name, info)
    try:
        whole = json.loads(raw)
        return Calibration(path, _sha256(raw), whole["data"], {}, _checked(whole))
    except (ValueError, KeyError, TypeError):
        raise _corrupt(path, name, info) from None


def load_tensors(name: str, info: ModelInfo, home: Path) -> Calibration:
    """What `save_tensors` stored, on the CPU; errors as `load_json`."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder(info, home) / f"{name}.safetensors"
    raw = _read(path, name, info)
    try:
        length = int.from_bytes(raw[:8], "little")
        whole = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"][_HEADER])
        return Calibration(path, _sha256(raw), {}, load(raw), _checked(whole))
    except (ValueError, KeyError, TypeError, SafetensorError):
        raise _corrupt(path, name, info) from None


@dataclass(frozen=True)
class Stored:
    """A calibration file that is there.

    Attributes:
        path: where it lies. name: of the calibration. nbytes: of the file.
        model: name of the model it was made for; None when the file cannot be read.
    """

    path: Path
    name: str
    nbytes: int
    model: str | None


def all_stored(home: Path) -> list[Stored]:
    """Every calibration below ``home``, of whatever model, by path. Reads headers, not tensors; raises nothing."""
    paths = [p for p in sorted((home / "calibration").glob("*/*")) if p.suffix in (".json", ".safetensors")]
    return [
        Stored(path, path.stem, path.stat().st_size, _model_of(path)) for path in paths if not path.name.startswith(".")
    ]


def _model_of(path: Path) -> str | None:
    """The model that a calibration file says it was made for, None when it is not one that can be read."""
    try:
        if path.suffix == ".json":
            whole = json.loads(path.read_bytes())
        else:
            whole = _header_of_tensors(path)
        name = _checked(whole)["model"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None


def _header_of_tensors(path: Path) -> Any:
    """Our part of the header of a file of tensors. Raises ValueError, KeyError or TypeError when it is another."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("cut off")
        return json.loads(json.loads(file.read(length))["__metadata__"][_HEADER])


def bound(method: M, **artifacts: Any) -> M:
    """A copy of a frozen method that also holds ``artifacts``, which are no parameters: id and equality stay."""
    new = copy.copy(method)
    for key, value in artifacts.items():
        object.__setattr__(new, key, value)
    return new


def missing(name: str, info: ModelInfo | None = None) -> ModelError:
    """The error of a method that needs the calibration ``name`` and has none."""
    model = "this model" if info is None else info.name
    return ModelError(
        f"There is no {name} calibration for {model} yet.",
        f"Run: lcbench calibrate {name} --model {'MODEL' if info is None else info.name}",
    )


def _header(name: str, info: ModelInfo, provenance: Mapping[str, Any]) -> dict[str, Any]:
    model = {
        "name": info.name,
        "identity": info.identity,
        "architecture": info.architecture,
        "layers": info.layers,
        "heads": info.heads,
        "kv_heads": info.kv_heads,
        "head_dim": info.head_dim,
    }
    return {"schema_version": SCHEMA, "name": name, "model": model, "provenance": dict(provenance)}


def _checked(whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """The provenance, with what the header says of the model. Raises ValueError for another schema."""
    if whole["schema_version"] != SCHEMA:
        raise ValueError
    return {**whole["provenance"], "model": whole["model"]}


def _read(path: Path, name: str, info: ModelInfo) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise missing(name, info) from None
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {error.strerror}.", "Check its permissions.") from None


def _corrupt(path: Path, name: str, info: ModelInfo) -> CorruptFile:
    return CorruptFile(
        f"{path} is not a calibration that this lcbench can read.",
        f"Make it again: lcbench calibrate {name} --model {info.name}",
    )


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _replace(path: Path, content: bytes) -> Path:
    """Write beside the target, sync, then rename: readers see the old file or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    except OSError as error:
        raise CannotWrite(f"Cannot write {path}: {error.strerror}.", "Check LCBENCH_HOME and free space.") from None
    return path
