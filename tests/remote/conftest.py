"""A tiny model behind a server on the loopback that can be told to misbehave; the same model as a local folder."""

from __future__ import annotations

import json
import socket
import threading
import time
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lcbench.config.spec import ModelSpec
from lcbench.methods.registry import resolve
from lcbench.models.load import load
from lcbench.server.http import Handler, Server
from lcbench.server.requests import Refused
from lcbench.server.service import Ask, Completion, Service
from tiny import save_tiny


@dataclass
class Faults:
    """What happens to the POST requests that come, one after another; "good" when the list is empty.

    Attributes:
        script: "good"; a status, with "/N" after it a Retry-After; "slow:S"; "cut" (half an answer); "malformed";
            "echo" (of the key).
        always: when the script is empty. only_chat: whether /v1/completions is not there.
        bodies, keys: of the requests. most: largest number of requests under way at once.
        rewritten: what the server makes of a body: fields it passes over, or knows. refuses: bodies it does not take.
    """

    script: list[str] = field(default_factory=list)
    always: str = "good"
    only_chat: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most: int = 0
    now: int = 0
    lock: Any = field(default_factory=threading.Lock)
    on_request: Callable[[], None] | None = None
    rewritten: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: body
    refuses: Callable[[dict[str, Any]], bool] = lambda body: False


def faulty(faults: Faults) -> type[Handler]:
    """A handler of the real server with faults in front of it."""

    class Faulty(Handler):
        def do_POST(self) -> None:
            with faults.lock:
                step = faults.script.pop(0) if faults.script else faults.always
                faults.keys.append(self.headers.get("Authorization", ""))
                faults.times.append(time.monotonic())
                faults.now += 1
                faults.most = max(faults.most, faults.now)
            if faults.on_request is not None:
                faults.on_request()
            try:
                self.act(step)
            finally:
                with faults.lock:
                    faults.now -= 1

        def act(self, step: str) -> None:
            name, _, rest = step.partition(":")
            if faults.only_chat and self.path == "/v1/completions":
                name = "404"
            if name == "slow":
                time.sleep(float(rest))
            if name in ("good", "slow"):
                super().do_POST()
                return
            self._body()
            if name in ("cut", "malformed"):
                data = b'{"choices": [{"text": "half' if name == "cut" else b"<html>busy</html>"
                self.send_response(200)
                self.send_header("Content-Length", str(len(data) * (2 if name == "cut" else 1)))
                self.end_headers()
                self.wfile.write(data)
                if name == "cut":
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                return
            if name == "echo":
                said = {"choices": [{"text": f"my key is {self.headers['Authorization']}", "finish_reason": "stop"}]}
                self._send(200, said)
                return
            code, _, wait = name.partition("/")
            data = json.dumps({"error": {"message": rest or "no"}}).encode()
            self.send_response(int(code))
            if wait:
                self.send_header("Retry-After", wait)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _body(self) -> Any:
            body = super()._body()
            with faults.lock:
                faults.bodies.append(body)
            if faults.refuses(body):
                raise Refused(400, "Unknown fields.")
            return faults.rewritten(body)

    return Faulty


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("served") / "tiny", window=2048, seed=1)


@pytest.fixture(scope="session")
def service(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    return Service(load(ModelSpec(str(folder)), tmp_path_factory.mktemp("home")), resolve("full"), "tiny")


class Canned(Service):
    """Answers at once, with what the prompt's tokens come to."""

    def complete(self, ask: Ask, on_text: Callable[[str], None] | None = None, **more: Any) -> Completion:
        text = str(zlib.crc32(array("q", ask.ids).tobytes()))[: ask.max_tokens]
        return Completion(text, "length", len(ask.ids), len(text))


@contextmanager
def running(service: Service, faults: Faults | None = None) -> Iterator[Server]:
    """A server on a free port of the loopback."""
    started = Server(service, ("127.0.0.1", 0), "", faulty(faults or Faults()))
    thread = threading.Thread(target=started.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield started
    finally:
        started.shutdown()
        started.server_close()
        thread.join()


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def server(service: Service, faults: Faults) -> Iterator[Server]:
    """Canned answers, and the faults that a test asks for."""
    with running(Canned(service.loaded, service.method, service.name), faults) as started:
        yield started


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No long pauses between attempts, and no keys of whoever runs the tests."""
    from lcbench.endpoint.client import Client

    monkeypatch.setattr(Client, "_pause", lambda self, tried, trouble: trouble.wait or 0.01)
    for name in ("OPENAI_API_KEY", "LCBENCH_API_KEY"):
        monkeypatch.delenv(name, raising=False)
