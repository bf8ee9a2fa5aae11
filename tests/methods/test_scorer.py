"""What `Scorer` does for its subclasses: budgets, ties, layers; shown on one scored by position and one by value."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import harness
import pytest
import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.kv.record import LayerRecord
from lcbench.methods import registry
from lcbench.methods.base import Scorer, Traits, top_positions
from lcbench.methods.registry import all_methods, method, resolve


@pytest.fixture(autouse=True)
def _set_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    all_methods()
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    with harness.one_thread():
        yield


@dataclass(frozen=True)
class LoudValues(Scorer):
    """Keeps the tokens with large values, and the last ones."""

    last: int = param(2, "newest tokens that always stay")

    def score(self, record: LayerRecord) -> Tensor:
        scores = record.value.abs().sum(dim=-1)
        scores[:, record.length - self.last :] = torch.inf
        return scores


def test_top_positions_are_ascending_and_break_ties_low() -> None:
    scores = torch.tensor([[1.0, 5.0, 1.0, 5.0, 1.0], [0.0, -torch.inf, torch.inf, 0.0, 0.0]])
    assert top_positions(scores, 3).tolist() == [[0, 1, 3], [0, 2, 3]]
    assert top_positions(scores, 1).tolist() == [[1], [2]]
    assert top_positions(torch.zeros(1, 1000), 400).tolist() == [list(range(400))]


def test_half_precision_scores_are_compared_as_given() -> None:
    scores = torch.tensor([[1.0, 1.0078125, 1.015625]], dtype=torch.bfloat16)
    assert top_positions(scores, 1).tolist() == [[2]]


def test_a_scorer_passes_the_harness() -> None:
    method("loud-values", paper="", traits=Traits(family="evict"))(LoudValues)

    def again(record: LayerRecord) -> Tensor:
        scores = record.value.double().abs().sum(dim=-1)
        scores[:, -2:] = 1e9
        return scores

    harness.check(
        harness.Case(
            spec="loud-values@budget=16",
            noop=("loud-values@budget=1.0", "loud-values@budget=60"),
            nbytes=lambda shape, prompt, new: shape.full_bytes(min(prompt, 16) + new),
            visible=harness.top_kept(again),
            short=(2, 3, 15, 16, 17),
            untouched=lambda length: length <= 16,
        ),
        families=["llama", "mistral"],
    )


def test_heads_and_layers_choose_for_themselves() -> None:
    record = harness.prefill(harness.models("llama"), harness.tokens(60))
    kept = [layer.positions() for layer in LoudValues().compress(record).layers]
    assert all(k.shape == (harness.KV_HEADS, 15) for k in kept)
    assert len({tuple(row) for k in kept for row in k.tolist()}) == harness.LAYERS * harness.KV_HEADS


ALL_TIED = {  # of a prompt of 60 tokens; and the last tokens that stay in any case
    "knorm@budget=20": 0,
    "keydiff@budget=20": 0,
    "snapkv@budget=20,window=8,kernel=1": 8,
    "pyramidkv@budget=20,window=8,kernel=1": 8,
    "adakv@budget=20,window=8,kernel=1": 8,
    "dynamickv@budget=20,window=8,kernel=1": 8,
    "tova@budget=20": 0,
    "chunkkv@budget=20,window=8,length=4": 8,
    "h2o@heavy=12,recent=8": 8,
}


@pytest.mark.parametrize("spec", ALL_TIED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_scores_keep_the_lower_positions(spec: str, dtype: torch.dtype) -> None:
    """A model whose queries and keys are all zero: every key gets the same attention and has the same norm."""
    pair = harness.models("llama", dtype)
    zero = copy.deepcopy(pair.ours)
    with torch.no_grad():
        for layer in zero.model.layers:
            layer.self_attn.q_proj.weight.zero_()
            layer.self_attn.k_proj.weight.zero_()
    pair = harness.Models("llama", zero, pair.plain, None)
    chosen = resolve(spec)
    cache = chosen.compress(harness.prefill(pair, harness.tokens(60, seed=1), chosen))
    last, kept = ALL_TIED[spec], 0
    for layer in cache.layers:
        for head in layer.positions().expand(harness.KV_HEADS, -1):
            row = head[head >= 0].tolist()
            assert row == [*range(len(row) - last), *range(60 - last, 60)]
            kept += len(row)
    assert kept == pytest.approx(20 * harness.LAYERS * harness.KV_HEADS, abs=8)
