"""From a RunSpec to a finished run directory, in the order in which mistakes are cheapest to find.

Names and parameters first, then data, then the model's configuration and tokenizer, then the prompts, then the run
directory; the weights are loaded last, when nothing else can be wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lcbench.config.options import apply_settings, with_budgets
from lcbench.config.shard import Shard
from lcbench.config.sizes import parse_bytes
from lcbench.config.spec import RunSpec
from lcbench.config.yaml_file import to_yaml
from lcbench.data.store import together
from lcbench.engine.dispatch import Job, Team, execute_by
from lcbench.engine.estimate import Estimate, estimate, measure_rates
from lcbench.engine.generate import check_chunk
from lcbench.engine.groups import Group, make_groups, room_of
from lcbench.engine.memory import Limits, measure_limits
from lcbench.engine.on_ray import Actors
from lcbench.engine.options import Options
from lcbench.engine.plan import PromptSet
from lcbench.engine.prepare import prepare, refuse_hidden_question
from lcbench.engine.ray_cluster import Cluster
from lcbench.engine.run import Listener, Outcome, Owing, cost_of, execute, owing, samples_of
from lcbench.engine.workers import Processes
from lcbench.errors import DataMissing, UsageError
from lcbench.methods.base import Method, require
from lcbench.methods.registry import all_methods, parse, resolve
from lcbench.models.info import ModelInfo
from lcbench.models.load import describe, load
from lcbench.store.locate import default_run_path, remember_run
from lcbench.store.provenance import software
from lcbench.store.run_file import SHARDS
from lcbench.store.rundir import RunDirectory
from lcbench.store.shards import ShardPlan, Share, refuse_strangers, shared_batching
from lcbench.tasks.base import Loaded, Task
from lcbench.tasks.notes import said_once
from lcbench.tasks.registry import resolve as resolve_tasks

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What `lcbench run --dry-run` shows."""

    spec: RunSpec
    info: ModelInfo
    sets: tuple[PromptSet, ...]
    estimate: Estimate


def resolve_methods(spec: RunSpec) -> list[Method]:
    """The methods of a spec with ``--set`` applied, each once. Raises UnknownName, BadValue, UsageError."""
    known = all_methods()
    fields = {name: {f.name for f in dataclasses.fields(cls)} for name, cls in known.items()}
    specs = with_budgets([parse(text) for text in spec.methods], spec.budgets, fields)
    for items in specs:
        resolve(items)  # an unknown name is reported before a setting that no method has
    settled = iter(apply_settings([item for items in specs for item in items], spec.settings, fields))
    methods = [resolve([next(settled) for _ in items]) for items in specs]
    seen: dict[tuple[str, tuple[tuple[str, str], ...]], Method] = {}
    for one in methods:
        other = seen.setdefault((one.name, tuple(sorted(one.parameters.items()))), one)
        if other is not one:
            same = "" if one.id == other.id else f" (as {other.id} and {one.id})"
            raise UsageError(f"The method {one.name} is given twice with the same parameters{same}.", "Give it once.")
    if spec.context == "none" and [m.name for m in methods] != ["full"]:
        raise UsageError(
            "Without its context a prompt is short and every method answers alike.",
            "Run --context none once per model, with --method full.",
        )
    return methods


def open_session(
    spec: RunSpec,
    home: Path,
    *,
    say: Say,
    tell_notes: bool = True,
    cluster: Cluster | None = None,
    rows: list[tuple[Task, Loaded]] | None = None,
) -> Session:
    """Resolve everything but the weights. Raises LcbenchError of many kinds, each with its next step.

    Args:
        tell_notes: say notes about rows and prompts as they turn up; False where the plan shows them.
        cluster: of Ray, whose actors will answer. rows: of the spec's tasks, where they have been read.
    """
    methods = resolve_methods(spec)
    refuse_hidden_question(spec, methods)
    loaded = load_tasks(spec, home) if rows is None else rows
    for line in said_once((task.id, rows.note) for task, rows in loaded) if tell_notes else ():
        say(line)
    turned_by = [method.id for method in methods if method.turns]
    told = describe if cluster is None else cluster.describe
    info, tokenizer = told(spec.model, home, say=say, turned_by=turned_by)
    check_chunk(info, spec.prefill_chunk, methods)
    for method in methods:
        require(method, info.shape(), info.name)
    methods = [method.bind(info, home) for method in methods]
    for method in methods:
        method.check(info.shape())
    for text in dict.fromkeys(method.announcement() for method in methods):
        if text:
            say(text)
    if info.unbounded and spec.max_input_tokens is None:
        say(
            f"{info.name} does not say how long its training texts were: no prompt is cut. "
            "--max-input-tokens cuts them to a length of your choice."
        )
    return Session(canonical(spec, methods, loaded), home, methods, loaded, info, tokenizer, say, tell_notes, cluster)


def load_tasks(spec: RunSpec, home: Path, most: int | None = None) -> list[tuple[Task, Loaded]]:
    """The tasks of a spec, each once, with their rows, or at most ``most`` of each, for plans.

    Raises UnknownName, BadValue, DataError; of what is missing everything is named at once.
    """
    tasks: list[Task] = []
    missing: list[DataMissing] = []
    for text in spec.tasks:
        try:
            tasks += [task for task in resolve_tasks(text, home) if task.id not in {t.id for t in tasks}]
        except DataMissing as error:
            missing.append(error)
    loaded = []
    for task in tasks:
        try:
            rows = task.load(home, spec.limit) if most is None else task.sample(home, most, spec.limit)
            loaded.append((task, rows))
        except DataMissing as error:
            missing.append(error)
    if missing:
        raise together(missing)
    return loaded


def canonical(spec: RunSpec, methods: Sequence[Method], tasks: Sequence[tuple[Task, Loaded]]) -> RunSpec:
    """The spec with method and task ids as they are in files, what `resolve_methods` has settled left out."""
    ids = tuple(task.id for task, _ in tasks)
    return replace(spec, methods=tuple(m.id for m in methods), tasks=ids, settings={}, budgets=())


@dataclass
class Session:
    """A resolved run, before the weights are loaded.

    Attributes:
        spec: with method and task ids in canonical form.
    """

    spec: RunSpec
    home: Path
    methods: list[Method]
    tasks: list[tuple[Task, Loaded]]
    info: ModelInfo
    tokenizer: Any
    say: Say
    tell_notes: bool = True
    cluster: Cluster | None = None

    @cached_property
    def sets(self) -> list[PromptSet]:
        """Every prompt as token ids."""
        sets = prepare(self.spec, self.info, self.tokenizer, self.methods, self.tasks, self.home, say=self.say)
        for prompts in sets if self.tell_notes else ():
            for note in prompts.notes:
                if note != {t.id: rows.note for t, rows in self.tasks}[prompts.task.id]:
                    self.say(f"{prompts.task.id}: {note}")
        return sets

    def default_path(self) -> Path:
        """Where the run goes when the user names no folder; the same spec always goes to the same one."""
        return default_run_path(self.spec)

    def plan(self) -> Plan:
        """Jobs, lengths and the estimate, from rates measured now."""
        rates = measure_rates(torch.device(self.info.device), getattr(torch, self.info.dtype))
        groups = self.groups(self.limits())
        cost = estimate(self.info, self.sets, groups, rates, exact=self.spec.exact)
        return Plan(self.spec, self.info, tuple(self.sets), cost)

    def groups(self, limits: Limits) -> list[Group]:
        """What is answered together, in order."""
        return make_groups(
            self.sets,
            self.info.shape(),
            limits,
            chunk=self.spec.prefill_chunk,
            reuse=not self.info.rope_follows_length,  # a shared beginning would have the frequencies of its own length
        )

    def limits(self, workers: int = 1) -> Limits:
        """How large groups may be: as the spec says, or by the memory that is free now."""
        if self.cluster is None:
            found = measure_limits(self.info, workers=workers)
        else:
            found = self.cluster.limits(self.info)
        said = self.spec.group_memory
        return found if said is None else replace(found, nbytes=parse_bytes(said, "--group-memory"))

    @contextmanager
    def open_run(self, path: Path, devices: Sequence[str] = (), shard: Shard | None = None) -> Iterator[Running]:
        """Lock and open (or continue) the run directory.

        Args:
            devices: of the worker processes, see `workers.devices_of`; with fewer than two this process answers alone.
            shard: answer this part of the run, in a run directory of its own below ``path``.
        """
        sets = self.sets
        limits = self.limits(max(1, len(devices)))
        where = path
        if shard is not None:
            where = path / SHARDS / shard.folder
            refuse_strangers(path, shard, self.spec.to_dict(), self.provenance())
            limits = Limits.from_dict(shared_batching(path, limits.to_dict()))
        with RunDirectory.create_or_continue(where, self.spec.to_dict(), self.provenance()) as run:
            run.write_config(to_yaml(self.spec))
            limits = Limits.from_dict(run.batching(limits.to_dict()))
            groups = self.groups(limits)
            if shard is None:
                remember_run(path)
            else:
                ShardPlan.of(shard, shares(sets, groups), limits.to_dict()).write(where)
                groups = [group for group in groups if shard.has(group.index)]
            yield Running(run, sets, groups, self, limits, tuple(devices))

    def provenance(self) -> dict[str, Any]:
        """What the run stands on, for run.json. No token, no absolute path of data."""
        return {
            **software(),
            "model": {k: v for k, v in self.info.to_dict().items() if k != "versions"}
            | {"identity": self.info.identity},
            "tasks": task_facts(self.tasks, self.sets),
            "methods": method_facts(self.methods),
            "seed": self.spec.seed,
        }


def task_facts(tasks: Sequence[tuple[Task, Loaded]], sets: Sequence[PromptSet]) -> dict[str, Any]:
    """Task id to what run.json says of it: version, rows, data and prompts."""
    facts = {}
    for task, rows in tasks:
        own = [s for s in sets if s.task.id == task.id]
        facts[task.id] = {
            "task_version": task.version,
            "options": task.options,
            "rows": len(rows.rows),
            "note": rows.note,
            "data_sha256": rows.sha256,
            "prompts_sha256": {(s.reading or "shared" if s.shared else s.methods[0].id): s.sha256 for s in own},
            "max_new_tokens": own[0].max_new_tokens,
            "prompt_begins": own[0].sample[0],
            "prompt_ends": own[0].sample[1],
            "notes": list(dict.fromkeys(note for s in own for note in s.notes)),
            "once": task.once,
            **own[0].counts,
        }
        # Methods with a window of their own (or shorter prompts) skip others than the rest.
        skipping = {m.id: s for s in own for m in s.methods if s.counts.get("skipped")}
        if skipping:
            facts[task.id]["skipped_by_method"] = {
                method: {"rows": s.counts["skipped"], "lengths": dict(s.skipped_lengths)}
                for method, s in skipping.items()
            }
    return facts


def method_facts(methods: Sequence[Method]) -> dict[str, Any]:
    """Method id to what run.json says of it: parameters, calibration, traits."""
    return {
        m.id: {
            "name": m.name,
            "paper": m.paper,
            "parameters": m.parameters,
            "calibration_sha256": m.calibration or None,
            **dataclasses.asdict(m.traits),
        }
        for m in methods
    }


def shares(sets: Sequence[PromptSet], groups: Sequence[Group]) -> list[Share]:
    """Groups as files know them."""
    found = []
    for group in groups:
        prompts = sets[group.set_index]
        ids = tuple(prompts.prompts[i].row.id for i in group.prompts)
        found.append(Share(group.index, prompts.task.id, tuple(m.id for m in prompts.methods), ids))
    return found


@dataclass
class OpenRun:
    """An open run directory with its plan.

    Attributes:
        groups: of all samples, done or not.
    """

    run: RunDirectory
    sets: list[PromptSet]
    groups: list[Group]

    @property
    def at_once(self) -> int:
        """Groups that are worked on at a time."""
        return 1

    @property
    def messages(self) -> list[str]:
        """What happened on opening, for the user."""
        found = list(self.run.repaired) + [f"Changed since the run began: {text}" for text in self.run.warnings]
        if self.run.continued:
            _, samples = self.remaining_cost
            total = samples_of(self.sets, self.groups)
            found.insert(0, f"Continuing: {total - samples} of {total} samples are there, {samples} to do.")
        return found

    @cached_property
    def todo(self) -> list[Owing]:
        """The groups with samples that have no good record."""
        return owing(self.sets, self.groups, self.run)

    @cached_property
    def remaining_cost(self) -> tuple[float, int]:
        """Work still to do, in the units of `Event.cost`, and the samples it makes."""
        work, samples = 0.0, 0
        for item in self.todo:
            prompts = self.sets[item.group.set_index]
            for p, _ in item.wanted:
                work += cost_of(prompts, prompts.prompts[p], len(prompts.methods)) / len(prompts.methods)
            samples += len(item.wanted)
        return work, samples


@dataclass
class Running(OpenRun):
    """An open run of a model on this machine; `execute` loads the weights and answers what is missing.

    Attributes:
        limits: what made the groups so large.
        devices: of the worker processes; with fewer than two this process answers alone.
    """

    session: Session
    limits: Limits
    devices: tuple[str, ...] = ()

    @property
    def at_once(self) -> int:
        cluster = self.session.cluster
        return max(1, len(self.devices)) if cluster is None else cluster.crew.workers

    def execute(self, *, listener: Listener | None = None, should_stop: Callable[[], bool] | None = None) -> Outcome:
        """Answer every sample without a good record. The weights are loaded only when there is one."""
        spec = self.session.spec
        if not self.todo:
            return Outcome(reused=samples_of(self.sets, self.groups))
        options, room = Options.of(spec), room_of(self.groups, self.session.info.shape(), self.limits)
        team = self._team()
        if team is not None:
            job = Job(spec.model, self.session.home, tuple(self.sets), options, room)
            return execute_by(
                team, job, self.session.info, self.groups, self.run, listener=listener, should_stop=should_stop
            )
        loaded = load(spec.model, self.session.home, say=self.session.say)
        return execute(
            loaded,
            self.sets,
            self.groups,
            self.run,
            options=options,
            room=room,
            listener=listener,
            should_stop=should_stop,
        )

    def _team(self) -> Team | None:
        """Who answers, if not this process alone."""
        devices = self.devices[: len(self.todo)]
        if self.session.cluster is not None:
            return Actors(self.session.cluster)
        if len(devices) < len(self.devices):
            groups = "group" if len(self.todo) == 1 else "groups"
            self.session.say(
                f"{len(self.devices)} workers were asked for; what is to do is {len(self.todo)} {groups} of prompts, "
                "one a worker. A smaller --group-memory makes more of them."
            )
        return Processes(devices) if len(devices) > 1 else None
