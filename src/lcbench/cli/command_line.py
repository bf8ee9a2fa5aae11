"""A command line that Typer cannot read, told as everything else is: one sentence and the next step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from lcbench.errors import BadValue, LcbenchError, UnknownName, UsageError

# The base of what Typer raises over a command line: click's UsageError, or that of the copy that newer Typers carry.
NOT_READ: type[Exception] = typer.BadParameter.__mro__[1]


def explained(error: Exception, words: Sequence[str], app: typer.Typer) -> LcbenchError:
    """The user's error for a command line.

    Args:
        error: a `NOT_READ`. words: of the command line, without the name of the program.
    """
    found: Any = error
    examples = {str(command.name): _example(command.callback) for command in app.registered_commands}
    name = words[0] if words and words[0] in examples else ""
    command = f"lcbench {name}".rstrip()
    options = [] if found.ctx is None else [opt for param in found.ctx.command.params for opt in param.opts]
    if hasattr(found, "possibilities") and hasattr(found, "option_name"):
        long = [opt for opt in options if opt.startswith("--")]
        return UnknownName("option", found.option_name, long, where=f" of {command}", listing=f"{command} -h")
    if not name and words and not words[0].startswith("-"):
        return UnknownName("command", words[0], examples, listing="lcbench -h")
    text = str(found.format_message()).strip().rstrip(".")
    step = f"`{command} -h` shows what it takes."
    if examples.get(name):
        step = f"For example: {examples[name]}  (`{command} -h` shows all)"
    param = getattr(found, "param", None)
    typed = None if param is None else _typed(words, param.opts)
    if typed is not None:
        reason = str(found.message).strip().rstrip(".")
        return BadValue(f"{typed} cannot be taken: {reason[:1].lower()}{reason[1:]}.", step)
    return UsageError(f"{command}: {text[:1].lower()}{text[1:]}.", step)


def _typed(words: Sequence[str], names: Sequence[str]) -> str | None:
    """An option with its value as it was typed, last where there are several."""
    for i in range(len(words) - 1, -1, -1):
        name, equals, _ = words[i].partition("=")
        if name in names:
            return words[i] if equals else " ".join(words[i : i + 2])
    return None


def _example(callback: Any) -> str:
    """The example in the help of a command, the first of several."""
    lines = (line.strip() for line in (getattr(callback, "__doc__", None) or "").splitlines())
    line = next((line for line in lines if line.startswith("Example")), "")
    return line.partition(": ")[2].partition(" · ")[0].strip()
