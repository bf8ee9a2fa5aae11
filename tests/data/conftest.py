"""Fixtures of the data room: a misbehaving server, and a data set small enough to read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mirror_server import Mirror
from tiny_data import Tiny

from lcbench.data import manifest
from lcbench.data.fetch import Patience

QUICK = Patience(first_wait=0.01, longest_wait=0.02, longest_asked=0.02, connect_timeout=2.0, read_timeout=2.0)


@pytest.fixture(autouse=True)
def plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, token or mirror of the machine gets into a test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    server = Mirror()
    yield server
    server.stop()


@pytest.fixture
def quick() -> Patience:
    return QUICK


@pytest.fixture
def tiny(tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    rows: dict[str, list[dict[str, object]]] = {
        task: [
            {"text": f"{task} {number} — äöü\u2028", "answers": [str(number), "b"], "length": number, "classes": None}
            for number in range(count)
        ]
        for task, count in (("one", 7), ("two", 4))
    }
    made = Tiny(tmp_path / "manifests", mirror.url, rows, b'{"one": 5, "two": 6}', "a note\r\nü".encode())
    made.write()
    made.serve(mirror)
    monkeypatch.setattr(manifest, "manifest_dir", lambda: made.folder)
    monkeypatch.setenv("HF_ENDPOINT", mirror.url)
    return made
