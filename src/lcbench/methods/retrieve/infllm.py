"""InfLLM: a window, the first tokens, and blocks of the distant text that are looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.errors import BadValue
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.distant import DistantLayer
from lcbench.kv.runs import Runs
from lcbench.methods.base import Traits
from lcbench.methods.extension import RunByRun
from lcbench.methods.registry import method

PRESETS = {"2x": 0.5, "4x": 0.25, "6x": 0.17, "8x": 0.125}  # tokens seen, as a share of the prompt
INIT_SHARE, BLOCK_SHARE = 0.021, 0.324  # of those tokens: first ones, looked-up ones
DEFAULTS = (128, 4096, 16)  # n_init, n_local, topk of the authors' configurations


@method("infllm", paper="arXiv:2402.04617", traits=Traits(family="retrieve", prefill="own"))
@dataclass(frozen=True)
class InfLLM(RunByRun):
    """Looks up blocks of the distant text (arXiv:2402.04617, section 3; rules as in thunlp/InfLLM
    inf_llm/attention/context_manager.py, which henryzhongsc/longctx_bench runs).

    The prompt is read in runs of `exc_block_size` tokens, its last token and every token after it being a run of its
    own. A query sees the newest `n_local` tokens at their true distances and, all at the one distance
    ``n_local - 1``, the first `n_init` tokens, `topk` blocks of `block_size` tokens, and the remainder: tokens outside
    its window that are not in a block yet. One softmax runs over all of them. The blocks are the same for all heads
    of a layer and all queries of a run: those with the highest ``sum_h mean(q_h) . r_h``, q at the angle
    ``n_local - 1``; r_h is the mean of the block's `repr_topk` keys that got most attention from the windows they
    were in, per query head. Ties keep the older block.

    `remainder` says which of the remainder's keys a query of a run sees: masked, only those outside its window (the
    paper); whole, all that any query of the run sees, so that some are counted twice (the authors' code, whose mask
    has no effect while a prompt is read).

    `preset` 2x, 4x, 6x and 8x are the settings of "KV Cache Compression, But What Must We Give in Return?"
    (arXiv:2407.01527): ``T = floor(c min(L, cap))`` tokens, c = 0.5, 0.25, 0.17 and 0.125, ``n_init = floor(0.021
    T)``, ``topk = floor(floor(0.324 T) / 128)``, ``n_local = max(512, T - n_init - 128 topk)``; that floor makes short
    prompts lose less than the name says. `budget` gives T itself. Without both the authors' 128, 4096 and 16 hold.

    No query sees a key further away than `n_local` tokens, so that texts of any length are served where the trained
    window holds `n_local`. A preset or `budget` is a share of a prompt that other methods read, too: with them, and
    where `n_local` is larger, the model's window stays. `reach` sets a limit by hand.

    Keys are held at the angle of their own position and turned when they are far. A layer with a sliding window of
    its own sees nothing beyond it.

    Everything is kept: one layer holds ``2 Hk d e T + H d e`` bytes a block and 4 H for each token of window and
    remainder; a step reads ``2 Hk d e (n_init + block_size topk + window and remainder)`` and the blocks' vectors.
    """

    proof: ClassVar[str] = (
        "Teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models over 64 tokens, prompt "
        "included, against attention written query by query with explicit regions and angles in fp64, for masked and "
        "whole remainders, with blocks chosen, none and all; a window that holds everything is the full cache. "
        "Prompts in one piece and in pieces of whole runs give the same logits, other pieces are refused; presets "
        "give the paper's tokens at 2000, 7500 and 31500; bytes equal the formula."
    )

    n_init: int | None = param(None, "first tokens that are always seen; none: 128, or by preset", minimum=0)
    n_local: int | None = param(None, "newest tokens seen at true distances; none: 4096, or by preset", minimum=1)
    topk: int | None = param(None, "blocks seen; none: 16, or by preset", minimum=0)
    preset: Literal["2x", "4x", "6x", "8x"] | None = param(None, "budgets of the benchmark paper: 2x, 4x, 6x or 8x")
    budget: Budget | None = param(None, "tokens seen by a query, instead of a preset")
    cap: int | None = param(None, "prompt tokens that count for the budget, at most; none: all", minimum=1)
    block_size: int = param(128, "tokens of a block", minimum=1)
    repr_topk: int = param(4, "keys of a block that stand for it", minimum=1)
    exc_block_size: int = param(512, "prompt tokens that look up blocks together", minimum=1)
    remainder: Literal["masked", "whole"] = param("masked", "keys outside the window, or all as in the authors' code")

    def __post_init__(self) -> None:
        if self.preset is not None and self.budget is not None:
            raise BadValue(
                f"infllm@preset={self.preset} and infllm@budget={self.budget} both set the budget.", "Give one of them."
            )
        if self.repr_topk > self.block_size:
            raise BadValue(
                f"infllm@repr_topk={self.repr_topk} is more than the {self.block_size} tokens of a block.",
                "Use fewer, or a larger block_size.",
            )
        if self.n_local is not None and self.n_local < self.exc_block_size:
            raise BadValue(
                f"infllm@n_local={self.n_local} is less than exc_block_size={self.exc_block_size}, the tokens that "
                "are read together.",
                "Use a larger n_local or a smaller exc_block_size.",
            )

    def runs(self) -> tuple[int, int]:
        return self.exc_block_size, 0

    def extended(self, trained: int) -> int | None:
        shares = self.preset is not None or self.budget is not None
        return trained if shares or self.sizes(0)[1] > trained else None

    def sizes(self, prompt_tokens: int) -> tuple[int, int, int]:
        """First tokens, newest tokens and blocks that a query sees, for a prompt of this length."""
        n_init, n_local, topk = self._by_budget(prompt_tokens)
        given = (self.n_init, self.n_local, self.topk)
        n_init, n_local, topk = (a if b is None else b for a, b in zip((n_init, n_local, topk), given, strict=True))
        return n_init, max(n_local, self.exc_block_size), topk

    def _by_budget(self, prompt_tokens: int) -> tuple[int, int, int]:
        if self.preset is None and self.budget is None:
            return DEFAULTS
        counted = min(prompt_tokens, self.cap or prompt_tokens)
        budget = self.budget or Budget(ratio=PRESETS[self.preset or "2x"])
        total = int((budget.ratio or 0.0) * counted) if budget.tokens is None else budget.tokens
        n_init, topk = int(INIT_SHARE * total), int(BLOCK_SHARE * total) // self.block_size
        return n_init, total - n_init - topk * self.block_size, topk

    def prefill_cache(self, shape: CacheShape, prompt_tokens: int) -> KVCache:
        return KVCache([InfLLMLayer(self, prompt_tokens) for _ in range(shape.layers)])


class InfLLMLayer(DistantLayer):
    """Blocks of one size; see `kv.distant`.

    Args:
        rules: the method. prompt_tokens: of the prompt that will be read.
    """

    def __init__(self, rules: InfLLM, prompt_tokens: int) -> None:
        self.rules = rules
        self.n_init, n_local, self.topk = rules.sizes(prompt_tokens)
        super().__init__(
            Runs("infllm", rules.exc_block_size, 0, prompt_tokens - 1),
            n_local,
            rules.repr_topk,
            expected=prompt_tokens,
            whole_remainder=rules.remainder == "whole",
        )

    @property
    def rest(self) -> int:
        return self.first + self.block_count * self.rules.block_size

    def look_up(self, asked: Tensor, waiting: int) -> list[tuple[int, int]]:
        size = self.rules.block_size
        chosen = list(range(self.block_count))
        if self.block_count > self.topk:
            best = torch.sort(self.similarities(asked), descending=True, stable=True).indices[: self.topk]
            chosen = sorted(best.tolist())
        return [(self.first + block * size, self.first + (block + 1) * size) for block in chosen]

    def settle(self, seen: int) -> None:
        leaving = seen - self.rest - self.n_local
        if self.first < self.n_init and leaving > 0:
            self.leave(min(self.n_init - self.first, leaving))
        while seen - self.rest - self.rules.block_size >= self.n_local:
            self.put_away(self.rules.block_size)  # the count of blocks moves `rest`

    @property
    def resident_nbytes(self) -> int:
        return self.resident_of(min(self.topk, self.block_count) * self.rules.block_size)
