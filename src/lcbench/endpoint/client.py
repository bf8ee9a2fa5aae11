"""An OpenAI-compatible address: one JSON question in, one JSON answer out; patient, and careful with the key.

What may go better later (429, 5xx, broken or late answers) is tried again with growing pauses. What will never go
better (wrong key, no such model) ends everything at once; so does a server that has not answered at all.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import groupby
from operator import itemgetter
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import httpx

from lcbench import __version__
from lcbench.data.fetch import require_http
from lcbench.data.hub import origin_of, shown
from lcbench.data.neterrors import reason
from lcbench.errors import BadValue, NetworkError, UsageError

OPENAI = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"

T = TypeVar("T")

_AGAIN = {408, 409, 425, 429}  # and 5xx, but for those that say "never"
_NEVER = {501, 505}
_BROKE = "insufficient_quota"  # OpenAI's code of a 429 that no waiting mends
_MOST_BYTES = 4 << 20
_LOCAL = {"127.0.0.1", "::1", "localhost"}
_SHOWN = 200  # characters of a server's own message that are passed on
_READ = 4000  # that are looked at
_TELLING = 8  # characters of a key that may not be shown either
_ECHO = 16  # in answers, where eight may be a word: keys are placeholders on some servers ("no-key-required")


class NoReply(Exception):
    """One question without a reply, after every attempt; ``reason`` is a clause for the record.

    Attributes:
        status: HTTP status of the server's refusal, 0 where there is none. said: its own message, shortened.
    """

    def __init__(self, reason: str, *, status: int = 0, said: str = "") -> None:
        super().__init__(reason)
        self.reason, self.status, self.said = reason, status, said


class Stopped(NoReply):
    """`Client.stop` was called before there was one: no result of the question."""


class Again(Exception):
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


@dataclass(frozen=True)
class Wording:
    """How messages call the other side, and the options that name it.

    Attributes:
        who: at the beginning of a sentence. model, url: options of the command line. key: variable of the environment.
        kept: said when the server goes away.
    """

    who: str
    model: str
    url: str
    key: str
    kept: str


def key_for(url: str, name: str) -> str:
    """The key of the environment for this address, "" for none. OpenAI's own key is sent to OpenAI alone.

    Args:
        name: of the variable that is looked at first, for any address.

    Raises:
        BadValue: it holds characters that no key has.
    """
    for variable in [name] + ([OPENAI_KEY] if origin_of(url) == origin_of(OPENAI) else []):
        key = os.environ.get(variable, "").strip()
        if key and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise BadValue(f"{variable} holds characters that no key has.", f"Set {variable} again, or unset it.")
        if key:
            return key
    return ""


@dataclass
class Client:
    """A model at an address. `post` may be called from several threads.

    Attributes:
        model: as the server calls it. url: base address, ``/v1`` included. key: never shown, not even by repr.
        calls: requests made, those tried again included.
    """

    model: str
    wording: Wording
    url: str = OPENAI
    key: str = field(default="", repr=False)
    patience: Patience = Patience()
    ends: Sequence[str] = ("/chat/completions", "/completions")

    def __post_init__(self) -> None:
        require_http(self.url)
        parts = urlsplit(self.url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise BadValue(
                f"{self.wording.url} {shown(self.url)} carries more than an address.",
                f"Leave user, password and query out; set the key as {self.wording.key} in the environment.",
            )
        self.url = self.url.rstrip("/")
        for end in self.ends:
            self.url = self.url.removesuffix(end)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._client: httpx.Client | None = None
        self._answered = False
        self._silent = 0
        self.calls = 0

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.model} at {urlsplit(self.url).netloc}"

    def post(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T], attempts: int = sys.maxsize) -> T:
        """Ask with a JSON body and read the JSON answer.

        Args:
            path: behind the base address, e.g. "/chat/completions".
            read: makes the result of the parsed answer; raises `Again` for one that cannot be used.
            attempts: calls at most, where fewer are right than `Patience` grants.

        Raises:
            NoReply: this question got none; others may.
            UsageError: the server refuses the key, or has no such model or address.
            NetworkError: it does not answer at all.
        """
        return self._patiently(lambda: read(self._json(self._call("POST", path, body))), attempts)

    def get(self, path: str, attempts: int) -> Any:
        """The parsed JSON answer of an address, which is not worth more than so many attempts. Raises as `post`."""
        return self._patiently(lambda: self._json(self._call("GET", path, None)), attempts)

    def stop(self) -> None:
        """No more attempts, for good; calls that are under way may end, and their replies are kept: they are paid
        for."""
        self._stopped.set()

    def close(self) -> None:
        """Give connections back; the next call opens new ones."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    # -- one question ------------------------------------------------------------------------------------------------

    def _patiently(self, attempt: Callable[[], T], most: int = sys.maxsize) -> T:
        if not self.key and origin_of(self.url) == origin_of(OPENAI):
            raise UsageError(
                f"{self.label} wants a key, and none is set.", f"Set {OPENAI_KEY}, or give {self.wording.url}."
            )
        tried = 0
        while True:
            if self._stopped.is_set():
                raise Stopped("stopped before it was asked")
            tried += 1
            try:
                result = attempt()
            except Again as trouble:
                known = self._answered or trouble.answered
                attempts = self.patience.attempts if known else self.patience.first_attempts
                if tried >= min(attempts, most):
                    self._note(trouble)
                    raise NoReply(trouble.reason) from None
                self._stopped.wait(self._pause(tried, trouble))
                continue
            with self._lock:
                self._answered, self._silent = True, 0
            return result

    def _pause(self, tried: int, trouble: Again) -> float:
        if trouble.wait:
            return min(trouble.wait, self.patience.longest_asked)
        return float(min(self.patience.first_wait * 2.0 ** (tried - 1), self.patience.longest_wait))

    def _note(self, trouble: Again) -> None:
        """Count questions in a row to which the server said nothing; give up on it after too many."""
        with self._lock:
            self._silent = 0 if trouble.answered else self._silent + 1
            self._answered = self._answered or trouble.answered
            gone = not self._answered or self._silent >= self.patience.silent
        if gone and not trouble.answered:
            raise NetworkError(
                f"{self.wording.who} at {shown(self.url)} does not answer: {trouble.reason}.",
                f"Check {self.wording.url} and the server; {self.wording.kept}",
            ) from None

    def _call(self, verb: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        content = None if body is None else json.dumps(body).encode()  # ASCII: a text may hold half of a surrogate pair
        if content is not None:
            headers["Content-Type"] = "application/json"
        client = self._open()
        deadline = time.monotonic() + self.patience.timeout
        with self._lock:
            self.calls += 1
        try:
            with client.stream(verb, f"{self.url}{path}", content=content, headers=headers) as response:
                data = _read(response, deadline)
        except httpx.TransportError as error:
            raise Again(reason(error), answered=False) from None
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise Again(reason(error)) from None
        self._check(response, data)
        return data

    def _check(self, response: httpx.Response, data: bytes) -> None:
        code = response.status_code
        if code == 200:
            return
        place = shown(self.url)
        who, said = self.wording.who, self._said(data)
        answered = f"the server answered {code}" + (f": {said}" if said else "")
        if code == 402 or (code == 429 and _BROKE.encode() in data):
            why = f": {said.rstrip('.')}" if said else ""
            step = f"Look at the account of the key; {self.wording.kept}"
            raise UsageError(f"{who} at {place} wants to be paid first ({code}){why}.", step)
        if code in _AGAIN or (code >= 500 and code not in _NEVER):
            raise Again(answered, wait=_seconds(response.headers.get("retry-after", "")))
        if code in (401, 403):
            step = f"{'Check' if self.key else 'Set'} {self.wording.key} in the environment"
            step += f" (or {OPENAI_KEY})." if origin_of(self.url) == origin_of(OPENAI) else "."
            raise UsageError(f"{who} at {place} refuses the key, or wants one ({code}).", step)
        if code in (404, 405, 410):
            self._absent(code, said)
        if 300 <= code < 400:
            step = f"Give the final address with {self.wording.url}."
            raise UsageError(f"{who} at {place} redirects ({code}).", step)
        raise NoReply(answered, status=code, said=said)

    def _json(self, data: bytes) -> Any:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise Again("its answer is no JSON") from None
        if isinstance(found, Mapping) and found.get("error"):
            said = self._said(data)
            raise Again("its answer is an error" + (f": {said}" if said else ""))
        return _cleared(found, self.key) if len(self.key) >= _TELLING else found

    def _absent(self, code: int, said: str) -> NoReturn:
        raise Absent(
            f"{self.wording.who} at {shown(self.url)} has no {self.model}, or the address is wrong ({code}).",
            f"Check {self.wording.model} and {self.wording.url}; the address ends in /v1 on most servers.",
        )

    def _said(self, data: bytes) -> str:
        """The message of an error body on one line, shortened; neither the key nor a part of it stands in it."""
        try:
            text = " ".join(_message(json.loads(data))[:_READ].split())
        except (ValueError, RecursionError):
            return ""
        text = _without(text, self.key)
        return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"

    def _open(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                timeout = httpx.Timeout(self.patience.timeout, connect=min(10.0, self.patience.timeout), pool=None)
                local = (urlsplit(self.url).hostname or "") in _LOCAL
                try:
                    self._client = httpx.Client(
                        timeout=timeout,
                        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
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


class Absent(UsageError):
    """The server has no such address, or no such model."""


def _message(found: Any) -> str:
    """The sentence in an error body: OpenAI's ``error.message``, FastAPI's ``detail``, or a bare ``message``."""
    for name in ("error", "detail", "message", "msg"):
        if isinstance(found, list):
            found = found[0] if found else ""
        if isinstance(found, Mapping):
            found = found.get(name, found)
    return found if isinstance(found, str) else ""


def _cleared(found: Any, key: str) -> Any:
    """Parsed JSON, no text of which shows the key: what servers echo would reach predictions, reports and exports."""
    if isinstance(found, str):
        return _without(found, key, _ECHO)
    if isinstance(found, Mapping):
        return {name: _cleared(value, key) for name, value in found.items()}
    return [_cleared(value, key) for value in found] if isinstance(found, list) else found


def _without(text: str, key: str, telling: int = _TELLING) -> str:
    """A text with asterisks where it shows the key, or so many characters of it, in whatever case."""
    size, spelled = min(len(key), telling), key.lower()
    if not size:
        return text
    parts = {spelled[at : at + size] for at in range(len(key) - size + 1)}
    hidden = [False] * len(text)
    for at in range(len(text) - size + 1):
        if text[at : at + size].lower() in parts:
            hidden[at : at + size] = [True] * size
    runs = groupby(zip(hidden, text, strict=True), key=itemgetter(0))
    return "".join("***" if hide else "".join(c for _, c in run) for hide, run in runs)


def _seconds(asked: str) -> float:
    """Seconds of a ``Retry-After`` header: a number, or a date; 0 for anything else."""
    try:
        seconds = float(asked)
        return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(asked)
    except (ValueError, TypeError):
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())


def _read(response: httpx.Response, deadline: float) -> bytes:
    """The whole body, within the time of a call: a server that drips is as late as one that is silent."""
    data = b""
    for piece in response.iter_bytes():
        data += piece
        if time.monotonic() > deadline:
            raise Again("no whole answer in time", answered=False)
        if len(data) > _MOST_BYTES:
            raise Again("an answer without end")
    return data
