"""H2O: heavy hitters, the entries that have received the most attention so far, and recent ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.kv.cache import KVCache
from lcbench.kv.heavy import HeavyHitters, Limits
from lcbench.kv.observe import ColumnSums, Observation
from lcbench.kv.record import PrefillRecord
from lcbench.kv.scores import column_sums
from lcbench.methods.base import QUARTER, Method, Traits
from lcbench.methods.registry import method


@method("h2o", paper="arXiv:2306.14048", traits=Traits(family="evict"))
@dataclass(frozen=True)
class H2O(Method):
    """Heavy-hitter oracle (arXiv:2306.14048, algorithm 1; rules as in FMInference/H2O
    h2o_hf/utils_real_drop/modify_llama.py).

    An entry's score is the attention it has received from all queries so far, the prompt's included:
    ``A[h, j] = sum_i a[h, i, j]``. After the prompt and after each new token a head keeps its `recent` newest entries
    and, of the others, the `heavy` ones with the highest scores; what leaves is freed and never returns. Kept keys
    stay at the angles of their own positions. A step therefore sees heavy + recent earlier entries and itself. (The
    same repository's masked version hides one entry for one step between the two sets; the paper and its
    real-eviction version, followed here, do not.)

    `heavy` and `recent` are ratios of the prompt's length or numbers of tokens; one that is not given is half of the
    budget (the recent half is the larger one of an odd budget). They are set once, by the prompt. Ratios that add up
    to 1 never drop anything; numbers beyond the prompt's length bound what follows it.

    KV heads choose by the mean of A over their query heads. With `granularity=query` every query head keeps entries
    of its own, g copies of the cache, as code that repeats keys first does.

    With T = heavy + recent, one layer holds ``2 Hk d e T`` bytes of keys and values (H for Hk at query granularity)
    and ``4 H T`` of scores.
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Kept positions of tiny Llama, Mistral (sliding window) and Qwen2 models against the rule in fp64 with the "
        "whole attention matrix, after the prompt and after each of 64 forced tokens; their logits against the "
        "unmodified transformers model with each head's dropped keys masked; column sums in any chunks equal those of "
        "the matrix; bytes equal the formula, in elements and in memory."
    )

    budget: Budget = param(QUARTER, "heavy and recent entries together: a ratio of the prompt (0.25) or a number (512)")
    heavy: Budget | None = param(None, "heavy entries: a ratio or a number; none: half of the budget")
    recent: Budget | None = param(None, "recent entries: a ratio or a number; none: half of the budget")
    granularity: Literal["kv", "query"] = param("kv", "heads that choose and store: KV heads, or every query head")

    def observes(self) -> frozenset[Observation]:
        return frozenset({ColumnSums()})

    def limits(self, prompt_tokens: int) -> Limits | None:
        """What survives a step, for a prompt of this length; None where nothing is ever dropped."""
        half = None if self.budget.ratio is None else self.budget.ratio / 2
        shares = [half if part is None else part.ratio for part in (self.heavy, self.recent)]
        if sum(share for share in shares if share is not None) >= 1:
            return None
        total = self.budget.capacity(prompt_tokens, at_least=2) or prompt_tokens
        heavy = total // 2 if self.heavy is None else self.heavy.capacity(prompt_tokens)
        recent = total - total // 2 if self.recent is None else self.recent.capacity(prompt_tokens)
        assert heavy is not None
        assert recent is not None
        return Limits(heavy, recent)

    def compress(self, record: PrefillRecord) -> KVCache:
        limits = self.limits(record.length)
        if limits is None:
            return record.cache.fork()
        stored = record.shape.kv_heads if self.granularity == "kv" else record.shape.heads
        layers = []
        for i in range(record.shape.layers):
            layer = record.layer(i)
            layers.append(HeavyHitters(column_sums(layer), limits).on_prompt(layer, stored))
        return KVCache(layers)
