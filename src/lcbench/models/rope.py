"""A layer's rotary position embedding as numbers, for methods that rotate queries or keys themselves.

Where the frequencies lie differs between model families, and so does which channels form a pair. What is read off a
model is therefore checked against the attention module itself: it must rotate random states as the numbers say.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lcbench.errors import ModelError
from lcbench.models import adapter, routing

_PROBED = (1, 2, 5)  # positions; the fastest pair turns by a radian from one to the next


@dataclass(frozen=True)
class Rope:
    """Rotation of pairs of channels by position times frequency.

    Attributes:
        frequencies: radians a position, fp32 ``[r / 2]``; the first r of the d channels are rotated.
        scaling: factor on rotated channels (yarn, longrope), else 1.
        interleaved: channels 2i and 2i + 1 are a pair; else i and i + r / 2.
    """

    frequencies: Tensor
    scaling: float
    interleaved: bool

    def apply(self, x: Tensor, positions: Tensor) -> Tensor:
        """What the model makes of ``x [..., n, d]`` at ``positions [n]`` (or ``[Hk, n]``, head by head), in fp32."""
        angles = positions[..., None].float() * self.frequencies
        return self.turn(x, angles.cos() * self.scaling, angles.sin() * self.scaling)

    def undo(self, x: Tensor, positions: Tensor) -> Tensor:
        """What the model had before it rotated ``x [..., n, d]`` at ``positions``, as `apply`; in fp32."""
        angles = positions[..., None].float() * self.frequencies
        return self.turn(x, angles.cos() / self.scaling, -angles.sin() / self.scaling)

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``x [..., d]`` with each pair (a, b) made (a cos - b sin, b cos + a sin), fp32; cos, sin ``[…, r / 2]``."""
        first, second = self._pairs
        x = x.float()
        out = x.clone()
        a, b = x[..., first], x[..., second]
        out[..., first], out[..., second] = a * cos - b * sin, b * cos + a * sin
        return out

    @property
    def _pairs(self) -> tuple[slice, slice]:
        r = 2 * self.frequencies.numel()
        return (slice(0, r, 2), slice(1, r, 2)) if self.interleaved else (slice(0, r // 2), slice(r // 2, r))


def observed_rope() -> Rope | None:
    """The embedding in force in the layer that is attending; None where the layer has none (NoPE).

    For observers of a forward pass (`models.stores.Observer`) and for stores that rotate keys or queries themselves.
    Frequencies that depend on the prompt's length are those of this pass.

    Raises:
        ModelError: the model rotates in a way that is not understood.
    """
    model, attention = routing.observed()
    found = _found.get(attention)
    if found is None or not found.valid:
        found = _find(model, attention)
        _found[attention] = found
    rotary = found.rotary()
    return None if found.interleaved is None else _read(rotary, found.kind, found.interleaved)


@dataclass(frozen=True)
class _Found:
    """Where an attention module's frequencies lie and how they are used; probed once, as it never changes.

    Attributes:
        owner, name: the module that holds the embedding, and as what. rotary: the embedding.
        kind: prefix of its buffers where it has one set a layer type. interleaved: see `_convention`.
    """

    owner: weakref.ref[Any]
    name: str
    rotary: weakref.ref[Any]
    kind: str | None
    interleaved: bool | None

    @property
    def valid(self) -> bool:
        """Whether the model still uses this embedding: some methods put another in its place."""
        owner, rotary = self.owner(), self.rotary()
        return owner is not None and rotary is not None and getattr(owner, self.name, None) is rotary


_found: weakref.WeakKeyDictionary[Any, _Found] = weakref.WeakKeyDictionary()


def check_readable(skeleton: Any, turned_by: Sequence[str]) -> None:
    """Refuse, before any weight is read, a model whose embedding `observed_rope` would not understand.

    One attention module of each kind is filled with random numbers in fp32 and probed: that takes a fraction of a
    second and the memory of one layer's projections. An embedding that cannot be made without the weights is left to
    the prefill.

    Args:
        skeleton: the model on the meta device; not to be used for anything else afterwards.
        turned_by: the methods that need it, for the message.

    Raises:
        ModelError: the model rotates in a way that is not understood, or has no rotary embedding.
    """
    try:
        _probe(skeleton)
    except ModelError as error:
        raise ModelError(f"{', '.join(turned_by)} cannot run: {error.message}", error.next_step) from None


def _probe(skeleton: Any) -> None:
    place = _embedding(skeleton)
    try:
        rotary = type(place[2])(place[2].config)
    except Exception:  # code of the model's own may take anything
        return
    adapter.install(skeleton)
    probed: set[str | None] = set()
    for attention in skeleton.modules():
        if not hasattr(attention, "layer_idx") or not type(attention).__name__.endswith("Attention"):
            continue
        kind = _kind(skeleton, attention, rotary)
        if kind in probed:
            continue
        if _convention(skeleton, _filled(attention), rotary, kind) is not None:  # else a layer without: look further
            probed.add(kind)


def _filled(attention: Any) -> Any:
    """A copy of a module from the meta device with random numbers in its place."""
    copied = copy.deepcopy(attention).float().to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for tensor in (*copied.parameters(), *copied.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(-0.5, 0.5, generator=generator)
    return copied


def _embedding(model: Any) -> tuple[Any, str, Any]:
    """The module that holds the rotary embedding, as what, and the embedding."""
    places = ((owner, name, child) for owner in model.modules() for name, child in owner.named_children())
    place = next((p for p in places if type(p[2]).__name__.endswith("RotaryEmbedding")), None)
    if place is None:
        raise _unknown(model)
    return place


def _kind(model: Any, attention: Any, rotary: Any) -> str | None:
    """Prefix of the frequencies of a layer, where an embedding has one set a layer type."""
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None)
    kind = kinds[attention.layer_idx] if kinds else None
    return kind if kind is not None and hasattr(rotary, f"{kind}_inv_freq") else None


def _find(model: Any, attention: Any) -> _Found:
    owner, name, rotary = _embedding(model)
    kind = _kind(model, attention, rotary)
    interleaved = _convention(model, attention, rotary, kind)
    return _Found(weakref.ref(owner), name, weakref.ref(rotary), kind, interleaved)


def _read(rotary: Any, kind: str | None, interleaved: bool) -> Rope:
    prefix = "" if kind is None else f"{kind}_"
    scaling = getattr(rotary, f"{prefix}attention_scaling", 1.0)
    return Rope(getattr(rotary, f"{prefix}inv_freq").float().clone(), float(scaling), interleaved)


def _convention(model: Any, attention: Any, rotary: Any, kind: str | None) -> bool | None:
    """How the module pairs channels: True for interleaved, False for halves, None when it does not rotate."""
    width = model.config.get_text_config(decoder=True).hidden_size
    parameter = next(p for p in attention.parameters() if p.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, len(_PROBED), width, generator=generator).to(parameter.device, parameter.dtype)
    positions = torch.tensor(_PROBED, device=hidden.device)
    rotary = copy.deepcopy(rotary)  # some adapt their frequencies to the positions they are asked for
    try:
        cos, sin = rotary(hidden, positions[None], **({} if kind is None else {"layer_type": kind}))
        plain = routing.query_of(attention, hidden, (torch.ones_like(cos), torch.zeros_like(sin))).float()
        rotated = routing.query_of(attention, hidden, (cos, sin)).float()
        if torch.equal(plain, rotated):
            return None
        for interleaved in (False, True):
            guess = _read(rotary, kind, interleaved).apply(plain, positions)
            if (guess - rotated).abs().max() < 0.02 * plain.abs().max():
                return interleaved
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):
        raise _unknown(model) from None
    raise _unknown(model)


def _unknown(model: Any) -> ModelError:
    return ModelError(
        f"{type(model).__name__} has a position embedding that lcbench cannot take off its queries.",
        "Choose a Llama, Mistral, Qwen, Gemma, Phi-3, SmolLM, OLMo, GPT-OSS or Falcon model, or another method.",
    )
