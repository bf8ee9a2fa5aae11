"""``lcbench inspect``: which tokens of a prompt a method keeps, layer by layer and head by head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from lcbench.cli.least import at_least
from lcbench.config.home import home as lcbench_home
from lcbench.config.spec import make_spec
from lcbench.errors import UsageError

if TYPE_CHECKING:
    from lcbench.inspected import Inspection

_PROMPT, _STEPS, _OUT, _MODEL = "Prompt (one of the three)", "After the prompt", "Output", "Model"


def inspect(
    model: str | None = typer.Option(None, "--model", "-m", help="As in `lcbench run`.", rich_help_panel=_MODEL),
    method: list[str] | None = typer.Option(
        None, "--method", help="One method, e.g. snapkv@budget=0.25. Default: full.", rich_help_panel=_MODEL
    ),
    prompt: Path | None = typer.Option(
        None, "--prompt", metavar="FILE", help="A text, fed as it is (see --chat).", rich_help_panel=_PROMPT
    ),
    task: str | None = typer.Option(
        None, "--task", "-t", help="One task: the prompt that a run would ask.", rich_help_panel=_PROMPT
    ),
    index: int | None = typer.Option(
        None,
        "--index",
        "-i",
        callback=at_least(0),
        help="Row of the task, from 0. Default: 0.",
        rich_help_panel=_PROMPT,
    ),
    token_ids: Path | None = typer.Option(
        None, "--token-ids", metavar="FILE", help="JSON list of ids; needs no tokenizer.", rich_help_panel=_PROMPT
    ),
    chat: str | None = typer.Option(
        None,
        "--chat",
        help="Chat format: auto | official | none | FILE. Default: none for --prompt, auto for --task.",
        rich_help_panel=_PROMPT,
    ),
    steps: int | None = typer.Option(
        None,
        "--steps",
        callback=at_least(0),
        help="Tokens decoded, to see what is fetched and merged then. Default: 8 for such methods, else 0.",
        rich_help_panel=_STEPS,
    ),
    logits: int | None = typer.Option(
        None,
        "--logits",
        metavar="N",
        callback=at_least(1),
        help="Decode N tokens and add the logits at each to --json.",
        rich_help_panel=_STEPS,
    ),
    force: Path | None = typer.Option(
        None,
        "--force",
        metavar="FILE",
        help="JSON list of the ids to feed then. Default: the method's own greedy tokens.",
        rich_help_panel=_STEPS,
    ),
    html: Path | None = typer.Option(
        None, "--html", metavar="FILE", help="Write one HTML file with a slider over layers.", rich_help_panel=_OUT
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout.", rich_help_panel=_OUT),
    details: bool = typer.Option(
        False, "--details", help="Add errors, merges and what was fetched to --json.", rich_help_panel=_OUT
    ),
    prefill_chunk: int | None = typer.Option(
        None,
        "--prefill-chunk",
        callback=at_least(1),
        help="Read the prompt in pieces of this many tokens.",
        rich_help_panel=_MODEL,
    ),
    dtype: str | None = typer.Option(
        None, "--dtype", help="auto | float32 | float16 | bfloat16.", rich_help_panel=_MODEL
    ),
    device: str | None = typer.Option(None, "--device", help="auto | cpu | cuda:0.", rich_help_panel=_MODEL),
    attn: str | None = typer.Option(None, "--attn", help="auto | sdpa | flash_attention_2.", rich_help_panel=_MODEL),
    load_in: str | None = typer.Option(
        None, "--load-in", help="8bit | 4bit weights, through bitsandbytes.", rich_help_panel=_MODEL
    ),
    revision: str | None = typer.Option(None, "--revision", help="Hub branch, tag or commit.", rich_help_panel=_MODEL),
    seed: int | None = typer.Option(None, "--seed", help="Default 42.", rich_help_panel=_MODEL),
) -> None:
    """Show which tokens of one prompt survive one method, by layer and KV head, and what else it does to them.

    Example: lcbench inspect --method snapkv@budget=0.25 --task passkey@lengths=384,depths=5,repeats=1
    """
    _check_words(prompt, task, index, token_ids, steps, logits, force, html, as_json=as_json, details=details)
    chosen = chat or ("auto" if task is not None else "none")
    placing = {"dtype": dtype, "device": device, "attn": attn, "load_in": load_in, "revision": revision}
    spec = make_spec(
        {"model": model, "methods": method, "chat": chosen, "seed": seed, "prefill_chunk": prefill_chunk, **placing}
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)

    from lcbench.engine.inspection.examine import Request, inspect
    from lcbench.engine.inspection.inputs import Source

    source = Source(prompt, token_ids, task, index or 0)
    request = Request(spec, source, logits or steps, logits is not None, force)
    found = inspect(request, lcbench_home(), say=lambda text: console.print(escape(text)))
    _show(found, html, console, as_json=as_json, details=details)


def _show(found: Inspection, html: Path | None, console: Console, *, as_json: bool, details: bool) -> None:
    if html is not None:
        from lcbench.reporting.inspection.page import render as page
        from lcbench.store.files import write_text

        write_text(html, page(found))
        console.print(f"Written: {escape(str(html))}")
    if as_json:
        typer.echo(json.dumps(found.to_json(details=details)))
    elif html is None:
        from lcbench.reporting.inspection.terminal import render

        screen = Console(highlight=False)
        screen.print(render(found, screen))


def _check_words(
    prompt: Path | None,
    task: str | None,
    index: int | None,
    token_ids: Path | None,
    steps: int | None,
    logits: int | None,
    force: Path | None,
    html: Path | None,
    *,
    as_json: bool,
    details: bool,
) -> None:
    given = [
        name
        for name, value in (("--prompt", prompt), ("--task", task), ("--token-ids", token_ids))
        if value is not None
    ]
    if not given:
        raise UsageError("No prompt was given.", "Add --prompt FILE, --task T --index I, or --token-ids FILE.")
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} both give the prompt.", "Give one of them.")
    if index is not None and task is None:
        raise UsageError("--index chooses a row of a task, and no --task was given.", "Add --task T.")
    if steps is not None and logits is not None:
        raise UsageError("--steps and --logits both say how many tokens are decoded.", "Give one of them.")
    if force is not None and steps is None and logits is None:
        raise UsageError("--force gives the tokens of steps, and no steps were asked for.", "Add --logits N.")
    if logits is not None and not as_json:
        raise UsageError("--logits adds numbers to --json, which was not asked for.", "Add --json.")
    if html is not None and not html.expanduser().absolute().parent.is_dir():
        raise UsageError(f"--html {html}: there is no such folder.", "Make the folder first.")
    if html is not None and html.is_dir():
        raise UsageError(f"--html {html} is a folder.", "Name a file in it.")
    if details and not as_json:
        raise UsageError("--details adds to --json, which was not asked for.", "Add --json.")
