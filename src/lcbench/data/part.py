"""The beginning of a file, on the disk between two attempts to fetch it.

While it is under way a file is called ``NAME.part``; ``NAME.part.json`` says what it is the beginning of.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lcbench.data.checksum import Digest, Expected, digest_file
from lcbench.data.disk import publish, write_atomically, writing
from lcbench.data.hub import shown
from lcbench.data.neterrors import FROM_STEP
from lcbench.errors import ChecksumMismatch


@dataclass(frozen=True)
class Wanted:
    """One file to fetch.

    Attributes:
        url: may carry a user name, password or query; messages never show them.
        target: where it goes; the folder is created.
        label: what progress and messages call it.
        expected: checked before the file gets its name.
        max_bytes: more than this is refused, whatever the server says.
    """

    url: str
    target: Path
    label: str
    expected: Expected = Expected()
    max_bytes: int = 1 << 30

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    @property
    def state(self) -> Path:
        return self.target.with_name(self.target.name + ".part.json")


@dataclass(frozen=True)
class State:
    """What a ``.part`` file is the beginning of. ``validator`` is a strong ETag, a date, or ""."""

    url: str
    validator: str = ""
    total: int | None = None


def resumable(wanted: Wanted) -> State | None:
    """The state of the part file when it may be continued, else None."""
    try:
        data = json.loads(wanted.state.read_text(encoding="utf-8"))
        state = State(str(data["url"]), str(data["validator"]), data["total"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = state.url == shown(wanted.url) and isinstance(state.total, int | None)
    if not same or size_of(wanted.part) == 0 or not (state.validator or wanted.expected.known):
        return None
    return state


def begin(wanted: Wanted, state: State) -> None:
    """Start a new part file: drop the old one and note what this one will be."""
    with writing(wanted.part):
        wanted.part.unlink(missing_ok=True)
    content = json.dumps({"url": state.url, "validator": state.validator, "total": state.total})
    write_atomically(wanted.state, content.encode("utf-8"))


def forget(wanted: Wanted) -> None:
    """Delete the part file and its note."""
    with writing(wanted.part):
        wanted.part.unlink(missing_ok=True)
        wanted.state.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, 0 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def accept(wanted: Wanted) -> Digest:
    """Check the complete part file and give it its name. Raises ChecksumMismatch, having deleted it."""
    digest = digest_file(wanted.part)
    difference = wanted.expected.difference(digest)
    if difference:
        forget(wanted)
        raise ChecksumMismatch(
            f"{wanted.label} from {shown(wanted.url)} does not have the right content: {difference}.",
            "It was deleted. Run the command again; if it differs again, the source is wrong. " + FROM_STEP,
        )
    publish(wanted.part, wanted.target)
    forget(wanted)
    return digest
