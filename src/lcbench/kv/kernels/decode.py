"""Triton kernels of one decoding step over packed pages: split over the pages, then the newest tokens and the sum.

The products are taken as ``K q`` and ``V^T p``, tokens or channels as rows and the query heads of one KV head as (at
least eight) columns, so that tensor cores do them and grouped queries share every load. Codes become fp16 without a
conversion: one rotation and one logical operation put the two bits of a code into the upper mantissa bits of a one,
giving 1 + c / 4, and one multiply-add turns that into a quarter of the element, (1 + c / 4) s + (m / 4 - s), within
2^-11 of s. Four bits are put into the lower mantissa bits of 1024 and the 1024 subtracted, then c s / 16 + m / 16. All
of it two elements an instruction. Accumulation, softmax and partial results are fp32.

Layout of the pages: `kv.kernels.pages`. One page is one step of the loop.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# Weights are exp2(logit - maximum + 12): up to 4096, so that small ones stay normal numbers in fp16.
HEADROOM = tl.constexpr(12.0)
_SIZES = ["heads", "g", "table_stride", "splits", "pages_per_split"]  # one program for all values of them

# Two elements that are neighbours along x, of words $1 rotated by $4 ($5 is equal: both lie in one row).
_PAIR_2 = tl.constexpr("""{ .reg .b32 t;
    shf.l.wrap.b32 t, $1, $1, $4; lop3.b32 t, t, 0x03000300, 0x3C003C00, 0xEA; fma.rn.f16x2 $0, t, $2, $3; }""")
_PAIR_4 = tl.constexpr("""{ .reg .b32 t, k;
    shf.l.wrap.b32 t, $1, $1, $4; lop3.b32 t, t, 0x000F000F, 0x64006400, 0xEA; mov.b32 k, 0x64006400;
    sub.rn.f16x2 t, t, k; fma.rn.f16x2 $0, t, $2, $3; }""")
_OFFSET_2 = tl.constexpr("{ .reg .b32 t, f; neg.f16x2 t, $2; mov.b32 f, 0x34003400; fma.rn.f16x2 $0, $1, f, t; }")
_SIXTEENTH = tl.constexpr("{ .reg .b32 f; mov.b32 f, 0x2C002C00; mul.rn.f16x2 $0, $1, f; }")


@triton.jit
def _elements(
    words, scale, offset, turns,
    PLANES: tl.constexpr, WORDS: tl.constexpr, X: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    NATIVE: tl.constexpr,
):  # fmt: skip
    """Elements over 2^b, fp16 ``[PLANES WORDS, X]``, of some planes.

    Args:
        words: int16 ``[WORDS, X]``. scale, offset: fp16 ``[rows / GROUP, X]`` of `_numbers`.
        turns: int32 ``[PLANES]``, left rotation that brings a plane's codes to their place in an fp16 number.
    """
    ROWS: tl.constexpr = PLANES * WORDS
    s = tl.reshape(tl.broadcast_to(scale[:, None, :], (ROWS // GROUP, GROUP, X)), (ROWS, X))
    m = tl.reshape(tl.broadcast_to(offset[:, None, :], (ROWS // GROUP, GROUP, X)), (ROWS, X))
    w = tl.reshape(tl.broadcast_to(words[None, :, :], (PLANES, WORDS, X)), (ROWS, X))
    left = tl.reshape(tl.broadcast_to(turns[:, None, None], (PLANES, WORDS, X)), (ROWS, X))
    if NATIVE:
        out = tl.inline_asm_elementwise(
            _PAIR_2 if BITS == 2 else _PAIR_4, "=r,r,r,r,r,r", [w, s, m, left], dtype=tl.float16, is_pure=True, pack=2
        )
    else:
        wide = ((w.to(tl.int32) & 0xFFFF) << 16) >> ((16 - left) & 31)
        if BITS == 2:
            code = ((wide & 0x300) | 0x3C00).to(tl.int16).to(tl.float16, bitcast=True)
        else:
            code = ((wide & 0xF) | 0x6400).to(tl.int16).to(tl.float16, bitcast=True) - 1024.0
        out = code * s + m
    return out


@triton.jit
def _numbers(
    at, x, held, beyond,
    GROUPS: tl.constexpr, X: tl.constexpr, BITS: tl.constexpr, MASKED: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Scales and offsets fp16 ``[GROUPS, x]`` (see `_elements`) of a record's rows of X numbers, minima ``beyond`` the
    scales; zero from ``held`` on where MASKED."""
    where = at + tl.arange(0, GROUPS)[:, None] * X + x[None, :]
    if MASKED:
        scale = tl.load(where, mask=(x < held)[None, :], other=0).to(tl.float16, bitcast=True)
        minimum = tl.load(where + beyond, mask=(x < held)[None, :], other=0).to(tl.float16, bitcast=True)
    else:
        scale = tl.load(where).to(tl.float16, bitcast=True)
        minimum = tl.load(where + beyond).to(tl.float16, bitcast=True)
    if BITS == 2:
        if NATIVE:
            offset = tl.inline_asm_elementwise(
                _OFFSET_2, "=r,r,r", [minimum, scale], dtype=tl.float16, is_pure=True, pack=2
            )
        else:
            offset = (minimum.to(tl.float32) * 0.25 - scale.to(tl.float32)).to(tl.float16)
    elif NATIVE:
        scale = tl.inline_asm_elementwise(_SIXTEENTH, "=r,r", [scale], dtype=tl.float16, is_pure=True, pack=2)
        offset = tl.inline_asm_elementwise(_SIXTEENTH, "=r,r", [minimum], dtype=tl.float16, is_pure=True, pack=2)
    else:
        scale = scale * 0.0625
        offset = minimum * 0.0625
    return scale, offset


@triton.jit
def _words(at, WORDS: tl.constexpr, X: tl.constexpr):
    """Words ``[WORDS, X]``, which lie as ``[X / 8, WORDS, 8]``: eight rows of 16 bytes in a row."""
    where = tl.arange(0, WORDS * X // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    chunks = tl.reshape(tl.load(at + where), (X // 8, WORDS, 8))
    return tl.reshape(tl.permute(chunks, (1, 0, 2)), (WORDS, X))


@triton.jit
def _page_keys(
    record, turns, D: tl.constexpr, T: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, NATIVE: tl.constexpr
):  # fmt: skip
    """Keys of a page over 2^b, fp16 ``[T, D]``."""
    WORDS: tl.constexpr = T * BITS // 16
    GROUPS: tl.constexpr = T // GROUP
    words = _words(record, WORDS, D)
    scale, offset = _numbers(record + WORDS * D, tl.arange(0, D), D, GROUPS * D, GROUPS, D, BITS, False, NATIVE)
    return _elements(words, scale, offset, turns, 16 // BITS, WORDS, D, BITS, GROUP, NATIVE)


@triton.jit
def _some_keys(
    words, record, turning, first,
    SOME: tl.constexpr, D: tl.constexpr, T: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """SOME of a page's keys over 2^b, of one group, from token ``first`` on, fp16 ``[SOME, D]``."""
    WORDS: tl.constexpr = T * BITS // 16
    PLANES: tl.constexpr = SOME // WORDS
    at = record + WORDS * D + first // GROUP * D
    scale, offset = _numbers(at, tl.arange(0, D), D, T // GROUP * D, 1, D, BITS, False, NATIVE)
    turns = tl.load(turning + first // WORDS + tl.arange(0, PLANES))
    return _elements(words, scale, offset, turns, PLANES, WORDS, D, BITS, SOME, NATIVE)


@triton.jit
def _page_values(
    record, turns, first, held,
    SOME: tl.constexpr, D: tl.constexpr, T: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    NATIVE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Values of SOME tokens of a page over 2^b from token ``first`` on, channels as rows: fp16 ``[D, SOME]``; zero from
    token ``held`` on where MASKED."""
    WORDS: tl.constexpr = D * BITS // 16
    GROUPS: tl.constexpr = D // GROUP
    KEYS: tl.constexpr = T * BITS // 16 * D + 2 * (T // GROUP) * D
    words = _words(record + KEYS + first * WORDS, WORDS, SOME)
    x = first + tl.arange(0, SOME)
    scale, offset = _numbers(record + KEYS + WORDS * T, x, held, GROUPS * T, GROUPS, T, BITS, MASKED, NATIVE)
    return _elements(words, scale, offset, turns, 16 // BITS, WORDS, SOME, BITS, GROUP, NATIVE)


@triton.jit
def _queries(query, row, head, heads, g, D: tl.constexpr, COLUMNS: tl.constexpr):
    """The query heads of a KV head as columns ``[D, COLUMNS]``, zero from g on."""
    column = tl.arange(0, COLUMNS)
    at = query + (row * heads + head * g).to(tl.int64) * D
    return tl.load(at + column[None, :] * D + tl.arange(0, D)[:, None], mask=(column < g)[None, :], other=0.0)


@triton.jit
def _halves(q):
    """Queries as fp16 of magnitude below 2, and the power of two ``[COLUMNS]`` taken out of each column."""
    q = q.to(tl.float32)
    greatest = tl.max(tl.abs(q), axis=0)
    exponent = greatest.to(tl.int32, bitcast=True) & 0x7F800000
    exponent = tl.minimum(tl.maximum(exponent, 32 << 23), 222 << 23)
    factor = exponent.to(tl.float32, bitcast=True)
    inverse = ((254 << 23) - exponent).to(tl.float32, bitcast=True)
    return (q * inverse[None, :]).to(tl.float16), factor


@triton.jit
def _product(a, b, NATIVE: tl.constexpr):
    """``a @ b`` in the operands' precision, fp32 sums. The interpreter multiplies bf16 wrongly, hence the detour."""
    if NATIVE:
        out = tl.dot(a, b, input_precision="ieee")
    else:
        out = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return out


@triton.jit(do_not_specialize=_SIZES)
def pages_kernel(
    query, pages, turning, table, lengths, slots, partial, partial_max, partial_sum, scaling, heads, g, table_stride,
    splits, pages_per_split,
    HK: tl.constexpr, D: tl.constexpr, T: tl.constexpr, RECORD: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    COLUMNS: tl.constexpr, NATIVE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Attention of one row and KV head over one run of pages whose keys and values are all packed.

    Args:
        query: ``[R, H, D]``. pages: int16, see `kv.kernels.pages`. turning: int32 ``[16 / b]``, see `_elements`.
        table: int64 ``[slots, table_stride]``, addresses of pages relative to ``pages`` in units of 8 elements.
        lengths: int32 ``[slots]``, tokens before this step. slots: int32 ``[R]``.
        partial: fp32 ``[R, HK, splits, COLUMNS, D]``, weighted sums; partial_max, partial_sum: fp32
            ``[R, HK, splits, COLUMNS]``, what was subtracted (base 2) and the sum of weights.
    """
    head, split, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(slots + row)
    full = tl.load(lengths + slot) // T - 1
    first = split * pages_per_split
    last = tl.minimum(first + pages_per_split, full)
    if first >= last:
        return
    q, factor = _halves(_queries(query, row, head, heads, g, D, COLUMNS))
    to_logit = factor * (scaling * LOG2E * (1 << BITS))
    top = tl.full([COLUMNS], -1e30, tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    out = tl.zeros([D, COLUMNS], tl.float32)
    turns = tl.load(turning + tl.arange(0, 16 // BITS))
    addresses = table + slot.to(tl.int64) * table_stride
    for page in tl.range(first, last, num_stages=STAGES):
        record = pages + tl.load(addresses + page) * 8 + head * RECORD
        keys = _page_keys(record, turns, D, T, BITS, GROUP, NATIVE)
        logits = tl.dot(keys, q)
        higher = tl.maximum(top, tl.max(logits, axis=0) * to_logit - HEADROOM)
        weights = tl.exp2(logits * to_logit[None, :] - higher[None, :])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, axis=0)
        values = _page_values(record, turns, 0, T, T, D, T, BITS, GROUP, NATIVE, False)
        out = tl.dot(values, weights.to(tl.float16), out * shrink[None, :])
        top = higher
    column = tl.arange(0, COLUMNS)
    at = ((row * HK + head) * splits + split).to(tl.int64) * COLUMNS + column
    tl.store(partial_max + at, top)
    tl.store(partial_sum + at, total)
    where = partial + at[None, :] * D + tl.arange(0, D)[:, None]
    tl.store(where, out * (1 << BITS), mask=(column < g)[None, :])


@triton.jit(do_not_specialize=_SIZES)
def tail_kernel(
    query, key, value, pages, turning, table, lengths, slots, exact_keys, exact_values, partial, partial_max,
    partial_sum, result, scaling, heads, g, table_stride, splits, pages_per_split,
    HK: tl.constexpr, D: tl.constexpr, T: tl.constexpr, RECORD: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    COLUMNS: tl.constexpr, NATIVE: tl.constexpr, SOME: tl.constexpr, STAGES: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The last page, the exact tokens and the new one, joined with the partial results of the other pages.

    With L = nT + r tokens before the step the exact keys are the newest r, token nT + i at place i; the exact values
    are the newest T, token t at place t mod T. So place i < r of the values belongs to exact key i, and place i >= r to
    key i of the last page, whose first r values are packed.

    SOME tokens at a time by few warps, so that many programs are on a processor and hide each other's waiting; then
    AT_ONCE partial results at a time.

    Args: as `pages_kernel`, and
        key, value: ``[R, HK, D]`` of the new token. exact_keys, exact_values: ``[slots, HK, T, D]``.
        result: ``[R, H, D]``, written.
    """
    head, row = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row)
    length = tl.load(lengths + slot)
    count = length // T
    rest = length - count * T
    raw = _queries(query, row, head, heads, g, D, COLUMNS)
    q, factor = _halves(raw)
    base = scaling * LOG2E
    to_logit = factor * (base * (1 << BITS))
    turns = tl.load(turning + tl.arange(0, 16 // BITS))
    channel, column = tl.arange(0, D), tl.arange(0, COLUMNS)
    address = tl.load(table + slot.to(tl.int64) * table_stride + tl.maximum(count - 1, 0))
    record = pages + address * 8 + head * RECORD
    words = _words(record, T * BITS // 16, D)
    new_at = (row * HK + head).to(tl.int64) * D + channel
    new_key = tl.load(key + new_at).to(tl.float32)
    top = tl.sum(raw.to(tl.float32) * new_key[:, None], axis=0) * base - HEADROOM
    total = tl.full([COLUMNS], 4096.0, tl.float32)  # 2^HEADROOM, the new token's weight
    out = tl.load(value + new_at).to(tl.float32)[:, None] * total[None, :]
    exact = (slot * HK + head).to(tl.int64) * T * D
    for first in tl.range(0, T, SOME, num_stages=STAGES):
        place = first + tl.arange(0, SOME)
        young = (place < rest)[:, None]
        keys = _some_keys(words, record, turning, first, SOME, D, T, BITS, GROUP, NATIVE)
        packed = tl.where(count > 0, tl.dot(keys, q) * to_logit[None, :], -1e30)
        exact_tile = tl.load(exact_values + exact + place[None, :] * D + channel[:, None])
        higher = tl.maximum(top, tl.max(packed, axis=0) - HEADROOM)
        if first < rest:
            tile = exact + place[:, None] * D + channel[None, :]
            recent = _product(tl.load(exact_keys + tile, mask=young, other=0.0), raw, NATIVE) * base
            recent = tl.where(young, recent, -1e30)
            higher = tl.maximum(higher, tl.max(recent, axis=0) - HEADROOM)
            shrink = tl.exp2(top - higher)
            of_page, of_recent = tl.exp2(packed - higher[None, :]), tl.exp2(recent - higher[None, :])
            total = total * shrink + tl.sum(of_page + of_recent, axis=0)
            out = out * shrink[None, :]
            if count > 0:
                values = _page_values(record, turns, first, rest, SOME, D, T, BITS, GROUP, NATIVE, True)
                out += tl.dot(values, tl.where(young, of_page, 0.0).to(tl.float16)) * (1 << BITS)
            mixed = tl.where(young, of_recent, of_page)
        else:
            shrink = tl.exp2(top - higher)
            mixed = tl.exp2(packed - higher[None, :])
            total = total * shrink + tl.sum(mixed, axis=0)
            out = out * shrink[None, :]
        out += _product(exact_tile, mixed.to(exact_tile.dtype), NATIVE)
        top = higher
    runs = tl.cdiv(tl.maximum(count - 1, 0), pages_per_split)
    theirs = ((row * HK + head) * splits).to(tl.int64) * COLUMNS
    higher = top
    for split in range(runs):
        higher = tl.maximum(higher, tl.load(partial_max + theirs + split * COLUMNS + column))
    mine = tl.exp2(top - higher)
    total = total * mine
    out = out * mine[None, :]
    some = tl.arange(0, AT_ONCE)
    for split in range(0, runs, AT_ONCE):
        at = theirs + (split + some)[:, None] * COLUMNS + column[None, :]
        there = (split + some < runs)[:, None]
        weight = tl.exp2(tl.load(partial_max + at, mask=there, other=-1e30) - higher[None, :])
        total += tl.sum(weight * tl.load(partial_sum + at, mask=there, other=0.0), axis=0)
        where = partial + at[:, None, :] * D + channel[None, :, None]
        shown = there[:, None, :] & (column < g)[None, None, :]
        out += tl.sum(tl.load(where, mask=shown, other=0.0) * weight[:, None, :], axis=0)
    out = out / total[None, :]
    to = result + (row * heads + head * g).to(tl.int64) * D
    tl.store(to + column[None, :] * D + channel[:, None], out.to(result.dtype.element_ty), mask=(column < g)[None, :])
