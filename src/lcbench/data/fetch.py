"""One file over HTTP: resumed where it broke, checked before it gets its name, and safe to interrupt at any moment.

A transfer is resumed (``Range``) only when the server can tell that the file is still the same (``If-Range`` with a
strong ETag or a date) or when its checksum is known; otherwise it starts again.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urljoin, urlsplit

import httpx

from lcbench import __version__
from lcbench.data.checksum import Digest
from lcbench.data.disk import make_folder, require_room, size_text, writing
from lcbench.data.hub import Bearer, origin_of, shown
from lcbench.data.neterrors import FROM_STEP, Broken, broken, check_status, gave_up, reason
from lcbench.data.part import State, Wanted, accept, begin, forget, resumable, size_of
from lcbench.errors import BadValue, ChecksumMismatch, NetworkError

Progress = Callable[[str, int, "int | None"], None]
"""Called with a label, the bytes done and the bytes in all (None when nobody said)."""

_REDIRECTS = {301, 302, 303, 307, 308}
_LONGEST_REDIRECT_CHAIN = 10
_MOST_FAILURES = 50


@dataclass(frozen=True)
class Patience:
    """How long to try. Seconds.

    Attributes:
        attempts: failed transfers before giving up, counted from the last one that brought a new byte.
        connects: the same for connections that cannot be made.
        first_wait, longest_wait: pause after a failure, doubled each time.
        longest_asked: longest pause granted to a server that asks for one (``Retry-After``).
        connect_timeout, read_timeout: for one connection, and between two pieces of data.
    """

    attempts: int = 5
    connects: int = 3
    first_wait: float = 0.5
    longest_wait: float = 8.0
    longest_asked: float = 60.0
    connect_timeout: float = 10.0
    read_timeout: float = 30.0


class _Restart(Exception):
    """What lies in the part file cannot be continued: begin again."""


class Fetcher:
    """An HTTP client for downloads; use it in a ``with`` block.

    Args:
        bearer: gives the hub token, once, when the first request is made. The token is sent to its origin only
            and never after a redirect away from it.
        progress: told about every piece of data.
        patience: retries and timeouts.
        sleep: for tests.
    """

    def __init__(
        self,
        bearer: Callable[[], Bearer | None] = lambda: None,
        progress: Progress | None = None,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ask_bearer = bearer
        self._bearer: Bearer | None = None
        self._progress = progress or (lambda label, done, total: None)
        self._patience = patience or Patience()
        self._sleep = sleep
        self._client: httpx.Client | None = None

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()

    def fetch(self, wanted: Wanted) -> Digest:
        """Download ``wanted`` and return its digest; on return the file is complete, checked and durable.

        Raises:
            ChecksumMismatch: the content is not the expected one; nothing is left behind.
            Refused, NotThere, Unreachable, NetworkError: see `neterrors`; what arrived stays for the next try.
            CannotWrite: folder not writable or disk full.
        """
        require_http(wanted.url)
        make_folder(wanted.target.parent)
        failures = in_all = 0
        while True:
            before = size_of(wanted.part)
            try:
                self._transfer(wanted)
                break
            except _Restart:
                forget(wanted)
                trouble = Broken("the file changes while it is read")
            except Broken as error:
                trouble = error
            in_all += 1
            failures = 1 if size_of(wanted.part) > before else failures + 1
            self._wait_or_give_up(wanted.url, wanted.label, trouble, failures, in_all)
        return accept(wanted)

    def page(self, url: str, max_bytes: int = 1 << 20) -> str | None:
        """The HTML page at ``url`` as text, None when there is none (any refusal, or another type).

        Raises:
            Unreachable, NetworkError: nobody answers there, or the connection breaks again and again.
        """
        require_http(url)
        failures = 0
        while True:
            try:
                with self._answer(url, {}) as response:
                    if response.status_code != 200 or "html" not in response.headers.get("content-type", ""):
                        return None
                    text = b""
                    for piece in response.iter_bytes():
                        text += piece
                        if len(text) > max_bytes:
                            return None
                    return text.decode("utf-8", "replace")
            except Broken as trouble:
                failures += 1
                self._wait_or_give_up(url, shown(url), trouble, failures, failures)

    def _wait_or_give_up(self, url: str, label: str, trouble: Broken, failures: int, in_all: int) -> None:
        limit = self._patience.attempts if trouble.connected else self._patience.connects
        if failures >= limit or in_all >= _MOST_FAILURES:
            raise gave_up(url, label, trouble)
        pause = min(self._patience.first_wait * 2 ** (failures - 1), self._patience.longest_wait)
        self._sleep(max(pause, min(trouble.wait, self._patience.longest_asked)))

    def _transfer(self, wanted: Wanted) -> None:
        state = resumable(wanted)
        offset = size_of(wanted.part) if state else 0
        headers: dict[str, str] = {}
        if offset and state:
            headers["Range"] = f"bytes={offset}-"
            if state.validator:
                headers["If-Range"] = state.validator
        with self._answer(wanted.url, headers) as response:
            if response.status_code == 416 and state:
                return _already_complete(response, offset, wanted, state)
            check_status(response, wanted.url)
            if response.status_code == 206:
                if not (state and offset):
                    raise Broken("the server answered with a part that nobody asked for")
                total = _continued(response, offset, state)
            else:
                # No range asked for, the server ignores ranges, or the file is another one now.
                offset, total = 0, _declared(response)
                begin(wanted, State(shown(wanted.url), _validator(response), total))
            _check_declared(wanted, total, offset)
            arrived = self._store(response, wanted, offset, total)
        size = wanted.expected.size if wanted.expected.size is not None else total
        if size is not None and arrived < size:
            raise Broken(f"the connection ended after {arrived} of {size} bytes")

    def _store(self, response: httpx.Response, wanted: Wanted, offset: int, total: int | None) -> int:
        """Append the body to the part file; the size of the part file afterwards."""
        shown_total = total if total is not None else wanted.expected.size
        limit = wanted.expected.size if wanted.expected.size is not None else wanted.max_bytes
        done = offset
        self._progress(wanted.label, done, shown_total)
        with writing(wanted.part), open(wanted.part, "r+b" if offset else "wb") as part:
            part.seek(offset)
            for piece in _pieces(response):
                done += len(piece)
                if done > limit:
                    forget(wanted)
                    raise ChecksumMismatch(
                        f"{wanted.label} from {shown(wanted.url)} is larger than the expected {limit} bytes.", FROM_STEP
                    )
                part.write(piece)
                self._progress(wanted.label, done, shown_total)
            part.truncate()
        return done

    @contextlib.contextmanager
    def _answer(self, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """Ask, follow redirects, and give the final response. Raises Broken for whatever may go better later."""
        client = self._open()
        trusted = self._bearer is not None and origin_of(url) == self._bearer.origin
        try:
            for _ in range(_LONGEST_REDIRECT_CHAIN):
                request = client.build_request("GET", url, headers=headers)
                if trusted and self._bearer is not None:
                    request.headers["Authorization"] = f"Bearer {self._bearer.token}"
                response = client.send(request, stream=True)
                try:
                    if response.status_code not in _REDIRECTS:
                        yield response
                        return
                    following = _redirected(url, response)
                finally:
                    response.close()
                # Once away from the hub the token stays away, also when a later hop leads back.
                trusted = trusted and origin_of(following) == origin_of(url)
                url = following
        except httpx.TransportError as error:
            raise broken(error) from error
        except (httpx.InvalidURL, httpx.RequestError) as error:
            raise NetworkError(f"{shown(url)} cannot be read: {reason(error)}.", FROM_STEP) from error
        raise NetworkError(f"{shown(url)} redirects without an end.", FROM_STEP)

    def _open(self) -> httpx.Client:
        if self._client is None:
            self._bearer = self._ask_bearer()
            timeout = httpx.Timeout(self._patience.read_timeout, connect=self._patience.connect_timeout)
            # A compressed answer could neither be resumed nor counted.
            headers = {"User-Agent": f"lcbench/{__version__}", "Accept-Encoding": "identity"}
            try:
                self._client = httpx.Client(timeout=timeout, headers=headers, follow_redirects=False)
            except (ValueError, ImportError, httpx.InvalidURL, OSError) as error:
                raise NetworkError(
                    "The proxy or certificate settings of the environment cannot be used.",
                    "Look at HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE. " + FROM_STEP,
                ) from error
        return self._client


def require_http(url: str) -> None:
    """Raise BadValue unless ``url`` is an http(s) address with a host."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        usable = usable and bool(httpx.URL(url).host)
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable:
        raise BadValue(f"'{shown(url)}' is not an http or https address.", "Write https://host/path.")


def _already_complete(response: httpx.Response, offset: int, wanted: Wanted, state: State) -> None:
    """After 416: fine when the part file is the whole file already; else begin again."""
    stated = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("content-range", "").strip())
    total = int(stated[1]) if stated else wanted.expected.size
    if total != offset or state.total not in (None, offset):
        raise _Restart


def _continued(response: httpx.Response, offset: int, state: State) -> int | None:
    """Total size from a 206 answer. Raises _Restart when it continues something else than the part file."""
    stated = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("content-range", "").strip())
    if stated is None or int(stated[1]) != offset or response.headers.get("content-encoding", "identity") != "identity":
        raise _Restart
    total = None if stated[3] == "*" else int(stated[3])
    if total is not None and state.total is not None and total != state.total:
        raise _Restart
    now = _validator(response)
    if now and state.validator and now != state.validator:
        raise _Restart
    return total if total is not None else state.total


def _declared(response: httpx.Response) -> int | None:
    length = response.headers.get("content-length", "")
    plain = response.headers.get("content-encoding", "identity") == "identity"
    return int(length) if plain and length.isdigit() else None


def _validator(response: httpx.Response) -> str:
    """A strong ETag, else the date of change, else "" (weak ETags do not promise the same bytes)."""
    tag = str(response.headers.get("etag", ""))
    if tag.startswith('"') and response.headers.get("content-encoding", "identity") == "identity":
        return tag
    return "" if tag else str(response.headers.get("last-modified", ""))


def _check_declared(wanted: Wanted, total: int | None, offset: int) -> None:
    if total is None:
        return
    exact = wanted.expected.size
    if exact is not None and total != exact:
        forget(wanted)
        raise ChecksumMismatch(
            f"{wanted.label} from {shown(wanted.url)} does not have the right content: "
            f"expected {exact} bytes, the server has {total}.",
            FROM_STEP,
        )
    if total > wanted.max_bytes:
        forget(wanted)
        raise ChecksumMismatch(
            f"{wanted.label} from {shown(wanted.url)} has {size_text(total)}, "
            f"more than the {size_text(wanted.max_bytes)} it may have.",
            FROM_STEP,
        )
    require_room(wanted.target.parent, total - offset, wanted.label)


def _pieces(response: httpx.Response) -> Iterator[bytes]:
    # Pieces as they come off the wire: buffering would lose the last ones when the connection goes away.
    plain = response.headers.get("content-encoding", "identity") == "identity"
    return response.iter_raw() if plain else response.iter_bytes()


def _redirected(url: str, response: httpx.Response) -> str:
    location = response.headers.get("location", "")
    following = str(urljoin(url, location))
    if not location or urlsplit(following).scheme not in ("http", "https"):
        raise NetworkError(f"{shown(url)} redirects to nowhere.", FROM_STEP)
    if urlsplit(url).scheme == "https" and urlsplit(following).scheme == "http":
        raise NetworkError(
            f"{shown(url)} redirects to {shown(following)}, which is not encrypted; that is refused.", FROM_STEP
        )
    return following
