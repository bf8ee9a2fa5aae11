"""DynamicKV: layers share one budget; each gets as much of it as its tokens score among those of all layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.errors import BadValue
from lcbench.kv.cache import KVCache
from lcbench.kv.observe import LastQueries, Observation
from lcbench.kv.ragged import best_and_recent, kept_layer
from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.kv.scores import group_reduce, pool, window_scores
from lcbench.methods.base import QUARTER, Method, Traits
from lcbench.methods.registry import method


@method("dynamickv", paper="arXiv:2412.14838", traits=Traits(family="evict"))
@dataclass(frozen=True)
class DynamicKV(Method):
    """SnapKV scores with budgets per layer that the prompt decides (arXiv:2412.14838, section 4.2; scores as in
    DreamMr/DynamicKV kv_compression/token_drop/methods/dynamic_v11.py).

    With B the budget and b = B - w, the best N Hs b pooled window scores of all N layers and Hs stored heads together
    are found; u_l of them lie in layer l. The layers share N b tokens a head in proportion to u_l; none gets more
    than ``min(floor(r_max b), L - w)``, and what is cut off goes to the others in the same proportion. Fractions go
    to the largest remainders, so that the counts n_l add up to N b exactly. Every head of layer l keeps its best n_l
    tokens and the window.

    The reference code estimates the counts after every fourth layer, to bound memory during the prompt, cuts layers
    for good by these estimates and may store window tokens twice; here the counts are those of its last pass, over
    all layers, without duplicates. It ranks query heads (`granularity=query`); KV heads, by the mean of their group,
    are the default.

    Layer l holds ``2 Hs d e (n_l + w)`` bytes, all of them ``2 Hs d e N B``, and ``2 N Hs d e`` more a new token.
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Layer counts add up to N b exactly on random scores and caps (property test) and equal a second computation; "
        "equal layers get equal counts; r_max=1 keeps b everywhere; kept positions against the formula in fp64; "
        "teacher-forced logits over 64 tokens against the plain transformers model with each layer's dropped keys "
        "masked; bytes equal the formula, in memory too."
    )

    budget: Budget = param(QUARTER, "tokens kept a layer on average, window included: a ratio (0.25) or a number (512)")
    window: int = param(8, "last prompt tokens whose queries score and that all stay (w)", minimum=1)
    kernel: int = param(7, "width of the pooling over tokens; odd, 1 for none", minimum=1)
    pooling: Literal["max", "avg"] = param("avg", "kind of pooling")
    r_max: float = param(10.0, "most that a layer keeps, in multiples of the mean", minimum=1)
    granularity: Literal["kv", "query"] = param("kv", "heads that choose and store: KV heads, or every query head")

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise BadValue(f"dynamickv@kernel={self.kernel} is even.", "Use an odd width, or 1 for no pooling.")

    def observes(self) -> frozenset[Observation]:
        return frozenset({LastQueries(self.window)})

    @property
    def leaves_subset(self) -> bool:
        return True

    def compress(self, record: PrefillRecord) -> KVCache:
        keep = self.budget.resolve(record.length, at_least=self.window + 1)
        if keep >= record.length:
            return record.cache.fork()
        layers = [record.layer(i) for i in range(record.shape.layers)]
        scores = torch.stack([self.scores(layer) for layer in layers])
        counts = self.counts(scores, keep - self.window)
        return KVCache(
            [
                kept_layer(layer, best_and_recent(own, [count] * len(own), self.window))
                for layer, own, count in zip(layers, scores, counts, strict=True)
            ]
        )

    def scores(self, record: LayerRecord) -> Tensor:
        """Pooled window scores of the stored heads, fp32 ``[Hs, L - w]``."""
        raw = window_scores(record, self.window)
        stored = record.key.shape[0] if self.granularity == "kv" else raw.shape[0]
        return pool(group_reduce(raw, stored), self.kernel, self.pooling)

    def counts(self, scores: Tensor, each: int) -> list[int]:
        """Tokens n_l that every head of a layer keeps beside the window; their mean is ``each``.

        Args:
            scores: ``[N, Hs, L - w]``.
        """
        layers, heads, room = scores.shape
        best = torch.sort(scores.flatten(), descending=True, stable=True).indices[: layers * heads * each]
        places: list[int] = torch.bincount(best // (heads * room), minlength=layers).tolist()
        return apportion(layers * each, places, min(math.floor(self.r_max * each), room))


def apportion(total: int, weights: Sequence[int], most: int) -> list[int]:
    """Share ``total`` out in proportion to ``weights``, none getting more than ``most``; the shares add up to it.

    Fractions go to the largest remainders, ties to the lower index. Where all that may still get more weigh nothing,
    they share alike. ``total`` must not exceed ``most`` for each.
    """
    shares = [0] * len(weights)
    open_ = list(range(len(weights)))
    left = total
    while True:
        weigh = {i: weights[i] for i in open_}
        if not any(weigh.values()):
            weigh = dict.fromkeys(open_, 1)
        whole = sum(weigh.values())
        full = [i for i in open_ if left * weigh[i] >= most * whole]
        if not full:
            break
        for i in full:
            shares[i] = most
        left -= most * len(full)
        open_ = [i for i in open_ if i not in full]
        if not open_:
            return shares
    for i in open_:
        shares[i] = left * weigh[i] // whole
    rest = left - sum(shares[i] for i in open_)
    for i in sorted(open_, key=lambda i: (-(left * weigh[i] % whole), i))[:rest]:
        shares[i] += 1
    return shares
