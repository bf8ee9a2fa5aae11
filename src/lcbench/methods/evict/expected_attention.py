"""Expected attention: keys are kept by the attention that queries still to come are expected to pay them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.kv.observe import Observation
from lcbench.kv.query_statistics import QueryMoments, QueryStatistics
from lcbench.kv.record import LayerRecord
from lcbench.kv.scores import group_reduce
from lcbench.methods.base import Scorer, Traits
from lcbench.methods.registry import method


@method("expected-attention", paper="arXiv:2510.00636", traits=Traits(family="evict"))
@dataclass(frozen=True)
class ExpectedAttention(Scorer):
    """Queries to come are taken for normally distributed (rules as in kvpress expected_attention_press.py).

    From the prompt's queries before RoPE, those of the first `n_sink` tokens left out, come the mean mu and the
    covariance Sigma of each query head. R is the mean of the model's rotations at positions L .. L + `future` - 1,
    its scaling included. With mu' = R mu and Sigma' = R Sigma R^T, s the model's factor on q.k and d channels::

        z_j = s mu'.k_j + s^2 k_j^T Sigma' k_j / 2        (s = 1 / sqrt(d) in most models), j >= n_sink
        S_j = (mean over the group of softmax_j(z) + epsilon) * ||v_j||_2

    The first `n_sink` tokens stay; besides them the highest S up to the budget. No recent window is protected.

    One layer holds ``2 Hk d e B`` bytes, and ``2 Hk d e`` more a new token.
    """

    turns: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Scores against a second computation in fp64 from queries hooked before RoPE, with explicit rotation matrices; "
        "without covariance and for one future position they are the attention of the mean query there; embeddings "
        "of eleven model families, scaled, partial and absent ones among them, are taken off; kept positions against "
        "the formula; teacher-forced logits over 64 tokens against the plain transformers model with the dropped keys "
        "masked; bytes equal the formula, in memory too."
    )

    n_sink: int = param(4, "first tokens that always stay and whose queries do not count", minimum=0)
    future: int = param(512, "positions after the prompt that are looked ahead to", minimum=1)
    epsilon: float = param(0.0, "added to the expected attention before values weigh it", minimum=0)
    covariance: bool = param(True, "use the spread of the queries, not only their mean")
    value_norm: bool = param(True, "weigh by the norm of the value")

    def observes(self) -> frozenset[Observation]:
        return frozenset({QueryStatistics(self.n_sink)})

    def kept_tokens(self, prompt_tokens: int) -> int:
        return self.budget.resolve(prompt_tokens, at_least=self.n_sink + 1)

    def score(self, record: LayerRecord) -> Tensor:
        moments: QueryMoments = record.observed[QueryStatistics(self.n_sink)]
        mean, covariance = self.rotated(moments, record.length)
        key = record.key[:, self.n_sink :].float() * record.scaling
        groups = mean.shape[0] // key.shape[0]
        expected = []
        for head in range(mean.shape[0]):
            own = key[head // groups]
            z = own @ mean[head]
            if self.covariance:
                z = z + ((own @ covariance[head]) * own).sum(dim=-1) / 2
            expected.append(torch.softmax(z, dim=-1))
        scores = group_reduce(torch.stack(expected), key.shape[0]) + self.epsilon
        if self.value_norm:
            scores = scores * record.value[:, self.n_sink :].float().norm(dim=-1)
        return torch.nn.functional.pad(scores, (self.n_sink, 0), value=torch.inf)

    def rotated(self, moments: QueryMoments, length: int) -> tuple[Tensor, Tensor]:
        """Mean ``[H, d]`` and covariance ``[H, d, d]`` under the mean rotation of the positions to come."""
        rope = moments.rope
        if rope is None:
            return moments.mean, moments.covariance
        positions = torch.arange(length, length + self.future, device=moments.mean.device)
        angles = positions[:, None].float() * rope.frequencies
        cos, sin = angles.cos().mean(dim=0) * rope.scaling, angles.sin().mean(dim=0) * rope.scaling
        mean = rope.turn(moments.mean, cos, sin)
        half = rope.turn(moments.covariance, cos, sin)  # Sigma R^T
        return mean, rope.turn(half.transpose(1, 2), cos, sin)  # R (Sigma R^T)^T, and Sigma is symmetric
