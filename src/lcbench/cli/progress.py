"""What is being done, how far it is, and how long it will take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lcbench.engine.plan import PromptSet
    from lcbench.engine.run import Event


class _TimeLeft(ProgressColumn):
    """Time left, from the work done so far and the work that remains (prompt and answer tokens, not samples)."""

    def render(self, task: Task) -> Text:
        done, total = task.fields.get("work", 0.0), task.fields.get("work_total", 0.0)
        if not task.elapsed or done <= 0:
            return Text("estimating …", style="progress.remaining")
        seconds = int(task.elapsed * (total - done) / done)
        minutes, seconds = divmod(max(0, seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02}:{seconds:02} left", style="progress.remaining")


class RunProgress:
    """A progress bar on a terminal; elsewhere one line when each task starts and ends.

    Args:
        console: on stderr, so that stdout stays clean.
        sets: the plan.
        remaining_cost: work still to do, in the units of `Event.cost`.
    """

    def __init__(
        self, console: Console, sets: Sequence[PromptSet], remaining_cost: tuple[float, int], *, quiet: bool
    ) -> None:
        self._console = console
        self._work_total, self._samples = remaining_cost
        self._quiet = quiet
        self._work = 0.0
        self._seen: set[str] = set()
        self._bar: Progress | None = None

    def __enter__(self) -> RunProgress:
        if not self._quiet and self._console.is_terminal and self._samples:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("samples"),
                TimeElapsedColumn(),
                _TimeLeft(table_column=Column(no_wrap=True)),
                console=self._console,
                expand=True,
            )
            self._bar.start()
            self._id = self._bar.add_task("starting", total=self._samples, work=0.0, work_total=self._work_total)
        return self

    def on_event(self, event: Event) -> None:
        """Take one event of the engine."""
        if event.kind == "sample":
            self._work += event.cost
        if self._bar is not None:
            if event.kind == "sample":
                self._bar.update(self._id, advance=1, work=self._work)
                if event.error:
                    self._bar.console.print(
                        f"[red]failed[/] {escape(event.task)} {event.index}/{event.total} {escape(event.method)}: "
                        f"{escape(event.error)}"
                    )
            else:
                what = "reading" if event.kind == "prefill" else event.method
                name = event.task.partition("@")[0]  # options of a task can be longer than the line
                self._bar.update(self._id, description=f"{escape(name)} {event.index}/{event.total} {escape(what)}")
        elif not self._quiet and event.task not in self._seen:
            self._seen.add(event.task)
            self._console.print(escape(f"{event.task}: {event.total} prompts"))

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
