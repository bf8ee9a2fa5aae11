"""The method ``evenly``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lcbench import register_method
from lcbench.config.options import param
from lcbench.kv.record import LayerRecord
from lcbench.methods.base import Scorer, Traits


@register_method("evenly", paper="", traits=Traits(family="evict"))
@dataclass(frozen=True)
class Evenly(Scorer):
    """Keeps tokens at even distances over the whole prompt, and the newest ones."""

    recent: int = param(8, "newest prompt tokens that always stay", minimum=0)

    def score(self, record: LayerRecord) -> Tensor:
        scores = torch.empty(record.length, device=record.key.device)
        order = [int(f"{i:020b}"[::-1], 2) for i in range(record.length)]  # every other one, every fourth, …
        scores[:] = -torch.tensor(order, dtype=torch.float64, device=scores.device).argsort().argsort().float()
        scores[max(0, record.length - self.recent) :] = torch.inf
        return scores.expand(record.key.shape[0], -1)
