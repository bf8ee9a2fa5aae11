"""Keys and queries at other angles than those of their own positions, for methods that move tokens about.

Stores hold keys as the model hands them over, rotated to their own positions. What a paper caches without rotation is
turned back when it is needed (`models.rope`): the same numbers, and no rounding where nothing has to be turned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lcbench.kv.observe import Observation, PrefillObserver
from lcbench.models.rope import Rope, observed_rope
from lcbench.models.rule import AttentionRule
from lcbench.models.stores import LayerStore


@dataclass(frozen=True)
class LayerRope(Observation):
    """The rotary embedding of each layer, in the frequencies of this prompt: a `Rope`, None for a layer without."""

    def observer(self, layers: int, prompt_tokens: int) -> PrefillObserver:
        return _LayerRopeObserver(layers, prompt_tokens)


class _LayerRopeObserver(PrefillObserver):
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
        self.results[layer] = observed_rope()

    def fork(self, prompt_tokens: int) -> PrefillObserver:
        return self._copy(prompt_tokens)


def unrotated(rope: Rope | None, x: Tensor, positions: Tensor) -> Tensor:
    """What the model had before it rotated ``x [..., n, d]`` at ``positions [n]``, in fp32."""
    return x.float() if rope is None else rope.undo(x, positions)


def rotated(rope: Rope | None, x: Tensor, angles: Tensor | int) -> Tensor:
    """``x [..., n, d]``, not rotated yet, as the model would rotate it at ``angles``, in fp32.

    Args:
        angles: positions ``[n]``, positions that differ from head to head ``[..., n]``, or one for all.
    """
    if rope is None:
        return x.float()
    if isinstance(angles, int):
        angles = torch.full((x.shape[-2],), angles, device=x.device)
    turns = angles[..., None].float() * rope.frequencies
    return rope.turn(x, turns.cos() * rope.scaling, turns.sin() * rope.scaling)


def moved(rope: Rope | None, x: Tensor, positions: Tensor, angles: Tensor | int) -> Tensor:
    """``x [..., n, d]``, rotated at ``positions [n]``, rotated at ``angles`` instead; in the dtype of ``x``."""
    return x if rope is None else rotated(rope, unrotated(rope, x, positions), angles).to(x.dtype)
