"""VATP: attention says which entries are looked at, the L1 norm of their values how much that changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.kv.cache import KVCache
from lcbench.kv.heavy import HeavyHitters, Limits, value_norms
from lcbench.kv.layer import DenseLayer
from lcbench.kv.observe import ColumnSums, LastQueries, Observation
from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.kv.scores import column_sums, window_sums
from lcbench.methods.base import QUARTER, Method, Traits
from lcbench.methods.registry import method


@method("vatp", paper="arXiv:2406.12335", traits=Traits(family="evict"))
@dataclass(frozen=True)
class Vatp(Method):
    """Value-aware token pruning (arXiv:2406.12335, section 4; rules as in guozhiyu/vatp utils_hh/modify_llama.py).

    An entry's score is its attention times the L1 norm of its value, ``I[h, j] = A[h, j] |v_j|_1``. After the prompt
    and after each new token a head keeps its newest entries and the best of the others, as H2O does; each step adds
    ``a_t[h, j] |v_j|_1``. The first `sinks` tokens always are among the best (as far as there is room).

    Two attention scores are in the paper. ``base=scissorhands``, the default as in the authors' code: the mean over
    the last `window` prompt queries; 10 recent entries. (What decoding adds is not divided by `window`: one decode
    query counts like `window` prompt queries. So does the authors' code.) ``base=h2o``: the sum over all prompt
    queries; half of the budget is recent. The code works on models without grouped queries and masks; here KV heads
    choose by the mean over their group, dropped entries are freed, and `granularity=query` gives every query head
    entries of its own.

    B is the budget, recent entries and sinks included, set once by the prompt. (The code has 2 floor(ratio/2 L).) A
    ratio of 1.0 never drops anything; a number beyond the prompt's length bounds what follows it.

    One layer holds ``2 Hk d e B`` bytes of keys and values, ``4 H B`` of scores and ``4 Hk B`` of norms (H for Hk at
    query granularity).
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Both scores: kept positions of tiny Llama, Mistral (sliding window) and Qwen2 models against the rule in fp64 "
        "with the whole attention matrix, after the prompt and after each of 64 forced tokens; their logits against "
        "the unmodified transformers model with each head's dropped keys masked; values of equal norm choose as the "
        "attention alone would; bytes equal the formula, in elements and in memory."
    )

    budget: Budget = param(QUARTER, "entries of a head: a ratio of the prompt (0.25) or a number (512)")
    base: Literal["scissorhands", "h2o"] = param("scissorhands", "attention score: last queries, or all queries")
    window: int = param(400, "last prompt queries of base=scissorhands", minimum=1)
    sinks: int = param(20, "first tokens that always stay", minimum=0)
    recent: int | None = param(
        None, "newest entries that stay; none: 10 (scissorhands) or half of the budget", minimum=1
    )
    granularity: Literal["kv", "query"] = param("kv", "heads that choose and store: KV heads, or every query head")

    def observes(self) -> frozenset[Observation]:
        return frozenset({ColumnSums() if self.base == "h2o" else LastQueries(self.window)})

    def limits(self, prompt_tokens: int) -> Limits | None:
        """What survives a step, for a prompt of this length; None where nothing is ever dropped."""
        recent = 10 if self.recent is None and self.base == "scissorhands" else self.recent
        total = self.budget.capacity(prompt_tokens, at_least=2 if recent is None else recent + 1)
        if total is None:
            return None
        heavy = total // 2 if recent is None else total - recent
        return Limits(heavy, total - heavy, self.sinks)

    def compress(self, record: PrefillRecord) -> KVCache:
        limits = self.limits(record.length)
        if limits is None:
            return record.cache.fork()
        stored = record.shape.kv_heads if self.granularity == "kv" else record.shape.heads
        return KVCache([self._layer(record.layer(i), limits, stored) for i in range(record.shape.layers)])

    def _layer(self, record: LayerRecord, limits: Limits, stored: int) -> DenseLayer:
        attention = column_sums(record) if self.base == "h2o" else window_sums(record, self.window, mean=True)
        norms = value_norms(record.value)
        scores = attention * norms.repeat_interleave(attention.shape[0] // norms.shape[0], dim=0)
        gain = norms.repeat_interleave(stored // norms.shape[0], dim=0)
        return HeavyHitters(scores, limits, gain).on_prompt(record, stored)
