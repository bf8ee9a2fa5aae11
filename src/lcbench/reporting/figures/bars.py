"""Task by task: how far each method is from the full cache, sample by sample."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lcbench.reporting.figures.style import (
    BETTER,
    INK,
    MINUS,
    MUTED,
    WORSE,
    fit,
    grid_shape,
    head,
    new_figure,
    shorten,
    styled,
)
from lcbench.reporting.words import has_no_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 12  # panels at most


@dataclass(frozen=True)
class Difference:
    """A method's score minus the reference's on one task, in points.

    Attributes:
        method, task: names. points: mean paired difference. low, high: its 95 % interval, None if unknown.
        reference: the reference's score on the same pairs. rows: "2 of 6 rows" where others have more, else "".
    """

    method: str
    task: str
    points: float
    low: float | None
    high: float | None
    reference: float
    rows: str = ""


def draw(differences: Sequence[Difference], *, reference: str, about: str = "") -> Figure:
    """One panel a method with a bar a task; with a single task one panel with a bar a method.

    ``about`` ends the title: the model.
    """
    methods = list(dict.fromkeys(d.method for d in differences))
    suite = _suite({d.task for d in differences})
    differences = [replace(d, task=d.task.removeprefix(f"{suite}/")) for d in differences]
    tasks = list(dict.fromkeys(d.task for d in differences))
    if len(tasks) == 1:
        scores = {d.reference for d in differences}
        base = f" ({scores.pop():.1f})" if len(scores) == 1 else ""
        panels = [("", [(d.method, d) for d in differences])]
        title = f"Difference to {reference}{base}: {tasks[0]}{about}"
    else:
        shown = methods[:MOST]
        panels = [(m, [(d.task, d) for d in differences if d.method == m]) for m in shown]
        more = f"; {len(methods) - len(shown)} more methods not drawn" if len(methods) > len(shown) else ""
        title = f"Difference to {reference}{suite and f', {suite}'}{about}{more}"
    with styled():
        return _draw(panels, title)


def _suite(tasks: Collection[str]) -> str:
    """What stands before the slash in the names of all tasks, if it is the same: "100-longbench"; else "".

    With it the names would be cut where they differ.
    """
    found = {task.partition("/")[0] for task in tasks}
    return found.pop() if len(tasks) > 1 and len(found) == 1 and all("/" in task for task in tasks) else ""


def _draw(panels: Sequence[tuple[str, Sequence[tuple[str, Difference]]]], title: str) -> Figure:
    rows, columns = grid_shape(len(panels), 4)
    bars = list(dict.fromkeys(name for _, entries in panels for name, _ in entries))
    width = 7.2 if columns == 1 else 2.1 * columns + 1.4
    figure = new_figure(width, (0.19 * len(bars) + 0.55) * rows + 0.7)
    axes: Any = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for index, ax in enumerate(axes.flat):
        if index >= len(panels):
            ax.set_visible(False)
            continue
        name, entries = panels[index]
        _panel(ax, dict(entries), bars)
        ax.set_title(fit(name, 1.9 if columns > 1 else 4.5, 8, bold=True), fontsize=8)
        ax.tick_params(labelbottom=index + columns >= len(panels))
    _scale(axes[0][0], [d for _, entries in panels for _, d in entries])
    flat = any(has_no_width(d.low, d.high) for _, entries in panels for _, d in entries)
    alike = ", no width where all pairs differ alike" if flat else ""
    figure.supxlabel(f"difference in points, paired by sample; whiskers: 95 % interval{alike}", fontsize=8)
    head(figure, title)
    return figure


def _panel(ax: Any, entries: dict[str, Difference], bars: Sequence[str]) -> None:
    for place, name in enumerate(bars):
        found = entries.get(name)
        if found is None:
            ax.text(0, place, " no pairs", va="center", fontsize=6, color=MUTED)
            continue
        colour = WORSE if found.points < 0 else BETTER
        ax.barh(place, found.points, height=0.62, color=colour, alpha=0.85)
        if found.low is not None and found.high is not None:
            ax.plot([found.low, found.high], [place, place], color=INK, linewidth=1)
        number = f"{found.points:+.1f}".replace("-", MINUS) if round(found.points, 1) else "0.0"
        number += found.rows and f"  {found.rows}"
        ax.annotate(number, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=6.5, color=MUTED)
    ax.axvline(0, color=INK, linewidth=0.9)
    ax.set_yticks(range(len(bars)), [shorten(name, 28) for name in bars], fontsize=7.5)
    ax.set_ylim(len(bars) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)


def _scale(ax: Any, differences: Sequence[Difference]) -> None:
    ends = [v for d in differences for v in (d.points, d.low, d.high, 0.0) if v is not None]
    span = max(ends) - min(ends)
    room = 0.05 * span if span > 1 else 1.0  # differences of nothing should not fill the picture
    ax.set_xlim(min(ends) - room, max(ends) + room)
    ax.xaxis.set_major_formatter(lambda x, _: f"+{x:g}" if x > 0 else f"{x:g}".replace("-", MINUS))
