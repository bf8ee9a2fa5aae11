"""AdaKV: the heads of a layer share its budget; heads whose attention is spread out get more of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.errors import BadValue
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import LayerKV
from lcbench.kv.observe import LastQueries, Observation
from lcbench.kv.ragged import best_and_recent, kept_layer
from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.kv.scores import group_reduce, pool, window_scores
from lcbench.methods.base import QUARTER, Method, Traits
from lcbench.methods.registry import method

_TINY = torch.finfo(torch.float32).tiny


@method("adakv", paper="arXiv:2407.11550", traits=Traits(family="evict"))
@dataclass(frozen=True)
class AdaKV(Method):
    """SnapKV scores with budgets per head (arXiv:2407.11550, algorithm 1; rules as in FFY0/AdaKV
    adaptive_snapkv/monkeypatch/snapkv_utils.py).

    The scores S of each head are the pooled attention of the last w = `window` queries. With B the budget and
    b = B - w, the best Hs b scores of a layer's Hs heads together are found, and u_h of them lie in head h. Head h
    keeps its best ``B_h = round((1 - alpha) u_h + floor(alpha b))`` tokens and the window.

    With `allocation=exact` (kvpress adakv_press.py) each head keeps its best floor(alpha B) tokens, window included,
    and the rest of Hs B places goes to the best other scores of the layer: the sum is exact, where the reference code
    misses it by what it rounds. kvpress only masks what it drops; here it is gone.

    `normalize` weighs each head's scores by the share of them that its b best hold before heads are compared
    (KVCache-Factory has it on, the reference code off). The first `skip` layers keep b in every head.

    The reference code defaults to `granularity=query` (every query head keeps keys of its own, g times the bytes);
    here KV heads are the default and their group's scores are reduced before pooling.

    One layer holds ``2 d e sum_h (B_h + w)`` bytes, and ``2 Hs d e`` more a new token.
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Kept positions of both allocations against the formula in fp64 with Python loops; alpha=1 keeps b in every "
        "head, alpha=0 the best entries of the layer; teacher-forced logits over 64 tokens against the plain "
        "transformers model with each head's dropped keys masked; bytes equal the sum over heads, in memory too."
    )

    budget: Budget = param(QUARTER, "tokens kept a head on average, window included: a ratio (0.25) or a number (512)")
    window: int = param(32, "last prompt tokens whose queries score and that all stay (w)", minimum=1)
    kernel: int = param(7, "width of the pooling over tokens; odd, 1 for none", minimum=1)
    pooling: Literal["max", "avg"] = param("max", "kind of pooling")
    alpha: float = param(0.2, "share of the budget that every head is sure of", minimum=0, maximum=1)
    allocation: Literal["rounded", "exact"] = param("rounded", "rounded as the authors' code, or with an exact sum")
    normalize: bool = param(False, "weigh heads by how concentrated their scores are")
    skip: int = param(0, "first layers whose heads share nothing", minimum=0)
    reduce: Literal["mean", "max"] = param("mean", "how the query heads of a group become one score")
    granularity: Literal["kv", "query"] = param("kv", "heads that choose and store: KV heads, or every query head")

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise BadValue(f"adakv@kernel={self.kernel} is even.", "Use an odd width, or 1 for no pooling.")

    def observes(self) -> frozenset[Observation]:
        return frozenset({LastQueries(self.window)})

    @property
    def leaves_subset(self) -> bool:
        return True

    def compress(self, record: PrefillRecord) -> KVCache:
        keep = self.budget.resolve(record.length, at_least=self.window + 1)
        if keep >= record.length:
            return record.cache.fork()
        return KVCache([self._layer(record.layer(i), keep) for i in range(record.shape.layers)])

    def _layer(self, record: LayerRecord, keep: int) -> LayerKV:
        scores = self.scores(record)
        counts = self.counts(scores, keep, record.index)
        return kept_layer(record, best_and_recent(scores, counts, self.window))

    def scores(self, record: LayerRecord) -> Tensor:
        """Pooled window scores of the stored heads, fp32 ``[Hs, L - w]``."""
        raw = window_scores(record, self.window, mean=True)
        stored = record.key.shape[0] if self.granularity == "kv" else raw.shape[0]
        return pool(group_reduce(raw, stored, self.reduce), self.kernel, self.pooling)

    def counts(self, scores: Tensor, keep: int, layer: int) -> list[int]:
        """Tokens that each head keeps beside the window, for a mean of ``keep`` tokens with it."""
        heads, each = scores.shape[0], keep - self.window
        if layer < self.skip:
            return [each] * heads
        ranked = torch.sort(scores, dim=-1, descending=True, stable=True)
        if self.normalize:
            share = ranked.values[:, :each].sum(dim=-1) / scores.sum(dim=-1).clamp_min(_TINY)
            scores = scores * share[:, None]
        if self.allocation == "exact":
            sure = max(0, _floor(self.alpha * keep) - self.window)
            return _places(scores.scatter(1, ranked.indices[:, :sure], torch.inf), heads * each)
        sure = _floor(self.alpha * each)
        return [round((1 - self.alpha) * places + sure) for places in _places(scores, heads * each)]


def _places(scores: Tensor, total: int) -> list[int]:
    """How many of the ``total`` highest scores ``[h, n]`` lie in each head; ties go to the lower head and position."""
    best = torch.sort(scores.flatten(), descending=True, stable=True).indices[:total]
    places: list[int] = torch.bincount(best // scores.shape[1], minlength=scores.shape[0]).tolist()
    return places


def _floor(x: float) -> int:
    """Floor that forgives the rounding of a product such as 0.29 x 100."""
    return math.floor(x + 1e-9)
