"""A run while it goes on: bars on a terminal, plain lines elsewhere, JSON lines with ``--log json``, or nothing."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lcbench.cli.heart import Heart
from lcbench.cli.plan_view import duration
from lcbench.cli.so_far import SoFar
from lcbench.cli.time_left import TimeLeft, pieces_of
from lcbench.errors import LcbenchError, UnknownName
from lcbench.reporting.words import short_names

if TYPE_CHECKING:
    from lcbench.engine.run import Event, Outcome
    from lcbench.engine.session import Running
    from lcbench.remote.session import RemoteRunning

LOGS = ("text", "json")
_LINE_EVERY = 60.0  # seconds between two lines of a long run where nothing can be animated
_BEAT_EVERY = 30.0  # seconds after which the JSON log says that the run is alive
_MOST_BARS = 6  # tasks with a bar of their own
_LONGEST_NAME = 40  # letters of a task's name beside its bar
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "LCBENCH_API_KEY", "LCBENCH_JUDGE_KEY", "OPENAI_API_KEY")


def watcher(log: str, quiet: bool) -> Watcher:
    """What tells the user about a run, by his options and his terminal. Raises UnknownName: no such kind of log."""
    if log not in LOGS:
        raise UnknownName("log", log, LOGS)
    if log == "json":
        return JsonLog()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if quiet:
        return Watcher()
    return Bars(console) if console.is_terminal else Lines(console)


_MISHAPS = {"oom": "a batch ran out of memory", "died": "a worker died"}


class Watcher:
    """Tells nothing; the others override what they tell. Used for one run after another.

    Attributes:
        so_far: scores and bytes of the run that is watched, and of the last one after it. None where nobody looks.
        tables: whether a table at the end is wanted.
    """

    tables = False

    def __init__(self) -> None:
        self.so_far: SoFar | None = None

    def say(self, text: str) -> None:
        """A sentence for the user."""

    def error(self, error: LcbenchError) -> bool:
        """What ends the command; False leaves it to `lcbench.cli.main`."""
        return False

    def begin(self, running: Running | RemoteRunning, path: Path) -> None:
        """A run is open and about to be answered."""

    def on_event(self, event: Event) -> None:
        """Take one event of the engine."""

    def end(self) -> None:
        """Nothing more will come of this run, however it ended."""

    def done(self, outcome: Outcome, path: Path) -> None:
        """The run has ended."""


class _Counting(Watcher):
    """Keeps scores and the time left. Threads that ask for either hold ``lock``."""

    tables = True

    def __init__(self) -> None:
        super().__init__()
        self.lock = RLock()

    def begin(self, running: Running | RemoteRunning, path: Path) -> None:
        _, self.samples = running.remaining_cost
        pieces, self._reading = pieces_of(running)
        self.time_left, self.finished = TimeLeft(pieces, running.at_once), 0
        self.so_far = SoFar.of(running.run)

    def on_event(self, event: Event) -> None:
        now = time.monotonic()
        self.score: float | None = None
        if event.kind == "prefill":
            self.time_left.reads(self._reading.get((event.task, event.index), 0.0), now)
        elif event.kind == "decode":
            self.time_left.decodes(now)
        elif event.kind == "group":
            self.time_left.group_ended(event.index, now)
        elif event.kind == "sample":
            self.finished += 1
            if event.record is not None and event.record.ok:
                self.time_left.answered(event.record.new_tokens or 0)
            if self.so_far is not None and event.record is not None:
                self.score = self.so_far.add(event.method, event.task, event.record)

    def left(self) -> str:
        """The time left in words."""
        if self.finished >= self.samples:
            return "done"
        with self.lock:
            seconds, guess = self.time_left.left(time.monotonic()), self.time_left.is_guess
        if seconds is None:
            return "estimating the time left"
        if guess:
            return f"perhaps {duration(seconds)} left"  # nothing was timed yet
        return f"about {duration(seconds)} left" if seconds >= 1 else "nearly done"


class Lines(_Counting):
    """One line when a task begins, and one a minute, also while one long group is answered; for files and pipes."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._heart: Heart | None = None

    def say(self, text: str) -> None:
        with self.lock:
            self._console.print(escape(text))

    def begin(self, running: Running | RemoteRunning, path: Path) -> None:
        super().begin(running, path)
        self._seen: set[str] = set()
        self._told = time.monotonic()
        if self.samples:
            self._heart = Heart(self._progress, _LINE_EVERY)
            self._heart.start()

    def on_event(self, event: Event) -> None:
        with self.lock:
            self._take(event)

    def _take(self, event: Event) -> None:
        super().on_event(event)
        if event.task and event.task not in self._seen and event.total:
            self._seen.add(event.task)
            self.say(f"{event.task}: {event.total} prompts")
        if event.kind in _MISHAPS:
            self.say(f"{event.task}: {_MISHAPS[event.kind]} ({event.error})")
        going_on = event.kind != "sample" and 0 < self.finished < self.samples
        if going_on and time.monotonic() - self._told >= _LINE_EVERY:
            self._progress()

    def _progress(self) -> None:
        with self.lock:
            self._told = time.monotonic()
            if self._heart is not None:
                self._heart.told()
            self.say(f"{self.finished} of {self.samples} samples, {self.left()}{self._scores()}")

    def end(self) -> None:
        if self._heart is not None:
            self._heart.stop()
            self._heart = None

    def _scores(self) -> str:
        assert self.so_far is not None
        pairs = [(method, self.so_far.score(method)) for method in self.so_far.methods]
        shown = [f"{method} {score:.1f}" for method, score in pairs if score is not None]
        return f"; score so far: {', '.join(shown)}" if shown else ""


class Bars(_Counting):
    """On a terminal: a bar for each task and for all samples, groups, the time left, and each method's score so far."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._live: Live | None = None

    def say(self, text: str) -> None:
        (self._live.console if self._live else self._console).print(escape(text))

    def begin(self, running: Running | RemoteRunning, path: Path) -> None:
        super().begin(running, path)
        if not self.samples:
            return
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[what]}"),
            console=self._console,
            expand=True,
        )
        self._whole = Progress(
            TextColumn("[bold]all[/]"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f} samples, group {task.fields[group]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="progress.remaining"),
            console=self._console,
            expand=True,
        )
        self._jobs: dict[str, Any] = {}
        self._owed: dict[str, int] = {}
        for item in running.todo:
            task = running.sets[item.group.set_index].task.id
            self._owed[task] = self._owed.get(task, 0) + len(item.wanted)
        self._groups = len(running.todo)
        self._id = self._whole.add_task("all", total=self.samples, group=f"1/{self._groups}", left="loading the model")
        self._live = Live(get_renderable=self._drawn, console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def _drawn(self) -> Group:
        if self._jobs:
            self._whole.update(self._id, left=self.left())
        parts: list[Any] = [self._bars, self._whole]
        if self.so_far is not None and self.so_far.cells:
            room = self._console.height - len(self._bars.tasks) - 6
            parts.append(self.so_far.table(final=False, most=max(1, room)))
        return Group(*parts)

    def on_event(self, event: Event) -> None:
        with self.lock:
            super().on_event(event)
        if self._live is None:
            return
        if event.kind == "group":
            self._whole.update(self._id, group=f"{min(event.index + 1, event.total)}/{event.total}")
            return
        job = self._job(event.task)
        if event.kind == "sample":
            self._whole.advance(self._id)
            self._bars.advance(job)
            if self._is_done(job):
                self._bars.update(job, what="")
            if event.error:
                self.say(f"failed: {event.task} {event.index}/{event.total} {event.method}: {event.error}")
        elif event.kind in _MISHAPS:
            self.say(f"{event.task}: {_MISHAPS[event.kind]} ({event.error})")
        else:
            what = "reading" if event.kind == "prefill" else "decoding"
            of = event.method and f" {event.method}"
            self._bars.update(job, what=escape(f"{what} {event.index}/{event.total}{of}"))

    def _job(self, task: str) -> Any:
        """The bar of a task; finished ones make room for new ones."""
        if task not in self._jobs:
            ended = [name for name, job in self._jobs.items() if self._bars.tasks and self._is_done(job)]
            for name in ended[: max(0, len(self._jobs) - _MOST_BARS + 1)]:
                self._bars.remove_task(self._jobs.pop(name))
            name = short_names(self._owed).get(task, task)  # all options of a task can be longer than the line
            name = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
            self._jobs[task] = self._bars.add_task(escape(name), total=self._owed.get(task, 0), what="")
        return self._jobs[task]

    def _is_done(self, job: Any) -> bool:
        return any(task.id == job and task.finished for task in self._bars.tasks)

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class JsonLog(_Counting):
    """One JSON object a line on stderr and nothing else there.

    Every line has ``time`` (UTC, ISO 8601) and ``event``: note, start, prefill, decode, sample, group, oom, heartbeat,
    done, error. A heartbeat comes when nothing else came for half a minute. Neither prompts nor answers are in it, and
    the values of environment variables that hold access tokens are replaced wherever they might occur.
    """

    tables = False

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        super().__init__()
        self._write = write or sys.stderr.write
        self._heart: Heart | None = None
        self._doing: dict[str, Any] = {}

    def _emit(self, event: str, **fields: Any) -> None:
        with self.lock:
            self._put(event, **fields)
        if self._heart is not None:
            self._heart.told()

    def _put(self, event: str, **fields: Any) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        given = {key: value for key, value in fields.items() if value is not None and value != ""}
        line = json.dumps({"time": now, "event": event, **given}, ensure_ascii=True)
        for name in _SECRETS:
            secret = os.environ.get(name, "").strip()
            if secret:
                line = line.replace(secret, "***")
        self._write(line + "\n")
        sys.stderr.flush()

    def say(self, text: str) -> None:
        self._emit("note", text=text)

    def error(self, error: LcbenchError) -> bool:
        self._emit("error", message=error.message, next=error.next_step)
        return True

    def begin(self, running: Running | RemoteRunning, path: Path) -> None:
        super().begin(running, path)
        self._emit(
            "start",
            run=str(path),
            model=running.session.spec.model.name,
            methods=list(running.run.methods),
            tasks=list(running.run.tasks),
            samples=self.samples,
            groups=len(running.todo),
        )
        self._began, self._doing = time.monotonic(), {}
        if self.samples:
            self._heart = Heart(self._alive, _BEAT_EVERY)
            self._heart.start()

    def _alive(self) -> None:
        with self.lock:
            seconds = round(time.monotonic() - self._began)
            done = {"samples_done": self.finished, "samples": self.samples, "seconds": seconds}
            self._emit("heartbeat", **self._doing, **done, **self._left())

    def _left(self) -> dict[str, int]:
        """The time left under a name that says whether it was measured."""
        left = self.time_left.left(time.monotonic())
        if left is None:
            return {}
        return {"seconds_left_guess" if self.time_left.is_guess else "seconds_left": round(left)}

    def end(self) -> None:
        if self._heart is not None:
            self._heart.stop()
            self._heart = None

    def on_event(self, event: Event) -> None:
        with self.lock:
            self._take(event)

    def _take(self, event: Event) -> None:
        super().on_event(event)
        if event.kind in ("prefill", "decode"):
            self._doing = {"doing": event.kind, "task": event.task}
        place: dict[str, Any] = {"task": event.task, "method": event.method}
        if event.total:
            place |= {"index": event.index, "total": event.total}
        record = event.record
        if event.kind == "sample" and record is not None:
            self._emit(
                "sample",
                **place,
                id=record.id,
                status=record.status,
                score=None if self.score is None else round(self.score, 6),
                score_so_far=self._so_far(event),
                prompt_tokens=record.prompt_tokens,
                new_tokens=record.new_tokens,
                kv_bytes=record.kv_bytes,
                error=event.error,
            )
        else:
            then = event.error if event.kind in _MISHAPS else None
            self._emit(event.kind, **place, samples_done=self.finished, **self._left(), then=then)

    def _so_far(self, event: Event) -> float | None:
        cell = self.so_far.cells.get((event.method, event.task)) if self.so_far else None
        return None if cell is None or cell.score is None else round(cell.score, 4)

    def done(self, outcome: Outcome, path: Path) -> None:
        self._emit(
            "done",
            run=str(path),
            written=outcome.written,
            reused=outcome.reused,
            failed=outcome.failed,
            halved=outcome.halved,
            interrupted=outcome.interrupted,
        )
