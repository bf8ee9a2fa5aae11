"""Prefill, by hand: the library's ``generate`` has no place between reading a prompt and answering it.

Decoding is in `engine.stacked`; `decode` here is the same for one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import Tensor

from lcbench.engine.prefix import Beginning, Beginnings
from lcbench.engine.stacked import Generated, Rules, decode_rows
from lcbench.errors import BadValue, ModelError
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer
from lcbench.kv.native import NativeCache
from lcbench.kv.observe import Observation, PrefillObserver, union
from lcbench.kv.record import PrefillRecord
from lcbench.methods.base import Method
from lcbench.models import adapter
from lcbench.models.info import LoadedModel, ModelInfo

__all__ = ["Generated", "check_chunk", "chosen_tokens", "decode", "empty_cache", "prefill", "read_alone", "read_on"]

_QUESTION = 256  # tokens of a question that are read at once: attention over a compressed cache makes a q x n table


def prefill(
    loaded: LoadedModel,
    ids: Sequence[int] | Tensor,
    *,
    observe: Iterable[Observation] = (),
    cache: KVCache | None = None,
    chunk: int | None = None,
    question_tokens: int = 0,
    cuts: Sequence[int] = (),
    beginnings: Beginnings | None = None,
) -> PrefillRecord:
    """Read a prompt once.

    Args:
        ids: token ids, length L >= 1.
        observe: wishes of the methods that will use the record.
        cache: the empty cache to read into; default a dense one (required for sharing the record).
        chunk: tokens a forward pass; None reads the prompt (or each piece of it) in one. The result is the same up to
            rounding.
        question_tokens: how many of the last tokens are the question.
        cuts: lengths of beginnings that other prompts share, each below L: the prompt is read in pieces that end there.
        beginnings: where the state at a cut is looked for, and kept for others. For the default cache only.
    """
    shape = loaded.shape()
    tokens = ids if isinstance(ids, Tensor) else torch.tensor([list(ids)], dtype=torch.int64)
    tokens = tokens.view(1, -1).to(shape.device, non_blocking=True)
    length = tokens.shape[1]
    wishes = frozenset(union(observe))
    state: Beginning | None = None
    plain: list[int] = []
    if cuts and beginnings is not None:
        assert cache is None, "only dense prompts share their beginnings"
        plain = tokens[0].tolist()
        state = beginnings.longest(plain, cuts, wishes)
    if state is not None:
        cache, observers = _from_beginning(state, length)
    else:
        cache = _plain_cache(loaded, length) if cache is None else cache
        observers = {wish: wish.observer(shape.layers, length) for wish in wishes}
    positions = torch.arange(length, device=shape.device)[None]
    logits = None
    start = 0 if state is None else state.length
    for stop in (*(cut for cut in sorted(cuts) if cut > start), length):
        step = stop - start if chunk is None else chunk
        while start < stop:
            piece = slice(start, min(start + step, stop))
            logits = adapter.forward(
                loaded.model, tokens[:, piece], positions[:, piece], [cache], [list(observers.values())]
            )
            start = piece.stop
        if stop < length and beginnings is not None:
            beginnings.keep(plain[:stop], cache, observers)
    assert logits is not None
    return PrefillRecord(
        cache=cache,
        logits=logits[0, -1],
        shape=shape,
        scaling=loaded.info.scaling,
        observed={wish: observer.results for wish, observer in observers.items()},
        question_tokens=question_tokens,
    )


def read_alone(
    loaded: LoadedModel, method: Method, ids: Sequence[int] | Tensor, *, chunk: int | None = None
) -> PrefillRecord:
    """Read a prompt for one method: the tokens it chooses, into its own kind of cache, with what it wants observed."""
    tokens, _ = chosen_tokens(loaded, method, ids)
    cache = empty_cache(loaded, method, tokens.shape[-1])
    return prefill(loaded, tokens, observe=method.observes(), cache=cache, chunk=chunk)


def empty_cache(loaded: LoadedModel, method: Method, length: int) -> KVCache:
    """The cache that a prompt of ``length`` tokens is read into for a method that reads alone."""
    if loaded.info.state is not None:
        return NativeCache(method.native_state(loaded.model))
    return method.prefill_cache(loaded.shape(), length)


def _plain_cache(loaded: LoadedModel, length: int) -> KVCache:
    if loaded.info.state is not None:
        return NativeCache.empty(loaded.model)
    return KVCache.dense(loaded.info.layers, expected=length)


def check_chunk(info: ModelInfo, chunk: int | None, methods: Sequence[Method] = ()) -> None:
    """Raises ModelError where a prompt read in chunks is not the prompt read at once, BadValue where chunks would cut
    a method's runs."""
    if chunk is None:
        return
    for method in methods:
        size, first = method.runs() or (1, 0)
        if chunk % size or first % size:
            step = f", or make it a multiple of {size}" if first % size == 0 else ""
            raise BadValue(
                f"{method.id} reads prompts in runs of {size} tokens, and pieces of {chunk} tokens cut them.",
                f"Leave --prefill-chunk out{step}.",
            )
    if info.rope_follows_length:
        reason = "chooses its rotary frequencies by the length of the text"
    elif info.state is not None and not info.state.continues:
        reason = "reads several tokens at once only into an empty state"
    else:
        return
    raise ModelError(
        f"{info.name} {reason}, so a prompt read in chunks is not the prompt read at once.",
        "Leave --prefill-chunk out.",
    )


def chosen_tokens(loaded: LoadedModel, method: Method, ids: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
    """The tokens of a prompt that a method with a prefill of its own wants to read.

    Returns:
        Their ids ``[1, k]`` on the model's device, and their positions ``[k]`` in the prompt; None for all of them.
    """
    tokens = ids if isinstance(ids, Tensor) else torch.tensor([list(ids)], dtype=torch.int64)
    tokens = tokens.view(1, -1).to(loaded.shape().device, non_blocking=True)
    kept = method.filter_prompt(loaded.model, tokens[0])
    return (tokens, None) if kept is None else (tokens[:, kept], kept)


def _from_beginning(state: Beginning, length: int) -> tuple[KVCache, dict[Observation, PrefillObserver]]:
    """A cache and observers for a prompt of ``length`` tokens whose first ones have been read before."""
    layers = []
    for key, value, rule in state.layers:
        layer = DenseLayer(expected=length)
        layer.append(key, value)
        layer.rule = rule
        layers.append(layer)
    observers = {}
    for wish, observer in state.observers.items():
        copy = observer.fork(length)
        assert copy is not None, "only what can be forked is kept"
        observers[wish] = copy
    return KVCache(layers), observers


def read_on(loaded: LoadedModel, caches: Sequence[KVCache], ids: Sequence[int]) -> Tensor:
    """Read further tokens through the caches of several sequences, the same tokens for each.

    Args:
        caches: all with the same number of tokens seen. ids: at least one.

    Returns:
        Logits ``[R, vocab]`` at the last token.
    """
    device = loaded.shape().device
    tokens = torch.tensor([list(ids)], dtype=torch.int64, device=device).expand(len(caches), -1)
    positions = torch.arange(caches[0].seen, caches[0].seen + len(ids), device=device)[None].expand(len(caches), -1)
    logits = None
    for start in range(0, len(ids), _QUESTION):
        piece = slice(start, start + _QUESTION)
        logits = adapter.forward(loaded.model, tokens[:, piece], positions[:, piece], caches)
    assert logits is not None
    return logits[:, -1]


def decode(
    loaded: LoadedModel,
    cache: KVCache,
    logits: Tensor,
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    stop_ids: Collection[int] = (),
    finished: Callable[[list[int]], bool] | None = None,
) -> Generated:
    """Greedy decoding of one sequence after a prompt; arguments as `engine.stacked.Rules`.

    Args:
        cache: of the prompt, compressed or not; it is appended to.
        logits: ``[vocab]`` at the last prompt token.
    """
    rules = Rules(max_new_tokens, min_new_tokens, tuple(stop_ids), finished)
    return decode_rows(loaded, [cache], logits[None], rules)[0]
