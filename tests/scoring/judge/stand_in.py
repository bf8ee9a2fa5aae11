"""A judge on the loopback that answers well, badly, slowly, with errors, with half an answer, or not at all."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lcbench.scoring.judge.endpoint import Patience

QUICK = Patience(attempts=3, first_attempts=2, timeout=5.0, first_wait=0.01, longest_wait=0.02)


@dataclass
class Asked:
    """One request."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        return str(self.body["messages"][-1]["content"])


def grade(prompt: str) -> str:
    """What a good judge says: an answer that holds the right one is right, a summary's sentences are looked up in the
    reference, and a text with "blah" in it does not read well."""
    if '"correctness"' in prompt:
        right = re.search(r"^Right answer: (.*)$", prompt, re.M)
        given = re.search(r"^Answer to grade: (.*)$", prompt, re.M | re.S)
        assert right is not None
        assert given is not None
        correct = right[1].lower() in given[1].lower()
        grades: dict[str, int] = {"fluency": 0 if "blah" in given[1] else 2, "correctness": 3 if correct else 0}
    elif '"sentence_count"' in prompt:
        reference, _, summary = prompt.rpartition("Reference: ")[2].partition("\n\nSummary to grade: ")
        sentences = [s.strip() for s in summary.split(".") if s.strip()]
        grades = {"precision": sum(s in reference for s in sentences), "sentence_count": len(sentences)}
    else:
        grades = {"fluency": int("blah" not in prompt.rpartition("Text to grade: ")[2])}
    return f"Let me think. It reads {{so so}}. My grades: {json.dumps(grades)}"


@dataclass
class StandIn:
    """The server.

    Attributes:
        script: what happens to the first requests, one after another; then `always`. "good"; "text:…" (a reply with
        that content); "raw:…" (that body); a status code, with "/N" after it a Retry-After; "slow:S"; "cut" (half an
        answer); "silent:S" (nothing for S seconds, then the line is cut); "drip:S" (a blank every S seconds).
        asked: all requests. most: largest number of requests that were under way at once.
    """

    script: list[str] = field(default_factory=list)
    always: str = "good"
    on_request: Callable[[Asked], None] | None = None

    def __post_init__(self) -> None:
        self.asked: list[Asked] = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            stand_in = owner

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def enter(self, asked: Asked) -> str:
        with self._lock:
            self.asked.append(asked)
            self._now += 1
            self.most = max(self.most, self._now)
            step = self.script.pop(0) if self.script else self.always
        if self.on_request is not None:
            self.on_request(asked)
        return step

    def leave(self) -> None:
        with self._lock:
            self._now -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that went away


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = Asked(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        step = self.stand_in.enter(asked)
        try:
            self._act(step, asked)
        finally:
            self.stand_in.leave()

    def _act(self, step: str, asked: Asked) -> None:
        name, _, rest = step.partition(":")
        if name == "slow":
            time.sleep(float(rest))
        if name in ("good", "slow"):
            self._answer(completion(grade(asked.prompt)))
        elif name == "text":
            self._answer(completion(rest))
        elif name == "raw":
            self._answer(rest.encode())
        elif name == "cut":
            self._answer(completion(grade(asked.prompt)), half=True)
        elif name == "silent":
            time.sleep(float(rest))
            self._hang_up()
        elif name == "drip":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(float(rest))
        else:
            code, _, wait = name.partition("/")
            self._answer(b'{"error": {"message": "no"}}', int(code), {"Retry-After": wait} if wait else {})

    def _answer(self, body: bytes, code: int = 200, headers: dict[str, str] | None = None, half: bool = False) -> None:
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
            self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def completion(text: str) -> bytes:
    """A chat completion with one choice."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
