"""One prompt through one method: what is held afterwards, what it cost, and what the steps after it looked at."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import split_items
from lcbench.config.spec import RunSpec
from lcbench.engine.generate import check_chunk, chosen_tokens, empty_cache, prefill
from lcbench.engine.inspection.inputs import (
    Read,
    Source,
    check_ids,
    check_length,
    read_id_list,
    read_prompt,
    read_text,
    row_of,
)
from lcbench.engine.inspection.text import joined, token_texts
from lcbench.errors import BadValue, UsageError
from lcbench.inspected import InspectedLayer, Inspection, Merging, Piece
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import LayerKV
from lcbench.kv.record import PrefillRecord
from lcbench.kv.witness import Restores, Witness, watching
from lcbench.methods.base import Method, require
from lcbench.methods.registry import resolve
from lcbench.models import adapter
from lcbench.models.identity import Say
from lcbench.models.info import LoadedModel
from lcbench.models.load import describe, load

_STEPS = 8  # taken where a method fetches or merges while decoding and nobody said how many
_ACTS_LATER = ("retrieve", "merge")
_STAY = ("window", "n_sink", "sinks", "recent", "protect_recent")  # parameters that name tokens which always stay


@dataclass(frozen=True)
class Request:
    """What `lcbench inspect` was asked for.

    Attributes:
        spec: model, one method, chat format, seed.
        source: of the prompt.
        steps: tokens fed after the prompt; None for as many as show what the method does.
        logits: whether the logits at each of them are wanted. force: file with their ids; None for greedy ones.
    """

    spec: RunSpec
    source: Source
    steps: int | None = None
    logits: bool = False
    force: Path | None = None


def inspect(request: Request, home: Path, say: Say) -> Inspection:
    """Everything from words to result, in the order in which mistakes are cheapest.

    Raises:
        LcbenchError: of many kinds, each with its next step.
    """
    spec, source = request.spec, request.source
    method = _one_method(spec)
    steps = request.steps
    if steps is None:
        steps = _STEPS if method.traits.family in _ACTS_LATER else 0
    forced = None if request.force is None else read_id_list(request.force, "--force")
    if forced is not None and len(forced) < steps:
        raise BadValue(
            f"--force {request.force} holds {len(forced)} token ids, and {steps} steps were asked for.",
            f"Ask for {len(forced)} steps, or add ids.",
        )
    ids = None if source.token_ids is None else read_id_list(source.token_ids, "--token-ids")
    row = None if source.task is None else row_of(source, home)
    text = None if source.prompt is None else read_text(source.prompt, "--prompt")
    turned_by = [method.id] if method.turns else []
    info, tokenizer = describe(spec.model, home, say=say, with_tokenizer=ids is None, turned_by=turned_by)
    if request.force is not None and forced is not None:
        check_ids(forced, info.vocab, "--force", request.force)
    check_chunk(info, spec.prefill_chunk, [method])
    require(method, info.shape(), info.name)
    method = method.bind(info, home)
    method.check(info.shape())
    if method.announcement():
        say(method.announcement())
    read = read_prompt(source, ids, row, text, spec, method, info, tokenizer, home)
    check_length(len(read.ids), steps, info, method)
    say(f"Loading {info.name}, then {len(read.ids):,} tokens through {method.id}.")
    loaded = load(spec.model, home, say=say, with_tokenizer=ids is None)
    fed = None if forced is None else forced[:steps]
    return examine(loaded, method, read, steps=steps, forced=fed, logits=request.logits, chunk=spec.prefill_chunk)


def _one_method(spec: RunSpec) -> Method:
    names = [name for text in spec.methods for name in split_items(text)]
    if len(names) != 1:
        raise UsageError(f"{len(names)} methods were given; one is inspected at a time.", "Give one --method.")
    return resolve(names[0])


def examine(
    loaded: LoadedModel,
    method: Method,
    read: Read,
    *,
    steps: int = 0,
    forced: Sequence[int] | None = None,
    logits: bool = False,
    chunk: int | None = None,
) -> Inspection:
    """Read a prompt, compress, take some steps.

    Args:
        method: bound to the model, which it serves.
        steps: tokens fed after the prompt. forced: their ids; None for those the method itself would choose.
        logits: keep those at each step. chunk: prompt tokens a forward pass.
    """
    shape, witness = loaded.shape(), Witness()
    given = read.before or (len(read.ids) if method.traits.family == "prompt" else 0)
    own = method.traits.prefill == "own"
    with ExitStack() as stack:
        stack.enter_context(method.transform_model(loaded.model, len(read.ids) + steps))
        stack.enter_context(method.adapt(loaded.model, read.ids, read.seed))
        read = _chosen(loaded, method, read)
        empty = empty_cache(loaded, method, len(read.ids))  # as `read_alone` does, once the tokens are chosen
        record = prefill(loaded, read.ids, observe=method.observes(), cache=empty, chunk=chunk)
        torch.manual_seed(read.seed)
        with watching(witness):
            cache = method.compress(record)
        kept, nbytes = [_positions(store, shape.kv_heads) for store in cache.layers], _bytes_by_layer(cache)
        total, resident = sum(nbytes), cache.resident_nbytes
        if method.traits.memory == "simulated":
            total = resident = method.logical_nbytes(shape, len(read.ids))
            nbytes = _shared_out(total, shape.layers)
        exact = record
        if own and any(isinstance(store, Restores) for store in cache.layers):
            exact = prefill(loaded, read.ids, chunk=chunk)
        errors = [_errors(store, exact, i) for i, store in enumerate(cache.layers)]
        fed, fetched, rows = _walk(loaded, cache, record.logits, steps, forced, witness, keep=logits)
    return Inspection(
        model=loaded.info.name,
        method=method.id,
        memory=method.traits.memory,
        ids=tuple(read.ids),
        texts=None if loaded.tokenizer is None else token_texts(loaded.tokenizer, read.ids),
        layers=tuple(
            InspectedLayer(kept[i], nbytes[i], errors[i], _merged(witness, i, len(kept[i])), fetched[i])
            for i in range(shape.layers)
        ),
        kv_bytes=total,
        kv_bytes_full=shape.full_bytes(read.before or len(read.ids)),
        resident_bytes=resident,
        pieces=read.pieces,
        shortened_from=given,
        remark=_remark(method, read, given, kept, errors) or _nothing_fetched(method, fetched, len(fed)),
        fed=tuple(fed),
        logits=rows,
    )


def _chosen(loaded: LoadedModel, method: Method, read: Read) -> Read:
    """What a method reads of a prompt, where it chooses its tokens with the model itself."""
    with torch.inference_mode():
        ids, kept = chosen_tokens(loaded, method, read.ids)
    if kept is None:
        return read
    stay, pieces = set(kept.tolist()), []
    if loaded.tokenizer is not None:
        for i, text in enumerate(token_texts(loaded.tokenizer, read.ids)):
            pieces.append(Piece(text, "kept" if i in stay else "cut"))
    return replace(read, ids=ids[0].tolist(), pieces=joined(pieces), before=read.before or len(read.ids))


def _remark(
    method: Method,
    read: Read,
    given: int,
    kept: Sequence[Sequence[Sequence[int]]],
    errors: Sequence[Sequence[tuple[float, float]] | None],
) -> str:
    """What a reader may not expect of this method on this prompt; "" for nothing."""
    if given:
        return _uncut(method, read, given)
    measured = [one for layer in errors for one in layer or ()]
    if measured and not any(key or value for key, value in measured):
        newest = method.parameters.get("residual_length")
        why = f": it keeps the newest {newest} tokens exact (residual_length={newest})" if newest else ""
        return f"{method.id} holds the prompt's {len(read.ids):,} tokens as the model made them{why}."
    return _over_budget(method, len(read.ids), kept)


def _nothing_fetched(method: Method, fetched: Sequence[object], steps: int) -> str:
    """That a method which looks parts of a prompt up did not."""
    if method.traits.family not in ("retrieve", "memory") or not steps or any(fetched):
        return ""
    return f"{method.id} looked nothing up in the {steps} steps after this prompt."


def _over_budget(method: Method, tokens: int, kept: Sequence[Sequence[Sequence[int]]]) -> str:
    """Why more stays of a short prompt than the budget says, as it does where a window is never given up."""
    budget = getattr(method, "budget", None)
    if method.traits.family not in ("evict", "merge") or not isinstance(budget, Budget):
        return ""
    heads = [len(head) for layer in kept for head in layer]
    mean, wanted = sum(heads) / max(1, len(heads)), budget.resolve(tokens)
    if mean < wanted + 1:
        return ""
    fixed = [f"{name}={value}" for name, value in method.parameters.items() if name in _STAY and value.isdecimal()]
    why = f": {', '.join(fixed)} stays whatever the budget" if fixed else ""
    share = f"{budget} of this prompt" if budget.ratio else "its budget"
    return f"{method.id} keeps {mean:,.1f} tokens, mean over layers and heads, and {share} is {wanted:,}{why}."


def _uncut(method: Method, read: Read, given: int) -> str:
    """Why a method that shortens prompts left this one as it was; "" where it did not."""
    if len(read.ids) != given or any(piece.kind != "kept" for piece in read.pieces):
        return ""
    budget = next((f"{name}={value}" for name, value in method.parameters.items() if name.endswith("budget")), "")
    if method.rewriter is None and budget:
        return f"{method.id} cut nothing: the prompt's {given:,} tokens are within its budget ({budget})."
    return f"{method.id} cut nothing of the prompt's {given:,} tokens."


def _positions(store: LayerKV, kv_heads: int) -> list[list[int]]:
    """Held text positions of each stored head, ascending."""
    held = store.positions()
    rows = held.expand(kv_heads, -1) if held.ndim == 1 else held
    return [sorted(position for position in row if position >= 0) for row in rows.tolist()]


def _bytes_by_layer(cache: KVCache) -> list[int]:
    """Bytes of each layer's memory, each storage once, in the first layer that holds it: they sum up to
    `KVCache.storage_nbytes`."""
    counted: set[int] = set()
    found = []
    for store in cache.layers:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in store.tensors() if t.numel()}
        found.append(sum(size for at, size in storages.items() if at not in counted))
        counted |= set(storages)
    return found


def _shared_out(total: int, layers: int) -> list[int]:
    """A number of bytes over layers of equal size; what does not divide goes to the first ones."""
    return [total // layers + (i < total % layers) for i in range(layers)]


def _errors(store: LayerKV, exact: PrefillRecord, index: int) -> list[tuple[float, float]] | None:
    """``||x' - x|| / ||x||`` over the held prompt tokens, for keys and values of each stored head."""
    if not isinstance(store, Restores):
        return None
    pairs, held, layer = store.restored(), store.positions(), exact.layer(index)
    copies = max(1, len(pairs) // layer.key.shape[0])
    found = []
    for head, (key, value) in enumerate(pairs):
        places = held if held.ndim == 1 else held[head]
        places = places[places >= 0].to(layer.key.device)
        kv = head // copies
        found.append((_relative(key, layer.key[kv, places]), _relative(value, layer.value[kv, places])))
    return found


def _relative(restored: Tensor, exact: Tensor) -> float:
    exact = exact.double()
    size = float(exact.norm())
    return float((restored.double() - exact).norm()) / size if size else 0.0


def _walk(
    loaded: LoadedModel,
    cache: KVCache,
    logits: Tensor,
    steps: int,
    forced: Sequence[int] | None,
    witness: Witness,
    *,
    keep: bool,
) -> tuple[list[int], list[list[list[list[int]] | None]], list[list[float]] | None]:
    """Feed tokens one by one: their ids, what each layer fetched in each step, and the logits at each of them."""
    shape, numbers = loaded.shape(), {id(store): i for i, store in enumerate(cache.layers)}
    fed: list[int] = []
    rows: list[list[float]] = []
    by_layer: list[list[list[list[int]] | None]] = [[] for _ in cache.layers]
    for step in range(steps):
        token = int(logits.argmax()) if forced is None else forced[step]
        fed.append(token)
        witness.fetched.clear()
        ids = torch.tensor([[token]], dtype=torch.int64, device=shape.device)
        at = torch.tensor([[cache.seen]], dtype=torch.int64, device=shape.device)
        with watching(witness):
            logits = adapter.forward(loaded.model, ids, at, [cache])[0, -1]
        if keep:
            rows.append(logits.float().tolist())
        told = {numbers[id(store)]: places for store, places in witness.fetched if id(store) in numbers}
        for i, of_layer in enumerate(by_layer):
            heads = [sorted(set(place.tolist())) for place in told[i]] if i in told else None
            of_layer.append(heads * shape.kv_heads if heads is not None and len(heads) == 1 else heads)
    if all(heads is None for of_layer in by_layer for heads in of_layer):
        by_layer = [[] for _ in cache.layers]
    return fed, by_layer, rows if keep else None


def _merged(witness: Witness, layer: int, heads: int) -> list[list[Merging]] | None:
    """Merges of a layer, head by head; None where nothing was merged in any layer."""
    if not witness.merged:
        return None
    found: list[list[Merging]] = [[] for _ in range(heads)]
    for number, head, one in witness.merged:
        if number == layer:
            found[head].append(Merging(one.sources, one.into))
    return found
