"""``lcbench compare``: do two methods really differ?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from lcbench.cli.least import at_least


def compare(
    what: list[str] | None = typer.Argument(
        None,
        metavar="[RUN] A B",
        help="Two methods of a run (of the latest run where none is named), two run directories, or RUN::METHOD twice.",
        show_default=False,
    ),
    baseline: str | None = typer.Option(
        None,
        "--baseline",
        "-b",
        help="Compare every method with this one; or published:TABLE/MODEL, e.g. published:longctx_bench/llama3-8b.",
        show_default=False,
    ),
    show: int = typer.Option(
        5, "--show", callback=at_least(0), help="How many of the samples that changed most are shown."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Also write the JSON to this file."),
) -> None:
    """Compare two methods, sample by sample: difference with interval, tests, wins and losses, and a verdict.

    What cannot be paired (other data, other prompts, other truncation) is refused with the reason.

    Example: lcbench compare runs/demo full kivi@bits=2
    """
    from lcbench.reporting.published import PREFIX

    console = Console(highlight=False)
    if baseline is not None and baseline.startswith(PREFIX):
        data, shown = _with_published(what or [], baseline, console)
    else:
        data, shown = _paired(what or [], baseline, show, console)
    if out is not None:
        from lcbench.store.files import write_json

        write_json(out, data)
        typer.echo(f"Written: {out}", err=True)
    if as_json:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=True))
    else:
        console.print(shown)


def _paired(what: list[str], baseline: str | None, show: int, console: Console) -> tuple[dict[str, Any], Any]:
    from lcbench.reporting.compare_view import render
    from lcbench.reporting.comparison import compare_all
    from lcbench.reporting.sides import pairs_of
    from lcbench.store.locate import latest_run

    found = compare_all(pairs_of(what, baseline, latest_run), show=show)
    data = {"schema_version": 1, "comparisons": [one.to_dict() for one in found]}
    return data, render(found, console)


def _with_published(what: list[str], baseline: str, console: Console) -> tuple[dict[str, Any], Any]:
    from lcbench.errors import UnknownName
    from lcbench.reporting import against_published
    from lcbench.reporting.build import build
    from lcbench.reporting.published import find
    from lcbench.reporting.same_method import key_of
    from lcbench.reporting.sides import split_words
    from lcbench.store.locate import latest_run
    from lcbench.store.rundir import RunDirectory

    table, rows = find(baseline)
    folders, names = split_words(what)
    folders = folders or [str(latest_run())]
    runs = [RunDirectory.open(folder) for folder in folders]
    report = build(runs)
    for name in names:
        if name not in [column.method for column in report.columns]:
            raise UnknownName("method", name, [column.method for column in report.columns], where=" in this run")
    keys = {method: key_of(run, method) for run in runs for method in run.methods}
    known = {method: dict(key[1]) for method, key in keys.items() if key is not None}
    found = against_published.beside(report.of_methods(names) if names else report, table, rows, known)
    return {"schema_version": 1, **found.to_dict()}, against_published.render(found, console)
