"""The efficiency bench as a table: on the terminal as wide as there is room for, and as rows of text for files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lcbench.reporting.efficiency import EfficiencyRow, efficiency_notes
from lcbench.reporting.words import bytes_text, clean, ratio_text

_DASH = "–"
_COLUMNS: dict[str, Callable[[EfficiencyRow], str]] = {
    "method": lambda row: clean(row.method),
    "model": lambda row: clean(row.model),
    "prompt": lambda row: f"{row.prompt_tokens:,}",
    "batch": lambda row: f"{row.batch:,}",
    "setting": lambda row: clean(row.setting),
    "first token": lambda row: _seconds(row.time_to_first_token),
    "tokens/s": lambda row: _number(row.decode_tokens_per_second),
    "of limit": lambda row: _DASH if row.of_limit is None else f"{100 * row.of_limit:.0f} %",
    "samples/s": lambda row: _number(row.samples_per_second),
    "weights": lambda row: bytes_text(row.weight_bytes),
    "activations": lambda row: bytes_text(row.activation_bytes),
    "KV": lambda row: bytes_text(row.kv_bytes),
    "ratio": lambda row: ratio_text(row.ratio) + ("*" if row.memory == "simulated" else ""),
    "peak": lambda row: bytes_text(row.peak_bytes),
    "fits": lambda row: _DASH if row.fits is None else f"{row.fits:,}",
}
WHICH = ("method", "model", "prompt", "batch", "setting")
_SPEED = ("first token", "tokens/s", "of limit", "samples/s")
_DROPPED_FIRST = ("weights", "activations", "samples/s", "peak", "of limit", "batch")


def render(rows: Sequence[EfficiencyRow], console: Console) -> RenderableType:
    """The measurements and their notes: in one table where the console is wide enough, else speed first, then memory,
    with as many columns as there is room for."""
    names = columns_of(rows)
    shown = [names]
    if not _fits(rows, names, console):
        speed = [name for name in names if name in (*WHICH, *_SPEED)]
        memory = [name for name in names if name not in _SPEED]
        shown = [_fitting(rows, part, console) for part in (speed, memory)]
    tables = [_table(rows, part) for part in shown]
    dropped = [name for name in names if not any(name in part for part in shown)]
    parts: list[RenderableType] = []
    for table in tables:
        parts += [""] * bool(parts) + [table]
    notes = efficiency_notes(rows)
    if dropped:
        notes.append(f"for want of room not shown: {', '.join(dropped)}")
    return Group(*parts, *(Padding(Text(clean(note, longest=1000), style="dim"), (0, 0, 0, 1)) for note in notes))


def _fitting(rows: Sequence[EfficiencyRow], names: list[str], console: Console) -> list[str]:
    for dropped in _DROPPED_FIRST:
        if _fits(rows, names, console):
            break
        names = [name for name in names if name != dropped]
    return names


def _fits(rows: Sequence[EfficiencyRow], names: Sequence[str], console: Console) -> bool:
    # A measurement never exceeds what it is offered, so offer plenty.
    options = console.options.update(width=100_000)
    return Measurement.get(console, options, _table(rows, names)).maximum <= console.width


def columns_of(rows: Sequence[EfficiencyRow]) -> list[str]:
    """Headings worth showing: no model where there is one alone, no `fits` where it was not asked."""
    skipped = set()
    if len({row.model for row in rows}) < 2:
        skipped.add("model")
    if not any(row.setting for row in rows):
        skipped.add("setting")
    if all(row.fits is None for row in rows):
        skipped.add("fits")
    return [name for name in _COLUMNS if name not in skipped]


def cells_of(row: EfficiencyRow, columns: Sequence[str]) -> list[str]:
    """One row as text, in the order of ``columns``."""
    return [_COLUMNS[name](row) for name in columns]


def _table(rows: Sequence[EfficiencyRow], columns: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for name in columns:
        left = name in ("method", "model", "setting")
        table.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    previous = None
    for row in rows:
        group = (row.model, row.prompt_tokens, row.batch)
        if previous not in (None, group):
            table.add_section()
        previous = group
        table.add_row(*(Text(text) for text in cells_of(row, columns)), style="red" if row.error else None)
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return _DASH
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def _number(value: float | None) -> str:
    if value is None:
        return _DASH
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
