"""Squeezed Attention: clusters of a known text's keys, of which a query reads those that pass a threshold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lcbench.config.options import param
from lcbench.kv import attention
from lcbench.kv.cache import KVCache
from lcbench.kv.kmeans import kmeans, means
from lcbench.kv.layer import outside_window
from lcbench.kv.observe import LastQueries, Observation
from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.kv.scores import last_queries
from lcbench.kv.whole import WholeLayer
from lcbench.kv.witness import tell_fetched
from lcbench.methods.base import Method, Traits
from lcbench.methods.registry import method
from lcbench.models.rule import AttentionRule

_OBSERVED = 512  # last queries of the prompt that are recorded: those of the question and, before it, of the context


@method("squeezed-attention", paper="arXiv:2411.09688", traits=Traits(family="retrieve"))
@dataclass(frozen=True)
class SqueezedAttention(Method):
    """Clustered keys of a context that is known before its questions (arXiv:2411.09688, sections 3 and 4; rules as in
    SqueezeAILab/SqueezedAttention squeezedattention/clustering.py).

    The prompt is a context of F tokens and a question. For each layer and KV head the keys of the first ``n = F -
    obs`` tokens, scaled to length 1, are clustered by k-means into ``max(1, floor(clusters n))`` sets; the centroid C_c
    of a set is the mean of its n_c keys as they are. A query head's score of a set is ``S_c = exp(q . C_c / sqrt(d)) /
    sum_j n_j exp(q . C_j / sqrt(d))``. One threshold holds for all layers and heads: the quantile `percentile` of the
    scores, each copied to the keys of its set and averaged over the last `obs` queries of the context. A query reads
    the keys of sets above it (of a KV head's query heads, one is enough), the last `obs` tokens of the context and all
    tokens after it. With `coarse` the centroids are clustered again, into ``floor(coarse n)``, and a set is read only
    if its own set is above a threshold at `percentile_lower`; then the sums run over what is left.

    Where the question begins is taken from the prompt; where that is not known, the last `obs` tokens count as the
    question. The question is part of the dense prompt here unless it is hidden from the method; the paper lets it,
    too, read only what passes. A question that comes after the context reads one set of keys together, by its mean
    scores, if it comes in one piece (`question` joint); each of its tokens chooses for itself with `question` each, as
    every generated token does.

    A prompt too short to leave a context is left as it is. Everything is kept: one layer holds ``2 Hk d e T`` bytes,
    ``Hk (d e + 4)`` a centroid and 4 Hk a clustered key; a step reads about ``1 - percentile`` of the clustered keys.
    """

    proof: ClassVar[str] = (
        "Teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models over 64 tokens, flat and in "
        "two levels, against the plain model with its attention written out in fp64, the keys masked that a second "
        "computation leaves out, which clusters by itself and shares only the numbers drawn. The sum of n_c S_c is 1; "
        "with one key a set the scores are the softmax itself; the share of keys above the threshold on the "
        "queries it was made from is 1 - percentile; at percentile 0 the full cache; bytes equal the formula."
    )

    clusters: float = param(0.05, "sets, as a share of the clustered keys", minimum=0, maximum=1)
    percentile: float = param(0.9, "share of the context's keys that is left out, on average", minimum=0, maximum=1)
    coarse: float = param(0.0, "sets of sets, as a share of the clustered keys; 0: one level", minimum=0, maximum=1)
    percentile_lower: float = param(0.7, "as percentile, for the sets of sets", minimum=0, maximum=1)
    obs: int = param(100, "last tokens of the context: read always, and their queries set the threshold", minimum=1)
    question: Literal["joint", "each"] = param(
        "joint", "keys of a question after the context: one set, or each its own"
    )
    iterations: int = param(300, "iterations of k-means, at most", minimum=1)
    seed: int = param(0, "of k-means", minimum=0)

    def observes(self) -> frozenset[Observation]:
        return frozenset({LastQueries(max(_OBSERVED, 2 * self.obs))})

    def clustered(self, record: PrefillRecord) -> int:
        """Tokens at the beginning of the prompt whose keys are clustered; 0 where it is too short."""
        return max(0, record.length - (record.question_tokens or self.obs) - self.obs)

    def compress(self, record: PrefillRecord) -> KVCache:
        count = self.clustered(record)
        if count == 0:
            return record.cache.fork()
        records = [record.layer(i) for i in range(record.shape.layers)]
        layers = [self._layer(one, count) for one in records]
        asked = [self._context_queries(one, count) for one in records]
        for level, percentile in ((0, self.percentile), (1, self.percentile_lower)):
            if level < len(layers[0].levels):
                scores = [
                    layer.key_scores(query, one.rule, level)
                    for layer, query, one in zip(layers, asked, records, strict=True)
                ]
                limit = quantile(torch.cat([s.flatten() for s in scores]), percentile) if percentile > 0 else -1.0
                for layer in layers:
                    layer.thresholds.append(limit)
        return KVCache(layers)

    def _layer(self, record: LayerRecord, count: int) -> SqueezedLayer:
        """A store without thresholds."""
        keys = record.key[:, :count].float()
        sets = max(1, int(self.clusters * count))
        centroids, own = self._cluster(keys, sets)
        levels = [Level.of(centroids.to(record.key.dtype), own)]
        if self.coarse > 0:
            above, parent = self._cluster(centroids, max(1, min(sets, int(self.coarse * count))))
            levels.append(Level.of(above.to(record.key.dtype), parent.gather(1, own), parent))
        return SqueezedLayer(
            record.key, record.value, levels, share=1 - self.percentile, joint=self.question == "joint"
        )

    def _cluster(self, keys: Tensor, sets: int) -> tuple[Tensor, Tensor]:
        """Centroids ``[Hk, sets, d]`` and the set of each of the keys ``[Hk, n, d]``."""
        labels = kmeans(F.normalize(keys, dim=-1), sets, iterations=self.iterations, seed=self.seed)
        return torch.stack([means(k, own, sets) for k, own in zip(keys, labels, strict=True)]), labels

    def _context_queries(self, record: LayerRecord, count: int) -> Tensor:
        """Queries ``[H, obs, d]`` of the context's last tokens, as far as they were recorded; where a question is so
        long that none was, the oldest recorded ones."""
        seen = last_queries(record, max(_OBSERVED, 2 * self.obs))
        first = record.length - seen.shape[1]
        start, stop = max(0, count - first), max(0, count + self.obs - first)
        return seen[:, start:stop] if stop > start else seen[:, : self.obs]


class Level(NamedTuple):
    """Sets of keys, head by head.

    Attributes:
        centroids: ``[Hk, k, d]``. sizes: ``[Hk, k]`` int32, keys in each set. labels: ``[Hk, m]`` int32, the set of
            each key, or of each set of the level below.
    """

    centroids: Tensor
    sizes: Tensor
    labels: Tensor

    @classmethod
    def of(cls, centroids: Tensor, of_keys: Tensor, labels: Tensor | None = None) -> Level:
        """Args: of_keys: ``[Hk, n]``, the set of each key. labels: what to hold instead of it."""
        count = centroids.shape[1]
        sizes = torch.stack([torch.bincount(own, minlength=count) for own in of_keys])
        return cls(centroids, sizes.int(), (of_keys if labels is None else labels).int())


class SqueezedLayer(WholeLayer):
    """All tokens, and the sets that the first of them were put in.

    Args:
        key, value: ``[Hk, L, d]`` of the prompt; shared with the record, never written to.
        levels: of the keys and, where there is one, of their sets.
        share: of the clustered keys that a step is expected to read.
        joint: tokens that come together right after the prompt read one set of keys.
    """

    def __init__(self, key: Tensor, value: Tensor, levels: list[Level], *, share: float, joint: bool) -> None:
        super().__init__(key, value)
        self.levels, self.share, self.joint = levels, share, joint
        self.thresholds: list[float] = []
        self.prompt = self.seen

    def scores(self, query: Tensor, rule: AttentionRule, level: int, alive: Tensor | None = None) -> Tensor:
        """Scores of the sets of a level for queries ``[H, q, d]``: fp32 ``[H, q, k]``, 0 for a set without keys.

        Args:
            alive: bool ``[H, q, k]``, the sets that are left; None for all.
        """
        centroids, sizes, _ = self.levels[level]
        kv_heads, count, _ = centroids.shape
        rows = query.float().reshape(kv_heads, -1, query.shape[2])
        logits = rule.capped(rows @ centroids.float().transpose(1, 2) * rule.scaling).view(*query.shape[:2], count)
        weights = sizes.repeat_interleave(query.shape[0] // kv_heads, dim=0)[:, None].float()
        if alive is not None:
            weights = weights * alive
        logits = logits.masked_fill(weights == 0, -torch.inf)
        limits = torch.finfo(torch.float32)
        grown = torch.exp(logits - logits.amax(dim=-1, keepdim=True).clamp(min=limits.min))
        return grown / (weights * grown).sum(dim=-1, keepdim=True).clamp(min=limits.tiny)

    def key_scores(self, query: Tensor, rule: AttentionRule, level: int) -> Tensor:
        """Scores ``[H, n]`` of the clustered keys, mean over the queries ``[H, q, d]``."""
        scores = self.scores(query, rule, level).mean(dim=1)
        labels = self.levels[0].labels.long()
        if level == 1:
            labels = self.levels[1].labels.long().gather(1, labels)
        return scores.gather(1, labels.repeat_interleave(query.shape[0] // labels.shape[0], dim=0))

    def selected(self, query: Tensor, rule: AttentionRule, *, together: bool = False) -> Tensor:
        """Which of the clustered keys each query reads: bool ``[Hk, q, n]``, or ``[Hk, 1, n]`` for all together."""
        alive: Tensor | None = None
        if len(self.levels) > 1:
            upper = self._passed(query, rule, 1, None, together)
            below = self.levels[1].labels.long()
            below = below.repeat_interleave(query.shape[0] // below.shape[0], dim=0)
            alive = upper.gather(2, below[:, None].expand(-1, upper.shape[1], -1))
        passed = self._passed(query, rule, 0, alive, together)
        labels = self.levels[0].labels.long()
        per_kv = passed.view(labels.shape[0], -1, *passed.shape[1:]).any(dim=1)
        return per_kv.gather(2, labels[:, None].expand(-1, per_kv.shape[1], -1))

    def _passed(self, query: Tensor, rule: AttentionRule, level: int, alive: Tensor | None, together: bool) -> Tensor:
        """Sets of a level above its threshold, bool ``[H, q or 1, k]``."""
        scores = self.scores(query, rule, level, alive)
        if together:
            scores = scores.mean(dim=1, keepdim=True)
        passed = scores > self.thresholds[level]
        return passed if alive is None else passed & alive

    def _attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        q, keys, values = query.shape[1], *self.parts()
        together = self.joint and q > 1 and self.seen - q == self.prompt
        selected = self.selected(query, rule, together=together)
        tell_fetched(self, lambda: [heads.any(dim=0).nonzero()[:, 0] for heads in selected])
        read = F.pad(selected.expand(-1, q, -1), (0, self.seen - selected.shape[2]), value=True)
        hidden = outside_window(self.positions, self.seen, q, rule.window)
        hidden = ~read if hidden is None else ~read | hidden
        return attention.over_parts(query, keys, values, rule, hidden=hidden)[0]

    def _sets(self) -> Iterator[Tensor]:
        for level in self.levels:
            yield from level

    @property
    def resident_nbytes(self) -> int:
        clustered = self.levels[0].labels.shape[1]
        sets = sum(t.numel() * t.element_size() for t in self._sets())
        return sets + self.token_nbytes(clustered * self.share + self.seen - clustered)

    def tensors(self) -> Iterator[Tensor]:
        yield from super().tensors()
        yield from self._sets()


def quantile(values: Tensor, share: float) -> float:
    """The quantile of values ``[n]``, linear between neighbours; any n (torch's own takes 16 million)."""
    ordered = values.float().sort().values
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    first, second = float(ordered[low]), float(ordered[high])
    return first + (second - first) * (at - low)
