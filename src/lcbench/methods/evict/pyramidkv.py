"""PyramidKV: SnapKV's scores, with more room in the lower layers than in the upper ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.errors import BadValue
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer
from lcbench.kv.observe import LastQueries, Observation
from lcbench.kv.record import PrefillRecord, take
from lcbench.kv.scores import snap_scores
from lcbench.methods.base import QUARTER, Method, Traits, top_positions
from lcbench.methods.registry import method


@method("pyramidkv", paper="arXiv:2406.02069", traits=Traits(family="evict"))
@dataclass(frozen=True)
class PyramidKV(Method):
    """SnapKV with budgets that fall from the bottom layer to the top one (arXiv:2406.02069, section 4; rules as in
    Zefan-Cai/KVCache-Factory pyramidkv_utils.py).

    With C the mean budget of a layer, w = `window` and b = C - w, layer l keeps its window and ``n_l = max - l step``
    other tokens, where ``min = b // beta``, ``max = 2b - min`` (both moved so that max is at most L - w) and
    ``step = (max - min) // (N - 1)``. A prompt of C tokens or fewer is left alone; one shorter than 2b gets b in every
    layer. Because the step is floored the sum can exceed N C a little (C = 512 on 32 layers: 3%; C = 16: 50%): a
    budget in tokens gives the code's numbers as they are. A budget given as a ratio of the prompt scales them so that
    the sum is N C exactly, which makes tables fair.

    ``variant=kvpress`` takes the budgets of kvpress pyramidkv_press.py: real arithmetic, rounded, w counted within a
    layer's budget, and the same budget everywhere when the smallest would not hold the window. Budgets depend on this
    prompt alone. (AdaKV's pyramid mode keeps the first prompt's.) New tokens are added.

    Defaults are those of the paper's LongBench runs (w 8, beta 20, kernel 7, max pooling).

    Layer l holds ``2 Hk d e (n_l + w)`` bytes (H for Hk at query granularity), and as much a new token as one entry.
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Layer budgets against the numbers published for the reference code (C = 16, 64, 128, 512 on 32 layers), in "
        "all three regimes and at the clipping; kept positions of tiny Llama, Mistral (sliding window) and Qwen2 "
        "models against the formula in fp64; teacher-forced logits over 64 tokens against the unmodified transformers "
        "model with each head's dropped keys masked; bytes equal the formula, in elements and in memory."
    )

    budget: Budget = param(QUARTER, "tokens kept a layer on average, window included: a ratio (0.25) or a number (512)")
    window: int = param(8, "last prompt tokens whose queries score and that all stay (w)", minimum=1)
    kernel: int = param(7, "width of the pooling over tokens; odd, 1 for none", minimum=1)
    pooling: Literal["max", "avg"] = param("max", "kind of pooling")
    beta: int = param(20, "how much less the top layer gets: its share is 1 / beta of the mean", minimum=1)
    variant: Literal["reference", "kvpress"] = param("reference", "whose layer budgets")
    reduce: Literal["mean", "max"] = param("mean", "how the query heads of a group become one score")
    granularity: Literal["kv", "query"] = param("kv", "heads that choose and store: KV heads, or every query head")

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise BadValue(f"pyramidkv@kernel={self.kernel} is even.", "Use an odd width, or 1 for no pooling.")
        if self.beta < 1:
            raise BadValue(f"pyramidkv@beta={self.beta} is below the least value 1.", "Use 1 or more.")

    def observes(self) -> frozenset[Observation]:
        return frozenset({LastQueries(self.window)})

    def layer_budgets(self, prompt_tokens: int, layers: int) -> list[int]:
        """Tokens that each layer keeps of the prompt, window included, bottom layer first."""
        w = self.window
        target = self.budget.resolve(prompt_tokens, at_least=w + 1)
        if target >= prompt_tokens:
            return [prompt_tokens] * layers
        if self.variant == "kvpress":
            exact = prompt_tokens * self.budget.ratio if self.budget.ratio is not None else float(target)
            return _kvpress(max(exact, w + 1.0), prompt_tokens, w, self.beta, layers)
        chosen = _reference(target - w, prompt_tokens, w, self.beta, layers)
        if self.budget.ratio is not None:
            chosen = _scaled(chosen, layers * (target - w))
        return [n + w for n in chosen]

    @property
    def leaves_subset(self) -> bool:
        return True

    def compress(self, record: PrefillRecord) -> KVCache:
        budgets = self.layer_budgets(record.length, record.shape.layers)
        if min(budgets) >= record.length:
            return record.cache.fork()
        return KVCache([self._layer(record, i, keep) for i, keep in enumerate(budgets)])

    def _layer(self, record: PrefillRecord, index: int, keep: int) -> DenseLayer:
        layer, shape = record.layer(index), record.shape
        stored = shape.kv_heads if self.granularity == "kv" else shape.heads
        scores = snap_scores(
            layer, self.window, stored=stored, kernel=self.kernel, pooling=self.pooling, reduce=self.reduce
        )
        kept = top_positions(scores, keep)
        key, value = take(layer, kept)
        return DenseLayer(key, value, kept=kept, seen=record.length)


def _reference(mean: int, prompt_tokens: int, window: int, beta: int, layers: int) -> list[int]:
    """Tokens beside the window of each layer for a mean of ``mean`` (b): from 1 to L - w, non-increasing."""
    if prompt_tokens < 2 * mean or layers == 1:
        return [mean] * layers
    low = mean // beta
    high = 2 * mean - low
    if high >= prompt_tokens - window:
        high = prompt_tokens - window
        low = 2 * mean - high
    step = (high - low) // (layers - 1)
    return [max(1, high - layer * step) for layer in range(layers)]


def _scaled(chosen: list[int], total: int) -> list[int]:
    """Non-increasing numbers >= 1 made smaller in proportion, so that they add up to ``total``; what rounding leaves
    goes to the lower layers. They stay non-increasing and >= 1."""
    above = [n - 1 for n in chosen]
    target = total - len(chosen)
    shared = [n * target // max(1, sum(above)) for n in above]
    left = target - sum(shared)
    return [1 + n + (layer < left) for layer, n in enumerate(shared)]


def _kvpress(target: float, prompt_tokens: int, window: int, beta: int, layers: int) -> list[int]:
    low = target / beta
    high = 2 * target - low
    if high >= prompt_tokens - window:
        high = prompt_tokens - window
        low = 2 * target - high
    if layers == 1 or not prompt_tokens >= high >= low >= window:
        return [round(target)] * layers
    step = (high - low) / (layers - 1)
    return [round(high - layer * step) for layer in range(layers)]
