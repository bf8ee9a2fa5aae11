"""``lcbench list``: which methods, tasks and models there are."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lcbench.config.home import home as lcbench_home
from lcbench.config.options import format_value
from lcbench.errors import DataError, DataMissing, UnknownName

_NAME_A_MODEL = (
    "--model also takes a hub id (org/name), a local folder with config.json, or a GGUF file; "
    "LCBENCH_MODEL sets the default."
)
# In a summary: where it is from. The paper has a column of its own.
_WHERE_FROM = re.compile(r" \([^()]*(?:arXiv:|rules as in|\.py)[^()]*\)")
_LEGEND = (
    "Papers are numbers of arXiv. Own prefill: the method reads the prompt in its own way and shares no prefill with "
    "others. Simulated memory: what it drops is not freed. Needs: nothing, a calibration that `lcbench calibrate` "
    "makes, or what somebody trained."
)
_ARCHITECTURES = (
    "Architectures (Mamba, RWKV-5, MHA2MLA and others: lcbench list models) are no methods but models, run with "
    "--model MODEL --method full; lcbench convert rwkv5 and lcbench convert mha2mla make models of those two."
)


def list_(
    what: str = typer.Argument(..., metavar="methods|tasks|models", help="What to list."),
    as_json: bool = typer.Option(False, "--json", help="One JSON list on stdout."),
) -> None:
    """List the methods, tasks or models there are."""
    kinds = {"methods": (_methods, _methods_table), "tasks": (_tasks, _tasks_table), "models": (_models, _models_table)}
    if what not in kinds:
        raise UnknownName("list", what, kinds)
    collect, tables = kinds[what]
    entries = collect()
    if as_json:
        typer.echo(json.dumps(entries, ensure_ascii=False, indent=2))
        return
    console = Console(highlight=False)
    for number, part in enumerate(tables(entries)):
        if number:
            console.print()
        console.print(Text(part) if isinstance(part, str) else part)


def _methods() -> list[dict[str, Any]]:
    from lcbench.methods.registry import all_methods
    from lcbench.methods.taxonomy import CATEGORIES

    return [
        {
            "name": name,
            "family": cls.traits.family,
            "category": CATEGORIES[cls.traits.family],
            "paper": cls.paper,
            "needs": cls.traits.needs,
            "summary": _first_sentence(cls.__doc__),
            "traits": {f.name: getattr(cls.traits, f.name) for f in dataclasses.fields(cls.traits)},
            "parameters": _parameters(cls),
        }
        for name, cls in all_methods().items()
    ]


def _methods_table(entries: list[dict[str, Any]]) -> list[Any]:
    from lcbench.methods.taxonomy import CATEGORIES

    grouped: list[Any] = []
    for family, category in CATEGORIES.items():
        members = [entry for entry in entries if entry["family"] == family]
        if members:
            grouped.append(_category_table(f"{category} [{family}]", members, header=not grouped))
    return [
        *grouped,
        _LEGEND,
        _ARCHITECTURES,
        *_parameter_table(entries, "method", "parameter"),
        "Set one with --method name@parameter=value; two together: snapkv@budget=0.25+kivi@bits=2.",
    ]


def _category_table(title: str, members: list[dict[str, Any]], *, header: bool) -> Table:
    """One category of methods; all have columns of the same width, and only the first names them."""
    table = _table("method", "paper", "needs", "what it does")
    table.title, table.title_justify, table.title_style, table.show_header = Text(title), "left", "bold", header
    for column, width in zip(table.columns, (21, 11, 11), strict=False):
        column.min_width = column.max_width = width
    for entry in members:
        needs = "" if entry["needs"] == "none" else entry["needs"]
        table.add_row(
            *map(Text, (entry["name"], entry["paper"].removeprefix("arXiv:"), needs)),
            Text.assemble(_WHERE_FROM.sub("", entry["summary"]), (_notes(entry["traits"]), "dim")),
        )
    return table


def _notes(traits: dict[str, Any]) -> str:
    """What is out of the ordinary about a method, after its summary."""
    notes = [f"First: lcbench calibrate {name}" for name in traits["calibrate"].split(", ") if name]
    notes += [f"Needs {traits['training']}"] if traits["training"] else []
    notes += ["Own prefill"] if traits["prefill"] == "own" else []
    notes += ["Simulated memory"] if traits["memory"] == "simulated" else []
    return "".join(f" {note}." for note in notes)


def _tasks() -> list[dict[str, Any]]:
    from lcbench.tasks.registry import all_tasks

    where = lcbench_home()
    entries = []
    for name, cls in all_tasks().items():
        downloaded, note = _data_of(cls, where)
        entries.append(
            {
                "name": name,
                "benchmark": cls.benchmark,
                "category": cls.category,
                "language": cls.language,
                "metric": cls.metric,
                "rows": cls.rows or None,
                "version": cls.version,
                "downloaded": downloaded,
                "note": note,
                "parameters": _parameters(cls),
            }
        )
    return entries


def _tasks_table(entries: list[dict[str, Any]]) -> list[Any]:
    from lcbench.tasks.registry import all_groups

    table = _table("task", "benchmark", "category", "metric", "rows", "downloaded")
    for entry in entries:
        state = "not needed" if entry["downloaded"] is None else "yes" if entry["downloaded"] else "no"
        table.add_row(
            *(Text(entry[key]) for key in ("name", "benchmark", "category", "metric")),
            str(entry["rows"] or ""),
            Text(f"{state}: {entry['note']}" if entry["note"] else state),
        )
    groups = _table("group", "tasks", "what it is")
    for group in all_groups().values():
        groups.add_row(Text(group.name), str(len(group.members)), Text(group.doc))
    missing = any(entry["downloaded"] is False for entry in entries)
    hints = ["Set an option with --task name@option=value."]
    hints += ["Fetch what is missing with: lcbench download NAME"] if missing else []
    return [table, groups, *_parameter_table(entries, "task", "option"), *hints]


def _data_of(cls: Any, where: Path) -> tuple[bool | None, str]:
    """Whether a task's data is there (None: it needs none), and a note."""
    if not cls.datasets:
        return None, ""
    try:
        return True, cls().check_data(where)
    except DataMissing:
        return False, ""
    except DataError as error:
        return False, error.message


def _models() -> list[dict[str, Any]]:
    from lcbench.config.spec import default_model
    from lcbench.models.demo import find_demo_file
    from lcbench.models.source import cached_hub_models

    chosen = default_model()
    found = [("demo", "demo", "installed" if find_demo_file() else "not installed: pip install 'lcbench[demo]'")]
    found += _converted(lcbench_home() / "models")
    found += [(name, "hub", "in the hub cache") for name in cached_hub_models()]
    if chosen not in {name for name, _, _ in found}:
        found.append((chosen, "environment", "from LCBENCH_MODEL"))
    return [
        {"name": name, "source": source, "state": state, "default": name == chosen} for name, source, state in found
    ]


def _models_table(entries: list[dict[str, Any]]) -> list[Any]:
    table = _table("model", "source", "state", "default")
    for entry in entries:
        table.add_row(*(Text(entry[key]) for key in ("name", "source", "state")), "default" if entry["default"] else "")
    from lcbench.models.architectures import architectures
    from lcbench.models.families import titles

    random = f"`lcbench bench --random-weights` makes, without a checkpoint: {', '.join(architectures())}."
    own = (
        f"Run on the cache they bring along, with --method full: {', '.join(titles())}. All others must have "
        "attention layers only."
    )
    return [table, _NAME_A_MODEL, own, random]


def _converted(folder: Path) -> list[tuple[str, str, str]]:
    """GGUF files that were converted before. Unfinished conversions have no marker."""
    from lcbench.models.gguf import MARKER

    found = []
    for marker in sorted(folder.glob(f"*/{MARKER}")):
        try:
            origin = json.loads(marker.read_text(encoding="utf-8"))["gguf_name"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found.append((str(marker.parent), "converted", f"from {origin}"))
    return found


def _parameters(cls: Any) -> list[dict[str, Any]]:
    hints = typing.get_type_hints(cls)
    parameters = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        choices = field.metadata.get("choices") or (
            typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None
        )
        parameters.append(
            {
                "name": field.name,
                "type": hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint),
                "default": format_value(field.default),
                "doc": field.metadata.get("doc", ""),
                "minimum": field.metadata.get("minimum"),
                "maximum": field.metadata.get("maximum"),
                "choices": list(choices) if choices else None,
            }
        )
    return parameters


def _parameter_table(entries: list[dict[str, Any]], owner: str, word: str) -> list[Table]:
    table = _table(owner, word, "default", "meaning")
    for entry in entries:
        for number, parameter in enumerate(entry["parameters"]):
            cells = [parameter[key] for key in ("name", "default", "doc")]
            table.add_row(Text(entry["name"] if number == 0 else ""), *map(Text, cells))
    return [table] if table.row_count else []


def _first_sentence(doc: str | None) -> str:
    text = " ".join((doc or "").split())
    end = text.find(". ")
    return text if end < 0 else text[: end + 1]


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, no_wrap=number == 0, overflow="fold")
    return table
