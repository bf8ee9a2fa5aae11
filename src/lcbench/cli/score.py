"""``lcbench score``: scores of a run, of one official predictions file, or of a folder of them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lcbench.errors import BadValue, CannotWrite

if TYPE_CHECKING:
    from lcbench.scoring.table import GroupScore, Interval, MethodScores, ScoreTable, TaskScore

OURS = "lcbench"
"""Key of the ``--json`` object under which everything stands that the official result.json has not."""


def score(
    path: Path | None = typer.Argument(
        None, help="Run directory, predictions file (.jsonl, .jsonl.gz) or folder of them. Default: the latest run."
    ),
    benchmark: str | None = typer.Option(
        None, "--benchmark", "-b", help="longbench | longbench-e, for prediction files. Default: guessed."
    ),
    as_json: bool = typer.Option(False, "--json", help="The official result.json on stdout, ours under 'lcbench'."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Also write our scores to this JSON file."),
    code_sim: str = typer.Option("difflib", "--code-sim", help="difflib (official requirements) | levenshtein."),
    strict_recursion: bool = typer.Option(
        False, "--strict-recursion", help="rouge is 0 where the official script overflows its stack."
    ),
    rouge_score: bool = typer.Option(False, "--rouge-score", help="Add Google ROUGE-1/2/L/Lsum (slower)."),
    jobs: int | None = typer.Option(None, "--jobs", "-j", help="Processes. Default: all cores."),
    seed: int = typer.Option(0, "--seed", help="Seed of the bootstrap."),
    longscore: bool = typer.Option(
        False, "--longscore", help="LongScore of every task at several lengths (100-LongBench has it always)."
    ),
    mode: str = typer.Option("reference", "--mode", help="Base of LongScore: reference (whole base set) | paper."),
    base_length: str = typer.Option(
        "", "--base-length", help="LongScore's base for other suites: lengths, e.g. 512,1024. Default: shortest."
    ),
    against: str = typer.Option("full", "--against", help="Method that losses are split against."),
    judge: str | None = typer.Option(
        None, "--judge", help="Grade QA and summaries of 100-LongBench: openai:MODEL (any such endpoint) | hf:MODEL."
    ),
    judge_url: str | None = typer.Option(
        None, "--judge-url", help="Address of the endpoint, e.g. http://127.0.0.1:8000/v1. Key: LCBENCH_JUDGE_KEY."
    ),
    qa_filter: float = typer.Option(
        0.5, "--qa-filter", help="With --judge: leave out questions answered this well without the context; 0: none."
    ),
    judge_timeout: float = typer.Option(60.0, "--judge-timeout", help="Seconds for one call."),
    judge_calls: int = typer.Option(8, "--judge-calls", help="Calls at a time."),
    yes: bool = typer.Option(False, "--yes", "-y", help="With --judge: do not ask before the first call."),
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
    grader = None
    if judge is not None:
        from lcbench.cli.judge import JudgeOptions, grading
        from lcbench.config.home import home

        grader = grading(JudgeOptions(judge, judge_url, qa_filter, judge_timeout, judge_calls, yes), home())
    elif judge_url is not None:
        raise BadValue("--judge-url without a judge.", "Name the model: --judge openai:MODEL")
    if out is not None:
        _refuse_overwriting(out, target)
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
    if table.source == "run":
        _keep(table, target, elsewhere=out)
    if table.n_error:
        raise typer.Exit(1)


def _keep(table: ScoreTable, target: Path, *, elsewhere: Path | None) -> None:
    """Write scores.json into the run, after everything has been shown. A run that cannot be written is an error,
    unless the scores were kept elsewhere."""
    from lcbench.store.rundir import RunDirectory

    try:
        RunDirectory.open(target).write_scores(table.to_dict())
    except CannotWrite as error:
        if elsewhere is None:
            raise CannotWrite(error.message, "The scores are shown above; --out FILE keeps them elsewhere.") from None


def _refuse_overwriting(out: Path, target: Path) -> None:
    """Scores never replace predictions: neither the file that is scored nor anything that looks like one."""
    names = (".jsonl", ".jsonl.gz")
    if out.is_dir() or out.name.endswith(names) or (out.exists() and target.exists() and out.samefile(target)):
        raise BadValue(f"--out {out} would overwrite predictions or a folder.", "Name a .json file of its own.")


def official_shape(table: ScoreTable) -> dict[str, Any]:
    """result.json of the official script (one method) or method to result.json (several, and always for runs), with
    ours under `OURS`. An empty length bucket is NaN, as the official script writes it."""
    results = {name: {t.task: _official(t) for t in one.tasks.values()} for name, one in table.methods.items()}
    single = table.source != "run" and len(results) == 1
    return {**(next(iter(results.values())) if single else results), OURS: table.to_dict()}


def _official(task: TaskScore) -> Any:
    from lcbench.scoring.samples import LONGBENCH_E

    if task.benchmark == LONGBENCH_E:
        return {k: float("nan") if b.score is None else b.score for k, b in task.by_length.items()}
    return float("nan") if task.score is None else task.score


def show(table: ScoreTable, target: Path) -> None:
    """Print the table, what the reader must know about it, and the next command."""
    console = Console(highlight=False)
    for name, method in table.methods.items():
        console.print(Text(name, style="bold"), soft_wrap=True)
        console.print(_tasks(method))
        groups = _worth_showing(method)
        if groups:
            console.print(_groups(method, groups))
    for line in _footnotes(table):
        console.print(escape(line), soft_wrap=True)
    if table.longscore is not None:
        from lcbench.reporting.longscore import terminal, view

        console.print(terminal.render(view.of_scores(table.longscore), console, over_length=False))
    if table.source == "run":
        shown = shlex.quote(str(target))
        console.print(escape(f"Next:    lcbench report {shown}"), soft_wrap=True)


def _tasks(method: MethodScores) -> Table:
    from lcbench.scoring.samples import LONGBENCH_E

    scores = list(method.tasks.values())
    split = [s.by_length for s in scores if s.benchmark == LONGBENCH_E]
    buckets = list(dict.fromkeys(k for lengths in split for k in lengths if lengths[k].n))
    columns = list(dict.fromkeys(k for s in scores for k in s.columns))
    partial = any(s.partial is not None for s in scores)
    judged = any(s.n_filtered or s.n_judge_failed for s in scores)
    grid = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    grid.add_column("task", overflow="fold", min_width=min(14, max(len(s.task) for s in scores)))
    grid.add_column("metric", overflow="fold")
    fates = ("filtered", "no verdict") if judged else ()
    for title in ("n", "errors", *fates, "score", "95 % interval", *buckets, *(["partial"] * partial), *columns):
        grid.add_column(title, justify="right", no_wrap=True)
    for one in scores:
        grid.add_row(
            escape(one.task),
            escape(one.metric),
            str(one.n),
            f"[red]{one.n_error}[/]" if one.n_error else "0",
            *([str(one.n_filtered), str(one.n_judge_failed)] if judged else []),
            _number(one.score),
            _interval(one.interval),
            *(_number(one.by_length[b].score if b in one.by_length else None) for b in buckets),
            *([_number(one.partial)] if partial else []),
            *(_number(one.columns.get(c)) for c in columns),
        )
    return grid


def _worth_showing(method: MethodScores) -> dict[str, GroupScore]:
    """Means of at least two tasks; parts of means that say the same as one above are left out."""
    shown: dict[str, GroupScore] = {}
    seen: set[tuple[str, ...]] = set()
    for key, one in [*method.categories.items(), *method.overall.items()]:
        tasks = [t for m in one.members for t in (method.categories[m].members if m in method.categories else [m])]
        if len(tasks) > 1 and (one.complete or tuple(tasks) not in seen):
            shown[key] = one
        seen.add(tuple(tasks))
    return shown


def _groups(method: MethodScores, groups: dict[str, GroupScore]) -> Table:
    buckets = list(dict.fromkeys(b for g in groups.values() for b in g.by_length))
    grid = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    grid.add_column("mean over", overflow="fold")
    for title in ("tasks", "score", "95 % interval", *buckets):
        grid.add_column(title, justify="right")
    first = next((key for key in groups if key in method.overall), None)
    for key, one in groups.items():
        if key == first:
            grid.add_section()
        number = str(len(one.members)) if one.complete else f"{len(one.members)}, {len(one.missing)} missing"
        grid.add_row(
            escape(one.label if key in method.overall else key),
            number,
            _number(one.score),
            _interval(one.interval),
            *(_number(one.by_length.get(b)) for b in buckets),
        )
    return grid


def _footnotes(table: ScoreTable) -> list[str]:
    tasks = [task for method in table.methods.values() for task in method.tasks.values()]
    lines = []
    if any(task.code_sim for task in tasks):
        definition = table.options["code_sim"]
        official = "official requirements" if definition == "difflib" else "as with python-Levenshtein installed"
        lines.append(f"code_sim: {definition} ({official}).")
    if table.options["strict_recursion"]:
        lines.append("rouge: strict recursion, 0 where the official script overflows its stack.")
    if table.n_error:
        plural = (
            "1 sample failed: it has no score and counts"
            if table.n_error == 1
            else f"{table.n_error} samples failed: they have no score and count"
        )
        lines.append(f"{plural} in no mean.")
    return [*lines, *table.notes]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(value: Interval | None) -> str:
    return "-" if value is None else f"{value[0]:.1f}–{value[1]:.1f}"
