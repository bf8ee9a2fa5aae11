"""The quantized cache that transformers itself ships, as it behaves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.errors import BadValue, ModelError, SampleError
from lcbench.kv import attention
from lcbench.kv.cache import CacheShape
from lcbench.kv.layer import LayerKV, outside_window, text_positions
from lcbench.kv.record import LayerRecord
from lcbench.methods.base import CacheTransform, Traits
from lcbench.methods.registry import method
from lcbench.models import quantized_layer, quanto_build
from lcbench.models.rule import AttentionRule

_BITS = {"quanto": (2, 4), "hqq": (1, 2, 3, 4, 8)}
_AXES = {"quanto": (0, -1), "hqq": (0, 1)}
_PACKAGE = {"quanto": "optimum-quanto", "hqq": "hqq"}


@method("hf-quantized", paper="", traits=Traits(family="quantize"))
@dataclass(frozen=True)
class HfQuantized(CacheTransform):
    """`QuantizedCache` of transformers (src/transformers/cache_utils.py), run by the library's own code with the
    backend `quanto` (package optimum-quanto) or `hqq` (package hqq); neither comes with lcbench.

    The prompt is read with exact attention, then all of it is quantized: unlike KIVI there is no exact recent window
    after a prompt. New tokens stay exact until there are `residual_length` of them; then the restored old part and
    the new tokens are quantized together, again from scratch, so that errors can grow with each flush. Keys and
    values flush together. The step that flushes still sees its tokens exactly.

    What a group is follows from how the backends cut a layer's ``[Hk, n, d]`` numbers:

    * quanto, axis 0: `group_size` consecutive numbers, the channels of a token where G divides d. Axis -1: G
      consecutive tokens of a channel, running on from one head into the next; needs G to divide Hk n.
    * hqq, axis 1: G consecutive numbers, as quanto's axis 0. Axis 0: G numbers that lie Hk n d / G apart.

    Both axes are 0 by default, as in the library, which for quanto means per token, for keys as well. The nearest to
    KIVI is ``backend=quanto,axis_key=-1``. Names here for the library's: bits is nbits, group_size is q_group_size.

    A prompt, or a flush, whose numbers the backend cannot cut into groups is a failed sample that says so. Scales and
    zero points are in the model's dtype: with e bytes an element one layer holds about
    ``2 Hk d (n bits/8 + 2 e n/G + e r)`` bytes for n quantized and r exact tokens (a last row of codes that does not
    fill its bytes is rounded up; 3-bit codes take 32 bits for ten).
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "With the backends installed: teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models "
        "over 64 tokens against a reference whose keys and values the library's own quantizers restored, across "
        "flushes; the whole run against transformers' QuantizedCache behind the unmodified model; the residual is "
        "empty after the prompt; three flushes let the error grow and KIVI's not; bytes equal the formula, in memory "
        "too."
    )

    takes_subset: ClassVar[bool] = True

    backend: Literal["quanto", "hqq"] = param("quanto", "library that quantizes; must be installed")
    bits: int = param(4, "bits of a quantized number: 2 or 4 with quanto; 1, 2, 3, 4 or 8 with hqq")
    group_size: int = param(64, "numbers that share a scale (G)", minimum=8)
    axis_key: int = param(0, "how keys are cut into groups: 0 or -1 with quanto, 0 or 1 with hqq")
    axis_value: int = param(0, "the same for values")
    residual_length: int = param(128, "new tokens that wait exactly until they are quantized together", minimum=1)

    def __post_init__(self) -> None:
        where = f"hf-quantized@backend={self.backend}"
        for name, value, allowed in (
            ("bits", self.bits, _BITS[self.backend]),
            ("axis_key", self.axis_key, _AXES[self.backend]),
            ("axis_value", self.axis_value, _AXES[self.backend]),
        ):
            if value not in allowed:
                words = ", ".join(map(str, allowed))
                raise BadValue(f"{where},{name}={value} is not one of {words}.", f"Choose {words}.")
        if self.group_size < 8 or self.group_size % 8:
            raise BadValue(f"{where},group_size={self.group_size} is not a multiple of 8.", "Use 32, 64 or 128.")
        if self.residual_length < 1:
            raise BadValue(f"{where},residual_length={self.residual_length} is below 1.", "Use 1 or more.")
        if self.backend == "hqq" and self.bits == 3 and (self.axis_key or self.axis_value):
            raise BadValue(
                f"{where},bits=3 cannot restore what it cut along axis 1 (a limit of the hqq package).",
                "Use axis 0, or other bits.",
            )

    def check(self, shape: CacheShape) -> None:
        self.library_layer()
        if self.backend == "quanto":
            quanto_build.refuse_stale_lock()

    def announcement(self) -> str:
        return quanto_build.announcement() if self.backend == "quanto" else ""

    def library_layer(self) -> Any:
        """An empty layer of the library's. Raises ModelError where the backend is not installed."""
        try:
            return quantized_layer.empty(
                self.backend,
                bits=self.bits,
                axis_key=self.axis_key,
                axis_value=self.axis_value,
                group_size=self.group_size,
                residual_length=self.residual_length,
            )
        except ImportError:
            package = _PACKAGE[self.backend]
            raise ModelError(
                f"hf-quantized@backend={self.backend} needs the package {package}, which is not installed "
                "(or too old for this transformers).",
                f"Run: pip install -U {package}",
            ) from None

    def layer(self, record: LayerRecord, shape: CacheShape) -> LayerKV:
        return LibraryLayer(record.key, record.value, self, kept=record.kept, seen=record.seen)

    def refusal(self, kv_heads: int, tokens: int, width: int) -> str:
        """Why the backend cannot quantize ``[Hk, n, d]`` numbers; "" where it can."""
        numbers, group = kv_heads * tokens * width, self.group_size
        for axis in {self.axis_key, self.axis_value}:
            cut = numbers // width if axis == -1 else numbers
            rows = numbers // group if axis == 1 else group
            codes = 8 // self.bits if self.bits != 3 else 1  # of a byte; 3-bit rows are filled up
            if cut % group:
                return f"{cut} numbers{' a channel' if axis == -1 else ''} do not fill groups of {group}"
            if self.backend == "hqq" and rows % codes:
                return f"{rows} groups do not fill bytes of {codes} codes"
        return ""


class LibraryLayer(LayerKV):
    """A layer of transformers' quantized cache as a store. Several new tokens are taken one by one.

    Args:
        key, value: ``[Hk, L, d]`` of the prompt, or of what was kept of it; not held.
        method: its parameters.
        kept: their text positions ``[L]`` or ``[Hk, L]`` where it is a part. seen: tokens of the prompt; default L.
    """

    def __init__(
        self,
        key: Tensor,
        value: Tensor,
        method: HfQuantized,
        *,
        kept: Tensor | None = None,
        seen: int | None = None,
    ) -> None:
        self.method = method
        self.seen = key.shape[1] if seen is None else seen
        self._kept, self._dropped = kept, self.seen - key.shape[1]
        self._taken = self._quantized = 0
        self._library = method.library_layer()
        self._pending: tuple[Tensor, Tensor] | None = None
        self._update(key, value, flushes=True)

    @property
    def residual(self) -> int:
        """New tokens that are not quantized yet."""
        return self._taken - self._quantized

    def _update(self, key: Tensor, value: Tensor, *, flushes: bool) -> tuple[Tensor, Tensor]:
        """All keys and values ``[Hk, n, d]`` that a step with these new tokens sees."""
        kv_heads, q, width = key.shape
        self._taken += q
        if flushes:
            problem = self.method.refusal(kv_heads, self._taken, width)
            if problem:
                raise SampleError(
                    f"{self.method.id}: the {self.method.backend} backend cannot quantize {self._taken} tokens of "
                    f"{kv_heads} heads: {problem}.",
                    "Use axis 0 or another group size.",
                )
            self._quantized = self._taken
        keys, values = self._library.update(key[None], value[None])
        return keys[0], values[0]

    def append(self, key: Tensor, value: Tensor) -> None:
        assert self._pending is None, "attend must follow append"
        self._pending = (key, value)
        self.seen += key.shape[1]

    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        assert self._pending is not None, "attend must follow append"
        key, value = self._pending
        self._pending = None
        outputs = []
        for i in range(query.shape[1]):  # one by one: when the library flushes depends on how many come at once
            new = slice(i, i + 1)
            flushes = self.residual + 1 >= self.method.residual_length
            keys, values = self._update(key[:, new], value[:, new], flushes=flushes)
            reached = self._taken + self._dropped
            hidden = outside_window(partial(self._places, reached), reached, 1, rule.window)
            places = partial(self._places, reached)
            out, _ = attention.over_parts(
                query[:, new], [keys], [values], rule, hidden=hidden, positions=places, seen=reached
            )
            outputs.append(out)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _places(self, seen: int) -> Tensor:
        return text_positions(self._kept, seen - self._dropped, seen, self._library.keys.device)

    def positions(self) -> Tensor:
        return self._places(self.seen)

    def restored(self) -> list[tuple[Tensor, Tensor]]:
        """See `kv.witness.Restores`."""
        return list(zip(*quantized_layer.contents(self._library), strict=True))

    def tensors(self) -> Iterator[Tensor]:
        yield from quantized_layer.tensors(self._library)

    def fork(self) -> LibraryLayer:
        assert self._pending is None, "attend must follow append"
        new = LibraryLayer.__new__(LibraryLayer)
        new.method, new.seen, new._pending = self.method, self.seen, None
        new._taken, new._quantized = self._taken, self._quantized
        new._kept, new._dropped = self._kept, self._dropped
        new._library = copy.copy(self._library)  # it replaces its tensors and never writes to them
        return new
