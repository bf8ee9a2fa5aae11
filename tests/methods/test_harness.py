"""The harness itself can fail: each test refuses a method that is wrong in the way it looks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import harness
import pytest
import torch
from cases import CASES
from harness import Case
from torch import Tensor

from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer, LayerKV
from lcbench.kv.record import PrefillRecord
from lcbench.kv.ring import RingLayer
from lcbench.methods import registry
from lcbench.methods.base import Method, Traits
from lcbench.methods.registry import all_methods, method
from lcbench.models.rule import AttentionRule

STREAMING, GROWING = CASES["streamingllm"][:2]


@pytest.fixture(autouse=True)
def _set_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    all_methods()
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    with harness.one_thread():
        yield


def cut(record: PrefillRecord, make: Callable[[Tensor, Tensor, Tensor], LayerKV], sinks: int = 4) -> KVCache:
    """Sinks and the newest 16 of each layer, stored by ``make(key, value, kept)``."""
    length = record.length
    kept = torch.cat([torch.arange(sinks), torch.arange(max(sinks, length - 16), length)])[:length]
    layers = [record.layer(i) for i in range(record.shape.layers)]
    return KVCache([make(layer.key[:, kept], layer.value[:, kept], kept) for layer in layers])


def dense(record: PrefillRecord) -> Callable[..., LayerKV]:
    return lambda key, value, kept: DenseLayer(key, value, kept=kept, seen=record.length)


def broken(compress: Callable[[Any, PrefillRecord], KVCache], like: Case = GROWING) -> Case:
    """A case like a good one, whose method compresses with the given function."""

    @method("broken", paper="", traits=Traits(family="evict"))
    @dataclass(frozen=True)
    class Broken(Method):
        """Wrong on purpose."""

        n_sink = 4

        def compress(self, record: PrefillRecord) -> KVCache:
            return compress(self, record)

    return replace(like, spec="broken")


def refused(test: Callable[[Case, str], None], case: Case, good: Case = GROWING) -> None:
    test(replace(case, spec=good.spec), "llama")  # the good one passes this very test
    with pytest.raises(AssertionError):
        test(case, "llama")


def test_the_good_one_written_here_passes() -> None:
    case = broken(lambda self, record: cut(record, dense(record)))
    for test in harness.TESTS:
        if test is not harness.t7_short_prompts:
            test(case, "llama")


def test_identity_is_checked() -> None:
    case = broken(lambda self, record: cut(record, dense(record)))
    with pytest.raises(AssertionError, match="not the full cache"):
        harness.t1_identity(replace(case, noop=("broken",)), "llama")


def test_one_sink_too_few_is_noticed() -> None:
    case = broken(lambda self, record: cut(record, dense(record), sinks=3))
    refused(harness.t2_kept_sets, case)
    refused(harness.t3_forced_logits, case)
    refused(harness.t4_bytes, case)


def test_positions_counted_inside_the_cache_are_noticed() -> None:
    def compress(self: Any, record: PrefillRecord) -> KVCache:
        return cut(record, lambda key, value, kept: DenseLayer(key, value, kept=kept))  # seen = 20

    refused(harness.t3_forced_logits, broken(compress))


def test_swapped_kv_heads_are_noticed() -> None:
    def compress(self: Any, record: PrefillRecord) -> KVCache:
        make = dense(record)
        return cut(record, lambda key, value, kept: make(key.flip(0), value.flip(0), kept))

    refused(harness.t3_forced_logits, broken(compress))


def test_views_of_the_record_are_noticed() -> None:
    def compress(self: Any, record: PrefillRecord) -> KVCache:
        kept = torch.arange(40, 60)
        layers = [record.layer(i) for i in range(record.shape.layers)]
        return KVCache([DenseLayer(x.key[:, 40:], x.value[:, 40:], kept=kept, seen=60) for x in layers])

    refused(harness.t4_bytes, broken(compress))


class _Hoarder(DenseLayer):
    """Keeps something that it does not list."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.secret = {"deep": [torch.ones(7)]}


def test_tensors_that_are_not_listed_are_noticed() -> None:
    def compress(self: Any, record: PrefillRecord) -> KVCache:
        return cut(record, lambda key, value, kept: _Hoarder(key, value, kept=kept, seen=record.length))

    refused(harness.t4_bytes, broken(compress))


def test_state_in_the_method_is_noticed() -> None:
    def compress(self: Any, record: PrefillRecord) -> KVCache:
        first = self.__dict__.setdefault("first", record.length)
        return cut(record, dense(record), sinks=4 if first == record.length else 2)

    refused(harness.t5_state, broken(compress))


def test_state_in_a_global_is_noticed() -> None:
    lengths = [0]

    def compress(self: Any, record: PrefillRecord) -> KVCache:
        lengths.append(record.length)
        return cut(record, dense(record), sinks=4 if lengths[-2] < record.length else 2)

    refused(harness.t5_state, broken(compress))


def test_writing_to_the_record_is_noticed() -> None:
    def compress(self: Any, record: PrefillRecord) -> KVCache:
        left = cut(record, dense(record))
        with torch.inference_mode():
            record.layer(2).value[0, 0, 0] += 1e-3
        return left

    refused(harness.t6_shared_record, broken(compress))


class _Shared(RingLayer):
    """Forks write to the same ring."""

    def fork(self) -> RingLayer:
        new = super().fork()
        new._key, new._value = self._key, self._value
        return new


def test_forks_that_share_memory_are_noticed() -> None:
    def compress(self: Any, record: PrefillRecord) -> KVCache:
        return cut(
            record,
            lambda key, value, kept: _Shared(key, value, sinks=4, capacity=20, kept=kept, seen=record.length),
        )

    refused(harness.t6_forks, broken(compress, STREAMING), STREAMING)


def test_compressing_a_prompt_that_fits_is_noticed() -> None:
    def compress(self: Any, record: PrefillRecord) -> KVCache:
        if record.length > 2:
            return cut(record, dense(record), sinks=min(3, record.length))
        return record.cache.fork()

    refused(harness.t7_short_prompts, broken(compress))


def test_chance_is_noticed() -> None:
    def compress(self: Any, record: PrefillRecord) -> KVCache:
        make = dense(record)
        noise = 1 + torch.rand(1) * 1e-3
        return cut(record, lambda key, value, kept: make(key * noise, value, kept))

    refused(harness.t8_deterministic, broken(compress))


class _Impatient(RingLayer):
    """Takes all new tokens before the first of them attends."""

    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        assert self._pending is not None
        key, value = self._pending
        q = key.shape[1]
        for i in range(q - 1):
            self._push(key[:, i], value[:, i], self.seen - q + i)
        self._pending = (key[:, q - 1 :], value[:, q - 1 :])
        out = super().attend(query[:, -1:], rule)
        return out.expand(-1, q, -1)


def test_tokens_that_overtake_each_other_are_noticed() -> None:
    def compress(self: Any, record: PrefillRecord) -> KVCache:
        return cut(
            record,
            lambda key, value, kept: _Impatient(key, value, sinks=4, capacity=20, kept=kept, seen=record.length),
        )

    case = broken(compress, STREAMING)
    harness.t3_forced_logits(case, "llama")  # right one by one
    refused(harness.several_at_once, case, STREAMING)
