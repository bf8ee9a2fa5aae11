"""``lcbench bench``: speed and memory of methods, each measured alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from lcbench.cli.least import at_least
from lcbench.config.home import home as lcbench_home
from lcbench.config.options import split_items
from lcbench.config.sizes import parse_bytes
from lcbench.config.spec import make_spec
from lcbench.errors import BadValue, UsageError

if TYPE_CHECKING:
    from lcbench.bench.sweep import BenchSpec

_MOST = 2**31 - 1
_WHAT, _HOW, _MODEL = "What to measure", "How", "Model"


def bench(
    model: str | None = typer.Option(None, "--model", "-m", help="As in `lcbench run`.", rich_help_panel=_MODEL),
    random_weights: str | None = typer.Option(
        None,
        "--random-weights",
        metavar="NAME",
        help="Instead of --model: an architecture with random weights (llama-3-8b, mistral-7b, qwen2.5-7b, tiny, …; "
        "`lcbench list models` shows all), or a config.json.",
        rich_help_panel=_MODEL,
    ),
    method: list[str] | None = typer.Option(
        None, "--method", help="Methods to measure. Default: full,kivi.", rich_help_panel=_WHAT
    ),
    lengths: str = typer.Option(
        "1024", "--lengths", help="Prompt lengths in tokens, with commas.", rich_help_panel=_WHAT
    ),
    batch: str = typer.Option(
        "1", "--batch", help="Sequences decoded together, with commas: 1,8,32.", rich_help_panel=_WHAT
    ),
    max_batch: bool = typer.Option(
        False, "--max-batch", help="Also the largest batch that fits --memory.", rich_help_panel=_WHAT
    ),
    memory: str | None = typer.Option(
        None, "--memory", help="For --max-batch: 80GiB. Default: all of the GPU, or machine.", rich_help_panel=_WHAT
    ),
    new_tokens: int = typer.Option(
        32, "--new-tokens", callback=at_least(2), help="Tokens decoded of each sequence.", rich_help_panel=_HOW
    ),
    repeats: int = typer.Option(
        3, "--repeats", callback=at_least(1), help="Measured passes, after one that warms up.", rich_help_panel=_HOW
    ),
    prefill_chunk: int | None = typer.Option(
        None,
        "--prefill-chunk",
        callback=at_least(1),
        help="Read prompts in pieces of this many tokens.",
        rich_help_panel=_HOW,
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
    out: Path | None = typer.Option(
        None,
        "--out",
        "-o",
        help="Run directory that gets the efficiency.jsonl. Default: runs/bench-<model>.",
        rich_help_panel=_HOW,
    ),
    again: bool = typer.Option(
        False, "--again", help="Measure also what the run directory has already.", rich_help_panel=_HOW
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object a line on stdout.", rich_help_panel=_HOW),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress.", rich_help_panel=_HOW),
) -> None:
    """Measure time to first token, decoding speed and memory: method x length x batch, each alone, warmed up, repeated.

    Example: lcbench bench --random-weights tiny --method full,kivi --lengths 512,2048 --batch 1,8
    """
    if model is not None and random_weights is not None:
        raise UsageError("--model and --random-weights were both given.", "Give one of them.")
    if random_weights is not None and not random_weights.strip():
        raise UsageError("--random-weights names nothing.", "`lcbench list models` shows the architectures.")
    if memory is not None and not max_batch:
        raise UsageError("--memory says how much --max-batch may fill.", "Add --max-batch, or leave --memory out.")
    names = [m for text in method or ["full,kivi"] for m in split_items(text)]
    placing = {"dtype": dtype, "device": device, "attn": attn, "load_in": load_in, "revision": revision}
    spec = make_spec({"model": random_weights or model, "methods": names, **placing})
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    _quiet_torch()

    from lcbench.bench.sweep import BenchSpec

    wanted = BenchSpec(
        model=spec.model,
        random=random_weights is not None,
        methods=spec.methods,
        lengths=_numbers("--lengths", lengths),
        batches=_numbers("--batch", batch),
        new_tokens=new_tokens,
        repeats=repeats,
        prefill_chunk=prefill_chunk,
        max_batch=max_batch,
        memory=None if memory is None else parse_bytes(memory, "--memory"),
    )
    _go(wanted, out, console, again=again, as_json=as_json, quiet=quiet)


def _go(wanted: BenchSpec, out: Path | None, console: Console, *, again: bool, as_json: bool, quiet: bool) -> None:
    from lcbench.bench.sweep import Bench
    from lcbench.store.bench_folder import open_for_bench
    from lcbench.store.locate import bench_path

    made = Bench(wanted, lcbench_home(), (lambda text: None) if quiet else (lambda text: console.print(escape(text))))
    path = out or bench_path(made.info.name)
    rows: list[dict[str, Any]] = []
    kept = 0
    with open_for_bench(path, {"model": {"name": made.info.name}}, made.provenance()) as run:
        try:
            for row, was_there in made.rows(run, again=again):
                rows.append(row)
                kept += was_there
                if as_json:
                    typer.echo(json.dumps(row))
        except KeyboardInterrupt:
            there = f"{len(rows)} measurement{' is' if len(rows) == 1 else 's are'} in {path}"
            console.print(f"Stopped. {there}; the same command measures the rest.")
            raise typer.Exit(130) from None
    if as_json:
        _tell_no_room(rows, console)
    else:
        _show(rows, path)
    if kept and not quiet:
        console.print(f"{kept} of {len(rows)} were measured before and kept; --again measures them anew.")
    console.print(f"Next:  lcbench report {path}")
    if any(row["status"] != "ok" for row in rows):
        raise typer.Exit(1)


def _show(rows: list[dict[str, Any]], path: Path) -> None:
    from lcbench.reporting.efficiency import distinguished, rows_of
    from lcbench.reporting.efficiency_table import render

    table = Console(highlight=False)
    table.print(render(distinguished(rows_of(rows, str(path))), table))


def _tell_no_room(rows: list[dict[str, Any]], console: Console) -> None:
    """Below a table it stands among the notes."""
    from lcbench.reporting.efficiency import no_room, rows_of

    for sentence in no_room(rows_of(rows)):
        console.print(f"{escape(sentence)}.")


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = [int(piece) for piece in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1 or max(numbers) > _MOST or len(set(numbers)) < len(numbers):
        raise BadValue(f"{option} {text} is not a list of different whole numbers from 1.", f"Write {option} 1,4,16.")
    return tuple(numbers)


def _quiet_torch() -> None:
    """Counting memory on a CPU makes torch warn of tensors that are older than the count; must come before it."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
