"""Group-wise asymmetric quantization and its packed storage: 2, 4 or 8 bits an element in int32 words.

``x ~ code * scale + minimum``, one scale and one minimum a group of consecutive elements of the last axis. Both are
stored as fp16 whatever the dtype of x, and codes are computed in fp32 against those *stored* numbers, so that
|x - x'| <= scale / 2 + 1 fp16 ulp of x holds for what is really in memory. Rounding is half to even.

fp16 has edges. A scale too small for fp16's normal range is rounded up, not down, when rounding down would leave the
greatest element out of reach. Elements beyond +-65504 (they occur only in fp32 and bf16 tensors) saturate: the group
keeps the range fp16 can express. Finite input never gives NaN or infinity.

Words are filled little end first: element j of a word sits at bits ``[bits * j, bits * j + bits)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

BITS = (2, 4, 8)
WORD = 32  # bits
_GREATEST = 65504.0  # of fp16


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes ``[..., n]`` of 0..2^bits-1 (any integer dtype), n a multiple of 32 / bits.

    Returns:
        int32 ``[..., n * bits / 32]``, contiguous.
    """
    placed = _split(codes.to(torch.int32), WORD // bits) << _shifts(bits, codes.device)
    # The codes occupy disjoint bits, so their sum is their union, sign bit included.
    words: Tensor = placed.sum(dim=-1, dtype=torch.int32)
    return words


def unpack(words: Tensor, bits: int) -> Tensor:
    """The codes in int32 words ``[..., w]``: int32 ``[..., w * 32 / bits]``."""
    codes: Tensor = (words.unsqueeze(-1) >> _shifts(bits, words.device)) & (2**bits - 1)
    return codes.flatten(-2)


def _split(x: Tensor, size: int) -> Tensor:
    """``[..., n]`` as ``[..., n / size, size]``."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


@cache
def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, WORD, bits, dtype=torch.int32, device=device)


@cache
def _phases(bits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of the 8 / bits codes of a byte: the mask of each (uint8) and what divides its masked value (fp32)."""
    shifts = range(0, 8, bits)
    masks = torch.tensor([(2**bits - 1) << s for s in shifts], dtype=torch.uint8, device=device)
    return masks, torch.tensor([2.0**-s for s in shifts], device=device)


@dataclass(frozen=True)
class Packed:
    """A quantized tensor of logical shape ``[..., n]``. Its tensors are never written to.

    Attributes:
        words: int32 ``[..., n * bits / 32]``, the codes.
        scale, minimum: fp16 ``[..., n / group]``.
        bits: of a code. group: elements a group.
    """

    words: Tensor
    scale: Tensor
    minimum: Tensor
    bits: int
    group: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape ``[..., n]``."""
        return (*self.words.shape[:-1], self.words.shape[-1] * WORD // self.bits)

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.words, self.scale, self.minimum)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``code * scale + minimum`` ``[..., n]``, computed in fp32 and rounded once to ``dtype``."""
        codes = _split(unpack(self.words, self.bits).float(), self.group)
        values: Tensor = (codes * self.scale.float().unsqueeze(-1) + self.minimum.float().unsqueeze(-1)).flatten(-2)
        if dtype == torch.float16:  # the group's maximum may round to just above the greatest fp16
            values = values.clamp(-_GREATEST, _GREATEST)
        return values.to(dtype)

    def product(self, left: Tensor) -> Tensor:
        """``left @ self.dequantize()`` without building it: ``[..., r, m]`` times ``[..., m, n]``, fp32.

        The minimum of a group is a factor on the row sums, so only codes times scale are ever spread out; and the
        codes of a byte are taken out by masks alone, one product for each place in the byte, whose weight
        2^(bits * place) is divided out of the (small) result. Words are read as bytes: little-endian hosts only.
        """
        left = left.float()
        masks, weights = _phases(self.bits, self.words.device)
        ones = (1,) * self.words.ndim
        codes = (self.words.view(torch.uint8) & masks.view(-1, *ones)).float()  # [8 / bits, ..., m, n * bits / 8]
        codes *= self.scale.float().repeat_interleave(self.group * self.bits // 8, dim=-1)
        parts = torch.matmul(left, codes) * weights.view(-1, *ones)
        scaled = _split(parts.movedim(0, -1).flatten(-2), self.group)
        return (scaled + torch.matmul(left, self.minimum.float()).unsqueeze(-1)).flatten(-2)

    def joined(self, other: Packed) -> Packed:
        """This one followed by ``other`` along the last axis."""
        words = torch.cat([self.words, other.words], dim=-1)
        scale = torch.cat([self.scale, other.scale], dim=-1)
        minimum = torch.cat([self.minimum, other.minimum], dim=-1)
        return Packed(words, scale, minimum, self.bits, self.group)


def quantize(x: Tensor, bits: int, group: int) -> Packed:
    """Quantize ``[..., n]``, n a multiple of ``group`` and group * bits a multiple of 32, along the last axis.

    Groups whose elements are all equal get code 0 and the minimum. Source: arXiv:2402.02750.
    """
    levels = 2**bits - 1
    grouped = _split(x.float().contiguous(), group)
    low, high = torch.aminmax(grouped, dim=-1)
    minimum = low.clamp(-_GREATEST, _GREATEST).half()
    base = minimum.float()
    # Divided by a tensor: a GPU would multiply by the reciprocal of a number, which rounds otherwise.
    scale = ((high - base) / torch.full_like(base, levels)).clamp(0, _GREATEST).half()
    step = scale.float()
    short = (base + levels * step < high - step / 2) & (step < _GREATEST)
    # The next fp16 up is the next integer pattern, as for all positive floating-point numbers.
    scale = torch.where(short, (scale.view(torch.int16) + 1).view(torch.float16), scale)
    scale = torch.where(high > low, scale, torch.zeros_like(scale))
    step = scale.float().unsqueeze(-1)
    codes = (grouped - base.unsqueeze(-1)) / torch.where(step > 0, step, torch.ones_like(step))
    codes = torch.where(step > 0, codes, torch.zeros_like(codes)).clamp_(0, levels).round_()
    return Packed(pack(codes.flatten(-2), bits), scale, minimum, bits, group)


def group_that_fits(head_dim: int, bits: int, most: int) -> tuple[int, int] | None:
    """Bits and a power of two as group size, at most ``most``, that divide a head and fill words; fewest bits first.

    Bits are ``bits`` or more; None where no such pair exists, as for odd head dimensions.
    """
    group = head_dim & -head_dim
    while group > most:
        group //= 2
    return next(((wide, group) for wide in BITS if wide >= bits and group * wide % WORD == 0), None)
