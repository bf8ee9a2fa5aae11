"""Building: every context of every task and length, streamed to files; and building again to compare."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from lcbench.errors import CorruptFile, UsageError
from lcbench.tasks.hundred import comprehension, synthetic
from lcbench.tasks.hundred.context import Context, Kit
from lcbench.tasks.hundred.counting import TokenCounter
from lcbench.tasks.hundred.documents import Document
from lcbench.tasks.hundred.draws import Draws
from lcbench.tasks.hundred.fill import tolerance
from lcbench.tasks.hundred.manifest import add_to_manifest, drop_from_manifest
from lcbench.tasks.hundred.names import BASE, DEFAULT_BUILD, TASKS, UNIT, base_lengths, length_text
from lcbench.tasks.hundred.pools import Material, Mode
from lcbench.tasks.hundred.recipe import (
    Built,
    Recipe,
    build_folder,
    file_of,
    header,
    read_recipe,
    sources,
    to_line,
    write,
)

Builder = Callable[[Kit, int, int, Draws], Context]
Progress = Callable[[str, int, int], None]

BUILDERS: Mapping[str, Builder] = {
    "single_doc_qa": comprehension.single_doc_qa,
    "multi_doc_qa": comprehension.multi_doc_qa,
    "single_doc_sum": comprehension.single_doc_sum,
    "multi_doc_sum": comprehension.multi_doc_sum,
    "passage_retrieval": synthetic.passage_retrieval,
    "passage_count": synthetic.passage_count,
    "kv_retrieval": synthetic.kv_retrieval,
    "counting_stars": synthetic.counting_stars,
}
POOLS_OF: Mapping[str, tuple[str, ...]] = {
    "single_doc_qa": comprehension.QA,
    "multi_doc_qa": ("MULTI", *comprehension.QA),
    "single_doc_sum": comprehension.SUMS,
    "multi_doc_sum": ("MSUM", *comprehension.SUMS),
    "passage_retrieval": synthetic.RETRIEVAL,
    "passage_count": synthetic.NOISE,
    "kv_retrieval": synthetic.NOISE,
    "counting_stars": synthetic.NOISE,
}
_NATURAL_BASE = ("single_doc_qa", "multi_doc_qa", "single_doc_sum", "multi_doc_sum")
_CORRECTIONS = 4


def takes_documents(task: str, mode: Mode) -> bool:
    """Whether the task's base set is documents as they are, of which there may be too few; else contexts are made."""
    return task in _NATURAL_BASE and mode != "paper"


@dataclass(frozen=True)
class Order:
    """What to build.

    Attributes:
        lengths: in tokens. rows: contexts a file. seed: of all draws. tasks: names, in the reference's order.
        mode: "reference" or "paper". exact: lengths are exact, else the reference's rule leaves gaps.
        base_below: limit of the base sets, in tokens. build: name of the build. jobs: threads.
        custom: the documents are the user's own. pools: they come from a place that was named, not the downloaded data.
    """

    lengths: tuple[int, ...]
    rows: int = 100
    seed: int = 42
    tasks: tuple[str, ...] = TASKS
    mode: Mode = "reference"
    exact: bool = True
    base_below: int = 8 * UNIT
    build: str = DEFAULT_BUILD
    custom: bool = False
    jobs: int = 1
    pools: bool = False

    def files(self) -> list[tuple[str, int | str]]:
        """Task and length of every file: the base sets first, then every length."""
        lengths: list[int | str] = [BASE, *self.lengths]
        return [(task, length) for length in lengths for task in self.tasks]


class Workshop:
    """Makes the files of one order.

    Args:
        material: the pools of its tasks, counted. home: LCBENCH_HOME.
    """

    def __init__(self, order: Order, material: Material, counter: TokenCounter, home: Path) -> None:
        self._order, self._material, self._counter, self._home = order, material, counter, home
        self._kit = Kit(material, counter, order.mode, order.exact)

    def recipe(self, task: str, length: int | str) -> Recipe:
        """The recipe of one file; its sources are those of the task's pools alone."""
        order, counter = self._order, self._counter
        own = self._material.part(POOLS_OF[task])
        return Recipe(
            task, length, order.rows, order.seed, order.mode, order.exact, order.base_below, counter.name,
            counter.identity, sources(own), tuple(own.notes), order.custom,
        )  # fmt: skip

    def check_free(self, *, overwrite: bool) -> None:
        """Refuse to mix files of different recipes in one build; with ``overwrite`` remove those that do not fit.

        Raises:
            UsageError: the build holds files that were made in another way, or that cannot be read.
        """
        folder = build_folder(self._home, self._order.build)
        for path in sorted(folder.glob("*.jsonl")):
            try:
                changed = self._differences(read_recipe(path))
            except CorruptFile as error:
                changed = [error.message]
            if changed and overwrite:
                path.unlink()
                drop_from_manifest(folder, path.name)
            elif changed:
                raise UsageError(
                    f"The build '{self._order.build}' holds {path.name}, which was made differently "
                    f"({'; '.join(changed)}).",
                    "Give the new build another --name, or --overwrite.",
                )

    def _differences(self, old: Recipe) -> list[str]:
        """What keeps a file from being part of this build."""
        new = self.recipe(old.task, old.length)
        found = [
            f"{key}: was {value}, now {new.shared[key]}"
            for key, value in old.shared.items()
            if value != new.shared[key]
        ]
        known = {pool: self._material.files_of.get(pool) for pool in POOLS_OF[old.task]}
        if old.sources != new.sources and None not in known.values():
            found.append("other sources")
        return found

    def make(self, task: str, length: int | str, progress: Progress = lambda name, done, total: None) -> Built:
        """Build one file and put it in its place. Raises DataMissing, CannotWrite."""
        recipe, tally = self.recipe(task, length), _Tally()
        path = file_of(self._home, self._order.build, task, length)
        digest = write(path, self._lines(recipe, tally, progress))
        add_to_manifest(path.parent, path.name, digest, pools=self._order.pools)
        return replace(tally.built(path, recipe), sha256=digest)

    def compare(self, task: str, length: int | str, progress: Progress = lambda name, done, total: None) -> str:
        """Build one file again in memory, line by line, and compare; "" when it is the same, else what differs."""
        path = file_of(self._home, self._order.build, task, length)
        old = read_recipe(path)
        recipe = self.recipe(task, length)
        if old != recipe:
            names = [name for name in vars(recipe) if getattr(old, name) != getattr(recipe, name)]
            return f"its recipe differs in {', '.join(names)}"
        digest = hashlib.sha256()
        with open(path, "rb") as stream:
            for number, line in enumerate(self._lines(recipe, _Tally(), progress), 1):
                digest.update(line.encode("utf-8"))
                if stream.readline() != line.encode("utf-8"):
                    return f"line {number} differs"
            return "it has further lines" if stream.read(1) else ""

    def _lines(self, recipe: Recipe, tally: _Tally, progress: Progress) -> Iterator[str]:
        yield header(recipe)
        name = f"{recipe.task}@{length_text(recipe.length)}"
        jobs = self._jobs(recipe)
        progress(name, 0, len(jobs))
        # Tokenizers work outside of Python's lock, so threads help; only a few contexts are in memory at a time.
        numbered = enumerate(jobs)
        with ThreadPoolExecutor(self._order.jobs) as threads:
            ahead = islice(numbered, 2 * self._order.jobs)
            waiting: deque[Future[dict[str, Any]]] = deque(threads.submit(job, number) for number, job in ahead)
            while waiting:
                record = waiting.popleft().result()
                waiting.extend(threads.submit(job, number) for number, job in islice(numbered, 1))
                tally.add(record)
                yield to_line(record)
                progress(name, tally.contexts, len(jobs))

    def _jobs(self, recipe: Recipe) -> list[Callable[[int], dict[str, Any]]]:
        """One function a context, each independent of all others."""
        task, length, rows = recipe.task, recipe.length, recipe.rows
        if isinstance(length, int):
            return [self._job(task, length, None, row) for row in range(rows)]
        if takes_documents(task, recipe.mode):
            draws = Draws(recipe.seed, task, BASE)
            documents = comprehension.base_documents(self._kit, task, recipe.base_below, rows, draws)
            return [self._natural(task, document) for document in documents]
        short = base_lengths(recipe.base_below)
        # One of each length in turn, so that the first rows (--limit) are a sample of all of them.
        return [self._job(task, tokens, tokens, row) for row in range(rows // len(short)) for tokens in short]

    def _job(self, task: str, tokens: int, base: int | None, row: int) -> Callable[[int], dict[str, Any]]:
        def make(number: int) -> dict[str, Any]:
            context, length = self._context(task, tokens, base, row)
            label = BASE if base is not None else length_text(tokens)
            return _record(f"{label}-{number:03}", context, length, base, tokens if self._order.exact else None)

        return make

    def _natural(self, task: str, document: Document) -> Callable[[int], dict[str, Any]]:
        def make(number: int) -> dict[str, Any]:
            context = comprehension.base_context(task, document, Draws(self._order.seed, task, BASE, number))
            return _record(f"{BASE}-{number:03}", context, self._counter.count([context.text])[0], None, None)

        return make

    def _context(self, task: str, tokens: int, base: int | None, row: int) -> tuple[Context, int]:
        """One context and its true length. Where tokens merge or split between passages, the budget is corrected."""
        best: tuple[Context, int] | None = None
        budget = tokens
        for _ in range(_CORRECTIONS if self._order.exact else 1):
            draws = Draws(self._order.seed, task, tokens if base is None else f"{BASE}{tokens}", row)
            context = BUILDERS[task](self._kit, tokens, budget, draws)
            length = self._counter.count([context.text])[0]
            if best is None or abs(length - tokens) < abs(best[1] - tokens):
                best = context, length
            if not self._order.exact or abs(length - tokens) <= tolerance(tokens):
                break
            budget = max(tokens // 2, budget + tokens - length)
        assert best is not None
        return best


def _record(name: str, context: Context, length: int, base: int | None, target: int | None) -> dict[str, Any]:
    """A context as its line has it; the first fields are those of the reference's files."""
    return {
        "_id": name,
        "input": list(context.inputs),
        "answers": [list(answers) for answers in context.answers],
        "instruction": context.instruction,
        "length": length,
        "base_length": base,
        "off_target": target is not None and abs(length - target) > tolerance(target),
        "context_id": context.id,
        "document_id": context.document.text_id if context.document else "",
        "questions": list(context.questions),
        "target": list(context.target),
        "passages": context.passages,
        "sources": list(context.sources),
        "cut": context.cut,
        "faults": list(context.faults),
        "chance": context.chance,
        "new_context": context.text,
        "old_context": context.document.text if context.document else "",
    }


@dataclass
class _Tally:
    """What is counted while a file is written."""

    lengths: list[int] = field(default_factory=list)
    questions: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    off_target: int = 0

    @property
    def contexts(self) -> int:
        return len(self.lengths)

    def add(self, record: Mapping[str, Any]) -> None:
        self.lengths.append(record["length"])
        self.questions += len(record["input"])
        self.faults.update(record["faults"])
        self.off_target += record["off_target"]

    def built(self, path: Path, recipe: Recipe) -> Built:
        return Built(path, recipe, tuple(self.lengths), self.questions, dict(self.faults), self.off_target)
