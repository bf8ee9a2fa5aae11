"""CORM: a key goes when none of the latest queries found it important; no budget, the data decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.kv.cache import CacheShape
from lcbench.kv.layer import LayerKV
from lcbench.kv.observe import LastQueries, Observation
from lcbench.kv.ragged import RaggedLayer, kept_layer
from lcbench.kv.record import LayerRecord
from lcbench.kv.scores import last_queries
from lcbench.kv.weights import weight_blocks
from lcbench.methods.base import CacheTransform, Traits
from lcbench.methods.registry import method

_SLACK = 1 - 2**-20  # equal weights sum to 1 only up to rounding and must all count as important


@method("corm", paper="arXiv:2404.15949", traits=Traits(family="evict"))
@dataclass(frozen=True)
class Corm(CacheTransform):
    """Long-term minor keys are evicted, head by head (arXiv:2404.15949, section 4).

    Key j is important to the query at position i if its attention weight is at least 1 / (i + 1), the mean weight
    over all tokens so far, dropped ones included; else minor. A key leaves once it was minor to each of the last
    w = `window` queries, unless it is one of the last r = `recent` tokens. A KV head keeps a key that is important to
    any query head of its group.

    The prompt is read with dense attention; at its end the last w queries judge all keys and the minor ones leave
    (our choice: the paper says nothing of it and has no public code). From then on each new query sees what is left,
    itself included, then judges it, then keys leave. There is no budget: what stays depends on the text.

    Instead of w bits a key, the position of the last query that found it important is kept, from which the same
    decisions follow, in 4 bytes. One layer holds ``(2 d e + 4) sum_h n_h`` bytes.
    """

    proof: ClassVar[str] = (
        "Kept positions after the prompt, and the entries of every head at each of 64 forced steps, against a second "
        "computation that stores the messages themselves; its logits, by masking in the plain transformers model, "
        "equal ours; a key that nobody looks at leaves at step w exactly; uniform attention drops nothing; bytes "
        "equal the formula, in memory too."
    )

    window: int = param(256, "queries that must all find a key minor before it leaves (w)", minimum=1)
    recent: int = param(256, "newest tokens that never leave (r)", minimum=1)

    def observes(self) -> frozenset[Observation]:
        return frozenset({LastQueries(self.window)})

    def layer(self, record: LayerRecord, shape: CacheShape) -> LayerKV:
        latest = _latest_importance(record, self.window)
        everything = torch.arange(record.length, device=latest.device)
        kept = [_stay(own, everything, record.length, self).nonzero()[:, 0] for own in latest]
        policy = _Minor(self, [own[rows] for own, rows in zip(latest, kept, strict=True)])
        return kept_layer(record, kept, policy=policy)


def _latest_importance(record: LayerRecord, window: int) -> Tensor:
    """Position of the last of the ``window`` last queries that found each key important, int32 ``[Hk, L]``.

    A key that none of them found important has the position before its own: nobody judged it earlier than that.
    """
    query, length = last_queries(record, window), record.length
    latest = torch.arange(-1, length - 1, device=query.device, dtype=torch.int32).repeat(record.key.shape[0], 1)
    groups = query.shape[0] // record.key.shape[0]
    for block in weight_blocks(query, record.key, record.rule):
        first = length - query.shape[1] + block.rows.start
        at = torch.arange(first, first + block.weights.shape[1], device=query.device, dtype=torch.int32)
        important = (block.weights >= _threshold(at)[:, None]).any(dim=0)  # [rows, cols]
        found = torch.where(important, at[:, None], -1).amax(dim=0)
        mine = latest[block.heads.start // groups, block.cols]
        torch.maximum(mine, found, out=mine)
    return latest


def _threshold(position: Tensor) -> Tensor:
    return _SLACK / (position.float() + 1)


def _stay(latest: Tensor, positions: Tensor, seen: int, rule: Corm) -> Tensor:
    """Which of the entries at ``positions`` stay after ``seen`` tokens, bool ``[n]``: important lately, or recent."""
    return (latest > seen - 1 - rule.window) | (positions >= seen - rule.recent)


class _Minor:
    """The policy of one layer: when each entry of each head was last found important.

    Args:
        latest: for each KV head int32 ``[n_h]``.
    """

    def __init__(self, rule: Corm, latest: Sequence[Tensor]) -> None:
        self.rule, self.latest = rule, list(latest)

    def after_attend(self, layer: RaggedLayer, weights: Sequence[Tensor]) -> None:
        kept, seen = [], layer.taken
        for head, own in enumerate(weights):
            positions = layer.head_positions(head)
            latest = torch.cat([self.latest[head], positions[-1:].int() - 1])
            latest[(own >= _threshold(positions[-1:])).any(dim=0)] = seen - 1
            rows = _stay(latest, positions, seen, self.rule).nonzero()[:, 0]
            self.latest[head] = latest[rows]
            kept.append(rows)
        if any(len(rows) < own.shape[1] for rows, own in zip(kept, weights, strict=True)):
            layer.keep(kept)

    def tensors(self) -> Iterator[Tensor]:
        yield from self.latest

    def fork(self) -> _Minor:
        return _Minor(self.rule, self.latest)
