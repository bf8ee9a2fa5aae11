"""The house plan, held by the import graph: rooms look downwards only, and light rooms stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lcbench

SOURCE = Path(lcbench.__file__).parent

# Room to the rooms it may import. A room may always import itself.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "data": {"config", "errors"},
    "tasks": {"data", "config", "errors"},
    "endpoint": {"data", "config", "errors"},
    "measure": {"errors"},
    "store": {"config", "errors"},
    "models": {"config", "errors"},
    "kv": {"models", "config", "errors"},
    "methods": {"kv", "models", "config", "errors"},
    "inspected": set(),
    "engine": {
        "methods", "kv", "models", "measure", "store", "tasks", "data", "inspected", "config", "errors",
    },
    "remote": {"engine", "methods", "models", "measure", "store", "tasks", "endpoint", "data", "config", "errors"},
    "server": {"engine", "methods", "models", "config", "errors"},
    "bench": {"engine", "methods", "kv", "models", "measure", "store", "config", "errors"},
    "scoring": {"store", "tasks", "endpoint", "data", "config", "errors"},
    "reporting": {"scoring", "store", "tasks", "data", "inspected", "config", "errors"},
    "api": {
        "reporting", "scoring", "remote", "engine", "methods", "models", "store", "config", "errors",
    },
    "cli": {
        "reporting", "scoring", "bench", "remote", "server", "engine", "methods", "kv", "models", "measure", "store",
        "tasks", "endpoint", "data", "inspected", "config", "errors",
    },
}  # fmt: skip
LIGHT = {
    "endpoint",
    "inspected",
    "cli",
    "config",
    "data",
    "tasks",
    "store",
    "scoring",
    "reporting",
    "errors",
    "measure",
}
HEAVY = {"torch", "transformers", "datasets", "numpy", "pandas", "jieba", "tokenizers", "huggingface_hub"}
MODULES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    part = path.relative_to(SOURCE).parts[0]
    return part.removesuffix(".py")


def imports(path: Path, *, top_level: bool) -> set[str]:
    """Dotted names of modules imported by a file; with ``top_level`` only what importing the file itself imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = _unguarded(tree.body) if top_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _unguarded(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements that run on import: inside if and try too, but not under TYPE_CHECKING or in functions."""
    found: list[ast.stmt] = []
    for node in body:
        found.append(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            found += _unguarded(node.body + node.orelse)
        elif isinstance(node, ast.Try):
            found += _unguarded(node.body + node.orelse + node.finalbody)
        elif isinstance(node, ast.ClassDef):
            found += _unguarded(node.body)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_rooms_import_downwards_only(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    assert room in ALLOWED, f"the room {room} is not in the house plan"
    used = {name.split(".")[1] for name in imports(path, top_level=False) if name.startswith("lcbench.")}
    used = {name for name in used if name in ALLOWED}
    assert used - {room} <= ALLOWED[room], f"{path.name} looks upwards"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_light_rooms_import_nothing_heavy_on_top(path: Path) -> None:
    if room_of(path) in LIGHT:
        assert not {n.split(".")[0] for n in imports(path, top_level=True)} & HEAVY


def test_the_record_schema_stands_alone() -> None:
    assert not {n for n in imports(SOURCE / "store" / "schema.py", top_level=False) if n.startswith("lcbench")}


KNOW_TRANSFORMERS = {SOURCE / "models" / "adapter.py", SOURCE / "models" / "quantized_layer.py"}


def test_only_the_adapter_and_the_quantized_layer_know_private_names_of_transformers() -> None:
    private = {"transformers.cache_utils", "transformers.masking_utils", "transformers.modeling_utils"}
    for path in MODULES:
        if path not in KNOW_TRANSFORMERS:
            found = {
                n for n in imports(path, top_level=False) if n.startswith(("transformers.cache", "transformers.m"))
            }
            assert not found & private, f"{path.name} imports {found & private}"


SHARED_BY_METHODS = ("base", "registry", "calibration", "extension", "rewriting", "surprisal", "passages", "probing")


def test_methods_do_not_know_each_other_or_the_tasks() -> None:
    for path in (SOURCE / "methods").glob("*/*.py"):
        used = {n for n in imports(path, top_level=False) if n.startswith("lcbench.")}
        families = {n for n in used if n.startswith("lcbench.methods.") and n.split(".")[2] not in SHARED_BY_METHODS}
        assert not families, f"{path.name} imports {families}"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom lcbench.cli import app\n"
        "result = CliRunner().invoke(app, ['--help'])\nassert result.exit_code == 0, result.output\n"
        f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_every_public_name_exists() -> None:
    for module in (lcbench, lcbench.errors if hasattr(lcbench, "errors") else __import__("lcbench.errors").errors):
        assert all(hasattr(module, name) for name in module.__all__)
