"""What a file's bytes are, and whether they are the expected ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lcbench.errors import ChecksumMismatch

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Digest:
    """Identity of some bytes.

    Attributes:
        sha256: hex SHA-256. git_blob: hex SHA-1 of ``blob <size>\\0<bytes>``, as ``git hash-object`` prints.
        size: bytes.
    """

    sha256: str
    git_blob: str
    size: int


@dataclass(frozen=True)
class Expected:
    """What is known beforehand about a file; None where nothing is known. Every known part has to agree."""

    sha256: str | None = None
    git_blob: str | None = None
    size: int | None = None

    @property
    def known(self) -> bool:
        """Whether the content (not only the size) can be checked."""
        return self.sha256 is not None or self.git_blob is not None

    def difference(self, digest: Digest) -> str:
        """ "" when ``digest`` is as expected, else what was expected and what came."""
        if self.size is not None and self.size != digest.size:
            return f"expected {self.size} bytes, got {digest.size}"
        if self.sha256 is not None and self.sha256 != digest.sha256:
            return f"expected sha256 {self.sha256}, got {digest.sha256}"
        if self.git_blob is not None and self.git_blob != digest.git_blob:
            return f"expected git blob {self.git_blob}, got {digest.git_blob}"
        return ""

    def check(self, digest: Digest, what: str, next_step: str) -> None:
        """Raise ChecksumMismatch, naming ``what``, unless ``digest`` is as expected."""
        difference = self.difference(digest)
        if difference:
            raise ChecksumMismatch(f"{what} does not have the right content: {difference}.", next_step)


def digest_bytes(content: bytes) -> Digest:
    """Digest of bytes in memory."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return Digest(hashlib.sha256(content).hexdigest(), blob.hexdigest(), len(content))


def digest_file(path: Path) -> Digest:
    """Digest of a file, read in blocks. Raises OSError when it cannot be read."""
    with open(path, "rb") as stream:
        return _digest_stream(stream)


def _digest_stream(stream: BinaryIO) -> Digest:
    # The length stands in front of a git blob's bytes, so it is needed before the first of them.
    size = stream.seek(0, 2)
    stream.seek(0)
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    while block := stream.read(_BLOCK):
        sha256.update(block)
        blob.update(block)
    return Digest(sha256.hexdigest(), blob.hexdigest(), size)
