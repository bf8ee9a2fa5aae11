"""Least values of numbers on the command line, refused with a next step as everything else is."""

from __future__ import annotations

from collections.abc import Callable

import typer

from lcbench.errors import BadValue


def at_least(least: int) -> Callable[[typer.CallbackParam, int | None], int | None]:
    """A Typer callback that raises BadValue for a number below ``least``; an option that was not given passes."""

    def check(param: typer.CallbackParam, value: int | None) -> int | None:
        if value is not None and value < least:
            name = max(param.opts, key=len)
            raise BadValue(f"{name} {value} is below the least value {least}.", f"Use {name} {least} or more.")
        return value

    return check
