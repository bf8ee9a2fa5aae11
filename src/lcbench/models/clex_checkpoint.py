"""Checkpoints of CLEX (arXiv:2310.16450): a plain model whose config asks for a rope_type that transformers does not
know, and three tensors more.

The config is read without that type, so that the weights load as those of the plain model; what the method needs is
read apart from them by `clex_layer`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcbench.errors import ModelError
from lcbench.models.hub import plain
from lcbench.models.source import find

UP = "model.clex_layer.proj_func.ode_up_proj"
DOWN = "model.clex_layer.proj_func.ode_down_proj"
START = "model.clex_layer.inv_freq"
_PUBLISHED = "Use a checkpoint that was trained with CLEX, e.g. DAMO-NLP-SG/CLEX-7B-16K."


@dataclass(frozen=True)
class ClexLayer:
    """What a CLEX checkpoint holds beyond the plain model.

    Attributes:
        up: fp32 ``[d / 2, c d]``. down: ``[c d, d / 2]``. start: frequencies at t = 1, ``[d / 2]``.
        max_factor: greatest t. time_dt: step of the integration. act: "tanh" or "silu".
        log_scale: whether queries grow with the logarithm of the length.
    """

    up: Tensor
    down: Tensor
    start: Tensor
    max_factor: float
    time_dt: float
    act: str
    log_scale: bool


def is_clex(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of CLEX."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return isinstance(rope, Mapping) and (rope.get("type") or rope.get("rope_type")) == "clex"


def plain_config(config: Mapping[str, Any]) -> Any:
    """The transformers config of the plain model behind a CLEX config.json. Raises ValueError for an unknown family."""
    from transformers import AutoConfig

    rest = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_parameters", "auto_map")}
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        rest["rope_theta"] = rope["rope_theta"]
    return AutoConfig.for_model(rest.pop("model_type"), **rest)


def clex_layer(name: str, revision: str | None) -> ClexLayer:
    """What the checkpoint of a model holds of CLEX.

    Args:
        name: as after ``--model``. revision: commit of a hub model.

    Raises:
        ModelError: it is no CLEX checkpoint, or its tensors cannot be read.
    """
    found = find(name)
    if found.source not in ("hub", "folder"):
        raise ModelError(f"{name} is not a CLEX checkpoint.", _PUBLISHED)
    try:
        where = _Where(name, found.path, revision)
        config = json.loads(where.file("config.json").read_text(encoding="utf-8"))
        if not is_clex(config):
            raise ModelError(f"{name} was not trained with CLEX: its config names no such rope_scaling.", _PUBLISHED)
        up, down, start = where.tensors((UP, DOWN, START))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"The CLEX layer of {name} cannot be read: {plain(error)}.", _PUBLISHED) from None
    rope = config.get("rope_scaling") or config["rope_parameters"]
    return ClexLayer(
        up,
        down,
        start,
        max_factor=float(rope.get("max_factor") or rope.get("factor") or 1.0),
        time_dt=float(rope.get("time_dt") or 0.01),
        act=str(rope.get("act") or "silu"),
        log_scale=bool(config.get("log_scale", rope.get("log_scale", False))),
    )


@dataclass(frozen=True)
class _Where:
    """The files of a checkpoint: in a folder, or on the hub (then fetched into its cache)."""

    name: str
    folder: Path | None
    revision: str | None

    def file(self, name: str) -> Path:
        """Raises OSError where there is none."""
        if self.folder is not None:
            return self.folder / name
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self.name, name, revision=self.revision))

    def tensors(self, names: Sequence[str]) -> list[Tensor]:
        """Those tensors, fp32. Raises KeyError for one that no file has."""
        for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
            try:
                places = json.loads(self.file(index).read_text(encoding="utf-8"))["weight_map"]
            except OSError:
                continue
            return [_read(self.file(places[name]), name) for name in names]
        for whole in ("model.safetensors", "pytorch_model.bin"):
            try:
                path = self.file(whole)
                path.stat()
            except OSError:
                continue
            return [_read(path, name) for name in names]
        raise FileNotFoundError(f"{self.name} has no weights")


def _read(path: Path, name: str) -> Tensor:
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            if name not in file.keys():  # noqa: SIM118 (not a mapping)
                raise KeyError(f"there is no tensor {name}")
            tensor: Tensor = file.get_tensor(name)
            return tensor.float()
    held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return held[name].float().clone()  # type: ignore[no-any-return]
