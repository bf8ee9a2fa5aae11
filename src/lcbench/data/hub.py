"""Addresses on the hub, or on the mirror that ``HF_ENDPOINT`` names, and the token that only it may see."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from lcbench.errors import BadValue

DEFAULT_ENDPOINT = "https://huggingface.co"
_YES = {"1", "true", "yes", "on"}


@dataclass(frozen=True)
class Bearer:
    """A token and the only origin it is sent to.

    Attributes:
        origin: scheme, host and port, see `origin_of`.
        token: never shown, not even by repr.
    """

    origin: str
    token: str = field(repr=False)


def endpoint() -> str:
    """``HF_ENDPOINT`` without a trailing slash, or the public hub. Raises BadValue for anything but an http(s) URL."""
    text = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or DEFAULT_ENDPOINT
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise BadValue(
            f"HF_ENDPOINT is '{shown(text)}', which is not an http or https address.",
            f"Set it to a mirror such as {DEFAULT_ENDPOINT}, or unset it.",
        )
    return text


def dataset_file(repository: str, revision: str, path: str) -> str:
    """URL of one file of a data set repository, as every hub and mirror lays it out."""
    return f"{endpoint()}/datasets/{quote(repository)}/resolve/{quote(revision, safe='')}/{quote(path)}"


def bearer() -> Bearer | None:
    """The user's hub token: ``HF_TOKEN``, or the one saved by a hub login; None without one.

    Raises:
        BadValue: it holds characters that no token has (a line break pasted along, for instance).
    """
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token and os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() not in _YES:
        try:
            from huggingface_hub import get_token
        except ImportError:
            return None
        token = (get_token() or "").strip()
    if not token:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise BadValue("The hub token holds characters that no token has.", "Set HF_TOKEN again, or unset it.")
    return Bearer(origin_of(endpoint()), token)


def origin_of(url: str) -> str:
    """``scheme://host:port`` in lower case, the port always written out."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return f"{parts.scheme}://{parts.hostname or ''}:{port}".lower()


def shown(url: str) -> str:
    """``url`` fit for a message: without user name, password, query and fragment, where secrets travel. The path of a
    local file stays as it is."""
    try:
        parts = urlsplit(url)
        if not parts.netloc:
            return url
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return re.sub(r"//[^/]*@", "//", url).split("?")[0].split("#")[0]
    return f"{parts.scheme + ':' if parts.scheme else ''}//{host}{port}{parts.path}"
