"""END, early noise dropping: the model's own early layers say which chunks of a context are noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lcbench.config.options import param
from lcbench.errors import ModelError
from lcbench.methods import passages
from lcbench.methods.base import Method, PromptTransform, Traits
from lcbench.methods.calibration import Calibration, bound, load_tensors, missing
from lcbench.methods.probing import CHUNK_WORDS, last_states, probability, probe_text
from lcbench.methods.registry import method
from lcbench.methods.rewriting import Helper, PromptText
from lcbench.methods.surprisal import tokens
from lcbench.models.info import LoadedModel

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo


@method("end", paper="arXiv:2502.18915", traits=Traits(family="prompt", prefill="own", calibrate="end"))
@dataclass(frozen=True)
class END(PromptTransform):
    """Early noise dropping (END, arXiv:2502.18915): a linear prober on an early layer's hidden states tells chunks that
    matter for the question from noise, and noise is dropped before the model reads the prompt.

    The paper's abstract is all that is public of it; the rest is our choice, and tables of this method are of it and
    not of the authors': chunks are the data set's passages or about 180 words that end with a sentence; the model under
    test reads "instruction, chunk, question" of each chunk by itself, as far as the layer that the calibration chose;
    a logistic regression on the last token's standardised state gives p. Chunks with p below the threshold of the
    calibration go (recall of 0.98 on its validation texts), but `keep` of them always stay, and so does everything
    outside the context. With `rate` the chunks with the highest p stay until that share of the context's tokens is
    reached, one at least, whatever `keep` says. Order is kept, dropped chunks leave nothing behind.

    `lcbench calibrate end --model M` trains the prober on passkey and key-value texts that are made for it (no
    benchmark's rows). A summary or a few examples have no chunk that holds the answer: there the prober was never
    trained for what it is asked. Cost: every chunk and the question through the early layers.
    """

    proof: ClassVar[str] = (
        "A prober on separable features reaches an AUROC above 0.99 and one on shuffled labels about 0.5; states of "
        "the early stop equal those of the whole model; threshold 0 leaves the prompt as it is; what is left is the "
        "kept chunks, joined."
    )
    asks: ClassVar[bool] = True
    revision: ClassVar[int] = 2

    rate: float | None = param(None, "share of the context that stays; none: by threshold", minimum=0.01, maximum=1)
    threshold: float | None = param(
        None, "least p of a chunk that stays; none: the calibration's", minimum=0, maximum=1
    )
    keep: int = param(3, "chunks that stay whatever the prober says, without a rate", minimum=1)

    @property
    def idle(self) -> bool:
        return self.rate == 1 or (self.rate is None and self.threshold == 0)

    @property
    def helper(self) -> Helper:
        return Helper("causal", "")

    @property
    def _prober(self) -> Calibration | None:
        return getattr(self, "_calibrated", None)

    @property
    def calibration(self) -> str:
        return "" if self._prober is None else self._prober.sha256

    def bind(self, info: ModelInfo, home: Path) -> Method:
        if info.state is not None and not self.idle:  # `calibrate end` could not read it either
            raise ModelError(
                f"end reads texts through the keys and values of the model's early layers, and {info.name} runs on a "
                "cache of another kind.",
                "Choose another method, or a model whose layers are all plain attention.",
            )
        return self if self.idle else bound(self, _calibrated=load_tensors("end", info, home))

    def rewrite(self, prompt: PromptText, helper: LoadedModel) -> str:
        prober = self._prober
        if prober is None:
            raise missing("end", helper.info)
        chunks = passages.split(prompt.passage, CHUNK_WORDS)
        if self.rate is None and len(chunks) <= self.keep:
            return prompt.passage
        layer = int(prober.tensors["layer"])
        texts = [probe_text(chunk, prompt.asked) for chunk in chunks]
        values = probability(last_states(helper, texts, layer), prober.tensors)
        least = float(prober.tensors["threshold"]) if self.threshold is None else self.threshold
        sizes = [len(tokens(helper, chunk)) for chunk in chunks]
        return "".join(chunks[i] for i in self.staying(values.tolist(), sizes, least))

    def staying(self, values: Sequence[float], sizes: Sequence[int], least: float) -> list[int]:
        """Chunks that stay, in their order.

        Args:
            values: p of each. sizes: their tokens. least: the threshold, where no rate is asked for.
        """
        order = sorted(range(len(values)), key=lambda i: -values[i])
        if self.rate is None:
            chosen = {i for i in order if values[i] >= least} | set(order[: self.keep])
            return sorted(chosen)
        room, chosen = self.rate * sum(sizes), set()
        for i in order:
            if chosen and sizes[i] > room:
                continue
            chosen.add(i)
            room -= sizes[i]
        return sorted(chosen)
