"""A web server on the loopback that behaves badly on request, and remembers what it was asked."""

from __future__ import annotations

import email.utils
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    headers: Mapping[str, str]

    @property
    def range(self) -> str:
        return self.headers.get("range", "")


@dataclass
class Page:
    """One file and how it is given.

    Attributes:
        script: what happens to the first requests, one after another; later ones are answered properly.
            "ok"; "whole" (ignores the range); "cut:N" (closes after N bytes of the body); "reset:N" (the same, with a
            TCP reset); "short:N" (N bytes without a length, then a proper end); a status code; "goto:URL".
        always: the same for every request when the script is over.
        etag: sent with the file; ranges are given only to those who name it. dated: send Last-Modified.
        careless: give any range, whatever If-Range says.
    """

    body: bytes
    script: list[str] = field(default_factory=list)
    always: str = "ok"
    etag: str = '"v1"'
    dated: bool = False
    careless: bool = False
    type: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)
    on_request: Callable[[Page], None] | None = None


class Mirror:
    """The server; ``pages`` may be changed at any time."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[Asked] = []
        self._lock = threading.Lock()
        mirror = self

        class Handler(_Handler):
            owner = mirror

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def requests(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path.split("?")[0] == path]

    def step(self, page: Page) -> str:
        with self._lock:
            return page.script.pop(0) if page.script else page.always


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    owner: Mirror
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.owner.asked.append(Asked(self.path, headers))
        page = self.owner.pages.get(unquote(self.path.split("?")[0]))
        if page is None:
            return self._plain(404)
        if page.on_request:
            page.on_request(page)
        step = self.owner.step(page)
        if step.isdigit():
            return self._plain(int(step), page.headers)
        if step.startswith("goto:"):
            return self._plain(302, {"Location": step[5:]})
        kind, _, number = step.partition(":")
        self._give(page, headers, kind, int(number or 0))

    def _plain(self, code: int, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _give(self, page: Page, headers: Mapping[str, str], kind: str, number: int) -> None:
        body, start = page.body, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        date = email.utils.formatdate(1_700_000_000, usegmt=True)
        same = page.careless or headers.get("if-range", page.etag) in (page.etag, date if page.dated else page.etag)
        if wanted and same and kind != "whole":
            start = int(wanted[1])
            if start >= len(body):
                return self._plain(416, {"Content-Range": f"bytes */{len(body)}"})
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", page.type)
        if page.etag:
            self.send_header("ETag", page.etag)
        if page.dated:
            self.send_header("Last-Modified", date)
        if start and "Content-Range" not in page.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        for name, value in page.headers.items():
            self.send_header(name, value)
        if kind == "short":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + number if kind in ("cut", "reset", "short") else len(body)
        self.wfile.write(body[start:end])
        self.wfile.flush()
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if kind in ("cut", "reset", "short"):
            self.close_connection = True
