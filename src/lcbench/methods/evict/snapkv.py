"""SnapKV: the prompt's last queries say which of its tokens matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from lcbench.config.options import param
from lcbench.errors import BadValue
from lcbench.kv.observe import LastQueries, Observation
from lcbench.kv.record import LayerRecord
from lcbench.kv.scores import snap_scores
from lcbench.methods.base import Scorer, Traits
from lcbench.methods.registry import method


@method("snapkv", paper="arXiv:2404.14469", traits=Traits(family="evict"))
@dataclass(frozen=True)
class SnapKV(Scorer):
    """Of the prompt, the last w = `window` tokens and the B - w others that these look at most (arXiv:2404.14469,
    section 4; rules as in FasterDecoding/SnapKV snapkv/monkeypatch/snapkv_utils.py).

    The window score ``S[h, j]`` sums the softmax weights of the last w queries on key j (the window's keys take part
    in the softmax); it is pooled over `kernel` neighbouring tokens, and the highest stay, head by head. The paper
    speaks of voting and clustering; the code, followed here, sums and pools. New tokens are added.

    Defaults are those of the repository's LongBench configurations (w 32, kernel 7, max pooling); its class has w 64,
    kernel 5, average pooling, which kvpress takes over. The repository repeats keys first and so chooses per query
    head, at g times the bytes: ``granularity=query``. By default KV heads choose, by their group's scores reduced
    before pooling.

    One layer holds ``2 Hk d e B`` bytes (H for Hk at query granularity), and as much a new token as one entry.
    """

    follows_distances: ClassVar[bool] = True
    proof: ClassVar[str] = (
        "Kept positions of tiny Llama, Mistral (sliding window) and Qwen2 models against the formula in fp64 with "
        "explicit loops, per KV head and per query head; the window score against the rows of the eager attention "
        "matrix of transformers; teacher-forced logits over 64 tokens against the unmodified transformers model with "
        "each head's dropped keys masked; bytes equal the formula, in elements and in memory."
    )

    window: int = param(32, "last prompt tokens whose queries score and that all stay (w)", minimum=1)
    kernel: int = param(7, "width of the pooling over tokens; odd, 1 for none", minimum=1)
    pooling: Literal["max", "avg"] = param("max", "kind of pooling")
    reduce: Literal["mean", "max"] = param("mean", "how the query heads of a group become one score")
    granularity: Literal["kv", "query"] = param("kv", "heads that choose and store: KV heads, or every query head")

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise BadValue(f"snapkv@kernel={self.kernel} is even.", "Use an odd width, or 1 for no pooling.")

    def observes(self) -> frozenset[Observation]:
        return frozenset({LastQueries(self.window)})

    def kept_tokens(self, prompt_tokens: int) -> int:
        return self.budget.resolve(prompt_tokens, at_least=self.window + 1)

    def score(self, record: LayerRecord) -> Tensor:
        queries: Tensor = record.observed[LastQueries(self.window)]
        stored = record.key.shape[0] if self.granularity == "kv" else queries.shape[0]
        return snap_scores(
            record, self.window, stored=stored, kernel=self.kernel, pooling=self.pooling, reduce=self.reduce
        )
