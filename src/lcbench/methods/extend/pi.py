"""Linear position interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lcbench.config.options import param
from lcbench.methods.base import Traits
from lcbench.methods.extension import Angles, RopeChange, Trained
from lcbench.methods.registry import method


@method("pi", paper="arXiv:2306.15595", traits=Traits(family="extend", prefill="own"))
@dataclass(frozen=True)
class PI(RopeChange):
    """Linear position interpolation: every rotary frequency is divided (arXiv:2306.15595, section 2.3; transformers'
    rope_type "linear").

    Every rotary frequency is divided by `factor` s, as if token p stood at position p / s, so that a window of L tokens
    serves s L. A model that was not tuned for it answers worse at every length, short prompts included. Checkpoints
    that were (LongChat-7B-v1.5-32k) carry the factor in their config and need no method.
    """

    proof: ClassVar[str] = (
        "Logits of tiny models over 64 forced tokens against transformers' own linear scaling, and against the plain "
        "model given fractional positions p / s; every frequency is divided by s; factor=1 changes no bit."
    )

    factor: float = param(4.0, "times the trained window that is served (s)", minimum=1)

    def extended(self, trained: int) -> int:
        return int(trained * self.factor)

    def angles(self, model: Trained, length: int) -> Angles:
        return Angles(model.angles() / self.factor)
