"""Cutting a text into events where it surprises (EM-LLM, arXiv:2407.09450, section 3): no layer, no attention.

One `Segments` serves all layers of a cache: what a model foretells is known once a run of tokens has gone through all
of them, and the events are the same for all.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["modularity", "conductance"]


@dataclass(frozen=True)
class Cutting:
    """How events are cut.

    Attributes:
        n_init, n_local: first tokens and tokens of the window, which are in no event. shortest, longest: of an event.
        gamma: deviations above the mean from which a token is surprising.
        run: tokens of a run of the prompt.
        uniform: events of the longest size, wherever they fall.
        refine: move boundaries so that keys of an event are alike, judged by this.
    """

    n_init: int
    n_local: int
    shortest: int
    longest: int
    gamma: float
    run: int
    uniform: bool = False
    refine: Metric | None = None


class Segments:
    """First tokens, events, and what is in neither, as a text is read.

    Attributes:
        first: first tokens that the window has left. events: first and one past the last token of each.
        starts: positions at which an event begins, the surprising ones.
    """

    def __init__(self, cutting: Cutting) -> None:
        self.cutting = cutting
        self.first = 0
        self.events: list[tuple[int, int]] = []
        self.starts: list[int] = []
        self._settled: dict[int, tuple[int, int]] = {}  # tokens seen to first tokens and events then
        self._surprise: list[float] = []  # of the tokens after the events, as far as known
        self._alike: Tensor | None = None  # fp64 [n, n], products of the keys from `origin` on, summed over layers

    @property
    def rest(self) -> int:
        """Position of the first token after the events."""
        return self.events[-1][1] if self.events else self.first

    def fork(self) -> Segments:
        new = copy.copy(self)
        new.events, new.starts, new._surprise = list(self.events), list(self.starts), list(self._surprise)
        new._settled = dict(self._settled)
        return new

    def origin(self, start: int) -> int:
        """From where on the keys of a run that begins at ``start`` are compared: the last event of the run before."""
        return self.starts[-1] if self.starts and self.starts[-1] >= start - self.cutting.run else start

    def compare(self, keys: Tensor) -> None:
        """Add a layer's keys ``[Hk, n, d]``, not rotated, from the run's origin to its end."""
        products = torch.einsum("hid,hjd->ij", keys.double(), keys.double())
        self._alike = products if self._alike is None else self._alike + products

    def read(self, surprise: Sequence[float], stop: int) -> None:
        """The surprise at each token of a run that ended before ``stop``: -ln p of the token that follows it.

        A run's boundaries are the tokens above mean + gamma deviations of the values from ``max(n - n_local, 0)`` up
        to ``max(n - run, n_init)``, of the n that are in no event yet: those of earlier runs. The first run takes its
        own first `n_init`, or all of its own where boundaries are refined.
        """
        cutting, start = self.cutting, stop - len(surprise)
        opening = not self._surprise and not self.events and self.first == 0
        self._surprise += surprise
        held = len(self._surprise)
        window = self._surprise[max(held - cutting.n_local, 0) : max(held - len(surprise), cutting.n_init)]
        if opening and cutting.refine is not None:
            window = list(surprise)
        bound = math.inf
        if window:
            deviation = statistics.stdev(window) if len(window) > 1 else 0.0
            bound = statistics.fmean(window) + (cutting.gamma * deviation if deviation else 0.0)
        found = [start + i for i, value in enumerate(surprise) if value > bound]
        if cutting.refine is not None:
            origin = self.origin(start)
            assert self._alike is not None, "refining needs the keys of some layer"
            moved = refined([p - origin for p in found], self._alike, cutting.shortest, cutting.refine)
            found, self._alike = [origin + place for place in moved], None
        if not cutting.uniform:
            self.starts += found

    def settle(self, seen: int) -> tuple[int, int]:
        """Tokens that the window has left become first tokens and events: how many there are of both.

        Each layer asks, and the lowest is at the end of a pass while the others are still at its beginning.
        """
        if seen not in self._settled:
            self._cut(seen)
            self._settled[seen] = (self.first, len(self.events))
        return self._settled[seen]

    def _cut(self, seen: int) -> None:
        cutting, before = self.cutting, self.rest
        leaving = seen - self.rest - cutting.n_local
        if self.first < cutting.n_init and leaving > 0:
            self.first += min(cutting.n_init - self.first, leaving)
        region = seen - self.rest - cutting.n_local
        if cutting.uniform or region > cutting.shortest:
            base = self.rest
            inside = [place - base for place in self.starts if base < place < base + region]
            for size in sizes(region, inside, cutting):
                self.events.append((self.rest, self.rest + size))
        self._surprise = self._surprise[self.rest - before :]


def sizes(region: int, starts: Sequence[int], cutting: Cutting) -> list[int]:
    """Sizes of the events that are cut off the first ``region`` tokens; what is left of them waits.

    Args:
        starts: places in it where events begin, ascending.
    """
    longest = cutting.longest
    if cutting.uniform:
        return [longest] * (max(region, 0) // longest)
    if not starts:
        return [longest] * (max(region - 1, 0) // longest)
    found, begin = [], 0
    for place in starts:
        while place - begin >= longest:
            found.append(longest)
            begin += longest
        if place - begin >= cutting.shortest:
            found.append(place - begin)
            begin = place
    return found


def refined(places: Sequence[int], alike: Tensor, shortest: int, metric: Metric) -> list[int]:
    """Boundaries moved to where they part their surroundings best.

    Between the boundary a before it and a boundary e every place t from ``a + shortest`` to ``e - 1`` is tried; the
    surroundings reach ``(e - a) // 2`` tokens beyond both. Boundaries closer than ``shortest`` to the one before are
    dropped. Ties keep the first place.

    Args:
        places: ascending, counted from the matrix's beginning. alike: ``[n, n]``.
    """
    accepted, before = list[int](), 0
    for place in places:
        if place - before < shortest:
            continue
        reach = (place - before) // 2
        low, high = max(0, before - reach), min(alike.shape[0], place + reach)
        tried = range(before + shortest, place)
        if tried:
            worth = split_worth(alike[low:high, low:high], metric)
            place = max(tried, key=lambda t: float(worth[t - low]))
        accepted.append(place)
        before = place
    return accepted


def split_worth(alike: Tensor, metric: Metric) -> Tensor:
    """How good it is to part ``alike [n, n]`` before each place t: fp64 ``[n]``, larger is better; -inf where it is
    not defined.

    Modularity: ``Q = 1/4m sum_C sum_{i,j in C} (A_ij - k_i k_j / 2m)``, k_i = sum_j A_ij, 2m = sum A. Conductance,
    negated: the smaller of both sides' ``cut / min(vol, rest)``, vol the weight inside a side as in the authors' code.
    """
    total = alike.sum()
    whole = alike.cumsum(0).cumsum(1)
    n = alike.shape[0]
    t = torch.arange(1, n)
    left = whole[t - 1, t - 1]
    cross = whole[t - 1, n - 1] - left
    right = total - left - 2 * cross
    if metric == "modularity":
        degree = alike.sum(dim=1).cumsum(0)[t - 1]
        worth = (left - degree**2 / total + right - (total - degree) ** 2 / total) / (2 * total)
    else:
        sides = [cross / torch.minimum(volume, total - volume) for volume in (left, right)]
        worth = -torch.minimum(*sides)
    defined = torch.where(torch.isfinite(worth), worth, -torch.inf)
    return torch.cat([torch.full((1,), -torch.inf, dtype=defined.dtype), defined.cpu()])
