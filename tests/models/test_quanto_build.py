"""quanto's extension: what its first use waits for is said, and a lock that nobody holds is named."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lcbench.errors import ModelError
from lcbench.methods.registry import resolve
from lcbench.models import quanto_build
from lcbench.models.quanto_build import announcement, refuse_stale_lock


def build(tmp_path: Path, *files: str, age: float = 0.0) -> Path:
    folder = tmp_path / "cpp" / "build"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("")
        os.utime(folder / name, (time.time() - age,) * 2)
    return tmp_path


def test_the_first_use_is_announced_and_later_ones_are_not(tmp_path: Path) -> None:
    assert "compiles a C++ extension at its first use" in announcement(build(tmp_path / "new"))
    assert announcement(build(tmp_path / "built", "quanto_cpp.so")) == ""
    assert "compiled by another process" in announcement(build(tmp_path / "locked", "quanto_cpp.so", "lock"))


@pytest.mark.parametrize(
    ("age", "compiling", "refused"),
    [
        (1, False, False),  # it may not have reached its compiler yet
        (300, True, False),
        (300, None, False),
        (300, False, True),
        (7200, True, True),
        (7200, None, True),
    ],
)
def test_a_lock_is_stale_when_nobody_compiles_or_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, compiling: bool | None, refused: bool
) -> None:
    monkeypatch.setattr(quanto_build, "_compiling", lambda: compiling)
    where = build(tmp_path, "lock", "quanto_cpp.so", age=age)
    if not refused:
        refuse_stale_lock(where)
        return
    with pytest.raises(ModelError, match="wait for it for ever") as caught:
        refuse_stale_lock(where)
    assert caught.value.next_step == f"Delete {where / 'cpp' / 'build' / 'lock'} and run again."


def test_the_method_refuses_and_announces_with_quanto_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        quanto_build, "folder", lambda: build(tmp_path / "x") if not tmp_path.joinpath("x").exists() else tmp_path / "x"
    )
    for text, said in (
        ("hf-quantized", True),
        ("snapkv+hf-quantized", True),
        ("hf-quantized@backend=hqq", False),
        ("full", False),
    ):
        method = resolve(text)
        assert ("compiles a C++ extension" in method.announcement()) == said
