"""What ``lcbench run --dry-run`` prints of a study that is planned from a sample of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

if TYPE_CHECKING:
    from lcbench.engine.on_paper import OnPaper


def show_on_paper(plans: Sequence[OnPaper]) -> None:
    """A line a model, and the sums."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(Column("model", overflow="fold", min_width=16))
    sizes = {(one.methods, one.tasks, one.rows) for one in plans}
    alike = len(sizes) == 1  # as in nearly every study; the columns that it saves leave room for the models' names
    for name in [] if alike else ["methods", "tasks", "rows"]:
        table.add_column(name)
    for name in ("prompt tokens", "answers", "memory at least", "hours", "disk"):
        table.add_column(name)
    for one, name in zip(plans, _short([one.model for one in plans]), strict=True):
        table.add_row(
            escape(name),
            *([] if alike else [str(one.methods), str(one.tasks), f"{one.rows:,}"]),
            f"{one.tokens / 1e6:,.1f} M",
            f"{one.answers:,.0f}",
            f"{(one.weight_bytes + one.cache) / 2**30:.1f} GiB",
            f"{one.seconds / 3600:,.2f}",
            f"{one.disk / 2**20:,.1f} MiB",
        )
    console.print(table, soft_wrap=False)
    first = plans[0]
    if alike:
        counts = ((first.methods, "method"), (first.tasks, "task"), (first.rows, "row"))
        told = ", ".join(f"{count:,} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
        console.print(f"{'Each model' if len(plans) > 1 else 'The model'}: {told}.")
    hours, disk = sum(one.seconds for one in plans) / 3600, sum(one.disk for one in plans) / 2**30
    answers = sum(one.answers for one in plans)
    unit = "hours" if first.device == "cpu" else "GPU-hours"
    console.print(
        f"{answers:,.0f} answers: about {hours:,.1f} {unit} on {first.device}, {disk:,.2f} GiB of disk. Estimated from "
        f"{first.sampled:,} of {first.rows:,} rows, evenly spread over each task, within a factor of two at best "
        "(docs/scaling.md). Answers are taken to use all the tokens they may."
    )
    if any(one.shortening for one in plans):
        console.print("Methods that shorten prompts with a model are counted with whole prompts, without that model.")
    console.print("Nothing was run.")


def _short(models: Sequence[str]) -> list[str]:
    """Names of models without the folders that all of several have in common."""
    paths = [model.split("/") for model in models]
    levels = zip(*(path[:-1] for path in paths), strict=False)  # as deep as the shortest
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, levels))) if len(models) > 1 else 0
    return ["/".join(path[shared:]) for path in paths]
