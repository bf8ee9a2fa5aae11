"""Several processes: the same bytes as one, also when a worker or the parent is killed, stopped or asked to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import LIMITS, Half, Words

from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine import workers
from lcbench.engine.ahead import Ahead
from lcbench.engine.dispatch import Desk, Dispatch, Job, execute_by, unpacked
from lcbench.engine.groups import Group, make_groups
from lcbench.engine.options import Options
from lcbench.engine.outcome import Event, Listener
from lcbench.engine.prepare import prepare
from lcbench.engine.run import Outcome, Owing, execute
from lcbench.engine.workers import Processes, devices_of
from lcbench.errors import BadValue, LcbenchError, ModelError, UnknownName
from lcbench.kv.cache import KVCache
from lcbench.kv.record import PrefillRecord
from lcbench.methods.base import Method
from lcbench.models.load import describe, load
from lcbench.store.rundir import RunDirectory
from lcbench.tasks.base import Loaded, Row
from tiny import save_tiny

ROWS = 12


class Many(Words):
    """Twelve short prompts of different lengths: with `LIMITS` and two methods three groups."""

    name = "many"

    def load(self, home: Path, limit: int | None = None) -> Loaded:
        rows = [Row(f"r{i}", {"text": f"row {i} " * (6 + i)}, (f"row {i}",), length=2 * i) for i in range(ROWS)]
        return Loaded(rows[:limit])


@dataclass(frozen=True)
class Deadly(Half):
    """Kills its process at a prompt of some length, until it has done so ``times`` times; writes who did it."""

    name = "deadly"
    folder: str = ""
    length: int = 0
    times: int = 1

    @property
    def id(self) -> str:
        return f"deadly-{self.length}"

    def compress(self, record: PrefillRecord) -> KVCache:
        marks = list(Path(self.folder).glob(f"{self.id}-*"))
        if record.length == self.length and len(marks) < self.times:
            (Path(self.folder) / f"{self.id}-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compress(record)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def tokens(row: int) -> int:
    """Length of a prompt: a byte a token, and the BOS."""
    return len(f"row {row} " * (6 + row)) + 1


def go(
    folder: Path, path: Path, methods: list[Method], count: int, listener: Listener | None = None
) -> tuple[Outcome, RunDirectory]:
    """Run ``methods`` on `Many` into ``path``; with a count of 1 in this process."""
    spec = RunSpec(model=ModelSpec(name=str(folder)))
    info, tokenizer = describe(spec.model, path.parent)
    sets = tuple(prepare(spec, info, tokenizer, methods, [(Many(), Many().load(path))], path))
    groups = make_groups(sets, info.shape(), LIMITS)
    assert len(groups) >= 2
    with RunDirectory.create_or_continue(path, {"methods": [m.id for m in methods], "tasks": ["many"]}, {}) as run:
        if count == 1:
            return execute(load(spec.model, path.parent), sets, groups, run, options=Options()), run
        job = Job(spec.model, path.parent, sets, Options(), 2**30)
        return execute_by(Processes(("cpu",) * count), job, info, groups, run, listener=listener), run


def predictions(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted((path / "predictions").rglob("*.jsonl"))}


@pytest.mark.timeout(600)  # starts five processes, half a minute each on a very busy machine
def test_killed_workers_cost_time_or_their_group_and_never_the_run(folder: Path, tmp_path: Path) -> None:
    """One prompt kills a worker once, another one kills every worker that reads it."""
    once, always = tokens(10), tokens(1)
    deadly: list[Method] = [Half(), Deadly(str(tmp_path), once, 1), Deadly(str(tmp_path), always, 99)]
    harmless: list[Method] = [Half(), Deadly(str(tmp_path), once, 0), Deadly(str(tmp_path), always, 0)]
    go(folder, tmp_path / "one", harmless, 1)
    told: list[Event] = []
    outcome, run = go(folder, tmp_path / "two", deadly, 2, listener=told.append)
    died = [event.error or "" for event in told if event.kind == "died"]
    assert sorted(text.rpartition(" are ")[2] for text in died) == ["recorded as errors", "tried again", "tried again"]
    assert all(text.startswith("killed by SIGKILL; ") for text in died)
    assert len(list(tmp_path.glob(f"deadly-{once}-*"))) == 1
    assert len(list(tmp_path.glob(f"deadly-{always}-*"))) == 2
    bad = [r for m in run.methods for r in run.records(m, "many") if not r.ok]
    assert (outcome.written, outcome.failed) == (3 * ROWS, len(bad))
    assert "r1" in {r.id for r in bad}
    assert "r10" not in {r.id for r in bad}
    assert {r.error for r in bad} == {"the worker process died twice on this group (killed by SIGKILL)"}
    events = [(e["how"], e["then"]) for e in run.events()]
    assert sorted(then for _, then in events) == ["recorded as errors", "tried again", "tried again"]
    assert {how for how, _ in events} == {"killed by SIGKILL"}
    # Lines lie where one process writes them, and those that could be made are the same.
    for (name, expected), (other, found) in zip(
        predictions(tmp_path / "one").items(), predictions(tmp_path / "two").items(), strict=True
    ):
        assert name == other
        for line, theirs in zip(found.splitlines(), expected.splitlines(), strict=True):
            record = json.loads(line)
            assert record["_id"] == json.loads(theirs)["_id"]
            assert record["status"] == "error" or line == theirs
    outcome, run = go(folder, tmp_path / "two", harmless, 1)  # the same command tries them again
    assert (outcome.written, outcome.failed) == (len(bad), 0)
    assert all(r.ok for m in run.methods for r in run.records(m, "many"))


# -- the command, with signals ----------------------------------------------------------------------------------------

TASK = "passkey@lengths=20/60,depths=5,repeats=10,digits=3,max_new_tokens=24"


def command(folder: Path, out: Path, *more: str) -> list[str]:
    words = ["run", "--model", str(folder), "--method", "full,streamingllm@budget=16", "--task", TASK]
    words += ["--group-memory", "160MiB"]  # groups of a few prompts, so that something is left when a signal comes
    return [sys.executable, "-m", "lcbench", *words, "--out", str(out), *more]


class AfterSome:
    """Whether a run directory holds some records."""

    def __init__(self, path: Path, records: int) -> None:
        self.path, self.records = path, records

    def __call__(self) -> bool:
        return sum(data.count(b"\n") for data in predictions(self.path).values()) >= self.records


def started(arguments: Sequence[str], records: int, out: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """The running command and its worker processes, once so many records are on the disk."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    enough, until = AfterSome(out, records), time.monotonic() + 240
    while not enough():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    return process, workers_of(process)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Its worker processes, whatever they are about."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if "spawn_main" in _command_line(int(pid))]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def ended(pid: int, seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if "spawn_main" not in _command_line(pid):  # gone, a zombie, or another program by now
            return True
        time.sleep(0.05)
    return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")


@needs_proc
@pytest.mark.timeout(600)
def test_signals_to_the_command(folder: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    assert cli(*command(folder, tmp_path / "one")[3:], "--quiet").code == 0
    expected = predictions(tmp_path / "one")

    parent, crew = started(command(folder, tmp_path / "two", "--workers", "2"), 3, tmp_path / "two")
    assert len(crew) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    assert all(ended(pid) for pid in crew)
    part = predictions(tmp_path / "two")
    assert all(expected[name].startswith(data) or data.startswith(b"{") for name, data in part.items())

    parent, crew = started(command(folder, tmp_path / "two", "--workers", "2"), 60, tmp_path / "two")
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: everyone gets it
    said = parent.communicate(timeout=120)[0]
    assert parent.returncode == 130, said
    assert "Traceback" not in said
    assert "To continue, run the same command" in said
    assert all(ended(pid) for pid in crew)

    assert cli(*command(folder, tmp_path / "two")[3:], "--quiet").code == 0  # one worker finishes what two began
    assert predictions(tmp_path / "two") == expected


@needs_proc
@pytest.mark.timeout(300)
def test_an_interrupt_while_workers_import(folder: Path, tmp_path: Path) -> None:
    words = command(folder, tmp_path / "run", "--workers", "2")
    parent = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    until = time.monotonic() + 200
    while not workers_of(parent):
        assert parent.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(parent.pid, signal.SIGINT)
    said = parent.communicate(timeout=60)[0]
    assert parent.returncode == 130, said
    assert "Traceback" not in said


@pytest.mark.timeout(300)
def test_a_worker_that_dies_before_it_has_read_its_job(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    real, killed = workers._Crew.start, []

    def start(crew: Any, devices: Sequence[str]) -> None:
        crew._job += b"." * 10**7  # behind the end of the job: more than a pipe holds
        real(crew, devices)
        if not killed:
            killed.append(crew._workers[0].process)
            killed[0].kill()

    monkeypatch.setattr(workers._Crew, "start", start)
    outcome, run = go(folder, tmp_path / "run", [Half()], 2)
    assert killed[0].exitcode == -signal.SIGKILL
    assert (outcome.written, outcome.failed) == (ROWS, 0)
    assert all(record.ok for record in run.records("half", "many"))


def test_a_worker_keeps_its_next_group_unless_another_is_free() -> None:
    class Parts(Dispatch):
        """Groups one to five, without a run."""

        def __init__(self) -> None:
            groups = [Group(i, 0, (i,), ((0,),), ((),), 1, 1) for i in range(5)]
            self._queue, self._kept = deque(Owing(group, frozenset([(0, 0)])) for group in groups), {}

    dispatch, a, b, c = Parts(), Desk(), Desk(), Desk()

    def given(desk: Desk) -> tuple[int, int | None]:
        item = dispatch.hand_out(desk)
        return item.group.index, None if item.following is None else item.following.index

    assert given(a) == (0, 1)
    assert given(b) == (2, 3)
    assert dispatch.waiting == 3
    assert given(a) == (1, 4)
    assert given(c) == (3, None)  # b was to have it
    assert given(b) == (4, None)
    assert dispatch.waiting == 0


def test_ahead_forgets_what_others_took() -> None:
    ahead = Ahead(torch.device("cpu"))
    for name in "abc":
        ahead.ask(name, [1])
    ahead.keep("b")
    assert set(ahead._coming) == {"b"}


# -- small things ------------------------------------------------------------------------------------------------------


def test_what_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of("auto", "auto", "cpu") == ["cpu"]
    assert devices_of("3", "cpu", "cpu") == ["cpu"] * 3
    assert devices_of("auto", "auto", "cuda:0") == ["cuda:0", "cuda:1"]
    assert devices_of("2", "cuda", "cuda:0") == ["cuda:0", "cuda:1"]
    assert devices_of("1", "auto", "cuda:0") == ["cuda:0"]
    assert devices_of("auto", "cuda:1", "cuda:1") == ["cuda:1"]
    assert devices_of("auto", "auto-map", "cuda:0") == ["cuda:0"]
    refused = [("5", "cpu", "cpu"), ("3", "auto", "cuda:0"), ("2", "cuda:1", "cuda:1"), ("2", "auto-map", "cuda:0")]
    for words in (*refused, ("0", "cpu", "cpu")):
        with pytest.raises(BadValue, match=f"--workers {words[0]}"):
            devices_of(*words)
    for text in ("", "x", "-1", "1.5", "²"):
        with pytest.raises(BadValue, match="auto nor a whole number"):
            devices_of(text, "cpu", "cpu")


def test_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert [Processes(("cpu",) * n).threads for n in (1, 2, 4, 9)] == [5, 2, 1, 1]
    assert Processes(("cuda:0", "cuda:1")).threads is None


def test_errors_keep_their_kind_on_the_way_to_the_parent() -> None:
    error = unpacked(("ModelError", "It is broken.", "Mend it."))
    assert (type(error), error.message, error.next_step) == (ModelError, "It is broken.", "Mend it.")
    unknown = UnknownName("method", "x", ["y"])
    error = unpacked(("UnknownName", unknown.message, unknown.next_step))
    assert (type(error), error.message) == (LcbenchError, unknown.message)


def test_what_a_worker_refuses_ends_the_run(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    """The pipe's other end is played here: a worker that finds the weights damaged."""
    ours, theirs = workers._CONTEXT.Pipe()

    def start(crew: Any, devices: Sequence[str]) -> None:
        worker = workers._Worker(process=_Ended(), pipe=ours)
        crew._workers.append(worker)
        theirs.send(("refused", ("ModelError", "The weights are cut short.", "Download them again.")))

    monkeypatch.setattr(workers._Crew, "start", start)
    with pytest.raises(ModelError, match="cut short") as refused:
        go(folder, tmp_path / "run", [Half()], 2)
    assert refused.value.next_step == "Download them again."


def test_workers_that_die_while_loading_end_the_run(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    def start(crew: Any, devices: Sequence[str]) -> None:
        for _ in devices:
            ours, theirs = workers._CONTEXT.Pipe()
            theirs.close()
            crew._workers.append(workers._Worker(process=_Ended(), pipe=ours))

    monkeypatch.setattr(workers._Crew, "start", start)
    with pytest.raises(ModelError, match="killed by SIGKILL") as died:
        go(folder, tmp_path / "run", [Half()], 2)
    assert "fewer --workers" in died.value.next_step


class _Ended:
    """A process that has been killed."""

    exitcode = -int(signal.SIGKILL)

    def join(self, seconds: float | None = None) -> None:
        pass

    def is_alive(self) -> bool:
        return False


def test_more_workers_than_groups_are_told(folder: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    words = [
        "run",
        "--model",
        folder,
        "--method",
        "full",
        "--task",
        "passkey@lengths=20,depths=2,repeats=1,max_new_tokens=2",
    ]
    done = cli(*words, "--out", tmp_path / "run", "--workers", "2")
    assert done.code == 0, done.err
    assert "2 workers were asked for; what is to do is 1 group of prompts" in done.err
    assert "--group-memory" in done.err
