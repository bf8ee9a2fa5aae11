"""The part of a report that is about one model, and why a kind of figure cannot be drawn of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lcbench.reporting.figures.naming import file_names, methods_told_apart, told_apart
from lcbench.reporting.samples import Samples
from lcbench.reporting.table import Cell, Column, Line, Report
from lcbench.reporting.words import short_names
from lcbench.store.rundir import RunDirectory

REFERENCE = "full"


@dataclass(frozen=True)
class ModelPart:
    """The part of a report that is about one model.

    Attributes:
        report: all of it. samples: all of its samples. columns: those of the model and setting.
        title: ends the title of a figure. file: ends the name of a file, "" where there is one part.
        name: of the model in run.json. runs: folders of its runs.
        labels: method and run of each column, short enough to be told apart.
    """

    report: Report
    samples: Samples
    columns: tuple[Column, ...]
    title: str
    file: str
    name: str
    runs: frozenset[str]
    labels: Mapping[Column, str]

    def label(self, column: Column, *lines: Line) -> str:
        """The method, and the run where that tells columns apart; what is missing of the rows of ``lines``."""
        missing = list(dict.fromkeys(part for line in lines if (part := self.report.part_of(line, column))))
        more = missing[0] if len(missing) == len(lines) == 1 else "rows missing"
        return f"{self.labels[column]}, {more}" if missing else self.labels[column]

    @property
    def reference(self) -> Column | None:
        """The column of the full cache; None where it was not run."""
        return next((c for c in self.columns if c.method == REFERENCE), None)

    def reference_of(self, task: Line, column: Column) -> Column | None:
        """The full cache that a method is paired with: that of the same run, else another of the same setting."""
        own = self.cell(task, column)
        found = [(c, cell) for c in self.columns if c.method == REFERENCE and (cell := self.cell(task, c)) is not None]
        same = [c for c, cell in found if own is not None and cell.run == own.run]
        return next(iter([*same, *(c for c, _ in found)]), None)

    def tasks(self) -> list[Line]:
        """The whole tasks that any method of the model ran."""
        return [
            line for line in self.report.lines if line.kind == "task" and any(self.cell(line, c) for c in self.columns)
        ]

    def cell(self, line: Line, column: Column) -> Cell | None:
        """The cell, None where the method did not run the task."""
        return self.report.cells.get((line, column))

    def scored(self, line: Line) -> tuple[Column, ...]:
        """The columns that have a score of the task."""
        found = ((column, self.cell(line, column)) for column in self.columns)
        return tuple(column for column, cell in found if cell is not None and cell.score is not None)

    def sharing(self) -> tuple[list[Line], list[Column]]:
        """Tasks, and methods with a score of every one of them: as many methods as can be, then as many tasks."""
        choices = []
        for columns in dict.fromkeys(self.scored(task) for task in self.tasks()):
            tasks = [task for task in self.tasks() if set(columns) <= set(self.scored(task))]
            choices.append((tasks, list(columns)))
        return max(choices, key=lambda choice: (len(choice[1]), len(choice[0])), default=([], []))


def parts_of(report: Report, samples: Samples, runs: Sequence[RunDirectory]) -> list[ModelPart]:
    """The parts of a report whose scores may be compared: a model each, and where its runs asked otherwise, a setting
    each."""
    groups = list(dict.fromkeys(column.group for column in report.columns))
    names = told_apart((model for model, _ in groups), 40)
    settings = told_apart((setting for _, setting in groups), 30)
    files = file_names(f"{model} {setting}".strip() for model, setting in groups)
    labels = methods_told_apart(_label(column) for column in report.columns)
    models = {str(run.path): _model_name(run) for run in runs}
    found = []
    for model, setting in groups:
        own = tuple(column for column in report.columns if column.group == (model, setting))
        paths = frozenset(cell.run for (_, column), cell in report.cells.items() if column in own and cell.run)
        title = f" – {names[model]}" + (f", {settings[setting]}" if setting else "")
        file = files[f"{model} {setting}".strip()] if len(groups) > 1 else ""
        name = next((models[path] for path in paths if path in models), model)
        found.append(
            ModelPart(
                report, samples, own, title, file, name, paths, {column: labels[_label(column)] for column in own}
            )
        )
    return found


def measured_of(report: Report, samples: Samples, parts: Sequence[ModelPart]) -> list[ModelPart]:
    """A part for each model that was only measured: folders of `lcbench bench` have no predictions."""
    names = list(dict.fromkeys(row.model for row in report.efficiency if row.model not in {p.name for p in parts}))
    titles = told_apart(names, 40)
    files = file_names(names)
    return [
        ModelPart(
            report,
            samples,
            (),
            f" – {titles[name]}",
            files[name] if len(names) + len(parts) > 1 else "",
            name,
            frozenset(row.run for row in report.efficiency if row.model == name),
            {},
        )
        for name in names
    ]


def _label(column: Column) -> str:
    # All methods of a setting have its runs, which the title says.
    return f"{column.method} ({column.run})" if column.run and column.run != column.setting else column.method


def _model_name(run: RunDirectory) -> str:
    found = [where.get("model") for where in (run.provenance, run.spec)]
    names = [model.get("name") for model in found if isinstance(model, Mapping)]
    return str(next((name for name in names if name), "unknown model"))


def failed_all(part: ModelPart, tasks: Sequence[Line]) -> str | None:
    """That all samples of these tasks failed; None where a score is there."""
    if not tasks or any(part.scored(task) for task in tasks):
        return None
    names = short_names(task.name for task in tasks)
    of = names[tasks[0].name] if len(tasks) == 1 else f"all {len(tasks)} tasks"
    return f"every sample of {of} failed"


def no_pareto(part: ModelPart) -> str:
    """Why there is no figure of accuracy against bytes."""
    if why := failed_all(part, part.tasks()):
        return why
    if len(part.columns) < 2:
        return "it needs two methods"
    if len(part.sharing()[1]) < 2:
        return "no two methods have scores of the same task"
    return "the bytes of fewer than two methods are known"


def no_radar(part: ModelPart) -> str:
    """Why there is no figure of categories."""
    return failed_all(part, part.tasks()) or "it needs tasks of three categories that all methods ran"


def no_passkey(part: ModelPart) -> str:
    """Why there is no map of keys."""
    own = [task for task in part.tasks() if task.metric == "passkey"]
    return failed_all(part, own) or ("no sample has a length and a depth" if own else "no passkey task was run")


def no_length(part: ModelPart) -> str:
    """Why there is no figure of scores against length."""
    return failed_all(part, part.tasks()) or "no task has scores of several lengths"


def no_bars(part: ModelPart) -> str:
    """Why there is no figure of differences to the full cache."""
    if part.reference is None:
        return "the method full was not run"
    if len(part.columns) < 2:
        return "it needs a second method beside full"
    return failed_all(part, part.tasks()) or "no sample has a score both of full and of another method"


def no_efficiency(part: ModelPart) -> str:
    """Why there is no figure of speeds."""
    return "there is no efficiency.jsonl with a measured speed; `lcbench bench --out RUN` makes one"


REASONS: Mapping[str, Callable[[ModelPart], str]] = {
    "Pareto": no_pareto,
    "radar": no_radar,
    "passkey": no_passkey,
    "length": no_length,
    "against full": no_bars,
    "efficiency": no_efficiency,
}
