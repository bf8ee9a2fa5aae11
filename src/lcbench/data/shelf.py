"""The folder of one data set while files are put into it: what is whole, what may enter, and the record of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from lcbench.data.checksum import Digest, Expected, digest_file
from lcbench.data.disk import make_folder, publish, writing
from lcbench.data.ledger import LEDGER, Installed, Subset, dataset_folder, now, read_ledger, write_ledger
from lcbench.data.manifest import FileEntry, Manifest
from lcbench.data.places import Found
from lcbench.data.rows import parse_object, read_table
from lcbench.errors import BadValue, CorruptFile


class Shelf:
    """``LCBENCH_HOME/data/<dataset>`` and its ``lock.json``.

    Attributes:
        folder: where files end up. aside: where they lie until they are checked.
        ledger: what is installed, by path.
    """

    def __init__(self, home: Path, manifest: Manifest) -> None:
        self._manifest = manifest
        self.folder = dataset_folder(home, manifest.name)
        self.aside = self.folder / ".parts"
        self.ledger: dict[str, Installed] = {}

    def read(self) -> None:
        """Read the ledger again. Raises CorruptFile."""
        self.ledger = read_ledger(self.folder)

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[None]:
        """Hold the data set's lock, which the operating system frees when the process dies; the folder is created.

        Raises:
            CannotWrite: the data folder cannot be written.
        """
        make_folder(self.folder)
        path = self.folder.parent / f".{self._manifest.name}.lock"
        lock = filelock.FileLock(path)
        with writing(path):
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                say(f"Another lcbench process is installing {self._manifest.name}; waiting for it.")
                lock.acquire(poll_interval=0.1)
            except NotImplementedError:
                # Some network file systems have no locks. Refusing to work there would help nobody.
                say(f"The file system of {self.folder} has no locks; let no other lcbench process download now.")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self.aside.rmdir()
            lock.release()

    def whole(self, entry: FileEntry) -> bool:
        """Whether the full file is installed and intact."""
        known = self.ledger.get(entry.path)
        return known is not None and known.subset is None and self.intact(entry)

    def intact(self, entry: FileEntry) -> bool:
        """Whether what the ledger says of a file, full or subset, is what lies there."""
        known = self.ledger.get(entry.path)
        if known is None:
            return False
        try:
            digest = digest_file(self.folder / entry.path)
        except OSError:
            return False
        return digest.sha256 == known.sha256 and (known.subset is not None or not entry.expected.difference(digest))

    def adopt(self, entry: FileEntry) -> bool:
        """Enter the official file when it lies there without being in the ledger (stopped just before that)."""
        path = self.folder / entry.path
        if entry.path in self.ledger or not entry.expected.known or not path.is_file():
            return False
        digest = digest_file(path)
        if entry.expected.difference(digest):
            return False
        self._record(entry, digest, entry.rows, "found in the data folder", None)
        return True

    def expected(self, entry: FileEntry) -> Expected:
        """What the manifest knows of a full file; where it knows no checksum, what the first download was."""
        known = self.ledger.get(entry.path)
        if entry.expected.known or known is None or known.subset is not None:
            return entry.expected
        return Expected(known.sha256, None, known.size)

    def put(self, entry: FileEntry, aside: Path, source: str, found: Found | None = None) -> tuple[str, str]:
        """Check a file that lies aside, give it its place and enter it in the ledger.

        Args:
            source: where it came from, without secrets.
            found: what it was called there, when that may be a subset.

        Returns:
            "installed", "replaced" or "present" (the same bytes were there), and what to say about it.

        Raises:
            ChecksumMismatch: a full file with other bytes than the official ones, or than the first download.
            CorruptFile: rows that cannot be read, or not as many as there should be.
            BadValue: a subset of more rows than there are.
        """
        digest = digest_file(aside)
        subset = _subset(entry, found)
        rows = entry.rows
        if subset is None:
            self.expected(entry).check(digest, f"{entry.path} from {source}", _official_step(entry))
        if entry.kind != "text" and (subset is not None or not entry.expected.known):
            rows = self._check_content(entry, aside.read_bytes(), source, subset)
        note = subset.note if subset else ""
        before = self.ledger.get(entry.path)
        if before is not None and before.sha256 == digest.sha256 and self.intact(entry):
            return "present", note
        publish(aside, self.folder / entry.path)
        self._record(entry, digest, rows, source, subset)
        if before is None:
            return "installed", note
        was = before.subset.note if before.subset else "another version"
        if before.sha256 == digest.sha256:
            was = "a damaged copy"
        return "replaced", f"{note or 'the full file'}, instead of {was}"

    def _check_content(self, entry: FileEntry, content: bytes, source: str, subset: Subset | None) -> int | None:
        """Read a file whose bytes nobody vouches for; the number of its rows."""
        if entry.kind == "config":
            parse_object(content, source, "Get the file again.")
            return None
        rows = len(read_table(entry, content, self._manifest.schema_of(entry), source, "Get the file again."))
        claimed = subset.rows if subset else entry.rows
        if claimed is not None and rows != claimed:
            raise CorruptFile(f"{source} has {rows} rows, not {claimed}.", "Get the file again, or name it rightly.")
        return rows

    def _record(self, entry: FileEntry, digest: Digest, rows: int | None, source: str, subset: Subset | None) -> None:
        self.ledger[entry.path] = Installed(digest.sha256, digest.size, rows, source, subset, now())
        write_ledger(self.folder, self.ledger)


def names_of(entry: FileEntry) -> str:
    """The file names under which a place may have ``entry``, for messages."""
    if entry.kind != "rows":
        return f"{entry.base} (or .gz)"
    stem, dot, ending = entry.base.rpartition(".")
    return f"{entry.base} or {stem}.firstN{dot}{ending} (or .gz)"


def _subset(entry: FileEntry, found: Found | None) -> Subset | None:
    if found is None or found.subset is None or entry.rows is None or found.subset == entry.rows:
        return None
    if found.subset > entry.rows:
        raise BadValue(
            f"{found.name} claims {found.subset} rows, but {entry.path} has only {entry.rows}.",
            "Name a file of its first N rows NAME.firstN.jsonl.",
        )
    return Subset(found.subset, entry.rows, found.base)


def _official_step(entry: FileEntry) -> str:
    if not entry.expected.known:
        return f"It is not the file of the first download. If the change is meant, delete {entry.path} from {LEDGER}."
    if entry.kind != "rows":
        return "Get the official file."
    return f"Get the official file. Accepted names: {names_of(entry)}, N being the number of its first rows it holds."
