"""kvmerger, cam and ems-approx beyond the acceptance harness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import harness
import merge_oracle
import pytest
import torch
from torch import Tensor

from lcbench.errors import BadValue
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer
from lcbench.kv.observe import ColumnSums
from lcbench.kv.ragged import RaggedLayer
from lcbench.kv.record import LayerRecord
from lcbench.methods.merge.cam import CaM, CaMLayer, Draws
from lcbench.methods.merge.ems_approx import EmsApprox
from lcbench.methods.merge.kvmerger import KVMerger
from lcbench.methods.registry import resolve
from lcbench.models.rule import AttentionRule


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def record_of(method: Any, length: int = 80, seed: int = 1, family: str = "llama") -> Any:
    return harness.prefill(harness.models(family), harness.tokens(length, seed=seed), method)


def layer_of(key: Tensor, value: Tensor, attention: Tensor) -> LayerRecord:
    """A record of one layer whose column sums are given, ``[Hk, L]``."""
    return LayerRecord(0, 1, key, value, key.shape[2] ** -0.5, {ColumnSums(): attention})


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- kvmerger ---------------------------------------------------------------------------------------------------------


def test_a_budget_and_a_threshold_do_not_go_together() -> None:
    with pytest.raises(BadValue, match=r"budget=0\.5 and epsilon=0\.7"):
        resolve("kvmerger@budget=0.5,epsilon=0.7")
    assert resolve("kvmerger").kept_tokens(1000) == 500
    assert resolve("kvmerger@budget=0.35").kept_tokens(1000) == 350
    assert resolve("kvmerger@budget=10").kept_tokens(1000) == 33  # the recent window and one more
    assert resolve("kvmerger@epsilon=0.7").kept_tokens(1000) is None


@pytest.mark.parametrize(
    "spec",
    [
        "kvmerger@budget=30,recent=5",
        "kvmerger@budget=14,recent=5,heavy=0.5",  # four heavy tokens at most: 14 >= 5 + 4 + 5 runs between them
        "kvmerger@epsilon=0.05,recent=5,heavy=3",
    ],
)
def test_sets_are_disjoint_consecutive_and_cover_the_prompt(spec: str) -> None:
    """Checks 3 and 4, on what the method computes, head by head."""
    method = resolve(spec)
    assert isinstance(method, KVMerger)
    record = record_of(method)
    layer = record.layer(1)
    attention = torch.from_numpy(merge_oracle.columns(layer)).float()
    links = method.links(layer.key, attention, method.kept_tokens(80))
    sets = torch.nn.functional.pad((~links).cumsum(dim=-1), (1, 0))
    for head in range(2):
        ids = sets[head].tolist()
        expected = merge_oracle.merging_sets(
            method, merge_oracle.f64(layer.key)[head], merge_oracle.columns(layer)[head]
        )
        assert [ids.count(i) for i in range(ids[-1] + 1)] == [len(members) for members in expected]
        assert ids[-1] + 1 == (method.budget.tokens if method.budget else len(expected))
        assert ids[-5:] == list(range(ids[-1] - 4, ids[-1] + 1))  # the recent window stands alone
    pivots = torch.stack(
        [
            torch.tensor([min(m, key=lambda j: (-float(attention[h, j]), j)) for m in members] + [0] * 80)[:80]
            for h, members in enumerate([_members(sets[0]), _members(sets[1])])
        ]
    )
    weights = method.weights(layer.key, sets, pivots)
    for head in range(2):
        for number, members in enumerate(_members(sets[head])):
            own = weights[head, members]
            assert float(own.sum()) == pytest.approx(1, abs=1e-5)
            assert own.argmax() == members.index(int(pivots[head, number]))


def _members(sets: Tensor) -> list[list[int]]:
    ids = sets.tolist()
    return [[j for j, i in enumerate(ids) if i == number] for number in range(ids[-1] + 1)]


@pytest.mark.parametrize("sigma", ["two-pass", "spread"])
@pytest.mark.parametrize("scale", [0.05, 0.3, 3.0])
def test_weights_are_the_formula(scale: float, sigma: Any) -> None:
    """At norms where the Gaussian neither vanishes nor is flat, and beyond."""
    method = KVMerger(budget=None, sigma=sigma)
    key, attention = random(2, 12, 8) * scale, torch.rand(2, 12)
    bounds = [[0, 3, 4, 9], [0, 1, 7, 10]]
    sets = torch.tensor([[sum(j >= b for b in row) - 1 for j in range(12)] for row in bounds])
    groups = [_members(row) for row in sets]
    pivots = torch.tensor([[max(m, key=lambda j: float(attention[h, j])) for m in groups[h]] for h in range(2)])
    weights = method.weights(key, sets, pivots)
    for head in range(2):
        for members in groups[head]:
            _, expected = merge_oracle.merge_weights(
                method, merge_oracle.f64(key)[head], merge_oracle.f64(attention)[head], members
            )
            assert weights[head, members].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("budget", [6, 7, 10, 25, 39, 40])
def test_exactly_b_entries_in_every_head(budget: int) -> None:
    method = resolve(f"kvmerger@budget={budget},recent=5,heavy=20")
    left = method.compress(record_of(method, 40))
    assert [layer.entries for layer in left.layers] == [budget] * 4
    assert left.storage_nbytes == left.nbytes == harness.SHAPE.full_bytes(budget)


def test_equal_tokens_merge_into_themselves_and_lose_their_mass() -> None:
    """Check 2: |S| equal entries have |S| times the attention of the one that is left, which is what value_scale and
    a bias would restore."""
    key, value = random(1, 1, 8).expand(1, 10, 8), random(1, 1, 8, seed=1).expand(1, 10, 8)
    layer = layer_of(key, value, torch.rand(1, 10))
    for sigma in ("two-pass", "spread"):
        store = KVMerger(epsilon=0.9, heavy=resolve("kvmerger@heavy=1").heavy, recent=0, sigma=sigma).layer(layer, None)
        (keys,), (values,) = (
            store.parts() if isinstance(store, DenseLayer) else ((store.key[None],), (store.value[None],))
        )
        assert keys.shape[1] <= 3  # a heavy token alone, and the runs beside it
        assert torch.allclose(keys, key[:, : keys.shape[1]], atol=1e-6)
        assert torch.allclose(values, value[:, : values.shape[1]], atol=1e-6)
    scaled = KVMerger(epsilon=0.9, heavy=resolve("kvmerger@heavy=0.001").heavy, recent=0, value_scale="times_size")
    store = scaled.layer(layer, None)
    assert store.entries == 1
    assert torch.allclose(next(iter(store.parts()[1])), 10 * value[:, :1], atol=1e-5)  # type: ignore[attr-defined]
    query = random(1, 1, 8, seed=2)
    other = random(1, 3, 8, seed=3)
    before = torch.softmax(query @ torch.cat([key, other], dim=1).transpose(1, 2), dim=-1)[..., :10].sum()
    after = torch.softmax(query @ torch.cat([key[:, :1], other], dim=1).transpose(1, 2), dim=-1)[..., 0]
    assert float((before / (1 - before)) / (after / (1 - after))) == pytest.approx(10, rel=1e-3)


def test_heads_of_different_lengths_take_no_more_memory_than_they_need() -> None:
    method = resolve("kvmerger@epsilon=0.1,recent=4")
    record = record_of(method)
    left = method.compress(record)
    lengths = [layer.lengths for layer in left.layers if isinstance(layer, RaggedLayer)]
    assert lengths
    assert all(a != b for a, b in lengths)
    assert left.storage_nbytes == left.nbytes


def test_layers_at_the_ends_can_be_left_alone() -> None:
    method = resolve("kvmerger@budget=40,skip_first=2,skip_last=1")
    record = record_of(method)
    left = method.compress(record)
    assert [layer.entries for layer in left.layers] == [80, 80, 40, 80]
    for i in (0, 1, 3):
        assert torch.equal(left.layers[i].parts()[0][0], record.layer(i).key)  # type: ignore[attr-defined]


def test_the_two_widths_are_told_apart() -> None:
    pair, ids = harness.models("llama"), harness.tokens(100, seed=3)
    specs = ("kvmerger@budget=30,recent=5", "kvmerger@budget=30,recent=5,sigma=spread")
    runs = [
        harness.force(pair, method.compress(harness.prefill(pair, ids[:60], method)), ids[60:])
        for method in map(resolve, specs)
    ]
    assert harness.largest_difference(*runs) > 0.05


# --- cam --------------------------------------------------------------------------------------------------------------


def compressed(method: Any, record: Any) -> KVCache:
    torch.manual_seed(17)
    left: KVCache = method.compress(record)
    return left


def test_counts_of_the_scripts() -> None:
    """0.1 and 0.1 of the prompt by default, rounded down each for itself."""
    assert [resolve("cam").counts(n) for n in (7500, 99, 10)] == [(750, 750), (9, 9), (1, 1)]
    assert resolve("cam").counts(9) is None  # no recent entry would be left
    assert resolve("cam@budget=0.5").counts(101) == (25, 25)
    assert resolve("cam@budget=21").counts(500) == (10, 11)
    assert resolve("cam@start=4,recent=0.25").counts(100) == (4, 25)
    assert resolve("cam@start=0.5,recent=0.5").counts(100) is None
    assert resolve("cam@budget=1.0").counts(100) is None


@pytest.mark.parametrize("family", harness.FAMILIES)
def test_without_merging_it_is_streamingllm(family: str) -> None:
    """Check 1."""
    pair, ids = harness.models(family), harness.tokens(130, seed=4)
    record = harness.prefill(pair, ids[:60])
    ours = compressed(resolve("cam@start=6,recent=14,chance=0"), record)
    theirs = resolve("streamingllm@n_sink=6,budget=20").compress(record)
    torch.testing.assert_close(
        harness.force(pair, ours, ids[60:]), harness.force(pair, theirs, ids[60:]), rtol=1e-5, atol=1e-4
    )  # streamingllm attends in a stack


def step(layer: CaMLayer, key: Tensor, value: Tensor, query: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """One new token; keys and values ``[Hk, d]`` held afterwards, by position."""
    layer.append(key, value)
    layer.attend(query, AttentionRule(0.2))
    where = {int(p): i for i, p in enumerate(layer.positions())}
    return (
        {p: layer._key[:, i].clone() for p, i in where.items()},
        {p: layer._value[:, i].clone() for p, i in where.items()},
    )


def a_layer(**options: Any) -> CaMLayer:
    method = CaM(**{"start": None, "recent": None, **options})
    return CaMLayer(
        random(2, 12, 8),
        random(2, 12, 8, seed=1),
        start=4,
        recent=8,
        kept=torch.tensor([0, 1, 2, 3, *range(22, 30)]),
        seen=30,
        method=method,
        draw=Draws(3, 0, 2),
        received=torch.rand(2, 12) if options.get("attention") == "accumulated" else None,
    )


def test_one_target_gets_exactly_the_value_that_leaves() -> None:
    """Checks 2 and 3: r = 1, m = 1; keys stay as they were."""
    layer = a_layer(chance=1.0, targets=1)
    value = {p: layer._value[:, i].clone() for i, p in enumerate(layer.positions().tolist())}
    key = {p: layer._key[:, i].clone() for i, p in enumerate(layer.positions().tolist())}
    for newest in range(30, 60):
        new_key, new_value = random(2, 1, 8, seed=newest), random(2, 1, 8, seed=100 + newest)
        keys, values = step(layer, new_key, new_value, random(4, 1, 8, seed=200 + newest))
        key[newest], value[newest] = new_key[:, 0], new_value[:, 0]
        x = newest + 2 - 8  # the oldest recent entry of the next step
        value[x + 1] = value[x + 1] + value[x]
        assert sorted(values) == [0, 1, 2, 3, *range(newest - 7, newest + 1)]
        assert all(torch.equal(values[p], value[p]) for p in values)
        assert all(torch.equal(keys[p], key[p]) for p in keys)


@pytest.mark.parametrize("targets", [3, 6, 32])
def test_what_is_added_is_the_value_in_shares(targets: int) -> None:
    """Check 4: m targets get v / m each; with fewer tokens to take them, the divisor stays m."""
    layer = a_layer(chance=1.0, targets=targets)
    before = {p: layer._value[:, i].clone() for i, p in enumerate(layer.positions().tolist())}
    new = random(2, 1, 8, seed=9)
    _, after = step(layer, random(2, 1, 8, seed=8), new, random(4, 1, 8, seed=7))
    added = [after[p] - before.get(p, new[:, 0]) for p in range(25, 31)]
    share = before[24] / targets
    for i, difference in enumerate(added):
        assert torch.allclose(difference, share if i < targets else torch.zeros_like(share), atol=1e-6)
    if targets <= 6:
        assert torch.allclose(sum(added), before[24], atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("attention", ["current", "accumulated"])
def test_merges_are_as_frequent_as_the_attention_says(attention: Any) -> None:
    """Over 400 seeds, the first step merges as often as its ratio, and independently in the heads."""
    key, value, query = random(2, 1, 8, seed=8), random(2, 1, 8, seed=9), random(4, 1, 8, seed=7)
    layer = a_layer(attention=attention, targets=4)
    before = layer._value[:, 4 + 2].clone()  # position 24
    counts, merged_both = torch.zeros(2), 0
    for seed in range(400):
        one = layer.fork()
        one.draw = Draws(seed, 0, 2)
        _, after = step(one, key, value, query)
        moved = (after[25] - layer._value[:, 4 + 3]).abs().sum(dim=-1) > 0
        counts += moved
        merged_both += int(moved.all())
    logits = torch.stack(
        [
            query[2 * h : 2 * h + 2, 0] @ torch.cat([layer._key[h, [0, 1, 2, 3, *range(5, 12)]], key[h]]).t()
            for h in range(2)
        ]
    )
    weights = torch.softmax(logits * 0.2, dim=-1).mean(dim=1)  # sinks, then positions 23 .. 30
    if attention == "accumulated":
        assert layer.received is not None
        weights = weights + torch.cat([layer.received[:, [0, 1, 2, 3, *range(5, 12)]], torch.zeros(2, 1)], dim=1)
    followers = weights[:, 6:10] if attention == "accumulated" else weights[:, 6:]
    ratio = (weights[:, 5] / followers.mean(dim=-1)).clamp(max=1)
    assert (ratio < 0.99).any()
    assert ((counts / 400 - ratio).abs() <= 4 * (ratio * (1 - ratio) / 400).sqrt() + 1e-9).all()
    assert abs(merged_both / 400 - float(ratio.prod())) < 0.12
    assert before.abs().sum() > 0


def test_no_attention_means_no_merge() -> None:
    method = CaM()
    nothing = torch.zeros(2)
    assert method.ratio(nothing, nothing).tolist() == [0, 0]
    assert method.ratio(torch.tensor([0.5, 0.0]), nothing).tolist() == [1, 0]
    assert method.ratio(torch.tensor([0.5, 3.0]), torch.ones(2)).tolist() == [0.5, 1]


def test_draws_depend_on_seed_layer_and_position_alone() -> None:
    drawn = {(s, n, p): tuple(Draws(s, n, 2)(p)[:, 0].tolist()) for s in range(3) for n in range(3) for p in range(3)}
    assert len(set(drawn.values())) == 27
    assert all(0 <= u < 1 for row in drawn.values() for u in row)
    torch.manual_seed(1)
    first = tuple(Draws(2, 1, 2)(2)[:, 0].tolist())
    torch.rand(100)
    assert first == drawn[2, 1, 2]


def test_seeds_of_samples_give_different_merges() -> None:
    pair, ids = harness.models("llama"), harness.tokens(130, seed=5)
    method = resolve("cam@start=6,recent=14,targets=3")
    record = harness.prefill(pair, ids[:60], method)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(harness.force(pair, method.compress(record), ids[60:]))
    assert torch.equal(runs[0], runs[1])
    assert harness.largest_difference(runs[0], runs[2]) > 1e-3


def test_the_prompts_middle_moves_forward_when_asked() -> None:
    """One target and no chance involved: all evicted values pile up in the first recent one."""
    method = resolve("cam@start=4,recent=10,targets=1,chance=1,merge_prompt=true")
    record = record_of(method, 40)
    left = compressed(method, record)
    dropped = compressed(resolve("cam@start=4,recent=10,targets=1,chance=1"), record)
    for i in range(4):
        value = record.layer(i).value
        kept, plain = left.layers[i], dropped.layers[i]
        assert isinstance(kept, CaMLayer)
        assert isinstance(plain, CaMLayer)
        assert torch.allclose(kept._value[:, 4], value[:, 4:31].sum(dim=1), atol=1e-4)
        assert torch.equal(plain._value[:, 4], value[:, 30])
        assert torch.equal(kept._value[:, 5:], value[:, 31:])
        assert torch.equal(kept._key, plain._key)


# --- ems-approx -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ["ems-approx@budget=30,window=8,tau=1", "ems-approx@budget=30,window=8,merge_pool=0,tau=0"]
)
def test_without_merging_it_evicts_by_its_score(spec: str) -> None:
    """Check 1."""
    method = resolve(spec)
    assert isinstance(method, EmsApprox)
    record = record_of(method)
    for i, layer in enumerate(method.compress(record).layers):
        original = record.layer(i)
        scores = merge_oracle.ems_scores(method, original)
        for head in range(2):
            best = sorted(sorted(range(72), key=lambda j: (-scores[head, j], j))[:22])
            assert layer.positions()[head].tolist() == [*best, *range(72, 80)]
            assert torch.equal(layer.parts()[0][0][head], original.key[head, layer.positions()[head]])  # type: ignore[attr-defined]
            assert torch.equal(layer.parts()[1][0][head], original.value[head, layer.positions()[head]])  # type: ignore[attr-defined]


def test_candidates_have_one_class_and_norms_stay_within_their_members() -> None:
    """Checks 2 and 3."""
    method = resolve("ems-approx@budget=20,window=6,tau=0.1,merge_pool=2")
    assert isinstance(method, EmsApprox)
    record = record_of(method)
    joined = 0
    for i, layer in enumerate(method.compress(record).layers):
        original = record.layer(i)
        keys = merge_oracle.f64(original.key)
        for head in range(2):
            centers, classes = merge_oracle.ems_classes(
                method, keys[head], merge_oracle.ems_scores(method, original)[head]
            )
            pool = list(classes)
            assert len(pool) == 40
            ours = method.classes(original.key[head, pool], original.key[head, centers]).tolist()
            assert ours == [-1 if to is None else centers.index(to) for to in classes.values()]
            for place, center in enumerate(centers):
                members = [center, *(j for j, to in classes.items() if to == center)]
                norms = original.key[head, members].norm(dim=-1)
                merged = layer.parts()[0][0][head, place].norm()  # type: ignore[attr-defined]
                assert norms.min() - 1e-4 <= merged <= norms.max() + 1e-4
                joined += len(members) - 1
            assert torch.equal(layer.parts()[0][0][head, 14:], original.key[head, 74:])  # type: ignore[attr-defined]
    assert joined > 20


def test_a_floor_of_one_center_beside_the_window() -> None:
    method = resolve("ems-approx@budget=3,window=6")
    left = method.compress(record_of(method, 50))
    assert [layer.entries for layer in left.layers] == [7] * 4
