"""Two methods together: one drops tokens of the prompt, another stores what is left with fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lcbench.errors import BadValue
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.headwise import HeadwiseLayer
from lcbench.kv.layer import DenseLayer, LayerKV
from lcbench.kv.observe import Observation
from lcbench.kv.ragged import RaggedLayer
from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.methods.base import CacheTransform, Method

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo


@dataclass(frozen=True)
class Composed(Method):
    """What `dropper` keeps of a prompt, stored as `quantizer` stores a prompt.

    The dropper chooses on exact keys and values. The quantizer is then given the kept tokens in the order of the text,
    head by head, as if they were the whole prompt: its groups run over kept tokens, its exact residual are the newest
    of them. Positions stay those of the text. New tokens are treated as the quantizer treats them. Where heads keep
    different numbers of tokens (adakv, headkv), or every query head its own, each head is quantized by itself.
    """

    dropper: Method
    quantizer: CacheTransform

    def __post_init__(self) -> None:
        first, second = self.dropper, self.quantizer
        traits = replace(
            first.traits,
            stackable=first.traits.stackable and second.traits.stackable,
            calibrate=", ".join(filter(None, (first.traits.calibrate, second.traits.calibrate))),
            training=", ".join(filter(None, (first.traits.training, second.traits.training))),
        )
        turns = first.turns or second.turns
        papers = ", ".join(dict.fromkeys(paper for paper in (first.paper, second.paper) if paper))
        # A registered method has these on its class; here every pair has its own.
        given = {"name": f"{first.name}+{second.name}", "paper": papers, "traits": traits, "turns": turns}
        for name, value in given.items():
            object.__setattr__(self, name, value)

    @property
    def id(self) -> str:
        return f"{self.dropper.id}+{self.quantizer.id}"

    @property
    def parameters(self) -> dict[str, str]:
        parts = (self.dropper, self.quantizer)
        return {f"{part.name}.{key}": value for part in parts for key, value in part.parameters.items()}

    @property
    def calibration(self) -> str:
        return "+".join(part for part in (self.dropper.calibration, self.quantizer.calibration) if part)

    def bind(self, info: ModelInfo, home: Path) -> Method:
        return compose([self.dropper.bind(info, home), self.quantizer.bind(info, home)])

    def check(self, shape: CacheShape) -> None:
        self.dropper.check(shape)
        self.quantizer.check(shape)

    def observes(self) -> frozenset[Observation]:
        return self.dropper.observes() | self.quantizer.observes()

    def compress(self, record: PrefillRecord) -> KVCache:
        left = self.dropper.compress(record)
        return KVCache([self._layer(store, record, i) for i, store in enumerate(left.layers)])

    def _layer(self, store: LayerKV, record: PrefillRecord, index: int) -> LayerKV:
        whole, shape = record.layer(index), record.shape
        if isinstance(store, RaggedLayer):
            pieces = [store.head(head) for head in range(store.heads)]
            kept = [store.head_positions(head) for head in range(store.heads)]
        else:
            assert isinstance(store, DenseLayer), f"{self.dropper.id} left no plain subset"
            (key,), (value,) = store.parts()
            if store.kept is None or key.shape[0] == shape.kv_heads:
                return self.quantizer.layer(_part(whole, key, value, store.kept), shape)
            pieces, kept = list(zip(key, value, strict=True)), list(store.kept)
        one = replace(shape, heads=1, kv_heads=1)
        heads = [
            self.quantizer.layer(_part(whole, key[None], value[None], rows[None]), one)
            for (key, value), rows in zip(pieces, kept, strict=True)
        ]
        return HeadwiseLayer(heads)


def _part(whole: LayerRecord, key: Tensor, value: Tensor, kept: Tensor | None) -> LayerRecord:
    """A record of the kept entries alone."""
    return replace(whole, key=key, value=value, observed={}, kept=kept, seen=whole.length)


def compose(parts: Sequence[Method]) -> Method:
    """The composition of a method that drops tokens and one that quantizes what is left, in this order.

    Raises:
        BadValue: they are not two, or do not go together; says why.
    """
    text = "+".join(part.id for part in parts)
    example = "Write e.g. snapkv@budget=0.25+kivi@bits=2."
    if len(parts) != 2:
        raise BadValue(
            f"'{text}' joins {len(parts)} methods; a composition is one that drops tokens and one that quantizes.",
            example,
        )
    first, second = parts
    if first.traits.family == "quantize" and second.leaves_subset:
        raise BadValue(f"'{text}' quantizes before it drops tokens.", f"Write {second.id}+{first.id}.")
    if not first.leaves_subset:
        raise BadValue(f"{first.name} cannot come first in '{text}': {_why_no_subset(first)}.", example)
    if not isinstance(second, CacheTransform) or not second.takes_subset:
        raise BadValue(f"{second.name} cannot come second in '{text}': {_why_not_on_subset(second)}.", example)
    return Composed(first, second)


def _why_no_subset(method: Method) -> str:
    parameters = method.parameters
    for switch in ("roll", "decode"):
        if parameters.get(switch) == "true":
            return f"it goes on dropping tokens while decoding, unless {switch}=false"
    reasons = {
        "baseline": "it drops nothing",
        "quantize": "it drops no tokens",
        "merge": "it makes new entries instead of dropping tokens",
        "retrieve": "it keeps every token",
    }
    if method.traits.prefill == "own":
        return "it reads the prompt in its own way"
    return reasons.get(method.traits.family, "it goes on dropping tokens while decoding")


def _why_not_on_subset(method: Method) -> str:
    if method.traits.family != "quantize":
        return "it does not quantize"
    if method.traits.prefill == "own":
        return "it reads the prompt in its own way"
    return "it needs every token of the prompt"
