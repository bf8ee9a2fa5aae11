"""``lcbench serve``: a model with a method behind an OpenAI-compatible address."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Any

import typer

from lcbench.config.spec import make_spec
from lcbench.errors import BadValue, UsageError

KEY = "LCBENCH_SERVE_KEY"


def serve(
    model: str | None = typer.Option(
        None, "--model", "-m", help="Demo model ('demo'), hub id, local folder or GGUF file. Default as `lcbench run`."
    ),
    method: str = typer.Option("full", "--method", help="One method: kivi@bits=2, snapkv@budget=0.25."),
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen at; others than loopback want a key."),
    port: int = typer.Option(8000, "--port", help="0 takes a free one.", min=0, max=65535),
    name: str | None = typer.Option(None, "--name", help="What clients call the model. Default: its own last name."),
    dtype: str | None = typer.Option(None, "--dtype", help="auto | float32 | float16 | bfloat16."),
    device: str | None = typer.Option(None, "--device", help="auto | cpu | cuda:0 | auto-map."),
    attn: str | None = typer.Option(None, "--attn", help="auto | sdpa | flash_attention_2."),
    load_in: str | None = typer.Option(None, "--load-in", help="8bit | 4bit weights."),
    revision: str | None = typer.Option(None, "--revision", help="Hub branch, tag or commit."),
    trust_remote_code: bool = typer.Option(
        False, "--trust-remote-code", help="Run Python code from the model's repository."
    ),
    chat: str = typer.Option("auto", "--chat", help="Chat format of /chat/completions: auto | official | none | FILE."),
) -> None:
    """Serve a model, with a method applied, at /v1/completions and /v1/chat/completions; greedy answers only.

    Example: lcbench serve --model demo --method kivi@bits=2
    """
    key = os.environ.get(KEY, "").strip()
    if key and not re.fullmatch(r"[\x21-\x7e]+", key):
        raise BadValue(f"{KEY} holds characters that no key has.", f"Set {KEY} again, or unset it.")
    if not key and not _is_loopback(host):
        raise UsageError(
            f"--host {host} lets other machines ask this model, and no key is set.",
            f"Set {KEY} in the environment, or leave --host out.",
        )
    asked: dict[str, Any] = {"dtype": dtype, "device": device, "attn": attn, "load_in": load_in, "revision": revision}
    asked |= {"model": model, "methods": [method], "chat": chat, "trust_remote_code": trust_remote_code}
    spec = make_spec(asked)

    from lcbench.config.home import home
    from lcbench.engine.session import resolve_methods
    from lcbench.methods.base import require
    from lcbench.models.load import describe, load
    from lcbench.server.http import Server
    from lcbench.server.service import Service, refuse_unservable

    methods = resolve_methods(spec)
    if len(methods) != 1:
        raise UsageError(f"--method {method} names several methods, and a server applies one.", "Give one of them.")
    refuse_unservable(methods[0])
    turned_by = [methods[0].id] if methods[0].turns else []
    info, _ = describe(spec.model, home(), turned_by=turned_by)
    require(methods[0], info.shape(), info.name)
    bound = methods[0].bind(info, home())
    bound.check(info.shape())
    loaded = load(spec.model, home(), say=lambda text: typer.echo(text, err=True))
    called = name or spec.model.name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    service = Service(loaded, bound, called, chat=chat)
    try:
        server = Server(service, (host, port), key)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "no such address"
        raise UsageError(f"Cannot listen at {host}:{port}: {reason}.", "Give another --port or --host.") from None
    typer.echo(f"{called} with {bound.id} at {server.url}" + ("; clients send a key" if key else ""))
    typer.echo(f"Next:  lcbench run --model openai:{called} --base-url {server.url}   (Ctrl-C stops the server)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("Stopped.")
    finally:
        server.server_close()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
