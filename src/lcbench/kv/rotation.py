"""The rotary embedding of each layer, taken down while the prompt is read."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lcbench.kv.observe import Observation, PrefillObserver
from lcbench.models.rope import observed_rope
from lcbench.models.rule import AttentionRule
from lcbench.models.stores import LayerStore


@dataclass(frozen=True)
class Rotation(Observation):
    """`models.rope.Rope` of each layer in the frequencies of this prompt, or None for a layer that does not rotate.

    Raises ModelError in the prefill where the embedding is not understood.
    """

    def observer(self, layers: int, prompt_tokens: int) -> PrefillObserver:
        return _RotationObserver(layers, prompt_tokens)


class _RotationObserver(PrefillObserver):
    def observe(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        store: LayerStore,
        rule: AttentionRule,
    ) -> None:
        if start + query.shape[1] == self.prompt_tokens:  # frequencies may follow the length; the last chunk's count
            self.results[layer] = observed_rope()

    def fork(self, prompt_tokens: int) -> PrefillObserver:
        return self._copy(prompt_tokens)
