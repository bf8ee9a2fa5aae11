"""The HTTP side: /v1/models, /v1/completions, /v1/chat/completions, streams, errors as JSON."""

from __future__ import annotations

import contextlib
import hmac
import json
import select
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from lcbench.server.requests import Refused, Request, no_model, read_request
from lcbench.server.service import Completion, Service

_MOST_BYTES = 64 << 20
_GONE = (BrokenPipeError, ConnectionError, TimeoutError)


class Server(ThreadingHTTPServer):
    """Serves one `Service`; a thread a connection, the model one request at a time.

    Args:
        address: host and port; port 0 takes a free one. key: what clients must send as bearer token, "" for nothing.

    Raises:
        OSError: the address cannot be had.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        service: Service,
        address: tuple[str, int],
        key: str = "",
        handler: type[BaseHTTPRequestHandler] | None = None,
    ) -> None:
        self.service, self.key = service, key
        self.began = int(time.time())
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler or Handler)

    @property
    def url(self) -> str:
        """Base address for clients."""
        host = str(self.server_address[0])
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{host}:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "lcbench", ""
    timeout = 600

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: prompts and keys belong into no log."""

    def do_GET(self) -> None:
        """Models, and whether the server is alive."""
        with self._answering():
            path = self.path.split("?")[0].rstrip("/")
            if path == "/health":
                self._send(200, {"status": "ok"})
                return
            self._authorize()
            if path == "/v1/models":
                self._send(200, {"object": "list", "data": [self._model()]})
            elif path == f"/v1/models/{self.server.service.name}":
                self._send(200, self._model())
            elif path.startswith("/v1/models/"):
                raise no_model(unquote(path.removeprefix("/v1/models/")), self.server.service)
            else:
                raise Refused(404, f"There is nothing at GET {path or '/'}.", code="not_found")

    def do_POST(self) -> None:
        """Completions and chat completions."""
        with self._answering():
            body = self._body()
            self._authorize()
            path = self.path.split("?")[0].rstrip("/")
            if path not in ("/v1/completions", "/v1/chat/completions"):
                raise Refused(404, f"There is nothing at POST {path or '/'}.", code="not_found")
            request = read_request(body, self.server.service, chat=path == "/v1/chat/completions")
            reply = _Reply(request, self.server.service.name)
            if request.stream:
                self._stream(request, reply)
                return
            done = [self.server.service.complete(ask, still_wanted=self._still_there) for ask in request.asks]
            self._send(200, reply.whole(done))

    # -- pieces ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Whatever goes wrong becomes an error object."""
        try:
            yield
        except _GONE:
            self.close_connection = True
        except Refused as refused:
            self._send(refused.status, refused.body())
        except Exception as error:
            self._send(500, Refused(500, f"{type(error).__name__} while answering.").body())

    def _authorize(self) -> None:
        if not self.server.key:
            return
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode(), self.server.key.encode()):
            raise Refused(401, "The key is missing or wrong.", code="invalid_api_key")

    def _body(self) -> Any:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            self.close_connection = True
            raise Refused(411, "The length of the body is not given.")
        if int(length) > _MOST_BYTES:
            self.close_connection = True
            raise Refused(413, "The body is too large.")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise Refused(400, "The body is not JSON.") from None

    def _model(self) -> dict[str, Any]:
        service = self.server.service
        return {
            "id": service.name,
            "object": "model",
            "created": self.server.began,
            "owned_by": "lcbench",
            "max_model_len": service.window,
            "lcbench": service.about(),
        }

    def _send(self, status: int, data: Mapping[str, Any]) -> None:
        body = json.dumps(data, ensure_ascii=True).encode()
        with contextlib.suppress(*_GONE):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def _stream(self, request: Request, reply: _Reply) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        done = []
        try:
            for index, ask in enumerate(request.asks):
                for event in reply.opening(index):
                    self._event(event)
                told = partial(self._piece, reply, index)
                one = self.server.service.complete(ask, told, still_wanted=self._still_there)
                self._event(reply.closing(index, one))
                done.append(one)
        except _GONE:
            raise
        except Exception as error:
            self._event(Refused(500, f"{type(error).__name__} while answering.").body())
            return
        if request.include_usage:
            self._event(reply.usage(done))
        self._write("[DONE]")

    def _still_there(self) -> None:
        """Raises ConnectionError when the client has closed its side: whoever waits behind it need not."""
        ready, _, _ = select.select([self.connection], [], [], 0)
        if ready and not self.connection.recv(1, socket.MSG_PEEK):
            raise ConnectionAbortedError

    def _piece(self, reply: _Reply, index: int, text: str) -> None:
        self._event(reply.piece(index, text))

    def _event(self, data: Mapping[str, Any]) -> None:
        self._write(json.dumps(data, ensure_ascii=True))

    def _write(self, text: str) -> None:
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()


class _Reply:
    """OpenAI's objects around answers."""

    def __init__(self, request: Request, model: str) -> None:
        self._chat = request.chat
        kind = "chat.completion" if request.chat else "text_completion"
        prefix = "chatcmpl" if request.chat else "cmpl"
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._kind, self._chunk = kind, f"{kind}.chunk" if request.chat else kind

    def whole(self, done: list[Completion]) -> dict[str, Any]:
        choices = []
        for index, one in enumerate(done):
            content = {"message": {"role": "assistant", "content": one.text}} if self._chat else {"text": one.text}
            choices.append({"index": index, **content, "logprobs": None, "finish_reason": one.finish_reason})
        return {**self._head, "object": self._kind, "choices": choices, "usage": _usage(done)}

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [self._piece(index, {"delta": {"role": "assistant", "content": ""}})] if self._chat else []

    def piece(self, index: int, text: str) -> dict[str, Any]:
        return self._piece(index, {"delta": {"content": text}} if self._chat else {"text": text})

    def closing(self, index: int, one: Completion) -> dict[str, Any]:
        return self._piece(index, {"delta": {}} if self._chat else {"text": ""}, one.finish_reason)

    def usage(self, done: list[Completion]) -> dict[str, Any]:
        return {**self._head, "object": self._chunk, "choices": [], "usage": _usage(done)}

    def _piece(self, index: int, content: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": index, **content, "logprobs": None, "finish_reason": finish}
        return {**self._head, "object": self._chunk, "choices": [choice]}


def _usage(done: list[Completion]) -> dict[str, int]:
    read, made = sum(one.prompt_tokens for one in done), sum(one.completion_tokens for one in done)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
