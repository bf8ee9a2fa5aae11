"""Pages: the layout in which packed keys and values are read by the GPU kernels.

A page holds 128 tokens of one KV head of one layer, keys and values, at the bytes KIVI counts and no more. Only the
order differs from `kv.packing`: codes lie in *planes*. A 16-bit word at ``[w, x]`` holds, at bits ``[b p, b p + b)``,
the code of row ``p W + w`` of the matrix ``[rows, x]``, where W = rows b / 16 and p counts the 16 / b planes. For keys
rows are the page's tokens and x runs over channels; for values rows are channels and x runs over tokens. Thus one shift
and one mask turn a column of W words into W rows of a matrix product's operand, all of one group. In memory words lie
as ``[x / 8, w, 8]``, so that the 16-byte rows that a matrix instruction's operand is read by follow each other.

A record is a page's run of 16-bit elements: key words, key scales ``[T / G, d]``, key minima, value words, value scales
``[d / G, T]``, value minima.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lcbench.kv.packing import Packed, pack, unpack

TOKENS = 128  # a page; the residual length the kernels serve
ALIGN = 8  # page addresses are counted in units of 8 elements, 16 bytes, so that loads may be that wide


@dataclass(frozen=True)
class PageLayout:
    """Where things lie in a record.

    Attributes:
        bits: of a code, 2 or 4. group: elements that share a scale. head_dim: d.
    """

    bits: int
    group: int
    head_dim: int

    @property
    def planes(self) -> int:
        return 16 // self.bits

    @property
    def key_words(self) -> int:
        return TOKENS // self.planes

    @property
    def value_words(self) -> int:
        return self.head_dim // self.planes

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """Elements of keys, their scales, their minima, values, their scales, their minima."""
        d = self.head_dim
        keys, values = TOKENS // self.group * d, d // self.group * TOKENS
        return self.key_words * d, keys, keys, self.value_words * TOKENS, values, values

    @property
    def record(self) -> int:
        """16-bit elements of one page of one head."""
        return sum(self.sizes)

    def parts(self, records: Tensor) -> tuple[Tensor, ...]:
        """Views of int16 records ``[..., record]``: key words ``[..., d/8, W_k, 8]``, scales and minima (fp16)
        ``[..., T/G, d]``, value words ``[..., T/8, W_v, 8]``, scales and minima ``[..., d/G, T]``."""
        keys, key_scale, key_minimum, values, value_scale, value_minimum = torch.split(
            records, list(self.sizes), dim=-1
        )
        half = torch.float16
        return (
            _folded(keys, self.key_words, 8),
            _folded(key_scale.view(half), self.head_dim),
            _folded(key_minimum.view(half), self.head_dim),
            _folded(values, self.value_words, 8),
            _folded(value_scale.view(half), TOKENS),
            _folded(value_minimum.view(half), TOKENS),
        )

    def serves(self) -> bool:
        """Whether the kernels can read such pages: powers of two, and every plane within one group."""
        powers = all(n & (n - 1) == 0 for n in (self.group, self.head_dim))
        fits = 32 <= self.head_dim <= 256 and self.group <= min(self.head_dim, TOKENS)
        return self.bits in (2, 4) and powers and fits and self.group % max(self.key_words, self.value_words) == 0


@dataclass(frozen=True)
class Row:
    """What KIVI holds of one sequence in one layer, with a residual of 128 tokens.

    Attributes:
        keys: ``[Hk, d, n_k]``, values: ``[Hk, n_v, d]``, packed. exact_keys: ``[Hk, L mod 128, d]``, exact_values:
        ``[Hk, min(L, 128), d]``, oldest first. tokens: L.
    """

    keys: Packed
    values: Packed
    exact_keys: Tensor
    exact_values: Tensor
    tokens: int


def to_planes(codes: Tensor, bits: int) -> Tensor:
    """Codes ``[..., rows, x]`` of any integer dtype as int16 words ``[..., x / 8, rows b / 16, 8]``."""
    *outer, rows, x = codes.shape
    planes = codes.to(torch.int32).reshape(*outer, 16 // bits, rows * bits // 16, x)
    words = (planes << _places(bits, codes.device)).sum(dim=-3, dtype=torch.int32).to(torch.int16)
    return _folded(words, 8).transpose(-3, -2)


def from_planes(words: Tensor, bits: int) -> Tensor:
    """The codes in int16 words ``[..., x / 8, W, 8]``: int32 ``[..., W 16 / b, x]``."""
    words = words.transpose(-3, -2).flatten(-2).to(torch.int32)
    codes: Tensor = (words.unsqueeze(-3) >> _places(bits, words.device)) & (2**bits - 1)
    return codes.flatten(-3, -2)


def _places(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, 16, bits, dtype=torch.int32, device=device)[:, None, None]


def _folded(x: Tensor, *sizes: int) -> Tensor:
    """``[..., n]`` as a view ``[..., n / prod(sizes), *sizes]``."""
    return x.view(*x.shape[:-1], x.shape[-1] // math.prod(sizes), *sizes)


def write(records: Tensor, layout: PageLayout, keys: Packed, values: Packed) -> None:
    """Fill pages from the packed form.

    Args:
        records: int16 ``[P, Hk, record]``, written.
        keys: ``[Hk, d, P T]``, groups along tokens. values: ``[Hk, n_v, d]``, n_v at most P T; the rest is zero.
    """
    key_words, key_scale, key_minimum, value_words, value_scale, value_minimum = layout.parts(records)
    pages, heads = records.shape[:2]
    codes = unpack(keys.words, keys.bits).view(heads, layout.head_dim, pages, TOKENS)
    key_words.copy_(to_planes(codes.permute(2, 0, 3, 1), keys.bits))
    for to, numbers in ((key_scale, keys.scale), (key_minimum, keys.minimum)):
        to.copy_(numbers.view(heads, layout.head_dim, pages, -1).permute(2, 0, 3, 1))

    def paged(rows: Tensor) -> Tensor:  # [Hk, n_v, x] -> [P, Hk, x, T]
        room = torch.nn.functional.pad(rows, (0, 0, 0, pages * TOKENS - rows.shape[1]))
        return room.view(heads, pages, TOKENS, -1).permute(1, 0, 3, 2)

    value_words.copy_(to_planes(paged(unpack(values.words, values.bits)), values.bits))
    value_scale.copy_(paged(values.scale))
    value_minimum.copy_(paged(values.minimum))


def read(records: Tensor, layout: PageLayout, value_tokens: int) -> tuple[Packed, Packed]:
    """The packed form of pages ``[P, Hk, record]``: keys ``[Hk, d, P T]`` and the first ``value_tokens`` values
    ``[Hk, n_v, d]``, in memory of their own."""
    key_words, key_scale, key_minimum, value_words, value_scale, value_minimum = layout.parts(records)
    bits, group = layout.bits, layout.group

    def channels_first(x: Tensor) -> Tensor:  # [P, Hk, n, d] -> [Hk, d, P n]
        return x.permute(1, 3, 0, 2).flatten(2).contiguous()

    def tokens_first(x: Tensor) -> Tensor:  # [P, Hk, n, T] -> [Hk, n_v, n]
        return x.permute(1, 0, 3, 2).flatten(1, 2)[:, :value_tokens].contiguous()

    keys = Packed(
        pack(channels_first(from_planes(key_words, bits)), bits),
        channels_first(key_scale),
        channels_first(key_minimum),
        bits,
        group,
    )
    values = Packed(
        pack(tokens_first(from_planes(value_words, bits)), bits),
        tokens_first(value_scale),
        tokens_first(value_minimum),
        bits,
        group,
    )
    return keys, values
