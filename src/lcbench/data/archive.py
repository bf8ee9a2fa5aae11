"""Reading ZIP archives that nobody vouches for.

Only named members are read, each through a stream that counts; but an archive with a single dangerous entry is
refused as a whole, since nobody honest makes one.
"""

from __future__ import annotations

import lzma
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from lcbench.data.disk import size_text, writing
from lcbench.errors import CorruptFile

MAX_ENTRIES = 20_000
MAX_RATIO = 200
"""Uncompressed over compressed bytes; text rarely goes beyond 20. Small members are exempt (`_RATIO_FROM`)."""

_RATIO_FROM = 1 << 20
_BLOCK = 1 << 18
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)


class SafeZip:
    """A ZIP archive whose entries have been checked; use it in a ``with`` block.

    Args:
        path: the archive.
        shown: what messages call it.
        max_total: bytes that all extracted members may have together.

    Attributes:
        names: paths of its files (not folders), with ``/``.

    Raises:
        CorruptFile: not a ZIP archive, or one with an entry that is absolute, leads out of its folder, is a link or
            another special file, appears twice (also under another letter case), or too many of them.
    """

    def __init__(self, path: Path, shown: str, max_total: int = 4 << 30) -> None:
        self._shown, self._max_total, self._total = shown, max_total, 0
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise CorruptFile(f"{shown} cannot be read: {error.strerror or error}.", _STEP) from error
        except _DAMAGE as error:
            raise CorruptFile(f"{shown} is not a readable ZIP archive ({error}).", _STEP) from error
        try:
            self._members = self._check()
        except BaseException:
            self._zip.close()
            raise
        self.names = tuple(self._members)

    def __enter__(self) -> SafeZip:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def size(self, name: str) -> int:
        """Uncompressed bytes of a member, as the archive declares them."""
        return self._members[name].file_size

    def extract(self, name: str, target: Path, max_bytes: int) -> None:
        """Write member ``name`` to ``target`` (a file of the caller's naming).

        Raises:
            CorruptFile: damaged, larger than ``max_bytes`` or, with all members so far, than ``max_total``, or
                compressed beyond belief.
            CannotWrite: the target cannot be written.
        """
        member = self._members[name]
        size = member.file_size
        if size > max_bytes:
            raise self._refused(name, f"is {size_text(size)} large, more than the {size_text(max_bytes)} it may have")
        if size > max(_RATIO_FROM, MAX_RATIO * member.compress_size):
            raise self._refused(name, f"unpacks to over {MAX_RATIO} times its size")
        self._total += size
        if self._total > self._max_total:
            raise self._refused(name, f"brings the unpacked files to over {size_text(self._max_total)}")
        with writing(target), open(target, "wb") as out:
            for block in self._blocks(member):
                out.write(block)

    def _blocks(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        # zipfile stops at the declared size and checks the CRC there, so no more than that ever comes out.
        try:
            with self._zip.open(member) as stream:
                while block := stream.read(_BLOCK):
                    yield block
        except (*_DAMAGE, OSError) as error:
            raise self._refused(member.filename, f"is damaged ({error or type(error).__name__})") from error

    def _check(self) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        seen: dict[str, str] = {}
        infos = self._zip.infolist()
        if len(infos) > MAX_ENTRIES:
            raise CorruptFile(f"{self._shown} has {len(infos)} entries, more than {MAX_ENTRIES}.", _STEP)
        for info in infos:
            danger = _danger(info)
            if danger:
                raise CorruptFile(f"{self._shown} is not safe to unpack: the entry {info.filename!r} {danger}.", _STEP)
            key = unicodedata.normalize("NFC", info.filename).casefold().rstrip("/")
            if key in seen:
                raise CorruptFile(
                    f"{self._shown} is not safe to unpack: the entries {seen[key]!r} and {info.filename!r} would be "
                    "one file.",
                    _STEP,
                )
            seen[key] = info.filename
            if not info.is_dir():
                members[info.filename] = info
        return members

    def _refused(self, name: str, problem: str) -> CorruptFile:
        return CorruptFile(f"'{name}' in {self._shown} {problem}.", _STEP)


_STEP = "Get the archive again from a source you trust."


def _danger(info: zipfile.ZipInfo) -> str:
    """What is wrong with an entry's name or type, "" when nothing is."""
    # orig_filename is what stands in the archive; filename has been cut at a NUL and may have had its slashes turned.
    name = info.orig_filename
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "has a control character in its name"
    if "\\" in name:
        return "has a backslash in its name"
    if name.startswith("/") or name[1:2] == ":":
        return "has an absolute path"
    parts = name.rstrip("/").split("/")
    if ".." in parts:
        return "leads out of its folder"
    if any(part in ("", ".") for part in parts):
        return "has an empty part in its path"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a special file"
    if info.flag_bits & 0x1:
        return "is encrypted"
    return ""
