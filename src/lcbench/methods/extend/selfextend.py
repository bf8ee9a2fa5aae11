"""SelfExtend: exact positions near by, floor-divided positions far away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lcbench.config.options import param
from lcbench.errors import BadValue, ModelError
from lcbench.kv.distances import Distances
from lcbench.methods.base import Traits
from lcbench.methods.extension import DistanceChange
from lcbench.methods.registry import method
from lcbench.models.rope import Rope

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo


@method("selfextend", paper="arXiv:2401.01325", traits=Traits(family="extend", prefill="own"))
@dataclass(frozen=True)
class SelfExtend(DistanceChange):
    """Keys near by at their true distance, those far away at floor-divided positions (arXiv:2401.01325, section 3;
    rules as in datamllab/LongLM self_extend_patch/Llama.py).

    A query at i sees keys j with ``i - j < W`` at their true distance, W = `neighbours`, and those further away at
    ``floor(i / G) + W - W / G - floor(j / G)``, G = `group`, all under one softmax. The largest distance stays within
    the trained window L up to ``(L - W) G + W`` tokens, which is what is served. The authors advise ``W + (n - W) / G``
    below one half to two thirds of L for texts of n tokens; 100-LongBench takes G = 64 and W = 1024 for Llama-2-7B.

    No model code is replaced: keys are cached at their own angles and turned inside the attention function, while the
    prompt is read and while decoding, so that the cache is that of `full`, and other methods can drop from it or
    quantize it. A layer with a sliding window of its own sees nothing beyond it (for Mistral-7B-v0.1 the authors switch
    the window off). W must be a multiple of G: the authors' variants disagree where it is not. Their optional scaling
    of queries by the logarithm of the position is left out; it is off by default there, too. Attention takes about
    twice as many products.
    """

    proof: ClassVar[str] = (
        "Logits of tiny models with grouped queries, prompt and 64 forced tokens, against attention written with an "
        "explicit matrix of positions in fp64; the paper's toy case (10 tokens, W = 4, G = 2) distance by distance; "
        "group=1, and neighbours beyond the text, equal the plain model; a decoding step equals the last row of a "
        "longer prompt; with eviction and with KIVI against the same explicit attention on what is held."
    )

    group: int = param(8, "positions that far keys share (G)", minimum=1)
    neighbours: int = param(1024, "newest tokens seen at their true distance (W); a multiple of group", minimum=1)

    def __post_init__(self) -> None:
        if self.neighbours % self.group:
            raise BadValue(
                f"selfextend@neighbours={self.neighbours} is not a multiple of group={self.group}.",
                f"Use {self.group * max(1, round(self.neighbours / self.group))}.",
            )

    def extended(self, trained: int) -> int:
        return max(trained, (trained - self.neighbours) * self.group + self.neighbours)

    def refuse_model(self, info: ModelInfo) -> None:
        super().refuse_model(info)
        if self.group > 1 and self.neighbours >= info.window:
            raise ModelError(
                f"selfextend@neighbours={self.neighbours} leaves nothing of the {info.window} positions that "
                f"{info.name} was trained for.",
                f"Use e.g. selfextend@neighbours={max(1, info.window // 4 // self.group) * self.group}.",
            )

    def distances(self, rope: Rope | None, trained: int) -> Distances:
        return Distances(self.neighbours, self.group, None, rope)
