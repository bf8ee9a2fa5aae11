"""Random eviction: the floor under every table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lcbench.kv.record import LayerRecord
from lcbench.methods.base import Scorer, Traits
from lcbench.methods.registry import method


@method("random", paper="", traits=Traits(family="evict"))
@dataclass(frozen=True)
class Random(Scorer):
    """B tokens chosen at random stay, others in every layer and KV head. A method that does not beat this has not
    learned what matters.

    Nothing is protected. The draw comes from torch's global generator on the CPU, which the engine seeds for each
    sample with the run's seed, the task and the sample: the same on every device and in a continued run. New tokens
    are added.

    One layer holds ``2 Hk d e B`` bytes, and ``2 Hk d e`` more a new token.
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Seeded alike, the same positions; seeded otherwise, others; every position equally often within four "
        "standard deviations over 400 draws; teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 "
        "models over 64 tokens against the unmodified transformers model with every dropped key masked; bytes equal "
        "the formula, in elements and in memory."
    )

    draws: ClassVar[bool] = True

    def score(self, record: LayerRecord) -> Tensor:
        return torch.rand(record.key.shape[:2], dtype=torch.float32).to(record.key.device)
