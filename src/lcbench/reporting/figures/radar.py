"""Scores by category, one spoke each, all on one linear scale from 0."""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lcbench.reporting.figures.labels import Label, Words, halo, label_points
from lcbench.reporting.figures.style import GRID, INK, MUTED, fit, grid_shape, head, looks, new_figure, shorten, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TOGETHER = 4  # up to so many methods share one radar
MOST = 12  # panels at most

_STYLES = ("solid", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)))


def draw(
    categories: Sequence[str], scores: Mapping[str, Sequence[float | None]], *, title: str, reference: str | None = None
) -> Figure:
    """The figure.

    Args:
        categories: names of the spokes, three or more. scores: method id to a score for each, 0 to 100.
        reference: the method drawn in grey behind the others when each has a panel of its own.
    """
    methods = list(scores)
    top = _round_up(max((s for row in scores.values() for s in row if s is not None), default=1.0))
    with styled():
        style = looks(methods)
        if len(methods) <= _TOGETHER:
            figure = new_figure(6.2, 5.0)
            figure.get_layout_engine().set(rect=(0.07, 0, 0.86, 1))  # type: ignore[union-attr,call-arg]
            ax: Any = figure.add_subplot(projection="polar")
            _spokes(ax, categories, list(scores.values()), top, small=False)
            for index, method in enumerate(methods):
                # Tints of several shapes would mix to a colour of none.
                _shape(ax, scores[method], style[method][0], _STYLES[index], fill=len(methods) == 1)
            head(figure, title)
            _direct_labels(ax, scores, {method: style[method][0] for method in methods})
            return figure
        return _panels(categories, scores, top, title, reference, style)


def _direct_labels(ax: Any, scores: Mapping[str, Sequence[float | None]], colours: Mapping[str, str]) -> None:
    """The name of each method beside the corner of its shape that is farthest from those of the others."""
    shown = [method for method, row in scores.items() if any(s is not None for s in row)]
    count = len(next(iter(scores.values())))
    corners = {m: [(2 * math.pi * i / count, s, i) for i, s in enumerate(scores[m]) if s is not None] for m in shown}

    def alone(method: str, corner: tuple[float, float, int]) -> float:
        others = [scores[m][corner[2]] for m in shown if m != method]
        return min((abs(corner[1] - o) for o in others if o is not None), default=0.0)

    chosen = [max((alone(m, corner), corner[1], corner) for corner in corners[m])[2] for m in shown]
    places = [(angle, score) for angle, score, _ in chosen]
    others = [place for row in scores.values() for place in _edges(row)]
    others += [(math.radians(ax.get_rlabel_position()), float(tick)) for tick in ax.get_yticks()]
    labels = [Label(at, (Words(shorten(m), colours[m]),), 2.5) for at, m in zip(places, shown, strict=True)]
    label_points(ax, labels, faint=others, fontsize=8, fontweight="bold")


def _edges(row: Sequence[float | None]) -> list[tuple[float, float]]:
    """Places along a closed shape, which labels leave free, as (angle, radius)."""
    count, found = len(row), []
    for i, (a, b) in enumerate(zip(row, [*row[1:], row[0]], strict=True)):
        if a is None or b is None:
            continue
        begin, end = (cmath.rect(r, 2 * math.pi * (i + k) / count) for k, r in enumerate((a, b)))
        found += [(cmath.phase(p), abs(p)) for p in (begin + (end - begin) * k / 24 for k in range(25))]
    return found


def _panels(
    categories: Sequence[str],
    scores: Mapping[str, Sequence[float | None]],
    top: float,
    title: str,
    reference: str | None,
    style: Mapping[str, tuple[str, str]],
) -> Figure:
    shown = [m for m in scores if m != reference][:MOST]
    rows, columns = grid_shape(len(shown), 4)
    figure = new_figure(2.6 * columns, 2.6 * rows + 0.5)
    for index, method in enumerate(shown):
        ax: Any = figure.add_subplot(rows, columns, index + 1, projection="polar")
        _spokes(ax, categories, [row for m, row in scores.items() if m in (method, reference)], top, small=True)
        if reference is not None:
            _shape(ax, scores[reference], MUTED, "solid", width=1.0, fill=False)
        _shape(ax, scores[method], style[method][0], "solid")
        ax.set_title(fit(method, 2.2, 8, bold=True), fontsize=8, loc="center", pad=12)
    more = f"; {len(scores) - 1 - len(shown)} more methods not drawn" if len(scores) - 1 > len(shown) else ""
    grey = f" (grey: {reference}{more})" if reference else more
    head(figure, title + grey)
    return figure


def _spokes(
    ax: Any, categories: Sequence[str], rows: Sequence[Sequence[float | None]], top: float, *, small: bool
) -> None:
    """Spokes, rings and their names, in the gap where ``rows`` leave the most room for them."""
    angles = [2 * math.pi * i / len(categories) for i in range(len(categories))]
    ax.set_theta_offset(math.pi / 2)
    ax.set_theta_direction(-1)
    ax.set_xticks(angles, [_broken(name) for name in categories], fontsize=6 if small else 8.5)
    for label, angle in zip(ax.get_xticklabels(), angles, strict=True):
        side = math.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.15 else "left" if side > 0 else "right")
    ax.tick_params(axis="x", pad=0 if small else 4)
    ax.set_ylim(0, top)
    ticks = [top * share for share in ((0.5, 1.0) if small else (0.25, 0.5, 0.75, 1.0))]
    ax.set_yticks(ticks, [""] * len(ticks))
    gaps = [(i + 0.5) * 360 / len(categories) for i in range(len(categories))]
    room = [min([0.1 * top, *(abs(r - t) for r in _crossings(rows, i) for t in ticks)]) for i in range(len(gaps))]
    ax.set_rlabel_position(gaps[room.index(max(room))])  # the first of those with room enough
    for tick in ticks:  # texts of their own: tick labels lie below the lines, which strike them out
        at = math.radians(ax.get_rlabel_position()), tick
        halo(ax.text(*at, f"{tick:g}", fontsize=5.5 if small else 7, color=MUTED, ha="center", va="center", zorder=5))
    ax.grid(color=GRID)
    ax.spines["polar"].set_color(GRID)


def _crossings(rows: Sequence[Sequence[float | None]], gap: int) -> list[float]:
    """Radii at which the sides of shapes cross the middle between the spokes ``gap`` and ``gap + 1``."""
    found = []
    for row in rows:
        a, b = row[gap], row[(gap + 1) % len(row)]
        if a is not None and b is not None:
            found.append(2 * a * b * math.cos(math.pi / len(row)) / (a + b) if a + b else 0.0)
    return found


def _broken(name: str) -> str:
    return (
        name.replace("-doc-qa", "-doc\nQA")
        .replace("summarization", "summari-\nzation")
        .replace("few-shot", "few-\nshot")
    )


def _shape(
    ax: Any,
    scores: Sequence[float | None],
    colour: str,
    line: Any,
    *,
    width: float = 1.8,
    fill: bool = True,
) -> None:
    """A closed line; a category without a score leaves a gap, never a 0."""
    angles = [2 * math.pi * i / len(scores) for i in range(len(scores))]
    values = [math.nan if s is None else s for s in scores]
    ax.plot([*angles, angles[0]], [*values, values[0]], color=colour, linewidth=width, linestyle=line)
    ax.plot(angles, values, marker="o", markersize=3, linestyle="none", color=colour)
    if fill and None not in scores:
        ax.fill(angles, values, color=colour, alpha=0.06 if colour == INK else 0.1)


def _round_up(value: float) -> float:
    for top in (1, 2, 4, 8, 10, 20, 40, 60, 80):
        if value <= top:
            return float(top)
    return 100.0
