"""``lcbench report``: runs as a table, on the terminal or as a file, and as figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lcbench.errors import BadValue, CannotWrite, UnknownName

if TYPE_CHECKING:
    from lcbench.reporting.figures.drawn import Drawn
    from lcbench.reporting.samples import Samples
    from lcbench.reporting.table import Report
    from lcbench.store.rundir import RunDirectory

FORMATS = ("table", "md", "csv", "latex", "json", "parquet", "html")
_SUFFIXES = {
    ".md": "md",
    ".markdown": "md",
    ".csv": "csv",
    ".tex": "latex",
    ".json": "json",
    ".parquet": "parquet",
    ".html": "html",
    ".htm": "html",
    ".txt": "table",
}
_FILE_WIDTH = 200


def report(
    runs: list[Path] | None = typer.Argument(
        None, help="Run directories. Default: the latest run.", show_default=False
    ),
    format_: str | None = typer.Option(
        None,
        "--format",
        "-f",
        help="table | md | csv | latex | json | parquet | html. Default: by the name of --out, else table.",
        show_default=False,
    ),
    out: Path | None = typer.Option(None, "--out", "-o", help="Write to this file instead of the terminal."),
    figures: Path | None = typer.Option(
        None, "--figures", help="Also write the figures into this folder, each as svg, pdf and png."
    ),
    extras: str = typer.Option(
        "", "--with", help="latex: n, interval or both (n,interval), beside the scores.", show_default=False
    ),
    every_task: bool = typer.Option(
        False, "--every-task", help="table: each task on its own also where categories would be folded."
    ),
    with_published: bool = typer.Option(
        False, "--with-published", help="Published models of 100-LongBench beside one's own, in rankings and curves."
    ),
) -> None:
    """Print scores, KV bytes and savings: tasks down, methods across; several runs are merged by model and method.

    html is one file with a table that sorts and filters, the figures, and the samples behind every number.

    Example: lcbench report runs/a runs/b --out results.html --figures figures
    """
    chosen = format_ or _by_name(out)
    if chosen not in FORMATS:
        raise UnknownName("format", chosen, FORMATS)
    _agree(chosen, out)
    wanted = _extras(extras, chosen)

    from lcbench.reporting.build import build
    from lcbench.store.locate import latest_run
    from lcbench.store.rundir import RunDirectory

    if chosen == "parquet" and out is None and sys.stdout.isatty():
        raise BadValue("Parquet is no text for a terminal.", "Name a file: --out results.parquet")
    if out is not None and not out.parent.is_dir():
        raise CannotWrite(f"Cannot write {out}: there is no folder {out.parent}.", "Make it first, or name another.")
    opened = [RunDirectory.open(path) for path in runs or [latest_run()]]
    made = build(opened, with_published=with_published)
    samples, drawn, missing = _drawn(made, opened, wanted=figures is not None, page=chosen == "html")
    if figures is not None:
        _write_figures(drawn, missing, figures)
    if chosen == "table":
        _table(made, out, fold=not every_task)
        return
    if chosen in ("csv", "parquet") and made.efficiency:
        typer.echo(f"{chosen} has scores alone; what `lcbench bench` measured is in the other formats.", err=True)
    _deliver(_rendered(chosen, made, opened, samples, drawn, missing, wanted), out)


def _by_name(out: Path | None) -> str:
    """The format that a file's name asks for."""
    suffix = out.suffix.lower() if out else ""
    if suffix and suffix not in _SUFFIXES:
        raise BadValue(
            f"No format is known for {out}: the name ends in {out.suffix if out else suffix}.",
            f"End it in one of {' '.join(_SUFFIXES)}, or add --format table.",
        )
    return _SUFFIXES.get(suffix, "table")


def _agree(chosen: str, out: Path | None) -> None:
    """Refuse a file whose name says another format than ``--format``."""
    said = _SUFFIXES.get(out.suffix.lower()) if out else None
    if said not in (None, "table", chosen):  # .txt may hold anything
        raise BadValue(
            f"{out} is named as {said}, and --format says {chosen}.",
            "Leave out --format, or give the file another ending.",
        )


def _extras(text: str, chosen: str) -> list[str]:
    from lcbench.reporting.latex import EXTRAS

    wanted = [piece.strip() for piece in text.split(",") if piece.strip()]
    for piece in wanted:
        if piece not in EXTRAS:
            raise UnknownName("word in --with", piece, EXTRAS)
    if wanted and chosen != "latex":
        raise BadValue(f"--with {text} is for LaTeX tables; the format is {chosen}.", "Add --format latex.")
    return wanted


def _drawn(
    made: Report, runs: Sequence[RunDirectory], *, wanted: bool, page: bool
) -> tuple[Samples, list[Drawn], list[str]]:
    """Samples and figures where they are needed. A page goes without figures where they cannot be drawn."""
    if not wanted and not page:
        return {}, [], []
    from lcbench.reporting.figures.make import figures_of
    from lcbench.reporting.figures.style import MISSING, has_matplotlib
    from lcbench.reporting.samples import samples_of

    samples = samples_of(made, runs)
    if not wanted and not has_matplotlib():
        return samples, [], [MISSING]
    return samples, *figures_of(made, samples, runs)


def _write_figures(drawn: Sequence[Drawn], missing: Sequence[str], folder: Path) -> None:
    from lcbench.reporting.figures.make import write_figures

    write_figures(drawn, folder)
    for one in drawn:
        typer.echo(f"Written: {folder / one.name}.svg, .pdf, .png", err=True)
    for sentence in missing:
        typer.echo(sentence, err=True)


def _rendered(
    chosen: str,
    made: Report,
    runs: Sequence[RunDirectory],
    samples: Samples,
    drawn: Sequence[Drawn],
    missing: Sequence[str],
    extras: Sequence[str],
) -> str | bytes:
    from importlib import import_module

    if chosen == "html":
        from lcbench.reporting.page.render import render

        return render(made, samples, runs, drawn, missing)
    module: Any = import_module(
        "lcbench.reporting."
        + {"md": "markdown", "csv": "csv_", "json": "json_", "latex": "latex", "parquet": "parquet"}[chosen]
    )
    text: str | bytes = module.render(made, extras) if chosen == "latex" else module.render(made)
    return text


def _table(made: Report, out: Path | None, *, fold: bool) -> None:
    import io

    from rich.console import Console

    from lcbench.reporting.terminal import render

    if out is None:
        console = Console(highlight=False)
        console.print(render(made, console, fold=fold))
        return
    buffer = io.StringIO()
    console = Console(file=buffer, width=_FILE_WIDTH, highlight=False, color_system=None, force_terminal=False)
    console.print(render(made, console))
    _deliver("".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines()), out)


def _deliver(content: str | bytes, out: Path | None) -> None:
    """To the file, or pure to stdout (text as UTF-8, whatever the locale says)."""
    if out is None:
        typer.echo(content.encode("utf-8") if isinstance(content, str) else content, nl=False)
        return
    from lcbench.store.files import write_bytes, write_text

    if isinstance(content, str):
        write_text(out, content)
    else:
        write_bytes(out, content)
    typer.echo(f"Written: {out}", err=True)
