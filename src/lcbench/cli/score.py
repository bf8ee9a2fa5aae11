"""``lcbench score``: scores of a run, of one official predictions file, or of a folder of them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from lcbench.cli.score_place import is_ours, refuse_overwriting, write_default
from lcbench.cli.score_view import intervals_of, tables_of
from lcbench.errors import BadValue, CannotWrite, CorruptFile, UsageError

if TYPE_CHECKING:
    from lcbench.scoring.table import ScoreTable, TaskScore

LONGSCORE, JUDGE = "LongScore", "A judge for QA and summaries"
"""Panels of the help."""
OURS = "lcbench"
"""Key of the ``--json`` object under which everything stands that the official result.json has not."""


def score(
    path: Path | None = typer.Argument(
        None,
        help="Run directory, predictions file (.jsonl, .jsonl.gz), folder of them, or 100-LongBench's result.json. "
        "Default: the latest run.",
    ),
    benchmark: str | None = typer.Option(
        None, "--benchmark", "-b", help="longbench | longbench-e, for prediction files. Default: guessed."
    ),
    as_json: bool = typer.Option(False, "--json", help="The official result.json on stdout, ours under 'lcbench'."),
    out: Path | None = typer.Option(
        None,
        "--out",
        "-o",
        help="Write our scores here. Default: scores.json in a run or folder, NAME.scores.json beside a file; where a "
        "default cannot be written a line says so, and the exit code stays.",
        show_default=False,
    ),
    code_sim: str = typer.Option("difflib", "--code-sim", help="difflib (official requirements) | levenshtein."),
    strict_recursion: bool = typer.Option(
        False, "--strict-recursion", help="rouge is 0 where the official script overflows its stack."
    ),
    rouge_score: bool = typer.Option(False, "--rouge-score", help="Add Google ROUGE-1/2/L/Lsum (slower)."),
    jobs: int | None = typer.Option(None, "--jobs", "-j", help="Processes. Default: all cores."),
    seed: int = typer.Option(0, "--seed", help="Seed of the bootstrap."),
    longscore: bool = typer.Option(
        False,
        "--longscore",
        rich_help_panel=LONGSCORE,
        help="LongScore of every task at several lengths (100-LongBench has it always).",
    ),
    mode: str = typer.Option(
        "reference", "--mode", rich_help_panel=LONGSCORE, help="Base of LongScore: reference (whole base set) | paper."
    ),
    base_length: str = typer.Option(
        "",
        "--base-length",
        rich_help_panel=LONGSCORE,
        help="LongScore's base for other suites: lengths, e.g. 512,1024. Default: shortest.",
    ),
    against: str = typer.Option(
        "full", "--against", rich_help_panel=LONGSCORE, help="Method that losses are split against."
    ),
    judge: str | None = typer.Option(
        None,
        "--judge",
        rich_help_panel=JUDGE,
        help="Grade QA and summaries of 100-LongBench: openai:MODEL (any such endpoint) | hf:MODEL.",
    ),
    judge_url: str | None = typer.Option(
        None,
        "--judge-url",
        rich_help_panel=JUDGE,
        help="Address of the endpoint, e.g. http://127.0.0.1:8000/v1. Key: LCBENCH_JUDGE_KEY.",
    ),
    qa_filter: float = typer.Option(
        0.5,
        "--qa-filter",
        rich_help_panel=JUDGE,
        help="With --judge: leave out questions answered this well without the context; 0: none.",
    ),
    judge_timeout: float = typer.Option(60.0, "--judge-timeout", rich_help_panel=JUDGE, help="Seconds for one call."),
    judge_calls: int = typer.Option(8, "--judge-calls", rich_help_panel=JUDGE, help="Calls at a time."),
    yes: bool = typer.Option(
        False, "--yes", "-y", rich_help_panel=JUDGE, help="With --judge: do not ask before the first call."
    ),
) -> None:
    """Score predictions as the benchmark's authors score them, with 95 % intervals. Exit code 1: some samples failed.

    Example: lcbench score pred/llama2-7b-chat-4k --code-sim levenshtein
    """
    from lcbench.scoring.longscore.result import LongScoreOptions
    from lcbench.scoring.run import ScoreOptions, score_path
    from lcbench.store.files import write_json
    from lcbench.store.locate import latest_run

    bases = tuple(label.strip() for label in base_length.split(",") if label.strip())
    lengths = LongScoreOptions(longscore or bool(bases), mode, bases, against)
    options = ScoreOptions(code_sim, strict_recursion, rouge_score, jobs, seed, longscore=lengths)  # type: ignore[arg-type]
    target = path if path is not None else latest_run()
    if target.suffix == ".json" and target.is_file():
        if is_ours(target):
            raise UsageError(f"{target} holds scores, not predictions.", "Give the predictions or the run they are of.")
        _results_file(target, as_json)
        return
    grader = None
    if judge is not None:
        from lcbench.cli.judge import JudgeOptions, grading
        from lcbench.config.home import home

        grader = grading(JudgeOptions(judge, judge_url, qa_filter, judge_timeout, judge_calls, yes), home())
    elif judge_url is not None:
        raise BadValue("--judge-url without a judge.", "Name the model: --judge openai:MODEL")
    if out is not None:
        refuse_overwriting(out)
    table = score_path(target, options, benchmark, grader)
    if grader is not None:
        asker = grader.asker
        typer.echo(f"Judge: {asker.asked} questions asked, {asker.cached} known from before.", err=True)
    if out is not None:
        write_json(out, table.to_dict())
    if as_json:
        typer.echo(json.dumps(official_shape(table), ensure_ascii=False, indent=4))
    else:
        show(table, target)
    if table.source != "run":
        typer.echo(f"Scores written to {out}" if out is not None else write_default(table, target), err=as_json)
    if table.source == "run":
        _keep(table, target, elsewhere=out)
    if table.n_error:
        raise typer.Exit(1)


def _results_file(path: Path, as_json: bool) -> None:
    """LongScores of scores that are there already: a result file of 100-LongBench."""
    from lcbench.reporting.longscore import data, terminal
    from lcbench.reporting.longscore.view import Entry, view
    from lcbench.scoring.longscore.official import read_results

    entries = [Entry(m, {c.name: c for c in curves}, model=m) for m, curves in read_results(path).items()]
    made = view(entries)
    if as_json:
        typer.echo(json.dumps(data.data_of(made), ensure_ascii=False, indent=4))
    else:
        console = Console(highlight=False)
        console.print(terminal.render(made, console))


def _keep(table: ScoreTable, target: Path, *, elsewhere: Path | None) -> None:
    """Write scores.json into the run, after everything has been shown. A run that cannot be written is an error,
    unless the scores were kept elsewhere."""
    from lcbench.store.rundir import RunDirectory

    run = RunDirectory.open(target)
    try:
        judged = "judge" in (run.scores() or {})
    except CorruptFile:
        judged = False
    if judged and table.judge is None:
        typer.echo(
            "The judged scores in scores.json are replaced; the same --judge gives them back at no cost.", err=True
        )
    try:
        run.write_scores(table.to_dict())
    except CannotWrite as error:
        if elsewhere is None:
            raise CannotWrite(error.message, "The scores are shown above; --out FILE keeps them elsewhere.") from None


def official_shape(table: ScoreTable) -> dict[str, Any]:
    """result.json of the official script, or method to result.json where several methods were scored, with ours under
    `OURS` (there every method is under its name, be it one or many). An empty length bucket is NaN, as the official
    script writes it."""
    results = {name: {t.task: _official(t) for t in one.tasks.values()} for name, one in table.methods.items()}
    return {**(next(iter(results.values())) if len(results) == 1 else results), OURS: table.to_dict()}


def _official(task: TaskScore) -> Any:
    from lcbench.scoring.samples import LONGBENCH_E

    if task.benchmark == LONGBENCH_E:
        return {k: float("nan") if b.score is None else b.score for k, b in task.by_length.items()}
    return float("nan") if task.score is None else task.score


def show(table: ScoreTable, target: Path) -> None:
    """Print the table, what the reader must know about it, and, of a run, the next command."""
    console = Console(highlight=False)
    for name, method in table.methods.items():
        console.print(Text(name, style="bold"), soft_wrap=True)
        for one in tables_of(method, console):
            console.print(one)
    for line in _footnotes(table, target):
        console.print(escape(line), soft_wrap=True)
    if table.longscore is not None:
        from lcbench.reporting.longscore import terminal, view

        console.print(terminal.render(view.of_scores(table.longscore), console, over_length=False))
    if table.source == "run":
        shown = shlex.quote(str(target))
        console.print(escape(f"Next:    lcbench report {shown}"), soft_wrap=True)


def _footnotes(table: ScoreTable, target: Path) -> list[str]:
    from lcbench.reporting.words import NO_WIDTH, has_no_width

    lines = [*table.notes]
    if any(has_no_width(*interval) for interval in intervals_of(table)):
        lines.append(f"{NO_WIDTH[0].upper()}{NO_WIDTH[1:]}.".replace("[75.0, 75.0]", "75.0–75.0"))
    if table.source == "run":
        from lcbench.reporting.notes import asked, seen_question, simulated
        from lcbench.store.rundir import RunDirectory

        run = RunDirectory.open(target)
        lines = [*asked(run.spec), *seen_question(run), *simulated(run), *lines]
    if table.n_error:
        plural = (
            "1 sample failed: it has no score and counts"
            if table.n_error == 1
            else f"{table.n_error} samples failed: they have no score and count"
        )
        lines.append(f"{plural} in no mean.")
    return lines
