"""Manifests: what each data set consists of, where it comes from and what its bytes must be.

One YAML file a data set in ``data_manifests/`` (packed into the wheel). `load` checks every key and value, so the
rest of the room can trust what it gets. Names that users write (``longbench``, ``qasper``, ``few-shot``) are resolved
here alone, from the ``tasks`` and ``groups`` of the files; tasks are never imported.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

import lcbench
from lcbench.data.checksum import Expected
from lcbench.data.schema import FieldType, Schema
from lcbench.errors import BadValue, CorruptFile, DataMissing, UnknownName

Kind = Literal["rows", "parquet", "config", "text"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_HEX = {"sha256": re.compile(r"[0-9a-f]{64}"), "git_blob": re.compile(r"[0-9a-f]{40}")}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """Where files come from: a data set repository of the hub, or a URL pinned to a commit.

    Attributes:
        name: what the files call it.
        hub: repositories holding the same files, tried in order (a renamed one keeps its former name); or ().
        revision: branch, tag or commit on the hub.
        url: base URL, ending in ``/``; "" for the hub.
        archive: path of a ZIP that holds the files, "" when they lie there one by one.
        prefix: folder of the files inside the archive, repository or URL, ending in ``/``; or "".
        max_bytes: largest archive accepted. max_file_bytes: largest file accepted when its size is not known.
    """

    name: str
    hub: tuple[str, ...] = ()
    revision: str = "main"
    url: str = ""
    archive: str = ""
    prefix: str = ""
    max_bytes: int = 1 << 30
    max_file_bytes: int = 64 << 20


@dataclass(frozen=True)
class FileEntry:
    """One file of a data set.

    Attributes:
        path: its name below the data set's folder, with ``/``.
        source: name of its `Source`.
        kind: "rows" (JSON lines), "parquet" (a table), "config" (one JSON object) or "text".
        rows: number of rows of a "rows" file; of a "parquet" file where it is known.
        expected: size and checksums as far as known. Unknown ones are pinned by the first download.
        tasks: tasks that read it. groups: names under which it is downloaded together with others.
        optional: no task needs it; its absence is only mentioned.
        schema: fields of its rows where they are not those of the data set; of a "parquet" file, the columns read.
    """

    path: str
    source: str
    kind: Kind = "rows"
    rows: int | None = None
    expected: Expected = Expected()
    tasks: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    optional: bool = False
    schema: Schema | None = None

    @property
    def base(self) -> str:
        """File name without folders."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Manifest:
    """One data set.

    Attributes:
        name: folder below ``LCBENCH_HOME/data`` and word on the command line.
        title, homepage, licence, citation: for people.
        schema: fields of every row of its "rows" files, in file order.
        sources, files: by name and by path, in the order of the YAML file.
    """

    name: str
    title: str
    homepage: str
    licence: str
    citation: str
    sources: Mapping[str, Source]
    files: Mapping[str, FileEntry]
    schema: Schema = field(default_factory=dict)

    def file(self, name: str) -> FileEntry:
        """A file by its path or, when that is unique, by its bare file name. Raises UnknownName."""
        if name in self.files:
            return self.files[name]
        hits = [entry for entry in self.files.values() if entry.base == name]
        if len(hits) != 1:
            raise UnknownName("file", name, self.files, where=f" of data set {self.name}", listing="lcbench download")
        return hits[0]

    def schema_of(self, entry: FileEntry) -> Schema:
        """Fields of the rows of one file."""
        return self.schema if entry.schema is None else entry.schema

    @property
    def configs(self) -> tuple[FileEntry, ...]:
        """Configuration files; they are installed with every other file."""
        return tuple(entry for entry in self.files.values() if entry.kind == "config")


@dataclass(frozen=True)
class Selection:
    """Files of one data set that a user asked for.

    Attributes:
        manifest: the data set.
        files: in manifest order, without the configuration files that come along.
        named: paths that were asked for one by one (task or file name), so that their absence is an error;
            the others came with a data set or a group.
    """

    manifest: Manifest
    files: tuple[FileEntry, ...]
    named: frozenset[str]


def manifest_dir() -> Path:
    """The folder of the manifests: inside the installed package, or at the root of an editable checkout.

    Raises:
        DataMissing: neither exists, which means a broken installation.
    """
    package = Path(lcbench.__file__).resolve().parent
    for folder in (package / "data_manifests", package.parents[1] / "data_manifests"):
        if folder.is_dir():
            return folder
    raise DataMissing(f"The data manifests are missing from {package}.", "Install lcbench again.")


def all_manifests() -> dict[str, Manifest]:
    """Every data set lcbench knows, by name. Raises what `load` raises."""
    found = (load(path) for path in sorted(manifest_dir().glob("*.yaml")))
    return {manifest.name: manifest for manifest in found}


def manifest(name: str) -> Manifest:
    """One data set by name. Raises UnknownName."""
    known = all_manifests()
    if name not in known:
        raise UnknownName("data set", name, known, listing="lcbench download")
    return known[name]


def resolve(names: Iterable[str]) -> list[Selection]:
    """Files meant by names of data sets, tasks, groups or files, one selection a data set.

    Letter case and the choice between ``-`` and ``_`` do not matter. A task read from several data sets means all
    of them.

    Raises:
        UnknownName: nothing is called so; the nearest name is offered.
    """
    known = all_manifests()
    index = _index(known.values())
    chosen: dict[str, set[str]] = {}
    named: dict[str, set[str]] = {}
    for name in names:
        hits = index.get(_plain(name))
        if hits is None:
            raise UnknownName("data set or task", name, spoken_names(known.values()), listing="lcbench download")
        for dataset, path, one_by_one in hits:
            chosen.setdefault(dataset, set()).add(path)
            if one_by_one:
                named.setdefault(dataset, set()).add(path)
    return [
        Selection(
            known[dataset],
            tuple(entry for path, entry in known[dataset].files.items() if path in paths),
            frozenset(named.get(dataset, set())),
        )
        for dataset, paths in chosen.items()
    ]


def spoken_names(manifests: Iterable[Manifest]) -> list[str]:
    """Names that `resolve` takes, file names aside."""
    names: dict[str, None] = {}
    for one in manifests:
        for word in (one.name, *(w for e in one.files.values() for w in (*e.groups, *e.tasks))):
            names[word] = None
    return list(names)


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _index(manifests: Collection[Manifest]) -> dict[str, list[tuple[str, str, bool]]]:
    # Data set before task before group before file name: a word means the first kind that has it.
    kinds: list[dict[str, list[tuple[str, str, bool]]]] = [{}, {}, {}, {}]
    for one in manifests:
        for path, entry in one.files.items():
            exact = {f"{one.name}/{path}", f"{one.name}/{entry.base}"}
            words = ([one.name], entry.tasks, entry.groups, {path, entry.base, *exact})
            for level, (index, names) in enumerate(zip(kinds, words, strict=True)):
                for word in names:
                    index.setdefault(_plain(word), []).append((one.name, path, level in (1, 3)))
    # A file name that several data sets have means that of the largest one; DATASET/NAME means one in any case.
    sizes = {one.name: len(one.files) for one in manifests}
    for word, hits in kinds[3].items():
        largest = max((name for name, _, _ in hits), key=lambda name: sizes[name])
        kinds[3][word] = [hit for hit in hits if hit[0] == largest]
    return {**kinds[3], **kinds[2], **kinds[1], **kinds[0]}


def load(path: Path) -> Manifest:
    """Read and check one manifest.

    Raises:
        CorruptFile: not YAML, or not a mapping.
        UnknownName: a key or type that manifests do not have.
        BadValue: a value of the wrong type or form, or a key that is missing.
    """
    return _load(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _load(path: Path, _changed: int) -> Manifest:
    import yaml

    try:
        data = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise CorruptFile(f"{path}{line}: not YAML.", "Mend the file.") from None
    return _manifest(data, f"manifest {path.name}")


def _manifest(data: Any, where: str) -> Manifest:
    _keys(data, {f.name for f in fields(Manifest)}, {"name", "title", "licence", "sources", "files"}, where)
    name = _text(data, "name", where)
    if not _NAME.fullmatch(name):
        raise BadValue(f"The name '{name}' of {where} is not lower-case letters, digits, '-', '_' and '.'.", "Mend it.")
    schema = _schema(data.get("schema", {}), where)
    sources = {
        key: _source(key, value, f"source '{key}' of {where}")
        for key, value in _mapping(data["sources"], f"sources of {where}").items()
    }
    files: dict[str, FileEntry] = {}
    for number, value in enumerate(_list(data["files"], f"files of {where}"), 1):
        entry = _file(value, sources, f"file {number} of {where}")
        if entry.path.lower() in {known.lower() for known in files}:
            raise BadValue(f"The file '{entry.path}' is listed twice in {where}.", "List it once.")
        if entry.kind in ("rows", "parquet") and not (schema or entry.schema):
            raise BadValue(f"The file '{entry.path}' of {where} has rows, but there is no schema.", "Add the schema.")
        files[entry.path] = entry
    texts = {key: _text(data, key, where) for key in ("title", "homepage", "licence", "citation")}
    return Manifest(
        name=name, sources=MappingProxyType(sources), files=MappingProxyType(files),
        schema=schema, **texts,
    )  # fmt: skip


def _schema(data: Any, where: str) -> Schema:
    return MappingProxyType(
        {
            key: FieldType.parse(str(text), f" of field '{key}' in {where}")
            for key, text in _mapping(data, f"schema of {where}").items()
        }
    )


def _source(name: str, data: Any, where: str) -> Source:
    _keys(data, {f.name for f in fields(Source)} - {"name"}, set(), where)
    hub = tuple(_words(data, "hub", where))
    url = _text(data, "url", where)
    if bool(hub) == bool(url):
        raise BadValue(f"The {where} needs either hub or url.", "Give one of them.")
    for repository in hub:
        if not _REPOSITORY.fullmatch(repository):
            raise BadValue(f"The hub repository '{repository}' of {where} is not OWNER/NAME.", "Mend it.")
    if url and not (re.match(r"https?://[^/]+/", url) and url.endswith("/")):
        raise BadValue(f"The url '{url}' of {where} is not an http(s) address ending in '/'.", "Mend it.")
    prefix = _text(data, "prefix", where)
    for path in (prefix.rstrip("/"), _text(data, "archive", where)):
        if path:
            _safe_path(path, where)
    if prefix and not prefix.endswith("/"):
        raise BadValue(f"The prefix '{prefix}' of {where} does not end in '/'.", "Add the '/'.")
    return Source(
        name, hub, _text(data, "revision", where) or "main", url, _text(data, "archive", where), prefix,
        _number(data, "max_bytes", where) or Source.max_bytes,
        _number(data, "max_file_bytes", where) or Source.max_file_bytes,
    )  # fmt: skip


_FILE_KEYS = {
    "path", "source", "kind", "rows", "tasks", "groups", "optional", "sha256", "git_blob", "size", "schema",
}  # fmt: skip


def _file(data: Any, sources: Mapping[str, Source], where: str) -> FileEntry:
    _keys(data, _FILE_KEYS, {"path", "source"}, where)
    path = _text(data, "path", where)
    _safe_path(path, where)
    source = _text(data, "source", where)
    if source not in sources:
        raise UnknownName("source", source, sources, where=f" of {where}")
    kind = _text(data, "kind", where) or "rows"
    if kind not in get_args(Kind):
        raise UnknownName("kind", kind, get_args(Kind), where=f" of {where}")
    rows = _number(data, "rows", where)
    if kind != "parquet" and (kind == "rows") != (rows is not None):
        raise BadValue(f"The {where} ({path}) needs a row count exactly when its kind is rows.", "Mend it.")
    for key, form in _HEX.items():
        if key in data and not form.fullmatch(_text(data, key, where)):
            raise BadValue(f"The {key} '{data[key]}' of {where} ({path}) is not a hex digest of its kind.", "Mend it.")
    optional = data.get("optional", False)
    if not isinstance(optional, bool):
        raise BadValue(f"The key 'optional' of {where} is not true or false.", "Mend it.")
    expected = Expected(data.get("sha256"), data.get("git_blob"), _number(data, "size", where))
    return FileEntry(
        path, source, cast(Kind, kind), rows, expected,
        tuple(_words(data, "tasks", where)), tuple(_words(data, "groups", where)), optional,
        _schema(data["schema"], where) if "schema" in data else None,
    )  # fmt: skip


def _safe_path(path: str, where: str) -> None:
    parts = path.split("/")
    if "\\" in path or ":" in path or any(part in ("", ".", "..") or part.startswith(".") for part in parts):
        raise BadValue(f"The path '{path}' of {where} is not a plain relative path.", "Write folder/file.")


def _keys(data: Any, allowed: set[str], required: set[str], where: str) -> None:
    for key in _mapping(data, where):
        if key not in allowed:
            raise UnknownName("key", key, allowed, where=f" in {where}")
    for key in sorted(required):
        if key not in data:
            raise BadValue(f"The key '{key}' is missing in {where}.", "Add it.")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise CorruptFile(f"The {where} is not a mapping of names.", "Mend the file.")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadValue(f"The {where} are not a list.", "Mend the file.")
    return value


def _text(data: Mapping[str, Any], key: str, where: str) -> str:
    value = data.get(key, "")
    if not isinstance(value, str):
        raise BadValue(f"The key '{key}' of {where} is not text.", "Mend it, with quotes if need be.")
    return value.strip()


def _words(data: Mapping[str, Any], key: str, where: str) -> list[str]:
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise BadValue(f"The key '{key}' of {where} is not a list of words.", "Mend it.")
    return value


def _number(data: Mapping[str, Any], key: str, where: str) -> int | None:
    value = data.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadValue(f"The key '{key}' of {where} is not a whole number above 0.", "Mend it.")
    return value
