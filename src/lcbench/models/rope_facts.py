"""What kind of rotary position embedding a model has, and other frequencies in its place for a while.

Methods that extend a window compute frequencies of their own. They are put where the model's own lie, in the buffers of
its rotary embedding, and taken out again: nothing of a method is left when the next one runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lcbench.errors import ModelError

_BUFFERS = ("inv_freq", "original_inv_freq")
_SCALING = "attention_scaling"


@dataclass(frozen=True)
class RopeFacts:
    """How a model turns positions into angles.

    Attributes:
        kind: "default", or what stretches the angles already ("linear", "dynamic", "yarn", "llama3", "longrope", …);
            "none" for a model without rotary embedding, "by layer" where kinds of layers have angles of their own.
        theta: base of the frequencies; 0 where the kind has none or several.
        dims: channels of a head that are rotated; 0 likewise.
    """

    kind: str = "none"
    theta: float = 0.0
    dims: int = 0


def rope_facts(model: Any) -> RopeFacts:
    """The facts of a transformers model, on the meta device too."""
    rotary = _rotaries(model)
    if not rotary:
        return RopeFacts()
    rope = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    if any(isinstance(value, Mapping) for value in rope.values()) or not hasattr(rotary[0], "inv_freq"):
        return RopeFacts("by layer")
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    return RopeFacts(kind, float(rope.get("rope_theta") or 0.0), 2 * rotary[0].inv_freq.numel())


def inverse_frequencies(theta: float, dims: int) -> Tensor:
    """Radians a position of each pair, ``theta^(-2i/d)``: fp32 ``[dims / 2]``, to the bit as in transformers."""
    exponents: Tensor = torch.arange(0, dims, 2, dtype=torch.int64).float() / dims
    return 1.0 / (theta**exponents)


@contextmanager
def frequencies(model: Any, new: Tensor, scaling: float = 1.0) -> Iterator[None]:
    """Context in which a model with plain rotary embedding rotates by ``new``.

    Args:
        new: radians a position, fp32 ``[r / 2]``. scaling: factor on the cosines and sines.

    Raises:
        ModelError: the model's own frequencies are not what its config says.
    """
    facts, rotary = rope_facts(model), _rotaries(model)
    if facts.kind != "default" or any(not _as_stated(module, facts) for module in rotary):
        raise ModelError(
            f"The rotary frequencies of {type(model).__name__} are not what its config says, so none can take their "
            "place.",
            "Choose another model, or selfextend, which leaves the frequencies alone.",
        )
    before = [({name: getattr(m, name) for name in _BUFFERS if hasattr(m, name)}, m.attention_scaling) for m in rotary]
    try:
        for module, (buffers, _) in zip(rotary, before, strict=True):
            for name, old in buffers.items():
                setattr(module, name, new.to(old.device, old.dtype))
            setattr(module, _SCALING, scaling)
        yield
    finally:
        for module, (buffers, factor) in zip(rotary, before, strict=True):
            for name, old in buffers.items():
                setattr(module, name, old)
            setattr(module, _SCALING, factor)


def _rotaries(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding")]


def _as_stated(module: Any, facts: RopeFacts) -> bool:
    own = getattr(module, "inv_freq", None)
    if own is None or getattr(module, _SCALING, None) != 1.0 or own.numel() * 2 != facts.dims:
        return False
    stated = inverse_frequencies(facts.theta, facts.dims)  # tiny ones underflow where the whole model was made fp16
    return torch.allclose(own.float().cpu(), stated, rtol=max(1e-5, torch.finfo(own.dtype).eps), atol=1e-7)
