"""Method and task ids as file names, and back."""

from __future__ import annotations

import hashlib
import string
from urllib.parse import unquote

_SAFE = frozenset((string.ascii_letters + string.digits + "._-@=,+").encode())
_LONGEST = 200  # bytes; file systems allow 255, and ".jsonl" and temporary names come on top


def file_name(identity: str) -> str:
    """The name under which ``identity`` is stored: one path component, never hidden, never ``..``.

    Letters, digits and ``. _ - @ = , +`` stay; every other byte of the UTF-8 text, and a leading dot, become ``%XX``,
    so that `identity_of` gives the id back. An id whose name would be longer than 200 bytes keeps its beginning and
    ends in ``~`` and a hash; such a name cannot be turned back, and the ids in run.json are used instead.
    """
    raw = identity.encode("utf-8", "surrogatepass")
    name = "".join(chr(b) if b in _SAFE and not (i == 0 and b == 0x2E) else f"%{b:02X}" for i, b in enumerate(raw))
    if len(name) > _LONGEST:
        # Cut before a whole %XX, so that the visible part stays readable.
        head = name[: _LONGEST - 17]
        cut = head.rfind("%", len(head) - 2)
        return (head[:cut] if cut >= 0 else head) + "~" + hashlib.sha256(raw).hexdigest()[:16]
    return name or "%"


def identity_of(name: str) -> str:
    """The id stored under ``name``. Raises ValueError for a shortened name."""
    if "~" in name:
        raise ValueError(f"'{name}' is a shortened name; its id is in run.json")
    return "" if name == "%" else unquote(name, encoding="utf-8", errors="surrogatepass")
