"""What ``lcbench run --dry-run`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lcbench.tasks.notes import said_once

if TYPE_CHECKING:
    from lcbench.engine.plan import PromptSet
    from lcbench.engine.session import Plan


def show_plan(plan: Plan, path: Path) -> None:
    """Jobs, prompt lengths, one prompt's ends, and what it will cost."""
    console = Console(highlight=False, soft_wrap=True)
    info, cost = plan.info, plan.estimate
    window = "no stated window" if info.unbounded else f"window {info.window:,}"
    console.print(
        escape(
            f"Model    {info.name} ({info.architecture}, {info.parameters / 1e6:,.0f} M parameters, {info.dtype} on "
            f"{info.device}, attention {info.attn}, {window})"
        )
    )
    console.print(f"End tokens {list(info.eos_ids)}; chat template {(info.chat_template_sha256 or 'none')[:12]}")
    table = Table("task", "methods", "prompts", "prompt tokens (min / mean / max)", "answer", "prefills")
    for prompts in plan.sets:
        good = [p.tokens for p in prompts.prompts if p.error is None]
        lengths = f"{min(good):,} / {sum(good) // len(good):,} / {max(good):,}" if good else "none fits"
        methods = "\n".join(escape(m.id) for m in prompts.methods)
        table.add_row(
            escape(prompts.task.id),
            methods,
            str(len(prompts.prompts)),
            lengths,
            str(prompts.max_new_tokens),
            str(len(good)),
        )
    console.print(table, soft_wrap=False)
    show_notes(console, plan.sets)
    show_samples(console, plan.sets)
    console.print(
        f"{cost.answers:,} samples from {cost.prefills:,} prefills. Memory about {cost.peak_bytes / 2**30:.2f} GiB "
        f"(weights {cost.weight_bytes / 2**30:.2f}, full KV cache of the longest prompt {cost.kv_bytes / 2**30:.2f}). "
        f"Time about {duration(cost.seconds)} at the speed measured now, within a factor of two."
    )
    console.print(escape(f"Run directory would be {path}. Nothing was run."))


def show_notes(console: Console, sets: Sequence[PromptSet]) -> None:
    """What the user should know about the prompts, each note once."""
    for line in said_once((prompts.task.id, note) for prompts in sets for note in prompts.notes):
        console.print(escape(line))


def show_samples(console: Console, sets: Sequence[PromptSet]) -> None:
    """Both ends of one prompt of each task."""
    for prompts in {s.task.id: s for s in sets}.values():
        show_ends(console, prompts.task.id, prompts.sample)


def show_ends(console: Console, task: str, sample: tuple[str, str]) -> None:
    """The first and the last characters of a prompt."""
    begins, ends = map(repr, sample)
    console.print(escape(f"{task} prompt begins {begins}"))
    console.print(escape(f"{task} prompt ends   {ends}"))


def duration(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
