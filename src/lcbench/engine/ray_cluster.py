"""A Ray cluster for a run: what is asked of it, joining or making it, and what its machines tell of a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine.memory import Limits, measure_limits
from lcbench.engine.ray_address import OWN, cluster_address, no_cluster
from lcbench.errors import BadValue, LcbenchError, UsageError
from lcbench.models.info import ModelInfo
from lcbench.models.load import describe
from lcbench.models.place import AUTO_MAP

_OF_A_CLUSTER = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# Something that speaks gRPC and is no Ray is asked so often, a second apart, with a line on the screen each time.
_OF_ANOTHERS = {"RAY_NUM_REDIS_GET_RETRIES": "4"}


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

    Attributes:
        ray: the module. crew: what is asked of it.

    Raises:
        UsageError: Ray is not installed, the address is one of a client, or a cluster made here has too little for an
            actor. ModelError: no cluster answers there, or none could be made.
    """

    def __init__(self, crew: Crew, say: Callable[[str], None]) -> None:
        self.crew, self._say = crew, say
        address = cluster_address()
        for name, value in (_OF_A_CLUSTER | ({} if address == OWN else _OF_ANOTHERS)).items():
            os.environ.setdefault(name, value)  # which Ray reads when it is imported
        import ray

        self.ray: Any = ray
        if not ray.is_initialized():  # the models of a study share a connection
            self._connect(address)

    def _connect(self, address: str) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == OWN:
            self._say("A Ray cluster is made here, for this run (RAY_ADDRESS=auto joins one of this machine).")
            quiet["include_dashboard"] = False
        try:
            self.ray.init(address=address, **quiet)
        except Exception as error:  # of many kinds, Exception itself among them
            raise no_cluster(address, error) from None
        if address != OWN:
            self._say(f"Ray: the cluster at {self.ray.get_runtime_context().gcs_address}.")
        self._check_resources(made=address == OWN)

    def _check_resources(self, *, made: bool) -> None:
        """Ray waits for ever for what a cluster never has; that may be right where machines are added on demand."""
        have = self.ray.cluster_resources()
        for what, name, each in (("GPUs", "GPU", self.crew.gpus), ("cores", "CPU", float(self.crew.cpus))):
            there = float(have.get(name, 0))
            if each > there and made:
                self.ray.shutdown()
                raise UsageError(
                    f"A Ray actor is to have {each:g} {what}, and there are {there:g} here.",
                    "Change --ray-gpus or --ray-cpus, or join a cluster: RAY_ADDRESS=HOST:PORT.",
                )
            wanted = each * self.crew.workers
            asked = f"{self.crew.workers} actors want {wanted:g} {what}"
            if wanted > there:
                self._say(f"{asked}, and the cluster has {there:g} now: some wait until there are more.")
            elif not made and wanted > (free := float(self.ray.available_resources().get(name, 0))):
                self._say(f"{asked}, and others leave {free:g} of the cluster's {there:g} free: some wait for them.")

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
        remote = self.ray.remote(**self.crew.resources)(_told)
        content = self.ray.get(remote.remote(work, *arguments))
        if isinstance(content, LcbenchError):
            raise content
        return content


def _facts(spec: ModelSpec, home: Path, turned_by: Sequence[str]) -> ModelInfo:
    return describe(spec, home, with_tokenizer=False, turned_by=turned_by)[0]


def _told(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` returns, or the user's error it raises, made of two texts so that it can travel."""
    try:
        return work(*arguments)
    except LcbenchError as error:
        return LcbenchError(error.message, error.next_step)
