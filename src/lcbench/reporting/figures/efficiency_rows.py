"""Decoding speed against its physical limit, a row a method: the bytes of a step, its speed, its limit.

The bytes stand as bars from 0, so caches that hardly count beside the weights look as if they hardly count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lcbench.reporting.figures.pareto import byte_ticks
from lcbench.reporting.figures.speeds import SpeedPoint, rate
from lcbench.reporting.figures.style import COLOURS, GRID, INK, MUTED, fit, head, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Setting = tuple[int, int]  # tokens of the prompt, batch

_LANE = 0.085  # inches from one setting of a method to the next
_LEAST = 0.2  # inches of a method's row
_TALLEST = 13.0
_NAMES = 2.4  # inches for the names of methods
_SETTINGS_A_LINE = 4


def draw(points: Sequence[SpeedPoint], *, title: str, bandwidth: float | None = None) -> Figure:
    """The figure; draw it inside of `style.styled`. ``bandwidth``: measured, in bytes a second; None: unknown."""
    methods = list(dict.fromkeys(p.method for p in points))
    settings = sorted({_setting(p) for p in points})
    row = max(_LEAST, _LANE * (len(settings) + 1))
    key = -(-len(settings) // _SETTINGS_A_LINE)
    height = min(_TALLEST, 1.75 + 0.18 * key + row * len(methods))
    figure = new_figure(9.0, height)
    axes: Any = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2))
    colours = _colours(settings)
    lanes = {one: ((i + 1) / (len(settings) + 1) - 0.5) * 0.9 for i, one in enumerate(settings)}
    thick = 0.75 * min(0.5, 0.9 / (len(settings) + 1))
    for point in points:
        y = methods.index(point.method) + lanes[_setting(point)]
        _bytes(axes[0], point, y, thick, colours[_setting(point)])
        _speed(axes[1], point, y, bandwidth, colours[_setting(point)])
    _rows(axes, methods)
    _bytes_axis(axes[0], points)
    _speed_axis(axes[1], points, bandwidth)
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr,call-arg]
    head(figure, title)
    _key(figure, settings, colours)
    return figure


def _setting(point: SpeedPoint) -> Setting:
    return point.prompt_tokens, point.batch


def _colours(settings: Sequence[Setting]) -> dict[Setting, Any]:
    if len(settings) <= len(COLOURS):
        return dict(zip(settings, COLOURS, strict=False))
    import matplotlib

    shades = matplotlib.colormaps["viridis"]
    return {one: shades(0.9 * i / (len(settings) - 1)) for i, one in enumerate(settings)}


def _bytes(ax: Axes, point: SpeedPoint, y: float, thick: float, colour: Any) -> None:
    cache = min(point.cache_bytes or 0.0, point.bytes_per_step)
    ax.barh(y, point.bytes_per_step - cache, thick, color=GRID if point.cache_bytes is not None else MUTED, zorder=2)
    ax.barh(y, cache, thick, left=point.bytes_per_step - cache, color=colour, zorder=2)


def _speed(ax: Axes, point: SpeedPoint, y: float, bandwidth: float | None, colour: Any) -> None:
    speed = point.steps_per_second
    if bandwidth is not None:
        limit = bandwidth / point.bytes_per_step
        ax.plot([speed, limit], [y, y], color=GRID, linewidth=0.9, zorder=1)
        ax.plot(limit, y, marker="|", markersize=5, markeredgewidth=1.4, color=INK, linestyle="none", zorder=2)
    ax.plot(speed, y, marker="o", markersize=4.5, color=colour, linestyle="none", zorder=3)


def _rows(axes: Sequence[Axes], methods: Sequence[str]) -> None:
    axes[0].set_yticks(range(len(methods)), [fit(method, _NAMES, 8) for method in methods], fontsize=8)
    axes[0].set_ylim(len(methods) - 0.4, -0.6)
    for ax in axes:
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0, labelleft=ax is axes[0])
        ax.spines["left"].set_visible(ax is axes[0])
        for edge in range(1, len(methods)):
            ax.axhline(edge - 0.5, color=GRID, linewidth=0.5, zorder=0)


def _bytes_axis(ax: Axes, points: Sequence[SpeedPoint]) -> None:
    most = max(p.bytes_per_step for p in points)
    ax.set_xlim(0, most * 1.03)
    byte_ticks(ax, 0, most * 1.03)
    ax.tick_params(axis="x", labelsize=8)
    known = [p.cache_bytes / p.bytes_per_step for p in points if p.cache_bytes is not None]
    words = "grey: weights, colour: caches" if known else "weights and caches"
    if known and max(known) < 0.05:
        words = f"nearly all weights; caches at most {_percent(max(known))}"
    ax.set_title("Bytes that a decoding step must read", fontsize=8.5)
    ax.set_xlabel(words, fontsize=8)


def _speed_axis(ax: Axes, points: Sequence[SpeedPoint], bandwidth: float | None) -> None:
    ax.set_xscale("log")
    speeds = [p.steps_per_second for p in points]
    limits = [bandwidth / p.bytes_per_step for p in points] if bandwidth else []
    low, high = min([*speeds, *limits]) / 1.2, max([*speeds, *limits]) * 1.2
    ax.set_xlim(low, high)
    for numbers in ((1, 2, 5), (1, 3), (1,)):
        ticks = [n * 10.0**k for k in range(-4, 8) for n in numbers if low <= n * 10.0**k <= high]
        if len(ticks) <= 9:
            break
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    ax.set_xticks([], minor=True)
    ax.set_title("Decoding steps a second", fontsize=8.5)
    limit = f"tick: the limit, {rate(bandwidth)} measured; " if bandwidth else ""
    ax.set_xlabel(f"{limit}log scale", fontsize=8)


def _percent(share: float) -> str:
    return f"{100 * share:.1g} %" if share < 0.01 else f"{100 * share:.0f} %"


def _key(figure: Figure, settings: Sequence[Setting], colours: dict[Setting, Any]) -> None:
    from matplotlib.lines import Line2D

    batches = len({batch for _, batch in settings}) > 1
    names = [f"{tokens:,} tokens" + (f", batch {batch}" if batches else "") for tokens, batch in settings]
    handles = [Line2D([], [], marker="o", linestyle="none", color=colours[one], markersize=5) for one in settings]
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(_SETTINGS_A_LINE, len(settings)),
        fontsize=8,
        handletextpad=0.2,
    )
