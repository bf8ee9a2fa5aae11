"""``lcbench runs``: which runs there are, and in what state."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lcbench.errors import NotARun, UnknownName

if TYPE_CHECKING:
    from lcbench.store.survey import RunState

STATES = ("finished", "unfinished", "failing", "running", "broken")
_STYLES = {"finished": "green", "unfinished": "yellow", "failing": "red", "running": "cyan", "broken": "red"}


def runs(
    folders: list[Path] | None = typer.Argument(
        None, help="Folders to look into, three levels deep. Default: runs/ here.", show_default=False
    ),
    state: str | None = typer.Option(None, "--state", help="Only runs in this state.", show_default=False),
    as_json: bool = typer.Option(False, "--json", help="One JSON list on stdout."),
) -> None:
    """List run directories: finished, unfinished (samples are missing), failing (samples ended in errors), running.

    The same `lcbench run` command as before finishes an unfinished run and tries failed samples again.

    Example: lcbench runs --state failing
    """
    if state is not None and state not in STATES:
        raise UnknownName("state", state, STATES)

    from lcbench.store.survey import find_runs, survey

    for folder in folders or []:
        if not folder.is_dir():
            raise NotARun(f"{folder} is not a folder.", "Name a folder that holds runs.")
    found = [survey(path) for path in find_runs(folders or [Path("runs")])]
    found = [one for one in found if state is None or one.state == state]
    found.sort(key=lambda one: one.changed, reverse=True)
    if as_json:
        typer.echo(json.dumps([one.to_dict() for one in found], indent=2))
        return
    if not found:
        where = ", ".join(map(str, folders)) if folders else "runs/"
        which = f"{state} runs" if state else "runs"
        typer.echo(f"No {which} in {where}. Make one: lcbench run --model demo --method full,kivi")
        return
    _show(found)


def _show(found: list[RunState]) -> None:
    from lcbench.reporting.words import clean

    console = Console(highlight=False)
    wide = console.width >= 110
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    table.add_column("failed", justify="right", no_wrap=True)
    table.add_column("scored", no_wrap=True)
    if wide:
        table.add_column("model", overflow="fold")
        table.add_column("methods × tasks", justify="right", no_wrap=True)
    table.add_column("changed (UTC)", no_wrap=True)
    for one in found:
        total = "" if one.wanted is None else f"/{one.wanted}"
        more = [clean(one.model), f"{len(one.methods)} × {len(one.tasks)}"] if wide else []
        table.add_row(
            Text(clean(str(one.path))),
            Text(one.state, _STYLES[one.state]),
            "" if one.state == "broken" else f"{one.done}{total}",
            Text(str(one.failed), "bold red") if one.failed else "",
            "yes" if one.scored else "",
            *more,
            one.changed[:16].replace("T", " "),
        )
    console.print(table)
    for one in found:
        if one.problem:
            console.print(Text(f"{clean(str(one.path))}: {clean(one.problem)}", "dim"), soft_wrap=True)
    newest = next((one for one in found if one.state in ("finished", "failing", "unfinished") and one.done), None)
    if newest is not None:
        console.print(Text(f"Next:    lcbench report {shlex.quote(str(newest.path))}"), soft_wrap=True)
