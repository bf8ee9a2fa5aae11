"""KVMerger: runs of neighbouring tokens with similar keys become one entry each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.errors import BadValue
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer, LayerKV
from lcbench.kv.observe import ColumnSums, Observation
from lcbench.kv.ragged import RaggedLayer
from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.kv.scores import column_sums, group_reduce
from lcbench.kv.witness import Merge, tell_merged
from lcbench.methods.base import Method, Traits, top_positions
from lcbench.methods.registry import method

HALF = Budget(ratio=0.5)


@method("kvmerger", paper="arXiv:2407.08454", traits=Traits(family="merge"))
@dataclass(frozen=True)
class KVMerger(Method):
    """Gaussian-weighted merging of consecutive tokens (arXiv:2407.08454; no code by the authors is known).

    After the prompt, in each layer and KV head, the tokens are cut into sets of consecutive ones. With c_j the cosine
    of the keys j and j + 1 (after RoPE), neighbours stay together where ``c_j >= epsilon`` and neither is protected:
    the `heavy` tokens with the most attention A (column sums, mean over the group) and the `recent` newest ones stand
    alone. In a set S the pivot p is the token with the largest A; with ``D_i = ||k_p - k_i||^2``::

        g_i = exp(-D_i / (2 sigma^2)),   w_i = g_i / sum_S g,   k = sum_S w_i k_i,   v = sum_S w_i v_i

    The entry takes the pivot's place. New tokens are added as they are; nothing is merged again.

    Either `budget` sets how many entries a head keeps: the L - B most similar free neighbours are joined, which is
    the threshold that gives exactly B sets, chosen head by head (default: half of the prompt, the paper's larger
    budget). `heavy` is then lowered, if need be, until B sets are possible. Or `epsilon` is fixed, and the text decides
    (heads then differ in length).

    Not confirmed from the paper, and our choice: the numbers of protected tokens; sigma, which the paper defines by the
    g themselves (``sigma = sum_S g / (sqrt(2) |S|)``): the two-pass form first uses the mean of D for sigma^2 and then
    that definition once; ``sigma=spread`` stays with the mean of D, because where keys have large norms two passes
    leave hardly more than the pivot. Values are averaged; ``value_scale=times_size`` multiplies them by |S|, to restore
    the attention that |S| keys lose in becoming one. The first layers and the last are said to be left alone in the
    paper: `skip_first`, `skip_last`, off by default because the budget is then exceeded.

    One layer holds ``2 Hk d e B`` bytes (``2 d e`` times the number of sets of all heads) and ``2 Hk d e`` more a new
    token.
    """

    proof: ClassVar[str] = (
        "Merged entries and teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models over 64 "
        "tokens against sets, pivots, weights and attention computed a second time in fp64 with Python loops; sets are "
        "disjoint, consecutive and cover the prompt, exactly B of them; weights sum to 1 and are largest at the pivot; "
        "equal tokens merge into themselves, with the attention mass of one; epsilon above 1 equals the full cache; "
        "bytes equal the formula, in memory too."
    )

    budget: Budget | None = param(None, "entries kept: a ratio of the prompt or a number; none: 0.5, or by epsilon")
    epsilon: float | None = param(None, "instead: least cosine at which neighbours are merged", minimum=-1)
    heavy: Budget = param(Budget(ratio=0.1), "tokens with the most attention that stay alone: a ratio or a number")
    recent: int = param(32, "newest tokens that stay alone", minimum=0)
    sigma: Literal["two-pass", "spread"] = param("two-pass", "width of the Gaussian")
    value_scale: Literal["mean", "times_size"] = param("mean", "merged value: the average, or |S| times that")
    skip_first: int = param(0, "layers at the bottom that are left alone", minimum=0)
    skip_last: int = param(0, "layers at the top that are left alone", minimum=0)

    def __post_init__(self) -> None:
        if self.budget is not None and self.epsilon is not None:
            raise BadValue(
                f"kvmerger@budget={self.budget} and epsilon={self.epsilon:g} are two ways to choose what is merged.",
                "Give one of them.",
            )

    def observes(self) -> frozenset[Observation]:
        return frozenset({ColumnSums()})

    def compress(self, record: PrefillRecord) -> KVCache:
        full = record.cache.fork()
        keep = self.kept_tokens(record.length)
        if keep is not None and keep >= record.length:
            return full
        merged = range(self.skip_first, record.shape.layers - self.skip_last)
        return KVCache(
            [self.layer(record.layer(i), keep) if i in merged else full.layers[i] for i in range(record.shape.layers)]
        )

    def kept_tokens(self, prompt_tokens: int) -> int | None:
        """Entries a head keeps of a prompt; None where epsilon decides."""
        if self.epsilon is not None:
            return None
        return (self.budget or HALF).resolve(prompt_tokens, at_least=self.recent + 1)

    def layer(self, record: LayerRecord, keep: int | None) -> LayerKV:
        """The merged store of one layer, ``keep`` entries a head."""
        attention = group_reduce(column_sums(record), record.key.shape[0])
        links = self.links(record.key, attention, keep)
        sets = torch.nn.functional.pad((~links).cumsum(dim=-1), (1, 0))
        lengths = (sets[:, -1] + 1).tolist()
        pivots = _pivots(sets, attention, max(lengths))
        tell_merged(record.index, lambda: [_joined(*rows) for rows in zip(sets, pivots, lengths, strict=True)])
        weights = self.weights(record.key, sets, pivots)
        key, value = (_combined(x, sets, weights, max(lengths)) for x in (record.key, record.value))
        if self.value_scale == "times_size":
            value = value * _sums(torch.ones_like(weights), sets, max(lengths)).unsqueeze(-1)
        return _store(key.to(record.key.dtype), value.to(record.value.dtype), pivots, lengths, record.length)

    def links(self, key: Tensor, attention: Tensor, keep: int | None) -> Tensor:
        """Which neighbours belong to one set: bool ``[Hk, L - 1]``, entry j for the tokens j and j + 1.

        Args:
            key: ``[Hk, L, d]``. attention: column sums ``[Hk, L]``. keep: sets wanted, or None.
        """
        kv_heads, length, _ = key.shape
        unit = torch.nn.functional.normalize(key.float(), dim=-1)
        similarity = (unit[:, :-1] * unit[:, 1:]).sum(dim=-1)
        alone = self.protected(attention, keep)
        similarity = similarity.masked_fill(alone[:, :-1] | alone[:, 1:], -torch.inf)
        if keep is None:
            assert self.epsilon is not None
            return similarity >= self.epsilon
        links = torch.zeros(kv_heads, length - 1, dtype=torch.bool, device=key.device)
        return links.scatter(1, top_positions(similarity, length - keep), True)

    def protected(self, attention: Tensor, keep: int | None) -> Tensor:
        """Tokens that form a set of their own: bool ``[Hk, L]``."""
        length = attention.shape[1]
        recent = min(self.recent, length)
        heavy = self.heavy.resolve(length, at_least=0)
        if keep is not None:  # each of them may cut a run of free tokens in two
            heavy = min(heavy, max(0, (keep - recent - 1) // 2))
        heavy = min(heavy, length - recent)
        alone = torch.zeros(attention.shape, dtype=torch.bool, device=attention.device)
        alone[:, length - recent :] = True
        return alone.scatter(1, top_positions(attention[:, : length - recent], heavy), True)

    def weights(self, key: Tensor, sets: Tensor, pivots: Tensor) -> Tensor:
        """Each token's weight in its set, fp32 ``[Hk, L]``; those of a set sum to 1.

        Args:
            sets: number of each token's set ``[Hk, L]``. pivots: position of each set's pivot ``[Hk, n]``.
        """
        count = pivots.shape[1]
        key = key.float()
        own = torch.gather(pivots, 1, sets)
        distance = (key - torch.gather(key, 1, own[..., None].expand_as(key))).square().sum(dim=-1)
        size = _sums(torch.ones_like(distance), sets, count)
        tiny = torch.finfo(torch.float32).tiny
        variance = (_sums(distance, sets, count) / size.clamp_min(1)).clamp_min(tiny)
        kernel = torch.exp(-distance / (2 * torch.gather(variance, 1, sets)))
        if self.sigma == "two-pass":
            width = _sums(kernel, sets, count) / (2**0.5 * size.clamp_min(1))
            kernel = torch.exp(-distance / (2 * torch.gather(width, 1, sets).square()))
        return kernel / torch.gather(_sums(kernel, sets, count), 1, sets)


def _joined(sets: Tensor, pivots: Tensor, count: int) -> list[Merge]:
    """The sets of one head that have several tokens: sets ``[L]``, pivots ``[n]``, of which ``count`` are there."""
    sizes = torch.bincount(sets, minlength=count)
    ends = sizes.cumsum(dim=0).tolist()
    merges = []
    for number in (sizes > 1).nonzero()[:, 0].tolist():
        pivot, first = int(pivots[number]), ends[number] - int(sizes[number])
        merges.append(Merge(tuple(p for p in range(first, ends[number]) if p != pivot), (pivot,)))
    return merges


def _pivots(sets: Tensor, attention: Tensor, count: int) -> Tensor:
    """Position of the token with the most attention of each set ``[Hk, count]``; ties keep the lower position.

    Places beyond a head's number of sets mean nothing.
    """
    by_attention = torch.sort(attention, dim=-1, descending=True, stable=True).indices
    in_sets = torch.sort(torch.gather(sets, 1, by_attention), dim=-1, stable=True)
    order = torch.gather(by_attention, 1, in_sets.indices)  # set by set, the most attended token first
    size = _sums(torch.ones_like(attention), sets, count)
    starts = (size.cumsum(dim=-1) - size).long().clamp(max=sets.shape[1] - 1)
    return torch.gather(order, 1, starts)


def _sums(x: Tensor, sets: Tensor, count: int) -> Tensor:
    """``x [Hk, L]`` summed over each set: fp32 ``[Hk, count]``."""
    return torch.zeros(x.shape[0], count, device=x.device).scatter_add(1, sets, x.float())


def _combined(x: Tensor, sets: Tensor, weights: Tensor, count: int) -> Tensor:
    """Weighted sums of ``x [Hk, L, d]`` over each set: fp32 ``[Hk, count, d]``."""
    out = torch.zeros(x.shape[0], count, x.shape[2], device=x.device)
    return out.scatter_add(1, sets[..., None].expand(x.shape), x.float() * weights[..., None])


def _store(key: Tensor, value: Tensor, pivots: Tensor, lengths: Sequence[int], seen: int) -> LayerKV:
    """A dense store where all heads have as many entries, a ragged one where not."""
    if len(set(lengths)) == 1:
        return DenseLayer(key, value, kept=pivots, seen=seen)
    return RaggedLayer(
        torch.cat([rows[:n] for rows, n in zip(key, lengths, strict=True)]),
        torch.cat([rows[:n] for rows, n in zip(value, lengths, strict=True)]),
        kept=torch.cat([rows[:n] for rows, n in zip(pivots, lengths, strict=True)]),
        lengths=lengths,
        seen=seen,
    )
