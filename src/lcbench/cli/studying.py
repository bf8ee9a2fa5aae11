"""Carrying out a study: its runs one after another, each as `lcbench run` alone would do it."""

from __future__ import annotations

import gc
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from lcbench.cli.progress import Watcher
from lcbench.config.home import home
from lcbench.config.shard import Shard
from lcbench.config.spec import RunSpec
from lcbench.config.study import Study
from lcbench.errors import UsageError

if TYPE_CHECKING:
    from lcbench.engine.run import Outcome
    from lcbench.engine.session import Running, Session
    from lcbench.remote.session import RemoteRunning, RemoteSession


def run_study(
    study: Study,
    out: Path | None,
    watcher: Watcher,
    shard: Shard | None,
    *,
    dry_run: bool,
    calls: Mapping[str, Any],
    plan_gpu: str | None = None,
) -> bool:
    """Answer what is missing of every run. Everything but weights and prompts is resolved before the first begins, so
    that a mistake in the last is told at once.

    Args:
        out: the run directory, or the folder of those of several models; None for names under runs/.
        shard: the part of each run to answer; None for all of it. dry_run: show what would be done;
            plan_gpu: on this GPU.
        calls: ``concurrency`` and ``timeout`` of models behind an address, where they were given.

    Returns:
        Whether samples failed.

    Raises:
        typer.Exit: 130, stopped on request.
    """
    if plan_gpu is not None and not dry_run:
        raise UsageError("--plan-gpu is for plans.", "Add --dry-run, or choose a device with --device.")
    if dry_run and (plan_gpu is not None or len(study.runs) > 1) and not any(run.model.served for run in study.runs):
        _show_on_paper(study, plan_gpu, watcher)
        return False
    given = {name: value for name, value in calls.items() if value is not None}
    if not any(spec.model.served for spec in study.runs):
        for name in given:
            model = study.runs[0].model.name
            raise UsageError(f"--{name} is for models behind an address, and {model} is none.", f"Leave --{name} out.")
    sessions = [_session(spec, watcher, shard, given, dry_run=dry_run) for spec in study.runs]
    paths = _paths(study, sessions, out)
    if dry_run:
        for session, path in zip(sessions, paths, strict=True):
            _show_plan(session, path)
        return False
    failed = False
    for number, path in enumerate(paths, start=1):
        session = sessions.pop(0)  # its prompts and weights go with it
        if len(paths) > 1:
            watcher.say(f"Model {number} of {len(paths)}: {session.spec.model.name}")
        failed |= _run(session, path, watcher, shard)
        del session
        _release()
    _say_next(paths, shard)
    return failed


def _session(
    spec: RunSpec, watcher: Watcher, shard: Shard | None, given: Mapping[str, Any], *, dry_run: bool
) -> Session | RemoteSession:
    """A run resolved: of a model of this machine, or of one behind an address."""
    if spec.ray_gpus is not None and spec.engine != "ray":
        raise UsageError("--ray-gpus is for Ray actors, and this run has none.", "Add --engine ray, or leave it out.")
    if not spec.model.served:
        on_ray, cluster = spec.engine == "ray" and not dry_run, None
        if on_ray:
            from lcbench.engine.ray_address import cluster_address

            cluster_address()  # a dead one is told before torch is imported
        from lcbench.engine.session import open_session

        if on_ray:
            from lcbench.engine.ray_cluster import Cluster, Crew

            cluster = Cluster(Crew.of(spec), watcher.say)
        return open_session(spec, home(), say=watcher.say, tell_notes=not dry_run, cluster=cluster)
    from lcbench.remote.session import Calls, open_remote

    if shard is not None:
        raise UsageError("--shard is for models of this machine.", "Leave it out: the server does the work.")
    if spec.workers != "1" or spec.engine != "local":
        what = "--workers" if spec.workers != "1" else "--engine"
        raise UsageError(f"{what} is for models of this machine.", "Say --concurrency N: calls at a time.")
    return open_remote(spec, home(), Calls(**given), say=watcher.say, tell_notes=not dry_run)


def _show_on_paper(study: Study, gpu: str | None, watcher: Watcher) -> None:
    """What a study costs, one model at a time: the rows of its tasks are read once, and no prompts are kept."""
    from lcbench.cli.paper_view import show_on_paper
    from lcbench.engine.on_paper import ROWS_EACH, on_paper, rates_of
    from lcbench.engine.session import load_tasks, open_session
    from lcbench.models.remembered import TokenMemory

    if gpu is not None:
        rates_of(gpu)  # a wrong name is told before anything is read
    rows: dict[Any, Any] = {}
    found, memory = [], TokenMemory()
    for spec in study.runs:
        key = (spec.tasks, spec.limit)
        if key not in rows:
            rows = {key: load_tasks(spec, home(), ROWS_EACH)}
        session = open_session(spec, home(), say=watcher.say, tell_notes=False, rows=rows[key])
        found.append(on_paper(session, gpu, memory=memory))
    show_on_paper(found)


def _show_plan(session: Session | RemoteSession, path: Path) -> None:
    from lcbench.remote.session import RemoteSession

    if isinstance(session, RemoteSession):
        from lcbench.cli.remote_view import show_remote_plan

        show_remote_plan(session.plan(), path)
    else:
        from lcbench.cli.plan_view import show_plan

        show_plan(session.plan(), path)


def _paths(study: Study, sessions: Sequence[Session | RemoteSession], out: Path | None) -> list[Path]:
    from lcbench.store.locate import study_paths

    if out is None:
        return [session.default_path() for session in sessions]
    if not study.folders:
        return [out]
    return study_paths(out, [session.spec.model for session in sessions])


def _run(session: Session | RemoteSession, path: Path, watcher: Watcher, shard: Shard | None) -> bool:
    from lcbench.engine.session import Session
    from lcbench.engine.workers import devices_of

    stop = _StopOnInterrupt(watcher.say)
    if isinstance(session, Session):
        devices: Sequence[str] = ()
        if session.cluster is None:
            devices = devices_of(session.spec.workers, session.spec.model.device, session.info.device)
        opened: AbstractContextManager[Running | RemoteRunning] = session.open_run(path, devices, shard)
    else:
        opened = session.open_run(path)
    with opened as running:
        path = running.run.path
        for message in running.messages:
            watcher.say(message)
        watcher.say(f"Run directory: {path}")
        watcher.begin(running, path)
        try:
            with stop:
                outcome = running.execute(listener=watcher.on_event, should_stop=stop.requested)
        finally:
            watcher.end()
    watcher.done(outcome, path)
    never = sum(len(s.methods) for s in running.sets for prompt in s.prompts if prompt.error is not None)
    return _report_outcome(outcome, path, watcher, never)


def _release() -> None:
    """Give back the memory of one model before the next is measured and loaded."""
    import torch

    from lcbench.engine.memory import release

    gc.collect()
    if torch.cuda.is_available():
        release(torch.device("cuda"))


def _report_outcome(outcome: Outcome, path: Path, watcher: Watcher, never: int) -> bool:
    """``never``: samples that fail every time, since their prompts do not fit."""
    command = " ".join(shlex.quote(word) for word in ["lcbench", *sys.argv[1:]])
    total = outcome.written + outcome.reused
    if watcher.tables and watcher.so_far is not None and watcher.so_far.cells:
        whole = not outcome.interrupted and not outcome.failed
        Console(highlight=False).print(watcher.so_far.table(final=whole))
    if outcome.interrupted:
        typer.echo(
            f"Stopped after {total} samples, all kept in {path}. To continue, run the same command:\n  {command}"
        )
        raise typer.Exit(130)
    again = f" ({outcome.reused} were there already)" if outcome.reused else ""
    typer.echo(f"Done: {total} samples{again} in {path}.")
    if outcome.halved:
        typer.echo(
            f"Ran out of memory {outcome.halved} times; those batches were halved and tried again (events.jsonl)."
        )
    if outcome.failed:
        typer.echo(f"{outcome.failed} failed:")
        for line in outcome.errors[:10]:
            typer.echo(f"  {line}")
        if len(outcome.errors) > 10:
            typer.echo(f"  … and {len(outcome.errors) - 10} more; they are in the predictions with status=error.")
        if outcome.failed > never:
            typer.echo(f"To try them again, run the same command:\n  {command}")
        else:
            typer.echo("Their prompts do not fit, which another try would not change; --over-length says what to do.")
    return outcome.failed > 0


def _say_next(paths: Sequence[Path], shard: Shard | None) -> None:
    if shard is not None:
        for path in paths:
            typer.echo(f"Next, when all {shard.of} shards are done:  lcbench merge {shlex.quote(str(path))}")
    elif len(paths) == 1:
        typer.echo(f"Next:  lcbench score {shlex.quote(str(paths[0]))}")
    else:
        typer.echo(f"Next:  lcbench report {' '.join(shlex.quote(str(path)) for path in paths)}")


class _StopOnInterrupt:
    """The first Ctrl-C asks to stop after the current sample; the second stops at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._asked = False
        self._say = say
        self._before: Any = None

    def requested(self) -> bool:
        return self._asked

    def _handle(self, number: int, frame: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self._say("Stopping after the current sample (Ctrl-C again stops at once) …")

    def __enter__(self) -> _StopOnInterrupt:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGINT, self._before)
