"""Tensors made before they are needed are the ones that would have been made."""

from __future__ import annotations

import threading
from array import array
from pathlib import Path

import pytest
import torch
from made_up import go

from lcbench.engine.ahead import Ahead
from lcbench.engine.memory import Limits
from lcbench.methods.full import Full
from tiny import loaded_tiny


def test_asked_for_or_not_the_tensor_is_the_same() -> None:
    ahead = Ahead(torch.device("cpu"))
    ahead.ask("a", array("q", [1, 2, 3]))
    ahead.ask("a", array("q", [9, 9]))  # once is enough
    assert ahead.take("a", ()).tolist() == [[1, 2, 3]]
    assert ahead.take("a", [4]).tolist() == [[4]]  # taken away: made anew
    assert ahead.take("b", [5, 6]).tolist() == [[5, 6]]


def test_the_next_group_is_prepared_while_this_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    threads: set[str] = set()
    ask, made = Ahead.ask, Ahead._made

    def noted(self: Ahead, name: object, ids: object) -> None:
        asked.append(name)
        ask(self, name, ids)  # type: ignore[arg-type]

    def where(self: Ahead, ids: object) -> torch.Tensor:
        threads.add(threading.current_thread().name)
        return made(self, ids)  # type: ignore[arg-type]

    monkeypatch.setattr(Ahead, "ask", noted)
    monkeypatch.setattr(Ahead, "_made", where)
    go(loaded_tiny(), tmp_path / "run", [Full()], limits=Limits(rows=1, tokens=1, nbytes=2**30))
    assert len(asked) == 2 * 4 - 1  # the first group when it begins; each later one a group ahead, and as it begins
    assert all(name.startswith("lcbench-ahead") for name in threads)
