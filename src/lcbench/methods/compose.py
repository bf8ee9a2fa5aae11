"""Methods together: one drops tokens of the prompt and another stores what is left with fewer bits; and a context
extension, on whose model either or both of them work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lcbench.errors import BadValue
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.headwise import HeadwiseLayer
from lcbench.kv.layer import DenseLayer, LayerKV
from lcbench.kv.observe import Observation
from lcbench.kv.ragged import RaggedLayer
from lcbench.kv.record import LayerRecord, PrefillRecord
from lcbench.methods.base import CacheTransform, Method
from lcbench.methods.extension import Extension
from lcbench.methods.prompted import Prompted

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
        follows = first.follows_distances and second.follows_distances
        given = {"name": f"{first.name}+{second.name}", "paper": papers, "traits": traits, "turns": turns}
        for name, value in {**given, "follows_distances": follows}.items():
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

    def announcement(self) -> str:
        return self.dropper.announcement() or self.quantizer.announcement()

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


@dataclass(frozen=True)
class Extended(Method):
    """`inner` on the model as `extension` makes it: its window, its angles, and then the other method's cache."""

    extension: Extension
    inner: Method

    def __post_init__(self) -> None:
        first, second = self.extension, self.inner
        traits = replace(
            second.traits,
            prefill="own",
            stackable=first.traits.stackable and second.traits.stackable,
            calibrate=", ".join(filter(None, (first.traits.calibrate, second.traits.calibrate))),
            training=", ".join(filter(None, (first.traits.training, second.traits.training))),
        )
        papers = ", ".join(dict.fromkeys(paper for paper in (first.paper, second.paper) if paper))
        given = {"name": f"{first.name}+{second.name}", "paper": papers, "traits": traits}
        for name, value in {**given, "turns": first.turns or second.turns}.items():
            object.__setattr__(self, name, value)

    @property
    def id(self) -> str:
        return f"{self.extension.id}+{self.inner.id}"

    @property
    def reading(self) -> str | None:
        return self.extension.reading if self.inner.reading == "" else None

    @property
    def parameters(self) -> dict[str, str]:
        mine = {f"{self.extension.name}.{key}": value for key, value in self.extension.parameters.items()}
        single = not isinstance(self.inner, Composed)
        return mine | {f"{self.inner.name}.{k}" if single else k: v for k, v in self.inner.parameters.items()}

    @property
    def calibration(self) -> str:
        return "+".join(part for part in (self.extension.calibration, self.inner.calibration) if part)

    def bind(self, info: ModelInfo, home: Path) -> Method:
        return compose([self.extension.bind(info, home), self.inner.bind(info, home)])

    def check(self, shape: CacheShape) -> None:
        self.extension.check(shape)
        self.inner.check(shape)

    def announcement(self) -> str:
        return self.inner.announcement()

    def window_of(self, trained: int) -> int | None:
        served = self.extension.window_of(trained)
        if served is None or (self.extension.reach is not None and getattr(self.inner, "reach", None) is None):
            return served  # a limit that was set by hand holds for both
        return self.inner.window_of(served)

    def dense_window_of(self, trained: int) -> int | None:
        return self.extension.window_of(trained)

    def transform_model(self, model: Any, length: int) -> AbstractContextManager[Any]:
        return self.extension.transform_model(model, length)

    def logical_nbytes(self, shape: CacheShape, prompt_tokens: int) -> int:
        return self.inner.logical_nbytes(shape, prompt_tokens)

    def prefill_cache(self, shape: CacheShape, prompt_tokens: int) -> KVCache:
        reader = self.inner if self.inner.reading is None else self.extension
        return reader.prefill_cache(shape, prompt_tokens)

    def observes(self) -> frozenset[Observation]:
        return self.inner.observes()

    def compress(self, record: PrefillRecord) -> KVCache:
        return self.inner.compress(record)


def compose(parts: Sequence[Method]) -> Method:
    """The composition of a method that drops tokens and one that quantizes what is left, in this order; before them,
    or before a single method, a context extension may stand.

    Raises:
        BadValue: they do not go together; says why.
    """
    text = "+".join(part.id for part in parts)
    if parts[0].traits.family == "prompt" and len(parts) > 1:
        return Prompted(parts[0], compose(parts[1:]) if len(parts) > 2 else parts[1])
    late = next((part for part in parts[1:] if part.traits.family == "prompt"), None)
    if late is not None:
        raise BadValue(
            f"{late.name} shortens the prompt, so nothing can come before it in '{text}'.",
            f"Write {late.id}+{parts[0].id}.",
        )
    places = [i for i, part in enumerate(parts) if isinstance(part, Extension)]
    if places:
        return _extended(parts, places, text)
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


def _extended(parts: Sequence[Method], places: Sequence[int], text: str) -> Method:
    example = "Write e.g. yarn@factor=4+snapkv@budget=0.25."
    if len(places) > 1:
        raise BadValue(f"'{text}' extends the model twice.", "Keep one of the two.")
    if places != [0]:
        order = "+".join(part.id for part in (parts[places[0]], *(p for p in parts if not isinstance(p, Extension))))
        raise BadValue(f"{parts[places[0]].name} changes the model and comes first.", f"Write {order}.")
    first, rest = parts[0], parts[1:]
    assert isinstance(first, Extension)
    inner = rest[0] if len(rest) == 1 else compose(rest)
    if inner.traits.family == "baseline":
        raise BadValue(f"{inner.name} adds nothing to {first.name}.", f"Write {first.id}.")
    if inner.traits.family in ("prompt", "architecture", "extend") or inner.learns:
        raise BadValue(f"{inner.name} cannot work on a model that {first.name} extends.", example)
    reason = first.refuse_method(inner)
    if reason:
        raise BadValue(f"{inner.name} cannot work on a model that {first.name} extends: {reason}.", example)
    return Extended(first, inner)


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
