"""Knorm: keys of small L2 norm stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.kv.cache import KVCache
from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.methods.base import Scorer, Traits
from lcbench.methods.registry import method


@method("knorm", paper="arXiv:2406.11430", traits=Traits(family="evict"))
@dataclass(frozen=True)
class Knorm(Scorer):
    """The tokens whose keys have the smallest L2 norm stay, head by head (arXiv:2406.11430, section 3).

    The norm is that of the rotated key, which RoPE does not change. Neither first nor recent tokens are protected.
    kvpress (knorm_press.py) compresses every layer, the default here; KVCache-Factory (L2NormCluster) leaves the first
    two alone: ``skip_layers=2``. New tokens are added.

    One layer holds ``2 Hk d e B`` bytes, and ``2 Hk d e`` more a new token.
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Kept positions of tiny Llama, Mistral (sliding window) and Qwen2 models against the order of norms computed "
        "in fp64; teacher-forced logits over 64 tokens against the unmodified transformers model with every dropped "
        "key masked; bytes equal the formula, in elements and in memory."
    )

    skip_layers: int = param(0, "first layers that keep everything (beyond the budget)", minimum=0)

    def score(self, record: LayerRecord) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(record.key, dim=-1, dtype=torch.float32)
        return -norms

    def compress(self, record: PrefillRecord) -> KVCache:
        left = super().compress(record)
        whole = record.cache.layers[: self.skip_layers]
        return KVCache([*(layer.fork() for layer in whole), *left.layers[len(whole) :]])
