"""A forward pass through caches of ours: models are prepared once, and transformers gets a cache that stores nothing.

The only file, with `models.quantized_layer`, that touches how transformers is built inside. Attention goes through
`models.routing`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from lcbench.errors import ModelError
from lcbench.models import head, linear, native, routing, sdpa
from lcbench.models.rope_length import forget_longer_texts, rows_of_one_length
from lcbench.models.routing import ATTENTION_NAME
from lcbench.models.stores import CacheStore, Observer, ReadsInRuns

_CHOOSE = "Choose a Llama, Mistral, Qwen, Gemma, Phi-3, SmolLM, OLMo, GPT-OSS or Falcon model."


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
    out, _ = routing.attend(self, query, key, value, None)
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
    with routing.through(model, rows, observers) as under_way:
        output = model(
            input_ids=input_ids,
            position_ids=positions,
            past_key_values=_PassThrough(rows[0].seen),
            use_cache=True,
            logits_to_keep=0 if all_logits else 1,
        )
    if len(under_way.layers_seen) != len(rows[0].layers):
        raise ModelError(
            f"{type(model).__name__} ran {len(under_way.layers_seen)} of {len(rows[0].layers)} layers "
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
    with routing.through(model, [cache]):
        output = model(
            input_ids=ids[None],
            position_ids=torch.arange(len(ids), device=ids.device)[None],
            past_key_values=_PassThrough(0),
            use_cache=True,
        )
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
            "Use --method full, or a model whose layers are all plain attention.",
        )
    states = [row.native for row in rows]
    if len(states) > 1 and input_ids.shape[1] == 1 and native.may_step_together(model, states):
        return native.step_together(model, states, input_ids)
    logits = [
        row.native.forward(model, input_ids[i : i + 1], positions[i : i + 1], all_logits=all_logits)
        for i, row in enumerate(rows)
    ]
    return torch.cat(logits)
