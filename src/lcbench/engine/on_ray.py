"""``--engine ray``: the workers of a run are actors of a Ray cluster; this process alone writes.

An actor holds a loaded model and streams the messages of a group back (`engine.dispatch`), so records reach the disk
here as they do with ``--workers``. Scheduling, placement on nodes and restarts are Ray's.

    an actor or its node dies   Ray restarts the actor, where there is room; the rest of its group is tried again
    this process dies           its actors end with it; the same command continues the run
    Ctrl-C                      actors stop after the decoding step they are in
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from lcbench.engine.dispatch import Desk, Dispatch, Job, Loaded, Message, Work, each_message, packed
from lcbench.engine.ray_cluster import Cluster, Crew
from lcbench.engine.run import Owing
from lcbench.errors import LcbenchError, ModelError

_POLL_SECONDS = 0.2
_LOADS = 3  # deaths of one actor over its model
_PAUSE_SECONDS = 1.0  # before an actor that is being restarted is asked again
_PATIENCE_SECONDS = 600.0  # for one to come back, where no other is at work


@dataclass(frozen=True)
class Actors:
    """A `Team` of Ray actors."""

    cluster: Cluster
    tries: ClassVar[int] = 3  # machines of a cluster are lost more often than processes of one's own

    @property
    def threads(self) -> int | None:
        """The cores of an actor without a GPU."""
        crew = self.cluster.crew
        return crew.cpus if crew.device == "cpu" else None

    @contextlib.contextmanager
    def at_work(self, job: Job, dispatch: Dispatch, groups: int) -> Iterator[Work]:
        actors = _Actors(self.cluster.ray, self.cluster.crew, job, dispatch)
        try:
            actors.start(min(self.cluster.crew.workers, groups))
            yield actors.work
        finally:
            actors.end()


# -- here ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Actor(Desk):
    """Attributes: handle: of Ray. stream: messages of its group, or about its model; None while it rests.
    loading: it has begun to load its model. deaths: over that, one after another. asked: since when it is asked to
    load, by `time.monotonic`; again: when it is asked once more."""

    handle: Any = None
    stream: Any = field(default=None)
    loading: bool = False
    deaths: int = 0
    asked: float = 0.0
    again: float | None = None


class _Actors:
    """All actors of a run."""

    def __init__(self, ray: Any, crew: Crew, job: Job, dispatch: Dispatch) -> None:
        self._ray, self._crew, self._dispatch = ray, crew, dispatch
        self._job = ray.put(job)  # prompts travel once a machine
        self._actors: list[_Actor] = []
        self._stopping = False
        self._whole = True

    def start(self, count: int) -> None:
        remote = self._ray.remote(max_restarts=-1, concurrency_groups={"control": 1}, **self._crew.resources)
        cls = remote(_worker_class(self._ray))
        for _ in range(count):
            actor = _Actor(handle=cls.remote(self._crew.device), asked=time.monotonic())
            self._wake(actor)
            self._actors.append(actor)

    def _wake(self, actor: _Actor) -> None:
        """Ask an actor to load its model."""
        actor.ready, actor.loading, actor.again = False, False, None
        actor.stream = actor.handle.ready.options(num_returns="streaming").remote(self._job)

    def work(self, should_stop: Callable[[], bool]) -> bool:
        """Until every group is answered, or a stop was asked for; says whether everything was answered."""
        while True:
            if not self._stopping and should_stop():
                self._stopping = True
                for actor in self._actors:
                    actor.handle.stop.remote()
            busy = [actor for actor in self._actors if actor.item is not None]
            if not busy and (self._stopping or not self._dispatch.waiting):
                return self._whole and not self._dispatch.waiting
            if not self._stopping:
                self._hand_out()
            streams = {actor.stream: actor for actor in self._actors if actor.stream is not None}
            if not streams:
                time.sleep(_POLL_SECONDS)
                continue
            ready, _ = self._ray.wait(list(streams), timeout=_POLL_SECONDS)
            for stream in ready:
                self._hear(streams[stream])

    def _hand_out(self) -> None:
        for actor in self._actors:
            if actor.again is not None and time.monotonic() >= actor.again:
                self._wake(actor)
            if actor.ready and actor.item is None and self._dispatch.waiting:
                item = self._dispatch.hand_out(actor)
                actor.stream = actor.handle.answer.options(num_returns="streaming").remote(item)

    def _hear(self, actor: _Actor) -> None:
        """Take the next message of an actor, or notice that it has died."""
        errors = self._ray.exceptions
        try:
            kind, content = self._ray.get(next(actor.stream))
        except (errors.RayError, StopIteration) as error:
            self._lost(actor, error)
            return
        if kind == "loading":
            actor.loading = True
            return
        self._whole &= self._dispatch.hear(actor, kind, content)
        if kind in ("ready", "done"):
            actor.stream, actor.deaths = None, 0

    def _lost(self, actor: _Actor, error: BaseException) -> None:
        problem = actor.problem or _in_words(error)
        if actor.item is None:
            self._lost_without_model(actor, problem)
            return
        self._whole &= self._dispatch.lost(actor, problem, stopping=self._stopping)
        actor.problem, actor.asked = "", time.monotonic()
        self._wake(actor)

    def _lost_without_model(self, actor: _Actor, problem: str) -> None:
        """It died over its model; or it is not there yet: Ray refuses calls to an actor that it is starting again, and
        starting takes minutes on a busy machine, or until there is room for it."""
        if actor.loading:
            actor.deaths, actor.asked = actor.deaths + 1, time.monotonic()
        if actor.deaths >= _LOADS:
            raise ModelError(
                f"Ray actors end while they load the model ({problem}).",
                "There may be too little memory for so many: use fewer --workers, or see Ray's logs.",
            )
        alone = not any(other.ready or other.item is not None for other in self._actors)
        if alone and time.monotonic() - actor.asked > _PATIENCE_SECONDS:
            raise ModelError(
                f"No Ray actor has come back for {_PATIENCE_SECONDS / 60:.0f} minutes ({problem}).",
                "See `ray status` and Ray's logs; then give the same command again: it goes on where it was.",
            )
        actor.stream, actor.again = None, time.monotonic() + _PAUSE_SECONDS

    def end(self) -> None:
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor.handle)


def _in_words(error: BaseException) -> str:
    if isinstance(error, StopIteration):
        return "its Ray actor ended"
    known = {
        "OutOfMemoryError": "Ray killed it for memory",
        "NodeDiedError": "its machine was lost",
        "ActorDiedError": "its Ray actor died",
        "ActorUnavailableError": "its Ray actor could not be reached",
    }
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return known.get(type(error).__name__) or f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


# -- there -----------------------------------------------------------------------------------------------------------


class _WorkerOnRay:
    """The actor. It is told to load its model before the first group, and again after a restart."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._stop = threading.Event()
        self._loaded: Loaded | None = None

    def ready(self, job: Job) -> Iterator[Message]:
        """``loading``, then ``ready`` when the model is loaded, or why it cannot be."""
        yield ("loading", None)
        if self._loaded is None:
            if job.threads is not None:
                torch.set_num_threads(job.threads)
            try:
                self._loaded = Loaded(job, self._device, lambda message: None, self._stop.is_set)
            except LcbenchError as error:
                yield packed(error)
                return
        yield ("ready", None)

    def answer(self, item: Owing) -> Iterator[Message]:
        """The messages of a group, ``done`` last."""
        if self._loaded is None:
            raise RuntimeError("restarted in between")  # the parent asks it to load, and tries the group again
        try:
            yield from each_message(self._loaded, item)
        except LcbenchError as error:
            yield packed(error)

    def stop(self) -> None:
        """End the group that is being answered after the present decoding step."""
        self._stop.set()


def _worker_class(ray: Any) -> type[Any]:
    """`_WorkerOnRay`, whose ``stop`` runs beside ``answer``."""

    class LcbenchWorker(_WorkerOnRay):
        @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
        def stop(self) -> None:
            super().stop()

    return LcbenchWorker
