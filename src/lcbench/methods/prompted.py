"""Two methods together: one shortens the prompt, another works on the cache of what is left."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lcbench.errors import BadValue
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.observe import Observation
from lcbench.kv.record import PrefillRecord
from lcbench.methods.base import Method, PromptTransform

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo


@dataclass(frozen=True)
class Prompted(Method):
    """What `shortener` leaves of a prompt, read and kept as `rest` does. Budgets of `rest` count shortened prompts."""

    shortener: Method
    rest: Method

    def __post_init__(self) -> None:
        first, second = self.shortener, self.rest
        if second.traits.family in ("prompt", "baseline"):
            why = "both shorten the prompt" if second.traits.family == "prompt" else f"{second.name} changes nothing"
            raise BadValue(
                f"{first.id} and {second.id} do not go together: {why}.",
                "Write e.g. llmlingua2@rate=0.5+kivi@bits=4.",
            )
        if second.learns:
            raise BadValue(
                f"{second.id} learns from the prompt before it is read, and {first.id} shortens it.", "Run them apart."
            )
        traits = replace(
            second.traits,
            family="prompt",
            prefill="own",
            stackable=first.traits.stackable and second.traits.stackable,
            calibrate=", ".join(filter(None, (first.traits.calibrate, second.traits.calibrate))),
            training=", ".join(filter(None, (first.traits.training, second.traits.training))),
        )
        papers = ", ".join(dict.fromkeys(paper for paper in (first.paper, second.paper) if paper))
        given = {"name": f"{first.name}+{second.name}", "paper": papers, "traits": traits, "turns": second.turns}
        for name, value in given.items():
            object.__setattr__(self, name, value)

    @property
    def id(self) -> str:
        return f"{self.shortener.id}+{self.rest.id}"

    @property
    def parameters(self) -> dict[str, str]:
        parts = (self.shortener, self.rest)
        return {f"{part.name}.{key}": value for part in parts for key, value in part.parameters.items()}

    @property
    def calibration(self) -> str:
        return "+".join(part for part in (self.shortener.calibration, self.rest.calibration) if part)

    @property
    def rewriter(self) -> PromptTransform | None:
        return self.shortener.rewriter

    def bind(self, info: ModelInfo, home: Path) -> Method:
        return Prompted(self.shortener.bind(info, home), self.rest.bind(info, home))

    def check(self, shape: CacheShape) -> None:
        self.shortener.check(shape)
        self.rest.check(shape)

    def logical_nbytes(self, shape: CacheShape, prompt_tokens: int) -> int:
        return self.rest.logical_nbytes(shape, prompt_tokens)

    def window_of(self, trained: int) -> int | None:
        filters = self.shortener.rewriter is None  # with the model itself, which reads all of the prompt
        return self.rest.dense_window_of(trained) if filters else self.rest.window_of(trained)

    def transform_model(self, model: Any, length: int) -> AbstractContextManager[Any]:
        return self.rest.transform_model(model, length)

    def filter_prompt(self, model: Any, ids: Tensor) -> Tensor | None:
        return self.shortener.filter_prompt(model, ids)

    def prefill_cache(self, shape: CacheShape, prompt_tokens: int) -> KVCache:
        return self.rest.prefill_cache(shape, prompt_tokens)

    def observes(self) -> frozenset[Observation]:
        return self.rest.observes()

    def compress(self, record: PrefillRecord) -> KVCache:
        return self.rest.compress(record)
