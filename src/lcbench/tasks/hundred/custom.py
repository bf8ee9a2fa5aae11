"""The user's own documents and questions, for the same builders (``--custom DIR``).

Every ``*.txt`` and ``*.md`` file below the folder is a document, called by its path. ``questions.jsonl`` and
``summaries.jsonl`` beside them say what is asked::

    {"document": "reports/2023.txt", "question": "Who signed it?", "answers": ["Ada"]}
    {"document": ["a.txt", "b.txt"], "question": "Which of the two is older?", "answers": ["a", "the first"]}
    {"document": "reports/2023.txt", "summary": "The year was good.", "query": "How was the year?"}

A list of documents makes a question or summary about several passages. ``query`` may be
left out, and a single answer may be a text instead of a list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lcbench.data.checksum import digest_bytes
from lcbench.errors import BadValue, CorruptFile
from lcbench.tasks.hundred.counting import TokenCounter
from lcbench.tasks.hundred.documents import Document, Question
from lcbench.tasks.hundred.pools import Material, SourceFile, count_documents

QUESTIONS = "questions.jsonl"
SUMMARIES = "summaries.jsonl"
_ENDINGS = (".txt", ".md")
_NEEDS = {
    "single_doc_qa": ("QA-1", QUESTIONS, "question about a single document"),
    "multi_doc_qa": ("MULTI", QUESTIONS, "question about a list of documents"),
    "single_doc_sum": ("SUM-1", SUMMARIES, "summary of a single document"),
    "multi_doc_sum": ("MSUM", SUMMARIES, "summary of a list of documents"),
    "passage_retrieval": ("SUM-1", SUMMARIES, "summary of a single document"),
}
"""Task to the pool it asks about, the file that fills it, and what has to be in there."""
_MEND = "See docs/100-longbench.md for the form of --custom folders."


def gather_custom(folder: Path, counter: TokenCounter) -> Material:
    """The pools that a folder of the user makes.

    Raises:
        BadValue: no such folder, or no documents in it. CorruptFile: a file that cannot be read (with its line).
    """
    if not folder.is_dir():
        raise BadValue(f"There is no folder '{folder}'.", "Give --custom a folder of .txt or .md files.")
    files: list[SourceFile] = []
    texts: dict[str, str] = {}
    for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
        if path.suffix in _ENDINGS and path.is_file():
            name = path.relative_to(folder).as_posix()
            texts[name] = _text(path, name, files)
    if not texts:
        raise BadValue(f"There is no .txt or .md file in '{folder}'.", "Put each document into a file of its own.")
    single: dict[str, dict[str, list[Question]]] = {QUESTIONS: {}, SUMMARIES: {}}
    several: dict[str, list[Document]] = {QUESTIONS: [], SUMMARIES: []}
    for filename in (QUESTIONS, SUMMARIES):
        for number, row in _rows(folder / filename, filename, files):
            names, question = _asked(row, filename, number, texts)
            if len(names) == 1:
                single[filename].setdefault(names[0], []).append(question)
            else:
                text = "".join(f"Passage {k}:\n{texts[name]}\n" for k, name in enumerate(names, 1))
                several[filename].append(Document(f"custom/{'+'.join(names)}", text, (question,)))
    material = Material(files=files)
    for pool, filename in (("QA-1", QUESTIONS), ("SUM-1", SUMMARIES)):
        asked = single[filename]
        material.pools[pool] = [Document(f"custom/{n}", t, tuple(asked.get(n, ()))) for n, t in texts.items()]
    material.pools |= {"MULTI": several[QUESTIONS], "MSUM": several[SUMMARIES], "QA-2": [], "SUM-2": [], "CNN": []}
    material.files_of = {pool: tuple(file.name for file in files) for pool in material.pools}
    count_documents(material, counter)
    return material


def what_lacks(task: str, material: Material) -> str:
    """Why a task cannot be made from the user's folder, in the user's words; "" when its file does ask something."""
    pool, file, thing = _NEEDS.get(task, ("", "", ""))
    if not pool or any(document.questions for document in material.pools.get(pool, ())):
        return ""
    return f"{file} of your folder holds no {thing}."


def thing_of(task: str) -> str:
    """What a task asks about, as its owner calls it: "documents", "documents with a question"."""
    return {
        "single_doc_qa": "documents with a question",
        "multi_doc_qa": "lists of documents with a question",
        "single_doc_sum": "documents with a summary",
        "multi_doc_sum": "lists of documents with a summary",
    }.get(task, "documents")


def _text(path: Path, name: str, files: list[SourceFile]) -> str:
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise CorruptFile(f"{name} cannot be read: {error.strerror or error}.", _MEND) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CorruptFile(f"{name}, line {line}: not UTF-8 text.", "Save it as UTF-8.") from error
    if not text.strip():
        raise CorruptFile(f"{name} is empty.", "Delete it, or put the document's text into it.")
    files.append(SourceFile(f"custom/{name}", digest_bytes(content).sha256, 1))
    return text.replace("\r\n", "\n")


def _rows(path: Path, name: str, files: list[SourceFile]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a file of questions; nothing when it is not there."""
    if not path.is_file():
        return
    count = 0
    for number, line in enumerate(_text(path, name, files).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise CorruptFile(f"{name}, line {number}: not a JSON object.", _MEND)
        count += 1
        yield number, row
    files[-1] = SourceFile(files[-1].name, files[-1].sha256, count)


def _asked(row: dict[str, Any], filename: str, number: int, texts: dict[str, str]) -> tuple[list[str], Question]:
    where = f"{filename}, line {number}"
    names = row.get("document")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CorruptFile(f"{where}: 'document' is not the name of a document or a list of names.", _MEND)
    lost = [name for name in names if name not in texts]
    if lost:
        raise CorruptFile(f"{where}: there is no document '{lost[0]}'.", "Name a .txt or .md file of the folder.")
    answers: Any = [row.get("summary")] if filename == SUMMARIES else row.get("answers")
    answers = [answers] if isinstance(answers, str) else answers
    text = row.get("query", "") if filename == SUMMARIES else row.get("question")
    if not isinstance(text, str) or (filename == QUESTIONS and not text.strip()):
        raise CorruptFile(f"{where}: {'the question' if filename == QUESTIONS else 'query'} is not text.", _MEND)
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        what = "'answers' is not a list of texts" if filename == QUESTIONS else "'summary' is not text"
        raise CorruptFile(f"{where}: {what}.", _MEND)
    return names, Question(text, tuple(answers), listed=filename == QUESTIONS)
