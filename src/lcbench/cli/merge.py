"""``lcbench merge``: join the shards of a run."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from lcbench.errors import NotARun


def merge(
    out: Path = typer.Argument(..., help="The run: where --out of the shards pointed, or a new folder.", metavar="RUN"),
    shards: list[Path] | None = typer.Argument(
        None, help="Folders of its shards, wherever they are now. Default: RUN/shards/*.", show_default=False
    ),
) -> None:
    """Join the shards of `lcbench run --shard` into one run directory, equal to that of an undivided run.

    Every shard must be there once, belong to the same run and be finished; else nothing is written.

    Example: lcbench merge runs/big
    """
    from lcbench.store.merge import merge as join
    from lcbench.store.shards import shards_of

    folders = shards or shards_of(out)
    if not folders and not out.exists():
        raise NotARun(f"{out} does not exist.", f"Make it: lcbench run … --out {out} --shard 1/8")
    if not folders:
        raise NotARun(f"There are no shards in {out}.", f"Make one: lcbench run … --out {out} --shard 1/8")
    done = join(out, folders)
    for line in done.warnings:
        typer.echo(line, err=True)
    typer.echo(f"Merged {done.shards} shards: {done.samples} samples in {out}.")
    if done.failed:
        typer.echo(f"{done.failed} failed; to try them again, run the same command without --shard.")
    typer.echo(f"Next:  lcbench score {shlex.quote(str(out))}")
    if done.failed:
        raise typer.Exit(1)
