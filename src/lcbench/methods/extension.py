"""What methods that extend a model's window have in common: the window they serve, the models they refuse, and that
other methods can work on the extended model (`methods.compose`).

`RopeChange` is the kind that replaces the rotary frequencies: a subclass says which. Nothing else of the model changes,
and the frequencies are put back when the method has run. `DistanceChange` is the kind that leaves the model alone and
changes at which distances its queries see keys. `RunByRun` is what methods with a long text's own kind of attention
share (`infllm`, `em-llm`, `longcache`).
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor

from lcbench.errors import ModelError
from lcbench.kv.distances import Distances
from lcbench.methods.base import AttentionMethod, Method, ModelTransform, WiderWindow
from lcbench.models import routing
from lcbench.models.info import trained_window
from lcbench.models.rope import Rope, observed_rope
from lcbench.models.rope_facts import RopeFacts, frequencies, inverse_frequencies, rope_facts

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo

_PLAIN = "Choose a model with plain rotary embedding (Llama-2 and 3, Mistral, Qwen2, SmolLM2, …)"
_BY_LENGTH = ("dynamic", "longrope")


@dataclass(frozen=True)
class Extension(WiderWindow, ModelTransform):
    """A method that makes a model serve longer texts, and on whose model others can work."""

    @property
    def reading(self) -> str | None:
        return self.id

    def dense_window_of(self, trained: int) -> int | None:
        return self.window_of(trained)

    def refuse_model(self, info: ModelInfo) -> None:
        """Refuse a model that cannot be extended in this way. Raises ModelError; called before any work."""

    def refuse_method(self, method: Method) -> str:
        """Why a method cannot work on the extended model, as the end of a sentence; "" where it can."""
        return ""

    def bind(self, info: ModelInfo, home: Path) -> Method:
        self.refuse_model(info)
        return self


class Angles(NamedTuple):
    """Frequencies in radians a position, fp32 ``[d / 2]``, and the factor on cosines and sines."""

    frequencies: Tensor
    scaling: float = 1.0


class Trained(NamedTuple):
    """What a model was trained with: base of the frequencies, rotated channels d, window L in tokens."""

    theta: float
    dims: int
    window: int

    def angles(self, ratio: float = 1.0) -> Tensor:
        """Its frequencies with the base multiplied by ``ratio``; fp32 ``[d / 2]``."""
        return inverse_frequencies(self.theta * ratio, self.dims)

    @property
    def exponent(self) -> float:
        """d / (d - 2): a base times s to this power divides the slowest frequency by s."""
        return self.dims / (self.dims - 2)


@dataclass(frozen=True)
class RopeChange(Extension):
    """An extension that replaces the rotary frequencies of a model that has plain ones."""

    @abstractmethod
    def angles(self, model: Trained, length: int) -> Angles:
        """The frequencies for a text of ``length`` tokens, answer included."""

    def transform_model(self, model: Any, length: int) -> AbstractContextManager[Any]:
        facts = rope_facts(model)
        refuse_stretched(self.name, type(model).__name__, facts)
        window = trained_window(model.config.get_text_config(decoder=True))
        return frequencies(model, *self.angles(Trained(facts.theta, facts.dims, window), length))

    def refuse_model(self, info: ModelInfo) -> None:
        refuse_stretched(self.name, info.name, info.rope)


def refuse_stretched(method: str, model: str, facts: RopeFacts) -> None:
    """Raises ModelError for a model whose rotary frequencies are not the plain ``theta^(-2i/d)``."""
    if facts.kind == "none":
        raise ModelError(f"{model} has no rotary position embedding for {method} to change.", f"{_PLAIN}.")
    if facts.kind == "by layer":
        raise ModelError(
            f"{model} has rotary frequencies of its own for each kind of layer, which {method} does not serve.",
            f"{_PLAIN}, or selfextend.",
        )
    if facts.kind != "default":
        raise ModelError(
            f"The rotary frequencies of {model} are stretched already ({facts.kind}), and {method} would replace that.",
            f"{_PLAIN}." if facts.kind in _BY_LENGTH else f"{_PLAIN}, or selfextend.",
        )
    if facts.dims < 4 or facts.theta <= 1:
        raise ModelError(f"The rotary frequencies of {model} cannot be read off its config.", f"{_PLAIN}.")


def refuse_moving_frequencies(method: str, info: ModelInfo) -> None:
    """Raises ModelError for a model whose cached keys may have other rotary frequencies than those of its next token
    ("dynamic", "longrope"); a method that gives cached keys other distances would turn them by the wrong ones."""
    if info.rope_follows_length:
        raise ModelError(
            f"{info.name} chooses its rotary frequencies by the length of the text, so that {method} could not "
            "move keys that are cached.",
            f"{_PLAIN}.",
        )


@dataclass(frozen=True)
class RunByRun(WiderWindow, AttentionMethod):
    """A method that reads a prompt in runs of its own and looks parts of the text up for each, which are then seen at
    other distances than they stand at; `runs` says how long they are."""

    turns: ClassVar[bool] = True

    @abstractmethod
    def runs(self) -> tuple[int, int]: ...

    def bind(self, info: ModelInfo, home: Path) -> Method:
        refuse_moving_frequencies(self.name, info)
        return super().bind(info, home)


@dataclass(frozen=True)
class DistanceChange(Extension):
    """An extension that leaves model and keys as they are and lets queries see far keys at other distances: a rule
    inside lcbench's attention, while the prompt is read and while decoding."""

    turns: ClassVar[bool] = True

    @abstractmethod
    def distances(self, rope: Rope | None, trained: int) -> Distances:
        """Those of a layer with this embedding, in a model trained for so many positions."""

    def transform_model(self, model: Any, length: int) -> AbstractContextManager[Any]:
        window = trained_window(model.config.get_text_config(decoder=True))
        return routing.distances(model, lambda: self.distances(observed_rope(), window))

    def refuse_model(self, info: ModelInfo) -> None:
        if info.rope.kind == "none":
            raise ModelError(f"{info.name} has no rotary position embedding for {self.name} to use.", f"{_PLAIN}.")
        refuse_moving_frequencies(self.name, info)

    def refuse_method(self, method: Method) -> str:
        if method.follows_distances:
            return ""
        if method.reading is None:
            return "it reads the prompt in its own way"
        return "it sees keys at distances of its own, or was not checked with others"
