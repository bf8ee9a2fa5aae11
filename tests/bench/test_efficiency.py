"""One cell of the bench: what is timed, what is counted, and the byte model on top."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lcbench.bench import capacity, efficiency
from lcbench.bench.capacity import ByteModel, probe, search
from lcbench.bench.efficiency import Workload, measure
from lcbench.config.spec import ModelSpec
from lcbench.errors import ModelError
from lcbench.kv.cache import KVCache, storage_nbytes
from lcbench.measure import clock
from lcbench.methods.registry import resolve
from lcbench.models import adapter
from lcbench.models.info import LoadedModel
from lcbench.models.random_weights import load_random

# Facts of the architecture "tiny": layers, KV heads, head dimension, vocabulary, hidden size; bytes of fp32.
N, HK, D, VOCAB, HIDDEN, E = 4, 2, 32, 260, 64, 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Each further thread has scratch memory, a quarter of a MiB, beside the byte model: much for a tiny model."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load_random(ModelSpec(name="tiny"))


def kivi_bytes(length: int, bits: int = 2, group: int = 32, residual: int = 128) -> int:
    """The cache after a prompt by the formula of the method's documentation."""
    keys, values = length // residual * residual, max(0, length - residual)
    quantized = sum(HK * D * n * bits // 8 + HK * D * 4 * n // group for n in (keys, values))
    exact = HK * D * E * (length - keys + length - values)
    return N * (quantized + exact)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("full", 2 * N * HK * D * E * 300),
        ("streamingllm@budget=64", 2 * N * HK * D * E * 64),
        ("kivi@bits=2", kivi_bytes(300)),
        ("kivi@bits=4", kivi_bytes(300, bits=4)),
    ],
)
def test_bytes_are_those_of_the_formula(tiny: LoadedModel, method: str, expected: int) -> None:
    cell = measure(tiny, resolve(method), Workload(300, batch=3, new_tokens=2, repeats=1))
    assert cell.kv_bytes == 3 * expected
    assert cell.kv_bytes_full == 3 * 2 * N * HK * D * E * 300
    assert cell.weight_bytes == sum(p.numel() * 4 for p in tiny.model.parameters())
    assert cell.read_bytes == cell.weight_bytes - VOCAB * HIDDEN * 4  # the embedding table is looked up, not read


def test_weights_caches_and_activations_add_up_to_the_peak(tiny: LoadedModel) -> None:
    cell = measure(tiny, resolve("full"), Workload(300, batch=2, new_tokens=4, repeats=1))
    assert set(cell.phases) == {"read", "compress", "decode"}
    assert cell.peak_bytes == cell.weight_bytes + cell.peak.kv + cell.peak.activations
    # Reading a prompt needs at least its hidden states and the widest projection; decoding less.
    assert cell.phases["read"].activations > 300 * HIDDEN * 4 * 3
    assert cell.phases["decode"].activations < cell.phases["read"].activations / 3
    room, seen = (
        2 * 2 * N * HK * D * E * 320,
        N * 2 * (320 + 8),
    )  # room in steps of 64; which of it is seen, and its end
    assert cell.phases["decode"].kv == cell.kv_end_bytes == room + seen


def test_the_clock_splits_prefill_from_decoding(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the model moves: 40 ms a prompt, 10 ms a step however many sequences it carries."""
    real, now, calls = adapter.forward, [0.0], []

    def known(model: Any, ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(tuple(ids.shape))
        now[0] += 0.040 if ids.shape[1] > 1 else 0.010
        return real(model, ids, *args, **kwargs)

    monkeypatch.setattr(adapter, "forward", known)
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    cell = measure(tiny, resolve("full"), Workload(20, batch=4, new_tokens=6, repeats=2))
    one_pass = [(1, 20)] * 4 + [(4, 1)] * 5
    assert calls == one_pass * 3  # a pass to warm up and two that count; nothing is shared between them
    assert cell.time_to_first_token == pytest.approx(0.040)
    assert cell.decode_tokens_per_second == pytest.approx(4 * 5 / 0.050)
    assert cell.samples_per_second == pytest.approx(4 / (0.160 + 0.050))


def test_medians_are_over_the_passes_that_count(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0, 0.3, 0.1, 0.2])
    real = efficiency.run_pass

    def told(*args: Any, **kwargs: Any) -> efficiency.Pass:
        done, second = real(*args, **kwargs), next(seconds)
        return efficiency.Pass((second,), second, 2 * second, done.kv_bytes, done.kv_read, done.phases)

    monkeypatch.setattr(efficiency, "run_pass", told)
    cell = measure(tiny, resolve("full"), Workload(8, new_tokens=3, repeats=3))
    assert cell.time_to_first_token == 0.2
    assert cell.decode_tokens_per_second == pytest.approx(2 / 0.4)
    assert cell.samples_per_second == pytest.approx(1 / statistics.median([0.9, 0.3, 0.6]))


def test_a_method_that_rewrites_text_is_refused(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    method = resolve("full")
    monkeypatch.setattr(type(method), "rewriter", method)
    with pytest.raises(ModelError, match="rewrites the text"):
        measure(tiny, method, Workload(8))


def test_the_limit_counts_what_a_step_reads(tiny: LoadedModel) -> None:
    work = Workload(512, batch=2, new_tokens=5, repeats=1)
    full, quest = (measure(tiny, resolve(name), work) for name in ("full", "quest@budget=64,dense_layers=0"))
    prompt, token = 2 * 2 * N * HK * D * E * 512, 2 * 2 * N * HK * D * E
    assert full.step_bytes == full.read_bytes + prompt + 4 * token // 2  # four tokens are fed back: two, on average
    assert quest.kv_bytes >= prompt  # keeps everything
    assert quest.step_bytes < full.read_bytes + prompt / 2  # and reads a part of it


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "jetmoe"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_limit_counts_the_experts_that_were_chosen(tmp_path: Path, kind: str, batch: int) -> None:
    config = {"model_type": kind, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 48}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99}
    config |= {"num_experts": 16, "num_local_experts": 16, "num_experts_per_tok": 2, "head_dim": 8, "kv_channels": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        loaded = load_random(ModelSpec(name=str(tmp_path)))
    except ModelError as error:
        pytest.skip(error.message)
    cell = measure(loaded, resolve("full"), Workload(40, batch=batch, new_tokens=5, repeats=1))
    owners = [m for m in loaded.model.modules() if any(p.ndim == 3 for p in m.parameters(recurse=False))]
    experts = sum(p.numel() * E for m in owners for p in m.parameters(recurse=False))
    rest = efficiency.weights_read(loaded.model) - experts
    assert owners
    if batch == 1:  # two of sixteen in every layer and step
        assert cell.read_bytes == pytest.approx(rest + experts / 8, abs=len(owners))
    else:
        assert rest + experts / 8 - len(owners) <= cell.read_bytes <= rest + 6 * experts / 16
    assert not any(m._forward_pre_hooks for m in loaded.model.modules())  # nothing is left behind


@pytest.mark.parametrize("name", ["full", "kivi@bits=2", "snapkv@budget=64", "streamingllm@budget=64", "h2o@budget=64"])
def test_the_byte_model_predicts_the_peak_of_larger_batches(tiny: LoadedModel, name: str) -> None:
    work = Workload(200, new_tokens=4, repeats=1)
    model = probe(tiny, resolve(name), work)
    for batch in (1, 12):  # reading a prompt needs most with one sequence, decoding with twelve
        measured = measure(tiny, resolve(name), Workload(200, batch=batch, new_tokens=4, repeats=1)).peak_bytes
        assert model.peak(batch) == pytest.approx(measured, rel=0.01)


def test_the_largest_batch_is_the_last_one_within_the_memory() -> None:
    model = ByteModel(weights=1000, read=300, compress=200, kv=10, alone=60, base=50, row=15)
    for memory in (999, 1300, 1301, 1500, 10**6):
        largest = model.largest(memory)
        assert largest == 0 or model.peak(largest) <= memory
        assert model.peak(largest + 1) > memory
    assert model.largest(1299) == 0
    assert model.largest(1300) == 1


@pytest.mark.parametrize("true", [0, 1, 2, 7, 60, 1000])
@pytest.mark.parametrize("guess", [0, 1, 50, 4000])
def test_trying_ends_at_the_last_batch_that_runs(true: int, guess: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= true

    found = search(fits, guess)
    assert true * 0.98 - 1 < found <= true
    assert found == 0 or found in tried
    assert len(tried) < 60


def test_a_trial_holds_caches_with_memory_of_their_own(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    held_bytes = []
    real = capacity.run_pass

    def spy(*args: Any, held: list[KVCache], **kwargs: Any) -> Any:
        held_bytes.append((len(held), storage_nbytes(held)))
        return real(*args, held=held, **kwargs)

    monkeypatch.setattr(capacity, "run_pass", spy)
    assert capacity._runs(tiny, resolve("kivi@bits=2"), Workload(300, new_tokens=3), 5)
    assert held_bytes == [(4, 4 * kivi_bytes(300))]
