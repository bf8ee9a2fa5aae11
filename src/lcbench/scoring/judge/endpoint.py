"""A judge behind an OpenAI-compatible address (``/chat/completions``): patient, and careful with the key.

What may go better later (429, 5xx, broken or late answers) is tried again with growing pauses. What will never go
better (wrong key, no such model) ends the grading at once; so does a server that has not answered at all.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from lcbench import __version__
from lcbench.data.fetch import require_http
from lcbench.data.hub import origin_of, shown
from lcbench.data.neterrors import reason
from lcbench.errors import BadValue, NetworkError, UsageError
from lcbench.scoring.judge.asking import NoReply

OPENAI = "https://api.openai.com/v1"
KEY, OPENAI_KEY = "LCBENCH_JUDGE_KEY", "OPENAI_API_KEY"
TEMPERATURE, TOP_P, MAX_TOKENS = 0.1, 0.9, 1024
"""Settings of the published scores."""

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_MOST_BYTES = 4 << 20
_LOCAL = {"127.0.0.1", "::1", "localhost"}


class _Again(Exception):
    """An attempt that failed and may go better. answered: whether the server said anything."""

    def __init__(self, reason: str, *, answered: bool = True, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.answered, self.wait = reason, answered, wait


@dataclass(frozen=True)
class Patience:
    """How long to try; seconds.

    Attributes:
        attempts: calls for one question. first_attempts: the same while the server has never answered.
        timeout: for one call as a whole. first_wait, longest_wait: pause, doubled each time. longest_asked: longest
        pause granted to a server that asks for one (``Retry-After``).
        silent: questions in a row without any answer after which the server counts as gone.
    """

    attempts: int = 5
    first_attempts: int = 2
    timeout: float = 60.0
    first_wait: float = 0.5
    longest_wait: float = 16.0
    longest_asked: float = 60.0
    silent: int = 3


def key_for(url: str) -> str:
    """The key of the environment for this address, "" for none. OpenAI's own key is sent to OpenAI alone.

    Raises:
        BadValue: it holds characters that no key has.
    """
    names = [KEY] + ([OPENAI_KEY] if origin_of(url) == origin_of(OPENAI) else [])
    for name in names:
        key = os.environ.get(name, "").strip()
        if key and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise BadValue(f"{name} holds characters that no key has.", f"Set {name} again, or unset it.")
        if key:
            return key
    return ""


@dataclass
class Endpoint:
    """A model at an address. `ask` may be called from several threads.

    Attributes:
        model: as the server calls it. url: base address, ``/v1`` included. key: never shown, not even by repr.
    """

    model: str
    url: str = OPENAI
    key: str = field(default="", repr=False)
    patience: Patience = Patience()
    concurrent: bool = True
    tries: int = 2

    def __post_init__(self) -> None:
        require_http(self.url)
        parts = urlsplit(self.url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise BadValue(
                f"--judge-url {shown(self.url)} carries more than an address.",
                f"Leave user, password and query out; set the key as {KEY} in the environment.",
            )
        self.url = self.url.rstrip("/").removesuffix("/chat/completions")
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._client: httpx.Client | None = None
        self._answered = False
        self._silent = 0
        self.calls = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that can change a reply; without the key."""
        settings = {"temperature": TEMPERATURE, "top_p": TOP_P, "max_tokens": MAX_TOKENS}
        return {"kind": "openai", "model": self.model, "url": self.url, **settings}

    @property
    def label(self) -> str:
        return f"{self.model} at {urlsplit(self.url).netloc}"

    def ask(self, system: str, user: str) -> str:
        """The text of the reply.

        Raises:
            NoReply: this question got none; others may.
            UsageError: the server refuses the key, or has no such model or address.
            NetworkError: it does not answer at all.
        """
        if not self.key and origin_of(self.url) == origin_of(OPENAI):
            raise UsageError(f"{self.label} wants a key, and none is set.", f"Set {OPENAI_KEY}, or give --judge-url.")
        tried = 0
        while True:
            tried += 1
            try:
                text = self._call(system, user)
            except _Again as trouble:
                attempts = self.patience.attempts if self._answered else self.patience.first_attempts
                if tried >= attempts or self._stopped.is_set():
                    self._note(trouble)
                    raise NoReply(trouble.reason) from None
                self._stopped.wait(self._pause(tried, trouble))
                continue
            with self._lock:
                self._answered, self._silent = True, 0
            return text

    def stop(self) -> None:
        """No more attempts; calls that are under way may end, and their replies are kept: they are paid for."""
        self._stopped.set()

    def _pause(self, tried: int, trouble: _Again) -> float:
        if trouble.wait:
            return min(trouble.wait, self.patience.longest_asked)
        return min(self.patience.first_wait * 2.0 ** (tried - 1), self.patience.longest_wait)

    def _note(self, trouble: _Again) -> None:
        """Count questions in a row to which the server said nothing; give up on it after too many."""
        with self._lock:
            self._silent = 0 if trouble.answered else self._silent + 1
            self._answered = self._answered or trouble.answered
            gone = not self._answered or self._silent >= self.patience.silent
        if gone and not trouble.answered:
            raise NetworkError(
                f"The judge at {shown(self.url)} does not answer: {trouble.reason}.",
                "Check --judge-url and the server; replies that came are kept, so the same command goes on from there.",
            ) from None

    def _call(self, system: str, user: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "max_tokens": MAX_TOKENS,
        }
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        client = self._open()
        deadline = time.monotonic() + self.patience.timeout
        with self._lock:
            self.calls += 1
        try:
            with client.stream("POST", f"{self.url}/chat/completions", json=body, headers=headers) as response:
                data = _read(response, deadline)
        except httpx.TransportError as error:
            raise _Again(reason(error), answered=False) from None
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise _Again(reason(error)) from None
        self._check(response)
        return _content(data)

    def _check(self, response: httpx.Response) -> None:
        code = response.status_code
        if code == 200:
            return
        if code in _AGAIN:
            asked = response.headers.get("retry-after", "")
            raise _Again(f"the server answered {code}", wait=float(asked) if asked.isdigit() else 0.0)
        place = shown(self.url)
        if code in (401, 403):
            step = f"Set {KEY} in the environment"
            step += f" (or {OPENAI_KEY})." if origin_of(self.url) == origin_of(OPENAI) else "."
            raise UsageError(f"The judge at {place} refuses the key, or wants one ({code}).", step)
        if code in (404, 410):
            raise UsageError(
                f"The judge at {place} has no {self.model}, or the address is wrong ({code}).",
                "Check --judge and --judge-url; the address ends in /v1 on most servers.",
            )
        if 300 <= code < 400:
            raise UsageError(f"The judge at {place} redirects ({code}).", "Give the final address with --judge-url.")
        raise NoReply(f"the server answered {code}")

    def _open(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                timeout = httpx.Timeout(self.patience.timeout, connect=min(10.0, self.patience.timeout), pool=None)
                local = (urlsplit(self.url).hostname or "") in _LOCAL
                try:
                    self._client = httpx.Client(
                        timeout=timeout,
                        headers={"User-Agent": f"lcbench/{__version__}"},
                        follow_redirects=False,
                        trust_env=not local,  # no proxy stands between this machine and itself
                    )
                except (ValueError, ImportError, httpx.InvalidURL, OSError):
                    raise NetworkError(
                        "The proxy or certificate settings of the environment cannot be used.",
                        "Look at HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE.",
                    ) from None
            return self._client


def _read(response: httpx.Response, deadline: float) -> bytes:
    """The whole body, within the time of a call: a server that drips is as late as one that is silent."""
    data = b""
    for piece in response.iter_bytes():
        data += piece
        if time.monotonic() > deadline:
            raise _Again("no whole answer in time", answered=False)
        if len(data) > _MOST_BYTES:
            raise _Again("an answer without end")
    return data


def _content(data: bytes) -> str:
    """Text of the first choice of a chat completion."""
    try:
        text = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise _Again("its answer is no chat completion") from None
    if not isinstance(text, str) or not text.strip():
        raise _Again("its answer is empty")
    return text
