"""One built context with its questions, and what the builders of all tasks share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from lcbench.errors import DataMissing
from lcbench.tasks.hundred.counting import TokenCounter
from lcbench.tasks.hundred.documents import Document, Question
from lcbench.tasks.hundred.fill import Index, Measure
from lcbench.tasks.hundred.pools import Material, Mode

SAME_DOCUMENT_TWICE = "same_document_twice"
COINCIDING_OPTIONS = "coinciding_options"
BRACKETED_REFERENCE = "bracketed_reference"


@cache
def texts() -> Mapping[str, str]:
    """Wordings of passages, needles and requests (`prompts/hundred.json`)."""
    loaded: dict[str, str] = json.loads(files("lcbench.tasks").joinpath("prompts/hundred.json").read_text("utf-8"))
    return loaded


@dataclass(frozen=True)
class Context:
    """What a builder makes.

    Attributes:
        text: the context, every passage in it.
        inputs: what the prompt asks, one a question. questions: the sources' own words for it, "" where there are none.
        answers: parallel to ``inputs``; each a list of accepted answers.
        instruction: which passages to read, for the QA tasks.
        document: what is asked about; None where nothing single is.
        target: numbers of the passages that matter. passages: how many there are.
        sources: of each passage, in order.
        faults: known label faults of this context.
        cut: passages that are parts of documents.
        chance: score of a guess, None where that has no meaning.
    """

    text: str
    inputs: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[tuple[Any, ...], ...]
    passages: int
    sources: tuple[str, ...]
    instruction: str = ""
    document: Document | None = None
    target: tuple[int, ...] = ()
    faults: tuple[str, ...] = ()
    cut: int = 0
    chance: float | None = None

    @property
    def id(self) -> str:
        """16 hex digits over the text."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass
class Kit:
    """What builders work with.

    Attributes:
        material: the pools. mode: where paper and code differ. measure: how lengths are counted.
    """

    material: Material
    counter: TokenCounter
    mode: Mode
    exact: bool
    measure: Measure = field(init=False)
    _indexes: dict[tuple[str, ...], Index] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.measure = Measure.of(self.counter, self.exact)

    @property
    def paper(self) -> bool:
        return self.mode == "paper"

    def index(self, *pools: str) -> Index:
        """Documents of several pools. Raises DataMissing when there are none."""
        if pools not in self._indexes:
            self._indexes[pools] = Index(self.material.of(*pools))
        index = self._indexes[pools]
        if not index:
            raise DataMissing(
                f"There are no documents in the pool{'s' if len(pools) > 1 else ''} {', '.join(pools)}.",
                "Download more of the pools (lcbench download 100-longbench-pools), or leave the task out (--tasks).",
            )
        return index

    def askable(self, *pools: str) -> Index:
        """Those documents of several pools that something is asked about. Raises DataMissing when there are none."""
        key = (*pools, "?")
        if key not in self._indexes:
            self._indexes[key] = Index([d for d in self.index(*pools).documents if d.questions])
        if not self._indexes[key]:
            raise DataMissing(
                f"Nothing is asked about any document of {', '.join(pools)}.", "Leave the task out with --tasks."
            )
        return self._indexes[key]


def laid_out(pieces: Sequence[Document], form: str, *, strip: bool = False) -> str:
    """Passages one after the other under their numbers; ``form`` names the wording of one."""
    template = texts()[form]
    parts = []
    for number, piece in enumerate(pieces, 1):
        text = piece.text.lstrip("\n").lstrip(" ") if strip else piece.text
        parts.append(template.replace("{number}", str(number)).replace("{text}", text))
    return "".join(parts)


def cuts(pieces: Sequence[Document]) -> int:
    """How many pieces are parts of documents."""
    return sum(piece.excerpt for piece in pieces)


def sources_of(pieces: Sequence[Document]) -> tuple[str, ...]:
    """Where each piece is from."""
    return tuple(piece.source for piece in pieces)


def accepted(questions: Sequence[Question]) -> tuple[tuple[str, ...], ...]:
    """Answers parallel to the questions."""
    return tuple(question.answers for question in questions)
