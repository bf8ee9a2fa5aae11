"""What ``lcbench run --dry-run`` prints of a study that is planned from a sample of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lcbench.cli.plan_view import duration, show_ends
from lcbench.reporting.words import bytes_text

if TYPE_CHECKING:
    from lcbench.engine.on_paper import OnPaper


def show_on_paper(plans: Sequence[OnPaper]) -> None:
    """A line a model, and the sums."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("model", overflow="fold", min_width=16)
    sizes = {(one.methods, one.tasks, one.rows) for one in plans}
    alike = len(sizes) == 1  # as in nearly every study; the columns that it saves leave room for the models' names
    counted = [] if alike else ["methods", "tasks", "rows"]
    for heading in (*counted, "prompt\ntokens", "answers", "memory\nat least", "time", "disk"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one, name in zip(plans, _short([one.model for one in plans]), strict=True):
        table.add_row(
            escape(name),
            *([] if alike else [str(one.methods), str(one.tasks), f"{one.rows:,}"]),
            f"{one.tokens / 1e6:,.1f} M" if one.tokens >= 1e6 else f"{one.tokens:,.0f}",
            f"{one.answers:,.0f}",
            bytes_text(one.weight_bytes + one.cache),
            duration(one.seconds),
            bytes_text(one.disk),
        )
    console.print(table, soft_wrap=False)
    first = plans[0]
    if alike:
        counts = ((first.methods, "method"), (first.tasks, "task"), (first.rows, "row"))
        told = ", ".join(f"{count:,} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
        console.print(f"{'Each model' if len(plans) > 1 else 'The model'}: {told}.")
    _show_ends(console, plans)
    seconds, disk = sum(one.seconds for one in plans), sum(one.disk for one in plans)
    answers = sum(one.answers for one in plans)
    hours = f"{seconds / 3600:,.2f}" if seconds >= 36 else "under 0.01"
    gpu_hours = f" ({hours} GPU-hours)" if first.device != "cpu" else ""
    console.print(
        f"{answers:,.0f} answers: about {duration(seconds)}{gpu_hours} on {first.device}, {bytes_text(disk)} of disk. "
        f"Estimated from {first.sampled:,} of {first.rows:,} rows, evenly spread over each task, within a "
        "factor of two at best (docs/scaling.md). Answers are taken to use all the tokens they may."
    )
    if any(one.shortening for one in plans):
        console.print("Methods that shorten prompts with a model are counted with whole prompts, without that model.")
    console.print("Nothing was run.")


def _show_ends(console: Console, plans: Sequence[OnPaper]) -> None:
    """Both ends of one prompt of each task as the first model reads it; of other models the first that differs, as it
    does by their chat formats."""
    shown: set[tuple[str, tuple[str, str]]] = set()
    for number, one in enumerate(plans):
        new = [(task, ends) for task, ends in one.ends.items() if (task, ends) not in shown]
        if not new:
            continue
        if len(plans) > 1:
            console.print(
                escape(f"Prompts of {one.model}:" if number == 0 else f"One that {one.model} reads otherwise:")
            )
        for task, ends in new if number == 0 else new[:1]:
            show_ends(console, task, ends)
        shown.update(new)


def _short(models: Sequence[str]) -> list[str]:
    """Names of models without the folders that all of several have in common."""
    paths = [model.split("/") for model in models]
    levels = zip(*(path[:-1] for path in paths), strict=False)  # as deep as the shortest
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, levels))) if len(models) > 1 else 0
    return ["/".join(path[shared:]) for path in paths]
