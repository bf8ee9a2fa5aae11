"""The report as plain data: tasks down, methods across, and in each cell the score and what was saved."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lcbench.reporting.efficiency import EfficiencyRow
from lcbench.reporting.longscore.view import LongView


@dataclass(frozen=True)
class Column:
    """One method on one model.

    Attributes:
        model: name as the user gave it. method: id.
        run: folder of the run when several runs hold the same model, method and task, or asked otherwise, else "".
        setting: folders of the runs that asked the same questions in the same way, where not all of the model's runs
            did; else "". Scores are compared within one model and setting alone.
    """

    model: str
    method: str
    run: str = ""
    setting: str = ""

    @property
    def group(self) -> tuple[str, str]:
        """Columns of one group may be compared."""
        return self.model, self.setting


@dataclass(frozen=True)
class Line:
    """One task, the part of a task with prompts of one length, or a mean over tasks.

    Attributes:
        name: task id; for a mean its key. metric: of the task, "" of a mean.
        length: of the prompts, in the task's own unit ("384", "4-8k"); "" for anything but a length.
        members: of a mean, the ids of its tasks. category: whether that mean is over the tasks of one category.
    """

    name: str
    metric: str = ""
    kind: Literal["task", "length", "mean"] = "task"
    length: str = ""
    members: tuple[str, ...] = ()
    category: bool = False

    @property
    def title(self) -> str:
        """``qasper``, or ``qasper, length 4-8k``."""
        return f"{self.name}, length {self.length}" if self.kind == "length" else self.name


@dataclass(frozen=True)
class Cell:
    """One method on one task.

    Attributes:
        score: 0 to 100 over the samples without an error; None when there is none.
        low, high: 95 % interval of it, None where it is not known.
        n: samples in the score. errors: samples that failed, not in the score. filtered: samples that the QA
            filter left out, in neither. skipped: prompts longer than the window that were never asked, in neither.
        kv_bytes, kv_bytes_full: mean bytes a sample of the cache as kept, and uncompressed; None without samples, and
            for everything but whole tasks.
        memory: "real" when the dropped bytes were freed, "simulated" when they only count as dropped.
        run: folder it comes from. run_method: the method's id there, which may be another spelling; "" of a mean.
    """

    score: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    errors: int = 0
    filtered: int = 0
    skipped: int = 0
    kv_bytes: float | None = None
    kv_bytes_full: float | None = None
    memory: Literal["real", "simulated"] = "real"
    run: str = ""
    run_method: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the full cache is larger than the kept one."""
        return self.kv_bytes_full / self.kv_bytes if self.kv_bytes and self.kv_bytes_full is not None else None


@dataclass(frozen=True)
class Report:
    """What every renderer draws.

    Attributes:
        lines: tasks in spec order, each followed by its lengths, then means. columns: in the order of runs and specs.
        cells: by (line, column); absent where a method did not run a task.
        notes: what a reader must know: subsets, limits, windows, unfinished tasks, simulated memory.
        runs: folders of the runs.
        efficiency: what `lcbench bench` measured in them, each method alone.
        longscore: LongScores, rankings and losses; None where no task exists at several lengths.
    """

    lines: tuple[Line, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[Line, Column], Cell]
    notes: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    efficiency: tuple[EfficiencyRow, ...] = ()
    longscore: LongView | None = None

    @property
    def several_models(self) -> bool:
        return len({column.model for column in self.columns}) > 1

    def of_methods(self, methods: Collection[str]) -> Report:
        """The report with the columns of these method ids alone."""
        columns = tuple(column for column in self.columns if column.method in methods)
        cells = {(line, column): cell for (line, column), cell in self.cells.items() if column in columns}
        lines = tuple(line for line in self.lines if any((line, column) in cells for column in columns))
        return replace(self, lines=lines, columns=columns, cells=cells)

    def label(self, column: Column) -> str:
        """Heading of a column: the method, and the model and run where they tell columns apart."""
        parts = [column.method]
        if self.several_models:
            parts.append(column.model)
        if column.run:
            parts.append(column.run)
        return parts[0] if len(parts) == 1 else f"{parts[0]} ({', '.join(parts[1:])})"

    def part_of(self, line: Line, column: Column) -> str:
        """``2 of 6 rows`` where other methods of the column's group have scores of more rows, else "".

        Of a mean ``rows missing``, when that holds for one of its tasks.
        """
        if line.kind == "mean":
            tasks = [one for one in self.lines if one.kind == "task" and one.name in line.members]
            return "rows missing" if any(self.part_of(task, column) for task in tasks) else ""
        own = self.cells.get((line, column))
        rows = [
            cell.n + cell.filtered
            for (at, other), cell in self.cells.items()
            if at == line and other.group == column.group
        ]
        if own is None or own.n + own.filtered == max(rows):
            return ""
        return f"{own.n + own.filtered} of {max(rows)} rows"

    def samples(self, line: Line) -> str:
        """``20`` when every method scored as many samples, else ``18–20``; "" for a mean."""
        counts = [cell.n for (at, _), cell in self.cells.items() if at == line]
        if line.kind == "mean" or not counts:
            return ""
        return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)}–{max(counts)}"

    def failures(self, line: Line) -> int:
        """Samples that failed, over all methods; those of a length are among those of its task."""
        return sum(cell.errors for (at, _), cell in self.cells.items() if at == line)
