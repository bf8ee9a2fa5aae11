"""Kept positions on families whose positions, norms or softmax are their own, against a second computation in fp64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import harness
import pytest
import torch
from harness import HEAD_DIM, HEADS, KV_HEADS, LAYERS, Models, prefill
from plain_layers import FAMILIES, GROUP, Layer, plain_layers, turned
from torch import Tensor

from lcbench.methods.registry import resolve
from lcbench.models import adapter
from tiny import VOCAB, tiny_model

PROMPT, KEEP = 90, 24


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def by_group(scores: Tensor) -> Tensor:
    return scores.view(KV_HEADS, GROUP, -1).mean(dim=1)


def window_score(layer: Layer, window: int, kernel: int) -> Tensor:
    sums = by_group(layer.weights(range(PROMPT - window, PROMPT)).sum(dim=1))[:, : PROMPT - window]
    pooled = torch.nn.functional.max_pool1d(sums[None], kernel, stride=1, padding=kernel // 2)[0]
    return torch.nn.functional.pad(pooled, (0, window), value=math.inf)


def expected_attention(layer: Layer) -> Tensor:
    seen = layer.bare[:, 4:]
    future = torch.arange(PROMPT, PROMPT + 512, dtype=torch.float64)[:, None] * layer.frequencies
    turn = turned(torch.eye(HEAD_DIM, dtype=torch.float64)[:, None], future, layer.scale).mean(dim=1).T  # d x d
    rows = []
    for head in range(HEADS):
        mean, covariance = seen[head].mean(dim=0), torch.cov(seen[head].T, correction=0)
        key = layer.key[head // GROUP, 4:]
        spread = torch.stack([k @ turn @ covariance @ turn.T @ k for k in key])
        rows.append(torch.softmax(layer.scaling * (key @ (turn @ mean)) + layer.scaling**2 * spread / 2, dim=0))
    scores = by_group(torch.stack(rows)) * layer.value[:, 4:].norm(dim=-1)
    return torch.nn.functional.pad(scores, (4, 0), value=math.inf)


def key_difference(layer: Layer) -> Tensor:
    anchor = torch.nn.functional.normalize(layer.key, dim=-1).mean(dim=1, keepdim=True)
    return -torch.nn.functional.cosine_similarity(layer.key, anchor, dim=-1)


SCORES: dict[str, Callable[[Layer], Tensor]] = {
    "expected-attention": expected_attention,
    "snapkv@window=8,kernel=5": lambda layer: window_score(layer, 8, 5),
    "tova": lambda layer: layer.weights(range(PROMPT - 1, PROMPT))[:, 0].mean(dim=0).expand(KV_HEADS, -1),
    "keydiff": key_difference,
    "knorm": lambda layer: -layer.key.norm(dim=-1),
    "h2o": lambda layer: by_group(layer.weights(range(PROMPT)).sum(dim=1)),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Models:
    plain = tiny_model(request.param, layers=LAYERS, **FAMILIES[request.param])
    ours = copy.deepcopy(plain)
    adapter.install(ours)
    plain.set_attn_implementation("eager")
    return Models(request.param, ours, plain, None)


@pytest.mark.parametrize("name", SCORES)
def test_kept_positions(pair: Models, name: str) -> None:
    ids = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(5))[:PROMPT]  # no token twice: no ties
    method = resolve(f"{name}{',' if '@' in name else '@'}budget={KEEP}")
    scaling = float(pair.ours.model.layers[0].self_attn.scaling)
    record = replace(prefill(pair, ids, method), scaling=scaling)
    cache = method.compress(record)
    old = PROMPT - KEEP // 2 if name == "h2o" else PROMPT  # what competes; later tokens stay
    for i, layer in enumerate(plain_layers(pair.plain, ids)):
        torch.testing.assert_close(record.layer(i).key.double(), layer.key, atol=2e-4, rtol=1e-4)
        scores, held = SCORES[name](layer), cache.layers[i].positions().expand(KV_HEADS, -1)
        for head in range(KV_HEADS):
            row = scores[head].tolist()
            ranked = sorted(range(old), key=lambda position: (-row[position], position))
            best = ranked[: KEEP - (PROMPT - old)]
            differ = set(held[head].tolist()) ^ {*best, *range(old, PROMPT)}
            assert len(set(held[head].tolist())) == KEEP
            for position in differ:  # fp32 decides between scores that fp64 hardly tells apart
                assert row[position] == pytest.approx(row[best[-1]], rel=1e-5), f"layer {i} head {head}"
            assert len(differ) <= 2
