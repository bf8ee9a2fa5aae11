"""GemFilter: an early layer says which tokens of a prompt are read, and only these are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.errors import ModelError
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.layer import DenseLayer
from lcbench.methods.base import Method, Traits
from lcbench.methods.registry import method
from lcbench.models.early import hidden_states
from lcbench.models.rule import AttentionRule

KERNEL = 5


class _LastQuery:
    """Watches a pass: keeps the last query and the keys of one layer, and lets go of what each layer stored."""

    def __init__(self, layer: int, cache: KVCache) -> None:
        self._layer, self._cache = layer, cache
        self.query: Tensor | None = None
        self.key: Tensor | None = None

    def observe(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, start: int, store: Any, rule: AttentionRule
    ) -> None:
        if layer == self._layer:
            self.query, self.key = query[:, -1], key
        self._cache.layers[layer] = DenseLayer()


@method("gemfilter", paper="arXiv:2409.17422", traits=Traits(family="prompt", prefill="own"))
@dataclass(frozen=True)
class GemFilter(Method):
    """GemFilter (arXiv:2409.17422; rules as in SalesforceAIResearch/GemFilter `gem_filter_utils.py`).

    A first pass runs the prompt through the layers 0 to `layer` of the model. There the last token's query, times every
    key, summed over all query heads (raw products after RoPE: no scaling, no softmax), averaged over 5 neighbours with
    zeros beyond the ends, ranks the tokens. The best `budget` of them are the prompt of the second pass: read by the
    whole model in their order at positions 0, 1, …, decoding goes on behind them. No token is protected, the first one,
    chat format and question neither, unless `protect_first` and `protect_last` say so (our addition). A prompt that
    fits the budget is left alone.

    `layer` none takes 0.4 of the layers, rounded (the authors: 13 of 32 for Llama-3.1-8B, 19 of 40 for Mistral-Nemo);
    a needle test on the model finds a better one. The first pass is never shared: the text of the second is another
    one for every budget. Its seconds are `rewrite` in the timings. Bytes are those of the second pass,
    ``2 N Hk d e k``.
    """

    proof: ClassVar[str] = (
        "Chosen tokens against a computation in fp64 with Python loops on rotated queries and keys of the plain eager "
        "model, with grouped heads; the early stop gives the keys of a full pass; answers equal those of the "
        "unmodified model on the chosen ids alone; a budget of the whole prompt equals the full cache."
    )

    budget: Budget = param(Budget(tokens=1024), "tokens that are read: a number (1024) or a ratio (0.25)")
    layer: int | None = param(None, "layer whose query and keys choose, from 0; none: 0.4 of the layers", minimum=0)
    protect_first: int = param(0, "first tokens that always stay", minimum=0)
    protect_last: int = param(0, "last tokens that always stay", minimum=0)

    def chooser(self, layers: int) -> int:
        """The layer that chooses, of a model with so many."""
        return min(layers - 1, round(0.4 * layers)) if self.layer is None else self.layer

    def check(self, shape: CacheShape) -> None:
        if self.chooser(shape.layers) >= shape.layers:
            raise ModelError(
                f"{self.id} names layer {self.layer}, and the model's layers are 0 to {shape.layers - 1}.",
                f"Use gemfilter@layer={min(shape.layers - 1, round(0.4 * shape.layers))}.",
            )

    def filter_prompt(self, model: Any, ids: Tensor) -> Tensor | None:
        length = len(ids)
        keep = max(self.budget.resolve(length), self.protect_first + self.protect_last)
        if keep >= length:
            return None
        layers = int(model.config.get_text_config(decoder=True).num_hidden_layers)
        layer = self.chooser(layers)
        cache = KVCache.dense(layers)
        watcher = _LastQuery(layer, cache)
        hidden_states(model, ids, layer + 1, cache, [watcher])
        assert watcher.query is not None
        assert watcher.key is not None
        scores = token_scores(watcher.query, watcher.key)
        scores[: self.protect_first] = torch.inf
        if self.protect_last:
            scores[-self.protect_last :] = torch.inf
        best = torch.sort(scores, descending=True, stable=True).indices[:keep]
        return torch.sort(best).values


def token_scores(query: Tensor, key: Tensor) -> Tensor:
    """The score ``[L]`` of every token, fp32.

    Args:
        query: ``[H, d]`` of the last token. key: ``[Hk, L, d]``; both after RoPE.
    """
    kv_heads, length, size = key.shape
    grouped = query.float().view(kv_heads, -1, size).sum(dim=1)  # the sum over heads of a group goes through the keys
    raw = torch.einsum("hd,hld->l", grouped, key.float())
    pooled = torch.nn.functional.avg_pool1d(raw[None, None], KERNEL, stride=1, padding=KERNEL // 2)
    return pooled[0, 0, :length]
