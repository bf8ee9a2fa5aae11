"""The passkey test: length across, depth down, how often the key was found, in the workbench's colours.

Colours and layout: longctx_bench `visualization/paulgraham_heatmap`: #F0496E (0) to #EBB839 (a half) to #0CD79F (1),
range always 0 to 1, white borders. The workbench prints no numbers; here they stand in the cells where there is room,
because red, yellow and green alone do not reach every reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcbench.reporting.figures.style import MUTED, PAPER, fit, grid_shape, head, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#F0496E", "#EBB839", "#0CD79F")
MOST = 20  # panels at most
_DARK = "#101011"  # of numbers: readable on all three colours, on screens light and dark


@dataclass(frozen=True)
class Grid:
    """Shares of keys found, 0 to 1: ``cells[length, depth]``; cells without a sample are absent.

    ``rows``: "2 of 6 rows" where others have more."""

    method: str
    cells: Mapping[tuple[float, float], float]
    rows: str = ""

    @property
    def mean(self) -> float:
        return sum(self.cells.values()) / len(self.cells)


def draw(grids: Sequence[Grid], *, title: str, unit: str = "words") -> Figure:
    """One panel a method, all on the same lengths, depths and colours."""
    lengths = sorted({length for grid in grids for length, _ in grid.cells})
    depths = sorted({depth for grid in grids for _, depth in grid.cells})
    shown = grids[:MOST]
    rows, columns = grid_shape(len(shown), 4)
    width = max(2.1, min(3.2, 0.34 * len(lengths) + 0.9)) if columns > 1 else 4.6
    height = max(1.9, min(3.0, 0.26 * len(depths) + 0.9))
    with styled():
        figure = new_figure(max(4.6, width * columns + 0.7), (height + 0.15) * rows + 1.0)
        axes: Any = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for index, ax in enumerate(axes.flat):
            if index >= len(shown):
                ax.set_visible(False)
                continue
            _panel(ax, shown[index], lengths, depths, inches=(width, height))
            last = index + columns >= len(shown)
            ax.tick_params(labelbottom=last)
            if last:
                ax.set_xlabel(f"{unit} of background")
            if index % columns == 0:
                ax.set_ylabel("depth of the key")
        _bar(figure, axes)
        more = f"; {len(grids) - len(shown)} more methods not drawn" if len(grids) > len(shown) else ""
        head(figure, title + more)
        return figure


def _panel(ax: Any, grid: Grid, lengths: Sequence[float], depths: Sequence[float], inches: tuple[float, float]) -> None:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    values = np.array([[grid.cells.get((length, depth), np.nan) for length in lengths] for depth in depths])
    colours = LinearSegmentedColormap.from_list("workbench", COLOURS, N=101)  # percents
    edges = (np.arange(len(lengths) + 1) - 0.5, np.arange(len(depths) + 1) - 0.5)
    ax.set_facecolor("none")
    ax.pcolormesh(*edges, np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=1, edgecolors=PAPER, linewidth=1)
    ax.set_ylim(len(depths) - 0.5, -0.5)  # the text's begin on top; panels share the axis, so never toggle it
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    ax.set_xticks(range(len(lengths)), [_thousands(n) for n in lengths], fontsize=_fitting(len(lengths), inches[0]))
    ax.tick_params(axis="x", labelrotation=90 if len(lengths) > 6 else 0)
    ax.set_yticks(range(len(depths)), [f"{depth:.2f}" for depth in depths], fontsize=_fitting(len(depths), inches[1]))
    ax.set_title(_heading(grid, inches[0] - 0.4), fontsize=8)  # the depths of the first column take the rest
    _numbers(ax, values, inches)


def _heading(grid: Grid, inches: float) -> str:
    """Two lines: the method and its share; what does not fit beside the name stands before the share."""
    share = f"{100 * grid.mean:.0f} %{grid.rows and f', {grid.rows}'}"
    name, at, options = grid.method.partition("@")
    if not at or fit(grid.method, inches, 8, bold=True) == grid.method:
        return f"{fit(grid.method, inches, 8, bold=True)}\n{share}"
    room = inches - (1.3 if grid.rows else 0.55)
    return f"{fit(name, inches, 8, bold=True)}\n{fit(at + options, room, 8, bold=True)}   {share}"


def _numbers(ax: Any, values: Any, inches: tuple[float, float]) -> None:
    rows, columns = values.shape
    cell = min((inches[0] - 0.6) / columns, (inches[1] - 0.6) / rows)
    size = min(7.5, cell * 24)
    for row in range(rows):
        for column in range(columns):
            value = values[row, column]
            if value != value:  # not a number: no sample there
                ax.text(column, row, "·", ha="center", va="center", fontsize=7, color=MUTED)
            elif size >= 4.2:
                ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=size, color=_DARK)


def _bar(figure: Figure, axes: Any) -> None:
    """The scale, in 25 steps drawn as shapes: an image would not be allowed in the HTML report."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    steps = ScalarMappable(Normalize(0, 1), LinearSegmentedColormap.from_list("workbench", COLOURS, N=25))
    bar: Any = figure.colorbar(
        steps, ax=axes, location="right", shrink=0.6 if len(axes) > 1 else 0.9, aspect=18, pad=0.01
    )
    bar.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"])
    bar.ax.tick_params(labelsize=7, length=0)
    bar.solids.set(rasterized=False, edgecolor="face")
    bar.outline.set_visible(False)
    bar.set_label("keys found", fontsize=7.5)


def _thousands(words: float) -> str:
    """``512`` as 0.5K and ``20480`` as 20K, as the workbench labels them; exact below a thousand where short."""
    if words < 1000:
        return f"{words:g}"
    return f"{words / 1000:.1f}K" if words < 10_000 else f"{words // 1000:.0f}K"


def _fitting(count: int, inches: float) -> float:
    return max(4.5, min(7.5, 72 * (inches - 0.7) / count / 1.5))
