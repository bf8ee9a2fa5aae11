"""From a RunSpec to a finished run directory of a model behind an address; the twin of `engine.session`.

Names first, then data, then the tokenizer, then the server (what it is, which addresses it has), then the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lcbench.config.spec import Api, RunSpec
from lcbench.config.yaml_file import to_yaml
from lcbench.engine.groups import Group
from lcbench.engine.plan import PromptSet
from lcbench.engine.prepare import FULL
from lcbench.engine.run import Listener, Outcome, samples_of
from lcbench.engine.session import OpenRun, Say, canonical, load_tasks, method_facts, resolve_methods, task_facts
from lcbench.errors import BadValue, ModelError, UsageError
from lcbench.methods.base import Method
from lcbench.methods.prompted import Prompted
from lcbench.models.chat import own_template, template_sha256
from lcbench.models.tokenizer import load_tokenizer, tokenizer_sha256
from lcbench.remote.asking import About, Asker
from lcbench.remote.execute import execute
from lcbench.remote.prompts import Reader, prepare, refuse_options, said_about
from lcbench.store.locate import default_run_path, remember_run
from lcbench.store.provenance import software
from lcbench.store.rundir import RunDirectory
from lcbench.tasks.base import Loaded, Task
from lcbench.tasks.notes import said_once

_NO_WINDOW = 10**9  # tokenizers that know no window say a number far beyond


@dataclass(frozen=True)
class Calls:
    """How a server is asked; nothing of it decides an answer.

    Attributes:
        concurrency: calls at a time. timeout: seconds for one call.
    """

    concurrency: int = 8
    timeout: float = 600.0

    def __post_init__(self) -> None:
        numbers = isinstance(self.concurrency, int) and isinstance(self.timeout, int | float)
        if not numbers or self.concurrency < 1 or not 0 < self.timeout < float("inf"):
            raise BadValue("--concurrency and --timeout must be numbers above 0.", "Leave them out for the defaults.")


@dataclass(frozen=True)
class RemotePlan:
    """What `lcbench run --dry-run` shows of a model behind an address.

    Attributes:
        label: model and server. about: what the server says of itself. window: tokens of prompt and answer.
        asked: task id to how its prompts are asked, in words.
    """

    spec: RunSpec
    label: str
    about: About
    window: int | None
    sets: tuple[PromptSet, ...]
    asked: dict[str, str]
    calls: Calls


def open_remote(spec: RunSpec, home: Path, calls: Calls, *, say: Say, tell_notes: bool = True) -> RemoteSession:
    """Resolve everything but the answers. The server is asked what it has, and for one token where that is not plain.

    Raises:
        LcbenchError of many kinds, each with its next step.
    """
    refuse_options(spec)
    methods = resolve_methods(spec)
    for method in methods:
        refuse_cache_method(method, spec.model.name)
    tasks = load_tasks(spec, home)
    for line in said_once((task.id, rows.note) for task, rows in tasks) if tell_notes else ():
        say(line)
    model = spec.model
    tokenizer = None
    if model.tokenizer is not None:
        tokenizer = load_tokenizer(model.tokenizer, home, say, trust_remote_code=model.trust_remote_code)
    asker = Asker.of(model, calls.timeout)
    say(f"Asking {asker.client.label} what it has.")
    about = asker.about()
    apis = choose_apis(spec, [task for task, _ in tasks], tokenizer, asker, about)
    limit = getattr(tokenizer, "model_max_length", None)
    window = model.window or about.window or (int(limit) if limit and limit < _NO_WINDOW else None)
    reader = Reader(tokenizer, window, apis)
    return RemoteSession(
        canonical(spec, methods, tasks), home, methods, tasks, asker, about, reader, calls, say, tell_notes
    )


def refuse_cache_method(method: Method, model: str) -> None:
    """Raises ModelError for a method that needs the model's cache, weights or attention."""
    if isinstance(method, Prompted):
        raise ModelError(
            f"{method.id} works inside the model, and {model} is behind an address where only prompts can be changed.",
            f"Serve what works inside it, lcbench serve --method {method.rest.id}, and shorten here: "
            f"--method {method.shortener.id}.",
        )
    chooses = type(method).filter_prompt is not Method.filter_prompt
    if chooses or not method.leaves_model_alone or (method.rewriter is None and method.name != FULL):
        raise ModelError(
            f"{method.id} works inside the model, and {model} is behind an address where only prompts can be changed.",
            "Use full and methods that shorten prompts, or serve the method itself: lcbench serve --method "
            f"{method.id}.",
        )
    helper = None if method.rewriter is None else method.rewriter.helper
    if helper is not None and not helper.name:
        raise ModelError(
            f"{method.id} reads the prompts with the model under test, and the weights of {model} are not here.",
            f"Name a model of this machine: {method.name}@{helper.parameter}=MODEL."
            if hasattr(method.rewriter, helper.parameter)
            else "It can read with no other model; use a method that can, such as selective-context.",
        )


def choose_apis(spec: RunSpec, tasks: Sequence[Task], tokenizer: Any, asker: Asker, about: About) -> dict[str, Api]:
    """Where the prompts of each task go: task id to api.

    What the user says holds. Otherwise the exact prompt goes to completions where the server has them and the prompt
    can be made here: always with a tokenizer, and without one for tasks that are asked bare. What remains is a chat.

    Raises:
        UsageError: bare prompts are wanted, and the server has only chat completions.
    """
    if spec.model.api is not None:
        return {task.id: spec.model.api for task in tasks}
    bare = spec.model.chat != "auto"
    exact = {task.id: bare or tokenizer is not None or not task.chat for task in tasks}
    if not any(exact.values()):
        return {task.id: "chat" for task in tasks}
    if not asker.has_completions(about):
        if bare:
            raise UsageError(
                f"{asker.client.label} answers chats alone, and --chat {spec.model.chat} asks exact prompts.",
                "Leave --chat out: the server then applies its own chat template.",
            )
        return {task.id: "chat" for task in tasks}
    return {task.id: "completions" if exact[task.id] else "chat" for task in tasks}


@dataclass
class RemoteSession:
    """A resolved run of a model behind an address.

    Attributes:
        spec: with method and task ids in canonical form. asker: the server. about: what it says of itself.
        reader: how the model reads, as far as it is known here.
    """

    spec: RunSpec
    home: Path
    methods: list[Method]
    tasks: list[tuple[Task, Loaded]]
    asker: Asker
    about: About
    reader: Reader
    calls: Calls
    say: Say
    tell_notes: bool = True
    info: None = None  # of weights, which are not here

    @cached_property
    def sets(self) -> list[PromptSet]:
        """Every prompt as it is sent."""
        sets = prepare(self.spec, self.reader, self.methods, self.tasks, self.home, self.say)
        told = {task.id: rows.note for task, rows in self.tasks}
        notes = [(s.task.id, note) for s in sets for note in s.notes if note != told[s.task.id]]
        for line in said_once(notes) if self.tell_notes else ():
            self.say(line)
        return sets

    @property
    def asked(self) -> dict[str, str]:
        """Task id to how its prompts are asked, in words."""
        apis, tokenizer = self.reader.apis, self.reader.tokenizer
        return {task.id: said_about(apis[task.id], task, self.spec, tokenizer) for task, _ in self.tasks}

    def default_path(self) -> Path:
        """Where the run goes when the user names no folder; the same spec always goes to the same one."""
        return default_run_path(self.spec)

    def plan(self) -> RemotePlan:
        """What would be asked, and how."""
        label = self.asker.client.label
        return RemotePlan(self.spec, label, self.about, self.reader.window, tuple(self.sets), self.asked, self.calls)

    def groups(self) -> list[Group]:
        """One call a prompt and method, in the order of the sets."""
        groups: list[Group] = []
        for number, prompts in enumerate(self.sets):
            for p, prompt in enumerate(prompts.prompts):
                every = tuple(range(len(prompts.methods)))
                groups.append(Group(len(groups), number, (p,), (every,), ((),), 0, prompt.tokens))
        return groups

    @contextmanager
    def open_run(self, path: Path, devices: Sequence[str] = ()) -> Iterator[RemoteRunning]:
        """Lock and open (or continue) the run directory."""
        sets = self.sets
        with RunDirectory.create_or_continue(path, self.spec.to_dict(), self.provenance()) as run:
            remember_run(path)
            run.write_config(to_yaml(self.spec))
            yield RemoteRunning(run, sets, self.groups(), self)

    def provenance(self) -> dict[str, Any]:
        """What the run stands on, for run.json. No key."""
        model, tokenizer = self.spec.model, self.reader.tokenizer
        url = self.asker.client.url
        named = None
        if tokenizer is not None:
            template = template_sha256(own_template(tokenizer))
            named = {
                "name": model.tokenizer, "sha256": tokenizer_sha256(tokenizer), "chat_template_sha256": template,
            }  # fmt: skip
        return {
            **software(),
            "model": {
                "name": model.name,
                "source": "served",
                "identity": f"{self.asker.model} at {url}",
                "base_url": url,
                "asked": "; ".join(dict.fromkeys(self.asked.values())),
                "window": self.reader.window,
                "tokenizer": named,
                "lcbench": None if self.about.lcbench is None else dict(self.about.lcbench),
            },
            "tasks": task_facts(self.tasks, self.sets),
            "methods": method_facts(self.methods),
            "seed": self.spec.seed,
        }


@dataclass
class RemoteRunning(OpenRun):
    """An open run of a model behind an address; `execute` asks for what is missing."""

    session: RemoteSession

    @property
    def at_once(self) -> int:
        return self.session.calls.concurrency

    def execute(self, *, listener: Listener | None = None, should_stop: Callable[[], bool] | None = None) -> Outcome:
        """Answer every sample without a good record."""
        if not self.todo:
            return Outcome(reused=samples_of(self.sets, self.groups))
        session = self.session
        return execute(
            session.asker,
            session.reader,
            self.sets,
            self.todo,
            self.run,
            session.calls.concurrency,
            listener=listener,
            should_stop=should_stop,
        )
