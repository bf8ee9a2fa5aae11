"""docs/methods.md is what the registry says; docs/add-a-method.md does what it says, word by word."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from lcbench.config.budget import Budget
from lcbench.config.options import apply_settings, param, parse_item, split_items
from lcbench.methods import documentation, registry
from lcbench.methods.base import Method, Traits
from lcbench.methods.registry import all_methods, method, resolve

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    all_methods()
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    yield
    registry._import_all.cache_clear()


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == documentation.render(), "run `make docs`"


def test_the_page_has_every_method_and_parameter() -> None:
    page = documentation.render()
    for name, cls in all_methods().items():
        if cls.__module__.startswith("lcbench."):
            assert f"\n## {name}\n" in page
            assert cls.proof, f"{name} does not say what was proven"
            assert cls.proof in page
            for field in resolve(name).parameters:
                assert f"| `{field}` |" in page


def test_a_section_says_what_a_parameter_accepts() -> None:
    @method("sample", paper="arXiv:1234.56789", traits=Traits(family="merge", memory="simulated", training="a | b"))
    @dataclass(frozen=True)
    class Sample(Method):
        """Halves ``x``."""

        share: float = param(0.5, "a share", minimum=0, maximum=1)
        mode: Literal["a", "b"] = param("a", "this | that")
        limit: int | None = param(None, "at most", minimum=1)
        sizes: tuple[int, ...] = param((1, 2), "sizes")
        keep: Budget = param(Budget(tokens=5), "kept")

    section = documentation.section("sample", Sample)
    assert "Halves `x`." in section
    assert "| `share` | `0.5` | number, 0 or more, 1 or less | a share |" in section
    assert "| `mode` | `a` | a, b | this \\| that |" in section
    assert "| `limit` | `none` | whole number, 1 or more, or none | at most |" in section
    assert "| `sizes` | `1/2` | whole number; several joined by / | sizes |" in section
    assert "| `keep` | `5` | ratio or number | kept |" in section
    assert "Proven" not in section
    table = documentation.table({"sample": Sample})
    paper = "[arXiv:1234.56789](https://arxiv.org/abs/1234.56789)"
    assert f"| [`sample`](#sample) | Cache merging | {paper} | shared | simulated | a \\| b |" in table
    assert "`sample`" not in documentation.render()  # not ours


def test_writes_the_page(tmp_path: Path) -> None:
    documentation.write(tmp_path / "methods.md")
    assert (tmp_path / "methods.md").read_text(encoding="utf-8") == documentation.render()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / "add-a-method.md").read_text(encoding="utf-8"), re.DOTALL)


def test_add_a_method_literally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's module, its entry point, its commands' method names and its test, as they stand there."""
    module, test = _blocks("python")
    (project,) = _blocks("toml")
    (commands,) = _blocks("bash")
    assert len([line for line in module.splitlines() if line.strip()]) <= 22

    (tmp_path / "my_methods.py").write_text(module)
    group, point = re.findall(r'\[project\.entry-points\."(.*?)"\]\n(\S+ = ".*?")', project)[0]
    info = tmp_path / "my_methods-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{point}\n".replace('"', ""))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_methods", raising=False)
    registry._import_all.cache_clear()

    specs = split_items(re.findall(r"--method (\S+)", commands)[0])
    assert [resolve(spec).id for spec in specs] == ["full", "quiet-keys", "quiet-keys@budget=512,recent=32"]
    assert apply_settings([parse_item("quiet-keys", "method")], {"recent": "3"}, {"quiet-keys": {"recent"}})

    names: dict[str, object] = {}
    exec(compile(test, "test_quiet_keys.py", "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_") and callable(value)]
    assert len(tests) == 1
    tests[0]()
