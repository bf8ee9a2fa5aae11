"""SelfExtend and LM-Infinite: the paper's toy case, a step against a longer prompt, other methods on them, what they
refuse, other families of models, and that nothing is left behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distances_oracle as oracle
import harness
import pytest
import torch
from harness import HEADS, LAYERS, Models, force, largest_difference, models, prefill, tokens
from test_families import FAMILIES
from torch import Tensor

from lcbench.errors import BadValue, LcbenchError, ModelError
from lcbench.kv.cache import KVCache
from lcbench.kv.distances import Distances
from lcbench.kv.record import PrefillRecord
from lcbench.kv.witness import Restores
from lcbench.methods.base import Method
from lcbench.methods.registry import all_methods, resolve
from lcbench.models import adapter, routing
from lcbench.models.info import ModelInfo
from tiny import loaded_tiny, tiny_model

PROMPT, STEPS = 60, 64
EXTENSIONS = {
    "selfextend@group=4,neighbours=16": oracle.selfextend(4, 16),
    "lm-infinite@n_local=20,n_global=6,bounded=false": oracle.lm_infinite(20, 6),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def read(pair: Models, method: Method, ids: Tensor) -> PrefillRecord:
    with method.transform_model(pair.ours, len(ids)):
        return prefill(pair, ids, method)


def test_the_toy_case_of_the_paper() -> None:
    """10 tokens of a model trained for 7, W = 4, G = 2: no distance above 6."""
    table = oracle.matrix(oracle.selfextend(2, 4), 10)[0]
    assert table.max() == 6
    assert table[9].tolist() == [6, 6, 5, 5, 4, 4, 3, 2, 1, 0]
    rule = Distances(4, 2, None, None)
    places = torch.arange(10)
    far = rule.is_far(places, places)
    assert far.tolist() == [[i - j >= 4 for j in range(10)] for i in range(10)]
    assert resolve("selfextend@group=2,neighbours=4").window_of(7) == 10


def test_windows() -> None:
    assert resolve("selfextend@group=8,neighbours=1024").window_of(8192) == 7168 * 8 + 1024
    assert resolve("selfextend@group=64,neighbours=1024+kivi").window_of(4096) == 3072 * 64 + 1024
    assert resolve("selfextend@reach=9000").window_of(4096) == 9000
    assert resolve("lm-infinite").window_of(4096) is None


@pytest.mark.parametrize("spec", EXTENSIONS)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_step_is_the_last_row_of_a_longer_prompt(spec: str, family: str) -> None:
    pair, method, ids = models(family), resolve(spec), tokens(PROMPT + STEPS, seed=1)
    with method.transform_model(pair.ours, len(ids)):
        stepped = force(pair, method.compress(prefill(pair, ids[:PROMPT], method)), ids[PROMPT:])
        for longer in (1, 17, STEPS):
            again = prefill(pair, ids[: PROMPT + longer], method).logits
            assert largest_difference(stepped[longer - 1], again) < 5e-5
        chunked = prefill(pair, ids[:PROMPT], method, chunk=13)
        assert largest_difference(chunked.logits, prefill(pair, ids[:PROMPT], method).logits) < 5e-5


def test_blocks_of_a_long_prompt_are_one_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    from lcbench.kv import attention

    pair, ids = models("mistral"), tokens(200, seed=2)
    for spec in EXTENSIONS:
        whole = read(pair, resolve(spec), ids).logits
        monkeypatch.setattr(attention, "_BLOCK", 7)
        assert largest_difference(read(pair, resolve(spec), ids).logits, whole) < 2e-5
        monkeypatch.undo()


def test_bounded_is_exact_and_small() -> None:
    pair, ids = models("llama"), tokens(PROMPT + STEPS, seed=3)
    logits, sizes = [], []
    for bounded in ("true", "false"):
        method = resolve(f"lm-infinite@n_local=20,n_global=6,bounded={bounded}")
        with method.transform_model(pair.ours, len(ids)):
            left = method.compress(prefill(pair, ids[:PROMPT], method))
            sizes.append(left.storage_nbytes)
            logits.append(force(pair, left, ids[PROMPT:]))
    assert largest_difference(*logits) < 2e-5
    assert sizes == [harness.SHAPE.full_bytes(26), harness.SHAPE.full_bytes(PROMPT)]


def test_what_lm_infinite_does_not_see_changes_nothing_in_one_layer() -> None:
    model = tiny_model("llama", layers=1)
    adapter.install(model)
    pair = Models("llama", model, None, None)
    method, ids = resolve("lm-infinite@n_local=20,n_global=6"), tokens(PROMPT, seed=4)

    def last(text: Tensor) -> Tensor:
        cache_ = KVCache.dense(1, expected=len(text))
        with method.transform_model(model, len(text)):
            return adapter.forward(pair.ours, text[None], torch.arange(len(text))[None], [cache_])[0, -1]

    expected = last(ids)
    for place, same in ((6, True), (30, True), (39, True), (5, False), (40, False)):
        other = ids.clone()
        other[place] = (other[place] + 1) % 256
        assert torch.equal(last(other), expected) == same, place


INNER = [
    "snapkv@budget=30,window=6",
    "knorm@budget=30",
    "keydiff@budget=30",
    "pyramidkv@budget=30,window=6",
    "chunkkv@budget=30,window=6",
    "adakv@budget=30,window=6",
    "vatp@budget=30",
    "h2o@budget=40",
    "tova@budget=40",
    "streamingllm@budget=30",
    "random@budget=30",
    "dynamickv@budget=30,window=6",
]


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("inner", INNER)
def test_eviction_keeps_the_distances_of_what_is_left(inner: str, extension: str) -> None:
    """Every family of stores: the explicit attention over the keys that the cache says it holds."""
    pair, method = models("llama"), resolve(f"{extension}+{inner}")
    ids = tokens(PROMPT + 16, seed=5)
    torch.manual_seed(1)
    with method.transform_model(pair.ours, len(ids)):
        left = method.compress(prefill(pair, ids[:PROMPT], method))
        visible = [torch.ones(HEADS, len(ids), len(ids), dtype=torch.bool) for _ in range(LAYERS)]
        rows = []
        for position in range(PROMPT, len(ids)):
            before = [held_heads(left, layer, len(ids)) for layer in range(LAYERS)]
            rows.append(force(pair, left, ids[position : position + 1])[0])
            after = [held_heads(left, layer, len(ids)) for layer in range(LAYERS)]
            for layer in range(LAYERS):
                ring = inner.startswith("streamingllm")
                visible[layer][:, position] = after[layer] if ring else before[layer]
                visible[layer][:, position, position] = True
    expected = oracle.logits(pair, ids, EXTENSIONS[extension], visible)[PROMPT:]
    assert largest_difference(torch.stack(rows), expected) < 1e-4
    assert left.entries < len(ids)


def held_heads(left: KVCache, layer: int, total: int) -> Tensor:
    """Which positions each query head's store holds: bool ``[H, total]``."""
    seen = torch.zeros(HEADS, total, dtype=torch.bool)
    places = left.layers[layer].positions()
    places = places if places.ndim == 2 else places[None]
    for head in range(HEADS):
        own = places[head * len(places) // HEADS]
        seen[head, own[own >= 0]] = True
    return seen


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_snapkv_scores_with_the_weights_of_the_extended_model(extension: str) -> None:
    pair, ids = models("llama"), tokens(PROMPT, seed=6)
    method = resolve(f"{extension}+snapkv@budget=30,window=6,kernel=1")
    record = read(pair, method, ids)
    distances, seen = oracle.matrix(EXTENSIONS[extension], PROMPT)
    left = method.compress(record)
    query = record.observed[next(iter(method.observes()))][0]
    rope = record.layer(0).rule.distances.rope
    key = rope.undo(record.layer(0).key, torch.arange(PROMPT)).double()
    asked = rope.undo(query, torch.arange(PROMPT - 6, PROMPT)).double()
    scores = torch.zeros(HEADS, PROMPT, dtype=torch.float64)
    for row, i in enumerate(range(PROMPT - 6, PROMPT)):
        turned = rope.apply(asked[:, row, None].expand(-1, PROMPT, -1).float(), distances[i]).double()
        logits = (turned.view(2, 4, PROMPT, -1) * key[:, None]).sum(-1).flatten(0, 1) * harness.SCALING
        scores += torch.softmax(logits.masked_fill(~seen[i], -torch.inf), dim=-1)
    best = scores.view(2, 4, PROMPT).mean(dim=1)[:, : PROMPT - 6].topk(24).indices
    for head in range(2):
        kept = set(left.layers[0].positions()[head].tolist())
        assert kept == {*best[head].tolist(), *range(PROMPT - 6, PROMPT)}


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize(
    "inner",
    [
        "kivi@bits=4,group_size=16,residual_length=16",
        "flexgen",
        "snapkv@budget=40+kivi@group_size=16,residual_length=16",
    ],
)
def test_quantizers_are_seen_at_the_distances(inner: str, extension: str) -> None:
    """A query over what is restored from the codes, by hand, layer by layer on the same inputs."""
    pair, method, ids = models("llama"), resolve(f"{extension}+{inner}"), tokens(PROMPT + 1, seed=7)
    with method.transform_model(pair.ours, len(ids)):
        left = method.compress(prefill(pair, ids[:PROMPT], method))
        stored = [(store.restored(), store.positions()) for store in left.layers if isinstance(store, Restores)]
        watcher = Watcher()
        adapter.forward(pair.ours, ids[None, PROMPT:], torch.tensor([[PROMPT]]), [left], [[watcher]])
    assert len(stored) == LAYERS
    distance = EXTENSIONS[extension]
    for layer, (pairs, places) in enumerate(stored):
        query, key, value, rule = watcher.seen[layer]
        rope = rule.distances.rope
        asked = rope.undo(query, torch.tensor([PROMPT]))[:, 0].double()
        for head, (keys, values) in enumerate(pairs):
            own = places if places.ndim == 1 else places[head]
            own = torch.cat([own, torch.tensor([PROMPT])])
            held_keys, held_values = torch.cat([keys, key[head]]), torch.cat([values, value[head]]).double()
            still = rope.undo(held_keys, own).double()
            far = [distance(PROMPT, int(j)) for j in own]
            for group in range(4):
                turned = rope.apply(
                    asked[head * 4 + group].expand(len(own), -1).float(), torch.tensor([d or 0 for d in far])
                )
                logits = (turned.double() * still).sum(-1) * harness.SCALING
                logits[[i for i, d in enumerate(far) if d is None]] = -torch.inf
                expected = torch.softmax(logits, dim=0) @ held_values
                assert float((watcher.out[layer][head * 4 + group, 0] - expected).abs().max()) < 2e-4


class Watcher:
    """Queries, new keys and values of a step, and what the layer answered."""

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}
        self.out: dict[int, Tensor] = {}

    def observe(self, layer: int, query: Tensor, key: Tensor, value: Tensor, start: int, store: Any, rule: Any) -> None:
        self.seen[layer] = (query, key, value, rule)
        self.out[layer] = OUT[layer]


OUT: dict[int, Tensor] = {}


@pytest.fixture(autouse=True)
def _noted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = routing._attend_rows

    def noting(stores: Any, query: Tensor, key: Tensor, value: Tensor, rule: Any) -> Tensor:
        out = real(stores, query, key, value, rule)
        _, module = routing.observed()
        OUT[int(module.layer_idx)] = out[0]  # type: ignore[arg-type]
        return out

    monkeypatch.setattr(routing, "_attend_rows", noting)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_op_settings_on_every_family(family: str) -> None:
    """Sinks, soft caps, sliding layers, layers without angles: with one position a key, the plain model."""
    model = tiny_model(family, layers=LAYERS, **FAMILIES[family])
    adapter.install(model)
    pair, ids = Models(family, model, None, None), tokens(PROMPT + 8, seed=8)
    plain = force(pair, prefill(pair, ids[:PROMPT]).cache, ids[PROMPT:])
    for spec in ("selfextend@group=1,neighbours=16", "selfextend@group=4,neighbours=128", "lm-infinite@n_local=99"):
        method = resolve(spec)
        with method.transform_model(model, len(ids)):
            left = method.compress(prefill(pair, ids[:PROMPT], method))
            assert largest_difference(force(pair, left, ids[PROMPT:]), plain) < 3e-4, spec
    bites = resolve("selfextend@group=4,neighbours=16")
    with bites.transform_model(model, len(ids)):
        left = bites.compress(prefill(pair, ids[:PROMPT], bites))
        logits = force(pair, left, ids[PROMPT:])
    assert torch.isfinite(logits).all()
    assert largest_difference(logits, plain) > 0.01
    assert torch.equal(force(pair, prefill(pair, ids[:PROMPT]).cache, ids[PROMPT:]), plain)


def test_another_model_in_the_same_context_is_left_alone() -> None:
    pair, other, ids = models("llama"), models("qwen2"), tokens(PROMPT, seed=9)
    plain = prefill(other, ids).logits
    with resolve("selfextend@group=4,neighbours=16").transform_model(pair.ours, PROMPT):
        assert torch.equal(prefill(other, ids).logits, plain)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("selfextend@group=8,neighbours=12", "not a multiple of group=8"),
        ("selfextend+streamingllm-longctx", "reads the prompt in its own way"),
        ("selfextend+infllm", "reads the prompt in its own way"),
        ("lm-infinite+longcache", "reads the prompt in its own way"),
        ("selfextend+kvmerger", "distances of its own"),
        ("selfextend+quest", "distances of its own"),
        ("selfextend+expected-attention", "distances of its own"),
        ("selfextend+expected-attention+kivi", "distances of its own"),
        ("kivi+selfextend", "comes first"),
        ("selfextend+yarn", "extends the model twice"),
    ],
)
def test_what_does_not_go_together_is_refused(spec: str, words: str) -> None:
    with pytest.raises(BadValue, match=words) as refusal:
        resolve(spec)
    assert "\n" not in refusal.value.message


def test_models_that_cannot_be_served_are_refused() -> None:
    info = loaded_tiny(window=300).info
    with pytest.raises(ModelError, match="leaves nothing of the 300 positions"):
        resolve("selfextend").bind(info, Path())
    resolve("selfextend@neighbours=64").bind(info, Path())
    dynamic = loaded_tiny(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}).info
    without = ModelInfo(**{**vars(info), "rope": type(info.rope)()})
    for spec in ("selfextend@neighbours=64", "lm-infinite", "lm-infinite+kivi"):
        with pytest.raises(ModelError, match="by the length of the text"):
            resolve(spec).bind(dynamic, Path())
        with pytest.raises(ModelError, match="no rotary position embedding"):
            resolve(spec).bind(without, Path())


def test_stretched_models_are_served() -> None:
    """Angles that are stretched already stay so: SelfExtend on transformers' own yarn, against explicit positions."""
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
    plain = tiny_model("llama", rope_parameters=rope)
    ours = copy.deepcopy(plain)
    adapter.install(ours)
    pair, ids = Models("llama", ours, plain, None), tokens(90, seed=10)
    method = resolve("selfextend@group=4,neighbours=16")
    with method.transform_model(ours, 90):
        left = method.compress(prefill(pair, ids[:60], method))
        logits = force(pair, left, ids[60:])
    assert plain.model.rotary_emb.attention_scaling > 1  # on queries and on keys, by the model and by the oracle
    expected = oracle.logits(pair, ids, oracle.selfextend(4, 16))
    assert largest_difference(logits, expected[60:]) < 1e-4


def test_every_follower_is_tried() -> None:
    followers = {name for name, cls in all_methods().items() if cls.follows_distances}
    tried = {inner.split("@")[0] for inner in INNER} | {"kivi", "flexgen"}
    # headkv stores as adakv does and hf-quantized attends as kivi does; both need what is not here
    assert followers - tried == {"headkv", "headkv-r2", "hf-quantized"}
    with pytest.raises(LcbenchError):
        resolve("selfextend+cam")
