"""``lcbench bench``: speed and memory of methods, each measured alone."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lcbench.config.home import home as lcbench_home
from lcbench.config.options import split_items
from lcbench.config.spec import make_spec
from lcbench.errors import BadValue


def bench(
    model: str | None = typer.Option(None, "--model", "-m", help="As in `lcbench run`."),
    method: list[str] | None = typer.Option(None, "--method", help="Methods to measure. Default: full,kivi."),
    lengths: str = typer.Option("1024", "--lengths", help="Prompt lengths in tokens, with commas."),
    new_tokens: int = typer.Option(32, "--new-tokens", min=2, help="Tokens decoded a repeat."),
    repeats: int = typer.Option(3, "--repeats", min=1, help="Measured repeats after one warm-up."),
    dtype: str | None = typer.Option(None, "--dtype", help="auto | float32 | float16 | bfloat16."),
    device: str | None = typer.Option(None, "--device", help="auto | cpu | cuda:0."),
    attn: str | None = typer.Option(None, "--attn", help="auto | sdpa | flash_attention_2."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Run directory that gets an efficiency.jsonl."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object a line on stdout."),
) -> None:
    """Measure time to first token, decoding speed and KV bytes of methods, each alone, warmed up, repeated."""
    sizes = _sizes(lengths)
    names = [m for text in method or ["full,kivi"] for m in split_items(text)]
    spec = make_spec({"model": model, "methods": names, "dtype": dtype, "device": device, "attn": attn})
    console = Console(stderr=True, highlight=False)

    from lcbench.bench.efficiency import measure
    from lcbench.methods.registry import resolve
    from lcbench.models.load import load
    from lcbench.store.rundir import RunDirectory

    methods = [resolve(name) for name in spec.methods]
    run = RunDirectory.open(out) if out is not None else None
    loaded = load(spec.model, lcbench_home(), say=lambda text: console.print(escape(text)))
    methods = [one.bind(loaded.info, lcbench_home()) for one in methods]
    table = Table("method", "prompt", "first token s", "tokens/s", "KV MiB", "ratio", "peak MiB")
    for size in sizes:
        for one in methods:
            cell = measure(loaded, one, prompt_tokens=size, new_tokens=new_tokens, repeats=repeats)
            row = {
                **cell.to_dict(),
                "model": loaded.info.name,
                "dtype": loaded.info.dtype,
                "device": loaded.info.device,
            }
            if run is not None:
                run.append_efficiency(row)
            if as_json:
                typer.echo(json.dumps(row))
            table.add_row(
                escape(cell.method),
                f"{size:,}",
                f"{cell.time_to_first_token:.3f}",
                f"{cell.decode_tokens_per_second:.1f}",
                f"{cell.kv_bytes / 2**20:.2f}",
                f"{cell.kv_bytes_full / cell.kv_bytes:.2f}x",
                f"{cell.peak_bytes / 2**20:,.0f}",
            )
    if not as_json:
        Console().print(table)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(piece) for piece in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise BadValue(f"--lengths {text} is not a list of whole numbers.", "Write --lengths 1024,4096.")
    return sizes
