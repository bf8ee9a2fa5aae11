"""Mean and covariance of a prompt's queries before their rotation, gathered while the prompt is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lcbench.kv.observe import Observation, PrefillObserver
from lcbench.models.rope import Rope, observed_rope
from lcbench.models.rule import AttentionRule
from lcbench.models.stores import LayerStore


@dataclass(frozen=True)
class QueryMoments:
    """What `QueryStatistics` leaves of one layer.

    Attributes:
        mean: ``[H, d]``. covariance: ``[H, d, d]``, divided by the count. Both fp32, of queries before RoPE.
        count: queries they are of. rope: of the layer, in the frequencies of this prompt; None where it has none.
    """

    mean: Tensor
    covariance: Tensor
    count: int
    rope: Rope | None


@dataclass(frozen=True)
class QueryStatistics(Observation):
    """`QueryMoments` of the prompt's queries from position ``first`` on; None a layer for a shorter prompt.

    The queries that arrive are rotated already; the model's own embedding is taken off again (`models.rope`), after
    any norm that the model puts on them. The covariance is gathered around the running mean, so that a mean far from
    zero costs no digits. Raises ModelError in the prefill where the embedding cannot be taken off.
    """

    first: int

    def observer(self, layers: int, prompt_tokens: int) -> PrefillObserver:
        return _QueryStatisticsObserver(layers, prompt_tokens, self.first)


class _QueryStatisticsObserver(PrefillObserver):
    def __init__(self, layers: int, prompt_tokens: int, first: int) -> None:
        super().__init__(layers, prompt_tokens)
        self.first = first

    def observe(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        store: LayerStore,
        rule: AttentionRule,
    ) -> None:
        skipped = max(0, self.first - start)
        if skipped >= query.shape[1]:
            return
        rope = observed_rope()
        plain = query[:, skipped:].float()
        if rope is not None:
            plain = rope.undo(plain, torch.arange(start + skipped, start + query.shape[1], device=query.device))
        self.results[layer] = _joined(self.results[layer], plain, rope)

    def fork(self, prompt_tokens: int) -> PrefillObserver:
        return self._copy(prompt_tokens)


def _joined(before: QueryMoments | None, queries: Tensor, rope: Rope | None) -> QueryMoments:
    """Moments of all queries so far and of new ones ``[H, n, d]`` together (Chan's parallel update)."""
    n = queries.shape[1]
    mean = queries.mean(dim=1)
    centred = queries - mean[:, None]
    covariance = centred.transpose(1, 2) @ centred / n
    if before is None:
        return QueryMoments(mean, covariance, n, rope)
    total = before.count + n
    new = n / total
    apart = mean - before.mean
    spread = apart[:, :, None] * apart[:, None, :]
    joint = before.covariance * (1 - new) + covariance * new + spread * (new * (1 - new))
    return QueryMoments(before.mean + apart * new, joint, total, rope)
