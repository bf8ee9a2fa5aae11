"""The packed caches of many rows of one layer in one arena, and their decoding step in three launches.

Rows differ in length: each has a table of pages. Nothing that depends on a row is done in Python in a step, except
handing out a page to the rows whose exact keys are about to be quantized (one step in 128).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lcbench.kv.kernels import decode, pack
from lcbench.kv.kernels.pages import ALIGN, TOKENS, PageLayout, Row, read, write


@dataclass(frozen=True)
class Launch:
    """How the kernels are launched: warps and pipeline stages of the page loop, pages one program of it goes through at
    most, warps and stages of the kernel for the newest tokens, partial results that it loads at once, and the packed
    half-precision instructions, which the interpreter does not know."""

    warps: int = 1
    stages: int = 3
    run: int = 16
    tail_warps: int = 1
    tail_stages: int = 1
    at_once: int = 4
    native: bool = True


class PagedBatch:
    """Arena of one layer: pages, page tables, exact tokens and lengths of up to ``slots`` rows.

    Args:
        layout: of the pages; must be one the kernels serve. kv_heads: Hk. dtype: of exact keys and values.
        pages: how many to take at once; more are taken when needed.
    """

    def __init__(
        self, layout: PageLayout, kv_heads: int, slots: int, pages: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layout, self.kv_heads, self.device = layout, kv_heads, device
        warps = 1 if layout.bits == 2 else 4  # four bits of 128 channels do not fit one warp's registers
        self.launch = Launch(warps=warps, native=device.type == "cuda")
        exact = (slots, kv_heads, TOKENS, layout.head_dim)
        self.exact_keys = torch.zeros(exact, dtype=dtype, device=device)
        self.exact_values = torch.zeros(exact, dtype=dtype, device=device)
        self.lengths = torch.zeros(slots, dtype=torch.int32, device=device)
        self._ones = torch.ones_like(self.lengths)
        self.counts = [0] * slots  # the same on the host
        self._asked: tuple[tuple[int, ...], Tensor] = ((), self.lengths)
        self._slabs: list[Tensor] = []
        self._free: list[int] = []  # addresses
        self._take(max(1, pages))
        width = max(8, 2 * (-(-pages // max(1, slots)) // 2) + 4)  # even, so that every row is 16-byte aligned
        self.table = torch.zeros(slots, width, dtype=torch.int64, device=device)
        self._addresses: list[list[int]] = [[] for _ in range(slots)]

    # --- memory ---------------------------------------------------------------------------------------------------

    def _take(self, pages: int) -> None:
        slab = torch.empty(pages, self.kv_heads, self.layout.record, dtype=torch.int16, device=self.device)
        self._slabs.append(slab)
        first = (slab.data_ptr() - self._slabs[0].data_ptr()) // (2 * ALIGN)
        step = self.kv_heads * self.layout.record // ALIGN
        self._free.extend(first + step * i for i in reversed(range(pages)))

    def _runs(self, addresses: Sequence[int]) -> Iterator[tuple[slice, Tensor]]:
        """Pages ``[n, Hk, record]`` that lie in a row in memory, with their places among the addresses."""
        step = self.kv_heads * self.layout.record // ALIGN
        start = 0
        while start < len(addresses):
            slab, index = self._find(addresses[start], step)
            stop = start + 1
            most = min(len(addresses), start + slab.shape[0] - index)
            while stop < most and addresses[stop] == addresses[stop - 1] + step:
                stop += 1
            yield slice(start, stop), slab[index : index + stop - start]
            start = stop

    def _find(self, address: int, step: int) -> tuple[Tensor, int]:
        """The slab and the place in it of the page at an address."""
        for slab in self._slabs:
            index, off = divmod(address - (slab.data_ptr() - self._slabs[0].data_ptr()) // (2 * ALIGN), step)
            if off == 0 and 0 <= index < slab.shape[0]:
                return slab, index
        raise AssertionError("no page has this address")

    def _hand_out(self, slots: list[int], pages: int) -> None:
        """Give each of these rows so many more pages."""
        if len(self._free) < len(slots) * pages:
            self._take(max(len(slots) * pages - len(self._free), len(slots)))
        most = 0
        for slot in slots:
            for _ in range(pages):
                self._addresses[slot].append(self._free.pop())
            most = max(most, len(self._addresses[slot]))
        if most > self.table.shape[1]:
            wider = self.table.new_zeros(self.table.shape[0], 2 * most)
            wider[:, : self.table.shape[1]] = self.table
            self.table = wider
        ends = [len(self._addresses[slot]) for slot in slots]
        places = [(s, p) for s, end in zip(slots, ends, strict=True) for p in range(end - pages, end)]
        if places:
            values = [self._addresses[s][p] for s, p in places]
            rows, columns = torch.tensor(places, device=self.device).unbind(1)
            self.table[rows, columns] = torch.tensor(values, dtype=torch.int64, device=self.device)

    def reserve(self, tokens: int) -> None:
        """Hand out the pages that every row needs for so many more tokens."""
        for slot, count in enumerate(self.counts):
            missing = (count + tokens) // TOKENS - len(self._addresses[slot])
            if missing > 0:
                self._hand_out([slot], missing)

    @property
    def nbytes(self) -> int:
        """Bytes of the arena, slack included."""
        held = (*self._slabs, self.exact_keys, self.exact_values, self.table, self.lengths)
        return sum(t.numel() * t.element_size() for t in held)

    # --- rows -----------------------------------------------------------------------------------------------------

    def load(self, slot: int, row: Row) -> None:
        """Take over a row; ``slot`` must be free."""
        pages = row.tokens // TOKENS
        self._start(slot, row.tokens)
        if pages:
            records = row.keys.words.new_empty(pages, self.kv_heads, self.layout.record, dtype=torch.int16)
            write(records, self.layout, row.keys, row.values)
            for run, held in self._runs(self._addresses[slot]):
                held.copy_(records[run])
        self.exact_keys[slot, :, : row.exact_keys.shape[1]] = row.exact_keys
        self._spread(slot, row.exact_values, row.tokens)

    def fill(self, slot: int, key: Tensor, value: Tensor) -> None:
        """Quantize a prompt ``[Hk, L, d]`` straight into pages; ``slot`` must be free."""
        length = key.shape[1]
        pages = length // TOKENS
        self._start(slot, length)
        key, value = (x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous() for x in (key, value))
        if pages:
            lay = self.layout
            pack.prompt_kernel[(pages, self.kv_heads)](
                key, value, self._slabs[0], self.table[slot], length, key.stride(0), value.stride(0),
                D=lay.head_dim, T=TOKENS, RECORD=lay.record, BITS=lay.bits, GROUP=lay.group,
                num_warps=8,
            )  # fmt: skip
        rest = length % TOKENS
        self.exact_keys[slot, :, :rest] = key[:, length - rest :]
        self._spread(slot, value[:, max(0, length - TOKENS) :], length)

    def _start(self, slot: int, length: int) -> None:
        assert not self._addresses[slot], "the slot is taken"
        self._hand_out([slot], length // TOKENS)
        self.counts[slot] = length
        self.lengths[slot] = length

    def _spread(self, slot: int, values: Tensor, seen: int) -> None:
        """Put the newest values ``[Hk, min(L, T), d]`` at their places: token t at t mod T."""
        places = torch.arange(seen - values.shape[1], seen, device=self.device) % TOKENS
        self.exact_values[slot][:, places] = values

    def row(self, slot: int) -> Row:
        """A row in the packed form, in memory of its own."""
        seen = self.counts[slot]
        pages, rest, young = seen // TOKENS, seen % TOKENS, min(seen, TOKENS)
        records = torch.empty(pages, self.kv_heads, self.layout.record, dtype=torch.int16, device=self.device)
        for run, held in self._runs(self._addresses[slot][:pages]):
            records[run] = held
        keys, values = read(records, self.layout, max(0, seen - TOKENS))
        places = torch.arange(seen - young, seen, device=self.device) % TOKENS
        return Row(keys, values, self.exact_keys[slot, :, :rest].clone(), self.exact_values[slot][:, places], seen)

    def drop(self, slot: int) -> None:
        """Forget a row; its pages serve others."""
        self._free.extend(reversed(self._addresses[slot]))
        self._addresses[slot] = []
        self.counts[slot] = 0

    # --- a step ---------------------------------------------------------------------------------------------------

    def attend(self, slots: tuple[int, ...], query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """One new token of each of these rows: attention over everything held, then the step's quantization.

        Args:
            slots: R of them, each once. query: ``[R, H, d]``. key, value: ``[R, Hk, d]``.

        Returns:
            ``[R, H, d]`` in the query's dtype.
        """
        counts = self.counts
        filling = tuple(s for s in slots if counts[s] % TOKENS == TOKENS - 1)
        self._hand_out([s for s in filling if len(self._addresses[s]) <= counts[s] // TOKENS], 1)
        if slots != self._asked[0]:
            self._asked = slots, self._index(slots)
        most = max(counts[s] for s in slots) // TOKENS
        out = self.step(self._asked[1], query, key, value, scaling, most, self._index(filling) if filling else None)
        for s in slots:
            counts[s] += 1
        return out

    def _index(self, slots: tuple[int, ...]) -> Tensor:
        return torch.tensor(slots, dtype=torch.int32, device=self.device)

    def step(
        self, slots: Tensor, query: Tensor, key: Tensor, value: Tensor, scaling: float, most_pages: int,
        filling: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The launches of `attend`, without what it does on the host.

        Args:
            slots: int32 ``[R]`` on the device. most_pages: of the row that has most. filling: those slots whose exact
                keys come to 128 with this step.
        """
        lay, how = self.layout, self.launch
        rows, heads, d = query.shape
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        g = heads // self.kv_heads
        columns = max(8, 1 << (g - 1).bit_length())
        run = pages_per_split(rows * self.kv_heads, most_pages, how.run, self.device)
        splits = max(1, -(-(most_pages - 1) // run))
        buffers = _partial((rows, self.kv_heads, splits, columns, d), self.device)
        shape = {"HK": self.kv_heads, "D": d, "T": TOKENS, "RECORD": lay.record, "BITS": lay.bits, "GROUP": lay.group}
        turning, result = _turning(lay.bits, self.device), torch.empty_like(query)
        if most_pages > 1:
            decode.pages_kernel[(self.kv_heads, splits, rows)](
                query, self._slabs[0], turning, self.table, self.lengths, slots, *buffers, scaling, heads, g,
                self.table.stride(0), splits, run,
                **shape, COLUMNS=columns, NATIVE=how.native, STAGES=how.stages, num_warps=how.warps,
                num_stages=how.stages,
            )  # fmt: skip
        decode.tail_kernel[(self.kv_heads, rows)](
            query, key, value, self._slabs[0], turning, self.table, self.lengths, slots, self.exact_keys,
            self.exact_values, *buffers, result, scaling, heads, g, self.table.stride(0), splits, run,
            **shape, COLUMNS=columns, NATIVE=how.native, SOME=32, STAGES=how.tail_stages, AT_ONCE=how.at_once,
            num_warps=how.tail_warps, num_stages=how.tail_stages,
        )  # fmt: skip
        pack.settle_kernel[(self.kv_heads, rows)](
            key, value, self._slabs[0], self.table, self.lengths, slots, self.exact_keys, self.exact_values,
            self.table.stride(0), **shape, num_warps=1,
        )  # fmt: skip
        if filling is not None:
            pack.flush_kernel[(self.kv_heads, filling.shape[0])](
                self._slabs[0], self.table, self.lengths, filling, self.exact_keys, self.table.stride(0),
                **shape, num_warps=8,
            )  # fmt: skip
        self.lengths.index_add_(0, slots, self._ones[:rows])
        return result


_scratch: dict[torch.device, Tensor] = {}


def _partial(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sums ``[R, Hk, splits, columns, d]``, maxima and totals ``[R, Hk, splits, columns]``, fp32, flat; shared by all
    layers of a model, since one is done before the next begins."""
    rows = math.prod(shape[:-1])
    size = rows * (shape[-1] + 2)
    have = _scratch.get(device)
    if have is None or have.numel() < size:
        _scratch[device] = have = torch.empty(size, dtype=torch.float32, device=device)
    sums, top, total = torch.split(have[:size], [rows * shape[-1], rows, rows])
    return sums, top, total


def pages_per_split(rows: int, most_pages: int, most: int, device: torch.device) -> int:
    """Pages one program goes through, so that several waves of programs fill the device.

    Args:
        rows: rows times KV heads. most: of the answer.
    """
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return max(2, min(most, rows * most_pages // (processors * 64)))


@cache
def _turning(bits: int, device: torch.device) -> Tensor:
    """By how much a word is rotated left so that the code of each plane comes to its place in an fp16 number."""
    place = 8 if bits == 2 else 0
    return torch.tensor([(place - bits * p) % 32 for p in range(16 // bits)], dtype=torch.int32, device=device)
