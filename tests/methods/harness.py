"""The acceptance harness: what every registered method must show on tiny random models (T1 to T8).

A method brings a `Case`: parameters that bite on a short prompt, parameters that change nothing, how many bytes it may
hold, and an oracle written apart from the method, either which keys a query still sees (eviction) or the logits
themselves (everything else). `check` runs all tests of a case on one model family; the test modules run each alone.

Nothing here uses the code under test to make the expected numbers: references are plain transformers models.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.methods.base import Method
from lcbench.methods.registry import resolve
from lcbench.models import adapter
from lcbench.models.rule import AttentionRule
from lcbench.models.stores import Observer
from tiny import VOCAB, tiny_model

FAMILIES = ("llama", "mistral", "qwen2")
LAYERS, HEADS, KV_HEADS, HEAD_DIM = 4, 8, 2, 32
WINDOW = 48  # of the tiny Mistral: shorter than the prompts, so that sliding bites
SHAPE = CacheShape(LAYERS, HEADS, KV_HEADS, HEAD_DIM, torch.float32, torch.device("cpu"))
SCALING = HEAD_DIM**-0.5


@dataclass(frozen=True)
class Models:
    """The same weights twice: behind lcbench's attention, and as transformers made them (eager attention).

    Attributes:
        window: sliding window of every layer, or None.
    """

    family: str
    ours: Any
    plain: Any
    window: int | None


@cache
def models(family: str, dtype: torch.dtype = torch.float32) -> Models:
    """Tiny models of a family; made once a session, never modified."""
    window = WINDOW if family == "mistral" else None
    config = {"sliding_window": window} if window else {}
    plain = tiny_model(family, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, dtype=dtype, **config)
    ours = copy.deepcopy(plain)
    adapter.install(ours)
    plain.set_attn_implementation("eager")
    return Models(family, ours, plain, window)


# What a query at the end of `seen` tokens still sees of them, apart from causality and sliding windows:
# bool [Hk or 1, seen], or [H, seen] where every query head holds tokens of its own. At seen = L: what is left of the
# prompt after compression.
Visible = Callable[[Method, LayerRecord, int], Tensor]
# Logits [steps, vocab] of the forced tokens: (models, method, all ids [T], prompt tokens, keys and values [Hk, T, d]
# of each layer in the run under test, for methods whose rounding is a step function of them) -> Tensor
Reference = Callable[[Models, Method, Tensor, int, list[tuple[Tensor, Tensor]]], Tensor]


@dataclass(frozen=True)
class Case:
    """How to test one method.

    Attributes:
        spec: parameters that bite on a prompt of `prompt` tokens.
        noop: specs that must equal the full cache for `prompt` + `steps` tokens.
        nbytes: ``(shape, prompt tokens, new tokens)`` to the bytes held then; None where the text decides how much is
            kept: then every entry costs `entry_bytes`, and T2 or the reference hold the entries themselves.
        visible: oracle of an evicting method. reference: oracle of any other. Exactly one of the two.
        short: prompt lengths at the edges (1, 2, budget and window -1, +0, +1).
        untouched: whether a prompt of so many tokens must be left as it is by `spec`.
        tolerance: greatest |logit difference| from the reference; logits of the tiny models have a deviation of 1.6,
            and summing in another order alone moves them by 3e-5.
        seeded: `spec` draws at random; see `compressed`.
        extra_bytes: ``(shape, cache)`` to what is held beside the entries, where `nbytes` is None.
        bind: gives a method what was calibrated for the tiny models.
        keeps_all: the whole prompt is held, and its memory may be shared (retrieval).
        distinct: texts repeat no token: for methods that compare keys without positions, which are equal for equal
            tokens in the first layer, so that rounding alone would choose between them.
    """

    spec: str
    noop: tuple[str, ...]
    nbytes: Callable[[CacheShape, int, int], int] | None
    visible: Visible | None = None
    reference: Reference | None = None
    prompt: int = 60
    steps: int = 64
    short: tuple[int, ...] = (1, 2, 3)
    untouched: Callable[[int], bool] = lambda length: False
    tolerance: float = 1e-4
    seeded: bool = False
    entry_bytes: int = 2 * HEAD_DIM * 4
    extra_bytes: Callable[[CacheShape, KVCache], int] = lambda shape, cache_: 0
    bind: Callable[[Method], Method] = lambda method: method
    keeps_all: bool = False
    distinct: bool = False


def tokens(count: int, seed: int = 0) -> Tensor:
    """Random token ids ``[count]``."""
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def text(case: Case, count: int, seed: int) -> Tensor:
    """Token ids ``[count]`` that the case can be compared with its reference on."""
    if not case.distinct:
        return tokens(count, seed)
    return torch.randperm(VOCAB, generator=torch.Generator().manual_seed(seed))[:count]


def prefill(
    pair: Models,
    ids: Tensor,
    method: Method | None = None,
    *,
    chunk: int | None = None,
    watchers: Sequence[Observer] = (),
) -> PrefillRecord:
    """A prefill record of the prompt ``ids [L]`` with what ``method`` wants observed, and ``watchers`` watching."""
    length = len(ids)
    cache_ = KVCache.dense(LAYERS, expected=length) if method is None else method.prefill_cache(SHAPE, length)
    observers = {wish: wish.observer(LAYERS, length) for wish in (method.observes() if method else ())}
    watching = [*observers.values(), *watchers]
    logits = torch.empty(0)
    for start in range(0, length, chunk or length):
        piece = ids[start : start + (chunk or length)]
        positions = torch.arange(start, start + len(piece))
        logits = adapter.forward(pair.ours, piece[None], positions[None], [cache_], [watching])
    observed = {wish: observer.results for wish, observer in observers.items()}
    shape = replace(SHAPE, dtype=pair.ours.dtype)
    return PrefillRecord(cache_, logits[0, -1], shape, SCALING, observed)


def reading(case: Case, pair: Models, method: Method) -> AbstractContextManager[Any]:
    """Context in which a method's model runs: what a context extension changes is changed in it."""
    return method.transform_model(pair.ours, case.prompt + case.steps)


def accept(test: Callable[[Case, str], None], case: Case, family: str) -> None:
    """Run a test of the harness as the engine would: on the method's own model. T1 compares it with the plain one."""
    if test is t1_identity:
        test(case, family)
        return
    half = test is half_precision
    used = [models(family, dtype) for dtype in (torch.float16, torch.bfloat16)] if half else [models(family)]
    with ExitStack() as stack:
        for pair in used:
            stack.enter_context(reading(case, pair, made(case)))
        test(case, family)


def made(case: Case, spec: str | None = None) -> Method:
    """The method of a case, or of one of its other specs."""
    return case.bind(resolve(case.spec if spec is None else spec))


def expected_bytes(case: Case, left: KVCache, prompt: int, new: int, dtype: torch.dtype = torch.float32) -> int:
    """Bytes a case says are held ``new`` tokens after a prompt."""
    if case.nbytes is not None:
        return case.nbytes(replace(SHAPE, dtype=dtype), prompt, new)
    held = [layer.positions() for layer in left.layers]
    entry = case.entry_bytes - 2 * HEAD_DIM * (4 - dtype.itemsize)  # what is not key or value stays as it is
    entries = sum(int((h >= 0).sum()) * (KV_HEADS if h.ndim == 1 else 1) for h in held)
    return entry * entries + case.extra_bytes(replace(SHAPE, dtype=dtype), left)


def compressed(case: Case, method: Method, record: PrefillRecord) -> KVCache:
    """What the method makes of the record; methods that draw at random are seeded first, as the engine does."""
    if case.seeded:
        torch.manual_seed(17)
    return method.compress(record)


def force(pair: Models, cache_: KVCache, ids: Tensor, *, at_once: int = 1, watchers: Sequence[Observer] = ()) -> Tensor:
    """Feed ``ids [n]`` to a cache, ``at_once`` a forward; logits ``[n, vocab]``."""
    rows = []
    for start in range(0, len(ids), at_once):
        piece = ids[start : start + at_once]
        positions = torch.arange(cache_.seen, cache_.seen + len(piece))
        logits = adapter.forward(pair.ours, piece[None], positions[None], [cache_], [watchers], all_logits=True)
        rows.append(logits[0])
    return torch.cat(rows)


class KeysAndValues:
    """Collects every layer's new keys and values; give it to `prefill` and `force`."""

    def __init__(self) -> None:
        self._pieces: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(LAYERS)]

    def observe(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, start: int, store: Any, rule: AttentionRule
    ) -> None:
        self._pieces[layer].append((key.clone(), value.clone()))

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values ``[Hk, T, d]`` of each layer."""
        return [(torch.cat(k, dim=1), torch.cat(v, dim=1)) for k, v in (zip(*p, strict=True) for p in self._pieces)]


def masked_logits(pair: Models, ids: Tensor, visible: Sequence[Tensor]) -> Tensor:
    """Logits ``[T, vocab]`` of the plain model over the whole text at once, keys masked layer by layer with -inf.

    Args:
        visible: for each layer bool ``[H or 1, T, T]``, True where row may see column; causality and the sliding
            window are added here.
    """
    total = len(ids)
    distance = torch.arange(total)[:, None] - torch.arange(total)[None]
    causal = distance >= 0
    if pair.window is not None:
        causal &= distance < pair.window
    masks = [torch.zeros(v.shape).masked_fill(~(v & causal), -torch.inf)[None] for v in visible]

    def use(layer: int) -> Callable[..., Any]:
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": masks[layer]})

    handles = [
        layer.self_attn.register_forward_pre_hook(use(i), with_kwargs=True)
        for i, layer in enumerate(pair.plain.model.layers)
    ]
    try:
        with torch.inference_mode():
            return pair.plain(input_ids=ids[None], use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def evicted_logits(pair: Models, method: Method, ids: Tensor, prompt: int, visible: Visible) -> Tensor:
    """Reference of an evicting method: the plain model, with the keys its oracle calls dropped masked."""
    record = prefill(pair, ids[:prompt], method)
    layers = []
    for i in range(LAYERS):
        rows = torch.ones(HEADS, len(ids), len(ids), dtype=torch.bool)
        for position in range(prompt, len(ids)):
            seen = visible(method, record.layer(i), position + 1)
            rows[:, position, : position + 1] = seen.repeat_interleave(HEADS // seen.shape[0], dim=0)
        layers.append(rows)
    return masked_logits(pair, ids, layers)[prompt:]


def forced_and_expected(
    case: Case, pair: Models, method: Method, ids: Tensor, prompt: int, at_once: int = 1
) -> tuple[Tensor, Tensor]:
    """Logits ``[steps, vocab]`` of what follows the prompt: by the method, and by the case's oracle."""
    watcher = KeysAndValues()
    record = prefill(pair, ids[:prompt], method, watchers=[watcher])
    left = compressed(case, method, record)
    logits = force(pair, left, ids[prompt:], at_once=at_once, watchers=[watcher])
    if case.reference is not None:
        return logits, case.reference(pair, method, ids, prompt, watcher.layers())
    assert case.visible is not None, f"{case.spec} has no oracle"
    return logits, evicted_logits(pair, method, ids, prompt, case.visible)


def top_kept(scores: Callable[[LayerRecord], Tensor], at_least: int = 1) -> Visible:
    """The oracle of a `Scorer`: scores ``[Hk or H, L]`` written a second time; ties keep the lower position.

    Everything that came after the prompt is visible. ``at_least`` tokens are kept whatever the budget.
    """

    def visible(method: Any, record: LayerRecord, seen: int) -> Tensor:
        keep = max(method.budget.resolve(record.length), at_least)
        again = scores(record)
        seen_by = torch.ones(again.shape[0], seen, dtype=torch.bool)
        for head, row in enumerate(again.tolist()):
            ranked = sorted(range(record.length), key=lambda position: (-row[position], position))
            seen_by[head, ranked[keep:]] = False
        return seen_by

    return visible


def at_once(family: str, again: bool = False) -> int:
    """How many tokens a forward reads: one by one, as in decoding, which costs most, only where that shows more.

    Qwen2 is Llama with biases; what is done ``again`` differs in nothing that a token at a time would show twice.
    Several at once are the other half of the same claim.
    """
    return 1 if family == "mistral" or (family == "llama" and not again) else 5


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


# --- the tests ------------------------------------------------------------------------------------------------------


@cache
def nothing_done(family: str, prompt: int, steps: int) -> tuple[Tensor, Tensor]:
    """Logits ``[prompt + steps, vocab]`` by the plain model and ``[steps, vocab]`` by the full cache, which agree.

    Read-only: made once a session, whatever method asks.
    """
    pair, ids = models(family), tokens(prompt + steps, seed=1)
    plain = masked_logits(pair, ids, [torch.ones(1, len(ids), len(ids), dtype=torch.bool)] * LAYERS)
    with torch.inference_mode():
        assert largest_difference(plain, pair.plain(input_ids=ids[None]).logits[0]) < 1e-4
    record = prefill(pair, ids[:prompt])
    assert largest_difference(record.logits, plain[prompt - 1]) < 1e-4
    full = force(pair, record.cache, ids[prompt:])
    assert largest_difference(full, plain[prompt:]) < 1e-4
    return plain, full


def t1_identity(case: Case, family: str) -> None:
    """A setting that changes nothing equals the full cache; the full cache equals the plain model."""
    pair = models(family)
    plain, full = nothing_done(family, case.prompt, case.steps)
    ids = tokens(case.prompt + case.steps, seed=1)
    for i, spec in enumerate(case.noop):
        method = made(case, spec)
        with reading(case, pair, method):
            left = compressed(case, method, prefill(pair, ids[: case.prompt], method))
            logits = force(pair, left, ids[case.prompt :], at_once=at_once(family, again=i > 0))
        assert largest_difference(logits, plain[case.prompt :]) < 1e-4, f"{spec} is not the full cache"
        assert largest_difference(logits, full) < 5e-5, f"{spec} is not the full cache"


def t2_kept_sets(case: Case, family: str) -> None:
    """What is left of the prompt is what the oracle says, layer by layer and head by head."""
    if case.visible is None:
        return
    pair, method = models(family), made(case)
    record = prefill(pair, tokens(case.prompt, seed=2), method)
    left = compressed(case, method, record)
    for i, layer in enumerate(left.layers):
        held, expected = layer.positions(), case.visible(method, record.layer(i), record.length)
        heads = HEADS if held.ndim == 2 and held.shape[0] == HEADS else KV_HEADS
        held, expected = held.expand(heads, -1), expected.expand(heads, -1)
        for head in range(heads):
            kept = [p for p in held[head].tolist() if p >= 0]
            assert sorted(kept) == expected[head].nonzero()[:, 0].tolist(), f"layer {i} head {head}"
            assert len(set(kept)) == len(kept)


def t3_forced_logits(case: Case, family: str) -> None:
    """Teacher-forced logits equal the second computation: positions, order, grouping, masks, decode policy."""
    pair, method = models(family), made(case)
    ids = text(case, case.prompt + case.steps, seed=3)
    logits, expected = forced_and_expected(case, pair, method, ids, case.prompt, at_once(family))
    assert largest_difference(logits, expected) < case.tolerance
    full = masked_logits(pair, ids, [torch.ones(1, len(ids), len(ids), dtype=torch.bool)] * LAYERS)
    if case.spec not in case.noop:  # the method bites, so the comparison above says something
        assert largest_difference(expected, full[case.prompt :]) > 100 * case.tolerance


def t4_bytes(case: Case, family: str) -> None:
    """Reported bytes are those of every tensor held, equal the formula, and nothing of the record is kept alive."""
    pair, method = models(family), made(case)
    record = prefill(pair, tokens(case.prompt, seed=4), method)
    left = compressed(case, method, record)
    assert left.nbytes == expected_bytes(case, left, case.prompt, 0)
    assert left.nbytes == sum(t.numel() * t.element_size() for layer in left.layers for t in layer.tensors())
    assert left.seen == case.prompt
    if method.traits.memory == "real":
        assert left.storage_nbytes == left.nbytes
        if case.spec not in case.noop and not case.keeps_all:
            whole = SHAPE.full_bytes(case.prompt) // LAYERS  # a layer that is left whole may share the prompt's memory
            changed = KVCache([layer for layer in left.layers if layer.nbytes != whole])
            assert changed.layers, "nothing was compressed"
            assert not _storages(changed) & _storages(record.cache), "the cache keeps the prompt's memory alive"
    for step in range(12):
        force(pair, left, tokens(1, seed=step))
        assert left.nbytes == expected_bytes(case, left, case.prompt, step + 1), f"after {step + 1} new tokens"
    unlisted = _reachable(left.layers) - _storages(left)
    assert not unlisted, f"{len(unlisted)} tensors are held and not counted"


def t5_state(case: Case, family: str) -> None:
    """Prompts one after another through one method object give what each gives alone and in another order."""
    pair, method = models(family), made(case)
    prompts = [tokens(case.prompt, seed=5), tokens(case.prompt // 2, seed=6), tokens(case.prompt + 7, seed=7)]
    forced = tokens(8, seed=8)
    together = [force(pair, compressed(case, method, prefill(pair, p, method)), forced) for p in prompts]
    for prompt, logits in reversed(list(zip(prompts, together, strict=True))):
        alone = made(case)
        assert torch.equal(force(pair, compressed(case, alone, prefill(pair, prompt, alone)), forced), logits)


def t6_shared_record(case: Case, family: str) -> None:
    """Compressing and decoding leave the record bit-identical; the next method gets what a fresh prefill gives."""
    pair, method = models(family), made(case)
    if method.traits.prefill != "shared":
        return
    prompt, forced = tokens(case.prompt, seed=9), tokens(40, seed=10)
    record = prefill(pair, prompt, method)
    before = [t.clone() for layer in record.cache.layers for t in layer.tensors()]
    logits = record.logits.clone()
    first = force(pair, compressed(case, method, record), forced)
    after = [t for layer in record.cache.layers for t in layer.tensors()]
    assert torch.equal(record.logits, logits)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(force(pair, compressed(case, method, record), forced), first)
    fresh = compressed(case, method, prefill(pair, prompt, method))
    assert torch.equal(force(pair, fresh, forced[:16]), first[:16])


def t6_forks(case: Case, family: str) -> None:
    """A fork in the middle of decoding goes its own way and leaves the other as it was."""
    pair, method = models(family), made(case)
    record = prefill(pair, tokens(case.prompt, seed=11), method)
    forced, other = tokens(48, seed=12), tokens(24, seed=13)
    expected = force(pair, compressed(case, method, record), forced)
    left = compressed(case, method, record)
    assert torch.equal(force(pair, left, forced[:24]), expected[:24])
    fork = left.fork()
    force(pair, fork, other, at_once=4)
    second = left.fork()
    assert torch.equal(force(pair, left, forced[24:]), expected[24:])
    assert torch.equal(force(pair, second, forced[24:]), expected[24:])
    assert fork.seen == left.seen == second.seen


def t7_short_prompts(case: Case, family: str) -> None:
    """Prompts at the edges neither crash nor are compressed when they fit, and equal the reference."""
    pair, method = models(family), made(case)
    for length in case.short:
        ids = text(case, length + 10, seed=length)
        left = compressed(case, method, prefill(pair, ids[:length], method))
        assert left.seen == length
        assert left.nbytes == expected_bytes(case, left, length, 0), f"{length} tokens"
        if case.untouched(length):
            assert left.nbytes == SHAPE.full_bytes(length), f"{length} tokens"
            assert left.entries == length
        logits, expected = forced_and_expected(case, pair, method, ids, length, at_once(family, again=True))
        assert torch.isfinite(logits).all()
        assert largest_difference(logits, expected) < case.tolerance, f"{length} tokens"


def t8_deterministic(case: Case, family: str) -> None:
    """The same twice gives the same bits."""
    pair = models(family)
    ids = tokens(case.prompt + 16, seed=14)
    runs = []
    for _ in range(2):
        method = made(case)
        runs.append(
            force(pair, compressed(case, method, prefill(pair, ids[: case.prompt], method)), ids[case.prompt :])
        )
    assert torch.equal(*runs)


def several_at_once(case: Case, family: str) -> None:
    """Several tokens in one forward are what they are one by one: the same reference holds."""
    pair, method = models(family), made(case)
    ids = text(case, case.prompt + 45, seed=15)
    logits, expected = forced_and_expected(case, pair, method, ids, case.prompt, at_once=15)
    assert largest_difference(logits, expected) < case.tolerance


def half_precision(case: Case, family: str) -> None:
    """fp16 and bf16 models run, hold the bytes of their dtype and stay finite."""
    for dtype in (torch.float16, torch.bfloat16):
        pair, method = models(family, dtype), made(case)
        left = compressed(case, method, prefill(pair, tokens(case.prompt, seed=17), method))
        assert left.nbytes == expected_bytes(case, left, case.prompt, 0, dtype)
        if method.traits.memory == "real":
            assert left.storage_nbytes == left.nbytes
        logits = force(pair, left, tokens(20, seed=18))
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()
        assert left.nbytes == expected_bytes(case, left, case.prompt, 20, dtype)


TESTS = (
    t1_identity,
    t2_kept_sets,
    t3_forced_logits,
    t4_bytes,
    t5_state,
    t6_shared_record,
    t6_forks,
    t7_short_prompts,
    t8_deterministic,
    several_at_once,
    half_precision,
)
# What these compare is the method with itself; Mistral's layers, with their sliding window, have everything.
ON_ONE_FAMILY = {
    t5_state: "mistral",
    t6_shared_record: "mistral",
    t6_forks: "mistral",
    t8_deterministic: "mistral",
    half_precision: "mistral",
}


def check(case: Case, families: Iterable[str] = FAMILIES) -> None:
    """Every test of the harness on every family; raises AssertionError at the first that fails."""
    with one_thread():
        for family in families:
            for test in TESTS:
                if ON_ONE_FAMILY.get(test, family) == family:
                    accept(test, case, family)


@contextmanager
def one_thread() -> Any:
    """Tiny models are slower on many threads, and results must not depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _storages(cache_: KVCache) -> set[int]:
    return {t.untyped_storage().data_ptr() for layer in cache_.layers for t in layer.tensors() if t.numel()}


def _reachable(roots: Sequence[Any]) -> set[int]:
    """Storages of all floating-point and packed tensors the objects hold, however deep; int64 positions left out."""
    found: set[int] = set()
    known: set[int] = set()
    todo: list[Any] = list(roots)
    while todo:
        thing = todo.pop()
        # What the layer's rule brings (sinks, rotary frequencies) belongs to the model.
        if id(thing) in known or isinstance(thing, type | AttentionRule) or callable(thing):
            continue
        known.add(id(thing))
        if isinstance(thing, Tensor) and hasattr(thing, "__tensor_flatten__"):  # a wrapper without memory of its own
            todo += [getattr(thing, name) for name in thing.__tensor_flatten__()[0]]
        elif isinstance(thing, Tensor):
            if thing.numel() and thing.dtype != torch.int64:
                found.add(thing.untyped_storage().data_ptr())
            continue
        todo += [r for r in gc.get_referents(thing) if not isinstance(r, str | int | float | ModuleType)]
    return found
