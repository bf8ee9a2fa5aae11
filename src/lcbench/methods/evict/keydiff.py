"""KeyDiff: keys that differ most from the average direction stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lcbench.config.options import param
from lcbench.kv.record import LayerRecord
from lcbench.methods.base import Scorer, Traits, top_positions
from lcbench.methods.registry import method


@method("keydiff", paper="arXiv:2504.15364", traits=Traits(family="evict"))
@dataclass(frozen=True)
class KeyDiff(Scorer):
    """The tokens whose rotated keys point away from the mean direction stay, head by head (arXiv:2504.15364,
    section 3; rules as in kvpress keydiff_press.py and block_press.py).

    With the anchor ``m = mean_j k_j / |k_j|``, a token's score is ``-cos(k_j, m)``; the B highest stay.

    By default all tokens are scored at once. The paper reads a prompt in blocks: with `block` = n the first B tokens
    are kept, then n more at a time compete with the survivors, under an anchor made of these alone. The prompt's
    attention stays dense all the same (kvpress does so too), while in the paper later blocks see the survivors only.
    `protect_recent` newest tokens always stay; neither the paper nor kvpress protects any. New tokens are added.

    One layer holds ``2 Hk d e B`` bytes, and ``2 Hk d e`` more a new token.
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Kept positions of tiny Llama, Mistral (sliding window) and Qwen2 models against the formula in fp64, at once "
        "and block by block; a block as long as the prompt equals no blocks; teacher-forced logits over 64 tokens "
        "against the unmodified transformers model with every dropped key masked; bytes equal the formula, in "
        "elements and in memory."
    )

    block: int | None = param(None, "tokens that compete at a time, as in the paper; none: all at once", minimum=1)
    protect_recent: int = param(0, "newest prompt tokens that always stay", minimum=0)

    def kept_tokens(self, prompt_tokens: int) -> int:
        return self.budget.resolve(prompt_tokens, at_least=self.protect_recent + 1)

    def score(self, record: LayerRecord) -> Tensor:
        key = record.key.float()
        length = record.length
        recent = torch.arange(length, device=key.device) >= length - self.protect_recent
        if self.block is None:
            return _distinct(key).masked_fill(recent, torch.inf)
        kept = self._survivors(key, recent, self.block)
        return torch.zeros(key.shape[:2], device=key.device).scatter(1, kept, 1.0)

    def _survivors(self, key: Tensor, recent: Tensor, block: int) -> Tensor:
        """Positions ``[Hk, B]`` that are left when the prompt has gone by block after block."""
        kv_heads, length, d = key.shape
        keep = self.kept_tokens(length)
        kept = torch.arange(keep, device=key.device).expand(kv_heads, -1)
        for start in range(keep, length, block):
            new = torch.arange(start, min(start + block, length), device=key.device).expand(kv_heads, -1)
            rivals = torch.cat([kept, new], dim=1)
            scores = _distinct(torch.gather(key, 1, rivals[..., None].expand(-1, -1, d)))
            kept = torch.gather(rivals, 1, top_positions(scores.masked_fill(recent[rivals], torch.inf), keep))
        return kept


def _distinct(key: Tensor) -> Tensor:
    """``-cos(k_j, mean_i k_i / |k_i|)`` of keys ``[Hk, n, d]``: ``[Hk, n]``."""
    anchor = F.normalize(key, dim=-1).mean(dim=1, keepdim=True)
    return -F.cosine_similarity(key, anchor, dim=-1)
