"""``lcbench init`` writes an example, never over what is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lcbench.config.schema import FILE_NAME, render
from lcbench.config.study import make_study


def test_it_writes_an_example_and_the_schema_beside_it(cli: Callable[..., Any]) -> None:
    done = cli("init")
    assert done.code == 0, done.err
    assert "Next:  lcbench run --config lcbench.yaml" in done.out
    study = make_study({}, Path("lcbench.yaml"))
    assert [run.model.name for run in study.runs] == ["demo"]
    assert Path(FILE_NAME).read_text(encoding="utf-8") == render()
    second = cli("init", "other.yaml")  # the schema is there already and the same
    assert second.code == 0, second.err


def test_it_overwrites_only_by_force(cli: Callable[..., Any]) -> None:
    Path("mine.yaml").write_text("model: mine\n")
    refused = cli("init", "mine.yaml")
    assert refused.code == 2
    assert "--force" in refused.err
    assert Path("mine.yaml").read_text() == "model: mine\n"
    assert not Path(FILE_NAME).exists()
    assert cli("init", "mine.yaml", "--force").code == 0
    assert "passkey" in Path("mine.yaml").read_text()
    Path(FILE_NAME).write_text("{}")
    assert cli("init", "another.yaml").code == 2
    assert not Path("another.yaml").exists()


def test_the_schema_alone(cli: Callable[..., Any]) -> None:
    assert cli("init", "--schema", "s.json").code == 0
    assert Path("s.json").read_text(encoding="utf-8") == render()
    assert cli("init", "--schema", "s.json").code == 0  # it says the same
    Path("s.json").write_text("{}")
    assert cli("init", "--schema", "s.json").code == 2
    assert cli("init", "a.yaml", "--schema", "t.json").code == 2


def test_places_where_nothing_can_be_written_are_told(cli: Callable[..., Any]) -> None:
    Path("folder").mkdir()
    for target in ("folder", "none/study.yaml"):
        done = cli("init", target)
        assert done.code == 2
        assert "folder" in done.err
        assert "Traceback" not in done.err
