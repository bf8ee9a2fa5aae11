"""A comparison on the terminal: the verdict first, then tasks, then the samples that changed most."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lcbench.reporting.comparison import Change, Comparison, p_number, signed
from lcbench.reporting.page.visible import visible
from lcbench.reporting.words import bytes_text, clean, explained, has_no_width, short_names
from lcbench.scoring.paired import PairedResult

_TEXT = 160  # characters of a prediction that are shown
_LEAST_NAME = 12  # letters of a task's name, however little room numbers leave
_WIDE = 100  # columns from which on metric and the plain p have room


def render(found: Sequence[Comparison], console: Console) -> RenderableType:
    """One comparison in full; several as a table of one line each, then their verdicts."""
    parts = _one(found[0], console) if len(found) == 1 else _several(found, console)
    return Group(*parts)


def _one(found: Comparison, console: Console) -> list[RenderableType]:
    parts: list[RenderableType] = [*_heading(found), Text(), Text(clean(found.verdict(), 2000), "bold"), Text()]
    parts.append(_tasks(found, console))
    parts += _remarks(found)
    if found.changes:
        parts += [Text(), Text("Samples that changed most")]
        for change in found.changes:
            parts += _change(change)
    return parts


def _heading(found: Comparison) -> list[RenderableType]:
    one_run = found.first.run.path == found.second.run.path
    lines: list[RenderableType] = []
    for letter, side, size in zip("AB", (found.first, found.second), found.kv_bytes, strict=True):
        where = f", {side.run.path}" if not one_run else ""
        text = f"{letter}  {clean(side.method)}  {bytes_text(size)} KV bytes a sample{clean(where)}"
        lines.append(Text(text))
    if one_run:
        lines.append(Text(f"in {clean(str(found.first.run.path))}", "dim"))
    return lines


def _tasks(found: Comparison, console: Console) -> Table:
    """Names of tasks that leave the numbers no room are broken at their joints."""
    names = short_names(task for task, _, _ in found.tasks)
    table = _task_table(found, names, console.width >= _WIDE)
    needed = Measurement.get(console, console.options.update(width=100_000), table).maximum
    if needed > console.width:
        longest = max(len(name) for name in names.values())
        room = max(_LEAST_NAME, longest - (needed - console.width))
        table = _task_table(found, {task: _parted(name, room) for task, name in names.items()}, console.width >= _WIDE)
    return table


def _parted(name: str, room: int) -> str:
    """``name`` on lines of ``room`` letters, parted after joints where it has any."""
    lines = [""]
    for piece in re.findall(r"[^_/@,=-]*[_/@,=-]|[^_/@,=-]+", name):
        if lines[-1] and len(lines[-1]) + len(piece) > room:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _task_table(found: Comparison, names: Mapping[str, str], wide: bool) -> Table:
    table = _table("task", *(["metric"] if wide else []), "n", "A", "B", "B−A", "95 % interval", *_ps(wide), "w/t/l")
    for task, metric, result in found.tasks:
        name = Text("\n").join(Text(clean(line)) for line in names[task].split("\n"))
        table.add_row(name, *([clean(metric)] if wide else []), *_numbers(result, result.p_holm, wide))
    if len(found.tasks) > 1:
        table.add_section()
        mean = Text(f"mean of {len(found.tasks)} tasks", "italic")
        table.add_row(mean, *([""] if wide else []), *_numbers(found.overall, found.p_holm, wide))
    return table


def _ps(wide: bool) -> list[str]:
    return ["p", "p (Holm)"] if wide else ["p (Holm)"]


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for index, heading in enumerate(headings):
        left = index == 0 or heading == "metric"
        table.add_column(heading, justify="left" if left else "right", no_wrap=index > 0, overflow="fold")
    return table


def _numbers(result: PairedResult, p_holm: float, wide: bool) -> list[str]:
    low_high = "–" if result.interval is None else f"{signed(result.interval[0])} to {signed(result.interval[1])}"
    ps = [p_number(result.p), p_number(p_holm)] if wide else [p_number(p_holm)]
    counts = f"{result.wins}/{result.ties}/{result.losses}"
    scores = [f"{result.first:.2f}", f"{result.second:.2f}", signed(result.difference)]
    return [str(result.n), *scores, low_high, *ps, counts]


def _remarks(found: Comparison) -> list[RenderableType]:
    lines = ["w/t/l: samples in which B scores more, the same, less; p: " + _tests(found)]
    if found.failed:
        lines.append(f"{found.failed} pairs with a failed sample are left out")
    if found.unmatched:
        lines.append(f"{found.unmatched} samples that only one side has are left out")
    lines += [f"not compared: {why}" for why in found.refused.values()]
    lines += explained(short_names(task for task, _, _ in found.tasks))
    if any(result.interval and has_no_width(*result.interval) for _, _, result in found.tasks):
        lines.append("an interval without width: every pair differs by the same, so that pairs drawn again do, too")
    lines += found.notes
    return [Padding(Text(clean(line, 1000), "dim"), (0, 0, 0, 1)) for line in lines]


def _tests(found: Comparison) -> str:
    names = {"mcnemar": "McNemar's exact test (scores of 0 and 1)", "sign-flip": "randomization of signs"}
    used = dict.fromkeys(names[result.test] for _, _, result in found.tasks)
    return " or ".join(used) + (", corrected over tasks by Holm's method" if len(found.tasks) > 1 else "")


def _change(change: Change) -> list[RenderableType]:
    digits = next(n for n in (0, 1, 2, 6) if n == 6 or round(change.first, n) != round(change.second, n))
    scores = f"{change.first:.{digits}f} → {change.second:.{digits}f}"
    head = f"{change.task.partition('@')[0]} {change.id}: {scores}"
    lines: list[RenderableType] = [Padding(Text(clean(visible(head)), "bold"), (0, 0, 0, 1))]
    for label, text in (
        ("A", change.first_text),
        ("B", change.second_text),
        ("answer", " | ".join(change.answers)),
    ):
        shown = clean(visible(text), _TEXT) or "(nothing)"
        lines.append(Padding(Text.assemble((f"{label}  ", "dim"), shown), (0, 0, 0, 3)))
    return lines


def _several(found: Sequence[Comparison], console: Console) -> list[RenderableType]:
    same = len({one.first.name for one in found}) == 1
    wide = console.width >= _WIDE
    table = _table("B", "n", "A", "B", "B−A", "95 % interval", *_ps(wide), "w/t/l")
    for one in found:
        table.add_row(Text(clean(one.second.method)), *_numbers(one.overall, one.p_holm, wide))
    parts: list[RenderableType] = []
    if same:
        parts += [Text(f"A  {clean(found[0].first.method)}"), Text(f"in {clean(str(found[0].first.run.path))}", "dim")]
    else:
        parts += [Text(f"A  {clean(str(found[0].first.run.path))}"), Text(f"B  {clean(str(found[0].second.run.path))}")]
    parts += [Text(), table, Text()]
    parts += [Text(f"- {clean(one.verdict(), 2000)}") for one in found]
    why = dict.fromkeys(text for one in found for text in (*one.refused.values(), *one.notes))
    parts += [Padding(Text(clean(text, 1000), "dim"), (0, 0, 0, 1)) for text in why]
    count = f"p (Holm): corrected for {len(found)} comparisons"
    parts.append(Padding(Text(count, "dim"), (0, 0, 0, 1)))
    return parts
