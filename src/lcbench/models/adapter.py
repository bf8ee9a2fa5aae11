"""The only file that touches how transformers is built inside: attention dispatch and the cache shim.

transformers calls the attention function named in the config with already rotated queries, keys and values
(specs: "Register a custom attention function"). Ours is ``lcb_attention``: it hands the new keys and values of each
row to that row's own layer store and lets the store attend, so that a method decides what is kept and what is seen.
No mask function is registered under the name, therefore transformers builds no mask: causality, sliding windows and
ragged lengths are the store's business.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import MethodType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from lcbench.errors import ModelError
from lcbench.models import head, linear, native, sdpa
from lcbench.models.rope_length import forget_longer_texts, rows_of_one_length
from lcbench.models.rule import AttentionRule

ATTENTION_NAME = "lcb_attention"
_CHOOSE = "Choose a Llama, Mistral, Qwen, Gemma, Phi-3, SmolLM, OLMo, GPT-OSS or Falcon model."


class LayerStore(Protocol):
    """What the adapter needs of one layer's cache of one sequence (`kv.layer.LayerKV`)."""

    @property
    def seen(self) -> int: ...

    @classmethod
    def attend_rows(
        cls, stores: Sequence[Any], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
    ) -> Tensor:
        """Take the new keys and values ``[R, Hk, q, d]`` of R stores of this class and answer their queries
        ``[R, H, q, d]``."""
        ...


class CacheStore(Protocol):
    """What the adapter needs of the cache of one sequence (`kv.cache.KVCache`)."""

    @property
    def layers(self) -> Sequence[LayerStore]: ...

    @property
    def seen(self) -> int: ...


@runtime_checkable
class ReadsInRuns(Protocol):
    """A cache whose prompt goes through the whole model run by run, since what the model foretells after one run
    decides how the next is read."""

    @property
    def reading(self) -> bool:
        """Whether prompt tokens are still to come."""
        ...

    def runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The runs that the tokens ``start`` to ``stop`` make up."""
        ...

    def before_run(self, ids: Tensor) -> None:
        """The ids ``[q]`` of the run that comes."""
        ...

    def after_run(self, ids: Tensor, logits: Tensor) -> None:
        """The same ids and the logits ``[q, vocab]`` after each of them."""
        ...


class Observer(Protocol):
    """Watches the attention of one sequence in a forward pass; must not change what it is given.

    ``observe`` gets, for one layer: query ``[H, q, d]`` of the new tokens and key ``[Hk, q, d]``,
    value ``[Hk, q, d]`` of the same tokens (all after RoPE), the position of the first of them, the layer's store
    *after* they were appended and attended, and the layer's rule.
    """

    def observe(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        store: LayerStore,
        rule: AttentionRule,
    ) -> None: ...


@dataclass
class _Session:
    rows: Sequence[CacheStore]
    observers: Sequence[Sequence[Observer]] = ()
    layers_seen: set[int] = field(default_factory=set)
    model: Any = None
    attention: torch.nn.Module | None = None


_session: contextvars.ContextVar[_Session | None] = contextvars.ContextVar("lcbench_session", default=None)
_distances: contextvars.ContextVar[tuple[tuple[Any, Callable[[], Any]], ...]] = contextvars.ContextVar(
    "lcbench_distances", default=()
)


_instead: contextvars.ContextVar[tuple[tuple[Any, dict[Any, tuple[Tensor, Tensor]]], ...]] = contextvars.ContextVar(
    "lcbench_instead", default=()
)


@contextmanager
def other_input(model: Any, change: Mapping[torch.nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Context in which some attention modules of a model make queries and keys of a changed input, values of their own.

    Stores are told (`kv.layer.LayerKV.beside`); those that do not take both get the changed ones in their place.

    Args:
        change: attention module to what its input ``[B, q, hidden]`` becomes.
    """
    held: dict[Any, tuple[Tensor, Tensor]] = {}
    busy: set[Any] = set()

    def made(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        session = _session.get()
        if module in busy or session is None or session.model is not model:
            return
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        busy.add(module)
        try:
            held[module] = made_of(module, change[module](hidden), kwargs["position_embeddings"])
        finally:
            busy.discard(module)

    handles = [module.register_forward_pre_hook(made, with_kwargs=True) for module in change]
    token = _instead.set(((model, held), *_instead.get()))
    try:
        yield
    finally:
        _instead.reset(token)
        for handle in handles:
            handle.remove()


def _replaced(
    stores: Sequence[Any], query: Tensor, key: Tensor, other_query: Tensor, other_key: Tensor
) -> tuple[Tensor, Tensor]:
    """The queries and keys that stores are given, where there are others of a changed input."""
    both = [store.beside(other_query[row], other_key[row]) for row, store in enumerate(stores)]
    assert all(both) or not any(both), "rows of one pass are prompts or answers"
    return (query, key) if all(both) else (other_query, other_key)


@contextmanager
def distances(model: Any, make: Callable[[], Any]) -> Iterator[None]:
    """Context in which the layers of a model see far keys at other distances.

    Args:
        make: asked in every layer, while it attends, for what goes into `AttentionRule.distances`.
    """
    token = _distances.set(((model, make), *_distances.get()))
    try:
        yield
    finally:
        _distances.reset(token)


class _PassThrough(Cache):
    """A transformers cache that stores nothing: new keys and values go straight to the attention function."""

    def __init__(self, seen: int) -> None:
        super().__init__(layers=[])
        self._seen = seen

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._seen + query_length, 0


class HeldCache(_PassThrough):
    """What a step of `generate` hands to the next: the caches of its rows. Stores nothing of its own.

    Args:
        rows: a cache a sequence. seen: tokens of the batch so far, padding included.
    """

    def __init__(self, rows: Sequence[CacheStore], seen: int) -> None:
        super().__init__(seen)
        self.rows = list(rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        raise ModelError("Beam search reorders caches, which a compressed cache does not allow.", "Use num_beams=1.")

    def crop(self, max_length: int) -> None:
        raise ModelError(
            "Assisted generation takes tokens back, which a compressed cache does not allow.", "Generate without it."
        )


@contextlib.contextmanager
def routed(model: Any) -> Iterator[None]:
    """The attention of a model goes through ours inside the context, and as before outside; no-op after `install`.

    Raises:
        ModelError: as `check_supported`; Falcon models, which are changed for good.
    """
    before = model.config._attn_implementation
    if before == ATTENTION_NAME:
        yield
        return
    check_supported(model)
    if model.config.model_type == "falcon":
        raise ModelError(
            f"The attention of {type(model).__name__} cannot be routed for a while only.",
            "Load it with lcbench.load_model.",
        )
    model.set_attn_implementation(ATTENTION_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function registered as ``lcb_attention``.

    Args:
        query: ``[B, H, q, d]`` after RoPE. key, value: ``[B, Hk, q, d]``, the new tokens only.
        scaling: factor on the logits (``d ** -0.5`` unless the model says otherwise).
        sliding_window, softcap, s_aux: see `AttentionRule` (window, softcap, sinks).

    Returns:
        Output ``[B, q, H, d]`` and no weights.
    """
    session = _session.get()
    if session is None:
        raise ModelError(
            "A model prepared by lcbench was called directly.",
            "Use lcbench.models.adapter.forward, or load it again.",
        )
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    session.layers_seen.add(layer)
    session.attention = module
    rule = AttentionRule(
        query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        int(sliding_window) if sliding_window else None,
        None if softcap is None else float(softcap),
        None if s_aux is None else s_aux.detach(),
        next((make() for model, make in _distances.get() if model is session.model), None),
    )
    stores = [cache.layers[layer] for cache in session.rows]
    for owner, held in _instead.get():
        if owner is session.model and module in held:
            query, key = _replaced(stores, query, key, *held.pop(module))
    starts = [store.seen for store in stores]
    twins, count = len(query), len(stores)
    query, key, value = query[:count], key[:count], value[:count]
    out = _attend_rows(stores, query, key, value, rule).expand(twins, -1, -1, -1)
    for row, observers in enumerate(session.observers):
        for observer in observers:
            observer.observe(layer, query[row], key[row], value[row], starts[row], stores[row], rule)
    return out.transpose(1, 2).contiguous(), None


def _attend_rows(
    stores: Sequence[LayerStore], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
) -> Tensor:
    """Output ``[B, H, q, d]``; rows whose stores are of one class are handed to that class together."""
    classes: dict[type[LayerStore], list[int]] = {}
    for row, store in enumerate(stores):
        classes.setdefault(type(store), []).append(row)
    if len(classes) == 1:
        return type(stores[0]).attend_rows(stores, query, key, value, rule)
    out = torch.empty(*query.shape[:3], value.shape[-1], dtype=query.dtype, device=query.device)
    for kind, rows in classes.items():
        index = _index(tuple(rows), query.device)
        out[index] = kind.attend_rows([stores[row] for row in rows], query[index], key[index], value[index], rule)
    return out


@lru_cache(maxsize=256)
def _index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Row numbers on the device; the same ones come layer after layer, and a list would be sent there each time."""
    with torch.inference_mode(False):  # for every later pass, one that records gradients, too
        return torch.tensor(rows, device=device)


AttentionInterface.register(ATTENTION_NAME, _attention)


def observed() -> tuple[Any, torch.nn.Module]:
    """The model that is running and the attention module whose queries are being observed; for observers only."""
    session = _session.get()
    assert session is not None, "no forward pass is under way"
    assert session.attention is not None, "no layer has attended yet"
    return session.model, session.attention


class _Catch:
    """A cache that keeps nothing but the queries and keys it is given."""

    seen = 0

    def __init__(self) -> None:
        self.made: list[tuple[Tensor, Tensor]] = []

    @property
    def layers(self) -> _Catch:
        return self

    def __getitem__(self, layer: int) -> _Catch:
        return self

    @classmethod
    def attend_rows(
        cls, stores: Sequence[_Catch], query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
    ) -> Tensor:
        stores[0].made.append((query, key))
        return torch.zeros_like(query)


def query_of(attention: torch.nn.Module, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """The queries ``[H, n, d]`` that an attention module makes of hidden states ``[1, n, hidden]``.

    Args:
        position_embeddings: the cosines and sines ``[1, n, …]`` its layer would hand to it.
    """
    return made_of(attention, hidden, position_embeddings)[0][0]


def made_of(
    attention: torch.nn.Module, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The queries ``[B, H, n, d]`` and keys ``[B, Hk, n, d]`` that an attention module makes of ``[B, n, hidden]``;
    arguments as `query_of`."""
    catch = _Catch()
    token = _session.set(_Session([catch] * len(hidden)))  # type: ignore[list-item]
    try:
        attention(hidden_states=hidden, position_embeddings=position_embeddings, attention_mask=None)
    finally:
        _session.reset(token)
    return catch.made[0]


def check_supported(model: Any) -> None:
    """Refuse, before any work, models whose attention cannot be routed through ours.

    Raises:
        ModelError: the class does not take a custom attention function, or is not a plain decoder.
    """
    name = type(model).__name__
    config = model.config
    if config.model_type == "falcon":
        if config.alibi:
            raise ModelError(
                f"{name} adds position biases (ALiBi) to its logits, which lcbench's attention does not compute.",
                _CHOOSE,
            )
    elif not model._can_set_attn_implementation():
        raise ModelError(
            f"{name} does not let its attention be replaced, so no cache method can run on it.",
            _CHOOSE,
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder model; lcbench evaluates decoder-only models.", "")
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"{name} has layers of a kind ({', '.join(sorted(kinds))}) that lcbench does not know to feed.",
            "Choose a model whose layers are all attention, or one that `lcbench list models` names as running on its "
            "own cache.",
        )


def install(model: Any) -> None:
    """Route the attention of ``model`` through ours, for good; a model that runs on its own cache keeps its own. Either
    chooses in fp32 where it is a 16-bit model (`models.head`) and multiplies by oneDNN on an x86 CPU (`models.linear`).

    Raises:
        ModelError: as `check_supported`.
    """
    if native.family_of(model) is not None:
        _products(model)
        native.install(model)
        return
    check_supported(model)
    _products(model)
    if model.config.model_type == "falcon":
        model.config._attn_implementation = ATTENTION_NAME  # no mask is built for it
        for module in model.modules():
            if hasattr(module, "layer_idx") and hasattr(module, "query_key_value"):
                module.forward = MethodType(_falcon_attention, module)
    else:
        model.set_attn_implementation(ATTENTION_NAME)


def _products(model: Any) -> None:
    head.sharpen(model)
    linear.by_onednn(model)


def _falcon_attention(
    self: Any,
    hidden_states: Tensor,
    alibi: None = None,
    attention_mask: None = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Stands in for the attention of Falcon models, which calls no function that could be named in the config."""
    from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

    assert position_embeddings is not None
    query, key, value = self._split_heads(self.query_key_value(hidden_states))  # [B, q, heads, d]
    if self.new_decoder_architecture:  # there each KV head comes once for every query head of its group
        copies = self.num_heads // self.num_kv_heads
        key, value = key[:, :, ::copies], value[:, :, ::copies]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    out, _ = _attention(self, query, key, value, None)
    return self.dense(out.flatten(2)), None


def _sums_its_own_way(model: Any, input_ids: Tensor) -> bool:
    """Whether a lone token would be computed otherwise than among others: in 16 bits on a CPU, where torch multiplies
    a matrix with one vector by another kernel than with two or more. Such a token goes twice, so that what a sequence
    answers does not depend on its neighbours."""
    return input_ids.numel() == 1 and input_ids.device.type == "cpu" and model.dtype in (torch.float16, torch.bfloat16)


@torch.inference_mode()
def forward(
    model: Any,
    input_ids: Tensor,
    positions: Tensor,
    rows: Sequence[CacheStore],
    observers: Sequence[Sequence[Observer]] = (),
    *,
    all_logits: bool = False,
) -> Tensor:
    """One forward pass over new tokens of one or more sequences, through their own caches.

    Where a model's angles follow the longest position of a batch, rows that would change each other's go apart, and no
    pass is changed by a longer text that came before it (`models.rope_length`).

    Args:
        model: prepared by `install`.
        input_ids: ``[R, q]`` int64, the new tokens of each row.
        positions: ``[R, q]`` int64, their positions in the text (never derived from the cache's length).
        rows: R caches; each gets its row's keys and values appended.
        observers: those of each row, which watch every layer of the pass; () for none at all.
        all_logits: logits of all q tokens instead of the last alone.

    Returns:
        Logits ``[R, q or 1, vocab]``, fp32 (of a quantized head, as it makes them).
    """
    with sdpa.without_cudnn():
        if not any(isinstance(row, ReadsInRuns) and row.reading for row in rows):
            return _one_pass(model, input_ids, positions, rows, observers, all_logits=all_logits)
        parts = [
            _in_runs(model, input_ids[i : i + 1], positions[i : i + 1], row, observers[i : i + 1], all_logits)
            for i, row in enumerate(rows)
        ]
    return torch.cat(parts)


def _in_runs(
    model: Any,
    input_ids: Tensor,
    positions: Tensor,
    row: CacheStore,
    observers: Sequence[Sequence[Observer]],
    all_logits: bool,
) -> Tensor:
    """`forward` of one row, in the runs that its cache asks for."""
    if not (isinstance(row, ReadsInRuns) and row.reading):
        return _one_pass(model, input_ids, positions, [row], observers, all_logits=all_logits)
    start, parts = row.seen, list[Tensor]()
    for first, stop in row.runs(start, start + input_ids.shape[1]):
        piece = slice(first - start, stop - start)
        ids = input_ids[0, piece]
        row.before_run(ids)
        logits = _one_pass(model, ids[None], positions[:, piece], [row], observers, all_logits=True)
        row.after_run(ids, logits[0])
        parts = [*parts, logits] if all_logits else [logits[:, -1:]]
    return torch.cat(parts, dim=1)


def _one_pass(
    model: Any,
    input_ids: Tensor,
    positions: Tensor,
    rows: Sequence[CacheStore],
    observers: Sequence[Sequence[Observer]],
    *,
    all_logits: bool,
) -> Tensor:
    """`forward` of tokens that go through the model together."""
    groups = rows_of_one_length(model.config.get_text_config(decoder=True), positions)
    if len(groups) > 1:
        logits: Tensor | None = None
        for group in groups:
            mine, watching = [rows[row] for row in group], [observers[row] for row in group] if observers else ()
            out = _one_pass(model, input_ids[group], positions[group], mine, watching, all_logits=all_logits)
            logits = out.new_empty(len(rows), *out.shape[1:]) if logits is None else logits
            logits[group] = out
        assert logits is not None
        return logits
    if native.family_of(model) is not None:
        return _forward_native(model, input_ids, positions, rows, observers, all_logits)
    forget_longer_texts(model)
    if _sums_its_own_way(model, input_ids):
        input_ids, positions = input_ids.expand(2, -1), positions.expand(2, -1)
    session = _Session(rows, observers, model=model)
    token = _session.set(session)
    try:
        output = model(
            input_ids=input_ids,
            position_ids=positions,
            past_key_values=_PassThrough(rows[0].seen),
            use_cache=True,
            logits_to_keep=0 if all_logits else 1,
        )
    finally:
        _session.reset(token)
    if len(session.layers_seen) != len(rows[0].layers):
        raise ModelError(
            f"{type(model).__name__} ran {len(session.layers_seen)} of {len(rows[0].layers)} layers "
            "through lcbench's attention.",
            "This model class is not supported; please report it.",
        )
    return output.logits[: len(rows)]  # type: ignore[no-any-return]


def loss(model: Any, ids: Tensor, cache: CacheStore) -> Tensor:
    """Mean next-token cross-entropy of a text, with gradients where they are enabled.

    Args:
        model: prepared by `install`. ids: ``[n]`` int64, n >= 2. cache: empty, of dense stores.

    Returns:
        fp32 scalar.
    """
    forget_longer_texts(model)
    session = _Session([cache], model=model)
    token = _session.set(session)
    try:
        output = model(
            input_ids=ids[None],
            position_ids=torch.arange(len(ids), device=ids.device)[None],
            past_key_values=_PassThrough(0),
            use_cache=True,
        )
    finally:
        _session.reset(token)
    return torch.nn.functional.cross_entropy(output.logits[0, :-1].float(), ids[1:])


def _forward_native(
    model: Any,
    input_ids: Tensor,
    positions: Tensor,
    rows: Sequence[Any],
    observers: Sequence[Sequence[Observer]],
    all_logits: bool,
) -> Tensor:
    """`forward` of a model that brings its own cache: each row through its `NativeState`, together where a family's
    states can be put side by side, else one after another."""
    if any(watching for watching in observers) or not all(hasattr(row, "native") for row in rows):
        raise ModelError(
            f"{type(model).__name__} runs on its own cache, which nothing can watch or replace.",
            "Use --method full, or a model whose layers are all attention.",
        )
    states = [row.native for row in rows]
    if len(states) > 1 and input_ids.shape[1] == 1 and native.may_step_together(model, states):
        return native.step_together(model, states, input_ids)
    logits = [
        row.native.forward(model, input_ids[i : i + 1], positions[i : i + 1], all_logits=all_logits)
        for i, row in enumerate(rows)
    ]
    return torch.cat(logits)


def quantized_layer(
    backend: str, *, bits: int, axis_key: int, axis_value: int, group_size: int, residual_length: int
) -> Any:
    """One layer of transformers' own quantized cache (`QuantizedCache`), empty.

    Its ``update(key, value)`` takes ``[1, Hk, q, d]`` and returns all keys and values that the step sees.

    Args:
        backend: "quanto" or "hqq". The rest is what transformers calls nbits, axis_key, axis_value, q_group_size and
            residual_length.

    Raises:
        ImportError: the backend's package, or the class in this version of transformers, is missing.
        ValueError: a value that the backend refuses.
    """
    from transformers import cache_utils

    name = {"quanto": "QuantoQuantizedLayer", "hqq": "HQQQuantizedLayer"}[backend]
    if not hasattr(cache_utils, name):
        raise ImportError(f"transformers has no {name}")
    return getattr(cache_utils, name)(
        nbits=bits,
        axis_key=axis_key,
        axis_value=axis_value,
        q_group_size=group_size,
        residual_length=residual_length,
    )


def quantized_layer_contents(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values ``[Hk, n, d]`` that a step would see of a `quantized_layer`: decoded ones, then the residual."""
    pairs = ((layer._quantized_keys, layer.keys), (layer._quantized_values, layer.values))
    keys, values = (
        torch.cat([part[0] for part in (layer._dequantize(codes), exact) if part.numel()], dim=1)
        for codes, exact in pairs
    )
    return keys, values


def quantized_layer_tensors(layer: Any) -> Iterator[Tensor]:
    """Every plain tensor behind a `quantized_layer`: codes, scales, zero points, the exact residual."""
    held = (layer._quantized_keys, layer._quantized_values, layer.keys, layer.values)
    yield from _plain_tensors(held)


def _plain_tensors(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        if hasattr(thing, "__tensor_flatten__"):  # a wrapper class: optimum-quanto's, say
            names, _ = thing.__tensor_flatten__()
            yield from _plain_tensors(tuple(getattr(thing, name) for name in names))
        else:
            yield thing
    elif isinstance(thing, tuple | list):
        for part in thing:
            yield from _plain_tensors(part)
    elif isinstance(thing, Mapping):
        yield from _plain_tensors(tuple(thing.values()))
