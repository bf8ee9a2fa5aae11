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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, ClassVar

import torch

from lcbench.engine.dispatch import Desk, Dispatch, Job, Loaded, Work, packed
from lcbench.engine.outcome import sentence
from lcbench.errors import BadValue, LcbenchError, ModelError
from lcbench.models.place import AUTO_MAP

_POLL_SECONDS = 0.2  # how often a stop request is looked for while no worker has anything to say
_END_SECONDS = 10.0  # what a worker gets to end by itself
_CONTEXT = multiprocessing.get_context("spawn")  # forked processes cannot use CUDA


def devices_of(workers: str, wanted: str, device: str) -> list[str]:
    """The device of each worker.

    Args:
        workers: what the user wrote: "auto" (every GPU; one worker on a CPU) or a number.
        wanted: the device the user wrote ("auto", "cpu", "cuda", "cuda:1"). device: what it came to.

    Raises:
        BadValue: no number from 1, or more workers than GPUs or cores.
    """
    digits = workers.isascii() and workers.isdigit() and len(workers) < 10
    count = 0 if workers == "auto" else int(workers) if digits else -1
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


@dataclass(frozen=True)
class Processes:
    """A `Team` of processes, one a device."""

    devices: tuple[str, ...]
    tries: ClassVar[int] = 2

    @property
    def threads(self) -> int | None:
        """Those of this process divided among them; None on GPUs."""
        return max(1, torch.get_num_threads() // len(self.devices)) if self.devices[0] == "cpu" else None

    @contextlib.contextmanager
    def at_work(self, job: Job, dispatch: Dispatch, groups: int) -> Iterator[Work]:
        with _Crew(job, dispatch) as crew:
            crew.start(self.devices[:groups])
            yield crew.work


# -- the parent ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Worker(Desk):
    """A process, with what the parent knows of it. ``handing`` sends it its job."""

    process: Any = None
    pipe: Connection = field(kw_only=True)
    device: str = "cpu"
    handing: threading.Thread | None = None

    def close(self) -> None:
        """After the process has ended."""
        if self.handing is not None:
            self.handing.join()  # nobody reads: it fails at once, and must not find another file of that number
        self.pipe.close()


class _Crew:
    """All workers of a run; leaving the context ends them, however it is left."""

    def __init__(self, job: Job, dispatch: Dispatch) -> None:
        self._job, self._dispatch = bytes(ForkingPickler.dumps(job)), dispatch
        self._workers: list[_Worker] = []
        self._lost_loading = 0
        self._stop = _CONTEXT.RawValue("b", 0)  # a plain byte: no lock that a killed worker could keep

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.value = 1
        for worker in self._workers:
            if worker.ready:  # one that still loads has nothing to lose
                with contextlib.suppress(OSError):
                    worker.pipe.send(None)
        for worker in self._workers:
            worker.process.join(_END_SECONDS if worker.ready and exc[0] is None else 0.0)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.close()

    def start(self, devices: Sequence[str]) -> None:
        """One process a device."""
        for device in devices:
            ours, theirs = _CONTEXT.Pipe()
            arguments = (device, theirs, self._stop)  # small: who starts a process waits until it has read them
            process = _CONTEXT.Process(target=_work, args=arguments, name=f"lcbench worker on {device}", daemon=True)
            with _interrupts_held():
                process.start()
            theirs.close()  # else the end of the worker would never show
            handing = threading.Thread(target=_hand_over, args=(ours, self._job), name="lcbench job", daemon=True)
            handing.start()
            self._workers.append(_Worker(process=process, pipe=ours, device=device, handing=handing))

    def work(self, should_stop: Callable[[], bool]) -> bool:
        """Until every group is answered, or a stop was asked for; says whether everything was answered."""
        whole = True
        while True:
            if not self._stop.value and should_stop():
                self._stop.value = 1
            busy = [worker for worker in self._workers if worker.item is not None]
            if not busy and (self._stop.value or not self._dispatch.waiting):
                return whole and not self._dispatch.waiting
            if not self._stop.value:
                self._hand_out()
            for pipe in wait([worker.pipe for worker in self._workers], timeout=_POLL_SECONDS):
                worker = next(one for one in self._workers if one.pipe is pipe)
                try:
                    kind, content = worker.pipe.recv()
                except (EOFError, OSError):
                    whole &= self._bury(worker)
                    continue
                whole &= self._dispatch.hear(worker, kind, content)

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.ready and worker.item is None and self._dispatch.waiting:
                item = self._dispatch.hand_out(worker)
                with contextlib.suppress(OSError):  # it has just died: its end shows on the pipe
                    worker.pipe.send(item)

    def _bury(self, worker: _Worker) -> bool:
        """A worker ended without being told to: its group goes to a fresh one, once. False when it stays undone."""
        self._workers.remove(worker)
        worker.process.join()
        worker.close()
        how = worker.problem or _how_it_ended(worker.process.exitcode)
        if worker.item is None:
            self._lost_loading += not worker.ready
            if self._lost_loading > 1:
                raise ModelError(
                    f"Worker processes end while they load the model ({how}).",
                    "There may be too little memory for so many: use fewer --workers.",
                )
        elif self._stop.value:
            return self._dispatch.lost(worker, how, stopping=True)
        else:
            self._dispatch.lost(worker, how, stopping=False)
        if self._dispatch.waiting and not self._stop.value:
            self.start([worker.device])
        return True


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that are started meanwhile never see Ctrl-C, not even while they import; it reaches this one later."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it later would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hand_over(pipe: Connection, job: bytes) -> None:
    """Send a worker its job. It is read once the worker has imported what it needs, or never, if it dies before."""
    with contextlib.suppress(OSError):  # its end shows where its messages are read
        pipe.send_bytes(job)


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


# -- the worker ------------------------------------------------------------------------------------------------------


def _work(device: str, pipe: Connection, stop: Any) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    try:
        job: Job = pipe.recv()
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        _answer(job, device, pipe, stop)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
    except LcbenchError as error:
        pipe.send(packed(error))
    except Exception as error:
        pipe.send(("crashed", sentence(error)))


def _answer(job: Job, device: str, pipe: Connection, stop: Any) -> None:
    loaded = Loaded(job, device, pipe.send, lambda: bool(stop.value))
    pipe.send(("ready", None))
    while (item := pipe.recv()) is not None:
        loaded.answer(item)


def _die_with(sentinel: int) -> None:
    """End this process as soon as its parent has ended, in the middle of whatever it is doing."""
    wait([sentinel])
    os._exit(1)
