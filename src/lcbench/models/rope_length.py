"""Rotary frequencies that are chosen by how long the text is: RoPE types "dynamic" and "longrope".

transformers chooses them anew in each forward pass, by the longest position in the batch. Rows of different lengths
would change each other's, and "dynamic" keeps what a long text made of them for the shorter one that comes next. Here
is what makes the frequencies of a row a function of its own length alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def _kinds(config: Any) -> dict[str | None, Mapping[str, Any]]:
    """RoPE parameters of a transformers text config: under None, or one set a layer type."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    by_type: dict[str | None, Mapping[str, Any]] = {k: v for k, v in rope.items() if isinstance(v, Mapping)}
    return by_type or {None: rope}


def _type(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def rope_follows_length(config: Any) -> bool:
    """Whether a transformers text config asks for frequencies that are chosen by the length of the text."""
    return any(_type(rope) in ("dynamic", "longrope") for rope in _kinds(config).values())


def rows_of_one_length(config: Any, positions: Tensor) -> list[list[int]]:
    """Rows ``positions [R, q]`` that may go through a model together: those that get the same frequencies.

    longrope has two sets, short and long, and "dynamic" one for every length.
    """
    everything = list(range(len(positions)))
    if len(everything) == 1 or not rope_follows_length(config):
        return [everything]
    reached = (positions.amax(dim=1) + 1).tolist()
    ropes = list(_kinds(config).values())
    exact = any(_type(rope) == "dynamic" for rope in ropes)
    ends = [rope["original_max_position_embeddings"] for rope in ropes if _type(rope) == "longrope"]
    groups: dict[Any, list[int]] = {}
    for row, length in enumerate(reached):
        groups.setdefault(length if exact else tuple(length > end for end in ends), []).append(row)
    return list(groups.values())


def forget_longer_texts(model: Any) -> None:
    """Set the frequencies of "dynamic" back to those of the trained window, from which each pass stretches them as
    far as its own text needs. (longrope keeps nothing.)"""
    config = model.config.get_text_config(decoder=True)
    kinds = [kind for kind, rope in _kinds(config).items() if _type(rope) == "dynamic"]
    if not kinds:
        return
    for rotary in model.modules():
        for prefix in ("" if kind is None else f"{kind}_" for kind in kinds):
            original = getattr(rotary, f"{prefix}original_inv_freq", None)
            if original is None:
                continue
            now = getattr(rotary, f"{prefix}inv_freq")
            rotary.register_buffer(f"{prefix}inv_freq", original.to(now.device, copy=True), persistent=False)
            setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)
