"""The Typer app: one module a subcommand; each parses, calls and prints, nothing else.

Nothing heavy is imported here or at the top of the subcommand modules, so that ``lcbench --help`` answers at once.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Sequence

import typer
from rich.console import Console
from rich.text import Text

from lcbench import __version__
from lcbench.cli import (
    bench,
    build,
    calibrate,
    compare,
    convert,
    doctor,
    download,
    init,
    inspect,
    interchange,
    list_,
    merge,
    report,
    run,
    runs,
    score,
    serve,
)
from lcbench.cli.command_line import NOT_READ, explained
from lcbench.cli.progress import watcher
from lcbench.errors import LcbenchError

app = typer.Typer(
    name="lcbench",
    help="Evaluate long-context methods: official scores, real bytes, one prefill for many methods.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("download")(download.download)
app.command("init")(init.init)
app.command("build")(build.build)
app.command("run")(run.run)
app.command("merge")(merge.merge)
app.command("score")(score.score)
app.command("report")(report.report)
app.command("export")(interchange.export)
app.command("import")(interchange.import_)
app.command("runs")(runs.runs)
app.command("compare")(compare.compare)
app.command("inspect")(inspect.inspect)
app.command("bench")(bench.bench)
app.command("calibrate")(calibrate.calibrate)
app.command("convert")(convert.convert)
app.command("serve")(serve.serve)
app.command("list")(list_.list_)
app.command("doctor")(doctor.doctor)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"lcbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", callback=_version, is_eager=True
    ),
) -> None:
    pass


# Controls but tab and line break, marks that turn the direction of writing, zero-width characters, lone surrogates.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(text: str) -> str:
    """A message with what a terminal would obey, or not show, written out: what the user typed may be quoted in it."""
    return _UNSEEN.sub(lambda found: repr(found.group())[1:-1], text)


def show_error(error: LcbenchError) -> None:
    """One sentence and the next step, on stderr."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("Error: ", "bold red"), Text(visible(error.message))))
    if error.next_step:
        console.print(Text.assemble(("Next:  ", "bold"), Text(visible(error.next_step))))


def _wants_json_log(words: Sequence[str]) -> bool:
    """Whether ``--log json`` was typed, on a command line that could not be read."""
    return "--log=json" in words or ("--log", "json") in itertools.pairwise(words)


def main() -> None:
    """Entry point of the ``lcbench`` command. Exit codes: 0 done, 1 some samples failed, 2 wrong usage or input."""
    # OpenMP threads that spin while they wait can make decoding many times slower on a machine that is busy with other
    # work. Must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = sys.argv[1:]
    try:
        if not words:
            app()  # shows the help
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except LcbenchError as error:
        show_error(error)
        sys.exit(2)
    except NOT_READ as error:
        told = explained(error, words, app)
        if not (_wants_json_log(words) and watcher("json", quiet=False).error(told)):
            show_error(told)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output went away (`lcbench report | head`): not an error of ours.
        sys.stderr.close()
        sys.exit(0)
    except (KeyboardInterrupt, typer.Abort):  # the second: a question that was left with Ctrl-C or at the end of input
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
