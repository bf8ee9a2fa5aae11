"""Labels that stand beside what they name and never on each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lcbench.reporting.figures.style import MUTED, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels

_RINGS = (8, 16, 27, 41, 58)  # distances of a label from its point, in points; a line leads to it from the second on


def label_points(
    ax: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    others: Sequence[tuple[float, float]] = (),
    colours: Sequence[str] | None = None,
    **style: Any,
) -> None:
    """Write each text beside its point, where it covers neither a point nor another text; limits must be set before.

    ``others`` are points without a text that must stay free too. ``colours``: of each text; None: those of ``style``.

    Every text tries eight directions at growing distances and takes the place that costs least. From the second
    distance on a thin line leads back to the point.
    """
    figure: Any = ax.figure
    figure.draw_without_rendering()
    pixel = figure.dpi / 72
    at = [tuple(ax.transData.transform(point)) for point in points]
    taken = [*at, *(tuple(ax.transData.transform(point)) for point in others)]
    blocked: list[Box] = [(x - 5 * pixel, y - 5 * pixel, x + 5 * pixel, y + 5 * pixel) for x, y in taken]
    room = ax.get_window_extent()
    inside: Box = (room.x0, room.y0, room.x1 + 40 * pixel, room.y1)
    placed: list[Box] = []
    # The most crowded points choose first.
    order = sorted(range(len(at)), key=lambda i: -sum(math.dist(at[i], other) < 60 * pixel for other in at))
    for i in order:
        width, height = _size(ax, texts[i], **style)
        best = min(
            _places(at[i], width, height, pixel),
            key=lambda place: _cost(place[0], place[1], [b for j, b in enumerate(blocked) if j != i], placed, inside),
        )
        box, ring = best
        placed.append(box)
        own = style if colours is None else {**style, "color": colours[i]}
        _write(ax, points[i], texts[i], box, at[i], ring, pixel, **own)


def side_key(ax: Axes, names: Sequence[str]) -> None:
    """The key of points that carry numbers from 1, at the right of the axes; the figure grows with it."""
    from matplotlib.lines import Line2D

    rows = [f"{i + 1}  {name}" for i, name in enumerate(names)]
    size = 7.5 if len(rows) <= 26 else max(4.5, 7.5 * 26 / len(rows))
    figure: Any = ax.figure
    figure.set_size_inches(9.4, max(4.6, min(8.5, 0.16 * len(rows) + 1)))
    # A legend without handles is part of the layout, so the axes make room for it.
    handles = [Line2D([], [], linestyle="none") for _ in rows]
    figure.legend(handles, rows, loc="outside right center", fontsize=size, handlelength=0, handletextpad=0)


def _places(at: Sequence[float], width: float, height: float, pixel: float) -> list[tuple[Box, int]]:
    places = []
    for ring, distance in enumerate(_RINGS):
        for step in range(8):
            angle = step * math.pi / 4
            x = at[0] + math.cos(angle) * (distance * pixel + width / 2 * abs(math.cos(angle)))
            y = at[1] + math.sin(angle) * (distance * pixel + height / 2)
            places.append(((x - width / 2, y - height / 2, x + width / 2, y + height / 2), ring))
    return places


def _cost(box: Box, ring: int, points: Sequence[Box], placed: Sequence[Box], inside: Box) -> float:
    outside = max(0.0, inside[0] - box[0], box[2] - inside[2], inside[1] - box[1], box[3] - inside[3])
    covered = sum(_overlap(box, other) for other in placed) * 10 + sum(_overlap(box, other) for other in points) * 5
    return covered + outside * 50 + ring * 30


def _overlap(a: Box, b: Box) -> float:
    """Shared area, with a rim of two pixels."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 2
    height = min(a[3], b[3]) - max(a[1], b[1]) + 2
    return width * height if width > 0 and height > 0 else 0.0


def _write(
    ax: Axes,
    point: tuple[float, float],
    text: str,
    box: Box,
    at: Sequence[float],
    ring: int,
    pixel: float,
    **style: Any,
) -> None:
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    arrow = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3} if ring else None
    note = ax.annotate(
        text,
        point,
        xytext=((centre[0] - at[0]) / pixel, (centre[1] - at[1]) / pixel),
        textcoords="offset points",
        ha="center",
        va="center",
        arrowprops=arrow,
        annotation_clip=False,
        zorder=5,
        **style,
    )
    halo(note)
    note.set_in_layout(False)


def halo(text: Any) -> None:
    """Paper behind a text, so that lines below it do not cross it out."""
    text.set_bbox({"boxstyle": "square,pad=0.08", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.75})


def _size(ax: Axes, text: str, **style: Any) -> tuple[float, float]:
    probe = ax.text(0, 0, text, transform=None, **style)
    box = probe.get_window_extent()
    probe.remove()
    return box.width, box.height


def spread(values: Sequence[float], gap: float) -> list[float]:
    """``values`` moved as little as keeps any two ``gap`` apart, in their order: places for labels beside lines."""
    order = sorted(range(len(values)), key=values.__getitem__)
    blocks: list[list[Any]] = []  # [sum of wanted centres, members]
    for index in order:
        blocks.append([values[index], [index]])
        while len(blocks) > 1 and _begin(blocks[-1], gap) < _end(blocks[-2], gap):
            last = blocks.pop()
            blocks[-1][0] += last[0]
            blocks[-1][1] += last[1]
    result = [0.0] * len(values)
    for block in blocks:
        start = block[0] / len(block[1]) - gap * (len(block[1]) - 1) / 2
        for place, index in enumerate(block[1]):
            result[index] = start + place * gap
    return result


def _begin(block: Sequence[Any], gap: float) -> float:
    return float(block[0] / len(block[1]) - gap * len(block[1]) / 2)


def _end(block: Sequence[Any], gap: float) -> float:
    return float(block[0] / len(block[1]) + gap * len(block[1]) / 2)
