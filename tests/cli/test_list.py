"""`lcbench list`: tables for people, JSON for programs, nothing written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from lcbench.cli.list_ import list_
from lcbench.config.options import Item, build, param
from lcbench.errors import UnknownName
from lcbench.methods import registry as methods
from lcbench.methods.base import Method, Traits
from lcbench.methods.taxonomy import CATEGORIES
from lcbench.tasks.registry import all_groups, all_tasks

app = typer.Typer()
app.command("list")(list_)


@app.callback()
def _root() -> None:
    """Several subcommands, as in the real program."""


def run(*arguments: str, columns: int = 200) -> Result:
    return CliRunner().invoke(app, ["list", *arguments], env={"COLUMNS": str(columns), "TERM": "dumb"})


def entries(*arguments: str) -> list[dict[str, Any]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    parsed = json.loads(result.stdout)
    assert isinstance(parsed, list)
    return parsed


def test_methods_say_that_architectures_are_models() -> None:
    printed = " ".join(run("methods").stdout.split())
    assert "are no methods but models, run with --model MODEL" in printed
    assert all(f"lcbench convert {kind}" in printed for kind in ("rwkv5", "mha2mla"))


def test_methods_json_lists_every_method_with_buildable_defaults() -> None:
    listed = entries("methods")
    classes = methods.all_methods()
    assert [entry["name"] for entry in listed] == list(classes)
    for entry in listed:
        assert entry["family"] == classes[entry["name"]].traits.family
        assert set(entry["traits"]) >= {"prefill", "memory", "stackable"}
        item = Item(entry["name"], tuple((p["name"], p["default"]) for p in entry["parameters"]))
        assert build(classes[entry["name"]], item, "method") == classes[entry["name"]]()


def test_methods_are_grouped_by_category_at_80_columns() -> None:
    lines = run("methods", columns=80).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    listing = lines[: next(i for i, line in enumerate(lines) if line.startswith("Papers are"))]
    rows: dict[str, list[str]] = {}
    for line in listing:
        title = next((family for family in CATEGORIES if line.rstrip().endswith(f"[{family}]")), None)
        if title is not None:
            assert line.startswith(CATEGORIES[title])
            group = rows.setdefault(title, [])
        elif line[:1].strip() and not line.startswith("method "):
            group.append(line.split()[0])
    for family in CATEGORIES:
        wanted = [name for name, cls in methods.all_methods().items() if cls.traits.family == family]
        assert rows.get(family, []) == wanted
    headkv = next(line for line in listing if line.startswith("headkv "))
    assert headkv.split()[1:3] == ["2410.19258", "calibration"]
    assert "calibration" not in next(line for line in listing if line.startswith("snapkv "))
    text = " ".join(" ".join(line[46:].split()) for line in listing)
    assert "First: lcbench calibrate headkv." in text


def test_methods_json_says_category_and_needs() -> None:
    listed = {entry["name"]: entry for entry in entries("methods")}
    assert (listed["snapkv"]["category"], listed["snapkv"]["needs"]) == ("Token eviction", "none")
    assert (listed["aqua-kv"]["needs"], listed["aqua-kv"]["traits"]["calibrate"]) == ("calibration", "aqua-kv")
    assert listed["kivi"]["paper"] == "arXiv:2402.02750"


@dataclass(frozen=True)
class Hostile(Method):
    """Says [bold]nothing[/bold] of use. And more."""

    width: int = param(4, "tokens [red]kept[/red]", minimum=1, maximum=9)


def test_methods_table_shows_parameters_and_escapes_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    methods.all_methods()
    monkeypatch.setattr(methods, "_registered", dict(methods._registered))
    methods.method("zz-hostile", paper="arXiv:0000.00000", traits=Traits(family="evict", memory="simulated"))(Hostile)
    out = run("methods").stdout
    assert "full" in out
    assert "Says [bold]nothing[/bold] of use." in out
    assert "And more" not in out
    assert "tokens [red]kept[/red]" in out
    assert "Simulated memory." in out
    entry = entries("methods")[-1]
    assert entry["parameters"] == [
        {
            "name": "width",
            "type": "int",
            "default": "4",
            "doc": "tokens [red]kept[/red]",
            "minimum": 1,
            "maximum": 9,
            "choices": None,
        }
    ]


def test_tasks_json_and_table() -> None:
    listed = {entry["name"]: entry for entry in entries("tasks")}
    assert list(listed) == list(all_tasks())
    assert listed["passkey"]["downloaded"] is None
    assert listed["qasper"]["downloaded"] is False
    assert (listed["lcc"]["rows"], listed["lcc_e"]["rows"], listed["lcc"]["metric"]) == (500, 300, "code_sim")
    assert {p["name"]: p["choices"] for p in listed["passkey"]["parameters"]}["haystack"] == ["python", "paulgraham"]
    out = run("tasks").stdout
    for name in [*all_tasks(), *all_groups()]:
        assert name in out
    assert "not needed" in out
    assert "lcbench download" in out
    assert "words of background" in out


def test_listing_writes_nothing(own_home: Path, tmp_path: Path) -> None:
    for what in ("methods", "tasks", "models"):
        assert run(what).exit_code == 0
    assert not own_home.exists()
    assert not list((tmp_path / "cwd").iterdir())


def test_models(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [entry["name"] for entry in entries("models") if entry["default"]] == ["demo"]
    good, torn = own_home / "models" / "gguf-0123456789abcdef", own_home / "models" / "gguf-fedcba9876543210"
    for folder, marker in ((good, '{"gguf_name": "small.gguf"}'), (torn, '{"gguf_na')):
        folder.mkdir(parents=True)
        (folder / "lcbench.json").write_text(marker, encoding="utf-8")
    monkeypatch.setenv("LCBENCH_MODEL", "org/[b]name[/b]")
    listed = {entry["name"]: entry for entry in entries("models")}
    assert listed[str(good)]["state"] == "from small.gguf"
    assert str(torn) not in listed
    assert listed["org/[b]name[/b]"]["default"] is True
    assert listed["demo"]["default"] is False
    out = run("models").stdout
    assert "org/[b]name[/b]" in out
    assert "GGUF file" in out


def test_something_else_to_list() -> None:
    result = run("metods")
    assert isinstance(result.exception, UnknownName)
    assert "'metods'" in result.exception.message
    assert "methods" in result.exception.next_step
    assert run().exit_code == 2
