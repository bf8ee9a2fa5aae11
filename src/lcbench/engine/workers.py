"""Several processes answer a run: one a GPU, or several on the cores of a CPU; the parent alone writes.

Each worker loads the model once, takes group after group and sends its results back through a pipe of its own, so that
nothing is shared that a killed process could leave locked. The parent's `Writer` puts the results of a group on the
disk when its turn comes: the files end byte for byte as those of one process.

    a worker dies        its group is tried once more by a fresh one; if that dies too, its samples become errors
    the parent dies      the workers notice and end; the same command continues the run, with any number of workers
    Ctrl-C               goes to the parent; the workers stop after the decoding step they are in
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

import lcbench.errors
from lcbench.config.spec import ModelSpec
from lcbench.engine.answer import Answerer, Listener, Result, sentence
from lcbench.engine.groups import Group
from lcbench.engine.options import Options
from lcbench.engine.plan import PromptSet
from lcbench.engine.run import Outcome, Owing, Writer, owing
from lcbench.errors import BadValue, LcbenchError, ModelError
from lcbench.models.info import LoadedModel, ModelInfo
from lcbench.models.load import load
from lcbench.models.place import AUTO_MAP
from lcbench.store.rundir import RunDirectory

_POLL_SECONDS = 0.2  # how often a stop request is looked for while no worker has anything to say
_END_SECONDS = 10.0  # what a worker gets to end by itself
_CONTEXT = multiprocessing.get_context("spawn")  # forked processes cannot use CUDA


@dataclass(frozen=True)
class Job:
    """What every worker of a run is given once.

    Attributes:
        model: its ``device`` is replaced by that of the worker. home: LCBENCH_HOME. sets: groups point into them.
        room: bytes that shared beginnings may take in each worker. threads: for torch; None leaves its default.
    """

    model: ModelSpec
    home: Path
    sets: tuple[PromptSet, ...]
    options: Options
    room: int
    threads: int | None = None


def devices_of(workers: str, wanted: str, device: str) -> list[str]:
    """The device of each worker.

    Args:
        workers: what the user wrote: "auto" (every GPU; one worker on a CPU) or a number.
        wanted: the device the user wrote ("auto", "cpu", "cuda", "cuda:1"). device: what it came to.

    Raises:
        BadValue: no number from 1, or more workers than GPUs or cores.
    """
    count = 0 if workers == "auto" else int(workers) if workers.isascii() and workers.isdigit() else -1
    if count < 0 or workers == "0":
        raise BadValue(f"--workers {workers} is neither auto nor a whole number from 1.", "Write --workers 2.")
    if device.startswith("cuda"):
        named = ":" in wanted or wanted == AUTO_MAP
        gpus = 1 if named else torch.cuda.device_count()
        if count > gpus:
            which = f"--device {wanted} is for one process" if named else f"there are {gpus} GPUs here"
            raise BadValue(f"--workers {count} needs a GPU each, and {which}.", f"Write --workers {gpus}.")
        return [device] if gpus == 1 or count == 1 else [f"cuda:{i}" for i in range(count or gpus)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count > cores:
        raise BadValue(f"--workers {count} is more than the {cores} cores here.", f"Write --workers {cores}.")
    return ["cpu"] * max(1, count)


def threads_each(devices: Sequence[str]) -> int | None:
    """Threads of torch for each worker: those of this process divided among them; None on GPUs."""
    return max(1, torch.get_num_threads() // len(devices)) if devices[0] == "cpu" else None


def execute_with_workers(
    job: Job,
    devices: Sequence[str],
    info: ModelInfo,
    groups: Sequence[Group],
    run: RunDirectory,
    *,
    listener: Listener | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """As `engine.run.execute`, by ``len(devices)`` processes.

    Raises:
        LcbenchError: what stops a run of one process stops this one. ModelError also when workers die while they load.
    """
    todo = owing(job.sets, groups, run)
    outcome = Outcome(reused=sum(len(s.prompts) * len(s.methods) for s in job.sets))
    outcome.reused -= sum(len(item.wanted) for item in todo)
    writer = Writer(run, todo, outcome, listener)
    with _Crew(job, info, writer, todo, listener) as crew:
        crew.start(devices[: len(todo)])
        outcome.interrupted = not crew.work(should_stop or (lambda: False))
    return outcome


# -- the parent ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Worker:
    """A process and what the parent knows of it.

    Attributes:
        item: the group it works on, None while it loads or waits. received: (prompt, method) that came back of it.
        ready: whether the model is loaded. problem: what it said before it ended badly.
    """

    process: Any
    pipe: Connection
    device: str
    item: Owing | None = None
    received: set[tuple[int, int]] = field(default_factory=set)
    ready: bool = False
    problem: str = ""


class _Crew:
    """All workers of a run; leaving the context ends them, however it is left."""

    def __init__(
        self, job: Job, info: ModelInfo, writer: Writer, todo: Sequence[Owing], listener: Listener | None
    ) -> None:
        self._job, self._writer = job, writer
        self._listener: Listener = listener or (lambda event: None)
        self._queue = deque(todo)
        self._workers: list[_Worker] = []
        self._retried: set[int] = set()
        self._lost_loading = 0
        self._stop = _CONTEXT.RawValue("b", 0)  # a plain byte: no lock that a killed worker could keep
        self._failures = Answerer(LoadedModel(None, None, info), job.sets, job.options)

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.value = 1
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(0.0 if exc[0] is not None else _END_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def start(self, devices: Sequence[str]) -> None:
        """One process a device."""
        for device in devices:
            ours, theirs = _CONTEXT.Pipe()
            arguments = (self._job, device, theirs, self._stop)
            process = _CONTEXT.Process(target=_work, args=arguments, name=f"lcbench worker on {device}", daemon=True)
            process.start()
            theirs.close()  # else the end of the worker would never show
            self._workers.append(_Worker(process, ours, device))

    def work(self, should_stop: Callable[[], bool]) -> bool:
        """Until every group is answered, or a stop was asked for; says whether everything was answered."""
        whole = True
        while True:
            if not self._stop.value and should_stop():
                self._stop.value = 1
            busy = [worker for worker in self._workers if worker.item is not None]
            if not busy and (self._stop.value or not self._queue):
                return whole and not self._queue
            if not self._stop.value:
                self._hand_out()
            for pipe in wait([worker.pipe for worker in self._workers], timeout=_POLL_SECONDS):
                worker = next(one for one in self._workers if one.pipe is pipe)
                try:
                    kind, content = worker.pipe.recv()
                except (EOFError, OSError):
                    whole &= self._bury(worker)
                    continue
                whole &= self._hear(worker, kind, content)

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.ready and worker.item is None and self._queue:
                worker.item, worker.received = self._queue.popleft(), set()
                with contextlib.suppress(OSError):  # it has just died: its end shows on the pipe
                    worker.pipe.send(worker.item)

    def _hear(self, worker: _Worker, kind: str, content: Any) -> bool:
        """Act on a message; False for a group that was left unfinished."""
        if kind == "ready":
            worker.ready = True
        elif kind == "event":
            self._listener(content)
        elif kind == "log":
            self._writer.log(content)
        elif kind == "refused":
            raise _unpacked(content)
        elif kind == "crashed":
            worker.problem = content
        else:
            assert worker.item is not None
            if kind == "result":
                self._take(worker, content)
                return True
            done = len(worker.received) == len(worker.item.wanted)
            if done:
                self._writer.finish(worker.item.group.index)
            worker.item = None
            return done
        return True

    def _take(self, worker: _Worker, result: Result) -> None:
        assert worker.item is not None
        group = worker.item.group
        methods = [method.id for method in self._job.sets[group.set_index].methods]
        worker.received.add((result.index - 1, methods.index(result.method)))
        self._writer.put(group.index, result)

    def _bury(self, worker: _Worker) -> bool:
        """A worker ended without being told to: its group goes to a fresh one, once. False when it stays undone."""
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join()
        how = worker.problem or _how_it_ended(worker.process.exitcode)
        item = worker.item
        if item is None:
            self._lost_loading += not worker.ready
            if self._lost_loading > 1:
                raise ModelError(
                    f"Worker processes end while they load the model ({how}).",
                    "There may be too little memory for so many: use fewer --workers.",
                )
        else:
            left = replace(item, wanted=item.wanted - worker.received)
            if self._stop.value:
                return not left.wanted
            self._again_or_never(left, how)
        if self._queue and not self._stop.value:
            self.start([worker.device])
        return True

    def _again_or_never(self, left: Owing, how: str) -> None:
        index = left.group.index
        if not left.wanted:
            self._writer.finish(index)
            return
        again = index not in self._retried
        event = {"event": "worker_died", "how": how, "samples": len(left.wanted)}
        self._writer.log([event | {"then": "tried again" if again else "recorded as errors"}])
        if again:
            self._retried.add(index)
            self._queue.appendleft(left)
            return
        for p, m in sorted(left.wanted, key=lambda pair: (left.group.prompts.index(pair[0]), pair[1])):
            problem = f"the worker process died twice on this group ({how})"
            self._writer.put(index, self._failures.failed(left.group.set_index, p, m, problem))
        self._writer.finish(index)


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


# -- the worker ------------------------------------------------------------------------------------------------------


def _work(job: Job, device: str, pipe: Connection, stop: Any) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    try:
        _answer(job, device, pipe, stop)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
    except LcbenchError as error:
        pipe.send(("refused", (type(error).__name__, error.message, error.next_step)))
    except Exception as error:
        pipe.send(("crashed", sentence(error)))


def _answer(job: Job, device: str, pipe: Connection, stop: Any) -> None:
    loaded = load(replace(job.model, device=device), job.home)
    for prompts in job.sets:
        for method in prompts.methods:
            method.check(loaded.shape())
    answerer = Answerer(
        loaded,
        job.sets,
        job.options,
        listener=lambda event: pipe.send(("event", event)),
        should_stop=lambda: bool(stop.value),
        room=job.room,
    )
    pipe.send(("ready", None))
    while (item := pipe.recv()) is not None:
        for result in answerer.run(item.group, item.wanted):
            pipe.send(("result", result))
        if answerer.events:
            pipe.send(("log", list(answerer.events)))
            answerer.events.clear()
        pipe.send(("done", None))


def _die_with(sentinel: int) -> None:
    """End this process as soon as its parent has ended, in the middle of whatever it is doing."""
    wait([sentinel])
    os._exit(1)


def _unpacked(content: tuple[str, str, str]) -> LcbenchError:
    """The error a worker refused to go on with, of the same kind where its kind can be made from two texts."""
    name, message, step = content
    kind = getattr(lcbench.errors, name, LcbenchError)
    error = LcbenchError(message, step)
    if issubclass(kind, LcbenchError) and kind.__init__ is LcbenchError.__init__:
        error = kind(message, step)
    return error
