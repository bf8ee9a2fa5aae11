"""Tiny CLEX checkpoints: a random Llama, and the three tensors of the layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcbench.models.clex_checkpoint import DOWN, START, UP
from lcbench.models.rope_facts import inverse_frequencies
from tiny import save_tiny

DIMS, THETA = 32, 10000.0


def tensors(*, learned: bool = True, factor: int = 2) -> dict[str, Tensor]:
    """U, D and the frequencies; ``learned=False`` leaves D at zero, as before any training."""
    draw = torch.Generator().manual_seed(5)
    up = torch.randn(DIMS // 2, factor * DIMS, generator=draw) * 0.1
    down = torch.randn(factor * DIMS, DIMS // 2, generator=draw) * 0.02
    return {UP: up, DOWN: down if learned else torch.zeros_like(down), START: inverse_frequencies(THETA, DIMS)}


def save(folder: Path, *, form: str = "safetensors", log_scale: bool = False, **layer: Any) -> Path:
    """Write a checkpoint trained for 300 tokens.

    Args:
        form: "safetensors", "shards" (with an index) or "bin".
    """
    save_tiny(folder, window=300)
    config = json.loads((folder / "config.json").read_text())
    theta = config.pop("rope_parameters", {}).get("rope_theta", THETA)
    config["rope_theta"], config["log_scale"] = theta, log_scale
    config["rope_scaling"] = {
        "type": "clex",
        "factor": 1,
        "max_factor": 8,
        "param_factor": 2,
        "act": "tanh",
        "time_dt": 0.05,
    }
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}  # as published ones have
    (folder / "config.json").write_text(json.dumps(config))
    weights, more = load_file(folder / "model.safetensors"), tensors(**layer)
    if form == "safetensors":
        save_file({**weights, **more}, folder / "model.safetensors", {"format": "pt"})
        return folder
    (folder / "model.safetensors").unlink()
    if form == "bin":
        torch.save({**weights, **more}, folder / "pytorch_model.bin")
        return folder
    parts = {"model-00001-of-00002.safetensors": weights, "model-00002-of-00002.safetensors": more}
    for name, held in parts.items():
        save_file(held, folder / name, {"format": "pt"})
    places = {key: name for name, held in parts.items() for key in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder
