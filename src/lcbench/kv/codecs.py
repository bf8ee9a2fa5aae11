"""Ways to store a token's keys or values in few bits: each vector by itself, so that a token is written once.

`Grouped` is the packing of `kv.packing` (scale and minimum of a group). `InverseScaled` is FlexGen's: the inverse of
the scale is what is stored, and two 4-bit codes share a byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lcbench.kv.packing import WORD, Packed, quantize

_GREATEST = 65504.0  # of fp16


class Codec(Protocol):
    """Encodes vectors and decodes them again; the same vector always gets the same code."""

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x [..., d]`` as the tensors ``[..., k_i]`` that stand for it, in memory of their own."""

    def decode(self, parts: Sequence[Tensor], width: int, dtype: torch.dtype) -> Tensor:
        """What is left of the vectors: ``[..., width]``, computed in fp32 and rounded once to ``dtype``."""


@dataclass(frozen=True)
class Grouped:
    """``x ~ code * scale + minimum`` over groups of channels, packed into int32 words; see `kv.packing.quantize`."""

    bits: int
    group: int

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(quantize(x, self.bits, self.group).tensors())

    def decode(self, parts: Sequence[Tensor], width: int, dtype: torch.dtype) -> Tensor:
        words, scale, minimum = parts
        assert words.shape[-1] * WORD == width * self.bits
        return Packed(words, scale, minimum, self.bits, self.group).dequantize(dtype)


@dataclass(frozen=True)
class InverseScaled:
    """``x ~ code / inverse + minimum`` with 4-bit codes over groups of channels (FMInference/FlexLLMGen
    flexllmgen/compression.py).

    Tensors: codes uint8 ``[..., ceil(d / G) * G / 2]``, the even channel in the high nibble; inverse and minimum fp16
    ``[..., ceil(d / G)]``. A last group that is not full is filled up with zeros, which are stored and count towards
    its minimum and maximum, as there.

    The authors compute in the tensor's dtype. Here codes are computed in fp32 against the stored fp16 numbers, which
    bounds the error by half a step and one fp16 ulp of x. A group of equal elements gets inverse 0, code 0 and its
    minimum; elements beyond +-65504 saturate.
    """

    group: int
    levels: int = 15

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        grouped = self._grouped(F.pad(x.float(), (0, -x.shape[-1] % self.group)))
        low, high = torch.aminmax(grouped, dim=-1)
        minimum = low.clamp(-_GREATEST, _GREATEST).half()
        spread = high.clamp(max=_GREATEST) - minimum.float()
        inverse = (self.levels / spread).clamp(max=_GREATEST).half()
        inverse = torch.where((high > low) & (spread > 0), inverse, torch.zeros_like(inverse))
        codes = (grouped - minimum.float().unsqueeze(-1)) * inverse.float().unsqueeze(-1)
        codes = codes.clamp_(0, self.levels).round_().to(torch.uint8).flatten(-2)
        return (codes[..., 0::2] << 4) | codes[..., 1::2], inverse, minimum

    def decode(self, parts: Sequence[Tensor], width: int, dtype: torch.dtype) -> Tensor:
        packed, inverse, minimum = parts
        codes = self._grouped(torch.stack([packed >> 4, packed & 15], dim=-1).flatten(-2).float())
        step = torch.where(inverse > 0, 1 / inverse.float(), torch.zeros_like(inverse, dtype=torch.float32))
        values = (codes * step.unsqueeze(-1) + minimum.float().unsqueeze(-1)).flatten(-2)[..., :width]
        if dtype == torch.float16:  # the group's maximum may round to just above the greatest fp16
            values = values.clamp(-_GREATEST, _GREATEST)
        return values.to(dtype)

    def _grouped(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.group, self.group)
