"""Decoding speed against its physical limit: every new token must read the weights and the cache from memory once.

Few lines whose bytes differ are drawn over the bytes of a step, both axes logarithmic: a memory bandwidth is then a
straight line, and a point's distance below the line of the measured bandwidth is what the software leaves unused. Of
many, and where the weights outweigh all caches so that the points would stand in one column, each method has a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcbench.reporting.figures import efficiency_rows
from lcbench.reporting.figures.labels import Label, Words, halo, label_points
from lcbench.reporting.figures.pareto import byte_ticks
from lcbench.reporting.figures.speeds import SpeedPoint, rate
from lcbench.reporting.figures.style import GRID, INK, MUTED, looks, new_figure, shorten, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SpeedPoint", "draw"]

_LINES = 7  # with more lines than this each method has a row
_SPREAD = 1.1  # where the most bytes of a step are less than so many times the least, too


def draw(points: Sequence[SpeedPoint], *, title: str, bandwidth: float | None = None) -> Figure:
    """The figure. ``bandwidth``: the measured copy bandwidth in bytes a second; None: only lines to read it off."""
    sizes = [p.bytes_per_step for p in points]
    lines = _lines(points)
    with styled():
        if len(lines) > _LINES or max(sizes) / min(sizes) < _SPREAD:
            return efficiency_rows.draw(points, title=title, bandwidth=bandwidth)
        for size in ((7.2, 4.6), (8.2, 5.6), (9.4, 6.6)):
            figure, collisions = _over_bytes(lines, size, title, bandwidth)
            if not collisions:
                return figure
        return efficiency_rows.draw(points, title=title, bandwidth=bandwidth)


def _lines(points: Sequence[SpeedPoint]) -> dict[tuple[str, int], list[SpeedPoint]]:
    """(method, batch) to its points by bytes: what one line connects."""
    found: dict[tuple[str, int], list[SpeedPoint]] = {}
    for point in sorted(points, key=lambda p: p.bytes_per_step):
        found.setdefault((point.method, point.batch), []).append(point)
    order = {method: i for i, method in enumerate(dict.fromkeys(p.method for p in points))}
    return dict(sorted(found.items(), key=lambda item: (order[item[0][0]], item[0][1])))


def _over_bytes(
    lines: dict[tuple[str, int], list[SpeedPoint]], size: tuple[float, float], title: str, bandwidth: float | None
) -> tuple[Figure, int]:
    points = [point for line in lines.values() for point in line]
    figure = new_figure(*size)
    ax = figure.add_subplot()
    _limits(ax, points, bandwidth)
    style = looks(list(dict.fromkeys(method for method, _ in lines)))
    batches = len({batch for _, batch in lines}) > 1
    labels, named = [], []
    for (method, batch), own in lines.items():
        colour, marker = style[method]
        xs, ys = [p.bytes_per_step for p in own], [p.steps_per_second for p in own]
        ax.plot(xs, ys, color=colour, marker=marker, markersize=6.5, linewidth=0.8, zorder=3)
        end = max(own, key=lambda p: p.prompt_tokens)
        text = f"{shorten(method, 30)}, {end.prompt_tokens:,} tokens" + (f", batch {batch}" if batches else "")
        words = Words(text, glyph=(marker, colour, True))
        labels.append(Label((end.bytes_per_step, end.steps_per_second), (words,)))
        named.append(end)
    ax.set_xlabel("bytes that one decoding step must read: weights and KV cache (log scale)")
    ax.set_ylabel("decoding steps a second (log scale)")
    ax.set_title(title)
    rest = [(p.bytes_per_step, p.steps_per_second) for p in points if p not in named]
    faint = [place for own in lines.values() for place in _along(own)] + _bandwidths(ax, bandwidth)
    return figure, label_points(ax, labels, markers=rest, faint=faint, fontsize=7)


def _along(own: Sequence[SpeedPoint]) -> list[tuple[float, float]]:
    """Places on a line between its points, which labels leave free."""
    found = []
    for a, b in itertools.pairwise(own):
        for i in range(1, 20):
            x = a.bytes_per_step * (b.bytes_per_step / a.bytes_per_step) ** (i / 20)
            found.append((x, a.steps_per_second * (b.steps_per_second / a.steps_per_second) ** (i / 20)))
    return found


def _limits(ax: Axes, points: Sequence[SpeedPoint], bandwidth: float | None) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    xs, ys = [p.bytes_per_step for p in points], [p.steps_per_second for p in points]
    tops = [*ys, bandwidth / min(xs)] if bandwidth else ys
    wide = (max(xs) / min(xs)) ** 0.15
    ax.set_xlim(min(xs) / wide, max(xs) * wide**2)
    ax.set_ylim(min(ys) / 1.5, max(tops) * 1.6)
    byte_ticks(ax, *ax.get_xlim())
    low, high = ax.get_ylim()
    ticks = [n * 10.0**k for k in range(-3, 7) for n in (1, 2, 5) if low <= n * 10.0**k <= high]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_yticks([], minor=True)
    ax.grid(axis="x", visible=False)


def _bandwidths(ax: Axes, measured: float | None) -> list[tuple[float, float]]:
    """Lines of equal bandwidth, labelled where they leave the axes on the left; the measured one in black.

    Returns places under their labels and on the black line, which other labels leave free.
    """
    x0, x1 = ax.get_xlim()
    low, high = ax.get_ylim()
    decades = [n * 10.0**k for k in range(8, 15) for n in (1, 2, 5)]
    shown = [(b, False) for b in decades if low < b / x0 < high]
    if measured is not None:
        shown = [(b, False) for b, _ in shown if b < 0.75 * measured] + [(measured, True)]
    taken = []
    for value, limit in shown:
        colour = INK if limit else GRID
        ax.plot([x0, x1], [value / x0, value / x1], color=colour, linewidth=1.6 if limit else 0.9, zorder=1)
        # The lines fall to the right, so a text above its line's left end stays clear of it, and one below does not.
        note = ax.annotate(
            f"{rate(value)}, measured: the limit" if limit else rate(value),
            (x0, value / x0),
            (4, 4),
            textcoords="offset points",
            fontsize=7,
            color=INK if limit else MUTED,
            va="bottom",
        )
        if not limit:
            halo(note)
        taken += [(x0 * (x1 / x0) ** (i / 60), value / x0 * (1.04 if i < 8 else x0 / (x0 * (x1 / x0) ** (i / 60))))
                  for i in range(61 if limit else 8)]  # fmt: skip
    return taken
