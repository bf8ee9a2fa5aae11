"""``lcbench init``: a commented example of a study, and the JSON Schema that lets editors check and complete it."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from lcbench.errors import CannotWrite, UsageError


def init(
    file: Path | None = typer.Argument(None, help="Where to write it. Default: lcbench.yaml.", show_default=False),
    schema: Path | None = typer.Option(
        None, "--schema", help="Write only the JSON Schema of the --config file here.", show_default=False
    ),
    force: bool = typer.Option(False, "--force", help="Overwrite what is there."),
) -> None:
    """Write a commented example for `lcbench run --config`; it runs as it is, on the demo model.

    Beside it goes lcbench.schema.json, by which editors check and complete the keys.

    Example: lcbench init study.yaml
    """
    from lcbench.config.schema import FILE_NAME, example, render

    if schema is not None:
        if file is not None:
            raise UsageError(f"--schema writes the schema alone, not {file}.", "Leave one of them out.")
        _write(schema, render(), force)
        typer.echo(f"Wrote {schema}.")
        return
    file = file or Path("lcbench.yaml")
    beside = file.with_name(FILE_NAME)
    if file.name == FILE_NAME:
        raise UsageError(f"{FILE_NAME} is the name of the schema.", "Write it alone: lcbench init --schema FILE")
    for path, text in ((file, None), (beside, render())):
        _refuse(path, text, force)
    _write(file, example(file.name), True)
    _write(beside, render(), True)
    typer.echo(f"Wrote {file}, and {beside} for editors.")
    typer.echo(f"Next:  lcbench run --config {shlex.quote(str(file))}")


def _refuse(path: Path, text: str | None, force: bool) -> None:
    """Refuse to overwrite a file, unless it holds ``text`` already or the user insists."""
    if path.is_dir():
        raise CannotWrite(f"{path} is a folder.", "Name a file: lcbench init study.yaml")
    if force or not path.exists():
        return
    try:
        same = text is not None and path.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        same = False
    if not same:
        raise UsageError(f"{path} is there already.", "Name another file, or overwrite it with --force.")


def _write(path: Path, text: str, force: bool) -> None:
    _refuse(path, text, force)
    from lcbench.store.files import write_text

    if not path.parent.is_dir():
        raise CannotWrite(f"The folder {path.parent} does not exist.", f"Make it first: mkdir {path.parent}")
    write_text(path, text)
