"""Labels that stand beside what they name and never on each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lcbench.reporting.figures.placing import Place, Wanted, place
from lcbench.reporting.figures.style import INK, MUTED, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CROWDED = 26  # points above or below; another marker so near beside a name could be taken for its own


@dataclass(frozen=True)
class Words:
    """One line of a label. ``glyph``: (marker, colour, filled), drawn before it where other markers are near."""

    text: str
    colour: str = INK
    glyph: tuple[str, str, bool] | None = None


@dataclass(frozen=True)
class Label:
    """What stands beside a point. ``at``: the point in data. ``radius``: of its marker in points."""

    at: tuple[float, float]
    lines: tuple[Words, ...]
    radius: float = 6.0


def label_points(
    ax: Axes,
    labels: Sequence[Label],
    *,
    markers: Sequence[tuple[float, float]] = (),
    faint: Sequence[tuple[float, float]] = (),
    room: float = 40,
    **style: Any,
) -> int:
    """Write each label beside its point, free of markers and of other labels; limits must be set before.

    Args:
        markers: points without a label that must stay free too. faint: places along lines that should.
        room: points to the right of the axes that labels may use.

    Returns:
        How many collisions could not be avoided; see `placing.place`.
    """
    figure: Any = ax.figure
    figure.draw_without_rendering()
    pixel = figure.dpi / 72

    def points(data: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [tuple(float(v) / pixel for v in ax.transData.transform(one)) for one in data]

    at, rest = points([label.at for label in labels]), points(markers)
    sizes = [[_size(ax, line.text, **style) for line in label.lines] for label in labels]
    reach = [max(width for width, _ in size) / pixel + 20 for size in sizes]
    labels = [
        label if _glyphs_help(label, at[i], [*at[:i], *at[i + 1 :], *rest], reach[i]) else _without_glyphs(label)
        for i, label in enumerate(labels)
    ]
    heights = [max(height for _, height in size) / pixel for size in sizes]
    wanted = [
        Wanted(
            one,
            max(w / pixel + _indent(line) for line, (w, _) in zip(label.lines, size, strict=True)),
            height * (1 + 1.15 * (len(size) - 1)),
            label.radius,
        )
        for one, label, size, height in zip(at, labels, sizes, heights, strict=True)
    ]
    frame = ax.get_window_extent()
    right = min(frame.x1 / pixel + room, figure.bbox.x1 / pixel - 3)
    inside = (frame.x0 / pixel, frame.y0 / pixel, right, frame.y1 / pixel)
    found = place(wanted, inside, markers=rest, faint=points(faint))
    for label, want, spot, height in zip(labels, wanted, found.places, heights, strict=True):
        _write(ax, label, want.at, spot, height, style)
    return found.collisions


def _glyphs_help(label: Label, at: tuple[float, float], others: Sequence[tuple[float, float]], reach: float) -> bool:
    """Whether another marker may come to stand beside the name, whichever side of its point that is on."""
    return len(label.lines) > 1 or any(
        abs(at[0] - other[0]) < reach and abs(at[1] - other[1]) < _CROWDED for other in others
    )


def _without_glyphs(label: Label) -> Label:
    return replace(label, lines=tuple(replace(words, glyph=None) for words in label.lines))


def _indent(line: Words) -> float:
    return 9.0 if line.glyph else 0.0


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


def _write(
    ax: Axes, label: Label, at: tuple[float, float], spot: Place, height: float, style: Mapping[str, Any]
) -> None:
    from matplotlib.transforms import ScaledTranslation

    if spot.leader is not None:
        x0, y0, x1, y1 = (v - at[i % 2] for i, v in enumerate(spot.leader))
        line = ax.annotate(
            "",
            label.at,
            xytext=(x1, y1),
            textcoords="offset points",
            arrowprops={
                "arrowstyle": "-",
                "color": MUTED,
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": math.hypot(x0, y0) - 1.5,
            },
            annotation_clip=False,
            zorder=2.5,
        )
        line.set_in_layout(False)
    for number, words in enumerate(label.lines):
        x = spot.box[0] - at[0]
        y = spot.box[3] - at[1] - height * (0.5 + 1.15 * number)
        if words.glyph:
            marker, colour, filled = words.glyph
            move = ScaledTranslation((x + 3.5) / 72, y / 72, ax.figure.dpi_scale_trans)
            ax.plot(
                *([v] for v in label.at),
                marker=marker,
                markersize=7 if marker == "*" else 5,
                markerfacecolor=colour if filled else PAPER,
                markeredgecolor=colour,
                markeredgewidth=0.8,
                linestyle="none",
                transform=ax.transData + move,
                clip_on=False,
                zorder=5,
                in_layout=False,
            )
        note = ax.annotate(
            words.text,
            label.at,
            xytext=(x + _indent(words), y),
            textcoords="offset points",
            ha="left",
            va="center_baseline",
            annotation_clip=False,
            zorder=5,
            color=words.colour,
            **style,
        )
        halo(note)
        note.set_in_layout(False)


def halo(text: Any) -> None:
    """Paper behind a text, so that lines below it do not cross it out."""
    text.set_bbox({"boxstyle": "square,pad=0.08", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.75})


def _size(ax: Axes, text: str, **style: Any) -> tuple[float, float]:
    """Width and height in pixels. A text measured for the screen has its letters moved to whole pixels, which makes it
    some 5 % narrower than the outlines that SVG and PDF hold; the wider of the two counts."""
    from matplotlib.textpath import TextPath

    probe = ax.text(0, 0, text, transform=None, **style)
    box = probe.get_window_extent()
    figure: Any = ax.figure
    font = probe.get_fontproperties()
    outlines = TextPath((0, 0), text, prop=font).get_extents().x1 if text.strip() else 0.0
    probe.remove()
    return max(box.width, outlines * figure.dpi / 72), box.height


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
        for rank, index in enumerate(block[1]):
            result[index] = start + rank * gap
    return result


def _begin(block: Sequence[Any], gap: float) -> float:
    return float(block[0] / len(block[1]) - gap * len(block[1]) / 2)


def _end(block: Sequence[Any], gap: float) -> float:
    return float(block[0] / len(block[1]) + gap * len(block[1]) / 2)
