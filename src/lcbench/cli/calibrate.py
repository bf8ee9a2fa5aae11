"""``lcbench calibrate``: measure once what a method needs to know of a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from lcbench.cli.least import at_least
from lcbench.config.home import home as lcbench_home
from lcbench.config.spec import make_spec
from lcbench.errors import BadValue


def calibrate(
    name: str = typer.Argument(
        help="headkv (both tables of head scores), headkv-r2, aqua-kv (predictors for 2 bits), aqua-kv-3bit, "
        "aqua-kv-4bit, minference (head patterns), end (a prober on early layers) or positional-hidden (the channel it "
        "scales)."
    ),
    model: str | None = typer.Option(None, "--model", "-m", help="As in `lcbench run`."),
    samples: int | None = typer.Option(
        None, "--samples", callback=at_least(1), help="Probes asked of each kind, or texts read."
    ),
    lengths: str | None = typer.Option(
        None,
        "--lengths",
        help="Words of filler in the probes, e.g. 150,300,600; or tokens of each text or string, e.g. 1024.",
    ),
    seed: int = typer.Option(42, "--seed", help="Of everything that is drawn."),
    source: Path | None = typer.Option(
        None, "--from", help="Take over a published file of head scores or patterns instead."
    ),
    text: Path | None = typer.Option(
        None,
        "--text",
        help="Text that aqua-kv and minference read; default: the language reference that Python carries.",
    ),
    dtype: str | None = typer.Option(None, "--dtype", help="auto | float32 | float16 | bfloat16."),
    device: str | None = typer.Option(None, "--device", help="auto | cpu | cuda:0."),
    revision: str | None = typer.Option(None, "--revision", help="Hub branch, tag or commit."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object a stored file on stdout."),
) -> None:
    """Measure what a calibrated method needs of a model, once; the result is kept below LCBENCH_HOME."""
    spec = make_spec({"model": model, "dtype": dtype, "device": device, "revision": revision})
    sizes = None if lengths is None else _sizes(lengths)
    console = Console(stderr=True, highlight=False)

    from lcbench.engine.calibrate import Request, calibrate

    request = Request(name, spec.model, lcbench_home(), samples, sizes, seed, source, text)
    with console.status("Loading …") if console.is_terminal else _Quiet() as status:
        made = calibrate(
            request,
            say=lambda text: console.print(escape(text)),
            progress=lambda what, done, total: status.update(f"{what}: {done} of {total}"),
        )
    for one in made:
        if as_json:
            typer.echo(json.dumps({"name": one.name, "path": str(one.path), "summary": one.summary}))
        else:
            Console(highlight=False, soft_wrap=True).print(
                f"{one.name}: {escape(one.summary)}\n  {escape(str(one.path))}"
            )


class _Quiet:
    """Stands in for a spinner where nobody watches: a line now and then."""

    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, text: str) -> None:
        done, _, total = text.rpartition(": ")[2].partition(" of ")
        if done == total:
            print(f"{text}.", file=sys.stderr)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(piece) for piece in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise BadValue(f"--lengths {text} is not a list of whole numbers.", "Write --lengths 150,300,600.")
    return sizes
