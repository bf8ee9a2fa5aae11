"""Reading installed data. Never touches the network.

::

    from lcbench.config.home import home
    from lcbench.data import store

    file = store.data_file(home(), "longbench", "qasper.jsonl")        # path, sha256, rows, subset_note
    rows = store.read_rows(home(), "longbench", "qasper.jsonl", limit=4)
    prompts = store.config_json(home(), "longbench", "dataset2prompt.json")
    essay = store.read_text(home(), "paulgraham", "worked.txt")

File names are those of the manifest; a bare file name does where it is unique. Reading checks the whole file against
its checksum first, so what a run says it read is what it read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lcbench.data.checksum import digest_bytes, digest_file
from lcbench.data.ledger import Installed, dataset_folder, read_ledger
from lcbench.data.manifest import FileEntry, Manifest, all_manifests, manifest, resolve
from lcbench.data.rows import as_dataset, parse_object, parse_rows, read_table
from lcbench.errors import ChecksumMismatch, CorruptFile, DataMissing

__all__ = [
    "Check",
    "DataFile",
    "config_json",
    "data_file",
    "installed",
    "read_rows",
    "read_some",
    "read_text",
    "verify",
]


@dataclass(frozen=True)
class DataFile:
    """An installed file.

    Attributes:
        path: where it is.
        sha256: hex, as recorded when it was installed.
        rows: lines of a file of rows, None for others.
        subset_note: "subset: first 18 of 200 rows" when it is not the whole official file, else "".
    """

    path: Path
    sha256: str
    rows: int | None
    subset_note: str


@dataclass(frozen=True)
class Check:
    """What `verify` found out about one file.

    Attributes:
        dataset, file: names of the manifest.
        state: "ok"; "changed" (not the bytes that were installed, or not the official ones); "missing" (was
            installed, is gone or unreadable); "absent" (never installed).
        note: rows and subset when ok, the difference when changed.
    """

    dataset: str
    file: str
    state: Literal["ok", "changed", "missing", "absent"]
    note: str


def installed(home: Path) -> dict[str, dict[str, Installed]]:
    """What is installed below ``home``: data set to file name to entry. Data sets without files are left out.

    Raises:
        CorruptFile: a ``lock.json`` that cannot be read.
    """
    found = {name: read_ledger(dataset_folder(home, name)) for name in all_manifests()}
    return {name: files for name, files in found.items() if files}


def data_file(home: Path, dataset: str, filename: str) -> DataFile:
    """Where a file is and what it is. The content is not read here.

    Raises:
        UnknownName: the manifest has no such data set or file.
        DataMissing: it is not installed; the next step names the command.
        CorruptFile: ``lock.json`` cannot be read.
    """
    entry = manifest(dataset).file(filename)
    path = dataset_folder(home, dataset) / entry.path
    known = read_ledger(dataset_folder(home, dataset)).get(entry.path)
    if known is None or not path.is_file():
        raise DataMissing(f"{entry.path} of {dataset} is not downloaded.", f"Run: {_command(dataset, entry)}")
    return DataFile(path, known.sha256, known.rows, f"subset: {known.subset.note}" if known.subset else "")


def read_rows(home: Path, dataset: str, filename: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows of an installed file, in file order, at most ``limit`` of them; values as the file has them.

    The whole file is checked whatever the limit.

    Raises:
        DataMissing: not installed.
        CorruptFile: a line cannot be read as a row; file and line are named.
        ChecksumMismatch: every line is fine, but they are not the ones that were installed.
    """
    one, entry, file, content = _read(home, dataset, filename)
    again = _again(dataset, entry)
    changed = digest_bytes(content).sha256 != file.sha256
    schema = one.schema_of(entry)
    if entry.kind == "parquet" and changed:
        raise _changed(file.path, again)
    rows = read_table(entry, content, schema, str(file.path), again, limit)
    if changed:
        raise _changed(file.path, again)
    typed: list[dict[str, Any]] = as_dataset(rows, schema).to_list()
    return typed


def read_some(
    home: Path, dataset: str, filename: str, choose: Callable[[int], Sequence[int]]
) -> tuple[list[dict[str, Any]], int]:
    """Some rows of an installed file of JSON lines, and how many it has; for looking at large files.

    The file is checked against its checksum and only the chosen lines are read: all were read when it was installed.

    Args:
        choose: from the number of rows to the numbers of those wanted, from 0.

    Raises:
        As `read_rows`; of a file that has changed every line is read, so that the one that is wrong is named.
    """
    one, entry, file, content = _read(home, dataset, filename)
    if digest_bytes(content).sha256 != file.sha256:
        read_rows(home, dataset, filename)
        raise _changed(file.path, _again(dataset, entry))
    lines = content.split(b"\n")
    count = len(lines) - (lines[-1] == b"")
    some = b"\n".join(lines[i] for i in choose(count))
    return parse_rows(some, one.schema_of(entry), str(file.path), _again(dataset, entry)), count


def config_json(home: Path, dataset: str, name: str) -> dict[str, Any]:
    """A JSON configuration file of a data set, e.g. ``dataset2prompt.json``; not to be changed by the caller.

    Raises as `read_rows`.
    """
    file = data_file(home, dataset, name)
    try:
        stat = file.path.stat()
    except OSError:
        stat = None
    # Read for each prompt that is made, so a file that has not been touched since is not read again.
    return _config(home, dataset, name, file.sha256, (stat.st_mtime_ns, stat.st_size, stat.st_ino) if stat else None)


@functools.lru_cache(maxsize=32)
def _config(home: Path, dataset: str, name: str, _sha256: str, _touched: tuple[int, int, int] | None) -> dict[str, Any]:
    _, entry, file, content = _read(home, dataset, name)
    again = _again(dataset, entry)
    value = parse_object(content, str(file.path), again)
    if digest_bytes(content).sha256 != file.sha256:
        raise _changed(file.path, again)
    return value


def read_text(home: Path, dataset: str, filename: str) -> str:
    """An installed text file, UTF-8, line ends as they are. Raises as `read_rows`."""
    _, entry, file, content = _read(home, dataset, filename)
    again = _again(dataset, entry)
    if digest_bytes(content).sha256 != file.sha256:
        raise _changed(file.path, again)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CorruptFile(f"{file.path}, line {line}: not UTF-8 text.", again) from error


def verify(home: Path, names: Iterable[str] = ()) -> list[Check]:
    """Hash installed files again: those meant by ``names``, or everything.

    Raises:
        UnknownName: no data set, task, group or file is called so. CorruptFile: ``lock.json`` cannot be read.
    """
    wanted = list(names)
    checks: list[Check] = []
    if wanted:
        for selection in resolve(wanted):
            checks += _checks(home, selection.manifest, [entry.path for entry in selection.files])
    else:
        for name, files in installed(home).items():
            checks += _checks(home, manifest(name), list(files))
    return checks


def _checks(home: Path, one: Manifest, paths: Iterable[str]) -> list[Check]:
    folder = dataset_folder(home, one.name)
    ledger = read_ledger(folder)
    checks = []
    for path in paths:
        state, note = _check(folder / path, ledger.get(path), one.files.get(path))
        checks.append(Check(one.name, path, state, note))
    return checks


def _check(
    path: Path, known: Installed | None, entry: FileEntry | None
) -> tuple[Literal["ok", "changed", "missing", "absent"], str]:
    if known is None:
        return "absent", ""
    try:
        digest = digest_file(path)
    except OSError:
        return "missing", ""
    if digest.sha256 != known.sha256:
        return "changed", f"expected sha256 {known.sha256}, got {digest.sha256}"
    official = entry.expected.difference(digest) if entry is not None and known.subset is None else ""
    if official:
        return "changed", official
    return "ok", known.subset.note if known.subset else f"{known.rows} rows" if known.rows is not None else ""


def _read(home: Path, dataset: str, filename: str) -> tuple[Manifest, FileEntry, DataFile, bytes]:
    one = manifest(dataset)
    entry = one.file(filename)
    file = data_file(home, dataset, filename)
    try:
        return one, entry, file, file.path.read_bytes()
    except OSError as error:
        raise CorruptFile(f"{file.path} cannot be read: {error.strerror or error}.", _again(dataset, entry)) from error


def _changed(path: Path, next_step: str) -> ChecksumMismatch:
    return ChecksumMismatch(f"{path} is not the file that was installed: its checksum differs.", next_step)


def _command(dataset: str, entry: FileEntry) -> str:
    """The command that installs ``entry``: by its task, by its own name for configuration, or by data set."""
    if entry.kind == "rows" and entry.tasks:
        return f"lcbench download {entry.tasks[0]}"
    alone = entry.kind == "config" and resolve([entry.base])[0].manifest.name == dataset
    return f"lcbench download {entry.base if alone else dataset}"


def _again(dataset: str, entry: FileEntry) -> str:
    return f"Install it again: {_command(dataset, entry)}"


_NOT_DOWNLOADED = " is not downloaded."


def together(missing: Sequence[DataMissing]) -> DataMissing:
    """Several missing files as one error with one command for all downloads; builds keep a command each."""
    if len(missing) == 1:
        return missing[0]
    said = list(dict.fromkeys(error.message for error in missing))
    files = [text.removesuffix(_NOT_DOWNLOADED) for text in said if text.endswith(_NOT_DOWNLOADED)]
    others = [text for text in said if not text.endswith(_NOT_DOWNLOADED)]
    parts = [f"{', '.join(files)} {'is' if len(files) == 1 else 'are'} not downloaded."] if files else []
    steps = list(dict.fromkeys(error.next_step.removeprefix("Run: ") for error in missing))
    prefix = "lcbench download "
    names = dict.fromkeys(name for step in steps if step.startswith(prefix) for name in step.split()[2:])
    commands = [prefix + " ".join(names)] if names else []
    commands += [step for step in steps if not step.startswith(prefix)]
    return DataMissing(" ".join([*parts, *others]), f"Run: {'; then: '.join(commands)}")
