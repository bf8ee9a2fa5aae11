"""``lcbench build``: make the contexts of a benchmark from documents, at any length."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lcbench.cli.build_bars import Bars
from lcbench.cli.least import at_least
from lcbench.config.home import home as lcbench_home
from lcbench.config.spec import default_model
from lcbench.errors import BadValue, CorruptFile, DataMissing, UnknownName, UsageError

if TYPE_CHECKING:
    from lcbench.tasks.hundred.build import Order
    from lcbench.tasks.hundred.counting import TokenCounter
    from lcbench.tasks.hundred.pools import Material
    from lcbench.tasks.hundred.recipe import Built, Recipe

_SUITE = "100-longbench"
_WHAT = "What to build"
_FROM = "What to build from"
_HOW = "How"


def build(
    suite: str = typer.Argument(..., metavar=_SUITE, help="The benchmark to build."),
    lengths: str | None = typer.Option(
        None, "--lengths", help="Lengths in tokens: 8k,16k,1000 (k = 1024).", rich_help_panel=_WHAT
    ),
    rows: int = typer.Option(
        100, "--rows", callback=at_least(1), help="Contexts a task and length.", rich_help_panel=_WHAT
    ),
    tasks: str | None = typer.Option(
        None, "--tasks", help="Tasks, e.g. kv_retrieval,single_doc_qa. Default: all eight.", rich_help_panel=_WHAT
    ),
    name: str | None = typer.Option(
        None, "--name", help="Name of the build. Default: default, with --custom: custom.", rich_help_panel=_WHAT
    ),
    pools: str | None = typer.Option(
        None,
        "--pools",
        metavar="DIR|ZIP|URL",
        help="Take the pools from here, not from the downloaded data.",
        rich_help_panel=_FROM,
        show_default=False,
    ),
    custom: Path | None = typer.Option(
        None,
        "--custom",
        metavar="DIR",
        help="Build from your own documents and questions.",
        rich_help_panel=_FROM,
        show_default=False,
    ),
    strict: bool = typer.Option(
        False, "--strict", help="Refuse to build when a pool is not complete.", rich_help_panel=_FROM
    ),
    tokenizer: str | None = typer.Option(
        None,
        "--tokenizer",
        help="Whose tokens count: a model (as --model of run), a tokenizer.json, or words. "
        "Default: LCBENCH_MODEL, else demo.",
        rich_help_panel=_HOW,
    ),
    seed: int = typer.Option(42, "--seed", help="Of all draws.", rich_help_panel=_HOW),
    mode: str = typer.Option(
        "reference",
        "--mode",
        help="reference (as the code builds) | paper (as described, without label faults).",
        rich_help_panel=_HOW,
    ),
    fill: str = typer.Option(
        "exact",
        "--fill",
        help="exact (lengths are what they say) | reference (its rule, which leaves gaps).",
        rich_help_panel=_HOW,
    ),
    base_below: str = typer.Option(
        "8k", "--base-below", help="Documents of the base sets are shorter than this.", rich_help_panel=_HOW
    ),
    jobs: int | None = typer.Option(
        None, "--jobs", callback=at_least(1), help="Threads. Default: all cores.", rich_help_panel=_HOW
    ),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Replace files of the build that were made differently.", rich_help_panel=_HOW
    ),
    verify: bool = typer.Option(
        False, "--verify", help="Build again what is there, from its own recipe, and compare; write nothing."
    ),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress."),
) -> None:
    """Build the contexts of 100-LongBench at any length, from the downloaded pools or your own documents. Exit code 1:
    some of the files could not be built; they are named, the others are there.

    Example: lcbench build 100-longbench --lengths 8k,16k --rows 100
    """  # fmt: skip
    if suite != _SUITE:
        raise UnknownName("benchmark to build", suite, [_SUITE])
    if pools is not None and custom is not None:
        raise UsageError("--pools and --custom do not go together.", "Give one of them.")
    from lcbench.tasks.hundred.names import DEFAULT_BUILD

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    say: Callable[[str], None] = (lambda text: None) if quiet else (lambda text: console.print(escape(text)))
    build_name = name or ("custom" if custom is not None else DEFAULT_BUILD)
    source = _Source(pools, custom, strict, tokenizer or default_model(), say)
    chosen = _tasks(tasks)
    if verify:
        _verify(build_name, chosen, lengths, source, jobs, console, quiet, own_counter=tokenizer is None)
        return
    if lengths is None:
        raise UsageError("No length was given.", "Write --lengths 8k,16k.")
    order = _order(lengths, rows, seed, chosen, mode, fill, base_below, build_name, custom is not None, jobs)
    order = replace(order, pools=pools is not None)
    _build(order, source, overwrite, console, quiet, explicit=tasks is not None)


class _Source:
    """Where documents come from, and how they are counted."""

    def __init__(
        self, pools: str | None, custom: Path | None, strict: bool, tokenizer: str, say: Callable[[str], None]
    ) -> None:
        self._pools, self.custom, self._strict, self._tokenizer, self.say = pools, custom, strict, tokenizer, say

    def count_with(self, tokenizer: str) -> None:
        """Another counter from now on: a model, or "words"."""
        self._tokenizer = tokenizer

    def open(self, tasks: Sequence[str], mode: str) -> tuple[Material, TokenCounter]:
        """The documents that some tasks need, and the counter. Says and, when strict, refuses what is missing."""
        from lcbench.models.counting import token_counter
        from lcbench.tasks.hundred.build import POOLS_OF
        from lcbench.tasks.hundred.custom import gather_custom
        from lcbench.tasks.hundred.pools import gather

        counter = token_counter(self._tokenizer, lcbench_home(), self.say)
        if self.custom is not None:
            return gather_custom(self.custom, counter), counter
        names = dict.fromkeys(pool for task in tasks for pool in POOLS_OF[task])
        exact_mode = "paper" if mode == "paper" else "reference"
        material = gather(names, counter, exact_mode, home=lcbench_home(), place=self._pools, say=self.say)  # type: ignore[arg-type]
        for note in material.notes:
            self.say(note[0].upper() + note[1:] + ".")
        if material.notes:
            step = "Get what is missing: lcbench download 100-longbench-pools"
            if self._strict:
                raise DataMissing(f"{len(material.notes)} pools are not complete.", f"{step}, or leave --strict out.")
            self.say(f"{step}   (--strict refuses to build without it)")
        return material, counter


def _tasks(text: str | None) -> tuple[str, ...]:
    from lcbench.tasks.hundred.names import TASKS

    if text is None:
        return TASKS
    asked = [word.strip().removeprefix(f"{_SUITE}/") for word in text.split(",") if word.strip()]
    for word in asked:
        if word not in TASKS:
            raise UnknownName("task", word, TASKS, where=f" of {_SUITE}")
    if not asked:
        raise UsageError("No task was given.", f"Known: {', '.join(TASKS)}.")
    return tuple(task for task in TASKS if task in asked)


def _order(
    lengths: str, rows: int, seed: int, tasks: tuple[str, ...], mode: str, fill: str, base_below: str, name: str,
    custom: bool, jobs: int | None,
) -> Order:  # fmt: skip
    from lcbench.tasks.hundred.build import Order
    from lcbench.tasks.hundred.names import base_lengths, lengths_of, parse_length

    for option, value, known in (("--mode", mode, ("reference", "paper")), ("--fill", fill, ("exact", "reference"))):
        if value not in known:
            raise BadValue(f"{option} {value} is not one of {', '.join(known)}.", f"Choose {' or '.join(known)}.")
    below = parse_length(base_below)
    if isinstance(below, str):
        raise BadValue(f"--base-below {base_below} is not a length.", "Write a number of tokens, e.g. 8k.")
    base_lengths(below)
    return Order(
        tuple(lengths_of(lengths)), rows, seed, tasks, "paper" if mode == "paper" else "reference", fill == "exact",
        below, name, custom, jobs or os.cpu_count() or 1,
    )  # fmt: skip


def _build(order: Order, source: _Source, overwrite: bool, console: Console, quiet: bool, *, explicit: bool) -> None:
    from lcbench.tasks.hundred.build import Workshop
    from lcbench.tasks.hundred.custom import what_lacks
    from lcbench.tasks.hundred.names import length_text
    from lcbench.tasks.hundred.recipe import build_folder

    folder = build_folder(lcbench_home(), order.build)
    material, counter = source.open(order.tasks, order.mode)
    workshop = Workshop(order, material, counter, lcbench_home())
    workshop.check_free(overwrite=overwrite)
    made: list[Built] = []
    failed: list[DataMissing] = []
    with Bars(console, quiet) as bars:
        for task, length in order.files():
            try:
                made.append(workshop.make(task, length, bars.progress))
            except DataMissing as error:
                problem = _in_the_users_words(error, what_lacks(task, material) if order.custom else "")
                if explicit and len(order.tasks) == 1:
                    raise problem from None
                failed.append(DataMissing(f"{task}@{length_text(length)} is not built: {problem.message}"))
    _show(made)
    for line in _fewer(made, order):
        typer.echo(line)
    typer.echo(f"In {folder}")
    for problem in failed:
        typer.echo(problem.message)
    if not made:
        more = (
            "Add to the folder of --custom"
            if order.custom
            else "Get more of the pools: lcbench download 100-longbench-pools"
        )
        raise DataMissing("Nothing could be built.", f"{more}, or build longer contexts.")
    for line in _next(order.build):
        typer.echo(line)
    if failed:
        raise typer.Exit(1)


def _next(build: str) -> list[str]:
    """The next command; before it the download of the prompts that a run asks, where they are not there."""
    from lcbench.tasks.hundred.task import prompts_are_there

    lines = [f"lcbench run --task {_SUITE}" + (f"@build={build}" if build != "default" else "")]
    if not prompts_are_there(lcbench_home()):
        lines.insert(0, f"lcbench download {_SUITE}   (the prompts that are asked)")
    return [f"{'Next:' if number == 0 else '':5}  {line}" for number, line in enumerate(lines)]


def _in_the_users_words(error: DataMissing, lacking: str) -> DataMissing:
    """With --custom: what the folder lacks, where that is the reason; pools mean nothing to its owner."""
    step = "Write it there (docs/100-longbench.md), or leave the task out with --tasks."
    return DataMissing(lacking, step) if lacking else error


def _fewer(made: Sequence[Built], order: Order) -> list[str]:
    """Why files have fewer contexts than --rows; files of one reason share a line."""
    from lcbench.tasks.hundred.build import takes_documents
    from lcbench.tasks.hundred.custom import thing_of
    from lcbench.tasks.hundred.names import base_lengths, length_text

    found: dict[str, list[str]] = {}
    for built in (one for one in made if len(one.lengths) < order.rows):
        if takes_documents(built.recipe.task, order.mode):
            below = f"below {length_text(order.base_below)}"
            why = f"the pools hold no more documents {below} for it"
            if order.custom:
                why = f"your folder holds no more {thing_of(built.recipe.task)} {below}"
        else:
            why = f"its {len(base_lengths(order.base_below))} lengths get equally many contexts each"
        label = f"{built.recipe.task}@{length_text(built.recipe.length)} ({len(built.lengths)})"
        found.setdefault(why, []).append(label)
    return [
        f"Fewer than the {order.rows} contexts of --rows: {', '.join(labels)}: {why}." for why, labels in found.items()
    ]


def _verify(
    name: str, tasks: tuple[str, ...], lengths: str | None, source: _Source, jobs: int | None, console: Console,
    quiet: bool, *, own_counter: bool,
) -> None:  # fmt: skip
    from lcbench.tasks.hundred.build import Workshop
    from lcbench.tasks.hundred.names import BASE, length_text, lengths_of
    from lcbench.tasks.hundred.recipe import build_folder

    folder = build_folder(lcbench_home(), name)
    wanted: set[int | str] | None = None if lengths is None else {BASE, *lengths_of(lengths)}
    recipes, changed = _recipes(folder, tasks, wanted)
    lost = _lost(folder, tasks, wanted, {(recipe.task, recipe.length) for recipe in recipes})
    for label in lost:
        typer.echo(f"{label}: not there, but the build has it")
    changed += lost
    broken = len(changed)
    if not recipes and not lost:
        raise DataMissing(
            f"The build '{name}' has no such files.", f"Build them first: lcbench build {_SUITE} --lengths 8k"
        )
    if not recipes:
        raise UsageError(
            f"All {len(lost)} files of the build '{name}' are gone.", "Build it again, or delete its folder."
        )
    if any(recipe.custom for recipe in recipes) and source.custom is None:
        raise UsageError(f"The build '{name}' was made from a folder of yours.", "Give that folder with --custom DIR.")
    if own_counter:
        source.count_with(recipes[0].counter)
    with Bars(console, quiet) as bars:
        material, counter = source.open([recipe.task for recipe in recipes], recipes[0].mode)
        for recipe in recipes:
            workshop = Workshop(_order_of([recipe], name, jobs), material, counter, lcbench_home())
            difference = workshop.compare(recipe.task, recipe.length, bars.progress)
            label = f"{recipe.task}@{length_text(recipe.length)}"
            typer.echo(f"{label}: {difference or 'the same'}")
            changed += [label] if difference else []
    if changed:
        raise UsageError(
            f"{len(changed)} of {len(recipes) + broken} files are not what their recipe gives now.",
            "Use the same pools and --tokenizer, or build again with --overwrite.",
        )
    typer.echo(f"All {len(recipes)} files are what their recipe gives, byte for byte.")


def _recipes(folder: Path, tasks: Sequence[str], wanted: set[int | str] | None) -> tuple[list[Recipe], list[str]]:
    """Recipes of the files that are there, and the names of those that cannot be read."""
    from lcbench.tasks.hundred.recipe import read_recipe

    recipes, unreadable = [], []
    for file in sorted(folder.glob("*.jsonl")):
        try:
            recipe = read_recipe(file)
        except CorruptFile as error:
            typer.echo(f"{file.name}: {error.message}")
            unreadable.append(file.name)
            continue
        if recipe.task in tasks and (wanted is None or recipe.length in wanted):
            recipes.append(recipe)
    return recipes, unreadable


def _lost(
    folder: Path, tasks: Sequence[str], wanted: set[int | str] | None, there: set[tuple[str, int | str]]
) -> list[str]:
    """Files that the build made and that are gone; without a manifest, lengths that other tasks still have."""
    from lcbench.tasks.hundred.manifest import read_manifest
    from lcbench.tasks.hundred.names import length_text, parse_length

    manifest = read_manifest(folder)
    if manifest is None:
        made = [(task, length) for task in {t for t, _ in there} for length in {n for _, n in there}]
    else:
        pieces = [Path(name).stem.rpartition("_") for name in manifest.files]
        made = [(task, parse_length(length)) for task, _, length in pieces]
    asked = [(t, n) for t, n in made if t in tasks and (wanted is None or n in wanted)]
    gone = [(t, n) for t, n in asked if (t, n) not in there and not (folder / f"{t}_{length_text(n)}.jsonl").exists()]
    return sorted(f"{task}@{length_text(length)}" for task, length in gone)


def _order_of(recipes: Sequence[object], name: str, jobs: int | None) -> Order:
    from lcbench.tasks.hundred.build import Order
    from lcbench.tasks.hundred.recipe import Recipe

    recipe = recipes[0]
    assert isinstance(recipe, Recipe)
    lengths = (recipe.length,) if isinstance(recipe.length, int) else ()
    return Order(
        lengths, recipe.rows, recipe.seed, (recipe.task,), recipe.mode, recipe.exact, recipe.base_below, name,
        recipe.custom, jobs or os.cpu_count() or 1,
    )  # fmt: skip


def _show(made: Sequence[Built]) -> None:
    from lcbench.tasks.hundred.names import length_text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("task", "length", "contexts", "questions", "tokens", "label faults"):
        words = column in ("task", "label faults")
        table.add_column(column, justify="left" if words else "right", no_wrap=column != "label faults")
    for built in made:
        lengths = built.lengths
        tokens = f"{min(lengths):,} to {max(lengths):,}" if lengths else "none"
        faults = ", ".join(f"{count} {fault.replace('_', ' ')}" for fault, count in sorted(built.faults.items()))
        off = f"{built.off_target} off target" if built.off_target else ""
        table.add_row(
            built.recipe.task, length_text(built.recipe.length), str(len(lengths)), str(built.questions), tokens,
            "; ".join(filter(None, (faults, off))) or "none known",
        )  # fmt: skip
    Console(highlight=False).print(table)
