"""Prefill and greedy decoding of one sequence, by hand: the library's ``generate`` has no place between the two.

Nothing of the checkpoint's generation config leaks in (some ship a repetition penalty): greedy means the argmax of the
raw logits. All of the model's end tokens stop it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lcbench.kv.cache import KVCache
from lcbench.kv.observe import Observation, union
from lcbench.kv.record import PrefillRecord
from lcbench.models import adapter
from lcbench.models.info import LoadedModel


def prefill(
    loaded: LoadedModel,
    ids: Sequence[int],
    *,
    observe: Iterable[Observation] = (),
    cache: KVCache | None = None,
    chunk: int | None = None,
    question_tokens: int = 0,
) -> PrefillRecord:
    """Read a prompt once.

    Args:
        ids: token ids, length L >= 1.
        observe: wishes of the methods that will use the record.
        cache: the empty cache to read into; default a dense one (required for sharing the record).
        chunk: tokens a forward pass; None reads the prompt in one. The result is the same up to rounding.
        question_tokens: how many of the last tokens are the question.
    """
    shape = loaded.shape()
    length = len(ids)
    cache = KVCache.dense(shape.layers, expected=length) if cache is None else cache
    observers = {wish: wish.observer(shape.layers, length) for wish in union(observe)}
    watching = [list(observers.values())]
    tokens = torch.tensor([list(ids)], dtype=torch.int64, device=shape.device)
    positions = torch.arange(length, device=shape.device)[None]
    step = length if chunk is None else chunk
    logits = None
    for start in range(0, length, step):
        piece = slice(start, start + step)
        logits = adapter.forward(loaded.model, tokens[:, piece], positions[:, piece], [cache], watching)
    assert logits is not None
    return PrefillRecord(
        cache=cache,
        logits=logits[0, -1],
        shape=shape,
        scaling=loaded.info.scaling,
        observed={wish: observer.results for wish, observer in observers.items()},
        question_tokens=question_tokens,
    )


@dataclass(frozen=True)
class Generated:
    """What decoding produced.

    Attributes:
        ids: all new token ids, the stopping one included.
        stopped_by: "eos", "stop" (a stop token of the task), "finished" (the scorer reads no further) or "length".
    """

    ids: list[int]
    stopped_by: str

    @property
    def new_tokens(self) -> int:
        """Tokens of the answer: the closing end token is not counted."""
        return len(self.ids) - (self.stopped_by in ("eos", "stop"))


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
    """Greedy decoding after a prompt.

    Args:
        cache: of the prompt, compressed or not; it is appended to.
        logits: ``[vocab]`` at the last prompt token.
        max_new_tokens: most tokens to make, the stopping one included.
        min_new_tokens: end and stop tokens are forbidden before this many.
        stop_ids: token ids that end the answer besides the model's end tokens (samsum: the newline).
        finished: told the ids so far, says whether the scorer would read no further.
    """
    eos = set(loaded.info.eos_ids)
    ends = sorted(eos | set(stop_ids))
    device = logits.device
    ids: list[int] = []
    while len(ids) < max_new_tokens:
        if len(ids) < min_new_tokens and ends:
            logits = logits.clone()
            logits[torch.tensor(ends, device=device)] = -torch.inf
        token = int(torch.argmax(logits))
        ids.append(token)
        if token in eos:
            return Generated(ids, "eos")
        if token in stop_ids:
            return Generated(ids, "stop")
        if finished is not None and finished(ids):
            return Generated(ids, "finished")
        if len(ids) == max_new_tokens:
            break
        position = torch.tensor([[cache.seen]], dtype=torch.int64, device=device)
        step = torch.tensor([[token]], dtype=torch.int64, device=device)
        logits = adapter.forward(loaded.model, step, position, [cache])[0, -1]
    return Generated(ids, "length")
