"""A rotary base that is multiplied, as the workbench does for Llama-3."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lcbench.config.options import param
from lcbench.methods.base import Method, Traits
from lcbench.methods.calibration import bound
from lcbench.methods.extension import Angles, RopeChange, Trained
from lcbench.methods.registry import method

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo


@method("rope-theta", paper="arXiv:2407.01527", traits=Traits(family="extend", prefill="own"))
@dataclass(frozen=True)
class RopeTheta(RopeChange):
    """The rotary base times `ratio`: the "32x" with which "KV Cache Compression, But What Must We Give in Return?"
    reads LongBench on Llama-3-8B beyond its 8k (arXiv:2407.01527; henryzhongsc/longctx_bench multiplies rope_theta in
    pipeline/baseline/inference.py, 100-LongBench has `--ratio`).

    It is `ntk` with ``s = ratio^((d - 2) / d)``, 30.3 for 32 at d = 128, and that many trained windows are served. The
    workbench asks for 31500 tokens of prompt: give `--max-input-tokens 31500`. In transformers 5 the old recipe
    ``config.rope_theta *= 32`` is silently ignored; here the frequencies of the loaded model change.
    """

    proof: ClassVar[str] = (
        "The loaded model's own frequencies are ``(ratio b)^(-2i/d)`` while it runs and its own afterwards; logits of "
        "tiny models over 64 forced tokens against transformers with that base in its config; ratio=1 changes no bit."
    )

    ratio: float = param(32.0, "the base is multiplied by this", minimum=1)

    def extended(self, trained: int) -> int:
        return int(trained * self.ratio ** (1 - 2 / getattr(self, "_dims", 128)))

    def bind(self, info: ModelInfo, home: Path) -> Method:
        self.refuse_model(info)
        return bound(self, _dims=info.rope.dims)

    def angles(self, model: Trained, length: int) -> Angles:
        return Angles(model.angles(self.ratio))
