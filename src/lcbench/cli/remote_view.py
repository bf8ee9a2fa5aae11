"""What ``lcbench run --dry-run`` prints of a model behind an address."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lcbench.cli.plan_view import show_notes, show_samples

if TYPE_CHECKING:
    from lcbench.remote.session import RemotePlan


def show_remote_plan(plan: RemotePlan, path: Path) -> None:
    """The server, how each task is asked, how many calls that is, and the most tokens they take."""
    console = Console(highlight=False, soft_wrap=True)
    window = "not known; prompts are sent whole" if plan.window is None else f"{plan.window:,} tokens"
    console.print(escape(f"Model    {plan.label}, window {window}"))
    served = plan.about.lcbench
    if served is not None:
        console.print(escape(f"It is lcbench serve with {served.get('model')} and method {served.get('method')}"))
    console.print(
        escape(f"Tokenizer {plan.spec.model.tokenizer or 'none named: nobody counts or cuts the prompts here'}")
    )
    table = Table("task", "methods", "prompts", "prompt tokens (min / mean / max)", "answer", "asked by")
    calls = read = made = 0
    for prompts in plan.sets:
        good = [p.tokens for p in prompts.prompts if p.error is None]
        counted = sum(good) > 0
        lengths = f"{min(good):,} / {sum(good) // len(good):,} / {max(good):,}" if counted else "not counted"
        methods = "\n".join(escape(m.id) for m in prompts.methods)
        asked = plan.asked[prompts.task.id].partition(";")[0].partition(",")[0]
        table.add_row(
            escape(prompts.task.id), methods, str(len(prompts.prompts)), lengths, str(prompts.max_new_tokens), asked
        )
        calls += len(good) * len(prompts.methods)
        read += sum(good) * len(prompts.methods)
        made += len(good) * len(prompts.methods) * prompts.max_new_tokens
    console.print(table, soft_wrap=False)
    show_notes(console, plan.sets)
    show_samples(console, plan.sets)
    counted_text = f"{read:,} prompt tokens" if read else "prompt tokens not counted"
    console.print(
        f"{calls:,} calls, {plan.calls.concurrency} at a time: {counted_text}, at most {made:,} tokens of answers."
    )
    console.print(escape(f"Run directory would be {path}. Nothing was run."))
