"""``lcbench run``: answer the tasks with every method, continue where a killed run stopped."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from lcbench.config.home import home as lcbench_home
from lcbench.config.spec import make_spec
from lcbench.errors import UsageError

if TYPE_CHECKING:
    from lcbench.engine.run import Outcome
    from lcbench.engine.session import Session

MODEL = "Demo model ('demo'), hub id, local folder or GGUF file. Default: LCBENCH_MODEL, else demo."


def run(
    model: str | None = typer.Option(None, "--model", "-m", help=MODEL, rich_help_panel="What to run"),
    method: list[str] | None = typer.Option(
        None,
        "--method",
        help="Methods: full,kivi@bits=2,streamingllm@budget=512. Default: full.",
        rich_help_panel="What to run",
    ),
    task: list[str] | None = typer.Option(
        None,
        "--task",
        "-t",
        help="Tasks, categories or benchmarks: qasper,few-shot. Default: a small passkey.",
        rich_help_panel="What to run",
    ),
    set_: list[str] | None = typer.Option(
        None, "--set", help="key=value for every chosen method that has the parameter.", rich_help_panel="What to run"
    ),
    config: Path | None = typer.Option(
        None,
        "--config",
        "-c",
        help="YAML file with the same keys; the command line wins.",
        rich_help_panel="What to run",
    ),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="Run directory. Default: a readable name under runs/.", rich_help_panel="What to run"
    ),
    limit: int | None = typer.Option(
        None, "--limit", "-n", help="Rows a task, from the first.", rich_help_panel="How much"
    ),
    max_input_tokens: int | None = typer.Option(
        None,
        "--max-input-tokens",
        help="Cut prompts to this many tokens (chat format and answer on top); shown in every table.",
        rich_help_panel="How much",
    ),
    over_length: str | None = typer.Option(
        None,
        "--over-length",
        help="A prompt that its task does not cut and that does not fit: error | truncate | skip. Default: error.",
        rich_help_panel="How much",
    ),
    truncation: str | None = typer.Option(
        None,
        "--truncation",
        help="How long prompts lose their middle: middle (as LongBench) | exact-ids.",
        rich_help_panel="How much",
    ),
    context: str | None = typer.Option(
        None, "--context", help="full | none (ask without the context: contamination).", rich_help_panel="How much"
    ),
    question: str | None = typer.Option(
        None,
        "--question",
        help="visible | hidden: methods compress the context before they see the question. Default: visible.",
        rich_help_panel="How much",
    ),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print the plan (jobs, lengths, memory, time) and stop.", rich_help_panel="How much"
    ),
    dtype: str | None = typer.Option(
        None, "--dtype", help="auto | float32 | float16 | bfloat16.", rich_help_panel="Model"
    ),
    device: str | None = typer.Option(
        None, "--device", help="auto | cpu | cuda:0 | auto-map (over all GPUs).", rich_help_panel="Model"
    ),
    attn: str | None = typer.Option(None, "--attn", help="auto | sdpa | flash_attention_2.", rich_help_panel="Model"),
    load_in: str | None = typer.Option(
        None, "--load-in", help="8bit | 4bit weights, through bitsandbytes.", rich_help_panel="Model"
    ),
    revision: str | None = typer.Option(None, "--revision", help="Hub branch, tag or commit.", rich_help_panel="Model"),
    trust_remote_code: bool | None = typer.Option(
        None,
        "--trust-remote-code/--no-trust-remote-code",
        help="Run Python code from the model's repository.",
        rich_help_panel="Model",
    ),
    chat: str | None = typer.Option(
        None,
        "--chat",
        help="auto (the tokenizer's template) | official (LongBench's by family) | none | FILE.",
        rich_help_panel="Model",
    ),
    prefill_chunk: int | None = typer.Option(
        None, "--prefill-chunk", help="Read prompts in pieces of this many tokens.", rich_help_panel="Model"
    ),
    exact: bool | None = typer.Option(
        None,
        "--exact",
        help="Decode every answer alone instead of many in one batch.",
        rich_help_panel="Model",
        show_default=False,
    ),
    seed: int | None = typer.Option(None, "--seed", help="Default 42.", rich_help_panel="Model"),
    workers: str = typer.Option(
        "1",
        "--workers",
        metavar="auto|N",
        help="Processes, each with the model: one a GPU, or N on a CPU. auto: every GPU.",
        rich_help_panel="Model",
    ),
    quiet: bool = typer.Option(
        False, "--quiet", "-q", help="No progress; only the result and errors.", rich_help_panel="How much"
    ),
) -> None:
    """Run methods on tasks with a model; running the same command again continues and finishes the run.

    Example: lcbench run --model demo --method full,kivi@bits=2 --task passkey@lengths=384,depths=5,repeats=1
    """
    spec = make_spec(
        {
            "model": model,
            "methods": method or None,
            "tasks": task or None,
            "settings": _settings(set_),
            "limit": limit,
            "max_input_tokens": max_input_tokens,
            "over_length": over_length,
            "truncation": truncation,
            "context": context,
            "question": question,
            "exact": exact,
            "dtype": dtype,
            "device": device,
            "attn": attn,
            "load_in": load_in,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "chat": chat,
            "prefill_chunk": prefill_chunk,
            "seed": seed,
        },
        config,
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    say: Callable[[str], None] = (lambda text: None) if quiet else (lambda text: console.print(escape(text)))

    from lcbench.engine.session import open_session

    session = open_session(spec, lcbench_home(), say=say)
    if dry_run:
        from lcbench.cli.plan_view import show_plan

        show_plan(session.plan(), out or session.default_path())
        return
    _go(session, out or session.default_path(), console, quiet, say, workers)


def _settings(pairs: list[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    result = {}
    for pair in pairs:
        key, eq, value = pair.partition("=")
        if not eq or not key or not value:
            raise UsageError(f"--set {pair} is not key=value.", "Write --set budget=0.25.")
        result[key] = value
    return result


def _go(session: Session, path: Path, console: Console, quiet: bool, say: Callable[[str], None], workers: str) -> None:
    from lcbench.cli.progress import RunProgress
    from lcbench.engine.workers import devices_of

    devices = devices_of(workers, session.spec.model.device, session.info.device)
    stop = _StopOnInterrupt(say)
    with session.open_run(path, devices) as running:
        for message in running.messages:
            say(message)
        say(f"Run directory: {path}")
        with RunProgress(console, running.sets, running.remaining_cost, quiet=quiet) as progress, stop:
            outcome = running.execute(listener=progress.on_event, should_stop=stop.requested)
    _report_outcome(outcome, path)


def _report_outcome(outcome: Outcome, path: Path) -> None:
    command = " ".join(_quote(word) for word in ["lcbench", *sys.argv[1:]])
    total = outcome.written + outcome.reused
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
        typer.echo(f"To try them again, run the same command:\n  {command}")
    typer.echo(f"Next:  lcbench score {_quote(str(path))}")
    if outcome.failed:
        raise typer.Exit(1)


def _quote(word: str) -> str:
    import shlex

    return shlex.quote(word)


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
