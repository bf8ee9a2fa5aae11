"""How far ``lcbench build`` has come: a bar on a terminal, elsewhere a line a file."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bars:
    """A progress bar on a terminal; elsewhere one line a file."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._name = ""

    def __enter__(self) -> Bars:
        if self._console.is_terminal and not self._quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                console=self._console, transient=True,
            )  # fmt: skip
            self._bar.start()
        return self

    def progress(self, name: str, done: int, total: int) -> None:
        """Take the state of one file."""
        if self._bar is not None:
            if name != self._name:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                self._task = self._bar.add_task(escape(name), total=total)
            assert self._task is not None
            self._bar.update(self._task, completed=done, total=total)
        elif name != self._name and not self._quiet:
            self._console.print(escape(f"{name}: {total} contexts"))
        self._name = name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
