"""What several workers of a run have in common, wherever they are: what each is given, and who has which group.

A worker is told its `Job` once, holds a `Loaded` model, takes group after group and answers with messages: ``event``,
``result``, ``log`` and, when the group is through, ``done``. The parent keeps a `Dispatch`: it hands groups out, passes
results to the one `Writer`, and decides what becomes of a group whose worker was lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

import lcbench.errors
from lcbench.config.spec import ModelSpec
from lcbench.engine.answer import Answerer
from lcbench.engine.groups import Group
from lcbench.engine.options import Options
from lcbench.engine.outcome import Event, Listener, Result
from lcbench.engine.plan import PromptSet
from lcbench.engine.run import Outcome, Owing, Writer, owing, samples_of
from lcbench.errors import LcbenchError
from lcbench.models.info import LoadedModel, ModelInfo
from lcbench.models.load import load
from lcbench.store.rundir import RunDirectory

Message = tuple[str, Any]


@dataclass(frozen=True)
class Job:
    """What every worker of a run is given once.

    Attributes:
        model: its ``device`` is replaced by that of the worker. home: LCBENCH_HOME. sets: groups point into them.
        room: bytes that shared beginnings may take in each worker.
        threads: for torch, as the `Team` says; None leaves its default.
    """

    model: ModelSpec
    home: Path
    sets: tuple[PromptSet, ...]
    options: Options
    room: int
    threads: int | None = None


class Loaded:
    """The worker's side: a model that answers groups.

    Args:
        device: where the weights go. tell: takes messages at the moment they arise. should_stop: asked between
            decoding steps; a group that was stopped has fewer results than were wanted.

    Raises:
        LcbenchError: the model cannot be loaded, or a method cannot work with it.
    """

    def __init__(self, job: Job, device: str, tell: Callable[[Message], None], should_stop: Callable[[], bool]) -> None:
        loaded = load(replace(job.model, device=device), job.home)
        for prompts in job.sets:
            for method in prompts.methods:
                method.check(loaded.shape())
        self.tell = tell
        self._answerer = Answerer(
            loaded, job.sets, job.options, listener=self._event, should_stop=should_stop, room=job.room
        )

    def _event(self, event: Event) -> None:
        self.tell(("event", event))

    def answer(self, item: Owing) -> None:
        """Tell everything that becomes of a group, ``done`` last."""
        self._answerer.prepare(item.group, item.following)
        for result in self._answerer.run(item.group, item.wanted):
            self._log()
            self.tell(("result", result))
        self._log()
        self.tell(("done", None))

    def _log(self) -> None:
        if self._answerer.events:
            self.tell(("log", list(self._answerer.events)))
            self._answerer.events.clear()


def packed(error: LcbenchError) -> Message:
    """A worker's refusal to go on, as a message. Pickled errors would need their constructors' arguments."""
    return ("refused", (type(error).__name__, error.message, error.next_step))


def unpacked(content: tuple[str, str, str]) -> LcbenchError:
    """The error a worker refused to go on with, of the same kind where its kind can be made from two texts."""
    name, message, step = content
    kind = getattr(lcbench.errors, name, LcbenchError)
    error = LcbenchError(message, step)
    if issubclass(kind, LcbenchError) and kind.__init__ is LcbenchError.__init__:
        error = kind(message, step)
    return error


@dataclass(eq=False)
class Desk:
    """A worker as the parent sees it.

    Attributes:
        item: the group it works on, None while it loads or waits. received: (prompt, method) that came back of it.
        ready: whether the model is loaded. problem: what it said before it ended badly.
    """

    item: Owing | None = None
    received: set[tuple[int, int]] = field(default_factory=set)
    ready: bool = False
    problem: str = ""


class Dispatch:
    """The parent's side: groups that wait, results that came, groups that are tried again.

    Args:
        tries: how often a group is begun before its samples are recorded as errors.
    """

    def __init__(
        self,
        job: Job,
        info: ModelInfo,
        writer: Writer,
        todo: Sequence[Owing],
        listener: Listener | None,
        *,
        tries: int,
    ) -> None:
        self._job, self._writer, self._tries = job, writer, tries
        self._listener: Listener = listener or (lambda event: None)
        self._failures = Answerer(LoadedModel(None, None, info), job.sets, job.options)
        self._lost: dict[int, int] = {}
        self._queue = deque(todo)
        self._kept: dict[Desk, Owing] = {}

    @property
    def waiting(self) -> int:
        """Groups that nobody works on."""
        return len(self._queue) + len(self._kept)

    def hand_out(self, desk: Desk) -> Owing:
        """Give a worker its next group, and keep the one after it for the same worker, which prepares its prompts. Once
        there are no others, what is kept for a busy worker goes to a free one."""
        if desk in self._kept:
            item = self._kept.pop(desk)
        else:
            item = self._queue.popleft() if self._queue else self._kept.pop(next(iter(self._kept)))
        if self._queue:
            self._kept[desk] = self._queue.popleft()
        following = self._kept[desk].group if desk in self._kept else None
        desk.item, desk.received = replace(item, following=following), set()
        return desk.item

    def hear(self, desk: Desk, kind: str, content: Any) -> bool:
        """Act on a message; False for a group that was left unfinished (a stop was asked for).

        Raises:
            LcbenchError: the worker refuses to go on.
        """
        if kind == "ready":
            desk.ready = True
        elif kind == "event":
            self._listener(content)
        elif kind == "log":
            self._writer.log(content)
        elif kind == "refused":
            raise unpacked(content)
        elif kind == "crashed":
            desk.problem = content
        elif kind == "result":
            self._take(desk, content)
        else:
            assert desk.item is not None
            whole = len(desk.received) == len(desk.item.wanted)
            if whole:
                self._writer.finish(desk.item.group.index)
            desk.item = None
            return whole
        return True

    def _take(self, desk: Desk, result: Result) -> None:
        assert desk.item is not None
        group = desk.item.group
        methods = [method.id for method in self._job.sets[group.set_index].methods]
        desk.received.add((result.index - 1, methods.index(result.method)))
        self._writer.put(group.index, result)

    def lost(self, desk: Desk, how: str, *, stopping: bool) -> bool:
        """A worker ended in the middle of a group: what is left of it is tried again, or recorded as errors.

        Returns:
            False when it stays undone because the run is being stopped.
        """
        assert desk.item is not None
        left = replace(desk.item, wanted=desk.item.wanted - desk.received)
        desk.item = None
        if stopping:
            return not left.wanted
        index = left.group.index
        if not left.wanted:
            self._writer.finish(index)
            return True
        self._lost[index] = self._lost.get(index, 0) + 1
        again = self._lost[index] < self._tries
        then = "tried again" if again else "recorded as errors"
        prompts = self._job.sets[left.group.set_index]
        ids = [prompts.prompts[p].row.id for p in left.group.prompts if any(p == q for q, _ in left.wanted)]
        event = {"event": "worker_died", "how": how, "task": prompts.task.id, "samples": ids, "then": then}
        self._writer.log([event])
        self._listener(Event("died", prompts.task.id, "", 0, 0, error=f"{how}; {len(left.wanted)} samples are {then}"))
        if again:
            self._queue.appendleft(left)
            return True
        times = {2: "twice"}.get(self._tries, f"{self._tries} times")
        for p, m in sorted(left.wanted, key=lambda pair: (left.group.prompts.index(pair[0]), pair[1])):
            problem = f"the worker process died {times} on this group ({how})"
            self._writer.put(index, self._failures.failed(left.group.set_index, p, m, problem))
        self._writer.finish(index)
        return True


Work = Callable[[Callable[[], bool]], bool]
"""Works until every group is answered, or the function it is given asks for a stop; says whether everything was."""


class Team(Protocol):
    """Workers of one kind, before they are called: processes of this machine, or actors of a cluster."""

    @property
    def tries(self) -> int:
        """How often a group is begun before its samples are recorded as errors."""

    @property
    def threads(self) -> int | None:
        """Of torch in each worker; None leaves its default."""

    def at_work(self, job: Job, dispatch: Dispatch, groups: int) -> AbstractContextManager[Work]:
        """The workers, for so many groups; they have ended when the context is left, however that comes about."""


def execute_by(
    team: Team,
    job: Job,
    info: ModelInfo,
    groups: Sequence[Group],
    run: RunDirectory,
    *,
    listener: Listener | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """As `engine.run.execute`, by several workers.

    Raises:
        LcbenchError: what stops a run of one process stops this one. ModelError also when workers die while they load.
    """
    todo = owing(job.sets, groups, run)
    outcome = Outcome(reused=samples_of(job.sets, groups) - sum(len(item.wanted) for item in todo))
    writer = Writer(run, todo, outcome, listener)
    dispatch = Dispatch(job, info, writer, todo, listener, tries=team.tries)
    with team.at_work(replace(job, threads=team.threads), dispatch, len(todo)) as work:
        outcome.interrupted = not work(should_stop or (lambda: False))
    return outcome


def each_message(loaded: Loaded, item: Owing) -> Iterator[Message]:
    """The messages of a group one after another, each as soon as it arises.

    The group is answered in a thread of its own, so that an event need not wait for the next result.
    """
    messages: SimpleQueue[Message | BaseException] = SimpleQueue()
    loaded.tell = messages.put

    def work() -> None:
        try:
            loaded.answer(item)
        except BaseException as error:
            messages.put(error)

    Thread(target=work, name="lcbench group", daemon=True).start()
    while True:
        message = messages.get()
        if isinstance(message, BaseException):
            raise message
        yield message
        if message[0] == "done":
            return
