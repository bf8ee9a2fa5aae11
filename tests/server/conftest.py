"""A tiny model behind `lcbench serve`'s server, in a thread of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lcbench.methods.registry import resolve
from lcbench.models.info import LoadedModel
from lcbench.server.http import Handler, Server
from lcbench.server.service import Service
from tiny import loaded_tiny


@contextmanager
def running(service: Service, key: str = "", handler: type[Handler] = Handler) -> Iterator[Server]:
    """The server on a free port of the loopback."""
    server = Server(service, ("127.0.0.1", 0), key, handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    return loaded_tiny(window=2048, seed=1)


@pytest.fixture
def serve(loaded: LoadedModel) -> Iterator[Callable[..., Server]]:
    """Start a server over the tiny model: ``serve(method="full", key="", handler=Handler)``."""
    open_: list[Any] = []

    def start(method: str = "full", key: str = "", handler: type[Handler] = Handler) -> Server:
        context = running(Service(loaded, resolve(method), "tiny"), key, handler)
        open_.append(context)
        return context.__enter__()

    yield start
    for context in open_:
        context.__exit__(None, None, None)
