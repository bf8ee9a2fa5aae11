"""``lcbench report``: runs as a table, on the terminal or as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lcbench.errors import UnknownName

if TYPE_CHECKING:
    from lcbench.reporting.table import Report

FORMATS = ("table", "md", "csv", "json")
_SUFFIXES = {".md": "md", ".markdown": "md", ".csv": "csv", ".json": "json"}
_FILE_WIDTH = 200


def report(
    runs: list[Path] | None = typer.Argument(
        None, help="Run directories. Default: the latest run.", show_default=False
    ),
    format_: str | None = typer.Option(
        None,
        "--format",
        "-f",
        help="table | md | csv | json. Default: by the name of --out, else table.",
        show_default=False,
    ),
    out: Path | None = typer.Option(None, "--out", "-o", help="Write to this file instead of the terminal."),
    with_published: bool = typer.Option(
        False, "--with-published", help="Published models of 100-LongBench beside one's own, in rankings and curves."
    ),
) -> None:
    """Print scores, KV bytes and savings: tasks down, methods across; several runs are merged by model and method.

    Example: lcbench report runs/a runs/b --format md --out results.md
    """
    chosen = format_ or _SUFFIXES.get(out.suffix.lower() if out else "", "table")
    if chosen not in FORMATS:
        raise UnknownName("format", chosen, FORMATS)

    from lcbench.reporting.build import build
    from lcbench.store.locate import latest_run
    from lcbench.store.rundir import RunDirectory

    made = build([RunDirectory.open(path) for path in runs or [latest_run()]], with_published=with_published)
    if chosen == "table":
        _table(made, out)
        return
    from importlib import import_module

    module = {"md": "markdown", "csv": "csv_", "json": "json_"}[chosen]
    text = import_module(f"lcbench.reporting.{module}").render(made)
    _deliver(text, out)


def _table(made: Report, out: Path | None) -> None:
    import io

    from rich.console import Console

    from lcbench.reporting.terminal import render

    if out is None:
        console = Console(highlight=False)
        console.print(render(made, console))
        return
    buffer = io.StringIO()
    console = Console(file=buffer, width=_FILE_WIDTH, highlight=False, color_system=None, force_terminal=False)
    console.print(render(made, console))
    _deliver("".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines()), out)


def _deliver(text: str, out: Path | None) -> None:
    """To the file, or pure to stdout (as UTF-8, whatever the locale says)."""
    if out is None:
        typer.echo(text.encode("utf-8"), nl=False)
        return
    from lcbench.store.files import write_text

    write_text(out, text)
    typer.echo(f"Written: {out}", err=True)
