"""``docs/cli.md``, written from the Typer app: ``python -m lcbench.cli.documentation docs/cli.md``."""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo, OptionInfo

from lcbench.cli import app

_HEAD = """\
# Commands

*This page is generated from the command line itself (`make docs`).*

`lcbench COMMAND --help` shows the same in the terminal. Exit codes of every command: 0 done; 1 finished, but some
samples failed; 2 wrong usage or input, with one sentence and the next step; 130 stopped by Ctrl-C.
"""

_NOUNS = {int: "number", float: "number", str: "text", Path: "path"}


def render() -> str:
    """The page: a list of the commands, then each with its arguments and options. Markdown."""
    commands = {str(c.name): c.callback for c in app.registered_commands if c.callback is not None}
    listed = [f"| [`{name}`](#lcbench-{name}) | {_cell(_first(function))} |" for name, function in commands.items()]
    table = ["| command | |", "|---|---|", *listed, ""]
    return "\n".join([_HEAD, *table, *(section(name, function) for name, function in commands.items())]).rstrip() + "\n"


def section(name: str, function: Callable[..., Any]) -> str:
    """One command: its description, its example, a table of arguments and one for each panel of options."""
    text, *examples = re.split(r"Examples?:", inspect.cleandoc(function.__doc__ or ""))
    lines = [f"## lcbench {name}", "", _cell(text), ""]
    if examples:
        lines += ["```", *(line.strip(" .") for line in re.split(r"[·\n]", examples[0].strip())), "```", ""]
    hints = typing.get_type_hints(function)
    panels: dict[str, list[str]] = {}
    for parameter in inspect.signature(function).parameters.values():
        info = parameter.default
        if not isinstance(info, ArgumentInfo | OptionInfo) or info.hidden:
            continue
        if isinstance(info, OptionInfo):
            panel, name_ = info.rich_help_panel or "Options", _option(parameter.name, info, hints)
        else:
            panel, name_ = "Arguments", info.metavar or parameter.name.upper()
        meaning = _cell(info.help or "") + _default(info)
        panels.setdefault(panel, []).append(f"| {_code(name_)} | {meaning} |")
    for panel, rows in panels.items():
        lines += [f"| {panel.lower() if panel in ('Arguments', 'Options') else panel} | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _option(name: str, info: OptionInfo, hints: dict[str, Any]) -> str:
    """``--limit, -n NUMBER``: the names of an option and what it takes."""
    names = list(info.param_decls or [f"--{name.replace('_', '-')}"])
    names = [n for n in names if n.startswith("-")] or [f"--{name.replace('_', '-')}"]
    kind, many = _kind(hints[name])
    if kind is bool:
        return ", ".join(names)
    takes = info.metavar or _NOUNS.get(kind, "value").upper()
    return f"{', '.join(names)} {takes}{' …' if many else ''}"


def _kind(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether an option may be given several times."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], True
    return hint, False


def _default(info: OptionInfo | ArgumentInfo) -> str:
    """The default, where there is one and the help does not tell it itself."""
    value = info.default
    if value is None or value is ... or value is False or value == "" or info.show_default is False:
        return ""
    return "" if re.search(r"[Dd]efault", info.help or "") else f" Default: `{value}`."


def _first(function: Callable[..., Any]) -> str:
    """The first sentence of a description."""
    return re.split(r"(?<=\.)\s", inspect.cleandoc(function.__doc__ or ""), maxsplit=1)[0]


def _code(text: str) -> str:
    """Code for a table cell; renderers disagree on bars between backticks."""
    return f"<code>{text.replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def _cell(text: str) -> str:
    """Text on one line, in which nothing is markup but what stands between backticks."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if i % 2 else part.replace("*", "\\*").replace("<", "&lt;") for i, part in enumerate(parts))


def write(path: Path) -> None:
    """Write the page to ``path``."""
    path.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/cli.md"))
