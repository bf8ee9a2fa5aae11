"""``--engine ray``: the workers of a run are actors of a Ray cluster; this process alone writes.

An actor holds a loaded model and streams the messages of a group back (`engine.dispatch`), so records reach the disk
here as they do with ``--workers``. Scheduling, placement on nodes and restarts are Ray's.

    an actor or its node dies   Ray restarts the actor, where there is room; the rest of its group is tried again
    this process dies           its actors end with it; the same command continues the run
    Ctrl-C                      actors stop after the decoding step they are in
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine.answer import Listener
from lcbench.engine.dispatch import Desk, Dispatch, Job, Loaded, Message, each_message, packed
from lcbench.engine.groups import Group
from lcbench.engine.memory import Limits, measure_limits
from lcbench.engine.run import Outcome, Owing, Writer, owing, samples_of
from lcbench.errors import BadValue, LcbenchError, ModelError, UsageError
from lcbench.models.info import ModelInfo
from lcbench.models.load import describe
from lcbench.models.place import AUTO_MAP
from lcbench.store.rundir import RunDirectory

_POLL_SECONDS = 0.2
_TRIES = 3  # machines of a cluster are lost more often than processes of one's own
_LOADS = 3  # deaths of one actor over its model
_PAUSE_SECONDS = 1.0  # before an actor that is being restarted is asked again
_KNOCK_SECONDS = 10.0  # for a cluster's address to take a connection
_PATIENCE_SECONDS = 600.0  # for one to come back, where no other is at work


@dataclass(frozen=True)
class Crew:
    """What is asked of Ray.

    Attributes:
        workers: actors, each with the model. gpus: of each: 0, a share of one (0.5), or whole ones.
        cpus: of each, and threads of torch in one without a GPU.
    """

    workers: int
    gpus: float
    cpus: int

    @property
    def device(self) -> str:
        """Where an actor puts its model: Ray shows it its own GPUs alone, and counts them from 0."""
        return "cpu" if not self.gpus else "cuda:0" if self.gpus <= 1 else AUTO_MAP

    @classmethod
    def of(cls, spec: RunSpec) -> Crew:
        """Raises BadValue: numbers that Ray does not take. UsageError: a device that is not the actors'."""
        if spec.workers == "auto" or not (spec.workers.isascii() and spec.workers.isdigit() and int(spec.workers)):
            raise BadValue(
                f"--workers {spec.workers} is not a number of Ray actors.", "Write --engine ray --workers 4."
            )
        if spec.model.device not in ("auto", "cpu", "cuda"):
            raise UsageError(
                f"--device {spec.model.device} cannot be chosen for Ray actors.",
                "Leave --device out, and say with --ray-gpus how many GPUs each actor gets.",
            )
        if spec.ray_gpus is None:
            gpus = 1.0 if spec.model.device != "cpu" and torch.cuda.is_available() else 0.0
        else:
            gpus = spec.gpus_each
        if (spec.model.device == "cpu") > (gpus == 0) or (spec.model.device == "cuda") > (gpus > 0):
            raise UsageError(
                f"--device {spec.model.device} and --ray-gpus {gpus:g} contradict each other.", "Leave --device out."
            )
        return cls(int(spec.workers), gpus, spec.ray_cpus)

    @property
    def resources(self) -> dict[str, float]:
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


class Cluster:
    """A connection to Ray: the cluster of ``RAY_ADDRESS``, else one made now, of this process alone.

    A cluster that happens to run on this machine may be another command's own and end with it: it is joined only when
    asked for (``RAY_ADDRESS=auto``). The connection ends with this process, and a cluster that was made ends with it.

    Raises:
        UsageError: Ray is not installed, or the address is one of a client. ModelError: no cluster answers there.
    """

    def __init__(self, crew: Crew, say: Callable[[str], None]) -> None:
        self.crew, self._say = crew, say
        self._ray = _ray()
        if not self._ray.is_initialized():  # the models of a study share a connection
            self._connect()

    def _connect(self) -> None:
        address = os.environ.get("RAY_ADDRESS", "")
        if "://" in address:
            raise UsageError(
                f"RAY_ADDRESS={address} is for clients, and records could not stream back through it.",
                "Give this command on a machine of the cluster, e.g. with `ray job submit` (docs/cluster.md).",
            )
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address in ("", "local"):
            self._say("A Ray cluster is made here, for this run (RAY_ADDRESS=auto joins one of this machine).")
            self._ray.init(address="local", include_dashboard=False, **quiet)
        else:
            self._join(address, quiet)
        self._check_resources(made=address in ("", "local"))

    def _join(self, address: str, quiet: dict[str, Any]) -> None:
        step = "Check RAY_ADDRESS, or start it: ray start --head. Without RAY_ADDRESS a run makes a cluster of its own."
        try:
            _knock(address)
            self._ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:  # Ray's ConnectionError is an OSError
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            step += " If it wants a token: RAY_AUTH_MODE=token"
            raise ModelError(f"No Ray cluster answers at RAY_ADDRESS={address}: {text.rstrip('.')}.", step) from None
        self._say(f"Ray: the cluster at {self._ray.get_runtime_context().gcs_address}.")

    def _check_resources(self, *, made: bool) -> None:
        """Ray waits for ever for what a cluster never has; that may be right where machines are added on demand."""
        have = self._ray.cluster_resources()
        for what, name, each in (("GPUs", "GPU", self.crew.gpus), ("cores", "CPU", float(self.crew.cpus))):
            there = float(have.get(name, 0))
            if each > there and made:
                self._ray.shutdown()
                raise UsageError(
                    f"A Ray actor is to have {each:g} {what}, and there are {there:g} here.",
                    "Change --ray-gpus or --ray-cpus, or join a cluster: RAY_ADDRESS=HOST:PORT.",
                )
            if each * self.crew.workers > there:
                wanted = f"{self.crew.workers} actors want {each * self.crew.workers:g} {what}"
                self._say(f"{wanted}, and the cluster has {there:g} now: some wait until there are more.")
            elif not made and each * self.crew.workers > (free := float(self._ray.available_resources().get(name, 0))):
                wanted = f"{self.crew.workers} actors want {each * self.crew.workers:g} {what}"
                self._say(f"{wanted}, and others leave {free:g} of the cluster's {there:g} free: some wait for them.")

    def describe(
        self, spec: ModelSpec, home: Path, *, say: Callable[[str], None], turned_by: Sequence[str]
    ) -> tuple[ModelInfo, Any]:
        """Facts of the model as an actor will have it, and its tokenizer; as `models.load.describe`."""
        there = replace(spec, device=self.crew.device)
        if self.crew.device == "cpu" or torch.cuda.is_available():
            return describe(there, home, say=say, turned_by=turned_by)
        # The machine of this process has no GPU: an actor's machine tells. The tokenizer is the same everywhere.
        here = replace(spec, device="cpu", attn="sdpa", load_in=None)
        _, tokenizer = describe(here, home, say=say)
        return self._elsewhere(_facts, there, home, tuple(turned_by)), tokenizer

    def limits(self, info: ModelInfo) -> Limits:
        """How large groups may be: by the memory that is free where an actor will be, and by its share of a GPU."""
        if self.crew.device == "cpu":
            return measure_limits(info, workers=self.crew.workers)
        found: Limits = self._elsewhere(measure_limits, info)
        if self.crew.gpus >= 1:
            return found
        share = self.crew.gpus
        return replace(found, nbytes=max(2**26, int(share * found.nbytes - (1 - share) * info.weight_bytes)))

    def _elsewhere(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns on a machine with an actor's resources."""
        remote = self._ray.remote(**self.crew.resources)(_told)
        content = self._ray.get(remote.remote(work, *arguments))
        if isinstance(content, LcbenchError):
            raise content
        return content

    def execute(
        self,
        job: Job,
        info: ModelInfo,
        groups: Sequence[Group],
        run: RunDirectory,
        *,
        listener: Listener | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Outcome:
        """As `engine.run.execute`, by the actors.

        Raises:
            LcbenchError: what stops a run of one process stops this one. ModelError also when actors die while they
                load.
        """
        todo = owing(job.sets, groups, run)
        outcome = Outcome(reused=samples_of(job.sets, groups) - sum(len(item.wanted) for item in todo))
        writer = Writer(run, todo, outcome, listener)
        dispatch = Dispatch(job, info, writer, todo, listener, tries=_TRIES)
        threads = self.crew.cpus if self.crew.device == "cpu" else None
        actors = _Actors(self._ray, self.crew, replace(job, threads=threads), dispatch)
        try:
            actors.start(min(self.crew.workers, len(todo)))
            outcome.interrupted = not actors.work(should_stop or (lambda: False))
        finally:
            actors.end()
        return outcome


def _ray() -> Any:
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "--engine ray needs the package ray, which is not installed.", "Run: pip install 'lcbench[ray]'"
        )
    import ray

    return ray


def _knock(address: str) -> None:
    """Raises OSError, ValueError: nothing listens at HOST:PORT. Ray itself would go on trying, without a word."""
    if address == "auto":  # Ray looks for it on this machine
        return
    place = urlsplit(f"//{address}")
    if not place.hostname or not place.port:
        raise ValueError("it is not HOST:PORT, auto or local")
    with socket.create_connection((place.hostname, place.port), timeout=_KNOCK_SECONDS):
        pass


def _facts(spec: ModelSpec, home: Path, turned_by: Sequence[str]) -> ModelInfo:
    return describe(spec, home, with_tokenizer=False, turned_by=turned_by)[0]


def _told(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` returns, or the user's error it raises, made of two texts so that it can travel."""
    try:
        return work(*arguments)
    except LcbenchError as error:
        return LcbenchError(error.message, error.next_step)


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
            if not busy and (self._stopping or not self._dispatch.queue):
                return self._whole and not self._dispatch.queue
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
            if actor.ready and actor.item is None and self._dispatch.queue:
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
