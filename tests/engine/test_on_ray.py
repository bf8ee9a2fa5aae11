"""``--engine ray`` on a cluster of this machine: two actors, one killed in the middle, the bytes of a local run."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from made_up import LIMITS, Half
from test_workers import ROWS, Deadly, Many, go, predictions, tokens

from lcbench.config.spec import ModelSpec, RunSpec, make_spec
from lcbench.engine import on_ray, ray_address
from lcbench.engine.dispatch import Job, execute_by
from lcbench.engine.groups import make_groups
from lcbench.engine.memory import Limits
from lcbench.engine.on_ray import Actors, _Actor, _Actors
from lcbench.engine.options import Options
from lcbench.engine.prepare import prepare
from lcbench.engine.ray_address import cluster_address
from lcbench.engine.ray_cluster import Cluster, Crew
from lcbench.errors import BadValue, LcbenchError, ModelError, UsageError
from lcbench.methods.base import Method
from lcbench.models.load import describe
from lcbench.store.rundir import RunDirectory
from tiny import loaded_tiny, save_tiny

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Ray on this machine, ended afterwards; its actors find the tests' modules."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # On a busy machine: no worker is killed for the memory of others, and none is given up because it starts slowly.
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    monkeypatch.setenv("RAY_worker_register_timeout_seconds", "300")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=2, object_store_memory=2**27, **quiet)
    try:
        yield Cluster(Crew(workers=2, gpus=0.0, cpus=1), say=lambda text: None)
    finally:
        ray.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(600)  # starts a cluster and four processes, half a minute each on a very busy machine
def test_a_killed_actor_costs_time_and_nothing_else(cluster: Cluster, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    once, always = tokens(10), tokens(1)
    harmless: list[Method] = [Half(), Deadly(str(tmp_path), once, 0), Deadly(str(tmp_path), always, 0)]
    deadly: list[Method] = [Half(), Deadly(str(tmp_path), once, 1), Deadly(str(tmp_path), always, 0)]
    go(folder, tmp_path / "one", harmless, 1)

    spec = RunSpec(model=ModelSpec(name=str(folder)))
    info, tokenizer = describe(spec.model, tmp_path)
    sets = tuple(prepare(spec, info, tokenizer, deadly, [(Many(), Many().load(tmp_path))], tmp_path))
    groups = make_groups(sets, info.shape(), LIMITS)
    job = Job(spec.model, tmp_path, sets, Options(), 2**30)
    said = {"methods": [method.id for method in deadly], "tasks": ["many"]}
    events: list[str] = []
    with RunDirectory.create_or_continue(tmp_path / "two", said, {}) as run:
        outcome = execute_by(Actors(cluster), job, info, groups, run, listener=lambda event: events.append(event.kind))
        assert (outcome.written, outcome.failed, outcome.interrupted) == (3 * ROWS, 0, False)
        assert [(e["event"], e["then"]) for e in run.events()] == [("worker_died", "tried again")]
        assert "Ray" in run.events()[0]["how"]
    assert len(list(tmp_path.glob(f"deadly-{once}-*"))) == 1, "an actor was killed"
    assert predictions(tmp_path / "two") == predictions(tmp_path / "one")
    assert {"prefill", "decode", "sample", "group"} <= set(events), "progress comes while a group is answered"

    alone = Cluster(Crew(workers=1, gpus=0.0, cpus=1), say=lambda text: None)
    with RunDirectory.create_or_continue(tmp_path / "stopped", said, {}) as run:
        seen: list[str] = []
        stopped = execute_by(
            Actors(alone),
            job,
            info,
            groups,
            run,
            listener=lambda event: seen.append(event.kind),
            should_stop=lambda: "sample" in seen,
        )
        assert stopped.interrupted
        assert 0 < stopped.written < 3 * ROWS
    continued, _ = go(folder, tmp_path / "stopped", harmless, 1)  # by whatever engine
    assert (continued.reused, continued.written) == (stopped.written, 3 * ROWS - stopped.written)
    assert predictions(tmp_path / "stopped") == predictions(tmp_path / "one")


def test_what_is_asked_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def crew(**given: object) -> Crew:
        return Crew.of(make_spec({"model": "m", "engine": "ray", **given}))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert crew(workers="3") == Crew(3, 0.0, 1)
    assert crew(workers=4, ray_gpus=0.5, ray_cpus=2, device="cuda") == Crew(4, 0.5, 2)
    assert [crew(ray_gpus=gpus).device for gpus in ("0", "0.25", "1", "2")] == ["cpu", "cuda:0", "cuda:0", "auto-map"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert crew().gpus == 1
    assert crew(device="cpu").gpus == 0
    for wrong in ("1.5", "-1", "nan", "inf", "many"):
        with pytest.raises(BadValue, match="--ray-gpus"):
            crew(ray_gpus=wrong)
    with pytest.raises(BadValue, match="--workers auto"):
        crew(workers="auto")
    for given in ({"device": "cuda:1"}, {"device": "cpu", "ray_gpus": "1"}, {"device": "cuda", "ray_gpus": "0"}):
        with pytest.raises(UsageError):
            crew(**given)


class Unreachable(Exception):
    """As Ray says it of an actor that it is starting again."""


class StandIn:
    """Ray with one actor, whose calls give what is written down here, one after another."""

    exceptions = SimpleNamespace(RayError=Unreachable)

    def __init__(self, **calls: list[list[Any]]) -> None:
        self._calls = calls

    def __getattr__(self, call: str) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: iter(self._calls[call].pop(0))))

    def wait(self, streams: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return streams, []

    def get(self, message: Any) -> Any:
        if isinstance(message, Exception):
            raise message
        return message


def work_of(ray: StandIn, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, list[str]]:
    """One actor and one group: whether it was answered, and how often its actor was lost over it."""
    lost: list[str] = []

    def hear(desk: Any, kind: str, content: Any) -> bool:
        desk.ready |= kind == "ready"
        desk.item = None if kind == "done" else desk.item
        return True

    def lose(desk: Any, how: str, *, stopping: bool) -> bool:
        held.append(desk.item)
        dispatch.waiting = len(held)
        desk.item = None
        lost.append(how)
        return True

    def hand_out(desk: Any) -> Any:
        desk.item = held.pop()
        dispatch.waiting = len(held)
        return desk.item

    held: list[Any] = ["group"]
    dispatch = SimpleNamespace(waiting=1, hear=hear, lost=lose, hand_out=hand_out)
    monkeypatch.setattr(on_ray, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(on_ray, "_POLL_SECONDS", 0.0)
    actors = _Actors.__new__(_Actors)
    actors._ray, actors._dispatch, actors._job = ray, cast(Any, dispatch), None
    actors._stopping, actors._whole = False, True
    actors._actors = [_Actor(handle=ray, asked=time.monotonic())]
    actors._wake(actors._actors[0])
    return actors.work(lambda: False), lost


LOADED, GONE = [("loading", None), ("ready", None)], Unreachable("the actor is restarting")


def test_an_actor_that_comes_back_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses calls while an actor is being started again, at once and as often as it is asked."""
    ready = [LOADED, *[[GONE]] * 20, [("loading", None), GONE], [GONE], [("loading", None), GONE], LOADED]
    ray = StandIn(ready=ready, answer=[[("result", 1), GONE], [("result", 1), ("done", None)]])
    assert work_of(ray, monkeypatch) == (True, ["Unreachable: the actor is restarting"])
    assert not ready


def test_an_actor_that_dies_over_its_model_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    dying: list[list[Any]] = [[("loading", None), GONE], [GONE]] * 3
    with pytest.raises(ModelError, match="while they load the model"):
        work_of(StandIn(ready=dying), monkeypatch)
    assert len(dying) == 1, "three deaths; refused calls do not count"
    monkeypatch.setattr(on_ray, "_PATIENCE_SECONDS", 0.0)
    with pytest.raises(ModelError, match="has come back") as told:
        work_of(StandIn(ready=[[GONE], [GONE]]), monkeypatch)
    assert "the same command" in told.value.next_step


@pytest.mark.parametrize("gpus", [0.5, 0.25, 1.0, 2.0])
def test_a_share_of_a_gpu_is_a_share_of_its_memory(gpus: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several actors on one GPU weights and groups together need what one of them would have had."""
    whole, weights = Limits(rows=128, tokens=2**18, nbytes=60 * 2**30), 4 * 2**30
    cluster = Cluster.__new__(Cluster)  # connected to nothing
    cluster.crew = Crew(workers=4, gpus=gpus, cpus=1)
    monkeypatch.setattr(cluster, "_elsewhere", lambda work, info: whole)
    info = replace(loaded_tiny().info, weight_bytes=weights)
    found = cluster.limits(info)
    on_one = max(1, int(1 / gpus))
    assert on_one * (found.nbytes + weights) == whole.nbytes + weights
    assert (found.rows, found.tokens) == (whole.rows, whole.tokens)
    assert cluster.crew.resources == {"num_cpus": 1, "num_gpus": gpus}


def test_who_answers_is_no_part_of_what_is_asked() -> None:
    one = make_spec({"model": "m"})
    two = make_spec({"model": "m", "engine": "ray", "workers": 8, "ray_gpus": 0.5, "ray_cpus": 3})
    assert one.to_dict() == two.to_dict()


def test_ray_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LcbenchError, match="not installed") as refused:
        Cluster(Crew(1, 0.0, 1), say=lambda text: None)
    assert "lcbench[ray]" in refused.value.next_step


@needs_ray
def test_a_client_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://somewhere:10001")
    with pytest.raises(UsageError, match="for clients"):
        Cluster(Crew(1, 0.0, 1), say=lambda text: None)


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "nowhere.invalid:6379", "6379", "127.0.0.1", "[::1"])
def test_an_address_without_a_cluster_is_told_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:  # bound, and not listening: connections are refused
        free.bind(("127.0.0.1", 0))
        refusal = refused(monkeypatch, address.format(port=free.getsockname()[1]))
    assert "ray start --head" in refusal.next_step


@needs_ray
@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"])
def test_another_program_at_the_address_is_told_at_once(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says nothing, one that hangs up, a web server; Ray would try each of them for minutes."""
    monkeypatch.setattr(ray_address, "_KNOCK_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            if answer is not None:
                connection.sendall(answer)
                connection.close()
            kept.append(connection)

        kept: list[socket.socket] = []
        thread = Thread(target=serve)
        thread.start()
        refusal = refused(monkeypatch, f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()
        kept[0].close()
    assert refusal.message.endswith(": what listens there is another program.")


def refused(monkeypatch: pytest.MonkeyPatch, address: str) -> LcbenchError:
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(ModelError, match="No Ray cluster answers at RAY_ADDRESS=") as refusal:
        cluster_address()
    assert time.monotonic() - began < 10
    assert "\n" not in refusal.value.message
    return refusal.value


@needs_ray
def test_a_dead_address_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom lcbench.cli import app\n"
        "try: app(sys.argv[1:], standalone_mode=False)\n"
        "except Exception as error: print(type(error).__name__, 'torch' in sys.modules)"
    )
    words = ["run", "--model", str(tmp_path), "--engine", "ray"]
    env = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1", "LCBENCH_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ModelError", "False"]


@needs_ray
def test_a_cluster_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(address: str, **_: object) -> None:
        raise Exception("The current node timed out during startup.\nSee the logs.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ModelError, match="could not be made here: The current node timed out during startup"):
        Cluster(Crew(1, 0.0, 1), say=lambda text: None)


@needs_ray
@pytest.mark.parametrize(("env", "joined"), [(None, "local"), ("local", "local"), ("auto", "auto")])
def test_a_cluster_of_another_is_joined_only_when_asked(
    env: str | None, joined: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    asked: list[str] = []

    def init(address: str, **_: object) -> None:
        asked.append(address)
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if env is not None:
        monkeypatch.setenv("RAY_ADDRESS", env)
    with pytest.raises(KeyboardInterrupt):
        Cluster(Crew(1, 0.0, 1), say=lambda text: None)
    assert asked == [joined]
