"""``lcbench download``: get benchmark data, or look after what is there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from lcbench.config.home import home as lcbench_home
from lcbench.errors import ChecksumMismatch, DataMissing, LcbenchError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from lcbench.data.install import Done
    from lcbench.data.manifest import Manifest

_SECONDS_BETWEEN_LINES = 10.0
_WORTH_A_LINE = 1 << 20


def download(
    names: list[str] | None = typer.Argument(
        None,
        metavar="NAMES",
        help="Data sets (longbench), tasks (qasper, qasper_e), groups (few-shot, longbench-e) or single files. "
        "Without a name: what there is.",
        show_default=False,
    ),
    from_: str | None = typer.Option(
        None,
        "--from",
        metavar="DIR|ZIP|URL",
        help="Take the files from this folder, ZIP archive or web address, not from the official sources. "
        "NAME.firstN.jsonl holds the first N rows of NAME.jsonl; .gz is fine.",
        show_default=False,
    ),
    verify: bool = typer.Option(
        False, "--verify", help="Hash what is installed again (all of it without names); download nothing."
    ),
) -> None:
    """Download and verify benchmark data. Installed files are left alone; a broken transfer is continued.

    HF_ENDPOINT names a mirror of the hub, LCBENCH_HOME the folder that keeps everything.

    Examples: lcbench download qasper · lcbench download --from ~/LongBench longbench · lcbench download --verify
    """
    from lcbench.data.install import install

    if verify:
        if from_ is not None:
            raise UsageError("--verify and --from do not go together.", "Give one of them.")
        _verify(names or [])
        return
    if not names:
        _show_what_there_is()
        raise UsageError("Nothing was named.", "For example: lcbench download qasper")
    home = lcbench_home()
    with _Transfers(Console(stderr=True, highlight=False)) as transfers:
        report = install(home, names, from_, say=transfers.say, progress=transfers.progress)
    out = Console(highlight=False, soft_wrap=True)
    for line in _lines(report.done):
        out.print(line)
    if any(done.state in ("installed", "replaced") for done in report.done):
        out.print(Text(f"In {home / 'data'}"))
    elif not report.problems:
        out.print(Text("Nothing to do."))
    _raise_all(report.problems)


class _Transfers:
    """How far the transfers are: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}

    def __enter__(self) -> _Transfers:
        if self._console.is_terminal:
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.progress import TransferSpeedColumn as Speed

            self._bar = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), Speed(),
                TimeRemainingColumn(), console=self._console, transient=True,
            )  # fmt: skip
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print one line of news."""
        self._console.print(Text(text), soft_wrap=True)

    def progress(self, label: str, done: int, total: int | None) -> None:
        """Take the state of a transfer."""
        if self._bar is not None:
            if label not in self._tasks:
                self._tasks[label] = self._bar.add_task(label, total=total)
            self._bar.update(self._tasks[label], completed=done, total=total)
            if total is not None and done >= total:
                self._bar.update(self._tasks[label], visible=False)
            return
        moment = time.monotonic()
        if total is not None and total < _WORTH_A_LINE:
            return
        if label in self._last and moment - self._last[label] < _SECONDS_BETWEEN_LINES:
            return
        from lcbench.data.disk import size_text

        sizes = [size_text(done)] * bool(done) + [size_text(total or 0)] * (total is not None)
        self.say(f"Downloading {label}: {' of '.join(sizes)}" if sizes else f"Downloading {label}")
        self._last[label] = moment


def _lines(done: Sequence[Done]) -> list[Text]:
    """One line a file of rows; other files of equal fate share one."""
    words = {"present": "already installed"}
    lines: list[Text] = []
    together: dict[tuple[str, str, str], list[str]] = {}
    for one in done:
        state = words.get(one.state, one.state)
        if one.rows is None:
            together.setdefault((one.dataset, state, one.note), []).append(one.file)
        else:
            lines.append(Text(f"{one.dataset}/{one.file}: {state}, {one.note or f'{one.rows} rows'}", _style(state)))
    for (dataset, state, note), files in together.items():
        lines.append(Text(_together(dataset, files, state, note), _style(state)))
    return lines


def _together(dataset: str, files: Sequence[str], state: str, note: str) -> str:
    after = f", {note}" if note else ""
    if len(files) == 1:
        return f"{dataset}/{files[0]}: {state}{after}"
    names = f" ({', '.join(files)})" if len(files) < 9 else ""
    return f"{dataset}: {len(files)} files {state}{after}{names}"


def _style(state: str) -> str:
    return {"installed": "green", "replaced": "green", "missing": "yellow", "kept": "yellow"}.get(state, "")


def _verify(names: Sequence[str]) -> None:
    from lcbench.data.store import verify

    checks = verify(lcbench_home(), names)
    out = Console(highlight=False, soft_wrap=True)
    words = {"changed": "CHANGED", "missing": "MISSING", "absent": "not installed"}
    together: dict[tuple[str, str, str], list[str]] = {}
    for check in checks:
        together.setdefault((check.dataset, words.get(check.state, check.state), check.note), []).append(check.file)
    for (dataset, state, note), files in together.items():
        style = {"ok": "", "not installed": "yellow"}.get(state, "red")
        out.print(Text(_together(dataset, files, state, note), style))
    bad = [check for check in checks if check.state in ("changed", "missing")]
    if bad:
        again = " ".join(dict.fromkeys(check.file.rpartition("/")[2] for check in bad))
        count = "1 file is" if len(bad) == 1 else f"{len(bad)} files are"
        raise ChecksumMismatch(f"{count} not what was installed.", f"Install again: lcbench download {again}")
    if not checks:
        out.print(Text("Nothing is installed."))
    elif all(check.state == "absent" for check in checks):
        raise DataMissing("Nothing of this is installed.", f"Run: lcbench download {' '.join(names)}")


def _raise_all(problems: Sequence[LcbenchError]) -> None:
    """Show every problem; the last one is raised, for the exit code. A network that cannot be reached is told once,
    not again for every further file that it keeps away."""
    from lcbench.cli import show_error
    from lcbench.data.neterrors import Unreachable

    away = any(isinstance(problem, Unreachable) for problem in problems)
    told = [problem for problem in problems if not (away and isinstance(problem.__cause__, Unreachable))]
    for problem in told[:-1]:
        show_error(problem)
    if told:
        raise told[-1]


def _show_what_there_is() -> None:
    from lcbench.data.manifest import all_manifests
    from lcbench.data.store import installed

    there = installed(lcbench_home())
    out = Console(highlight=False)
    for name, manifest in all_manifests().items():
        state = f"{len(there.get(name, {}))} of {len(manifest.files)} files installed"
        out.print(Text.assemble((name, "bold"), f"  {manifest.title}; {state}"))
        for label, words in _words(manifest):
            out.print(Text(f"  {label}: {', '.join(words)}"))
        out.print(Text(f"  licence: {manifest.licence}"))


def _words(manifest: Manifest) -> list[tuple[str, list[str]]]:
    tasks = dict.fromkeys(task for entry in manifest.files.values() for task in entry.tasks)
    groups = dict.fromkeys(group for entry in manifest.files.values() for group in entry.groups)
    return [(label, list(words)) for label, words in (("tasks", tasks), ("groups", groups)) if words]
