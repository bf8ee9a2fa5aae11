"""The main loop: groups that still owe records, answered one after another, written in the order of the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lcbench.engine.answer import Answerer
from lcbench.engine.groups import Group
from lcbench.engine.options import Options
from lcbench.engine.outcome import Event, Listener, Result, cost_of
from lcbench.engine.plan import PromptSet
from lcbench.models.info import LoadedModel
from lcbench.store.rundir import RunDirectory

__all__ = ["Event", "Listener", "Outcome", "Owing", "Writer", "cost_of", "execute", "iterate_failures", "owing"]


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        written: records appended now. reused: records that were there before.
        failed: samples whose latest record is an error, over all methods and tasks.
        interrupted: stopped on request before the end.
        halved: batches that ran out of memory and were tried again in halves.
    """

    written: int = 0
    reused: int = 0
    failed: int = 0
    interrupted: bool = False
    halved: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Owing:
    """A group with the (prompt, method) indices of its set that have no good record yet.

    Attributes:
        following: the group that whoever answers this one will most likely be given next.
    """

    group: Group
    wanted: frozenset[tuple[int, int]]
    following: Group | None = None


def owing(sets: Sequence[PromptSet], groups: Sequence[Group], run: RunDirectory) -> list[Owing]:
    """The groups that still have something to do, in their order."""
    done = {(m.id, s.task.id): run.done(m.id, s.task.id) for s in sets for m in s.methods}
    found = []
    for group in groups:
        prompts = sets[group.set_index]
        wanted = frozenset(
            (p, m)
            for p in group.prompts
            for m, method in enumerate(prompts.methods)
            if prompts.prompts[p].row.id not in done[method.id, prompts.task.id]
        )
        if wanted:
            found.append(Owing(group, wanted))
    return found


def samples_of(sets: Sequence[PromptSet], groups: Sequence[Group]) -> int:
    """How many records groups end in."""
    return sum(len(group.prompts) * len(sets[group.set_index].methods) for group in groups)


class Writer:
    """Writes results in the order of the groups, whoever made them and whenever: what comes early is held back.

    Args:
        run: open for writing; nobody else writes its predictions.
        todo: the groups that will come, in order.
        outcome: counts what is written. listener: told of every record written, every group
            finished and every batch that ran out of memory.
    """

    def __init__(
        self, run: RunDirectory, todo: Sequence[Owing], outcome: Outcome, listener: Listener | None = None
    ) -> None:
        self._run, self._outcome = run, outcome
        self._listener: Listener = listener or (lambda event: None)
        self._order = [item.group.index for item in todo]
        self._total = len(todo)
        self._early: dict[int, list[Result]] = {}
        self._finished: set[int] = set()

    def put(self, group: int, result: Result) -> None:
        """Take the next result of a group; on return it is on the disk if the group's turn has come."""
        if self._order and self._order[0] == group:
            self._write(result)
        else:
            self._early.setdefault(group, []).append(result)

    def finish(self, group: int) -> None:
        """All results of a group have been put; the next groups' are written as far as they are there."""
        self._finished.add(group)
        while self._order and self._order[0] in self._finished:
            self._order.pop(0)
            self._listener(Event("group", "", "", self._total - len(self._order), self._total))
            if self._order:
                for result in self._early.pop(self._order[0], []):
                    self._write(result)

    def log(self, events: list[dict[str, Any]]) -> None:
        """Add lines to the run's log and empty the list."""
        for event in events:
            self._outcome.halved += event.get("then") == "halved"
            self._run.append_event(event)
            if event.get("event") == "out_of_memory":
                self._listener(Event("oom", event["task"], "", 0, 0, error=event["then"]))
        events.clear()

    def _write(self, result: Result) -> None:
        record = result.record
        if result.timing is not None:
            self._run.record_timing(result.method, result.task, record.id, result.timing)
        self._run.append(result.method, result.task, record)
        self._outcome.written += 1
        if not record.ok:
            self._outcome.failed += 1
            self._outcome.errors.append(f"{result.method} {result.task} {record.id}: {record.error}")
        self._listener(
            Event("sample", result.task, result.method, result.index, result.total, result.cost, record.error, record)
        )


def execute(
    loaded: LoadedModel,
    sets: Sequence[PromptSet],
    groups: Sequence[Group],
    run: RunDirectory,
    *,
    options: Options | None = None,
    room: int = 2**31,
    listener: Listener | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Answer every sample that has no good record yet, in the order of the groups.

    A sample that fails is recorded as an error and the run goes on; errors about the run directory itself (disk full,
    lost folder) end it.

    Args:
        room: bytes that shared beginnings of prompts may take.
        should_stop: asked between prompts and between decoding steps; what a group has not finished then is dropped.
    """
    for prompts in sets:
        for method in prompts.methods:
            method.check(loaded.shape())
    todo = owing(sets, groups, run)
    total = samples_of(sets, groups)
    outcome = Outcome(reused=total - sum(len(item.wanted) for item in todo))
    writer = Writer(run, todo, outcome, listener)
    answerer = Answerer(loaded, sets, options or Options(), listener=listener, should_stop=should_stop, room=room)
    for item, following in zip(todo, [*todo[1:], None], strict=True):
        if should_stop is not None and should_stop():
            outcome.interrupted = True
            return outcome
        answerer.prepare(item.group, None if following is None else following.group)
        made = 0
        for result in answerer.run(item.group, item.wanted):
            writer.log(answerer.events)
            writer.put(item.group.index, result)
            made += 1
        writer.log(answerer.events)
        if made < len(item.wanted):
            outcome.interrupted = True
            return outcome
        writer.finish(item.group.index)
    return outcome


def iterate_failures(run: RunDirectory) -> Iterator[str]:
    """One line for every sample whose latest record is an error."""
    for method in run.methods:
        for task in run.tasks:
            for record in run.records(method, task):
                if not record.ok:
                    yield f"{method} {task} {record.id}: {record.error}"
