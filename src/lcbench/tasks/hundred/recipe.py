"""What decides the bytes of a build, and the files of a build: a recipe line, then one line a context."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lcbench.data.disk import make_folder, publish, writing
from lcbench.errors import BadValue, CorruptFile, DataMissing
from lcbench.tasks.facts import HUNDRED
from lcbench.tasks.hundred.names import BASE, DEFAULT_BUILD, NO_CONTEXT, QA_TASKS, length_text, parse_length
from lcbench.tasks.hundred.pools import Material, Mode

FORMAT = 1
"""Raised whenever the same recipe would give other bytes."""

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@dataclass(frozen=True)
class Recipe:
    """Everything a built file depends on; no path, no date, no machine.

    Attributes:
        task, length: what the file holds; length in tokens or `BASE`.
        rows: contexts asked for. seed: of all draws. mode: "reference" or "paper".
        exact: lengths are exact (`fill`). base_below: documents of the base sets are shorter than this, in tokens.
        counter, counter_identity: name of the token counter and a hash of it.
        sources: files read, with their hashes. notes: what is missing and what stands in.
        custom: the documents are the user's own.
    """

    task: str
    length: int | str
    rows: int
    seed: int
    mode: Mode
    exact: bool
    base_below: int
    counter: str
    counter_identity: str
    sources: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()
    custom: bool = False

    @property
    def shared(self) -> dict[str, Any]:
        """What all files of one build have in common; sources and notes are those of the task's pools."""
        return {key: getattr(self, key) for key in ("seed", "mode", "exact", "base_below", "counter", "custom")} | {
            "tokenizer": self.counter_identity
        }


@dataclass(frozen=True)
class Built:
    """A built file.

    Attributes:
        path: where it is. recipe: its first line. lengths: tokens of its contexts. questions: how many are asked.
        faults: label fault to how many contexts have it. off_target: contexts outside the tolerance.
        sha256: of the whole file.
    """

    path: Path
    recipe: Recipe
    lengths: tuple[int, ...]
    questions: int
    faults: Mapping[str, int] = field(default_factory=dict)
    off_target: int = 0
    sha256: str = ""


def sources(material: Material) -> tuple[Mapping[str, Any], ...]:
    """The files of some pools as a recipe lists them."""
    return tuple(asdict(file) for file in material.files)


def build_folder(home: Path, build: str = DEFAULT_BUILD) -> Path:
    """Where the files of a build are. Raises BadValue for a name that is not a plain file name."""
    if not build or not set(build) <= _NAME_CHARACTERS or build.startswith("."):
        raise BadValue(f"'{build}' is not a name for a build.", "Use letters, digits, '-', '_' and '.'.")
    return home / "data" / HUNDRED / "builds" / build


def file_of(home: Path, build: str, task: str, length: int | str) -> Path:
    """Path of one built file."""
    return build_folder(home, build) / f"{task}_{length_text(length)}.jsonl"


def built_lengths(home: Path, build: str, task: str) -> list[int | str]:
    """What is built of a task: `BASE` first, then lengths ascending, then `NO_CONTEXT` for the QA tasks."""
    found: list[int | str] = []
    for path in build_folder(home, build).glob(f"{task}_*.jsonl"):
        with contextlib.suppress(BadValue):
            found.append(parse_length(path.stem[len(task) + 1 :]))
    if not found:
        return []
    numbers = sorted(length for length in found if isinstance(length, int))
    extra = [NO_CONTEXT] if task in QA_TASKS else []
    return [*([BASE] if BASE in found else []), *numbers, *extra]


def to_line(data: Mapping[str, Any]) -> str:
    """One JSON line as files of a build have it."""
    line = json.dumps(data, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        line = json.dumps(data, ensure_ascii=True)
    return line + "\n"


def header(recipe: Recipe) -> str:
    """The first line of a built file."""
    return to_line({"suite": HUNDRED, "format": FORMAT, "recipe": asdict(recipe)})


def write(path: Path, lines: Iterator[str]) -> str:
    """Write a file line by line beside its place, then put it there at once; its SHA-256. Raises CannotWrite."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    digest = hashlib.sha256()
    try:
        with contextlib.ExitStack() as stack:
            with writing(path):
                out = stack.enter_context(open(temporary, "wb"))
            for line in lines:
                data = line.encode("utf-8")
                digest.update(data)
                with writing(path):
                    out.write(data)
        publish(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return digest.hexdigest()


def read_recipe(path: Path) -> Recipe:
    """The recipe of a built file. Raises DataMissing, CorruptFile."""
    with _opened(path) as stream:
        return _recipe(path, stream.readline())


def read(path: Path, limit: int | None = None) -> tuple[Recipe, list[dict[str, Any]], str]:
    """A built file: its recipe, at most ``limit`` contexts, and the SHA-256 of all of it.

    Raises:
        DataMissing: not built. CorruptFile: a line that is not what it should be (file and line named).
    """
    contexts: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    with _opened(path) as stream:
        first = stream.readline()
        digest.update(first)
        recipe = _recipe(path, first)
        for number, line in enumerate(stream, 2):
            digest.update(line)
            if limit is None or len(contexts) < limit:
                contexts.append(_context(path, number, line))
    return recipe, contexts, digest.hexdigest()


_FIELDS: Sequence[tuple[str, type | tuple[type, ...]]] = (
    ("_id", str), ("input", list), ("questions", list), ("answers", list), ("new_context", str), ("instruction", str),
    ("length", int), ("context_id", str), ("document_id", str), ("faults", list),
)  # fmt: skip


def _context(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise _corrupt(path, number, "not JSON") from error
    if not isinstance(data, dict):
        raise _corrupt(path, number, "not an object")
    for name, kind in _FIELDS:
        if not isinstance(data.get(name), kind):
            raise _corrupt(path, number, f"the field '{name}' is missing or of another type")
    if not len(data["input"]) == len(data["answers"]) == len(data["questions"]):
        raise _corrupt(path, number, "input, questions and answers are not of one length")
    return data


def _recipe(path: Path, line: bytes) -> Recipe:
    try:
        data = json.loads(line.decode("utf-8"))
        if data["suite"] != HUNDRED:
            raise ValueError
        if data["format"] != FORMAT:
            raise CorruptFile(f"{path} has format {data['format']}, this lcbench reads {FORMAT}.", _AGAIN)
        fields = dict(data["recipe"])
        fields["sources"], fields["notes"] = tuple(fields["sources"]), tuple(fields["notes"])
        return Recipe(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise _corrupt(path, 1, "not the recipe of a built file") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        stream = open(path, "rb")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        raise DataMissing(f"{path.stem} is not built.", "Run: lcbench build 100-longbench --lengths 8k") from None
    except OSError as error:
        raise CorruptFile(f"{path} cannot be read: {error.strerror or error}.", _AGAIN) from error
    with stream:
        yield stream


_AGAIN = "Build it again: lcbench build 100-longbench --overwrite …"


def _corrupt(path: Path, number: int, what: str) -> CorruptFile:
    return CorruptFile(f"{path}, line {number}: {what}.", _AGAIN)
