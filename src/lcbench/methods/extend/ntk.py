"""NTK-aware scaling: a larger base, fixed or chosen by the length of the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lcbench.config.options import param
from lcbench.methods.base import Traits
from lcbench.methods.extension import Angles, RopeChange, Trained
from lcbench.methods.registry import method

_PAPER = "arXiv:2309.00071"


@method("ntk", paper=_PAPER, traits=Traits(family="extend", prefill="own"))
@dataclass(frozen=True)
class NTK(RopeChange):
    """NTK-aware scaling of the rotary base (described in arXiv:2309.00071, section 3.1).

    The base b becomes ``b s^(d / (d - 2))`` with s = `factor` and d rotated channels: the fastest pair stays as it is,
    the slowest is divided by exactly s, those between by less.
    """

    proof: ClassVar[str] = (
        "Logits of tiny models over 64 forced tokens against transformers with that base in its config; the first "
        "frequency is unchanged and the last divided by s; factor=1 changes no bit."
    )

    factor: float = param(4.0, "times the trained window that is served (s)", minimum=1)

    def extended(self, trained: int) -> int:
        return int(trained * self.factor)

    def angles(self, model: Trained, length: int) -> Angles:
        return Angles(model.angles(self.factor**model.exponent))


@method("dynamic-ntk", paper=_PAPER, traits=Traits(family="extend", prefill="own", stackable=False))
@dataclass(frozen=True)
class DynamicNTK(RopeChange):
    """NTK-aware scaling whose base follows the length of the text (described in arXiv:2309.00071, section 3.3), frozen
    before the prompt is read.

    A text of n tokens beyond the trained window L gets the base ``b (s n / L - (s - 1))^(d / (d - 2))``; within it the
    model is left alone. n is the prompt and the longest answer the task allows, so that no key is cached under another
    base than its queries have. transformers' rope_type "dynamic" takes a new base at every step instead, under which
    cached keys and new queries disagree, and keeps a long text's base for the next short one. `least` is the smallest
    n, as in the fine-tuned 32k and 64k models of 100-LongBench (models/llama_ntk_32k), whose base does not change up
    to there.

    Any number of tokens is served. Each answer is decoded alone, since each prompt has a model of its own.
    """

    proof: ClassVar[str] = (
        "Logits of tiny models over 64 forced tokens against transformers' own dynamic scaling given the whole text "
        "at once; step by step it equals one pass over the text to 1e-4, and the order of samples changes nothing; a "
        "text within the window is the plain model to the bit; the slowest frequency is divided by s n / L - (s - 1)."
    )

    factor: float = param(2.0, "how fast the base grows with the length (s)", minimum=1)
    original: int | None = param(None, "trained window in tokens (L); none: the model's", minimum=1)
    least: int = param(1, "shortest text that the base is chosen for, in tokens", minimum=1)

    def extended(self, trained: int) -> None:
        return None

    def angles(self, model: Trained, length: int) -> Angles:
        window, n = self.original or model.window, max(length, self.least)
        if n <= window:
            return Angles(model.angles())
        return Angles(model.angles((self.factor * n / window - (self.factor - 1)) ** model.exponent))
