"""H2O as a published benchmark ran it: scores from generated tokens only, nothing freed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.kv import attention
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.heavy import Limits
from lcbench.kv.layer import DenseLayer, outside_window
from lcbench.kv.record import PrefillRecord
from lcbench.methods.base import Method, Traits
from lcbench.methods.registry import method
from lcbench.models.rule import AttentionRule

PRESETS = {"2x": 0.25, "4x": 0.125, "6x": 0.083, "8x": 0.0625}  # heavy and recent each


@method("h2o-longctx", paper="arXiv:2306.14048", traits=Traits(family="evict", memory="simulated"))
@dataclass(frozen=True)
class H2OLongctx(Method):
    """H2O (arXiv:2306.14048) the way "KV Cache Compression, But What Must We Give in Return?" measured it
    (arXiv:2407.01527; rules as in henryzhongsc/longctx_bench pipeline/h2o/utils_hh/modify_llama.py). To reproduce that
    paper's rows; `h2o` is the method as its authors describe it.

    The prompt is read with flash attention, so its attention is not known: scores start with the first generated
    token, which still sees everything and whose K = L + 1 keys set ``heavy = floor(ratio K)`` and recent likewise.
    From then on a query head sees its heavy best-scored keys, the recent newest ones and the new token itself. (The
    mask and the record of what keeps its score share memory in that code; hence one key more than in the original.)
    A key that was masked never returns. With ``floor(ratio K) = 0`` recent keys the shared memory re-opens
    everything: the full cache. The first two generated tokens are always those of the full cache. The reference sums
    scores in the model's dtype, here it is fp32.

    Keys are masked, not removed, and per query head: memory is simulated. `preset` 2x, 4x, 6x and 8x are the paper's
    ratios 0.25, 0.125, 0.083 and 0.0625 for each of the two; `heavy` and `recent` replace them.

    One layer really holds ``2 Hk d e T`` bytes for T tokens, and ``5 H T`` of scores and masks; a store that kept
    what these masks leave would hold ``2 H d e (heavy + recent)`` (`logical_nbytes`).
    """

    proof: ClassVar[str] = (
        "Teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models over 64 tokens against the "
        "unmodified transformers model whose keys are masked by a second computation, in fp64, of the rule as the "
        "reference code has it, shared memory included; exactly heavy + recent + 1 keys are open at each step; the "
        "presets give the paper's numbers of tokens at L = 7500; bytes held equal the formula."
    )

    preset: Literal["2x", "4x", "6x", "8x"] = param("4x", "the paper's ratios: 2x, 4x, 6x or 8x")
    heavy: float | None = param(None, "heavy keys as a share of the prompt; none: by preset", minimum=0, maximum=1)
    recent: float | None = param(None, "recent keys as a share of the prompt; none: by preset", minimum=0, maximum=1)

    def limits(self, keys: int) -> Limits:
        """Keys that stay open beside the new one, set by the first generated token among ``keys`` = L + 1 keys."""
        ratio = PRESETS[self.preset]
        heavy, recent = (ratio if part is None else part for part in (self.heavy, self.recent))
        return Limits(int(heavy * keys), int(recent * keys))

    def logical_nbytes(self, shape: CacheShape, prompt_tokens: int) -> int:
        """Bytes of a cache that held, query head by query head, what the masks leave open between steps."""
        limits = self.limits(prompt_tokens + 1)
        if limits.recent == 0 or limits.total > prompt_tokens:
            return shape.full_bytes(prompt_tokens)
        return shape.full_bytes(limits.total) * shape.groups

    def compress(self, record: PrefillRecord) -> KVCache:
        limits = self.limits(record.length + 1)
        layers = [record.layer(i) for i in range(record.shape.layers)]
        return KVCache([MaskedLayer(layer.key, layer.value, limits) for layer in layers])


class MaskedLayer(DenseLayer):
    """Everything is held; what a query head may still see, and what each key has received, is kept beside it.

    Args:
        key, value: ``[Hk, L, d]`` of the prompt; shared with the record, never written to.
        limits: see `H2OLongctx.limits`.
    """

    def __init__(self, key: Tensor, value: Tensor, limits: Limits) -> None:
        super().__init__(key, value)
        self.limits = limits
        self.scores: Tensor | None = None  # fp32 [H, n], from the first new token on
        self.masked: Tensor | None = None  # bool [H, n], for the next token

    @property
    def acts(self) -> bool:
        return True

    def _attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        keys, values = self.parts()
        hidden = outside_window(self.positions, self.seen, 1, rule.window)
        if self.masked is not None:
            own = torch.zeros_like(self.masked[:, :1])
            masked = torch.cat([self.masked, own], dim=1)[:, None]
            hidden = masked if hidden is None else masked | hidden
        out, weights = attention.over_parts(query, keys, values, rule, hidden=hidden, return_weights=True)
        assert weights is not None
        self._mark(weights[:, 0])
        return out

    def _mark(self, received: Tensor) -> None:
        """Add one query's weights ``[H, n]`` to the scores and choose what the next one may see.

        A masked key gets nothing more while the heavy ones above it do, so it never comes back.
        """
        if self.scores is not None:
            received[:, :-1] += self.scores
        self.masked = torch.zeros_like(received, dtype=torch.bool)
        if received.shape[1] > self.limits.total and self.limits.recent > 0:
            self.masked = ~self.masked.scatter(1, self.limits.survivors(received), True)
        self.scores = received

    def tensors(self) -> Iterator[Tensor]:
        yield from super().tensors()
        if self.scores is not None and self.masked is not None:
            yield from (self.scores, self.masked)

    def fork(self) -> MaskedLayer:
        assert self.key is not None
        assert self.value is not None
        new = MaskedLayer(self.key, self.value, self.limits)
        new.seen, new._tail_start, new.rule = self.seen, self._tail_start, self.rule
        new.scores, new.masked = self.scores, self.masked
        if self.tail is not None:
            new.tail = self.tail.fork()
        return new
