"""Scaling one hidden channel that carries position, for queries and keys alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from lcbench.config.options import param
from lcbench.errors import BadValue, ModelError
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.layer import DenseLayer
from lcbench.kv.second_keys import SecondKeys
from lcbench.methods.base import Method, Traits
from lcbench.methods.calibration import Calibration, bound, load_json, missing
from lcbench.methods.extension import Extension
from lcbench.methods.registry import method
from lcbench.models import routing

if TYPE_CHECKING:
    from lcbench.models.info import ModelInfo

NAME = "positional-hidden"
FIRST, LAST = 10 / 32, 25 / 32  # layers 10 to 25 of 32, in proportion


@method(NAME, paper="arXiv:2406.02536", traits=Traits(family="extend", prefill="own", calibrate=NAME))
@dataclass(frozen=True)
class PositionalHidden(Extension):
    """Scales a hidden channel in which the model counts positions (arXiv:2406.02536, section 3; rules as in
    PositionalHidden/PositionalHidden), against its blindness for the middle of a text. The window stays as it is.

    In the layers `first` to `last` the attention's input has its `channels` multiplied by `factor` before queries and
    keys are made of it; values are made of the unscaled input. While the prompt is read all rows attend as ever, but
    the last `rows`, whose scaled queries see scaled keys; the scaled keys are what is cached, and every token after the
    prompt has query and key scaled. No byte is added to the cache.

    Channels come from `lcbench calibrate positional-hidden` or by hand. Published: 213 for Mistral-7B-Instruct-v0.2,
    1081 for Qwen1.5-7B-Chat, 2393 for Vicuna-7B and Llama-2-7B-chat (there with factor=-1), 1665 for Gemma-7B, all in
    layers 10 to 25; where a model has other than 32 layers they are taken in proportion. Methods that drop tokens by
    attention scores are refused on top of it, since the prompt's last rows attend otherwise than those before them.
    """

    proof: ClassVar[str] = (
        "Logits of tiny models, prompt and 64 forced tokens, against a model run by hand with scaled inputs, on Llama "
        "and on families that normalise keys or fuse projections; factor=1 is the plain model; rows before the last "
        "are those of the plain model in the first scaled layer; bytes are those of the full cache."
    )

    channels: tuple[int, ...] | None = param(None, "hidden channels that are scaled; none: as calibrated", minimum=0)
    factor: float = param(0.0, "what they are multiplied by")
    first: int | None = param(None, "first layer in which they are, from 0; none: 10 of 32 in proportion", minimum=0)
    last: int | None = param(None, "last such layer; none: 25 of 32 in proportion", minimum=0)
    rows: int = param(1, "last rows of the prompt that attend with scaled queries and keys", minimum=1)

    def __post_init__(self) -> None:
        if self.first is not None and self.last is not None and self.first > self.last:
            raise BadValue(f"{NAME}@first={self.first} is after last={self.last}.", "Write e.g. first=10,last=25.")

    @property
    def calibration(self) -> str:
        return "" if self.channels is not None or self._found is None else self._found.sha256

    @property
    def _found(self) -> Calibration | None:
        return getattr(self, "_calibration", None)

    @property
    def scaled(self) -> tuple[int, ...]:
        """The channels. Raises ModelError when none are known."""
        if self.channels is not None:
            return self.channels
        if self._found is None:
            raise missing(NAME)
        return tuple(int(channel) for channel in self._found.data["channels"])

    def extended(self, trained: int) -> int:
        return trained

    def bind(self, info: ModelInfo, home: Path) -> Method:
        self.layers(info.layers)
        if self.channels is not None and info.hidden:
            refuse_channels(self.channels, info.hidden)
        return self if self.channels is not None else bound(self, _calibration=load_json(NAME, info, home))

    def check(self, shape: CacheShape) -> None:
        self.layers(shape.layers)

    def refuse_method(self, method: Method) -> str:
        if method.reading is None:
            return "it reads the prompt in its own way"
        return "it scores tokens with attention, which here differs from row to row" if method.observes() else ""

    def layers(self, count: int) -> range:
        """The scaled layers of a model with so many. Raises ModelError where there are none."""
        first = int(FIRST * count) if self.first is None else self.first
        last = int(LAST * count) if self.last is None else self.last
        if not first <= last < count:
            raise ModelError(
                f"{NAME} would scale the layers {first} to {last}, and the model has 0 to {count - 1}.",
                "Set first and last to layers of this model.",
            )
        return range(first, last + 1)

    def transform_model(self, model: Any, length: int) -> AbstractContextManager[Any]:
        attentions = list(attention_modules(model))
        width = model.config.get_text_config(decoder=True).hidden_size
        refuse_channels(self.scaled, width)
        chosen = self.layers(len(attentions))
        return routing.other_input(model, {attentions[layer]: self._scale for layer in chosen})

    def _scale(self, hidden: Tensor) -> Tensor:
        """The attention's input ``[B, q, hidden]`` with its channels multiplied."""
        other = hidden.clone()
        other[..., list(self.scaled)] *= self.factor
        return other

    def prefill_cache(self, shape: CacheShape, prompt_tokens: int) -> KVCache:
        chosen = self.layers(shape.layers)
        layers: Sequence[DenseLayer] = [
            SecondKeys(expected=prompt_tokens, rows=self.rows) if i in chosen else DenseLayer(expected=prompt_tokens)
            for i in range(shape.layers)
        ]
        return KVCache(layers)


def refuse_channels(channels: Sequence[int], width: int) -> None:
    """Raises ModelError for channels that a model of so many hidden channels does not have."""
    if max(channels) >= width:
        raise ModelError(
            f"{NAME}@channels={max(channels)} is not one of the model's {width} hidden channels.",
            f"Use 0 to {width - 1}.",
        )


def attention_modules(model: Any) -> Iterator[nn.Module]:
    """The attention modules of a model in the order of its layers."""
    found = {int(m.layer_idx): m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "head_dim")}
    yield from (found[layer] for layer in sorted(found))
