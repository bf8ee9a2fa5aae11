"""DPRoPE: each pair of channels keeps its frequency or interpolates, by which disturbs its angles less."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.methods.base import Traits
from lcbench.methods.extension import Angles, RopeChange, Trained
from lcbench.methods.registry import method

BINS = 360
EMPTY = 6.1035e-5  # count of an empty bin: the smallest normal fp16 number, as published


@method("dprope", paper="arXiv:2410.01490", traits=Traits(family="extend", prefill="own"))
@dataclass(frozen=True)
class DPRoPE(RopeChange):
    """Each pair of channels keeps its frequency or interpolates, by its distribution of angles; without fine-tuning
    (arXiv:2410.01490; rules as in 1180301012/DPRoPE DPRope.py).

    For each pair of channels the angles of positions 0 to L - 1 (modulo a turn, in 360 bins) are what the model was
    trained on. The angles of 0 to s L - 1 are compared with them twice: at the pair's own frequency and at the
    frequency divided by s = `factor`. The distance is the mean over the bins of ``O (ln O - ln X)``, O the trained
    shares and X the new ones, every bin starting at 6.1e-5. The nearer of the two is taken, the own frequency where
    they are equal. Computed in fp64; pairs on the border can fall otherwise in the authors' precision. Pairs too slow
    to complete a turn within s L are always interpolated.
    """

    proof: ClassVar[str] = (
        "Choices against the rule written with Python loops, for several bases, windows and factors; the counts of a "
        "second computation for Llama-2 (42 of 64 pairs at s = 4, 46 at s = 2); total distance never above either "
        "pure choice; factor=1 changes no bit."
    )

    factor: float = param(4.0, "times the trained window that is served (s)", minimum=1)
    original: int | None = param(None, "trained window in tokens (L); none: the model's", minimum=1)

    def extended(self, trained: int) -> int:
        return max(trained, int((self.original or trained) * self.factor))

    def angles(self, model: Trained, length: int) -> Angles:
        own = model.angles()
        divided = interpolated(model.theta, model.dims, self.original or model.window, self.factor)
        return Angles(torch.where(divided, own / self.factor, own))


@cache
def interpolated(theta: float, dims: int, window: int, factor: float) -> Tensor:
    """Which pairs are divided by the factor: bool ``[d / 2]``."""
    kept, divided = distances(theta, dims, window, factor)
    return divided < kept


def distances(theta: float, dims: int, window: int, factor: float) -> tuple[Tensor, Tensor]:
    """How far the angles of a longer text are from the trained ones, fp64 ``[d / 2]`` each: with the own frequencies,
    and with those divided by the factor."""
    found: tuple[list[float], list[float]] = ([], [])
    longer = int(window * factor)
    for i in range(dims // 2):
        frequency = theta ** (-2 * i / dims)
        trained = _shares(frequency, window)
        for distance, candidate in zip(found, (frequency, frequency / factor), strict=True):
            distance.append(float((trained * (trained.log() - _shares(candidate, longer).log())).mean()))
    return torch.tensor(found[0], dtype=torch.float64), torch.tensor(found[1], dtype=torch.float64)


def _shares(frequency: float, positions: int) -> Tensor:
    """Share of the angles of so many positions in each bin, fp64 ``[360]``."""
    turn = 2 * torch.pi
    angles = (torch.arange(positions, dtype=torch.float64) * frequency) % turn
    counts = torch.bincount((angles * (BINS / turn)).long().clamp(max=BINS - 1), minlength=BINS)
    return (counts.double() + EMPTY) / positions
