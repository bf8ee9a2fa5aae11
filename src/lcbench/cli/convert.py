"""``lcbench convert``: a model turned into another form that lcbench runs."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from lcbench.cli.least import at_least
from lcbench.config.home import home as lcbench_home
from lcbench.config.spec import make_spec
from lcbench.errors import BadValue

_SELECTIONS = ("high", "low", "uniform", "2-norm")


def convert(
    name: str = typer.Argument(
        help="mha2mla (a Llama model to latent attention, by joint SVD) or rwkv5 (a published RWKV-5 .pth file to a "
        "model folder)."
    ),
    out: Path = typer.Option(..., "--out", "-o", help="Folder to write; must not be there yet."),
    model: str | None = typer.Option(None, "--model", "-m", help="mha2mla: as in `lcbench run`."),
    rope_dims: int | None = typer.Option(
        None, "--rope-dims", help="mha2mla: dimensions of each head that stay rotated, an even number."
    ),
    rank: int | None = typer.Option(None, "--rank", help="mha2mla: latent values a token for each KV head."),
    select: str = typer.Option(
        "high", "--select", help="mha2mla: which pairs stay rotated: high, low (frequencies), uniform or 2-norm."
    ),
    start: int = typer.Option(0, "--start", callback=at_least(0), help="mha2mla: first pair of --select uniform."),
    text: Path | None = typer.Option(
        None, "--text", help="Text for --select 2-norm; default: the language reference that Python carries."
    ),
    samples: int = typer.Option(
        16, "--samples", callback=at_least(2), help="Sequences of 512 tokens read for --select 2-norm."
    ),
    source: Path | None = typer.Option(None, "--from", help="rwkv5: the .pth file."),
    vocabulary: Path | None = typer.Option(
        None, "--vocabulary", help="rwkv5: the World vocabulary, rwkv_vocab_v20230424.txt."
    ),
    dtype: str | None = typer.Option(None, "--dtype", help="auto | float32 | float16 | bfloat16."),
    device: str | None = typer.Option(None, "--device", help="auto | cpu | cuda:0."),
) -> None:
    """Turn a model into another form that lcbench runs, written as a model folder.

    Example: lcbench convert mha2mla --model demo --rope-dims 32 --rank 64 --out smollm2-mla
    """
    if select not in _SELECTIONS:
        raise BadValue(f"--select {select} is none of {', '.join(_SELECTIONS)}.", "Write e.g. --select high.")
    spec = make_spec({"model": model, "dtype": dtype, "device": device})
    console = Console(stderr=True, highlight=False, soft_wrap=True)

    from lcbench.engine.convert import Request, run

    request = Request(
        name=name,
        model=spec.model,
        home=lcbench_home(),
        out=out,
        rope_dims=rope_dims,
        rank=rank,
        select=select,  # type: ignore[arg-type]
        start=start,
        text=text,
        samples=samples,
        source=source,
        vocabulary=vocabulary,
    )
    done = run(request, say=lambda text: console.print(escape(text)))
    Console(highlight=False, soft_wrap=True).print(escape(done))
    console.print(escape(f"Next:  lcbench run --model {out} --method full --task …"))
