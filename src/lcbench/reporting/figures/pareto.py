"""Accuracy against KV bytes, with the Pareto front: what a method costs and what it saves, in one picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcbench.reporting.figures.labels import Label, Words, label_points, side_key
from lcbench.reporting.figures.style import INK, MUTED, PAPER, looks, new_figure, shorten, styled, wrap
from lcbench.reporting.words import bytes_text, has_no_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 20  # up to so many methods points always carry names
_SIZES = ((7.2, 4.6), (8.2, 5.4), (9.4, 6.6))  # inches; the first in which no label covers anything is taken


@dataclass(frozen=True)
class MethodPoint:
    """One method.

    Attributes:
        method: id. kv_bytes: mean bytes a sample, above 0. score: 0 to 100. low, high: 95 % interval, None if unknown.
        simulated: whether the bytes only count as dropped. parted: whether rows that others have are missing.
    """

    method: str
    kv_bytes: float
    score: float
    low: float | None = None
    high: float | None = None
    simulated: bool = False
    parted: bool = False


def front_of(points: Sequence[MethodPoint]) -> list[MethodPoint]:
    """The points that no other beats: none has as few bytes and as high a score, and one of them better. By bytes.

    A point of a part of the rows that others have is none to compare.
    """
    front: list[MethodPoint] = []
    whole = [point for point in points if not point.parted]
    for point in sorted(whole, key=lambda p: (p.kv_bytes, -p.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def draw(points: Sequence[MethodPoint], *, title: str, full_bytes: float | None, score_label: str) -> Figure:
    """The figure. ``full_bytes``: bytes of the uncompressed cache, for the scale on top.

    Every point is named where it stands. The picture grows until no name covers anything, then points that nearly
    touch share a label. Only of more than 20 methods that find no room the points carry numbers, and the key stands at
    the side.
    """
    many = len(points) > _NAMED
    whole = _SIZES[-1]
    attempts = [(whole, 1)] if many else [*((size, 1) for size in _SIZES), (whole, 2), (whole, 3)]
    with styled():
        best: tuple[int, Figure] | None = None
        for size, near in attempts:
            figure, collisions = _drawn(points, size, title, full_bytes, score_label, near=near)
            if not collisions:
                return figure
            best = (collisions, figure) if best is None or collisions < best[0] else best
        if many:
            return _drawn(points, _SIZES[0], title, full_bytes, score_label, numbered=True)[0]
        assert best is not None
        return best[1]


def _drawn(
    points: Sequence[MethodPoint],
    size: tuple[float, float],
    title: str,
    full_bytes: float | None,
    score_label: str,
    *,
    near: float = 1,
    numbered: bool = False,
) -> tuple[Figure, int]:
    """The figure at a size in inches, and how many labels cover something. ``near``: see `_heaps`."""
    figure = new_figure(*size)
    ax = figure.add_subplot()
    style = looks([point.method for point in points])
    front = front_of(points)
    _front(ax, front)
    _scales(ax, points, full_bytes, score_label)
    for heap in _heaps(ax, points):
        for below, point in enumerate(heap):
            _point(ax, point, style[point.method], on_front=point in front, below=below)
    ax.set_title(wrap(title, size[0] - 0.6), pad=36)
    _explain(ax, points, front)
    names = {p.method: str(i + 1) if numbered else shorten(p.method, 34) for i, p in enumerate(points)}
    if numbered:
        side_key(ax, [shorten(p.method, 34) for p in points])
    labels = [_label(heap, names, style, numbered) for heap in _heaps(ax, points, near)]
    faint = [*_along(front), *_bars(points)]
    return figure, label_points(ax, labels, faint=faint, fontsize=7.5)


def _heaps(ax: Axes, points: Sequence[MethodPoint], times: float = 1) -> list[list[MethodPoint]]:
    """The points, those together whose markers would cover each other's middle, or are ``times`` as far apart."""
    heaps: list[list[MethodPoint]] = []
    for point in points:
        own = next((heap for heap in heaps if _near(ax, point, heap[0], times)), None)
        if own is None:
            heaps.append([point])
        else:
            own.append(point)
    return heaps


def _label(
    heap: Sequence[MethodPoint], names: Mapping[str, str], style: Mapping[str, tuple[str, str]], numbered: bool
) -> Label:
    """The names of the points at one place, each behind its marker; numbers in one line."""
    at = (heap[0].kv_bytes, heap[0].score)
    if numbered:
        return Label(at, (Words(", ".join(names[p.method] for p in heap)),))
    lines = []
    for point in heap:
        colour, marker = style[point.method]
        lines.append(Words(names[point.method], glyph=(marker, colour, not point.simulated)))
    return Label(at, tuple(lines))


def _front(ax: Axes, front: Sequence[MethodPoint]) -> None:
    if len(front) > 1:
        ax.plot(
            [p.kv_bytes for p in front],
            [p.score for p in front],
            drawstyle="steps-post",
            color=MUTED,
            linewidth=1.4,
            linestyle=(0, (4, 2)),
            zorder=1,
        )


def _along(front: Sequence[MethodPoint]) -> list[tuple[float, float]]:
    """Places on the dashed line, which labels leave free."""
    found = []
    for a, b in itertools.pairwise(front):
        found += [(a.kv_bytes * (b.kv_bytes / a.kv_bytes) ** (i / 20), a.score) for i in range(21)]
        found += [(b.kv_bytes, a.score + (b.score - a.score) * i / 12) for i in range(13)]
    return found


def _bars(points: Sequence[MethodPoint]) -> list[tuple[float, float]]:
    """Places on the intervals, which labels leave free."""
    return [
        (p.kv_bytes, p.low + (p.high - p.low) * i / 10)
        for p in points
        if p.low is not None and p.high is not None
        for i in range(11)
    ]


def _near(ax: Axes, a: MethodPoint, b: MethodPoint, times: float = 1) -> bool:
    """Whether one marker would cover most of the other; ``times`` as far apart as that."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    across = abs(math.log(a.kv_bytes / b.kv_bytes)) / math.log(right / left)
    return across < 0.008 * times and abs(a.score - b.score) / (high - low) < 0.012 * times


def _point(ax: Axes, point: MethodPoint, style: tuple[str, str], *, on_front: bool, below: int) -> None:
    """``below``: markers at the same place drawn before; this one is smaller, so that all of them can be seen."""
    colour, marker = style
    if point.low is not None and point.high is not None:
        ax.plot([point.kv_bytes] * 2, [point.low, point.high], color=colour, linewidth=1, alpha=0.45, zorder=2)
    size = (11 if marker == "*" else 7) * max(0.4, (1.25 if on_front else 1) * 0.72**below)
    ax.plot(
        point.kv_bytes,
        point.score,
        marker=marker,
        markersize=size,
        markerfacecolor=PAPER if point.simulated else colour,
        markeredgecolor=INK if on_front and not point.simulated else colour,
        markeredgewidth=1.2 if on_front or point.simulated else 0.6,
        linestyle="none",
        zorder=3,
    )


def _scales(ax: Axes, points: Sequence[MethodPoint], full_bytes: float | None, score_label: str) -> None:
    least = min(p.kv_bytes for p in points)
    most = max([p.kv_bytes for p in points] + ([full_bytes] if full_bytes else []))
    ax.set_xscale("log", base=2)
    margin = max((most / least) ** 0.08, 1.15)
    ax.set_xlim(least / margin, most * margin)
    byte_ticks(ax, least / margin, most * margin)
    ax.set_xlabel("KV cache a sample, after compression (log scale)")
    _score_axis(ax, points, score_label)
    ax.grid(axis="x", visible=False)
    if full_bytes:
        _share_axis(ax, full_bytes)


def byte_ticks(ax: Axes, least: float, most: float) -> None:
    """Ticks of the x axis at powers of two, at most about seven; in a narrow range, and from 0, at round numbers."""
    low, high = math.ceil(math.log2(least)) if least > 0 else 0, math.floor(math.log2(most))
    if least > 0 and high - low >= 2:
        step = -(-(high - low + 1) // 7)
        ticks = [2.0**k for k in range(low, high + 1, step)]
    else:
        unit = 1024.0 ** math.floor(math.log(most, 1024))
        width = (most - least) / unit / 4
        step_size = min((n * 10.0**k for k in range(-3, 4) for n in (1, 2, 5)), key=lambda s: abs(math.log(s / width)))
        first = math.ceil(least / unit / step_size)
        ticks = [n * step_size * unit for n in range(first, math.floor(most / unit / step_size) + 1)]
    ax.set_xticks(ticks, [_plain_bytes(tick) for tick in ticks])
    ax.set_xticks([], minor=True)


def _plain_bytes(count: float) -> str:
    number, unit = bytes_text(count).split(" ")
    return f"{float(number):g} {unit}"


def _score_axis(ax: Axes, points: Sequence[MethodPoint], label: str) -> None:
    """From 0 to the top; where all scores lie in a small part of that, from where they begin, and the label says so."""
    ends = [v for p in points for v in (p.low, p.high, p.score) if v is not None]
    low, high = min(ends), max(ends)
    if low > 0.5 * high and high - low < 0.35 * high:
        room = max(5.0, 0.08 * (high - low))  # scores that hardly differ should not look as if they did
        ax.set_ylim(max(0, low - room), high + room)
        if ax.get_ylim()[0] > 0:
            label += f"  (axis begins at {ax.get_ylim()[0]:.0f})"
    else:
        high = high or 100.0  # all scores are 0
        ax.set_ylim(-0.03 * high if low < 0.03 * high else 0, min(104, high * 1.06))
    if high <= 100:  # no tick where no score can be
        ax.set_yticks([tick for tick in ax.get_yticks() if ax.get_ylim()[0] <= tick <= min(100.0, ax.get_ylim()[1])])
    ax.set_ylabel(label)


def _share_axis(ax: Axes, full_bytes: float) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    def inverse(values: Any) -> Any:  # matplotlib also asks about 0
        import numpy as np

        with np.errstate(divide="ignore"):
            return full_bytes / np.asarray(values, dtype=float)

    top = ax.secondary_xaxis("top", functions=(inverse, inverse))
    low, high = ax.get_xlim()
    shown = [1 / n for n in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512) if low <= full_bytes / n <= high]
    ratios = [round(1 / share) for share in shown]
    while len(ratios) > 8:
        ratios = ratios[::2]
    top.xaxis.set_major_locator(FixedLocator(ratios))
    top.xaxis.set_minor_locator(NullLocator())
    top.set_xticklabels([f"{ratio}x smaller" if ratio == max(ratios) > 1 else f"{ratio}x" for ratio in ratios])
    top.tick_params(labelsize=7.5, length=2)
    for spine in top.spines.values():
        spine.set_visible(False)


def _explain(ax: Axes, points: Sequence[MethodPoint], front: Sequence[MethodPoint]) -> None:
    """The key, of what is drawn alone."""
    words = ["dashed: Pareto front" if len(front) > 1 else "rim: Pareto front"]
    flat = " (no width: all samples alike)" if any(has_no_width(p.low, p.high) for p in points) else ""
    words += [f"bars: 95 % interval{flat}"] if any(p.low is not None and p.high is not None for p in points) else []
    words += ["rows missing: at its ratio, not on the front"] if any(p.parted for p in points) else []
    words += ["hollow: memory simulated"] if any(p.simulated for p in points) else []
    ax.annotate(
        "   ".join(words),
        (1, 1),
        (0, 22),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        fontsize=7,
        color=MUTED,
    )
