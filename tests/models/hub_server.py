"""A stand-in for the model hub: the addresses, headers and error codes that huggingface_hub speaks."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# repository -> (status, X-Error-Code) of the ones that refuse
REFUSALS = {
    "someone/gone": (404, "RepoNotFound"),
    "someone/secret": (401, "RepoNotFound"),
    "someone/gated": (403, "GatedRepo"),
}


class Hub:
    """What the server serves and what it was asked.

    Attributes:
        repos: repository id to folder. asked: "METHOD path" of every request. tokens: Authorization headers seen.
    """

    def __init__(self, repos: dict[str, Path]) -> None:
        self.repos = repos
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.address = ""


@contextmanager
def serve(repos: dict[str, Path]) -> Iterator[Hub]:
    """Run the hub on a free local port."""
    hub = Hub(repos)

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, body: bool) -> None:
        self.state.asked.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization"):
            self.state.tokens.add(self.headers["Authorization"])
        path = self.path.partition("?")[0]
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(?:/.*)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo, revision = (api[1], api[3]) if api else (file[1], file[2]) if file else ("", None)
        if repo in REFUSALS:
            return self._send(*REFUSALS[repo], body=body)
        folder = self.state.repos.get(repo)
        if folder is None:
            return self._send(404, "RepoNotFound", body=body)
        if revision not in (None, "main", COMMIT):
            return self._send(404, "RevisionNotFound", body=body)
        if api:
            return self._send_json(self._listing(repo, folder, tree=api[2] == "tree"), body)
        assert file is not None
        wanted = folder / file[3]
        if not wanted.is_file():
            return self._send(404, "EntryNotFound", body=body)
        content = wanted.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _listing(self, repo: str, folder: Path, tree: bool) -> Any:
        names = sorted(p.name for p in folder.iterdir())
        if tree:
            return [{"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": "0" * 40} for n in names]
        return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names], "tags": []}

    def _send_json(self, data: Any, body: bool) -> None:
        content = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _send(self, status: int, code: str, *, body: bool) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()
