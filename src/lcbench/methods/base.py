"""What a method is: a frozen dataclass of parameters, traits that say what the engine may do, and a few hooks.

The engine calls the same hooks for every method, in this order; each has a do-nothing default:

    bind(info, home)           the method with what was calibrated for this model (see `methods.calibration`)
    window_of(trained)         how many positions it serves on a model trained for so many
    transform_model(model, n)  context in which the model runs on a text of n tokens (RoPE edits)
    rewriter                   what shortens the prompt's text before it is tokenized (prompt compression)
    filter_prompt(model, ids)  which of the prompt's tokens are read at all
    adapt(model, lesson, seed) context in which one prompt is read and answered (training at test time)
    prefill_cache(shape, L)    the cache that the prompt is read into (methods that change prefill attention)
    native_state(model)        the same for a model that brings its own cache along
    observes()                 what must be recorded while the shared prefill runs
    compress(record)           the cache that decoding goes on with

The classes below name the usual kinds and leave one hook to write: `Scorer` (importance of each token),
`CacheTransform` (a record to a cache), `AttentionMethod` (own attention in both phases), `PromptTransform`,
`ModelTransform`. Methods that act while decoding return stores that do (`kv.layer.DecodePolicy`, `kv.ring.RingLayer`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import identifier, options_of, param
from lcbench.errors import ModelError
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.layer import DenseLayer, LayerKV
from lcbench.kv.observe import Observation
from lcbench.kv.pick import highest
from lcbench.kv.record import LayerRecord, PrefillRecord, take
from lcbench.methods.rewriting import Helper, PromptText
from lcbench.models.native import NativeState

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo

QUARTER = Budget(ratio=0.25)
Family = Literal["baseline", "quantize", "evict", "merge", "retrieve", "prompt", "extend", "memory", "architecture"]
Needs = Literal["none", "calibration", "training"]


@dataclass(frozen=True)
class Traits:
    """What the engine may assume of a method; tests hold methods to it.

    Attributes:
        family: room of the method, and its category in lists (`methods.taxonomy`).
        prefill: "shared" when the prompt's forward pass is the unmodified dense one, else "own".
        memory: "real" when dropped bytes are freed, "simulated" when they only count as dropped.
        stackable: whether forks may decode together in one batch.
        calibrate: the calibration it reads, by the name that `lcbench calibrate NAME` makes it under (with default
            parameters; several joined by ", "), "" for none.
        training: what somebody must have trained before (a classifier, other weights), "" for nothing.
    """

    family: Family
    prefill: Literal["shared", "own"] = "shared"
    memory: Literal["real", "simulated"] = "real"
    stackable: bool = True
    calibrate: str = ""
    training: str = ""

    @property
    def needs(self) -> Needs:
        """What must be there before a run: weights of somebody's training, a calibration, or neither."""
        return "training" if self.training else "calibration" if self.calibrate else "none"


@dataclass(frozen=True)
class Method:
    """Base of all methods. Subclasses are frozen dataclasses whose fields, made with `param`, are the user's
    parameters; `lcbench.methods.registry.method` gives them a name, a paper and traits. ``proof`` says in a sentence
    or two what the method's own tests compare it with; the class docstring and it make its section of the manual.
    ``turns`` says that the method turns queries or keys to other positions and so needs the model's rotary embedding as
    numbers (`models.rope.observed_rope`): a model whose embedding is not understood is then refused before any work.
    ``learns`` says that `adapt` wants the text of each prompt; such a method is not stackable, and is read a prompt
    beyond the window with its middle cut even where the task does not cut. ``follows_distances``
    says that its scores and stores see far keys at the distances of the layer's rule (`kv.distances`)."""

    name: ClassVar[str]
    paper: ClassVar[str]
    traits: ClassVar[Traits]
    proof: ClassVar[str] = ""
    turns: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    follows_distances: ClassVar[bool] = False

    @property
    def leaves_subset(self) -> bool:
        """Whether `compress` leaves chosen prompt tokens as they were, head by head, to which nothing happens while
        decoding: what a quantizer can take over (`methods.compose`)."""
        return False

    @property
    def reading(self) -> str | None:
        """Methods of equal reading can share a prefill: "" is the unmodified dense pass over the prompt, the id of a
        context extension is the dense pass of the extended model, and None shares with nobody."""
        return "" if self.traits.prefill == "shared" else None

    @property
    def id(self) -> str:
        """Name and the parameters that were written or are not the default, e.g. ``kivi@bits=2``; the folder name of
        its predictions."""
        return identifier(self.name, self)

    @property
    def parameters(self) -> dict[str, str]:
        """All parameters as canonical text."""
        return options_of(self)

    @property
    def calibration(self) -> str:
        """sha256 of the calibration file in use, for run.json; "" for a method that needs none or is not bound."""
        return ""

    def bind(self, info: ModelInfo, home: Path) -> Method:
        """The method with what was calibrated for this model below ``home``; itself where it needs nothing.

        Called once, as soon as the model is known and before `check`. Raises ModelError naming the command that makes
        the calibration where it is absent.
        """
        return self

    def logical_nbytes(self, shape: CacheShape, prompt_tokens: int) -> int:
        """Bytes that a prompt's cache would hold if what is masked were gone; asked of methods whose trait is
        ``memory="simulated"`` alone, and then what tables show (flagged)."""
        return shape.full_bytes(prompt_tokens)

    def check(self, shape: CacheShape) -> None:
        """Refuse a model this method cannot serve. Raises ModelError saying why; called before any work."""

    def announcement(self) -> str:
        """A sentence for the user about what the first use on this machine waits for; "" for nothing."""
        return ""

    @property
    def leaves_model_alone(self) -> bool:
        """Whether the method has no part in how the model runs and what its cache holds: it serves every model."""
        hooks = ("transform_model", "adapt", "filter_prompt", "prefill_cache", "observes", "compress")
        return all(getattr(type(self), hook) is getattr(Method, hook) for hook in hooks)

    def runs(self) -> tuple[int, int] | None:
        """Prompt tokens that act together, and how many before them may come in any pieces; None where pieces do not
        matter. A prompt fed in pieces (``--prefill-chunk``) is not to be cut within such a run."""
        return None

    def window_of(self, trained: int) -> int | None:
        """Positions that prompt and answer may take together on a model trained for ``trained``; None for any number.
        Only methods that extend a model's window change it (`WiderWindow`)."""
        return trained

    def dense_window_of(self, trained: int) -> int | None:
        """Positions that a dense pass of the model serves, as `transform_model` makes it: what a method that filters
        the prompt with it may read (`filter_prompt`)."""
        return trained

    def transform_model(self, model: Any, length: int) -> AbstractContextManager[Any]:
        """Context in which the model runs with this method. Must restore the model on exit.

        Args:
            length: tokens of the longest text read in it, answer included. A method whose model depends on it must
                not be ``stackable``: then it is that of the one text.
        """
        return nullcontext()

    @property
    def rewriter(self) -> PromptTransform | None:
        """What rewrites the prompt's text before the model reads it; None where nothing does."""
        return None

    def filter_prompt(self, model: Any, ids: Tensor) -> Tensor | None:
        """Which tokens of a prompt are read: called with the loaded model, inside `transform_model`, before the
        prefill of a method with ``prefill="own"``.

        Args:
            model: routed through `models.adapter`. ids: ``[L]`` int64 on its device.

        Returns:
            Positions ``[k]`` ascending; the prompt is then those k tokens. None for all of them.
        """
        return None

    def adapt(self, model: Any, lesson: Sequence[int], seed: int) -> AbstractContextManager[Any]:
        """Context in which the model reads and answers one prompt; entered for methods that `learns` alone.

        Must restore the model on exit, to the bit.

        Args:
            lesson: token ids of the prompt's context (of its whole text where the question is not known apart), never
                cut. seed: of whatever is drawn, one for each sample.
        """
        return nullcontext()

    def prefill_cache(self, shape: CacheShape, prompt_tokens: int) -> KVCache:
        """The empty cache that the prompt of ``prompt_tokens`` tokens is read into."""
        return KVCache.dense(shape.layers, expected=prompt_tokens)

    def native_state(self, model: Any) -> NativeState:
        """The empty cache of a model that brings its own (`models.native`); such models are refused to a method that
        overrides another hook and not this one."""
        return NativeState.empty(model)

    def observes(self) -> frozenset[Observation]:
        """What must be recorded during the prefill."""
        return frozenset()

    def compress(self, record: PrefillRecord) -> KVCache:
        """The cache decoding goes on with. Never modifies the record."""
        return record.cache.fork()


def require(method: Method, shape: CacheShape, model: str) -> None:
    """Refuse, before anything is bound or loaded, a model whose kind of cache a method cannot serve.

    Args:
        model: its name, for people.

    Raises:
        ModelError: saying why.
    """
    if shape.state is None or method.leaves_model_alone or type(method).native_state is not Method.native_state:
        return
    raise ModelError(
        f"{model} runs on the cache it brings along, which holds a state or latents; "
        f"{method.id} works on keys and values alone.",
        "Use --method full, or a model whose layers are all plain attention.",
    )


class CacheTransform(Method, ABC):
    """Turns a prefill record into a cache layer by layer (quantizing, merging, dropping).

    ``takes_subset`` says that `layer` makes the same of a record that holds part of a prompt (`LayerRecord.kept`), so
    that a method which drops tokens can come before.
    """

    takes_subset: ClassVar[bool] = False

    @abstractmethod
    def layer(self, record: LayerRecord, shape: CacheShape) -> LayerKV:
        """The store that replaces one dense layer. Must not keep views of the record's tensors."""

    def compress(self, record: PrefillRecord) -> KVCache:
        return KVCache([self.layer(record.layer(i), record.shape) for i in range(record.shape.layers)])


@dataclass(frozen=True)
class Scorer(Method, ABC):
    """Keeps the tokens with the highest scores, per KV head, within a budget.

    A subclass only says how important each token is; budgets, ties, forks and layers are done here. A prompt that
    fits its budget is left alone.

    Class attributes:
        draws: whether scores are drawn at random; all others are computed once a prompt and serve every budget.
    """

    draws: ClassVar[bool] = False

    budget: Budget = param(QUARTER, "tokens kept of the prompt: a ratio (0.25) or a number (512)")

    @property
    def leaves_subset(self) -> bool:
        return True

    @abstractmethod
    def score(self, record: LayerRecord) -> Tensor:
        """Importance ``[Hk, L]``, higher is kept; ``+inf`` for tokens that must stay. fp32.

        With ``[H, L]`` every query head gets a copy of its own of the tokens it chooses, and is charged for it. Must
        not depend on the budget: several budgets rank by the same scores.
        """

    @property
    def _scored_by(self) -> tuple[object, ...]:
        """All that a score depends on besides the record: two budgets of one method rank by the same scores."""
        parameters = {name: text for name, text in self.parameters.items() if name != "budget"}
        return (type(self), self.calibration, *sorted(parameters.items()))

    def kept_tokens(self, prompt_tokens: int) -> int:
        """Tokens kept of a prompt, per head; override it where a window must fit: ``resolve(L, at_least=w + 1)``."""
        return self.budget.resolve(prompt_tokens)

    def compress(self, record: PrefillRecord) -> KVCache:
        keep = self.kept_tokens(record.length)
        if keep >= record.length:
            return record.cache.fork()
        layers: list[LayerKV] = []
        for i in range(record.shape.layers):
            layer = record.layer(i)
            scores = self.score(layer) if self.draws else layer.once(self._scored_by, partial(self.score, layer))
            index = top_positions(scores, keep)
            key, value = take(layer, index)
            layers.append(DenseLayer(key, value, kept=index, seen=record.length))
        return KVCache(layers)


class AttentionMethod(Method, ABC):
    """Attends in its own way while reading the prompt and while decoding; its prefill cannot be shared."""

    @abstractmethod
    def prefill_cache(self, shape: CacheShape, prompt_tokens: int) -> KVCache:
        """A cache of stores whose ``attend`` is the method."""


class PromptTransform(Method, ABC):
    """Shortens the text of a prompt before the model reads it; its prefill is over another text and cannot be shared.

    What it makes of a text depends on its parameters, its helper and the text alone (and on the question, if it
    ``asks``), so the engine computes it once and keeps it for every model (`engine.rewriting`).

    Class attributes:
        asks: whether `rewrite` reads the question or the instruction.
        revision: raised when the same input gives another output, so that what older versions kept is not used.
    """

    asks: ClassVar[bool] = False
    revision: ClassVar[int] = 1

    @property
    def rewriter(self) -> PromptTransform:
        return self

    @property
    def idle(self) -> bool:
        """Whether these parameters leave every text as it is; then no helper is loaded."""
        return False

    @property
    def whole_prompt(self) -> bool:
        """Whether all of the prompt is rewritten, the question too, and not its context alone."""
        return False

    @property
    def helper(self) -> Helper | None:
        """The model it reads texts with; it is loaded once for all prompts, before the model under test."""
        return None

    @property
    def depends_on(self) -> dict[str, str]:
        """What decides the output besides text and helper: by default all parameters and the calibration."""
        return {**self.parameters, "calibration": self.calibration}

    def check_helper(self, helper: Any) -> None:
        """Refuse a helper that cannot serve. Raises ModelError."""

    @abstractmethod
    def rewrite(self, prompt: PromptText, helper: Any) -> str:
        """The passage that takes the place of ``prompt.passage``; a function of its arguments alone.

        Args:
            helper: of the kind that `helper` asks for; None where it asks for none.
        """


@dataclass(frozen=True)
class WiderWindow(Method, ABC):
    """A method that serves texts beyond the window its model was trained for. ``extended`` says how long; ``reach``
    overrides it."""

    reach: int | None = param(
        None, "tokens that prompt and answer may take together; none: what the method gives the model", minimum=1
    )

    def window_of(self, trained: int) -> int | None:
        return self.extended(trained) if self.reach is None else self.reach

    @abstractmethod
    def extended(self, trained: int) -> int | None:
        """Positions served of a model trained for ``trained``; None for any number."""


class ModelTransform(Method, ABC):
    """Changes the model or its RoPE while it runs; its prefill cannot be shared."""

    @abstractmethod
    def transform_model(self, model: Any, length: int) -> AbstractContextManager[Any]: ...


def top_positions(scores: Tensor, keep: int) -> Tensor:
    """Positions of the ``keep`` highest scores of each row ``[Hk, L]``, ascending; ties keep the lower position.

    Returns:
        ``[Hk, keep]`` int64.
    """
    return highest(scores, keep)
