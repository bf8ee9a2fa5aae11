"""Replies of judges, remembered by content: the same question to the same judge is paid for once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcbench.store.files import make_folder, write_text


class ReplyCache:
    """One file a reply below ``LCBENCH_HOME/judge``, named after the digest of everything that was asked.

    Args:
        home: LCBENCH_HOME. identity: everything about the judge that can change a reply (model, address, settings).
    """

    def __init__(self, home: Path, identity: Mapping[str, Any]) -> None:
        self.folder = home / "judge"
        self._identity = dict(identity)

    def get(self, messages: tuple[str, str]) -> str | None:
        """The reply to a system and a user text; None when there is none, or none that can be read."""
        request = self._request(messages)
        try:
            data = json.loads(self._path(request).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(data, dict) and data.get("request") == request and isinstance(data.get("reply"), str)
        return str(data["reply"]) if whole else None

    def put(self, messages: tuple[str, str], reply: str) -> None:
        """Remember a reply. Raises CannotWrite."""
        request = self._request(messages)
        path = self._path(request)
        make_folder(path.parent)
        write_text(path, json.dumps({"request": request, "reply": reply}, ensure_ascii=True) + "\n")

    def _request(self, messages: tuple[str, str]) -> dict[str, Any]:
        return {"judge": self._identity, "system": messages[0], "user": messages[1]}

    def _path(self, request: Mapping[str, Any]) -> Path:
        text = json.dumps(request, sort_keys=True, ensure_ascii=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.json"
