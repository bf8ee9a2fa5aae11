"""ChunkKV: runs of neighbouring tokens are kept or dropped together, the same ones in all heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer, LayerKV
from lcbench.kv.observe import LastQueries, Observation
from lcbench.kv.record import LayerRecord, PrefillRecord, take
from lcbench.kv.scores import window_scores
from lcbench.methods.base import QUARTER, Method, Traits, top_positions
from lcbench.methods.registry import method


@method("chunkkv", paper="arXiv:2502.00299", traits=Traits(family="evict"))
@dataclass(frozen=True)
class ChunkKV(Method):
    """Whole chunks of the prompt by their attention from its last tokens (arXiv:2502.00299, algorithm 1).

    The prompt before the last w = `window` tokens is cut into chunks of `length` tokens, the last of which may be
    shorter. A chunk scores the sum over its tokens and all heads of the attention they get from the last w queries.
    With B the budget, the best ``floor((B - w) / length)`` chunks and the window stay, at the same positions in every
    head. With `reuse=n` (layer-wise index reuse, section 3.3) only every n-th layer chooses and the n - 1 above it
    take over its positions.

    kvpress (chunkkv_press.py) averages over a chunk's own length, which favours a short last one
    (`aggregate=mean`), has a default length of 20, and cuts chunks across the window; the paper's reference code was
    not found. w is our choice.

    One layer holds ``2 Hk d e`` bytes a kept token (at most B of them) and a new one.
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Kept positions against the formula in fp64 with Python loops; complete runs but for the last chunk; "
        "length=1 keeps the best single tokens; with reuse=n each n layers have equal positions; teacher-forced "
        "logits over 64 tokens against the plain transformers model with the dropped keys masked; bytes equal the "
        "formula, in memory too."
    )

    budget: Budget = param(QUARTER, "most tokens kept, window included: a ratio (0.25) or a number (512)")
    window: int = param(32, "last prompt tokens whose queries score and that all stay (w)", minimum=1)
    length: int = param(10, "tokens of a chunk", minimum=1)
    aggregate: Literal["sum", "mean"] = param("sum", "a chunk's score: sum over its tokens, or their mean")
    reuse: int = param(1, "layers that share the positions chosen by the first of them; 1: each its own", minimum=1)

    def observes(self) -> frozenset[Observation]:
        return frozenset({LastQueries(self.window)})

    @property
    def leaves_subset(self) -> bool:
        return True

    def compress(self, record: PrefillRecord) -> KVCache:
        keep = self.budget.resolve(record.length, at_least=self.window + 1)
        if keep >= record.length:
            return record.cache.fork()
        stores: list[LayerKV] = []
        for i in range(record.shape.layers):
            layer = record.layer(i)
            if i % self.reuse == 0:
                kept = self.kept(layer, keep)
            key, value = take(layer, kept)
            stores.append(DenseLayer(key, value, kept=kept, seen=record.length))
        return KVCache(stores)

    def kept(self, record: LayerRecord, keep: int) -> Tensor:
        """Positions ``[n]`` that a layer of a prompt keeps within ``keep`` tokens, ascending."""
        scores = window_scores(record, self.window).sum(dim=0)  # [L - w]
        prefix = scores.shape[0]
        totals = F.pad(scores, (0, -prefix % self.length)).view(-1, self.length).sum(dim=1)
        chunk = torch.arange(prefix, device=scores.device) // self.length
        if self.aggregate == "mean":
            totals = totals / torch.bincount(chunk)
        best = top_positions(totals[None], (keep - self.window) // self.length)[0]
        recent = torch.arange(prefix, record.length, device=scores.device)
        return torch.cat([torch.isin(chunk, best).nonzero()[:, 0], recent])
