"""The places ``--from`` can name: a folder, a ZIP archive, or the URL of either.

All three are searched in the same way. A file of the manifest may lie at the top, under ``data/`` (as in the official
archive) or under the data set's name, gzipped or not, and a "rows" file may be there as a beginning only:
``qasper.first18.jsonl`` holds the first 18 rows of ``qasper.jsonl``.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path, PurePosixPath
from types import TracebackType
from urllib.parse import quote, unquote, urlsplit

from lcbench.data.archive import SafeZip
from lcbench.data.checksum import Expected
from lcbench.data.disk import size_text, writing
from lcbench.data.fetch import Fetcher, require_http
from lcbench.data.hub import shown
from lcbench.data.manifest import FileEntry, Manifest
from lcbench.data.part import Wanted
from lcbench.errors import BadValue, CorruptFile, DataMissing

_BLOCK = 1 << 18
_SUBSET = re.compile(r"(.+)\.first([1-9]\d{0,8})(\.[^.]+)")


@dataclass(frozen=True)
class Found:
    """A file found in a place.

    Attributes:
        name: its path there.
        subset: N when it claims to be the first N rows only, else None.
    """

    name: str
    subset: int | None = None

    @property
    def packed(self) -> bool:
        """Whether it is gzipped."""
        return self.name.endswith(".gz")

    @property
    def base(self) -> str:
        """File name without folders and without ``.gz``."""
        return PurePosixPath(self.name).name.removesuffix(".gz")


class Place(ABC):
    """Where files are taken from; use it in a ``with`` block.

    Attributes:
        shown: what messages call it; carries no secrets.
        origin: the same, independent of the working directory.
        lists: whether `names` tells all there is, so that a name it does not give need not be tried.
    """

    shown: str
    origin: str
    lists: bool = True

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 (most places have nothing to close)
        """Give back what was opened."""

    @abstractmethod
    def names(self, folder: str) -> set[str]:
        """File names in ``folder`` ("" is the top); empty when it is not there."""

    @abstractmethod
    def read(self, found: Found, target: Path, limit: int, expected: Expected) -> None:
        """Copy a file as it lies there (packed or not) to ``target``; more than ``limit`` bytes are refused.

        Raises:
            DataMissing, NetworkError: it is not there after all. CorruptFile: it cannot be read.
        """

    def prefixes(self, dataset: str) -> tuple[str, ...]:
        """Folders in which the files of a data set may lie."""
        return ("", "data", dataset, f"{dataset}/data")

    def find(self, manifest: Manifest, entry: FileEntry) -> list[Found]:
        """Where ``entry`` may be, best first: the full file before a beginning of it, a long beginning before a short
        one; [] when it is certainly absent. Names that no listing confirmed come only when there is no other."""
        parent = str(PurePosixPath(entry.path).parent)
        inner = () if parent == "." else (parent,)
        folders = dict.fromkeys(_join(p, *tail) for p in self.prefixes(manifest.name) for tail in (inner, ()))
        full: list[Found] = []
        subsets: list[Found] = []
        for folder in folders:
            names = self.names(folder)
            full += [Found(_join(folder, name)) for name in (entry.base, entry.base + ".gz") if name in names]
            counts = {name: _subset_of(entry, name) for name in sorted(names)}
            subsets += [Found(_join(folder, name), count) for name, count in counts.items() if count]
        found = full + sorted(subsets, key=lambda hit: -(hit.subset or 0))
        if not found and not self.lists:
            found = [Found(_join(folder, name)) for folder in folders for name in (entry.base, entry.base + ".gz")]
        return found

    def copy(self, found: Found, target: Path, entry: FileEntry, limit: int) -> None:
        """Copy a found file to ``target``, unpacked; more than ``limit`` bytes are refused. Raises as `read`."""
        if not found.packed:
            whole = found.subset is None
            return self.read(found, target, limit, entry.expected if whole else Expected())
        packed = target.with_name(target.name + ".gz")
        try:
            self.read(found, packed, limit, Expected())
            _gunzip(packed, target, limit, f"{self.shown}/{found.name}")
        finally:
            with contextlib.suppress(OSError):
                packed.unlink()


class FolderPlace(Place):
    """A folder of this machine."""

    def __init__(self, folder: Path, shown: str) -> None:
        self.shown, self.origin = shown, str(folder.resolve())
        self._folder = folder

    def names(self, folder: str) -> set[str]:
        try:
            with os.scandir(self._folder / folder) as items:
                return {item.name for item in items if item.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except OSError as error:
            raise BadValue(
                f"The folder {self.shown}/{folder} cannot be read: {error.strerror or error}.", "Give another --from."
            ) from error

    def read(self, found: Found, target: Path, limit: int, expected: Expected) -> None:
        label = f"{self.shown}/{found.name}"
        try:
            stream = open(self._folder / found.name, "rb")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise DataMissing(f"{label} cannot be read: {error.strerror or error}.", "Give another --from.") from error
        with stream:
            _pour(_blocks(stream.read, label), target, limit, label)


class ZipPlace(Place):
    """A ZIP archive of this machine."""

    def __init__(self, path: Path, shown: str, origin: str = "") -> None:
        self.shown, self.origin = shown, origin or str(path.resolve())
        self._zip = SafeZip(path, shown)
        tops = {name.split("/")[0] for name in self._zip.names}
        wrapped = len(tops) == 1 and all("/" in name for name in self._zip.names)
        self._top = tops.pop() if wrapped else ""

    def close(self) -> None:
        self._zip.__exit__(None, None, None)

    def prefixes(self, dataset: str) -> tuple[str, ...]:
        # An archive of a folder usually has that folder as its only top entry.
        plain = super().prefixes(dataset)
        return (*plain, *(_join(self._top, prefix) for prefix in plain)) if self._top else plain

    def names(self, folder: str) -> set[str]:
        start = folder + "/" if folder else ""
        return {n[len(start) :] for n in self._zip.names if n.startswith(start) and "/" not in n[len(start) :]}

    def has(self, name: str) -> bool:
        """Whether the archive has a file of that path."""
        return name in self._zip.names

    def size(self, name: str) -> int:
        """Unpacked bytes of a file, as the archive declares them."""
        return self._zip.size(name)

    def read(self, found: Found, target: Path, limit: int, expected: Expected) -> None:
        self._zip.extract(found.name, target, limit)


class UrlPlace(Place):
    """A folder of a web server, whether or not it shows what it holds."""

    lists = False

    def __init__(self, url: str, fetcher: Fetcher) -> None:
        require_http(url)
        self.shown = self.origin = shown(url).rstrip("/")
        parts = urlsplit(url)
        self._base = parts._replace(path=parts.path.rstrip("/") + "/", fragment="")
        self._fetcher = fetcher
        self._pages: dict[str, set[str]] = {}

    def names(self, folder: str) -> set[str]:
        if folder not in self._pages:
            page = self._fetcher.page(self._url(folder + "/" if folder else ""))
            self._pages[folder] = set(_links(page or ""))
        return self._pages[folder]

    def read(self, found: Found, target: Path, limit: int, expected: Expected) -> None:
        label = PurePosixPath(found.name).name
        self._fetcher.fetch(Wanted(self._url(found.name), target, label, expected, limit))

    def _url(self, path: str) -> str:
        return self._base._replace(path=self._base.path + quote(path)).geturl()


@contextlib.contextmanager
def open_place(text: str, fetcher: Fetcher, scratch: Path) -> Iterator[Place]:
    """Open what the user wrote after ``--from``.

    Args:
        text: folder, ZIP file, ``file://`` or http(s) URL of a ZIP (by its ending) or of a folder.
        scratch: folder for a downloaded archive, which is deleted afterwards.

    Raises:
        BadValue: it does not exist, or is no folder, ZIP or http(s) URL.
        CorruptFile: not a ZIP archive, or a dangerous one. NetworkError, CannotWrite: see `Fetcher.fetch`.
    """
    scheme, separator, _ = text.partition("://")
    if separator and scheme.lower() == "file":
        text, separator = unquote(urlsplit(text).path), ""
    if not separator:
        with _local(text) as place:
            yield place
    elif scheme.lower() not in ("http", "https"):
        raise BadValue(f"'{shown(text)}' is not a folder, a ZIP file or an http(s) URL.", "Give one of these.")
    elif urlsplit(text).path.lower().endswith(".zip"):
        name = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16] + ".zip"
        archive = scratch / name
        fetcher.fetch(Wanted(text, archive, PurePosixPath(urlsplit(text).path).name, max_bytes=4 << 30))
        try:
            with ZipPlace(archive, shown(text), shown(text)) as place:
                yield place
        finally:
            with contextlib.suppress(OSError):
                archive.unlink()
    else:
        with UrlPlace(text, fetcher) as place:
            yield place


def _local(text: str) -> Place:
    path = Path(text).expanduser()
    if path.is_dir():
        return FolderPlace(path, text.rstrip("/") or text)
    if path.is_file():
        return ZipPlace(path, text)
    raise BadValue(f"There is no folder or ZIP file '{text}'.", "Give --from a folder, a ZIP file or an http(s) URL.")


def _subset_of(entry: FileEntry, name: str) -> int | None:
    """N when ``name`` (perhaps with ``.gz``) is that of the first N rows of ``entry``, else None."""
    match = _SUBSET.fullmatch(name.removesuffix(".gz"))
    if entry.kind not in ("rows", "parquet") or match is None or match[1] + match[3] != entry.base:
        return None
    return int(match[2])


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _links(page: str) -> set[str]:
    """File names that an HTML listing links to."""
    found = re.findall(r"""<a\b[^>]*?\bhref\s*=\s*(?:"([^"]*)"|'([^']*)')""", page, re.IGNORECASE)
    paths = (re.split("[?#]", unescape(double or single))[0] for double, single in found)
    return {unquote(path.rsplit("/", 1)[-1]) for path in paths} - {""}


def _blocks(read: Callable[[int], bytes], label: str) -> Iterator[bytes]:
    while True:
        try:
            block = read(_BLOCK)
        except (OSError, EOFError, zlib.error) as error:
            raise CorruptFile(f"{label} cannot be read ({error}).", "Get the file again.") from error
        if not block:
            return
        yield block


def _pour(blocks: Iterator[bytes], target: Path, limit: int, label: str) -> None:
    with writing(target), open(target, "wb") as out:
        done = 0
        for block in blocks:
            done += len(block)
            if done > limit:
                raise CorruptFile(f"{label} is larger than the {size_text(limit)} it may have.", "Get the file again.")
            out.write(block)


def _gunzip(packed: Path, target: Path, limit: int, label: str) -> None:
    with gzip.open(packed, "rb") as stream:
        _pour(_blocks(stream.read, label), target, limit, label)
