"""Score against length: lines with bands, and where each breaks down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lcbench.reporting.figures.labels import halo, spread
from lcbench.reporting.figures.style import INK, MUTED, fit, grid_shape, head, looks, new_figure, shorten, styled, wrap
from lcbench.reporting.words import has_no_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TOGETHER = 4  # up to so many curves share one pair of axes
_HATCHES = ("/" * 5, "\\" * 5, "|" * 5, "-" * 5)  # of the bands of so many
_ACROSS, _ACROSS_PANEL = 340.0, 112.0  # points from the first to the last length, at least
MOST = 16  # panels at most


@dataclass(frozen=True)
class LengthCurve:
    """One method or model over length.

    Attributes:
        label: its name.
        lengths: names of the lengths, short first: "384", "4-8k".
        scores: a score for each, None where there is none. lows, highs: ends of the 95 % interval, None if unknown.
        breakdown: the name of the first length at which it falls significantly below its base, None if it never does.
    """

    label: str
    lengths: tuple[str, ...]
    scores: tuple[float | None, ...]
    lows: tuple[float | None, ...] = ()
    highs: tuple[float | None, ...] = ()
    breakdown: str | None = None


def draw(
    curves: Sequence[LengthCurve],
    *,
    title: str,
    x_label: str,
    y_label: str = "score",
    positions: Mapping[str, float] | None = None,
    reference: str | None = None,
) -> Figure:
    """The figure.

    Args:
        positions: where a length stands on a linear axis (words, tokens); None: names at equal distances.
        reference: the curve drawn in grey in every panel, when each curve has its own.
    """
    names = list(dict.fromkeys(name for curve in curves for name in curve.lengths))
    if positions is not None:
        names.sort(key=positions.__getitem__)
        curves = [_short_first(curve, positions) for curve in curves]  # records come longest first
    at = positions or {name: float(i) for i, name in enumerate(names)}
    with styled():
        style = looks([curve.label for curve in curves])
        if len(curves) <= _TOGETHER:
            figure = new_figure(7.2, 4.2)
            ax = figure.add_subplot()
            banded = sum(any(low is not None for low in curve.lows) for curve in curves)
            for curve, hatch in zip(curves, _HATCHES, strict=False):
                _curve(ax, curve, at, style[curve.label], band=True, hatch=hatch if banded > 1 else None)
            _axes(ax, names, at, curves)
            _end_labels(ax, curves, at, style)
            ax.set_xlabel(x_label)
            ax.set_ylabel(y_label)
            words = _explained(curves)
            ax.set_title(wrap(title, 6.4), pad=18 if words else None)
            ax.annotate(  # a line of its own: titles of long task names fill theirs
                words,
                (0, 1),
                (0, 5),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="left",
                fontsize=7,
                color=MUTED,
            )
            return figure
        return _panels(curves, names, at, style, title, x_label, y_label, reference)


def _short_first(curve: LengthCurve, positions: Mapping[str, float]) -> LengthCurve:
    order = sorted(range(len(curve.lengths)), key=lambda i: positions[curve.lengths[i]])

    def moved(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[i] for i in order) if values else ()

    return replace(
        curve,
        lengths=moved(curve.lengths),
        scores=moved(curve.scores),
        lows=moved(curve.lows),
        highs=moved(curve.highs),
    )


def _panels(
    curves: Sequence[LengthCurve],
    names: Sequence[str],
    at: Mapping[str, float],
    style: Mapping[str, tuple[str, str]],
    title: str,
    x_label: str,
    y_label: str,
    reference: str | None,
) -> Figure:
    base = next((curve for curve in curves if curve.label == reference), None)
    shown = [curve for curve in curves if curve is not base][:MOST]
    rows, columns = grid_shape(len(shown), 4)
    figure = new_figure(2.2 * columns + 0.4, 1.8 * rows + 0.9)
    axes: Any = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for index, ax in enumerate(axes.flat):
        if index >= len(shown):
            ax.set_visible(False)
            continue
        if base is not None:
            _curve(ax, base, at, (MUTED, "none"), band=False, thin=True)
        _curve(ax, shown[index], at, style[shown[index].label], band=True)
        _axes(ax, names, at, curves, small=True)
        ax.tick_params(labelbottom=index + columns >= len(shown))
        ax.set_title(fit(shown[index].label, 1.95, 8, bold=True), fontsize=8)
    figure.supylabel(y_label, fontsize=9)
    hidden = len(curves) - (base is not None) - len(shown)
    extra = [_explained(curves)] if _explained(curves) else []
    extra += [f"grey: {shorten(base.label)}"] if base else []
    extra += [f"{hidden} more methods not drawn"] if hidden else []
    head(figure, title)
    figure.supxlabel("; ".join([x_label, *extra]), fontsize=8)
    return figure


def _band(ax: Axes, ends: Sequence[tuple[float, float, float]], colour: str, hatch: str | None) -> None:
    """(place, low, high) of every interval as a band that is broken where one is NaN: a tint where it is alone, else
    hatched in its own colour.

    Tints that overlap mix to a colour of no curve; hatches of different slants stay apart.
    """
    xs, lows, highs = zip(*ends, strict=True) if ends else ((), (), ())
    if hatch is None:
        ax.fill_between(xs, lows, highs, color=colour, alpha=0.13, linewidth=0)
        return
    ax.fill_between(xs, lows, highs, facecolor="none", edgecolor=colour, alpha=0.45, hatch=hatch, linewidth=0)
    for edge in (lows, highs):
        ax.plot(xs, edge, color=colour, linewidth=0.7, alpha=0.8, clip_on=False)


def _curve(
    ax: Axes,
    curve: LengthCurve,
    at: Mapping[str, float],
    style: tuple[str, str],
    *,
    band: bool,
    thin: bool = False,
    hatch: str | None = None,
) -> None:
    import math

    colour, marker = style
    xs = [at[name] for name in curve.lengths]
    ys = [math.nan if score is None else score for score in curve.scores]
    if band and curve.lows and curve.highs:
        none = (math.nan, math.nan)
        pairs = zip(curve.lows, curve.highs, strict=True)
        known = [none if low is None or high is None else (low, high) for low, high in pairs]
        ends = [(x, low, high) for x, (low, high) in zip(xs, known, strict=True)]
        _band(ax, ends, colour, hatch)
    marker = "." if thin else marker
    ax.plot(
        xs, ys, color=colour, marker=marker, markersize=3 if thin else 5, linewidth=1 if thin else 1.7, clip_on=False
    )
    if curve.breakdown is not None and not thin:
        place = at[curve.breakdown]
        score = ys[curve.lengths.index(curve.breakdown)]
        ax.plot(
            place, score, marker="o", markersize=12, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.1
        )


def _axes(
    ax: Axes, names: Sequence[str], at: Mapping[str, float], curves: Sequence[LengthCurve], *, small: bool = False
) -> None:
    size = 6.5 if small else 8
    turned = max(map(len, names)) * len(names) > (26 if small else 70) or None in _told(names, at, size, small, False)
    ax.set_xticks(
        [at[name] for name in names], [one or "" for one in _told(names, at, size, small, turned)], fontsize=size
    )
    ax.tick_params(axis="x", labelrotation=90 if turned else 0)
    highest = max((v for c in curves for v in (*c.scores, *c.highs) if v is not None), default=1)
    lowest = min((v for c in curves for v in (*c.scores, *c.lows) if v is not None), default=0)
    bottom, highest = min(0.0, lowest), highest or 100.0  # all scores are 0
    room = 0.03 * max(1.0, highest - bottom)
    ax.set_ylim(bottom - room, highest + room)
    ax.grid(axis="x", visible=False)


def _told(names: Sequence[str], at: Mapping[str, float], size: float, small: bool, turned: bool) -> list[str | None]:
    """Names of lengths that have room beside the one before, the last one always; None for the others.

    On a linear axis short lengths lie close together. A tick without its name still shows where a length stands.
    """
    across = _ACROSS_PANEL if small else _ACROSS
    low, high = min(at[name] for name in names), max(at[name] for name in names)
    step = across / (high - low or 1.0)
    half = {name: size * 0.6 if turned else size * (0.31 * len(name) + 0.2) for name in names}
    *others, last = sorted(names, key=at.__getitem__)
    begins = at[last] * step - half[last]
    told, end = {last}, -float("inf")
    for name in others:
        place = at[name] * step
        if place - half[name] >= end and place + half[name] <= begins:
            told.add(name)
            end = place + half[name]
    return [name if name in told else None for name in names]


def _end_labels(
    ax: Axes, curves: Sequence[LengthCurve], at: Mapping[str, float], style: Mapping[str, tuple[str, str]]
) -> None:
    """The name of each curve beside its right end, moved up or down where ends are close.

    A curve that ends before the others is named above its own end, so that no line leads through the plot.
    """
    right = max(at.values())
    ends = []
    for curve in curves:
        known = [(at[n], s) for n, s in zip(curve.lengths, curve.scores, strict=True) if s is not None]
        if known:
            ends.append((curve, *max(known)))
    low, high = ax.get_ylim()
    outside = [end for end in ends if end[1] == right]
    places = spread([y for _, _, y in outside], gap=(high - low) / 20)
    step = (right - min(at.values()) or 1.0) * 0.035
    for (curve, x, y), place in zip(outside, places, strict=True):
        colour = style[curve.label][0]
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        _label(ax, curve, (x, y), colour, xytext=(right + step, place), textcoords="data", va="center", arrowprops=line)
    for curve, x, y in ends:
        if x < right:
            colour = style[curve.label][0]
            below = y > high - 0.1 * (high - low)  # above stands the key
            side = "left" if x == min(at.values()) else "center"
            where = {"xytext": (0, -6), "va": "top"} if below else {"xytext": (0, 6), "va": "bottom"}
            _label(ax, curve, (x, y), colour, textcoords="offset points", ha=side, **where)


def _label(ax: Axes, curve: LengthCurve, end: tuple[float, float], colour: str, **where: Any) -> None:
    name = shorten(curve.label)
    halo(ax.annotate(name, end, fontsize=8, color=colour, fontweight="bold", annotation_clip=False, **where))


def _explained(curves: Sequence[LengthCurve]) -> str:
    words = []
    banded = [curve for curve in curves if any(low is not None for low in curve.lows)]
    if banded:
        places = [place for curve in banded for place in zip(curve.scores, curve.lows, curve.highs, strict=True)]
        clauses = ["band: 95 % interval"]
        if any(score is not None and low is None for score, low, _ in places):
            clauses.append("none where under two contexts can be drawn again")
        if any(has_no_width(low, high) for _, low, high in places):
            clauses.append("no width where all samples score alike")
        words.append(", ".join(clauses))
    if any(curve.breakdown is not None for curve in curves):
        words.append("ring: first length significantly below the base")
    return "; ".join(words)
