"""HeadKV: budgets per head, fixed for a model, from how much each head matters for retrieval (and reasoning)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.errors import BadValue, ModelError
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.layer import LayerKV
from lcbench.kv.observe import LastQueries, Observation
from lcbench.kv.ragged import best_and_recent, kept_layer
from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.kv.scores import group_reduce, pool, window_scores
from lcbench.methods.base import QUARTER, Method, Traits
from lcbench.methods.calibration import Calibration, bound, load_json, missing
from lcbench.methods.registry import method

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo

_PROOF = (
    "Kept positions against the formula in fp64 with Python loops, on tables that a permutation of the heads tells "
    "apart; equal scores give every head the same budget; teacher-forced logits over 64 tokens against the plain "
    "transformers model with each head's dropped keys masked; bytes equal the sum of the budgets, in memory too."
)


@dataclass(frozen=True)
class _HeadKV(Method):
    """What both score tables share."""

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = _PROOF

    budget: Budget = param(QUARTER, "tokens kept a head on average, window included: a ratio (0.25) or a number (512)")
    window: int = param(8, "last prompt tokens whose queries score and that all stay (w)", minimum=1)
    kernel: int = param(7, "width of the pooling over tokens; odd, 1 for none", minimum=1)
    pooling: Literal["max", "avg"] = param("max", "kind of pooling")
    beta: float = param(1.5, "1 / beta of the budget is shared out by score; near 1: nearly all of it", minimum=1)
    temp: float = param(1.0, "power of the head scores before they are made to sum to 1", minimum=0)
    granularity: Literal["kv", "query"] = param("kv", "heads that choose and store: KV heads, or every query head")

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise BadValue(f"{self.name}@kernel={self.kernel} is even.", "Use an odd width, or 1 for no pooling.")

    @property
    def calibration(self) -> str:
        table = self._table
        return "" if table is None else table.sha256

    @property
    def _table(self) -> Calibration | None:
        return getattr(self, "_head_scores", None)

    def bind(self, info: ModelInfo, home: Path) -> Method:
        return bound(self, _head_scores=load_json(self.name, info, home))

    def check(self, shape: CacheShape) -> None:
        self.shares(shape)

    def observes(self) -> frozenset[Observation]:
        return frozenset({LastQueries(self.window)})

    @property
    def leaves_subset(self) -> bool:
        return True

    def compress(self, record: PrefillRecord) -> KVCache:
        keep = self.budget.resolve(record.length, at_least=self.window + 1)
        if keep >= record.length:
            return record.cache.fork()
        counts = self.counts(record.shape, keep - self.window, record.length - self.window)
        return KVCache([self._layer(record.layer(i), counts[i]) for i in range(record.shape.layers)])

    def _layer(self, record: LayerRecord, counts: Sequence[int]) -> LayerKV:
        raw = window_scores(record, self.window)
        scores = pool(group_reduce(raw, len(counts)), self.kernel, self.pooling)
        return kept_layer(record, best_and_recent(scores, counts, self.window))

    def counts(self, shape: CacheShape, each: int, room: int) -> list[list[int]]:
        """Tokens that each stored head of each layer keeps beside the window: ``[N][Hs]``.

        Args:
            each: their mean, b. room: most there can be, L - w.
        """
        shares = self.shares(shape)
        shared = int(each // self.beta)
        wanted = shares * (shared * shares.numel()) + (each - shared)
        return [[min(room, round(x)) for x in row] for row in wanted.tolist()]

    def shares(self, shape: CacheShape) -> Tensor:
        """Head scores of the stored heads, fp64 ``[N, Hs]``, summing to 1.

        Raises:
            ModelError: there is no table, or it is one of another model.
        """
        if self._table is None:
            raise missing(self.name)
        scores = torch.tensor(self._table.data["scores"], dtype=torch.float64)
        if tuple(scores.shape) != (shape.layers, shape.heads):
            raise ModelError(
                f"The {self.name} scores are for {' x '.join(map(str, scores.shape))} heads, the model has "
                f"{shape.layers} layers of {shape.heads}.",
                f"Make scores for this model: lcbench calibrate {self.name} --model MODEL",
            )
        powered = scores**self.temp
        shares = powered / powered.sum()
        if self.granularity == "query":
            return shares
        grouped = shares.view(shape.layers, shape.kv_heads, shape.groups)
        return grouped.sum(dim=-1)  # the mean over the group, of shares that again sum to 1


@method(
    "headkv",
    paper="arXiv:2410.19258",
    traits=Traits(family="evict", calibrate="headkv"),
)
@dataclass(frozen=True)
class HeadKV(_HeadKV):
    """SnapKV scores with a budget for each head from its retrieval score (arXiv:2410.19258, section 3.2; rules as in
    FYYFU/HeadKV headkv/snapkv_utils.py).

    With s the head scores, scaled to sum to 1 over all N Hs stored heads, b = B - w and a shared pool of
    ``floor(b / beta)`` tokens a head, head h of layer l keeps its best ``round(s N Hs pool + b - pool)`` tokens by
    pooled window score, and the window. A small beta shares out nearly everything, a large one nearly nothing. What a
    head cannot use because the prompt is shorter is lost, as in the reference code.

    The scores of a model come from `lcbench calibrate headkv` (retrieval probes, see `engine.head_scores`) or from a
    published file (`--from`). Scores are per query head; with KV heads (the default) the budgets of a group are
    averaged, and so are its attention scores before pooling. `granularity=query` keeps a copy for every query head,
    as the reference code does, in g times the bytes. Without a table the method refuses to run.

    One layer holds ``2 d e sum_h (B_h + w)`` bytes, and ``2 Hs d e`` more a new token.
    """


@method(
    "headkv-r2",
    paper="arXiv:2410.19258",
    traits=Traits(family="evict", calibrate="headkv-r2"),
)
@dataclass(frozen=True)
class HeadKVR2(_HeadKV):
    """HeadKV with retrieval-reasoning scores (arXiv:2410.19258, section 3.1): heads are scored on questions whose
    answer must be concluded from the needle, by the attention they pay to it. Everything else as in `headkv`.
    """
