"""What can come over the network instead of a file, and the sentence for each. No sentence shows a token or a query."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import httpx

from lcbench.data.hub import DEFAULT_ENDPOINT, endpoint, origin_of, shown
from lcbench.errors import BadValue, NetworkError

FROM_STEP = "Or get the files elsewhere and run: lcbench download --from DIR|ZIP|URL NAME"

_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class Refused(NetworkError):
    """The server answers and does not give the file (401, 403, 404, 410)."""


class NotThere(Refused):
    """The server answers and says that it has no such file (404, 410)."""


class Unreachable(NetworkError):
    """The server does not answer at all."""


class Broken(Exception):
    """A transfer that failed but may succeed when tried again.

    Args:
        reason: a clause for the user. connected: whether the server was reached. wait: seconds it asks to wait.
    """

    def __init__(self, reason: str, *, connected: bool = True, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.connected, self.wait = reason, connected, wait


def check_status(response: httpx.Response, url: str) -> None:
    """Raise for an answer without the file in it: Broken, Refused, NotThere or NetworkError."""
    code, place = response.status_code, shown(url)
    if code in (200, 206):
        return
    if code in _AGAIN:
        pause = response.headers.get("retry-after", "")
        raise Broken(f"the server answered {code}", wait=float(pause) if pause.isdigit() else 0.0)
    if code == 401:
        raise Refused(
            f"{place} asks who you are (401): it wants a token and got none, or a wrong one.",
            "Set HF_TOKEN to a valid hub token (for another server, write USER:PASSWORD@ into the URL). " + FROM_STEP,
        )
    if code == 403:
        raise Refused(
            f"{place} refuses access (403): your token, or this network, is not allowed to read it.",
            "Ask for access on the page of the data set, or set HF_ENDPOINT to a mirror. " + FROM_STEP,
        )
    if code in (404, 410):
        raise NotThere(f"{place} does not exist ({code}).", "Check HF_ENDPOINT and the address. " + FROM_STEP)
    raise NetworkError(f"{place} answered {code} instead of the file.", FROM_STEP)


def broken(error: httpx.TransportError) -> Broken:
    """A failed connection or transfer, as something that may be tried again."""
    connected = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError)
    return Broken(reason(error), connected=connected)


def gave_up(url: str, label: str, trouble: Broken) -> NetworkError:
    """The error after the last attempt; it names the host."""
    parts = urlsplit(url)
    host = parts.hostname or shown(url)
    at = f"{host}:{parts.port}" if parts.port else host
    mirror = "Set HF_ENDPOINT to a mirror you can reach. " if origin_of(url) in _hub_origins() else ""
    if trouble.connected:
        return NetworkError(
            f"{label} could not be read from {at}: {trouble.reason}.",
            "What arrived is kept: the same command continues there. " + mirror + FROM_STEP,
        )
    return Unreachable(f"{at} cannot be reached: {trouble.reason}.", "Check the network. " + mirror + FROM_STEP)


def reason(error: Exception) -> str:
    """A few words about a network error; never its URL."""
    if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
        return "no answer in time"
    if isinstance(error, httpx.TimeoutException):
        return "no data in time"
    if isinstance(error, httpx.ProxyError):
        return "the proxy refuses"
    if isinstance(error, httpx.DecodingError):
        return "it is compressed in an unreadable way"
    if isinstance(error, httpx.ConnectError):
        text = str(error)
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return "its certificate is not trusted"
        detail = re.sub(r"^\[Errno -?\d+\] ", "", text).strip()
        return detail if detail and "//" not in detail else "no connection"
    if isinstance(error, httpx.RemoteProtocolError | httpx.NetworkError):
        return "the connection went away"
    return "the request failed"


def _hub_origins() -> set[str]:
    try:
        return {origin_of(DEFAULT_ENDPOINT), origin_of(endpoint())}
    except BadValue:
        return {origin_of(DEFAULT_ENDPOINT)}
