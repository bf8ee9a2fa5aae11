"""Decoding speed against its physical limit: every new token must read the weights and the cache from memory once.

Both axes are logarithmic, so a memory bandwidth is a straight line: tokens a second times bytes a token. A point's
distance below the line of the measured bandwidth is what the software leaves unused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lcbench.reporting.figures.labels import halo, label_points, side_key
from lcbench.reporting.figures.pareto import byte_ticks
from lcbench.reporting.figures.style import GRID, INK, MUTED, looks, new_figure, shorten, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 7  # with more methods than this, points carry numbers and a key stands at the side


@dataclass(frozen=True)
class SpeedPoint:
    """One measurement.

    Attributes:
        method: id. prompt_tokens: length of the prompt. batch: sequences decoded together.
        bytes_per_step: weights and KV bytes that one decoding step must read.
        tokens_per_second: new tokens a second, all sequences together.
    """

    method: str
    prompt_tokens: int
    batch: int
    bytes_per_step: float
    tokens_per_second: float

    @property
    def steps_per_second(self) -> float:
        return self.tokens_per_second / self.batch

    @property
    def bandwidth(self) -> float:
        """Bytes a second that the measured speed amounts to."""
        return self.steps_per_second * self.bytes_per_step


def draw(points: Sequence[SpeedPoint], *, title: str, bandwidth: float | None = None) -> Figure:
    """The figure. ``bandwidth``: the measured copy bandwidth in bytes a second; None: only lines to read it off."""
    with styled():
        figure = new_figure(7.2, 4.6)
        ax = figure.add_subplot()
        _limits(ax, points, bandwidth)
        _bandwidths(ax, bandwidth)
        style = looks(list(dict.fromkeys(p.method for p in points)))
        for method in dict.fromkeys(p.method for p in points):
            own = sorted((p for p in points if p.method == method), key=lambda p: p.bytes_per_step)
            colour, marker = style[method]
            xs, ys = [p.bytes_per_step for p in own], [p.steps_per_second for p in own]
            ax.plot(xs, ys, color=colour, marker=marker, markersize=6.5, linewidth=0.8, zorder=3)
        longest = {p.method: p for p in sorted(points, key=lambda p: p.prompt_tokens)}  # the longest of each
        names = [f"{shorten(m, 22)}, {p.prompt_tokens:,} tokens" for m, p in longest.items()]
        if len(names) > _NAMED:
            side_key(ax, names)
            names = [str(i + 1) for i in range(len(names))]
        label_points(
            ax,
            [(p.bytes_per_step, p.steps_per_second) for p in longest.values()],
            names,
            others=[(p.bytes_per_step, p.steps_per_second) for p in points if p is not longest[p.method]],
            fontsize=7,
            color=INK,
        )
        ax.set_xlabel("bytes that one decoding step must read: weights and KV cache (log scale)")
        ax.set_ylabel("decoding steps a second (log scale)")
        ax.set_title(title)
        return figure


def _limits(ax: Axes, points: Sequence[SpeedPoint], bandwidth: float | None) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    xs, ys = [p.bytes_per_step for p in points], [p.steps_per_second for p in points]
    tops = [*ys, bandwidth / min(xs)] if bandwidth else ys
    wide = max((max(xs) / min(xs)) ** 0.15, 1.01)  # where weights outweigh all caches the axis must be narrow
    ax.set_xlim(min(xs) / wide, max(xs) * wide**2)
    ax.set_ylim(min(ys) / 1.5, max(tops) * 1.6)
    byte_ticks(ax, *ax.get_xlim())
    low, high = ax.get_ylim()
    ticks = [n * 10.0**k for k in range(-3, 7) for n in (1, 2, 5) if low <= n * 10.0**k <= high]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_yticks([], minor=True)
    ax.grid(axis="x", visible=False)


def _bandwidths(ax: Axes, measured: float | None) -> None:
    """Lines of equal bandwidth, labelled where they leave the axes on the left; the measured one in black."""
    x0, x1 = ax.get_xlim()
    low, high = ax.get_ylim()
    decades = [n * 10.0**k for k in range(8, 15) for n in (1, 2, 5)]
    shown = [(b, False) for b in decades if (low < b / x0 < high and low < b / x1 < high) or low < b / x0 < high]
    if measured is not None:
        shown = [(b, False) for b, _ in shown if not 0.75 < b / measured < 1.35] + [(measured, True)]
    for value, limit in shown:
        colour = INK if limit else GRID
        ax.plot([x0, x1], [value / x0, value / x1], color=colour, linewidth=1.6 if limit else 0.9, zorder=1)
        text = f"{_rate(value)}, measured: the limit" if limit else _rate(value)
        note = ax.annotate(
            text,
            (x0, value / x0),
            (4, 2 if limit else -1),
            textcoords="offset points",
            fontsize=7,
            color=INK if limit else MUTED,
            va="bottom" if limit else "top",
        )
        halo(note)


def _rate(bytes_per_second: float) -> str:
    for unit, size in (("TB/s", 1e12), ("GB/s", 1e9), ("MB/s", 1e6)):
        if bytes_per_second >= size:
            return f"{bytes_per_second / size:.3g} {unit}"
    return f"{bytes_per_second:.3g} B/s"
