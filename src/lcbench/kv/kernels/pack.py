"""Triton kernels that quantize: a prompt into pages, and what a decoding step leaves behind.

The arithmetic is that of `kv.packing.quantize`, operation by operation in fp32 against the stored fp16 numbers, so that
both give the same bits. Layout of the pages: `kv.kernels.pages`.
"""

from __future__ import annotations

import triton
import triton.language as tl

GREATEST = tl.constexpr(65504.0)  # of fp16
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds small numbers half to even


@triton.jit
def _range(low, high, LEVELS: tl.constexpr):
    """Scale and minimum, fp16, of groups with these extremes (fp32)."""
    minimum = tl.minimum(tl.maximum(low, -GREATEST), GREATEST).to(tl.float16)
    base = minimum.to(tl.float32)
    scale = tl.minimum(tl.maximum(tl.div_rn(high - base, LEVELS * 1.0), 0.0), GREATEST).to(tl.float16)
    step = scale.to(tl.float32)
    short = (base + LEVELS * step < high - step / 2) & (step < GREATEST)
    upper = (scale.to(tl.int16, bitcast=True) + 1).to(tl.int16).to(tl.float16, bitcast=True)
    scale = tl.where(short, upper, scale)
    return tl.where(high > low, scale, 0.0).to(tl.float16), minimum


@triton.jit
def _codes(x, scale, minimum, LEVELS: tl.constexpr):
    """Codes (int32) of fp32 x against scale and minimum, broadcast."""
    step = scale.to(tl.float32)
    distance = tl.div_rn(x - minimum.to(tl.float32), tl.where(step > 0, step, 1.0))
    distance = tl.minimum(tl.maximum(tl.where(step > 0, distance, 0.0), 0.0), LEVELS * 1.0)
    return ((distance + ROUNDER) - ROUNDER).to(tl.int32)


@triton.jit
def _quantize_rows(x, ROWS: tl.constexpr, X: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr):
    """``[ROWS, X]`` fp32 in groups of rows: words ``[ROWS b / 16, X]``, scale, minimum ``[ROWS / GROUP, X]``, int16."""
    LEVELS: tl.constexpr = (1 << BITS) - 1
    PLANES: tl.constexpr = 16 // BITS
    grouped = tl.reshape(x, (ROWS // GROUP, GROUP, X))
    scale, minimum = _range(tl.min(grouped, axis=1), tl.max(grouped, axis=1), LEVELS)
    codes = _codes(grouped, scale[:, None, :], minimum[:, None, :], LEVELS)
    planes = tl.reshape(codes, (PLANES, ROWS // PLANES, X))
    words = tl.sum(planes << (tl.arange(0, PLANES) * BITS)[:, None, None], axis=0)
    return words.to(tl.int16), scale.to(tl.int16, bitcast=True), minimum.to(tl.int16, bitcast=True)


@triton.jit
def _store_keys(record, x, D: tl.constexpr, T: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr):
    """Quantize T keys ``[T, D]`` (fp32) into a page."""
    WORDS: tl.constexpr = T * BITS // 16
    GROUPS: tl.constexpr = T // GROUP
    words, scale, minimum = _quantize_rows(x, T, D, BITS, GROUP)
    channel = tl.arange(0, D)
    place = (channel // 8 * (WORDS * 8) + channel % 8)[None, :] + tl.arange(0, WORDS)[:, None] * 8
    tl.store(record + place, words)
    numbers = record + WORDS * D + tl.arange(0, GROUPS)[:, None] * D + channel[None, :]
    tl.store(numbers, scale)
    tl.store(numbers + GROUPS * D, minimum)


@triton.jit
def _store_values(
    record, x, token, valid, D: tl.constexpr, N: tl.constexpr, T: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """Quantize values, channels as rows ``[D, N]`` (fp32), into places ``token`` ``[N]`` of a page where ``valid``."""
    KEYS: tl.constexpr = T * BITS // 16 * D + 2 * (T // GROUP) * D
    WORDS: tl.constexpr = D * BITS // 16
    GROUPS: tl.constexpr = D // GROUP
    words, scale, minimum = _quantize_rows(x, D, N, BITS, GROUP)
    place = (token // 8 * (WORDS * 8) + token % 8)[None, :] + tl.arange(0, WORDS)[:, None] * 8
    tl.store(record + KEYS + place, words, mask=valid[None, :])
    numbers = record + KEYS + WORDS * T + tl.arange(0, GROUPS)[:, None] * T + token[None, :]
    tl.store(numbers, scale, mask=valid[None, :])
    tl.store(numbers + GROUPS * T, minimum, mask=valid[None, :])


@triton.jit(do_not_specialize=["length"])
def prompt_kernel(
    key, value, pages, table, length, key_stride, value_stride,
    D: tl.constexpr, T: tl.constexpr, RECORD: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Quantize a prompt: one page of one KV head a program.

    Args:
        key, value: ``[Hk, L, D]``, heads ``key_stride`` and ``value_stride`` elements apart, rows contiguous.
        pages: int16. table: int64 ``[L // T]``, addresses of the row's pages in units of 8 elements. length: L.
    """
    page, head = tl.program_id(0), tl.program_id(1)
    record = pages + tl.load(table + page) * 8 + head * RECORD
    token, channel = tl.arange(0, T), tl.arange(0, D)
    first = page.to(tl.int64) * T
    keys = key + head.to(tl.int64) * key_stride + (first + token)[:, None] * D + channel[None, :]
    _store_keys(record, tl.load(keys).to(tl.float32), D, T, BITS, GROUP)
    valid = first + token < length - T
    values = value + head.to(tl.int64) * value_stride + (first + token)[None, :] * D + channel[:, None]
    x = tl.load(values, mask=valid[None, :], other=0.0).to(tl.float32)
    _store_values(record, x, token, valid, D, T, T, BITS, GROUP)


@triton.jit(do_not_specialize=["table_stride"])
def settle_kernel(
    key, value, pages, table, lengths, slots, exact_keys, exact_values, table_stride,
    HK: tl.constexpr, D: tl.constexpr, T: tl.constexpr, RECORD: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """What follows every step, for one row and KV head: the value that becomes older than T is quantized, the new key
    and value take their places. ``lengths`` is left as it is.

    Args: as `kv.kernels.decode.tail_kernel`.
    """
    head, row = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row)
    length = tl.load(lengths + slot)
    count = length // T
    rest = length - count * T
    channel = tl.arange(0, D)
    here = ((slot * HK + head).to(tl.int64) * T + rest) * D + channel
    new_at = (row * HK + head).to(tl.int64) * D + channel
    new_key, new_value = tl.load(key + new_at), tl.load(value + new_at)
    if count > 0:
        record = pages + tl.load(table + slot.to(tl.int64) * table_stride + count - 1) * 8 + head * RECORD
        oldest = tl.load(exact_values + here).to(tl.float32)
        one = tl.zeros([1], tl.int32)
        _store_values(record, oldest[:, None], one + rest, one == 0, D, 1, T, BITS, GROUP)
    tl.debug_barrier()  # the oldest value is read before the new one takes its place
    tl.store(exact_values + here, new_value)
    tl.store(exact_keys + here, new_key)


@triton.jit(do_not_specialize=["table_stride"])
def flush_kernel(
    pages, table, lengths, slots, exact_keys, table_stride,
    HK: tl.constexpr, D: tl.constexpr, T: tl.constexpr, RECORD: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Quantize the T exact keys of one row and KV head into the row's next page, after `settle_kernel`.

    Args: as there; ``slots`` only of rows whose exact keys have come to T, with a page in the table.
    """
    head, row = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row)
    count = tl.load(lengths + slot) // T
    token, channel = tl.arange(0, T), tl.arange(0, D)
    exact = (slot * HK + head).to(tl.int64) * T * D
    block = tl.load(exact_keys + exact + token[:, None] * D + channel[None, :])
    record = pages + tl.load(table + slot.to(tl.int64) * table_stride + count) * 8 + head * RECORD
    _store_keys(record, block.to(tl.float32), D, T, BITS, GROUP)
