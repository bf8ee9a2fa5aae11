"""KIVI: keys quantized per channel, values per token, the newest tokens left exact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.errors import BadValue, ModelError
from lcbench.kv import attention
from lcbench.kv.buffer import Buffer
from lcbench.kv.cache import CacheShape
from lcbench.kv.kernels import rows
from lcbench.kv.kernels.pages import Row
from lcbench.kv.kernels.rows import Place
from lcbench.kv.layer import LayerKV, outside_window, text_positions
from lcbench.kv.packing import BITS, WORD, Packed, group_that_fits, quantize
from lcbench.kv.record import LayerRecord
from lcbench.methods.base import CacheTransform, Traits
from lcbench.methods.registry import method
from lcbench.models.lots import in_lots
from lcbench.models.rule import AttentionRule


@method("kivi", paper="arXiv:2402.02750", traits=Traits(family="quantize"))
@dataclass(frozen=True)
class Kivi(CacheTransform):
    """Asymmetric 2- or 4-bit KV cache (arXiv:2402.02750, algorithm 1; rules as in jy-yuan/KIVI
    models/llama_kivi.py). 8 bits are not in the paper.

    The prompt is read with exact attention. Then groups of `group_size` consecutive tokens of each key channel, and
    of consecutive channels of each value token, share an fp16 scale and minimum. The newest ``L mod R`` keys and
    ``min(L, R)`` values stay exact, R = `residual_length`. While decoding, the exact keys are quantized together when
    there are R of them, values one by one as they become older than R; nothing is quantized twice.

    With e bytes an uncompressed element, n quantized and r exact tokens (of keys or of values), one layer holds
    ``Hk d (n bits/8 + 4 n/G + e r)`` bytes of keys and as many of values. Scales are fp16 whatever the model's dtype.
    The minimum is rounded to fp16 first, and the scale is computed against the stored one: ``(maximum - stored minimum)
    / (2^bits - 1)``, rounded to fp16 and raised by an ulp where the highest code would otherwise fall more than half a
    step short of the maximum. Codes are computed against both stored numbers in fp32, so that the error of an element
    is at most half a step and one fp16 ulp. In an fp16 model the stored minimum is the minimum itself; there a code may
    differ by one where the authors' fp16 arithmetic ties. In an fp32 model, of which the paper says nothing, a scale
    from the unrounded minimum gives slightly other codes.
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models over 200 tokens, across "
        "flushes, against a reference written from the formulas with Python loops; the same reference with its key "
        "groups along the wrong axis, or with values quantized one token late, is told apart. Every stored element "
        "against the slow quantizer, bit for bit, in fp32, fp16 and bf16. Bytes equal the formula to the byte, in "
        "elements and in memory. Within the residual: dense attention bit for bit. Error bound and packing by "
        "property tests."
    )

    takes_subset: ClassVar[bool] = True

    bits: int = param(2, "bits of a quantized key or value", choices=BITS)
    group_size: int = param(32, "elements that share a scale and a minimum (G)", minimum=4)
    residual_length: int = param(128, "newest tokens kept exact (R); a multiple of group_size", minimum=4)

    def __post_init__(self) -> None:
        bits, group, residual = self.bits, self.group_size, self.residual_length
        if bits not in BITS:
            raise BadValue(f"kivi@bits={bits} is not one of 2, 4, 8.", "Choose 2, 4 or 8.")
        if group < 1 or group * bits % WORD:
            raise BadValue(
                f"kivi@group_size={group} does not fill whole 32-bit words with {bits}-bit codes.",
                f"Use a multiple of {WORD // bits}.",
            )
        if residual < group or residual % group:
            raise BadValue(
                f"kivi@residual_length={residual} is not a multiple of group_size={group}.",
                f"Use {group}, {2 * group}, {4 * group} …",
            )

    def check(self, shape: CacheShape) -> None:
        if shape.head_dim % self.group_size:
            fits = group_that_fits(shape.head_dim, self.bits, self.group_size)
            raise ModelError(
                f"kivi@group_size={self.group_size} does not divide this model's head dimension {shape.head_dim}.",
                f"Use kivi@bits={fits[0]},group_size={fits[1]}."
                if fits
                else "Use a method that quantizes no groups of channels: lcbench list methods.",
            )

    def layer(self, record: LayerRecord, shape: CacheShape) -> LayerKV:
        return KiviLayer(
            record.key,
            record.value,
            bits=self.bits,
            group=self.group_size,
            residual=self.residual_length,
            kept=record.kept,
            seen=record.seen,
        )


class KiviLayer(LayerKV):
    """Keys packed along tokens ``[Hk, d, n_k]``, values along channels ``[Hk, n_v, d]``, and the exact rest of both.

    After a prompt the memory held is exact to the byte. Exact rows and packed values lie in growing `Buffer`s, whose
    slack `tensors` does not list. While rows are decoded together on a GPU, their memory lies in a common arena.

    Args:
        key, value: ``[Hk, L, d]`` of the prompt, or of what was kept of it; copied.
        bits, group, residual: see `Kivi`.
        kept: their text positions ``[L]`` or ``[Hk, L]`` where it is a part. seen: tokens of the prompt; default L.
    """

    def __init__(
        self,
        key: Tensor,
        value: Tensor,
        *,
        bits: int,
        group: int,
        residual: int,
        kept: Tensor | None = None,
        seen: int | None = None,
    ) -> None:
        length = key.shape[1]
        self.bits, self.group, self.kv_heads = bits, group, key.shape[0]
        self.seen, self.residual = length if seen is None else seen, residual
        self._kept, self._dropped = kept, self.seen - length
        self._pending: tuple[Tensor, Tensor] | None = None
        self.place: Place | None = None
        flushed, aged = length - length % residual, max(0, length - residual)
        self._own(
            Row(
                quantize(key[:, :flushed].transpose(1, 2), bits, group),
                quantize(value[:, :aged], bits, group),
                key[:, flushed:].clone(memory_format=torch.contiguous_format),
                value[:, aged:].clone(memory_format=torch.contiguous_format),
                length,
            )
        )

    def _own(self, row: Row) -> None:
        """Take these tensors as they are."""
        self.place = None
        self._keys = row.keys
        self._values = [Buffer(tensor) for tensor in row.values.tensors()]
        self._exact_keys, self._exact_values = Buffer(row.exact_keys), Buffer(row.exact_values)

    def house(self, place: Place) -> None:
        """Forget the own tensors, if there are any: from now on they lie in an arena."""
        if self.place is None:
            del self._keys, self._values, self._exact_keys, self._exact_values
        self.place = place

    def _at_home(self) -> None:
        """Take the tensors back from the arena, if they are there."""
        if self.place is not None:
            self._own(self.place.leave())

    @property
    def held(self) -> int:
        """Tokens whose keys and values are held."""
        return self.seen - self._dropped

    def row(self) -> Row:
        """What is held: views of the own tensors, or copies of what lies in an arena."""
        if self.place is not None:
            return self.place.row()
        words, scale, minimum = (buffer.used for buffer in self._values)
        values = Packed(words, scale, minimum, self.bits, self.group)
        return Row(self._keys, values, self._exact_keys.used, self._exact_values.used, self.held)

    @property
    def keys(self) -> Packed:
        """Quantized keys, logical shape ``[Hk, d, n_k]``, groups along tokens."""
        return self.row().keys

    @property
    def values(self) -> Packed:
        """Quantized values, logical shape ``[Hk, n_v, d]``, groups along channels."""
        return self.row().values

    @property
    def exact(self) -> tuple[Tensor, Tensor]:
        """Keys ``[Hk, r_k, d]`` and values ``[Hk, r_v, d]`` that are not quantized (yet), oldest first."""
        row = self.row()
        return row.exact_keys, row.exact_values

    @classmethod
    def attend_rows(
        cls, stores: Sequence[LayerKV], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
    ) -> Tensor:
        """On a GPU the step of all rows is computed together, by kernels that read the codes: see `kv.kernels`."""
        if query.shape[2] > 1:
            return super().attend_rows(stores, query, key, value, rule)
        housed = cast(Sequence[KiviLayer], stores)

        def attend(served: bool, some: Sequence[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            lot = [housed[row] for row in some]
            return (rows.attend if served else _attend_at_home)(lot, query, key, value, rule)

        # Whether the kernels take a row does not depend on its neighbours: they round in another way.
        return in_lots(rows.served(housed, query, rule), query, key, value, attend)

    def append(self, key: Tensor, value: Tensor) -> None:
        assert self._pending is None, "attend must follow append"
        self._at_home()
        self._pending = (key, value)
        self.seen += key.shape[1]

    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        assert self._pending is not None, "attend must follow append"
        key, value = self._pending
        self._pending = None
        q = query.shape[1]
        outputs = []
        for i in range(q):  # one by one: what a token's step quantizes, the next token sees quantized
            new = slice(i, i + 1)
            outputs.append(self._attend_newest(query[:, new], key[:, new], value[:, new], self.seen - q + i + 1, rule))
            _settle([self])
        return outputs[0] if q == 1 else torch.cat(outputs, dim=1)

    def _attend_newest(self, query: Tensor, key: Tensor, value: Tensor, seen: int, rule: AttentionRule) -> Tensor:
        """Take one token and attend; nothing is quantized yet (`_settle`)."""
        self._exact_keys.append(key)
        self._exact_values.append(value)
        held = self.row()
        out, _ = attention.over_parts(
            query,
            [held.keys, held.exact_keys],
            [held.values, held.exact_values],
            rule,
            hidden=outside_window(partial(self._places, seen), seen, 1, rule.window),
            positions=partial(self._places, seen),
            seen=seen,
        )
        return out

    def _places(self, seen: int) -> Tensor:
        device = self._keys.words.device if self.place is None else self.place.arena.device
        return text_positions(self._kept, seen - self._dropped, seen, device)

    def positions(self) -> Tensor:
        return self._places(self.seen)

    def restored(self) -> list[tuple[Tensor, Tensor]]:
        """See `kv.witness.Restores`."""
        held = self.row()
        dtype = held.exact_keys.dtype
        keys = torch.cat([held.keys.dequantize(dtype).transpose(1, 2), held.exact_keys], dim=1)
        values = torch.cat([held.values.dequantize(dtype), held.exact_values], dim=1)
        return list(zip(keys, values, strict=True))

    def tensors(self) -> Iterator[Tensor]:
        held = self.row()
        yield from (*held.keys.tensors(), *held.values.tensors(), held.exact_keys, held.exact_values)

    def fork(self) -> KiviLayer:
        assert self._pending is None, "attend must follow append"
        new = KiviLayer.__new__(KiviLayer)
        new.bits, new.group, new.kv_heads = self.bits, self.group, self.kv_heads
        new.seen, new.residual, new._pending = self.seen, self.residual, None
        new._kept, new._dropped = self._kept, self._dropped
        new._own(self.row())
        return new


def _attend_at_home(
    stores: Sequence[KiviLayer], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
) -> Tensor:
    """One new token of each row without kernels: row by row, what has aged quantized for all of them at once."""
    outputs = []
    for row, store in enumerate(stores):
        store._at_home()
        store.seen += 1
        outputs.append(store._attend_newest(query[row], key[row], value[row], store.seen, rule))
    _settle(stores)
    return torch.stack(outputs)


def _settle(stores: Sequence[KiviLayer]) -> None:
    """What follows a step: all exact keys of a store are quantized when there are R, its oldest value when there are
    more. The oldest values of all stores are quantized together."""
    aged: dict[tuple[int, int, int, int], list[KiviLayer]] = {}
    for store in stores:
        if len(store._exact_keys) == store.residual:
            full = store._exact_keys.drop(store.residual)
            store._keys = store._keys.joined(quantize(full.transpose(1, 2), store.bits, store.group))
        if len(store._exact_values) > store.residual:
            heads, _, dim = store._exact_values.used.shape
            aged.setdefault((store.bits, store.group, heads, dim), []).append(store)
    for (bits, group, _, _), some in aged.items():
        oldest = quantize(torch.stack([store._exact_values.drop(1) for store in some]), bits, group)
        for held, each in zip(oldest.tensors(), zip(*(store._values for store in some), strict=True), strict=True):
            for row, buffer in zip(held, each, strict=True):
                buffer.append(row)
