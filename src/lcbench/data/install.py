"""`lcbench download`: from names to verified files in the data folder.

One process at a time works on a data set; a second one waits and then finds the work done. Every file is fetched or
copied aside, checked, moved to its place in one step and entered in ``lock.json``, so that an interruption at any
moment leaves only whole files, and the same command goes on from there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lcbench.data import hub
from lcbench.data.disk import make_folder, require_room
from lcbench.data.fetch import Fetcher, Patience, Progress
from lcbench.data.manifest import FileEntry, Selection, Source, resolve
from lcbench.data.neterrors import NotThere, Refused, Unreachable
from lcbench.data.part import Wanted
from lcbench.data.places import Found, Place, ZipPlace, open_place
from lcbench.data.shelf import Shelf, names_of
from lcbench.errors import BadValue, ChecksumMismatch, CorruptFile, DataMissing, LcbenchError, NetworkError


@dataclass(frozen=True)
class Done:
    """What became of one file.

    Attributes:
        dataset, file: names of the manifest.
        state: "installed"; "replaced" (something else was there); "present" (was there, nothing done); "kept" (the
            full file stays although a subset was offered); "missing" (not found, and nobody insisted on it).
        rows: lines of a file of rows that is there now.
        note: subset, or why.
    """

    dataset: str
    file: str
    state: str
    rows: int | None = None
    note: str = ""


@dataclass
class Report:
    """What `install` did: one `Done` a file, and what went wrong with single files."""

    done: list[Done] = field(default_factory=list)
    problems: list[LcbenchError] = field(default_factory=list)


def install(
    home: Path,
    names: Iterable[str],
    place: str | None = None,
    *,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> Report:
    """Install what ``names`` mean (data sets, tasks, groups, files) below ``home``.

    What is installed in full already is not touched, and needs no network. Configuration files come along with
    every file of their data set.

    Args:
        home: LCBENCH_HOME.
        place: folder, ZIP or URL to take files from instead of the sources of the manifest.
        say: told one line at a time what is going on. progress: told how far a transfer is.

    Raises:
        UnknownName, BadValue: a name or place that does not exist.
        CannotWrite: folder not writable or disk full.
        CorruptFile: a ``lock.json`` or a ``place`` that cannot be read. NetworkError: a ``place`` out of reach.
            (Trouble with single files goes into the report.)
    """
    report = Report()
    selections = resolve(names)
    with Fetcher(hub.bearer, progress, patience) as fetcher:
        for selection in selections:
            _Installer(home, selection, fetcher, say, report).run(place)
    return report


class _Installer:
    """Work on one data set."""

    def __init__(
        self, home: Path, selection: Selection, fetcher: Fetcher, say: Callable[[str], None], report: Report
    ) -> None:
        self._selection, self._manifest = selection, selection.manifest
        self._fetcher, self._say, self._report = fetcher, say, report
        self._shelf = Shelf(home, selection.manifest)
        self._unpacked: set[str] = set()
        self._silent: dict[str, NetworkError] = {}

    def run(self, place: str | None) -> None:
        asked = list(self._selection.files)
        if any(entry.kind != "config" for entry in asked):
            asked += [entry for entry in self._manifest.configs if entry not in asked]
        self._shelf.read()
        # Looked at before locking: a finished installation may lie on a disk that cannot be written.
        if all(self._shelf.whole(entry) for entry in asked) and (place is None or "://" in place):
            return self._present(asked)
        with self._shelf.locked(self._say):
            self._shelf.read()
            lacking = [entry for entry in asked if not self._shelf.whole(entry) and not self._shelf.adopt(entry)]
            if place is not None:
                self._from_place(place, asked, lacking)
            else:
                self._present(entry for entry in asked if entry not in lacking)
                self._from_sources(lacking)

    def _from_sources(self, entries: Iterable[FileEntry]) -> None:
        """Get files from where the manifest says; what fails goes into the report."""
        for entry in entries:
            source = self._manifest.sources[entry.source]
            try:
                if not source.archive:
                    self._download(entry, source)
                elif source.name not in self._unpacked:
                    self._unpacked.add(source.name)
                    self._unpack(source)
            except NetworkError as error:
                self._lost(entry, error)
            except (ChecksumMismatch, CorruptFile) as error:
                self._report.problems.append(error)

    def _download(self, entry: FileEntry, source: Source) -> None:
        if source.name in self._silent:
            raise self._silent[source.name]
        target = self._shelf.aside / entry.base
        limit = entry.expected.size or source.max_file_bytes
        expected = self._shelf.expected(entry)
        urls = _urls(source, source.prefix + entry.path)
        url = self._first(urls, source, lambda u: Wanted(u, target, entry.path, expected, limit))
        self._put(entry, target, hub.shown(url))

    def _unpack(self, source: Source) -> None:
        """Fetch an archive once and install every file of the manifest it holds."""
        ours = [entry for entry in self._manifest.files.values() if entry.source == source.name]
        lacking = [entry for entry in ours if not self._shelf.whole(entry)]
        target = self._shelf.aside / PurePosixPath(source.archive).name
        urls = _urls(source, source.archive)
        if any(entry not in self._selection.files for entry in lacking):
            self._say(f"{source.archive} holds all {len(ours)} files of {self._manifest.name}; all will be installed.")
        url = urls[0]
        # It lies there when the last process was stopped while it unpacked.
        if not target.exists():
            url = self._first(urls, source, lambda u: Wanted(u, target, source.archive, max_bytes=source.max_bytes))
        self._say(f"Unpacking {source.archive}.")
        try:
            archive = ZipPlace(target, source.archive, hub.shown(url))
            with archive:
                self._take_all(archive, lacking, source)
        except CorruptFile:
            _delete(target)
            raise
        _delete(target)

    def _take_all(self, archive: ZipPlace, entries: list[FileEntry], source: Source) -> None:
        found = {entry.path: self._member(archive, entry, source) for entry in entries}
        sizes = sum(archive.size(hit.name) for hit in found.values() if hit is not None)
        require_room(self._shelf.folder, sizes, f"the files of {source.archive}")
        for entry in entries:
            hit = found[entry.path]
            if hit is None:
                self._absent(entry, source.archive)
                continue
            aside = self._shelf.aside / entry.base
            try:
                archive.copy(hit, aside, entry, source.max_file_bytes)
                self._put(entry, aside, f"{archive.origin}#{hit.name}")
            except (ChecksumMismatch, CorruptFile) as error:
                self._report.problems.append(error)
            finally:
                _delete(aside)

    def _member(self, archive: ZipPlace, entry: FileEntry, source: Source) -> Found | None:
        official = Found(source.prefix + entry.path)
        hits = [official] if archive.has(official.name) else archive.find(self._manifest, entry)
        return next((hit for hit in hits if hit.subset is None), None)

    def _first(self, urls: list[str], source: Source, wanted: Callable[[str], Wanted]) -> str:
        """Fetch from the first of ``urls`` (at least one) that has the file, and say which that was.

        The first refusal is raised when none has it; any other trouble at once, since the next address would begin
        the transfer anew.
        """
        refusals: list[NetworkError] = []
        for url in urls:
            try:
                self._fetcher.fetch(wanted(url))
                return url
            except Refused as error:
                refusals.append(error)
            except Unreachable as error:
                self._silent[source.name] = error
                raise
        raise refusals[0]

    def _from_place(self, text: str, asked: list[FileEntry], lacking: list[FileEntry]) -> None:
        rest: list[FileEntry] = []
        with open_place(text, self._fetcher, self._shelf.aside) as place:
            for entry in asked:
                try:
                    if entry not in lacking:
                        self._keep(place, entry)
                    elif not self._take(place, entry):
                        rest.append(entry)
                except Unreachable:
                    raise
                except (ChecksumMismatch, CorruptFile, DataMissing, BadValue, NetworkError) as error:
                    self._report.problems.append(error)
        for entry in rest:
            if entry.kind == "config" and not entry.optional:
                self._say(f"{hub.shown(text)} has no {entry.base}; trying the source.")
                self._from_sources([entry])
            else:
                self._absent(entry, hub.shown(text))

    def _keep(self, place: Place, entry: FileEntry) -> None:
        """The full file is installed: say so, and that a subset which the place offers is not taken."""
        offered = place.find(self._manifest, entry) if entry.kind in ("rows", "parquet") and place.lists else []
        if offered and offered[0].subset:
            note = f"the full file is installed; {offered[0].base} is left aside"
            self._note(entry, "kept", note)
        else:
            self._note(entry, "present")

    def _take(self, place: Place, entry: FileEntry) -> bool:
        """Install ``entry`` from ``place``; False when it is not there."""
        limit = self._manifest.sources[entry.source].max_file_bytes
        for found in place.find(self._manifest, entry):
            aside = self._shelf.aside / found.base
            make_folder(self._shelf.aside)
            try:
                place.copy(found, aside, entry, limit)
                self._put(entry, aside, f"{place.origin}/{found.name}", found)
                return True
            except NotThere:
                continue
            finally:
                _delete(aside)
        return False

    def _put(self, entry: FileEntry, aside: Path, source: str, found: Found | None = None) -> None:
        state, note = self._shelf.put(entry, aside, source, found)
        self._note(entry, state, note)

    def _present(self, entries: Iterable[FileEntry]) -> None:
        for entry in entries:
            self._note(entry, "present")

    def _note(self, entry: FileEntry, state: str, note: str = "") -> None:
        known = self._shelf.ledger.get(entry.path)
        rows = known.rows if known and state != "missing" else None
        self._report.done.append(Done(self._manifest.name, entry.path, state, rows, note))

    def _absent(self, entry: FileEntry, place: str) -> None:
        """``place`` has no such file: an error when it was asked for by name and no part of it is installed."""
        known = self._shelf.ledger.get(entry.path)
        if known is not None and self._shelf.intact(entry):
            self._note(entry, "present", known.subset.note if known.subset else "")
        elif entry.path in self._selection.named:
            error = DataMissing(f"{place} has no {names_of(entry)}.", "Give another --from, or leave --from out.")
            self._report.problems.append(error)
        else:
            self._note(entry, "missing", f"not in {place}")

    def _word(self, entry: FileEntry) -> str:
        """The shortest name that means this file of this data set."""
        alone = resolve([entry.base])[0].manifest.name == self._manifest.name
        return entry.base if alone else f"{self._manifest.name}/{entry.base}"

    def _lost(self, entry: FileEntry, error: NetworkError) -> None:
        """The network did not give ``entry``."""
        if entry.optional:
            self._note(entry, "missing", error.message)
        elif entry.kind == "config":
            problem = DataMissing(
                f"{entry.base} of {self._manifest.name} is missing, and its tasks need it: {error.message}",
                f"Put {entry.base} into a folder DIR and run: lcbench download --from DIR {self._word(entry)}",
            )
            problem.__cause__ = error
            self._report.problems.append(problem)
        else:
            self._report.problems.append(error)


def _urls(source: Source, path: str) -> list[str]:
    if source.url:
        return [source.url + path]
    return [hub.dataset_file(repository, source.revision, path) for repository in source.hub]


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
