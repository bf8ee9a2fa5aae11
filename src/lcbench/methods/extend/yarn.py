"""YaRN: fast pairs extrapolate, slow pairs interpolate, and the logits grow a little."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from lcbench.config.options import param
from lcbench.errors import BadValue
from lcbench.methods.base import Traits
from lcbench.methods.extension import Angles, RopeChange, Trained
from lcbench.methods.registry import method


@method("yarn", paper="arXiv:2309.00071", traits=Traits(family="extend", prefill="own"))
@dataclass(frozen=True)
class Yarn(RopeChange):
    """Fast pairs of channels keep their frequency, slow ones interpolate, logits grow a little (arXiv:2309.00071,
    section 3; transformers' rope_type "yarn").

    Pair ``c(r) = d ln(L / (2 pi r)) / (2 ln b)`` makes r turns within the trained window L. Pairs up to
    ``floor(c(beta_fast))`` keep their frequency, those from ``ceil(c(beta_slow))`` on are divided by s = `factor`, and
    a straight ramp lies between. Cosines and sines are multiplied by ``0.1 ln s + 1``, so that logits grow by its
    square. Nothing depends on the length of a text. Qwen2.5's cards recommend factor 4.
    """

    proof: ClassVar[str] = (
        "Frequencies and the factor on the logits against transformers' own yarn to 1e-6, over bases, windows and "
        "factors, and against the published numbers of Llama-2 at s = 8 (pairs 20 to 46, 1.20794); logits of tiny "
        "models over 64 forced tokens against transformers; step by step equals one pass; factor=1 changes no bit."
    )

    factor: float = param(4.0, "times the trained window that is served (s)", minimum=1)
    original: int | None = param(None, "trained window in tokens (L); none: the model's", minimum=1)
    beta_fast: float = param(32.0, "turns within L from which a pair keeps its frequency", minimum=0.01)
    beta_slow: float = param(1.0, "turns within L up to which a pair is divided by the factor", minimum=0.01)
    attention_factor: float | None = param(None, "factor on cosines and sines; none: 0.1 ln s + 1", minimum=0.01)

    def __post_init__(self) -> None:
        if self.beta_slow >= self.beta_fast:
            raise BadValue(
                f"yarn@beta_slow={self.beta_slow:g} is not below beta_fast={self.beta_fast:g}.",
                "Use beta_slow=1,beta_fast=32.",
            )

    def extended(self, trained: int) -> int:
        return max(trained, int((self.original or trained) * self.factor))

    def angles(self, model: Trained, length: int) -> Angles:
        window = self.original or model.window

        def pair(turns: float) -> float:
            return model.dims * math.log(window / (turns * 2 * math.pi)) / (2 * math.log(model.theta))

        low, high = max(math.floor(pair(self.beta_fast)), 0), min(math.ceil(pair(self.beta_slow)), model.dims - 1)
        ramp = (torch.arange(model.dims // 2).float() - low) / max(high - low, 0.001)
        keeps, own = 1 - ramp.clamp(0, 1), model.angles()
        scaling = 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else self.attention_factor
        mixed = own / self.factor * (1 - keeps) + own * keeps
        return Angles(own if self.factor == 1 else mixed, scaling)  # a mix of equals is rounded, too
