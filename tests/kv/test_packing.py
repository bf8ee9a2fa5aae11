"""Packing round trips and the quantizer's error bound, by hypothesis and at fp16's edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lcbench.kv.packing import BITS, Packed, group_that_fits, pack, quantize, unpack

# (bits, group): group * bits fills whole words
FORMATS = [(2, 16), (2, 32), (2, 48), (4, 8), (4, 32), (4, 40), (8, 4), (8, 12), (8, 32)]


@st.composite
def _codes(draw: Any) -> tuple[int, Tensor]:
    bits = draw(st.sampled_from(BITS))
    shape = [*draw(st.lists(st.integers(0, 5), max_size=3)), 32 // bits * draw(st.integers(0, 7))]
    seed = draw(st.integers(0, 2**32 - 1))
    return bits, torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(seed))


@given(_codes())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_unpack_inverts_pack(case: tuple[int, Tensor]) -> None:
    bits, codes = case
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (*codes.shape[:-1], codes.shape[-1] * bits // 32)
    assert words.is_contiguous()
    assert torch.equal(unpack(words, bits).long(), codes)


@pytest.mark.parametrize("bits", BITS)
def test_every_code_in_every_place_goes_little_end_first(bits: int) -> None:
    per_word = 32 // bits
    for place in range(per_word):
        for code in range(2**bits):
            codes = torch.zeros(per_word, dtype=torch.int64)
            codes[place] = code
            word = int(pack(codes, bits)[0]) & 0xFFFFFFFF
            assert word == code << (bits * place)


def _finite(limit: float) -> Any:
    return st.floats(-limit, limit, width=32, allow_nan=False, allow_infinity=False)


@st.composite
def _groups(draw: Any, limit: float) -> tuple[Tensor, int, int]:
    bits, group = draw(st.sampled_from(FORMATS))
    center, spread = draw(_finite(limit / 2)), draw(st.sampled_from([0.0, 1e-9, 1e-6, 1e-3, 1.0, 100.0, limit / 2]))
    unit = draw(st.lists(_finite(1.0), min_size=2 * group, max_size=2 * group))
    return torch.tensor(unit, dtype=torch.float32) * spread + center, bits, group


def _fp16_ulp(x: Tensor) -> Tensor:
    return torch.from_numpy(np.spacing(np.abs(x.numpy()).astype(np.float16)).astype(np.float32))


@given(_groups(60000.0))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_error_is_at_most_half_a_step_and_one_fp16_ulp(case: tuple[Tensor, int, int]) -> None:
    x, bits, group = case
    packed = quantize(x, bits, group)
    step = packed.scale.float().repeat_interleave(group)
    error = (x - packed.dequantize()).abs()
    rounding = 1e-6 * x.abs().max()  # of the fp32 arithmetic
    assert (error <= step / 2 + _fp16_ulp(x) + rounding).all()
    # and the step is no larger than the group's range asks for
    low, high = x.view(-1, group).aminmax(dim=-1)
    ideal = (high - low + _fp16_ulp(low)) / (2**bits - 1)
    assert (packed.scale.float() <= ideal * (1 + 2**-10) + 2**-24).all()


@given(_groups(2.0**127))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_finite_stays_finite(case: tuple[Tensor, int, int]) -> None:
    x, bits, group = case
    packed = quantize(x[None], bits, group)
    assert torch.isfinite(packed.scale).all()
    assert torch.isfinite(packed.minimum).all()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.isfinite(packed.dequantize(dtype)).all()
    assert torch.isfinite(packed.product(torch.ones(1, 1))).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, -0.0, 3.5, -7.25, 1e-9, 60000.0, 0.1])
def test_constant_groups_keep_their_value(bits: int, value: float) -> None:
    packed = quantize(torch.full((2, 64), value), bits, 32)
    assert (packed.words == 0).all()
    assert (packed.dequantize() == torch.tensor(value).half().float()).all()


def test_greatest_fp16_survives_in_fp16() -> None:
    x = torch.linspace(-65504, 65504, 32).half()[None]
    for bits in BITS:
        back = quantize(x, bits, 32).dequantize(torch.float16)
        assert torch.isfinite(back).all()
        assert back[0, 0] == -65504


def test_subnormal_scale_is_rounded_up_so_that_the_maximum_is_within_reach() -> None:
    x = torch.zeros(1, 32)
    x[0, 1] = 255 * 2.0**-24 * 1.4  # a step of 1.4 units in the last place of fp16; nearest is 1
    packed = quantize(x, 8, 32)
    assert packed.scale.item() == 2 * 2.0**-24
    assert (packed.dequantize() - x).abs().max() <= packed.scale.item() / 2


def test_rounds_half_to_even() -> None:
    x = torch.tensor([0.0, 0.5, 1.5, 2.5, 3.0, *[0.0] * 11])[None]
    assert unpack(quantize(x, 2, 16).words, 2)[0, :5].tolist() == [0, 0, 2, 2, 3]


def test_groups_run_along_the_last_axis() -> None:
    x = torch.arange(64.0).view(2, 32)
    packed = quantize(x, 8, 16)
    assert packed.minimum.tolist() == [[0, 16], [32, 48]]
    assert packed.shape == (2, 32)


@pytest.mark.parametrize(("bits", "group"), FORMATS)
def test_product_is_the_product_with_what_dequantizing_gives(bits: int, group: int) -> None:
    generator = torch.Generator().manual_seed(bits * 100 + group)
    x = torch.randn(3, 7, 4 * group, generator=generator)
    left = torch.randn(3, 5, 7, generator=generator)
    packed = quantize(x, bits, group)
    expected = left.double() @ packed.dequantize().double()
    torch.testing.assert_close(packed.product(left).double(), expected, rtol=1e-5, atol=1e-5)


def test_product_takes_rows_of_a_larger_memory() -> None:
    packed = quantize(torch.randn(2, 9, 32), 4, 32)
    part = Packed(packed.words[:, 2:6], packed.scale[:, 2:6], packed.minimum[:, 2:6], 4, 32)
    left = torch.randn(2, 3, 4)
    torch.testing.assert_close(part.product(left), left @ packed.dequantize()[:, 2:6], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_quantized_like_their_fp32_values(dtype: torch.dtype) -> None:
    x = torch.randn(4, 64).to(dtype)
    ours, same = quantize(x, 4, 32), quantize(x.float(), 4, 32)
    assert all(torch.equal(a, b) for a, b in zip(ours.tensors(), same.tensors(), strict=True))
    assert ours.dequantize(dtype).dtype == dtype


def test_joined_along_the_last_axis() -> None:
    x = torch.randn(2, 3, 96)
    whole = quantize(x, 2, 32)
    joined = quantize(x[..., :32], 2, 32).joined(quantize(x[..., 32:], 2, 32))
    assert all(torch.equal(a, b) for a, b in zip(whole.tensors(), joined.tensors(), strict=True))


def test_nothing_to_quantize() -> None:
    for shape in [(2, 0, 32), (2, 32, 0)]:
        packed = quantize(torch.empty(shape), 2, 32)
        assert packed.shape == shape
        assert packed.dequantize().shape == shape
    nothing = quantize(torch.empty(2, 8, 0), 2, 32)
    assert nothing.product(torch.ones(2, 3, 8)).shape == (2, 3, 0)
    assert nothing.joined(quantize(torch.ones(2, 8, 32), 2, 32)).shape == (2, 8, 32)


@pytest.mark.parametrize(
    ("head_dim", "bits", "most", "fits"),
    [(64, 2, 32, (2, 32)), (80, 2, 32, (2, 16)), (8, 2, 32, (4, 8)), (72, 2, 32, (4, 8)), (12, 2, 32, (8, 4)),
     (6, 2, 32, None), (7, 8, 32, None)],
)  # fmt: skip
def test_a_group_that_fits_heads_is_found(head_dim: int, bits: int, most: int, fits: tuple[int, int] | None) -> None:
    assert group_that_fits(head_dim, bits, most) == fits
