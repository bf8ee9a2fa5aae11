"""CLEX: frequencies that follow a learned differential equation in the scaling factor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.errors import ModelError
from lcbench.methods.base import Method, Traits
from lcbench.methods.calibration import bound
from lcbench.methods.extension import Angles, RopeChange, Trained
from lcbench.methods.registry import method
from lcbench.models.clex_checkpoint import ClexLayer, clex_layer

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo


@method(
    "clex",
    paper="arXiv:2310.16450",
    traits=Traits(family="extend", prefill="own", stackable=False, training="a CLEX checkpoint as the model"),
)
@dataclass(frozen=True)
class Clex(RopeChange):
    """Frequencies from a learned ordinary differential equation (arXiv:2310.16450, section 3; rules as in
    DAMO-NLP-SG/CLEX clex_layer.py).

    With t the scaling factor, ``x(1) = ln theta`` and ``dx/dt = act((x + ln f(t)) U) D + d ln f / dt``, where f(t) are
    the frequencies of the base ``b (2t - 1)^(d / (d - 2))``; the frequencies at t are ``exp x(t)``, found with
    Runge-Kutta steps of the checkpoint's size. U and D, and all other weights, were trained for it: the model must be a
    CLEX checkpoint (DAMO-NLP-SG/CLEX-7B-16K, CLEX-LLaMA-2-7B-64K, …), which without this method runs at t = 1.

    t is ``ceil(n / L)``, at most the checkpoint's max_factor, with n the prompt and the longest answer the task allows,
    fixed before the prompt is read; the authors let t grow while decoding and turn all keys anew. With `log_scale`
    logits grow by ``ln n / ln L``, n fixed likewise. Each answer is decoded alone, since each prompt has a model of its
    own.
    """

    proof: ClassVar[str] = (
        "A tiny checkpoint made for the test, as a folder, as shards and as a .bin, through `lcbench run`. D = 0 gives "
        "``theta_i (2t - 1)^(-2i / (d - 2))``; the solution against another solver (torch, steps of 1e-4) and against "
        "half the step; t = 1 is the plain model to the bit; logits against transformers with the frequencies written "
        "in. The published weights were not at hand."
    )

    log_scale: bool | None = param(None, "logits grow by ln n / ln L; none: as the checkpoint says")

    @property
    def _layer(self) -> ClexLayer | None:
        return getattr(self, "_clex_layer", None)

    def extended(self, trained: int) -> int:
        return trained if self._layer is None else int(trained * self._layer.max_factor)

    def bind(self, info: ModelInfo, home: Path) -> Method:
        self.refuse_model(info)
        layer = clex_layer(info.name, info.revision)
        if layer.start.numel() * 2 != info.rope.dims:
            raise ModelError(
                f"The CLEX layer of {info.name} has {layer.start.numel()} frequencies, and its heads need "
                f"{info.rope.dims // 2}.",
                "Use another checkpoint.",
            )
        grows = layer.log_scale if self.log_scale is None else self.log_scale
        if grows and info.rope.dims != info.head_dim:
            raise ModelError(
                f"{info.name} rotates {info.rope.dims} of {info.head_dim} channels, and clex scales logits by the "
                "rotated ones.",
                "Use clex@log_scale=false.",
            )
        return bound(self, _clex_layer=layer)

    def angles(self, model: Trained, length: int) -> Angles:
        layer = self._layer
        if layer is None:
            raise ModelError("clex has no checkpoint to read its layer from.", "Give a CLEX checkpoint to --model.")
        t = min(math.ceil(length / model.window), int(layer.max_factor))
        grows = layer.log_scale if self.log_scale is None else self.log_scale
        # On queries and keys alike: their product has the whole of it.
        scaling = math.sqrt(math.log(max(length, 2)) / math.log(model.window)) if grows else 1.0
        return Angles(model.angles() if t <= 1 else solved(layer, model.theta, t), scaling)


def solved(layer: ClexLayer, theta: float, t: float) -> Tensor:
    """Frequencies at the scaling factor ``t``, fp32 ``[d / 2]``, by fourth-order Runge-Kutta steps from 1."""
    activations: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "silu": torch.nn.functional.silu}
    act = activations.get(layer.act)
    if act is None:
        raise ModelError(f"The CLEX layer's activation '{layer.act}' is neither tanh nor silu.", "Use another one.")
    pairs = layer.start.numel()
    d = 2 * pairs
    twice = torch.arange(0, d, 2, dtype=torch.float64)
    up, down = layer.up.double(), layer.down.double()

    def slope(time: float, x: Tensor) -> Tensor:
        alpha = max(2 * time - 1, 1.0)
        log_f = -(twice / d) * (math.log(theta) + d / (d - 2) * math.log(alpha))
        return act((x + log_f) @ up) @ down - 2 * twice / ((d - 2) * alpha)

    x, time = layer.start.double().log(), 1.0
    steps = max(1, round((t - 1) / layer.time_dt))
    h = (t - 1) / steps
    for _ in range(steps):
        k1 = slope(time, x)
        k2 = slope(time + h / 2, x + h / 2 * k1)
        k3 = slope(time + h / 2, x + h / 2 * k2)
        k4 = slope(time + h, x + h * k3)
        x, time = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), time + h
    return x.exp().float()
