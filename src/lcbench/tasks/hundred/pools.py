"""The pools that contexts are built from: which data sets they consist of, and what of them there is.

A pool whose members are missing, or there with their first rows only, is completed by substitutes (`Pool.substitutes`),
which are not part of the published benchmark. What is missing and what stands in for it is said, written into every
built file and shown with every result (`Material.notes`).
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lcbench.data.checksum import digest_bytes
from lcbench.data.fetch import Fetcher
from lcbench.data.hub import bearer
from lcbench.data.manifest import manifest
from lcbench.data.places import Place, open_place
from lcbench.data.rows import read_table
from lcbench.data.store import data_file, read_rows
from lcbench.errors import DataMissing
from lcbench.tasks.hundred.counting import TokenCounter
from lcbench.tasks.hundred.documents import (
    Document,
    flattened,
    from_bioasq,
    from_cnn,
    from_leval,
    from_longbench,
    one_a_text,
)

Mode = Literal["reference", "paper"]

_CNN = "cnn_dailymail/1.0.0/test-00000-of-00001.parquet"
_BIOASQ = "bioasq/question-answer-passages/test-00000-of-00001.parquet"
_CORPUS = "bioasq/text-corpus/test-00000-of-00001.parquet"
_CNN_ARTICLES = 1001  # as many as the reference reads


@dataclass(frozen=True)
class Pool:
    """Which files make a pool: ``data set/file`` of the manifests.

    Attributes:
        members: as published.
        substitutes: read too when a member is missing or cut short.
        flat: passages of a document become one text (a substitute made for another purpose).
    """

    members: tuple[str, ...]
    substitutes: tuple[str, ...] = ()
    flat: bool = False


def _longbench(*names: str) -> tuple[str, ...]:
    return tuple(f"longbench/{name}.jsonl" for name in names)


def _leval(*names: str) -> tuple[str, ...]:
    return tuple(f"leval/Open-ended-tasks/{name}.jsonl" for name in names)


POOLS: Mapping[str, Pool] = {
    "QA-1": Pool(
        _longbench("qasper", "multifieldqa_en", "narrativeqa"), _longbench("qasper_e", "multifieldqa_en_e")
    ),
    "QA-2": Pool(
        _leval("multidoc_qa", "legal_contract_qa", "financial_qa", "natural_question", "scientific_qa")
    ),
    "MULTI": Pool((*_longbench("hotpotqa", "2wikimqa", "musique"), _BIOASQ), _longbench("hotpotqa_e")),
    "SUM-1": Pool(_longbench("gov_report", "qmsum"), _longbench("gov_report_e")),
    "SUM-2": Pool(
        _leval("patent_summ", "tv_show_summ", "review_summ", "meeting_summ"),
        (*_leval("gov_report_summ", "news_summ"), *_longbench("multi_news")),
        flat=True,
    ),
    "MSUM": Pool(_longbench("multi_news_e"), _longbench("multi_news")),
    "CNN": Pool((_CNN,), _longbench("multi_news"), flat=True),
}  # fmt: skip
"""The published pools. SUM-2 and CNN hold no document of passages, so ``flat`` changes only substitutes there."""


@dataclass(frozen=True)
class SourceFile:
    """A file that was read: its name, hash, and what part of the official file it is."""

    name: str
    sha256: str
    rows: int
    subset: str = ""
    substitute: bool = False


@dataclass
class Material:
    """Everything there is to build from.

    Attributes:
        pools: name to documents, counted, in an order that depends on their content alone.
        files: what they were read from.
        missing: members that are not there.
        notes: for people and for the recipe: what is missing or cut short, and what stands in for it.
        files_of, notes_of: by pool.
    """

    pools: dict[str, list[Document]] = field(default_factory=dict)
    files: list[SourceFile] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes_of: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def part(self, names: Sequence[str]) -> Material:
        """The same for some of the pools alone: what a file built from them depends on."""
        wanted = {file for name in names for file in self.files_of.get(name, ())}
        return Material(
            {name: self.pools.get(name, []) for name in names},
            [file for file in self.files if file.name in wanted],
            self.missing,
            [note for name in names for note in self.notes_of.get(name, ())],
        )

    def of(self, *names: str) -> list[Document]:
        """Documents of several pools, each once, ascending by tokens."""
        return ordered(document for name in names for document in self.pools.get(name, []))


def ordered(documents: Iterable[Document]) -> list[Document]:
    """Each document once, by length and then by content, so that the order of files and rows does not matter."""
    return sorted(set(documents), key=lambda d: (d.tokens, d.id))


class Shelf(ABC):
    """Where pool files are looked up."""

    @abstractmethod
    def rows(self, name: str, limit: int | None = None) -> tuple[list[dict[str, Any]], SourceFile] | None:
        """Rows of ``data set/file`` and what they were read from; None when it is not there. Raises CorruptFile."""


class Installed(Shelf):
    """The data folder of LCBENCH_HOME."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def rows(self, name: str, limit: int | None = None) -> tuple[list[dict[str, Any]], SourceFile] | None:
        dataset, _, path = name.partition("/")
        try:
            file = data_file(self._home, dataset, path)
        except DataMissing:
            return None
        rows = read_rows(self._home, dataset, path, limit)
        return rows, SourceFile(name, file.sha256, len(rows), file.subset_note)


class Elsewhere(Shelf):
    """A folder or ZIP file of the user (``--pools``), laid out as `lcbench download --from` takes it."""

    def __init__(self, place: Place, scratch: Path) -> None:
        self._place, self._scratch = place, scratch

    def rows(self, name: str, limit: int | None = None) -> tuple[list[dict[str, Any]], SourceFile] | None:
        dataset, _, path = name.partition("/")
        one = manifest(dataset)
        entry = one.file(path)
        found = next(iter(self._place.find(one, entry)), None)
        if found is None:
            return None
        copy = self._scratch / found.base
        where = f"{self._place.shown}/{found.name}"
        self._place.copy(found, copy, entry, one.sources[entry.source].max_file_bytes)
        content = copy.read_bytes()
        copy.unlink()
        if found.subset is None:
            entry.expected.check(digest_bytes(content), where, "Give --pools the official files.")
        rows = read_table(entry, content, one.schema_of(entry), where, "Get the file again.", limit)
        note = f"subset: first {found.subset} of {entry.rows} rows" if found.subset else ""
        return rows, SourceFile(name, digest_bytes(content).sha256, len(rows), note)


def gather(
    names: Iterable[str],
    counter: TokenCounter,
    mode: Mode,
    *,
    home: Path,
    place: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Material:
    """Read the pools called ``names`` from the data folder, or from ``place``, and count their documents.

    Raises:
        DataMissing: nothing of any pool is there. CorruptFile, ChecksumMismatch: a file that is not what it claims.
        BadValue: no such ``place``.
    """
    if place is None:
        material = _gather(names, Installed(home), mode)
    else:
        with (
            tempfile.TemporaryDirectory(prefix="lcbench-pools-") as folder,
            Fetcher(bearer) as fetcher,
            open_place(place, fetcher, Path(folder)) as opened,
        ):
            material = _gather(names, Elsewhere(opened, Path(folder)), mode)
    if not any(material.pools.values()):
        raise DataMissing(
            f"None of the pools of 100-LongBench is {'in ' + place if place else 'downloaded'}.",
            "Run: lcbench download 100-longbench-pools   (or --from DIR, or give the build --pools DIR)",
        )
    say(f"Counting the tokens of {sum(map(len, material.pools.values())):,} documents.")
    count_documents(material, counter)
    return material


def count_documents(material: Material, counter: TokenCounter) -> None:
    """Count every text once, and put the pools in order."""
    texts = list(dict.fromkeys(d.text for documents in material.pools.values() for d in documents))
    counts = dict(zip(texts, counter.count(texts), strict=True))
    for name, documents in material.pools.items():
        material.pools[name] = ordered(replace(d, tokens=counts[d.text]) for d in documents)


def _gather(names: Iterable[str], shelf: Shelf, mode: Mode) -> Material:
    material = Material()
    seen: dict[str, SourceFile] = {}
    for name in names:
        pool = POOLS[name]
        members = [(file, _read(shelf, file, mode)) for file in pool.members]
        lacking = [file for file, read in members if read is None]
        partial = [f"{short(file)} ({read[1].subset[8:]})" for file, read in members if read and read[1].subset]
        documents = [d for _, read in members if read is not None for d in read[0]]
        files = [read[1] for _, read in members if read is not None]
        stand_ins = []
        for file in pool.substitutes if lacking or partial else ():
            read = _read(shelf, file, mode)
            if read is None:
                continue
            known = {d.text for d in documents}
            added = [flattened(d) for d in read[0]] if pool.flat else read[0]
            documents += [d for d in added if d.text not in known]
            files.append(replace(read[1], substitute=True))
            stand_ins.append(short(file))
        material.pools[name] = documents
        material.missing += [file for file in lacking if file not in material.missing]
        seen |= {file.name: file for file in files if file.name not in seen}
        material.files_of[name] = tuple(file.name for file in files)
        notes = _notes(name, [short(file) for file in lacking], partial, stand_ins, bool(documents))
        material.notes_of[name] = notes
        material.notes += notes
    material.files = sorted(seen.values(), key=lambda file: file.name)
    return material


def _read(shelf: Shelf, name: str, mode: Mode) -> tuple[list[Document], SourceFile] | None:
    limit = _CNN_ARTICLES if name == _CNN else None
    found = shelf.rows(name, limit)
    if found is None:
        return None
    rows, file = found
    source = short(name)
    if name == _CNN:
        documents = from_cnn(source, rows)
    elif name == _BIOASQ:
        corpus = shelf.rows(_CORPUS)
        if corpus is None:
            return None
        documents = from_bioasq(source, rows, {row["id"]: row["passage"] for row in corpus[0]})
        file = replace(file, sha256=digest_bytes(f"{file.sha256}\n{corpus[1].sha256}".encode()).sha256)
    else:
        documents = (from_leval if name.startswith("leval/") else from_longbench)(source, rows)
    return (one_a_text(documents) if mode == "paper" else documents), file


def short(name: str) -> str:
    """``longbench/qasper`` for ``longbench/qasper.jsonl``; ``bioasq`` and ``cnn_dailymail`` for their one table."""
    dataset, _, path = name.partition("/")
    return dataset if path.endswith(".parquet") else f"{dataset}/{path.rpartition('/')[2].partition('.')[0]}"


def _notes(
    pool: str, lacking: Sequence[str], partial: Sequence[str], stand_ins: Sequence[str], any_left: bool
) -> tuple[str, ...]:
    if not lacking and not partial:
        return ()
    parts = [f"missing {', '.join(lacking)}"] if lacking else []
    parts += [f"only part of {', '.join(partial)}"] if partial else []
    if stand_ins:
        parts.append(f"{', '.join(stand_ins)} stand in" if len(stand_ins) > 1 else f"{stand_ins[0]} stands in")
    elif not any_left:
        parts.append("nothing stands in")
    return (f"pool {pool}: {'; '.join(parts)}",)
