"""Evict, then merge: tokens that lose out are added to the most similar survivor, or dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer, LayerKV
from lcbench.kv.observe import ColumnSums, LastQueries, Observation
from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.kv.scores import column_sums, group_reduce, window_sums
from lcbench.kv.witness import Merge, tell_merged
from lcbench.methods.base import QUARTER, Method, Traits
from lcbench.methods.registry import method

_BLOCK = 1024  # candidates whose similarities are computed at a time


@method("ems-approx", paper="arXiv:2412.08521", traits=Traits(family="merge"))
@dataclass(frozen=True)
class EmsApprox(Method):
    """An approximation of EMS (arXiv:2412.08521), and not EMS: neither its formulas nor its code could be consulted.

    Known of EMS, from its abstract: importance joins attention from all queries with attention from recent ones;
    heads keep, merge and evict different tokens; what is similar to no center falls into a zero class and is dropped,
    which makes evicting and merging one step; merging is weighted by attention and keeps key norms. Everything else
    here is our choice. Do not quote numbers of this method as EMS's.

    After the prompt, per KV head (attention is averaged over its query heads, A are column sums, and r_j is the number
    of queries that could see key j, L - j without a sliding window)::

        S_j = max( (A_j / r_j) / mean_j(A_j / r_j),  Loc_j / mean(Loc) ),    Loc_j = attention of the last w queries

    The last w tokens stay as they are; the B - w others with the highest S are centers; the next
    ``floor(merge_pool B)`` are candidates; the rest is dropped. Each candidate joins the center whose key (after RoPE)
    has the largest cosine with its own, or the zero class if that cosine is not above `tau`. With members i, the center
    included::

        v = sum S_i v_i / sum S_i,   k = n u / ||u||,   u = sum S_i k_i / ||k_i||,   n = sum S_i ||k_i|| / sum S_i

    A center that nobody joins is left exactly as it is. Tokens of the window take no members. New tokens are added;
    EMS is said to compress while decoding too, this does not.

    One layer holds ``2 Hk d e B`` bytes, and ``2 Hk d e`` more a new token.
    """

    proof: ClassVar[str] = (
        "Centers, classes, merged entries and teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 "
        "models over 64 tokens against a second computation of the formulas above in fp64 with Python loops (of our "
        "formulas: parity with the authors' method is not claimed); tau = 1 is eviction by S alone; norms of merged "
        "keys lie within those of their members; bytes equal the formula, in elements and in memory."
    )

    budget: Budget = param(QUARTER, "tokens kept, window included: a ratio of the prompt (0.25) or a number (512)")
    window: int = param(
        32, "last prompt tokens that stay as they are and whose attention is the local part (w)", minimum=1
    )
    merge_pool: float = param(1.0, "candidates for merging, as a multiple of the budget", minimum=0)
    tau: float = param(0.6, "cosine above which a candidate is merged instead of dropped; 1 merges nothing", minimum=0)

    def observes(self) -> frozenset[Observation]:
        return frozenset({ColumnSums(), LastQueries(self.window)})

    def compress(self, record: PrefillRecord) -> KVCache:
        keep = self.budget.resolve(record.length, at_least=self.window + 1)
        if keep >= record.length:
            return record.cache.fork()
        return KVCache([self._layer(record.layer(i), keep) for i in range(record.shape.layers)])

    def scores(self, record: LayerRecord) -> Tensor:
        """Global-local importance S, fp32 ``[Hk, L]``."""
        kv_heads, length = record.key.shape[:2]
        rows = torch.arange(length, 0, -1, device=record.key.device).clamp(max=record.window or length)
        overall = group_reduce(column_sums(record), kv_heads) / rows
        local = group_reduce(window_sums(record, self.window), kv_heads)
        return torch.maximum(overall / overall.mean(dim=-1, keepdim=True), local / local.mean(dim=-1, keepdim=True))

    def _layer(self, record: LayerRecord, keep: int) -> LayerKV:
        old, length = record.length - self.window, record.length
        scores = self.scores(record)
        order = torch.sort(scores[:, :old], dim=-1, descending=True, stable=True).indices
        centers = torch.sort(order[:, : keep - self.window], dim=-1).values
        stop = min(old, keep - self.window + int(self.merge_pool * keep))
        candidates = order[:, keep - self.window : stop]
        key, value = (_rows(x, centers) for x in (record.key, record.value))
        merges: list[list[Merge]] = []
        for head in range(key.shape[0]):
            classes = self.classes(record.key[head, candidates[head]], key[head])
            joins = classes >= 0
            members = candidates[head, joins]
            merged = _merged(
                (record.key[head], record.value[head]), scores[head], centers[head], members, classes[joins]
            )
            joined = torch.unique(classes[joins])
            merges.append(
                [
                    Merge(tuple(sorted(members[classes[joins] == center].tolist())), (int(centers[head, center]),))
                    for center in joined.tolist()
                ]
            )
            key[head, joined] = merged[0][joined].to(key.dtype)
            value[head, joined] = merged[1][joined].to(value.dtype)
        tell_merged(record.index, lambda: merges)
        recent = torch.arange(old, length, device=key.device).expand(key.shape[0], -1)
        return DenseLayer(
            torch.cat([key, record.key[:, old:]], dim=1),
            torch.cat([value, record.value[:, old:]], dim=1),
            kept=torch.cat([centers, recent], dim=1),
            seen=length,
        )

    def classes(self, candidates: Tensor, centers: Tensor) -> Tensor:
        """Index of the center that each candidate key ``[m, d]`` joins among ``[n, d]``, -1 for the zero class."""
        unit = torch.nn.functional.normalize(centers.float(), dim=-1)
        found = []
        for block in torch.split(candidates, _BLOCK):
            similarity = (torch.nn.functional.normalize(block.float(), dim=-1) @ unit.t()).clamp(max=1.0)
            best = similarity.argmax(dim=-1)  # the first of several
            above = torch.gather(similarity, 1, best[:, None])[:, 0] > self.tau
            found.append(torch.where(above, best, -torch.ones_like(best)))
        return torch.cat(found)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """``x [Hk, L, d]`` at ``index [Hk, n]``: a copy ``[Hk, n, d]``."""
    return torch.gather(x, 1, index[..., None].expand(-1, -1, x.shape[2]))


def _merged(
    stored: tuple[Tensor, Tensor], scores: Tensor, centers: Tensor, members: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and values ``[n, d]`` fp32 of one head's centers with the members that joined them.

    Args:
        stored: keys and values ``[L, d]``. scores: S ``[L]``. centers: positions ``[n]``. members: positions ``[m]``.
        classes: which center each of them joined ``[m]``.
    """
    tiny = torch.finfo(torch.float32).tiny
    who = torch.cat([centers, members])
    to = torch.cat([torch.arange(len(centers), device=centers.device), classes])
    weight = scores[who].clamp_min(tiny)[:, None]
    key, value = (x[who].float() for x in stored)
    norm = key.norm(dim=-1, keepdim=True)

    def total(x: Tensor) -> Tensor:
        return torch.zeros(len(centers), x.shape[1], device=x.device).index_add_(0, to, x * weight)

    mass = total(torch.ones_like(norm))
    direction = torch.nn.functional.normalize(total(key / norm.clamp_min(tiny)), dim=-1)
    return direction * (total(norm) / mass), total(value) / mass
