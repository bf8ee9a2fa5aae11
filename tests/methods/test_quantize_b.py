"""flexgen, flexgen-longctx and hf-quantized beyond the acceptance harness."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import cases_quantize_b
import flexgen_reference
import harness
import numpy as np
import pytest
import stored_reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import cache_utils

from lcbench.errors import BadValue, ModelError, SampleError
from lcbench.kv.cache import CacheShape
from lcbench.kv.codecs import Grouped, InverseScaled
from lcbench.kv.token_store import TokenCodes
from lcbench.methods.quantize.hf_quantized import LibraryLayer
from lcbench.methods.quantize.kivi import KiviLayer
from lcbench.methods.registry import resolve
from lcbench.models import linear
from lcbench.models.rule import AttentionRule

QUANTO = pytest.mark.skipif(not cases_quantize_b.installed("optimum.quanto"), reason="optimum-quanto is not installed")
HQQ = pytest.mark.skipif(not cases_quantize_b.installed("hqq"), reason="hqq is not installed")
BACKENDS = [pytest.param("quanto", marks=QUANTO), pytest.param("hqq", marks=HQQ)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def vectors(n: int, width: int = 32, heads: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """``[heads, n, width]`` with one channel that stands out, as in real keys."""
    x = torch.randn(heads, n, width, generator=torch.Generator().manual_seed(seed))
    x[:, :, 3] += 4
    return x.to(dtype)


def shape_of(width: int, kv_heads: int = 2) -> CacheShape:
    return CacheShape(2, 8, kv_heads, width, torch.float16, torch.device("cpu"))


# --- the inverse-scale codec ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("width", "group"), [(128, 64), (64, 64), (32, 16), (80, 64)])
def test_stored_nibbles_are_the_formula(width: int, group: int, dtype: torch.dtype) -> None:
    x = vectors(20, width, dtype=dtype)
    packed, inverse, minimum = InverseScaled(group).encode(x)
    codes, expected_inverse, expected_minimum = flexgen_reference.encode(x.float().numpy(), group)
    flat = codes.reshape(2, 20, -1)
    assert np.array_equal(packed.numpy() >> 4, flat[..., 0::2])  # the even channel is the high nibble
    assert np.array_equal(packed.numpy() & 15, flat[..., 1::2])
    assert np.array_equal(inverse.numpy(), expected_inverse)
    assert np.array_equal(minimum.numpy(), expected_minimum)
    restored = InverseScaled(group).decode((packed, inverse, minimum), width, torch.float32).numpy()
    assert np.array_equal(restored, flexgen_reference.inverse_scaled(x.float().numpy(), group))


def test_a_byte_by_hand() -> None:
    x = torch.tensor([[[0.0, 15.0, 7.0, 8.0]]])
    packed, inverse, minimum = InverseScaled(4).encode(x)
    assert packed.tolist() == [[[0x0F, 0x78]]]
    assert (inverse.tolist(), minimum.tolist()) == ([[[1.0]]], [[[0.0]]])


def test_pairs_of_scale_and_minimum() -> None:
    """Check 3: d = 128 gives two a token and head at G = 64, four at G = 32."""
    x = vectors(5, 128)
    assert [t.shape for t in InverseScaled(64).encode(x)] == [(2, 5, 64), (2, 5, 2), (2, 5, 2)]
    assert [t.shape for t in Grouped(4, 32).encode(x)] == [(2, 5, 16), (2, 5, 4), (2, 5, 4)]


def _ulp(x: Tensor) -> Tensor:
    """Distance to the next fp16 number."""
    half = x.abs().half()
    return ((half.view(torch.int16) + 1).view(torch.float16) - half).float()


@pytest.mark.parametrize("codec", [InverseScaled(32), Grouped(4, 32), Grouped(2, 16)])
def test_a_second_pass_changes_nothing(codec: Any) -> None:
    """Check 2: what was restored is restored again, up to one fp16 ulp."""
    x = vectors(200)
    once = codec.decode(codec.encode(x), 32, torch.float32)
    twice = codec.decode(codec.encode(once), 32, torch.float32)
    assert ((once - twice).abs() <= _ulp(once)).all()
    assert (once - x).abs().max() > 0.1  # and it is a quantizer


@given(
    low=st.floats(-6e4, 6e4, width=16),
    spread=st.floats(0, 6e4, width=16),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=200, deadline=None)
def test_error_is_half_a_step_and_an_ulp(low: float, spread: float, seed: int) -> None:
    x = low + spread * torch.rand(1, 3, 32, generator=torch.Generator().manual_seed(seed))
    x = x.clamp(-65504, 65504)
    codec = InverseScaled(32)
    parts = codec.encode(x)
    restored = codec.decode(parts, 32, torch.float32)
    inverse = parts[1].float()
    half_step = torch.where(inverse > 0, 0.5 / inverse, torch.zeros_like(inverse))
    assert torch.isfinite(restored).all()
    # the stored inverse is rounded to fp16, too: 15 steps may fall short of the range by 2^-11 of it
    slack = (x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)) * 2.0**-11
    assert ((restored - x).abs() <= half_step + _ulp(x.abs().amax(-1, keepdim=True)) + slack + 1e-6).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -3.1415, 65504.0, 1e-7, 1e6, -1e9])
def test_equal_numbers_survive(value: float) -> None:
    """Check 4: no NaN where maximum and minimum are the same; what fp16 cannot hold saturates."""
    for codec in (InverseScaled(16), Grouped(4, 16)):
        x = torch.full((1, 2, 32), value)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            restored = codec.decode(codec.encode(x), 32, dtype).float()
            expected = torch.full_like(x, value).clamp(-65504, 65504).half().float()
            assert torch.allclose(restored, expected, rtol=4e-3, atol=0)


def test_wild_groups_stay_finite() -> None:
    x = torch.tensor([[[-1e9, 1e9, 0.0, 1.0], [1e-8, 2e-8, 0.0, 0.0], [65504.0, -65504.0, 1.0, 2.0]]])
    codec = InverseScaled(4)
    assert torch.isfinite(codec.decode(codec.encode(x), 4, torch.float16)).all()


# --- the two methods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("flexgen@group_size=63", "group_size=63"),
        ("flexgen@group_size=0", "group_size=0"),
        ("flexgen-longctx@bits=3", "bits=3"),
        ("flexgen-longctx@group_size=12", "group_size=12"),
        ("flexgen-longctx@bits=2,group_size=8", "group_size=8"),
    ],
)
def test_values_they_cannot_take(spec: str, names: str) -> None:
    with pytest.raises(BadValue, match=names) as caught:
        resolve(spec)
    assert caught.value.next_step


def test_longctx_refuses_a_head_dimension_its_group_does_not_divide() -> None:
    with pytest.raises(ModelError, match=r"32.*80"):
        resolve("flexgen-longctx").check(shape_of(80))
    resolve("flexgen-longctx@group_size=16").check(shape_of(80))
    resolve("flexgen").check(shape_of(80))  # fills its last group up


def test_only_the_longctx_variant_changes_the_prompt() -> None:
    """Check 1: the logits after the prompt, against full attention and against the reference."""
    pair, ids = harness.models("llama"), harness.tokens(60, seed=1)
    full = harness.prefill(pair, ids)
    watcher = harness.KeysAndValues()
    method = resolve("flexgen-longctx")
    quantized = harness.prefill(pair, ids, method, watchers=[watcher])
    assert torch.equal(harness.prefill(pair, ids, resolve("flexgen")).logits, full.logits)
    assert harness.largest_difference(quantized.logits, full.logits) > 0.05
    layers = stored_reference.arrays(watcher.layers())
    view = flexgen_reference.view_of(layers, lambda x: flexgen_reference.grouped(x, 4, 32), own_exact=False)
    expected = stored_reference.logits(pair, ids, 0, view)[-1]
    assert harness.largest_difference(quantized.logits, expected) < 1e-4


def test_longctx_prompts_in_chunks_are_the_same_to_the_byte() -> None:
    pair, ids, forced = harness.models("mistral"), harness.tokens(90, seed=2), harness.tokens(10, seed=3)
    runs = []
    for chunk in (None, 17):
        method = resolve("flexgen-longctx")
        record = harness.prefill(pair, ids, method, chunk=chunk)
        left = method.compress(record)
        assert left.storage_nbytes == left.nbytes == 2 * 4 * 2 * 32 * 90 * 5 // 8
        runs.append(torch.cat([record.logits[None], harness.force(pair, left, forced)]))
    assert harness.largest_difference(*runs) < 1e-4


def test_quantizing_everything_again_at_each_step_changes_nothing() -> None:
    """What the benchmark's code does: it keeps the exact cache and quantizes the whole of it at every forward."""
    key, value = vectors(70, seed=1), vectors(70, seed=2)
    store = TokenCodes.of_prompt(key[:, :50], value[:, :50], Grouped(4, 32), own_exact=False)
    query = torch.randn(8, 1, 32, generator=torch.Generator().manual_seed(3))
    for step in range(50, 70):
        store.append(key[:, step : step + 1], value[:, step : step + 1])
        store.attend(query, AttentionRule(0.2))
        codec = Grouped(4, 32)
        again = [codec.decode(codec.encode(x[:, : step + 1]), 32, torch.float32) for x in (key, value)]
        assert all(torch.equal(a, b) for a, b in zip(store.decoded(torch.float32), again, strict=True))


def test_the_reference_tells_the_current_token_apart() -> None:
    """A store that compressed the current token before its own step would be noticed."""
    pair, ids = harness.models("llama"), harness.tokens(90, seed=4)
    watcher = harness.KeysAndValues()
    method = resolve("flexgen@group_size=16")
    record = harness.prefill(pair, ids[:60], method, watchers=[watcher])
    logits = harness.force(pair, method.compress(record), ids[60:], watchers=[watcher])
    layers = stored_reference.arrays(watcher.layers())

    def restore(x: np.ndarray) -> np.ndarray:
        return flexgen_reference.inverse_scaled(x, 16)

    right, wrong = (
        stored_reference.logits(pair, ids, 60, flexgen_reference.view_of(layers, restore, own_exact=exact))[60:]
        for exact in (True, False)
    )
    assert harness.largest_difference(logits, right) < 1e-4
    assert harness.largest_difference(logits, wrong) > 1e-2


@pytest.mark.parametrize(("width", "bits"), [(128, 4.5), (64, 4.5), (80, 2 * 36 * 8 / 80)])
def test_bits_an_element(width: int, bits: float) -> None:
    key = vectors(100, width, dtype=torch.float16)
    store = TokenCodes.of_prompt(key, key, InverseScaled(64), own_exact=True)
    assert store.storage_nbytes == store.nbytes == bits / 8 * 2 * key.numel()


# --- hf-quantized -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("hf-quantized@bits=8", "bits=8"),
        ("hf-quantized@axis_key=1", "axis_key=1"),
        ("hf-quantized@backend=hqq,axis_value=-1", "axis_value=-1"),
        ("hf-quantized@backend=hqq,bits=5", "bits=5"),
        ("hf-quantized@backend=hqq,bits=3,axis_key=1", "bits=3"),
        ("hf-quantized@group_size=60", "group_size=60"),
        ("hf-quantized@residual_length=0", "residual_length=0"),
    ],
)
def test_values_the_library_cannot_take(spec: str, names: str) -> None:
    with pytest.raises(BadValue, match=names) as caught:
        resolve(spec)
    assert caught.value.next_step


@pytest.mark.parametrize(("backend", "package"), [("quanto", "optimum-quanto"), ("hqq", "hqq")])
def test_a_backend_that_is_not_installed(backend: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_utils, "is_optimum_quanto_available", lambda: False)
    monkeypatch.setattr(cache_utils, "is_hqq_available", lambda: False)
    with pytest.raises(ModelError, match=package) as caught:
        resolve(f"hf-quantized@backend={backend}").check(shape_of(64))
    assert caught.value.next_step == f"Run: pip install -U {package}"


def layers_of(method: Any, key: Tensor, value: Tensor, prompt: int) -> LibraryLayer:
    return LibraryLayer(key[:, :prompt], value[:, :prompt], method)


def feed(store: Any, key: Tensor, value: Tensor, count: int) -> None:
    query = torch.ones(8, 1, key.shape[2])
    for step in range(store.seen, store.seen + count):
        store.append(key[:, step : step + 1], value[:, step : step + 1])
        store.attend(query, AttentionRule(0.1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_exact_after_the_prompt(backend: str) -> None:
    """Check 1."""
    key, value = vectors(340), vectors(340, seed=1)
    store = layers_of(resolve(f"hf-quantized@backend={backend}"), key, value, 200)
    library = store._library
    assert library.keys.numel() == library.values.numel() == store.residual == 0
    assert library.get_seq_length() == store.seen == 200
    feed(store, key, value, 5)
    assert store.residual == library.keys.shape[-2] == 5
    feed(store, key, value, 122)
    assert store.residual == 127
    feed(store, key, value, 1)
    assert store.residual == library.keys.numel() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_kivi_keeps_a_window_and_the_library_does_not(backend: str) -> None:
    """Check 2: the first logits are those of the shared prompt; the next ones differ."""
    pair, ids = harness.models("llama"), harness.tokens(80, seed=6)
    record = harness.prefill(pair, ids)
    spec = f"hf-quantized@backend={backend}"
    ours, theirs = (
        harness.force(pair, resolve(s).compress(record), harness.tokens(2, seed=7)) for s in ("kivi@bits=4", spec)
    )
    assert harness.largest_difference(ours, theirs) > 0.05


@QUANTO
def test_the_librarys_error_grows_with_flushes_and_kivis_does_not() -> None:
    """Check 3: the prompt's keys after 0 to 3 flushes. 33 tokens a flush, so that pairs of 32 channels regroup."""
    key, value = vectors(60 + 3 * 33), vectors(60 + 3 * 33, seed=1)
    store = layers_of(resolve("hf-quantized@bits=2,residual_length=33"), key, value, 60)
    kivi = KiviLayer(key[:, :60], value[:, :60], bits=2, group=16, residual=32)
    errors, codes = [], []
    for _ in range(4):
        restored = store._library._quantized_keys.dequantize()[0][:, :60]
        errors.append(float((restored - key[:, :60]).square().mean()))
        codes.append(kivi.keys.dequantize()[..., :32].clone())
        if store.seen < key.shape[1]:
            feed(store, key, value, 33)
            kivi_query = torch.ones(8, 33, 32)
            kivi.append(key[:, kivi.seen : kivi.seen + 33], value[:, kivi.seen : kivi.seen + 33])
            kivi.attend(kivi_query, AttentionRule(0.1))
    assert errors == sorted(errors)
    assert errors[3] > 1.2 * errors[0]
    assert all(torch.equal(c, codes[0]) for c in codes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_run_is_the_librarys_own(backend: str) -> None:
    """transformers' QuantizedCache behind the unmodified model, token by token, across two flushes.

    Rounding noise of 1e-6 in a key may move a code by one, hence the wide bound; the method moves logits by ten times
    as much.
    """
    pair, ids = harness.models("qwen2"), harness.tokens(120, seed=8)
    method = resolve(f"hf-quantized@backend={backend},residual_length=24")
    ours = harness.force(pair, method.compress(harness.prefill(pair, ids[:60], method)), ids[60:])
    plain = copy.deepcopy(pair.plain)
    plain.set_attn_implementation("sdpa")
    linear.by_onednn(plain)  # as ours, so that fewer codes are moved
    cache = cache_utils.QuantizedCache(backend, plain.config, residual_length=24)
    with torch.inference_mode():
        plain(input_ids=ids[None, :60], past_key_values=cache)
        steps = [plain(input_ids=ids[None, p : p + 1], past_key_values=cache).logits[0, -1] for p in range(60, 120)]
        full = plain(input_ids=ids[None]).logits[0, 60:]
    theirs = torch.stack(steps)
    assert harness.largest_difference(ours, theirs) < 0.1
    assert float((ours - theirs).abs().mean()) < 0.01
    assert float((full - theirs).abs().mean()) > 0.1


@QUANTO
def test_lengths_that_do_not_fill_groups_are_failed_samples() -> None:
    key, value = vectors(200), vectors(200, seed=1)
    method = resolve("hf-quantized@axis_key=-1,residual_length=32")
    with pytest.raises(SampleError, match=r"60 tokens.*groups of 64"):
        layers_of(method, key, value, 60)
    store = layers_of(method, key, value, 64)
    feed(store, key, value, 32)  # 96 tokens of 2 heads: 3 groups
    store = layers_of(resolve("hf-quantized@axis_key=-1,residual_length=31"), key, value, 64)
    with pytest.raises(SampleError, match="95 tokens"):
        feed(store, key, value, 31)


@HQQ
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_every_width_of_hqq(bits: int) -> None:
    key, value = vectors(80), vectors(80, seed=1)
    store = layers_of(resolve(f"hf-quantized@backend=hqq,bits={bits},residual_length=16"), key, value, 60)
    feed(store, key, value, 20)
    assert store.residual == 4
    method = resolve("hf-quantized@backend=hqq,axis_key=1,axis_value=1")
    with pytest.raises(SampleError, match="61 groups"):
        layers_of(method, key, value, 61)
    layers_of(method, key, value, 60)
