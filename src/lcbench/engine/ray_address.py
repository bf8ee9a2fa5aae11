"""Which Ray cluster a run is for, told before anything heavy is loaded: an address where none answers costs a second.

Ray itself goes on trying an address for minutes, and then ends the process.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from urllib.parse import urlsplit

from lcbench.errors import ModelError, UsageError

OWN = "local"
"""The cluster that a run makes for itself."""

_KNOCK_SECONDS = 5.0  # for a connection, and for the first answer
# What begins a connection of HTTP/2, gRPC's carrier (RFC 9113, section 3.4): a fixed text, and a frame of settings,
# here an empty one. The other side begins with settings of its own.
_PREFACE, _FRAME_HEAD, _SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 9, 4
_NO_SETTINGS = bytes((0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0))


def cluster_address() -> str:
    """``RAY_ADDRESS`` as Ray takes it: HOST:PORT where something speaks gRPC, "auto", or `OWN` where it is not set.

    Raises:
        UsageError: Ray is not installed, or the address is one of a client. ModelError: no cluster answers there.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "--engine ray needs the package ray, which is not installed.", "Run: pip install 'lcbench[ray]'"
        )
    address = os.environ.get("RAY_ADDRESS", "") or OWN
    if "://" in address:
        raise UsageError(
            f"RAY_ADDRESS={address} is for clients, and records could not stream back through it.",
            "Give this command on a machine of the cluster, e.g. with `ray job submit` (docs/cluster.md).",
        )
    if address not in (OWN, "auto"):  # auto: Ray looks for it on this machine
        try:
            _knock(address)
        except (OSError, ValueError) as error:
            raise no_cluster(address, error) from None
    return address


def no_cluster(address: str, error: Exception) -> ModelError:
    """The user's error for a cluster that cannot be joined, or made."""
    lines = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()
    reason = lines[0].rstrip(".")
    if address == OWN:
        return ModelError(
            f"A Ray cluster could not be made here: {reason}.",
            "Give the command again, with RAY_ADDRESS=HOST:PORT for a cluster that is there, or without --engine ray.",
        )
    return ModelError(
        f"No Ray cluster answers at RAY_ADDRESS={address}: {reason}.",
        "Check RAY_ADDRESS, or start it: ray start --head. Without RAY_ADDRESS a run makes a cluster of its own. "
        "If it wants a token: RAY_AUTH_MODE=token",
    )


def _knock(address: str) -> None:
    """Raises OSError, ValueError: nothing listens at HOST:PORT, or something that is no gRPC server."""
    place = urlsplit(f"//{address}")
    if not place.hostname or not place.port:
        raise ValueError("it is not HOST:PORT, auto or local")
    with socket.create_connection((place.hostname, place.port), timeout=_KNOCK_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
            return
        try:
            connection.sendall(_PREFACE + _NO_SETTINGS)
            head = connection.makefile("rb").read(_FRAME_HEAD)
        except OSError:
            head = b""
        if len(head) < _FRAME_HEAD or head[3] != _SETTINGS:
            raise ValueError("what listens there is another program")
