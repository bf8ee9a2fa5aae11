"""From a RunSpec to work: which prompts, which methods on each, who shares a prefill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lcbench.config.spec import Question
from lcbench.methods.base import Method
from lcbench.store.schema import PredictionRecord
from lcbench.tasks.base import Row, Task


@dataclass(frozen=True)
class PreparedPrompt:
    """One row, ready to be fed.

    Attributes:
        row: the question.
        ids: token ids of the whole prompt, chat template included; empty when ``error`` is set.
        tokens: how many there are (for an over-length prompt: how many there would have been).
        truncated_from: tokens of the prompt before it was cut in the middle, else None.
        error: why this prompt cannot be run, else None.
        tokens_before: tokens that the prompt had before a method shortened its text, else None.
        rewrite_seconds: that the method took to shorten it.
        question_tokens: how many of the last ids are the question (what the chat format puts after it included); 0
            when that is not known or not asked.
        lesson: ids of the text that a method learns before it reads the prompt, uncut; empty for all others.
    """

    row: Row
    ids: Sequence[int]
    tokens: int
    truncated_from: int | None = None
    error: str | None = None
    question_tokens: int = 0
    lesson: Sequence[int] = ()
    tokens_before: int | None = None
    rewrite_seconds: float = 0.0


@dataclass(frozen=True)
class PromptSet:
    """All prompts of a task as one group of methods reads them.

    Methods that leave the prompt's forward pass alone form one group a task and share its prefill, and so do those of
    one context extension; a method with a prefill of its own is a group of one.

    Attributes:
        methods: of the group, in the order of the command line.
        shared: whether one prefill serves them all.
        reading: id of the context extension that they share; "" for the plain model, and where nothing is shared.
        max_new_tokens: tokens an answer may take, the same for every row.
        sha256: over all prompts' token ids.
        sample: first and last 200 characters of one prompt, for people.
        counts: rows whose prompt was "cut", was "too_long" (an error row) or was "skipped".
        skipped_lengths: how many skipped rows had each length, of tasks that hold several; lengths as text.
        question: whether methods compress after the whole prompt ("visible") or after its context alone ("hidden").
    """

    task: Task
    methods: tuple[Method, ...]
    shared: bool
    prompts: tuple[PreparedPrompt, ...]
    max_new_tokens: int
    sha256: str
    sample: tuple[str, str]
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    skipped_lengths: Mapping[str, int] = field(default_factory=dict)
    question: Question = "visible"
    reading: str = ""

    def read_first(self, prompt: PreparedPrompt) -> Sequence[int]:
        """The ids of a prompt that are read before the methods compress: all of it, or its context."""
        return prompt.ids if self.question == "visible" else prompt.ids[: len(prompt.ids) - prompt.question_tokens]

    def blank(self, prompt: PreparedPrompt, method: Method, decode: str) -> PredictionRecord:
        """The record of a prompt and a method before there is an answer: what is known from the plan."""
        row = prompt.row
        return PredictionRecord(
            pred="",
            answers=list(row.answers),
            all_classes=None if row.all_classes is None else list(row.all_classes),
            length=row.length,
            id=row.id,
            prompt_tokens=prompt.tokens,
            memory=method.traits.memory,
            shared_prefill=self.shared,
            truncated_from=prompt.truncated_from,
            task_version=self.task.version,
            question=self.question,
            decode=decode,
            meta=dict(row.meta),
        )

    def read_last(self, prompt: PreparedPrompt) -> Sequence[int]:
        """The ids that are read through the compressed cache before the answer begins: none, or the question."""
        return prompt.ids[:0] if self.question == "visible" else prompt.ids[len(prompt.ids) - prompt.question_tokens :]


def group_methods(methods: Sequence[Method]) -> list[tuple[bool, tuple[Method, ...]]]:
    """Split methods into groups that share a prefill (of the plain model first, then one an extension) and groups of
    one. Order within groups is kept."""
    readings: dict[str, list[Method]] = {"": []}
    groups: list[tuple[bool, list[Method]]] = [(True, readings[""])]
    for method in methods:
        if method.reading is None:
            groups.append((False, [method]))
        elif method.reading in readings:
            readings[method.reading].append(method)
        else:
            readings[method.reading] = [method]
            groups.append((True, readings[method.reading]))
    return [(shared, tuple(group)) for shared, group in groups if group]
