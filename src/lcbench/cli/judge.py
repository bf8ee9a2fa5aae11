"""The judge that ``lcbench score --judge`` names: an endpoint, or a model of this machine; and the question of cost."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from lcbench.errors import BadValue, UnknownName, UsageError

if TYPE_CHECKING:
    from lcbench.models.info import LoadedModel, ModelInfo
    from lcbench.scoring.judge.asking import Budget, Judge
    from lcbench.scoring.judge.grading import Grading

KINDS = ("openai", "hf")
_LOCAL_TOKENS = 512


@dataclass(frozen=True)
class JudgeOptions:
    """What the command line says about the judge.

    Attributes:
        name: ``openai:MODEL`` or ``hf:MODEL``. url: of the endpoint, None for OpenAI. threshold: of the QA filter.
        timeout: seconds for a call. workers: calls at a time. yes: do not ask before the first call.
    """

    name: str
    url: str | None = None
    threshold: float = 0.5
    timeout: float = 60.0
    workers: int = 8
    yes: bool = False


def grading(options: JudgeOptions, home: Path) -> Grading:
    """The grading for `score_path`.

    Raises:
        UnknownName, BadValue: a judge, address or number that is none.
        ModelError: the local model cannot be found or read.
    """
    from lcbench.scoring.judge.asking import Asker
    from lcbench.scoring.judge.cache import ReplyCache
    from lcbench.scoring.judge.grading import Grading

    if not 0 <= options.threshold <= 1:
        raise BadValue(f"--qa-filter {options.threshold:g} is not between 0 and 1.", "0.5 is published, 0 is off.")
    if options.workers < 1 or options.timeout <= 0:
        raise BadValue("--judge-calls and --judge-timeout must be above 0.", "Leave them out for the defaults.")
    judge = _judge(options, home)
    console = Console(stderr=True, highlight=False)
    bar = _Bar(console)
    asker = Asker(
        judge,
        ReplyCache(home, judge.identity),
        confirm=lambda budget: _confirm(budget, options.yes, console),
        workers=options.workers,
        progress=bar.show,
    )
    return Grading(asker, options.threshold)


def _judge(options: JudgeOptions, home: Path) -> Judge:
    kind, colon, model = options.name.partition(":")
    if not colon or not model.strip():
        raise BadValue(f"--judge {options.name} names no model.", "Write openai:MODEL or hf:MODEL.")
    if kind == "openai":
        from lcbench.scoring.judge.endpoint import OPENAI, Endpoint, Patience, key_for

        url = options.url or OPENAI
        return Endpoint(model.strip(), url, key_for(url), Patience(timeout=options.timeout))
    if kind == "hf":
        if options.url is not None:
            raise BadValue("--judge-url is for openai: judges; hf: models run here.", "Leave --judge-url out.")
        return LocalJudge(model.strip(), home)
    raise UnknownName("kind of judge", kind, KINDS, where=f" in --judge {options.name}")


def _confirm(budget: Budget, yes: bool, console: Console) -> None:
    """Show what grading may cost, and ask unless ``yes``."""
    console.print(
        Text(
            f"{budget.judge}: at most {budget.calls:,} calls ({budget.cached:,} answered before), about "
            f"{budget.prompt_tokens:,} prompt tokens and at most {budget.reply_tokens:,} reply tokens."
        ),
        soft_wrap=True,
    )
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("Nobody is here to agree to these calls.", "Give --yes to go on without asking.")
    if not typer.confirm("Go on?", err=True):
        raise UsageError("Nothing was asked and nothing was scored.", "Leave --judge out for the original metrics.")


class _Bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def show(self, done: int, total: int) -> None:
        if not self._console.is_terminal:
            return
        if self._progress is None:
            columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
            self._task = self._progress.add_task("judging", total=total)
        self._progress.update(self._task, completed=done, total=total)
        if done == total:
            self._progress.stop()
            self._progress = None


@dataclass
class LocalJudge:
    """A model of this machine as judge: greedy, one question at a time, loaded at the first one.

    Attributes:
        name: hub id, folder, GGUF file or ``demo``.
    """

    name: str
    home: Path
    concurrent: bool = False
    tries: int = 1

    def __post_init__(self) -> None:
        from lcbench.config.spec import ModelSpec

        self._spec = ModelSpec(self.name)
        self._loaded: LoadedModel | None = None
        self._info: ModelInfo | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that can change a reply: the weights, not their name alone."""
        if self._info is None:
            from lcbench.models.load import describe

            self._info, _ = describe(self._spec, self.home)
        return {
            "kind": "hf",
            "model": self.name,
            "identity": self._info.identity,
            "dtype": self._info.dtype,
            "chat_template_sha256": self._info.chat_template_sha256,
            "temperature": 0.0,
            "max_tokens": _LOCAL_TOKENS,
        }

    @property
    def label(self) -> str:
        return f"{self.name} on this machine"

    def ask(self, system: str, user: str) -> str:
        """The reply to both texts as one user turn (not every template knows a system turn).

        Raises:
            NoReply: the question is longer than the model's window.
        """
        from lcbench.endpoint.client import NoReply
        from lcbench.engine.generate import decode, prefill
        from lcbench.models.chat import encode_prompt
        from lcbench.models.load import load

        if self._loaded is None:
            self._loaded = load(self._spec, self.home)
        loaded = self._loaded
        ids = encode_prompt(loaded, f"{system}\n\n{user}", chat=True, chat_option=self._chat(loaded)).ids
        window = loaded.info.window
        if len(ids) + _LOCAL_TOKENS > window:
            raise NoReply(f"the question has {len(ids)} tokens, too many for the judge's window of {window}")
        record = prefill(loaded, ids)
        made = decode(loaded, record.cache, record.logits, max_new_tokens=_LOCAL_TOKENS)
        return str(loaded.tokenizer.decode(made.ids[: made.new_tokens], skip_special_tokens=True))

    def stop(self) -> None:
        """Nothing runs beside the caller."""

    @staticmethod
    def _chat(loaded: LoadedModel) -> str:
        return "auto" if loaded.info.chat_template_sha256 else "none"
