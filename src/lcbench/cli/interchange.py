"""``lcbench export`` and ``lcbench import``: other tools' files."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from lcbench.errors import CannotWrite, UnknownName, UsageError

FORMATS = ("lm-eval", "parquet")


def export(
    runs: list[Path] | None = typer.Argument(
        None, help="Run directories. Default: the latest run.", show_default=False
    ),
    format_: str = typer.Option(
        "lm-eval",
        "--format",
        "-f",
        help="lm-eval: results and samples as lm-evaluation-harness writes them. parquet: every sample, one file.",
    ),
    out: Path = typer.Option(..., "--out", "-o", help="lm-eval: a folder. parquet: a file."),
    samples: bool = typer.Option(True, "--samples/--no-samples", help="lm-eval: also a file of samples a task."),
) -> None:
    """Write runs in the formats of other tools.

    Example: lcbench export runs/demo --format lm-eval --out exported
    """
    from lcbench.store.files import make_folder, write_bytes, write_text
    from lcbench.store.locate import latest_run
    from lcbench.store.rundir import RunDirectory

    if format_ not in FORMATS:
        raise UnknownName("format", format_, FORMATS)
    opened = [RunDirectory.open(path) for path in runs or [latest_run()]]
    if format_ == "parquet":
        from lcbench.reporting.samples_parquet import render

        if not out.parent.is_dir():
            raise CannotWrite(f"Cannot write {out}: there is no folder {out.parent}.", "Make it first.")
        write_bytes(out, render(opened))
        typer.echo(f"Written: {out}")
        return
    from lcbench.reporting.lm_eval import files_of

    if out.is_file():
        raise CannotWrite(f"{out} is a file.", "Name a folder: --out exported")
    written: dict[Path, str] = {}
    for run in opened:
        for name, text in files_of(run, samples=samples).items():
            if written.setdefault(out / name, text) is not text:
                raise UsageError(
                    f"Two of these runs have the same model and method and began at the same second ({name}).",
                    "Export them into folders of their own.",
                )
    for path, text in written.items():
        make_folder(path.parent)
        write_text(path, text)
    typer.echo(f"Written: {len(written)} files in {out}")


def import_(
    path: Path = typer.Argument(..., help="Predictions file, folder of them, or folder of such folders (methods)."),
    out: Path = typer.Option(..., "--out", "-o", help="The new run directory."),
    model: str = typer.Option("unknown", "--model", "-m", help="Name of the model that made them."),
    method: str | None = typer.Option(None, "--method", help="Its method, for one folder. Default: full."),
) -> None:
    """Make a run directory of official LongBench predictions, for report, compare and export.

    Example: lcbench import pred/llama2-7b-chat-4k --model llama2-7b-chat --out runs/theirs
    """
    from lcbench.scoring.imported import import_predictions
    from lcbench.store.locate import remember_run

    run = import_predictions(path, out, model=model, method=method)
    remember_run(out)
    counts = sum(len(run.records(m, t)) for m in run.methods for t in run.tasks)
    typer.echo(f"Imported: {counts:,} predictions, {len(run.methods)} methods, {len(run.tasks)} tasks in {out}.")
    typer.echo(f"Next:  lcbench score {shlex.quote(str(out))}")
