"""Compositions: what a dropper keeps, stored by a quantizer, equals the quantizer on that subset computed apart."""

from __future__ import annotations

from collections.abc import Iterator

import flexgen_reference
import harness
import kivi_reference
import pytest
import torch
from cases_quantize_b import installed
from harness import HEAD_DIM, KV_HEADS, LAYERS, SHAPE, force, largest_difference, models, prefill, tokens
from torch import Tensor

from lcbench.config.spec import RunSpec
from lcbench.engine.session import resolve_methods
from lcbench.errors import LcbenchError
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer, LayerKV
from lcbench.kv.ragged import RaggedLayer
from lcbench.kv.record import LayerRecord, take
from lcbench.methods.base import CacheTransform
from lcbench.methods.registry import all_methods, resolve

PROMPT = 60
DROPPERS = (
    "snapkv@window=4,kernel=3,budget=40",
    "snapkv@window=4,kernel=3,budget=40,granularity=query",
    "adakv@window=4,budget=40",
    "pyramidkv@window=4,budget=40,beta=4",
    "streamingllm@n_sink=2,budget=37,roll=false",
)
KIVI = (4, 16, 32)  # bits, group, residual


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def kivi_by_hand(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """One head's ``[n, d]`` keys and values as KIVI restores them right after a prompt of these n tokens."""
    bits, group, residual = KIVI
    n = key.shape[0]
    flushed, aged = n - n % residual, max(0, n - residual)
    keys, values = key.clone(), value.clone()
    keys[:flushed] = torch.from_numpy(kivi_reference.per_channel(key[None, :flushed].numpy(), bits, group))[0]
    values[:aged] = torch.from_numpy(kivi_reference.per_token(value[None, :aged].numpy(), bits, group))[0]
    return keys, values


def flexgen_by_hand(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The same as FlexGen restores them: all of them, groups of 64 channels filled up with zeros."""
    keys, values = (torch.from_numpy(flexgen_reference.inverse_scaled(x[None].numpy(), 64))[0] for x in (key, value))
    return keys, values


def kept_of(dropper: str, record: object) -> list[Tensor]:
    """Positions ``[stored heads, n]`` of what the dropper alone keeps, layer by layer; -1 where there is none."""
    layers = resolve(dropper).compress(record).layers  # type: ignore[arg-type]
    return [p if p.ndim == 2 else p.expand(KV_HEADS, -1) for p in (layer.positions() for layer in layers)]


@pytest.mark.parametrize("family", harness.FAMILIES)
@pytest.mark.parametrize("dropper", DROPPERS)
@pytest.mark.parametrize("quantizer", ["kivi@bits=4,group_size=16,residual_length=32", "flexgen"])
def test_it_is_the_quantizer_on_the_kept_subset(quantizer: str, dropper: str, family: str) -> None:
    """The next token's logits are those over exact stores that hold what quantizing each head's kept tokens, one by
    one and by hand, leaves of them; and the composition keeps what the dropper keeps."""
    pair, method = models(family), resolve(f"{dropper}+{quantizer}")
    ids = tokens(PROMPT + 1, seed=3)
    record = prefill(pair, ids[:PROMPT], method)
    by_hand: list[LayerKV] = []
    for i, kept in enumerate(kept_of(dropper, record)):
        copies = kept.shape[0] // KV_HEADS
        rows = [[p for p in head.tolist() if p >= 0] for head in kept]
        pairs = []
        for head, places in enumerate(rows):
            layer = record.layer(i)
            restore = flexgen_by_hand if quantizer == "flexgen" else kivi_by_hand
            pairs.append(restore(layer.key[head // copies, places], layer.value[head // copies, places]))
        by_hand.append(
            RaggedLayer(
                torch.cat([key for key, _ in pairs]),
                torch.cat([value for _, value in pairs]),
                kept=torch.tensor([place for places in rows for place in places]),
                lengths=[len(places) for places in rows],
                seen=PROMPT,
            )
        )
    expected = force(pair, KVCache(by_hand), ids[PROMPT:])
    left = method.compress(record)
    for store, kept in zip(left.layers, kept_of(dropper, record), strict=True):
        held = store.positions()
        assert [sorted(h[h >= 0].tolist()) for h in (held if held.ndim == 2 else held.expand(KV_HEADS, -1))] == [
            sorted(h[h >= 0].tolist()) for h in kept
        ]
    logits = force(pair, left, ids[PROMPT:])
    assert largest_difference(logits, expected) < 1e-4
    exact = force(pair, resolve(dropper).compress(record), ids[PROMPT:])
    assert largest_difference(exact, expected) > 0.01  # quantizing is not nothing


@pytest.mark.parametrize("family", harness.FAMILIES)
@pytest.mark.parametrize("dropper", DROPPERS)
def test_with_everything_exact_it_is_the_dropper(dropper: str, family: str) -> None:
    """With room in KIVI's residual for all tokens: 64 forced ones, positions, sliding windows and ragged heads."""
    pair, method = models(family), resolve(f"{dropper}+kivi@residual_length=160")
    ids = tokens(PROMPT + 64, seed=4)
    record = prefill(pair, ids[:PROMPT], method)
    left, alone = method.compress(record), resolve(dropper).compress(record)
    assert left.nbytes == alone.nbytes == left.storage_nbytes
    together = force(pair, left.fork(), ids[PROMPT:])
    assert largest_difference(together, force(pair, alone, ids[PROMPT:])) < 5e-5
    assert largest_difference(together, force(pair, left, ids[PROMPT:], at_once=16)) < 5e-5


def test_every_dropper_says_the_truth_about_what_it_leaves() -> None:
    """Stores that are plain subsets, for every method that says so; a composition of each runs."""
    pair, ids = models("llama"), tokens(PROMPT + 4, seed=5)
    composed = 0
    for name, cls in all_methods().items():
        if not cls.__module__.startswith("lcbench.") or name.startswith("headkv"):  # those need head scores
            continue
        for options in ("", "@roll=false", "@decode=false"):
            if options and options[1:].split("=")[0] not in cls.__dataclass_fields__:
                continue
            method = resolve(name + options)
            if not method.leaves_subset:
                continue
            record = prefill(pair, ids[:PROMPT], method)
            for layer in method.compress(record).layers:
                assert isinstance(layer, DenseLayer | RaggedLayer)
                assert layer.policy is None
            force(pair, resolve(f"{method.id}+kivi@group_size=16,residual_length=16").compress(record), ids[PROMPT:])
            composed += 1
    assert composed >= 10


@pytest.mark.parametrize("bits", [2, 4])
def test_bytes_are_those_of_the_quantizer_on_so_many_tokens(bits: int) -> None:
    budget, group, residual = 40, 16, 16
    method = resolve(f"snapkv@window=4,budget={budget}+kivi@bits={bits},group_size={group},residual_length={residual}")
    record = prefill(models("llama"), tokens(PROMPT, seed=6), method)
    cache = method.compress(record)
    held = 0.0
    for exact in (budget % residual, min(budget, residual)):
        packed = budget - exact
        held += packed * bits / 8 + 4 * packed / group + 4 * exact
    expected = int(held * LAYERS * KV_HEADS * HEAD_DIM)
    assert cache.nbytes == cache.storage_nbytes == expected
    assert cache.entries == budget
    ragged = resolve(f"adakv@window=4,budget={budget}+flexgen")
    record = prefill(models("llama"), tokens(PROMPT, seed=6), ragged)
    entries = sum(int((kept >= 0).sum()) for kept in kept_of("adakv@window=4,budget=40", record))
    cache = ragged.compress(record)
    assert cache.nbytes == cache.storage_nbytes == 2 * entries * (64 // 2 + 4)


def test_nothing_of_the_record_is_kept_and_forks_are_apart() -> None:
    pair, method = models("qwen2"), resolve(f"{DROPPERS[2]}+kivi@group_size=16,residual_length=16")
    ids = tokens(PROMPT + 40, seed=7)
    record = prefill(pair, ids[:PROMPT], method)
    before = [take(record.layer(i), torch.arange(PROMPT)) for i in range(LAYERS)]
    first = method.compress(record)
    storages = {t.untyped_storage().data_ptr() for layer in record.cache.layers for t in layer.tensors()}
    assert not storages & {t.untyped_storage().data_ptr() for layer in first.layers for t in layer.tensors()}
    fork = first.fork()
    force(pair, fork, tokens(30, seed=8))
    logits = force(pair, first, ids[PROMPT:])
    again = method.compress(record)
    assert torch.equal(logits, force(pair, again, ids[PROMPT:]))
    for i, (key, value) in enumerate(before):
        assert torch.equal(record.layer(i).key, key)
        assert torch.equal(record.layer(i).value, value)


def test_a_prompt_within_the_budget_is_the_quantizer_alone() -> None:
    pair, ids = models("llama"), tokens(PROMPT + 20, seed=9)
    quantizer = "kivi@group_size=16,residual_length=16"
    record = prefill(pair, ids[:PROMPT], resolve(f"snapkv@budget=512+{quantizer}"))
    both = force(pair, resolve(f"snapkv@budget=512+{quantizer}").compress(record), ids[PROMPT:])
    assert torch.equal(both, force(pair, resolve(quantizer).compress(record), ids[PROMPT:]))


def test_identity_and_what_a_run_writes_down() -> None:
    method = resolve("snapkv@budget=0.25+kivi@bits=2")
    assert method.id == "snapkv@budget=0.25+kivi@bits=2"
    assert resolve(method.id) == method
    assert method.name == "snapkv+kivi"
    assert method.parameters["snapkv.budget"] == "0.25"
    assert method.parameters["kivi.bits"] == "2"
    assert method.paper == "arXiv:2404.14469, arXiv:2402.02750"
    assert (method.traits.family, method.traits.prefill, method.traits.memory) == ("evict", "shared", "real")
    assert resolve("snapkv").name == "snapkv"
    method.check(SHAPE)
    with pytest.raises(LcbenchError, match="does not divide"):
        resolve("snapkv+kivi@group_size=64,residual_length=64").check(SHAPE)


def test_settings_reach_both_parts() -> None:
    spec = RunSpec(methods=("full", "snapkv+kivi", "kivi"), settings={"bits": "4", "window": "8"})
    assert [m.id for m in resolve_methods(spec)] == ["full", "snapkv@window=8+kivi@bits=4", "kivi@bits=4"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("kivi@bits=2+snapkv", "quantizes before it drops.*"),
        ("snapkv+knorm", "does not quantize"),
        ("kivi+flexgen", "drops no tokens"),
        ("full+kivi", "drops nothing"),
        ("snapkv+kivi+flexgen", "joins 3 methods"),
        ("h2o+kivi", "goes on dropping tokens while decoding"),
        ("streamingllm+kivi", "unless roll=false"),
        ("tova+kivi", "unless decode=false"),
        ("quest+kivi", "keeps every token"),
        ("kvmerger+kivi", "makes new entries"),
        ("snapkv+aqua-kv", "needs every token"),
        ("snapkv+flexgen-longctx", "reads the prompt in its own way"),
        ("infllm+kivi", "reads the prompt in its own way"),
        ("snapkv+", "Empty method name"),
        ("snapkv+kiwi", "Unknown method 'kiwi'"),
        ("snapkv@budjet=3+kivi", "budjet"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(spec: str, words: str) -> None:
    with pytest.raises(LcbenchError, match=words) as refusal:
        resolve(spec)
    assert "\n" not in refusal.value.message


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("quanto", marks=pytest.mark.skipif(not installed("optimum.quanto"), reason="not installed")),
        pytest.param("hqq", marks=pytest.mark.skipif(not installed("hqq"), reason="not installed")),
    ],
)
def test_the_library_s_quantizer_on_a_subset(backend: str) -> None:
    """A prompt that is the kept subset, quantized alone, holds the same codes."""
    quantizer = f"hf-quantized@backend={backend},group_size=16"
    method = resolve(f"snapkv@window=4,kernel=3,budget=40+{quantizer}")
    ids = tokens(PROMPT + 8, seed=10)
    record = prefill(models("mistral"), ids[:PROMPT], method)
    left = method.compress(record)
    alone = resolve("snapkv@window=4,kernel=3,budget=40").compress(record)
    for i, (store, exact) in enumerate(zip(left.layers, alone.layers, strict=True)):
        assert isinstance(exact, DenseLayer)
        (key,), (value,) = exact.parts()
        part = LayerRecord(i, LAYERS, key, value, record.layer(i).rule)
        assert isinstance(resolve(quantizer), CacheTransform)
        same = resolve(quantizer).layer(part, SHAPE)  # type: ignore[attr-defined]
        assert all(torch.equal(a, b) for a, b in zip(store.tensors(), same.tensors(), strict=True))
        assert torch.equal(store.positions(), exact.positions())
    assert torch.isfinite(force(models("mistral"), left, ids[PROMPT:])).all()
    assert left.layers[0].seen == PROMPT + 8
