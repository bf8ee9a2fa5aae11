"""What a task is: rows, prompts, answer length, stop rule, metric. Text only; tokenizers belong to models/."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from lcbench.config.options import Item, identifier, options_of
from lcbench.errors import BadValue

Stop = Literal["eos", "newline"]


@dataclass(frozen=True)
class Row:
    """One question with everything needed to ask and to score it.

    Attributes:
        id: unique within the task, stable across machines.
        fields: what the prompt template is filled with (LongBench: the official row).
        answers: accepted answers; scoring takes the maximum over them.
        all_classes: class labels, for classification tasks.
        length: published length of the row (LongBench: words or characters).
        meta: copied into the record (passkey: length in words, depth, repeat, key).
    """

    id: str
    fields: Mapping[str, Any]
    answers: tuple[str, ...]
    all_classes: tuple[str, ...] | None = None
    length: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt, before truncation and chat template.

    Attributes:
        text: the whole prompt.
        question_start: index in ``text`` where context ends and the question begins; None when they interleave.
        context: where in ``text`` the context stands, from its first character to behind its last; None for a prompt
            that has none of its own. What shortens prompts shortens this part.
        question: what is asked of the context, as the row has it; "" for a task that asks the same of every row.
    """

    text: str
    question_start: int | None = None
    context: tuple[int, int] | None = None
    question: str = ""


@dataclass(frozen=True)
class Loaded:
    """Rows of a task and where they came from.

    Attributes:
        rows: in dataset order.
        sha256: hex digest over the data files the rows and prompts came from ("" for generated tasks).
        note: said to the user after the task's id when not empty, e.g. "subset: first 18 of 200 rows".
        total: rows there are, where ``rows`` are a sample of them; None where they are all.
    """

    rows: Sequence[Row]
    sha256: str = ""
    note: str = ""
    total: int | None = None

    def sampled(self, most: int) -> Loaded:
        """At most ``most`` of the rows, evenly spread over all."""
        return replace(self, rows=[self.rows[i] for i in spread(len(self.rows), most)], total=self.count)

    @property
    def count(self) -> int:
        """Rows there are, sampled or not."""
        return len(self.rows) if self.total is None else self.total


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of the numbers below ``count``, evenly spread over them, 0 first."""
    fewer = min(most, count)
    return [i * count // fewer for i in range(fewer)]


@dataclass(frozen=True)
class Task(ABC):
    """Base of all tasks. Subclasses are frozen dataclasses; their fields, made with `config.options.param`, are the
    user's options (``passkey@digits=64``).

    Class attributes:
        name: the id on the command line.
        version: raised whenever a change moves a score; written into every record.
        changelog: version to one line saying what changed.
        benchmark: the suite it belongs to, e.g. "longbench".
        category: e.g. "single-doc-qa".
        language: "en", "zh" or "code".
        metric: name of the metric in `lcbench.scoring.metrics`.
        chat: whether the prompt is wrapped in the model's chat template.
        truncate: what to do with a prompt longer than the window: "middle" as LongBench, or "error".
        stop: "eos", or "newline" when generation also ends at a line break.
        early_stop: generation may end where the scorer reads no further (`tasks.early_stop`).
        min_new_tokens: tokens generated at least, whatever the model says.
        datasets: data sets it reads, by manifest name.
        rows: rows with default options, when everything is downloaded; 0 when nobody can know.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    changelog: ClassVar[Mapping[int, str]] = {1: "first version"}
    benchmark: ClassVar[str]
    category: ClassVar[str]
    language: ClassVar[str] = "en"
    metric: ClassVar[str]
    chat: ClassVar[bool] = True
    truncate: ClassVar[Literal["middle", "error"]] = "middle"
    stop: ClassVar[Stop] = "eos"
    early_stop: ClassVar[bool] = False
    min_new_tokens: ClassVar[int] = 0
    datasets: ClassVar[tuple[str, ...]] = ()
    rows: ClassVar[int] = 0

    @property
    def id(self) -> str:
        """Name and the options that were written or are not the default; the file name of its predictions."""
        return identifier(self.name, self)

    @property
    def options(self) -> dict[str, str]:
        """All options as canonical text."""
        return options_of(self)

    @classmethod
    def variants(cls, item: Item, home: Path, *, whole: bool) -> list[Item]:
        """What a name on the command line stands for: the item itself, or one for each of several lengths.

        Args:
            item: this task's name and the options that were written.
            whole: whether the user named the benchmark, not this task alone.

        Raises:
            DataMissing: it depends on data that are not there.
        """
        return [item]

    @property
    def once(self) -> bool:
        """Whether it asks about the model and not about methods: then the method ``full`` alone answers it."""
        return False

    @abstractmethod
    def load(self, home: Path, limit: int | None = None) -> Loaded:
        """Read the rows from the data folder of ``home`` (the LCBENCH_HOME), at most ``limit`` of them.

        Raises:
            DataMissing: not downloaded; the next step names the download command.
            CorruptFile: a data file cannot be read (file and line named).
        """

    def sample(self, home: Path, most: int, limit: int | None = None) -> Loaded:
        """Some rows of those that `load` reads, for plans: at most ``most``, evenly spread. Raises as `load`."""
        return self.load(home, limit).sampled(most)

    def check_data(self, home: Path) -> str:
        """Look whether `load` will find its data, without reading it.

        Returns:
            "" when the data is whole (or none is needed), else which part is there ("first 18 of 200 rows").

        Raises:
            DataMissing: not downloaded.
        """
        return ""

    @abstractmethod
    def answer_tokens(self, home: Path) -> int:
        """Most new tokens an answer may take (LongBench: from the official config file)."""

    @abstractmethod
    def prompt(self, row: Row, home: Path) -> Prompt:
        """Render one row. Prompts are data: templates come from files or the official configuration."""

    def without_context(self, row: Row) -> Row:
        """The row as it is asked without its context, to see what the model knew before (contamination).

        Raises:
            BadValue: the task has no context that could be left out.
        """
        raise BadValue(f"The task '{self.name}' cannot be asked without its context.", "Leave it out of this run.")
