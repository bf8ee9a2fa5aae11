"""Budgets of one method rank a prompt's tokens by the same scores, which are computed once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from made_up import go
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.engine.generate import prefill
from lcbench.kv import scores
from lcbench.kv.record import LayerRecord
from lcbench.methods.base import Scorer, Traits
from lcbench.methods.registry import resolve
from tiny import loaded_tiny


@dataclass(frozen=True)
class Counted(Scorer):
    """Scores by key norm, and counts how often."""

    name: ClassVar[str] = "counted"
    paper: ClassVar[str] = ""
    traits: ClassVar[Traits] = Traits(family="evict")
    calls: ClassVar[list[int]] = []

    sign: int = param(1, "which end counts", minimum=-1)

    def score(self, record: LayerRecord) -> Tensor:
        Counted.calls.append(record.index)
        return self.sign * record.key.float().norm(dim=-1)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.set_num_threads(1)
    Counted.calls.clear()


def test_three_budgets_cost_one_scoring(tmp_path: Path) -> None:
    budgets = [Counted(Budget(ratio=r)) for r in (0.25, 0.5, 0.75)]
    _, run = go(loaded_tiny(), tmp_path / "three", list(budgets))
    assert sorted(Counted.calls) == sorted(list(range(4)) * 4)  # layers x prompts, once for all three
    for budget in budgets:
        _, alone = go(loaded_tiny(), tmp_path / budget.id, [budget])
        path = run.predictions_path(budget.id, "words")
        assert path.read_bytes() == alone.predictions_path(budget.id, "words").read_bytes()


def test_other_parameters_are_other_scores() -> None:
    record = prefill(loaded_tiny(), range(60))
    kept = [m.compress(record).layers[0].positions() for m in (Counted(), Counted(sign=-1))]
    assert len(Counted.calls) == 8
    assert not torch.equal(*kept)
    Counted().compress(prefill(loaded_tiny(), range(60)))
    assert len(Counted.calls) == 12  # another prompt's scores are its own


def test_methods_that_look_from_the_same_window_share_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    weight_sums = scores.weight_sums

    def counted(query: Tensor, *args: object) -> Tensor:
        computed.append(query.shape[1])
        return weight_sums(query, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(scores, "weight_sums", counted)
    methods = [
        resolve(f"{name}@window=8,budget={budget}")
        for name in ("snapkv", "pyramidkv", "chunkkv", "adakv")
        for budget in ("0.3", "0.6")
    ]
    record = prefill(loaded_tiny(), range(80), observe=[w for m in methods for w in m.observes()])
    together = [m.compress(record) for m in methods]
    assert computed == [8] * 4  # once a layer
    for m, cache in zip(methods, together, strict=True):
        own = m.compress(prefill(loaded_tiny(), range(80), observe=m.observes()))
        for a, b in zip(cache.layers, own.layers, strict=True):
            assert torch.equal(a.positions(), b.positions()), m.id
