"""Models that keep a state beside keys and values, or instead of them: run through the cache that they bring along.

lcbench's own cache (`kv.layer`) stores what attention layers need. Linear attention, state space models and short
convolutions keep a state of fixed size, each family in its own form, and so do the layers between the attention layers
of hybrids. Such a model is asked as it is: it reads a prompt in one forward pass and then gets token after token, and
its cache stays what transformers made of it. `NativeState` is that cache for one sequence, with its bytes and copies.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lcbench.models.families import FAMILIES, Family
from lcbench.models.quiet import quiet
from lcbench.models.shape import StateShape

#: Names under which models take their cache and give it back.
_CACHE_NAMES = ("past_key_values", "cache_params", "state")


def family_of(model: Any) -> Family | None:
    """The family of a model, on the meta device too; None for a model that lcbench's own cache serves."""
    return FAMILIES.get(model.config.get_text_config(decoder=True).model_type)


def install(model: Any) -> None:
    """Choose the attention kernel: the fused one where the model has it, for hybrids read long prompts."""
    if attention_of(model) == "sdpa":
        model.set_attn_implementation("sdpa")


def attention_of(model: Any) -> str:
    """What computes the attention of a family's models: "sdpa", "eager", or "none" for one without attention layers."""
    if not _attends(model.config.get_text_config(decoder=True)):
        return "none"
    return "sdpa" if model._supports_sdpa and model._can_set_attn_implementation() else "eager"


def _attends(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return getattr(config, "num_attention_heads", None) is not None
    return any(("attention" in kind and kind != "linear_attention") or kind.startswith("hybrid") for kind in kinds)


class NativeState:
    """The cache of one sequence, as the model keeps it.

    Attributes:
        layers: N of the model. seen: tokens gone through.
    """

    def __init__(self, family: Family, layers: int) -> None:
        self._family, self.layers, self.seen = family, layers, 0
        self._cache: Any = None
        self._on_modules: list[Tensor | None] = []

    @classmethod
    def empty(cls, model: Any) -> NativeState:
        """For a model of a family, before its first token."""
        family = family_of(model)
        assert family is not None, "a model whose cache is lcbench's own"
        return cls(family, int(model.config.get_text_config(decoder=True).num_hidden_layers))

    def forward(self, model: Any, ids: Tensor, positions: Tensor, *, all_logits: bool = False) -> Tensor:
        """Feed new tokens.

        Args:
            ids, positions: ``[1, q]`` int64.

        Returns:
            Logits ``[1, q or 1, vocab]``.
        """
        if self.seen and ids.shape[1] > 1 and not self._family.continues:
            steps = [
                self._forward(model, ids[:, i : i + 1], positions[:, i : i + 1], all_logits)
                for i in range(ids.shape[1])
            ]
            return torch.cat(steps, dim=1) if all_logits else steps[-1]
        return self._forward(model, ids, positions, all_logits)

    def _forward(self, model: Any, ids: Tensor, positions: Tensor, all_logits: bool) -> Tensor:
        takes = _parameters(model)
        name = next(name for name in _CACHE_NAMES if name in takes)
        arguments: dict[str, Any] = {"input_ids": ids, "use_cache": True, name: self._cache}
        if "position_ids" in takes:
            arguments["position_ids"] = positions
        if "logits_to_keep" in takes:
            arguments["logits_to_keep"] = 0 if all_logits else 1
        if self._cache is None and self._family.on_modules:  # such a model gives no cache back: hand it one
            from transformers import DynamicCache

            self._cache = arguments[name] = DynamicCache(config=model.config)
        self._to_modules(model)
        output = self._run(model, arguments)
        self._from_modules(model)
        given = getattr(output, name, None)
        self._cache = self._cache if given is None else given
        self.seen += ids.shape[1]
        logits: Tensor = output.logits
        return logits if all_logits else logits[:, -1:]

    def _run(self, model: Any, arguments: Mapping[str, Any]) -> Any:
        with quiet():  # transformers warns of every kernel that is not installed
            return model(**arguments)

    def _to_modules(self, model: Any) -> None:
        """Where state lies on the modules: put this sequence's there, or nothing before its first token."""
        held = self._on_modules or [None] * len(_stateful(model, self._family))
        for (module, name), tensor in zip(_stateful(model, self._family), held, strict=True):
            setattr(module, name, tensor)

    def _from_modules(self, model: Any) -> None:
        """Take it away again: the next sequence starts without it."""
        self._on_modules = [getattr(module, name) for module, name in _stateful(model, self._family)]
        for module, name in _stateful(model, self._family):
            setattr(module, name, None)

    def by_layer(self) -> list[list[Tensor]]:
        """Every tensor held, keys, values and states, layer by layer. A tensor for all layers counts to the first.

        Counters that a cache keeps (int64 scalars) are no part of what is held.
        """
        held: list[list[Tensor]] = [[] for _ in range(self.layers)]
        for index, part in _parts(self._cache, self.layers):
            held[index] += _tensors(part)
        held[0] += [tensor for tensor in self._on_modules if tensor is not None]
        return held

    def entries(self, layer: int) -> int:
        """Tokens whose keys a layer holds; 0 for one without attention."""
        layers = getattr(self._cache, "layers", None)
        keys = None if layers is None or layer >= len(layers) else getattr(layers[layer], "keys", None)
        return 0 if keys is None or not keys.numel() else int(keys.shape[-2])

    def fork(self) -> NativeState:
        """A copy that shares nothing, in tensors of exactly the size they need."""
        other = copy.copy(self)
        # deepcopy takes from its memo what is there under an object's id: copies that are no views of larger tensors
        memo = {
            id(tensor): tensor.clone(memory_format=torch.contiguous_format)
            for held in self.by_layer()
            for tensor in held
        }
        other._cache = copy.deepcopy(self._cache, memo)
        other._on_modules = [None if tensor is None else memo[id(tensor)] for tensor in self._on_modules]
        return other


def may_step_together(model: Any, states: Sequence[NativeState]) -> bool:
    """Whether `step_together` can take these sequences."""
    family = family_of(model)
    return family is not None and family.stacks and all(state.seen for state in states)


def step_together(model: Any, states: Sequence[NativeState], ids: Tensor) -> Tensor:
    """One new token of each of several sequences in one pass, for a family that `stacks`.

    Args:
        states: R of them, none empty. ids: ``[R, 1]`` int64.

    Returns:
        Logits ``[R, 1, vocab]``.
    """
    mine = [[tensor for held in state.by_layer() for tensor in held] for state in states]
    joined = [torch.cat(parts) for parts in zip(*mine, strict=True)]
    batch = copy.copy(states[0])
    memo = {id(tensor): whole for tensor, whole in zip(mine[0], joined, strict=True)}
    batch._cache = copy.deepcopy(states[0]._cache, memo)
    logits = batch._forward(model, ids, torch.full_like(ids, batch.seen), all_logits=False)
    after = [tensor for held in batch.by_layer() for tensor in held]
    for row, (state, tensors) in enumerate(zip(states, mine, strict=True)):
        for tensor, whole in zip(tensors, after, strict=True):
            tensor.copy_(whole[row : row + 1])
        state.seen += 1
    return logits


def _parameters(model: Any) -> Mapping[str, Any]:
    return inspect.signature(type(model).forward).parameters


def _stateful(model: Any, family: Family) -> list[tuple[Any, str]]:
    """Modules and the names of their attributes that hold state."""
    return [(m, name) for m in model.modules() for name in family.on_modules if name in m.__dict__]


def _parts(cache: Any, layers: int) -> Iterator[tuple[int, Any]]:
    """A cache in pieces, each with the layer it belongs to."""
    if cache is None:
        return
    if isinstance(cache, Sequence):  # one part a layer, or tensors of all layers
        yield from ((i if isinstance(part, Mapping) else 0, part) for i, part in enumerate(cache))
        return
    for name, value in vars(cache).items():
        if isinstance(value, Mapping) or (isinstance(value, list) and len(value) <= layers):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            yield from ((key if isinstance(key, int) and key < layers else 0, part) for key, part in items)
        elif name != "config":
            yield 0, value


def _tensors(part: Any) -> list[Tensor]:
    """Floating-point tensors in a piece of a cache: a tensor, a collection, or one layer's object."""
    if isinstance(part, Tensor):
        return [part] if part.is_floating_point() and part.numel() else []
    if isinstance(part, Mapping):
        return [tensor for value in part.values() for tensor in _tensors(value)]
    if isinstance(part, list | tuple):
        return [tensor for value in part for tensor in _tensors(value)]
    if hasattr(part, "keys") or hasattr(part, "conv_states"):
        return [tensor for value in vars(part).values() for tensor in _tensors(value)]
    return []


def measure(model: Any) -> StateShape:
    """Bytes of one sequence's cache as a function of its length, measured on caches of one and two tokens.

    Args:
        model: of a family; on the meta device, where nothing is computed. It is left as it was.
    """
    with _experts_without_choice(model), _every_index_chosen():
        one, two = (_cache_of(model, tokens) for tokens in (1, 2))
    sizes = [[sum(t.numel() * t.element_size() for t in held) for held in state.by_layer()] for state in (one, two)]
    windows = _windows(one)
    growth = [later - first for first, later in zip(*sizes, strict=True)]
    family, config = family_of(model), model.config.get_text_config(decoder=True)
    assert family is not None
    return StateShape(
        state_bytes=sum(sizes[0]) - sum(growth),
        token_bytes=sum(g for g, window in zip(growth, windows, strict=True) if window is None),
        window_bytes=sum(g for g, window in zip(growth, windows, strict=True) if window is not None),
        window=max((w for w in windows if w is not None), default=0),
        attention_layers=sum(g > 0 for g in growth),
        hidden=int(config.hidden_size),
        scan_bytes=_scan_bytes(model, family, one),
        continues=family.continues,
        stacks=family.stacks,
    )


def _scan_bytes(model: Any, family: Family, state: NativeState) -> int:
    """Memory a prompt's token takes while a layer runs without compiled kernels, beside activations.

    Mamba-1: three fp32 tensors as large as a state. Mamba-2: about four rows of a chunk's table a head, and four copies
    of B and C. (Measured: peaks of 1024 and 4096 tokens are within a tenth of what this makes of them.)
    """
    if family.scans:
        return 12 * max((tensor.numel() for held in state.by_layer() for tensor in held), default=0)
    names = ("num_heads", "chunk_size", "ssm_state_size")
    mixers = [m for m in model.modules() if all(isinstance(getattr(m, name, None), int) for name in names)]
    return max((16 * m.num_heads * (m.chunk_size + m.ssm_state_size) for m in mixers), default=0)


def _every_index_chosen() -> contextlib.AbstractContextManager[Any]:
    """Let ``torch.nonzero`` find everything on the meta device, where it else refuses: indexed attention (Qwen4-Exp)
    asks it which tokens are visible, and what is cached does not depend on the answer."""
    from torch.fx.experimental import _config

    config: Any = _config  # it makes `patch` at run time
    patched: contextlib.AbstractContextManager[Any] = config.patch(meta_nonzero_assume_all_nonzero=True)
    return patched


@contextlib.contextmanager
def _experts_without_choice(model: Any) -> Iterator[None]:
    """Compute experts without looking at what the router chose: on the meta device it has chosen nothing."""
    if not model._can_set_experts_implementation():
        yield
        return
    before = model.get_experts_implementation()
    model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def _cache_of(model: Any, tokens: int) -> NativeState:
    state = NativeState.empty(model)
    device = next(model.parameters()).device
    ids = torch.zeros(1, tokens, dtype=torch.int64, device=device)
    with torch.inference_mode():
        state.forward(model, ids, torch.arange(tokens, device=device)[None])
    return state


def _windows(state: NativeState) -> list[int | None]:
    """Entries that a layer with a sliding window keeps between steps; None for any other layer."""
    layers = getattr(state._cache, "layers", None) or []
    found = [getattr(layer, "sliding_window", None) for layer in layers]
    found += [None] * (state.layers - len(found))
    return [None if window is None else int(window) - 1 for window in found]
