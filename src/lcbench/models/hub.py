"""The model hub: which commit a name means, and its many failures in plain sentences.

Messages are written here from the kind of failure and never carry the text of an exception, which may hold request
headers or signed addresses. The one exception is `plain`, which strips tokens.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from lcbench.errors import CannotWrite, LcbenchError, ModelError
from lcbench.models.source import suggest

LOCAL_INSTEAD = "Or give a local folder; --model demo needs no hub."
_CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Commit:
    """What a hub id and revision mean. ``cached_only``: the hub cannot be asked, so only cached files are used."""

    sha: str
    cached_only: bool


def commit_of(name: str, revision: str | None) -> Commit:
    """The commit that a hub id and revision mean now, or in the local hub cache when there is no network.

    Fetches config.json, so a name that is not a model fails here. An unreachable hub is noticed by one connection
    attempt: huggingface_hub would try for half a minute.

    Raises:
        ModelError: see `explain`.
    """
    from huggingface_hub import hf_hub_download

    trouble = None if _offline() else _unreachable()
    cached_only = _offline() or trouble is not None
    try:
        config = hf_hub_download(name, "config.json", revision=revision, local_files_only=cached_only)
    except Exception as error:
        if trouble is not None:
            error.__cause__ = trouble
        raise explain(name, revision, error) from None
    return Commit(Path(config).parent.name, cached_only)


def _unreachable() -> OSError | None:
    """Why no connection to the hub can be made; None when one can, or when a proxy is in between."""
    parts = urlsplit(endpoint())
    proxies = getproxies()
    if (proxies.get(parts.scheme) or proxies.get("all")) and not proxy_bypass(parts.hostname or ""):
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return error
    return None


def explain(name: str, revision: str | None, error: BaseException) -> LcbenchError:
    """The sentence for a failure of huggingface_hub, or of transformers around it."""
    from huggingface_hub import errors

    chain = list(_chain(error))
    at = f"'{name}'" if revision is None else f"'{name}' (revision {revision})"

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    status = next((s for e in chain if (s := _status(e))), 0)
    if any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in chain):
        return CannotWrite(f"No space left while downloading {at}.", "Free space, or move the cache with HF_HOME.")
    if has(errors.GatedRepoError):
        return ModelError(
            f"{at} is gated: its authors hand it out on request.",
            f"Ask at {endpoint()}/{name}, then log in with `hf auth login`.",
        )
    if has(errors.RevisionNotFoundError):
        return ModelError(
            f"The hub has '{name}', but no revision '{revision}' of it.",
            f"See {endpoint()}/{name}/tree/main for branches and tags.",
        )
    if status in (401, 403):
        return ModelError(
            f"The hub refused access to {at} ({status}): it does not exist, is private, or the token is not valid.",
            f"{suggest(name)} For a private model log in with `hf auth login`.",
        )
    if has(errors.RepositoryNotFoundError):
        return ModelError(f"There is no model {at}: no such folder here, and the hub does not know it.", suggest(name))
    if has(errors.RemoteEntryNotFoundError):
        return ModelError(
            f"{at} has no config.json on the hub, so it is not a model that transformers can load.",
            "Choose a repository with safetensors weights, or download its GGUF file and give that.",
        )
    if has(errors.HFValidationError):
        return ModelError(f"{at} cannot be a hub id, and there is no such folder.", suggest(name))
    if status == 429:
        return ModelError(f"The hub at {_host()} answers 'too many requests'.", "Wait a few minutes and try again.")
    if status >= 400:
        return ModelError(f"The hub at {_host()} failed with status {status} for {at}.", "Try again later.")
    if has(errors.OfflineModeIsEnabled) or _offline():
        return ModelError(
            f"{at} is not in the local hub cache, and offline mode is on.",
            f"{_close(name)}Unset HF_HUB_OFFLINE to download it. {LOCAL_INSTEAD}",
        )
    return ModelError(
        f"{at} is not here, and the hub at {_host()} could not be reached{_reason(chain)}.",
        f"{_close(name)}Check the network (or HF_ENDPOINT) and try again. {LOCAL_INSTEAD}",
    )


def is_hub_failure(error: BaseException) -> bool:
    """Whether the hub or the way to it failed, rather than what was downloaded."""
    from huggingface_hub import errors

    kinds = (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
    return any(isinstance(e, kinds) or _status(e) or _transport(e) for e in _chain(error))


def plain(error: BaseException) -> str:
    """First line of an exception's text (and the next where it ends with a colon), tokens removed, at most 300
    characters."""
    from huggingface_hub import get_token

    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    token = get_token()
    if token:
        text = text.replace(token, "***")
    text = re.sub(r"hf_[A-Za-z0-9]{4,}", "***", text)
    text = re.sub(r"(?i)(bearer|token=)\s*\S+", r"\1 ***", text)
    return text[:300].rstrip(".")


def endpoint() -> str:
    """Address of the hub, without any user name and password in it."""
    from huggingface_hub import constants

    parts = urlsplit(str(constants.ENDPOINT))
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}".rstrip("/")


def _host() -> str:
    return endpoint().partition("://")[2]


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("TRANSFORMERS_OFFLINE", "") in ("1", "true", "True")


def _close(name: str) -> str:
    hint = suggest(name)
    return f"{hint} " if hint.startswith("Did") else ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and what caused it, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int:
    value = getattr(getattr(error, "response", None), "status_code", 0)
    return value if isinstance(value, int) and value >= 400 else 0


def _transport(error: BaseException) -> bool:
    """Whether the error is one of the HTTP library's (which differs between versions of huggingface_hub)."""
    module = type(error).__module__.partition(".")[0]
    return module.startswith(("httpx", "httpcore", "requests", "urllib3"))


def _reason(chain: list[BaseException]) -> str:
    text = " ".join(f"{type(e).__name__} {e}".lower() for e in chain)
    for words, reason in (
        (("name or service not known", "getaddrinfo", "name resolution", "no address associated"), "no such host"),
        (("connection refused", "errno 111", "actively refused"), "connection refused"),
        (("timeout", "timed out"), "no answer in time"),
        (("certificate", "ssl"), "its certificate was not accepted"),
        (("proxy",), "the proxy failed"),
    ):
        if any(word in text for word in words):
            return f" ({reason})"
    return ""
