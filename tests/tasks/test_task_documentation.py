"""docs/tasks.md says what the registry says."""

from __future__ import annotations

from pathlib import Path

from lcbench.tasks.documentation import render, write
from lcbench.tasks.registry import all_groups, all_tasks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"


def test_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == render(), "run `make docs`"


def test_every_task_and_group_is_named(tmp_path: Path) -> None:
    write(tmp_path / "tasks.md")
    text = (tmp_path / "tasks.md").read_text("utf-8")
    for name in [*all_tasks(), *all_groups()]:
        assert f"| `{name}` |" in text
    assert "at a line break" in text
    assert text.count("after the first code line") == 4
