"""How a layer turns products of queries and keys into weights: what the model hands to its attention besides them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttentionRule:
    """What a layer's attention does besides q.k, softmax and v.

    Attributes:
        scaling: factor on q.k.
        window: tokens that a query sees, itself included; None for all.
        softcap: scaled logits x become ``softcap * tanh(x / softcap)`` before anything is masked (Gemma-2).
        sinks: ``[H]``, a logit of each query head that stands for no token: it takes its share of the softmax and
            gives nothing (GPT-OSS), so that a row's weights sum to less than 1.
        distances: at which distances far keys are seen (`kv.distances.Distances`); None for their true ones.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    distances: Any = None

    @property
    def plain(self) -> bool:
        """Whether a row is nothing but the softmax of scaled products."""
        return self.softcap is None and self.sinks is None and self.distances is None

    def of_heads(self, heads: slice) -> AttentionRule:
        """The rule of some of the query heads."""
        return self if self.sinks is None else replace(self, sinks=self.sinks[heads])

    def capped(self, logits: Tensor) -> Tensor:
        """Scaled products as they enter the softmax, before masking; changed in place where no gradient is wanted."""
        if self.softcap is None:
            return logits
        if logits.requires_grad:
            return torch.tanh(logits / self.softcap) * self.softcap
        return logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def weights(self, logits: Tensor) -> Tensor:
        """Attention weights ``[H, q, n]``, fp32, of logits ``[H, q, n]`` that are capped and masked already."""
        if self.sinks is None:
            return torch.softmax(logits, dim=-1)
        sink = self.sinks.to(logits.dtype).view(-1, 1, 1).expand(-1, logits.shape[1], 1)
        return torch.softmax(torch.cat([logits, sink], dim=-1), dim=-1)[..., :-1]
