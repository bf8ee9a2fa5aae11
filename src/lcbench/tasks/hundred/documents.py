"""Documents to build contexts from, and how the rows of each kind of pool become documents."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lcbench.errors import CorruptFile

_HEADER = re.compile(r"Passage \d+:\n")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a document.

    Attributes:
        text: the question or request; "" for a document that only has a summary.
        answers: accepted answers; of a summary, its references.
        listed: the source gives a list of answers (LongBench), where others give one text.
    """

    text: str
    answers: tuple[str, ...]
    listed: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a pool.

    Attributes:
        source: data set and file, e.g. "longbench/qasper".
        text: as the source has it; headers "Passage n:" included where it consists of passages.
        questions: at least one, unless the document is noise only.
        tokens: of ``text``, by the counter of the build; 0 until `pools` has counted.
        excerpt: it is a part of a document that was too long for the context.
    """

    source: str
    text: str
    questions: tuple[Question, ...]
    tokens: int = 0
    excerpt: bool = False

    @property
    def id(self) -> str:
        """16 hex digits over source, text and questions: the same wherever and in whatever order it was read."""
        content = [self.source, self.text, [[q.text, *q.answers] for q in self.questions]]
        return _digest(json.dumps(content, ensure_ascii=True))

    @property
    def text_id(self) -> str:
        """16 hex digits over the text alone: equal for two rows about one text."""
        return _digest(self.text)

    @property
    def passages(self) -> list[str]:
        """The passages of a document that consists of some; else the whole text. Empty ones are left out."""
        return [part for part in _HEADER.split(self.text) if part.strip()]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def from_longbench(source: str, rows: Iterable[Mapping[str, Any]]) -> list[Document]:
    """One document a row, with its one question and all accepted answers."""
    return [Document(source, r["context"], (Question(r["input"], tuple(r["answers"]), True),)) for r in rows]


def from_leval(source: str, rows: Iterable[Mapping[str, Any]]) -> list[Document]:
    """One document a row, with all its questions, one answer each. Rows that are repeated in a file are left out."""
    documents = []
    for number, row in enumerate(rows, 1):
        asked, answered = row["instructions"], row["outputs"]
        if len(asked) != len(answered):
            raise CorruptFile(
                f"Row {number} of {source} has {len(asked)} instructions and {len(answered)} outputs.",
                "Get the file again.",
            )
        pairs = zip(asked, answered, strict=True)
        documents.append(Document(source, row["input"], tuple(Question(q, (a,)) for q, a in pairs)))
    return list(dict.fromkeys(documents))


def from_cnn(source: str, rows: Iterable[Mapping[str, Any]]) -> list[Document]:
    """One article a row; its highlights are the summary."""
    return [Document(source, row["article"], (Question("", (row["highlights"],)),)) for row in rows]


def from_bioasq(source: str, rows: Iterable[Mapping[str, Any]], corpus: Mapping[int, str]) -> list[Document]:
    """Questions with at least two relevant passages; the document is these passages under "Passage k:" headers.

    Raises:
        CorruptFile: a passage that the corpus does not have.
    """
    documents = []
    for row in rows:
        ids = row["relevant_passage_ids"]
        if len(ids) < 2:
            continue
        lost = [i for i in ids if i not in corpus]
        if lost:
            raise CorruptFile(f"{source} names the passage {lost[0]}, which the corpus does not have.", "Get it again.")
        text = "".join(f"Passage {k}:\n{corpus[i]}\n" for k, i in enumerate(ids, 1))
        documents.append(Document(source, text, (Question(row["question"], (row["answer"],)),)))
    return documents


def flattened(document: Document) -> Document:
    """A document of several passages as one text, so that it can be one passage among others."""
    return replace(document, text="\n\n".join(part.strip("\n") for part in document.passages))


def one_a_text(documents: Sequence[Document]) -> list[Document]:
    """Rows about the same text of one source become one document with all their questions, each once."""
    together: dict[tuple[str, str], list[Document]] = {}
    for document in documents:
        together.setdefault((document.source, document.text), []).append(document)
    merged = []
    for (source, text), group in together.items():
        questions = {q for document in group for q in document.questions}
        merged.append(Document(source, text, tuple(sorted(questions, key=lambda q: (q.text, q.answers)))))
    return merged
