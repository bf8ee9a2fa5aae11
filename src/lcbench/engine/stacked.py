"""Greedy decoding of many sequences in one batch, each with its own cache; those that end leave the batch.

Nothing of the checkpoint's generation config leaks in (some ship a repetition penalty): greedy means the argmax of the
raw logits. All of the model's end tokens stop a sequence.

One step is one forward pass over the newest token of every sequence. The ids stay on the device from one step to the
next; what the host must know (which token, which sequence ended) comes over in one transfer a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lcbench.kv.cache import KVCache
from lcbench.models import adapter
from lcbench.models.info import LoadedModel

# Two candidates whose logits differ by less than this share of the larger one are a near tie, by the model's dtype:
# where kernels sum in another order, the logits of one prompt come out up to about so far apart.
TIE = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1e-2}


@dataclass(frozen=True)
class Generated:
    """What decoding produced.

    Attributes:
        ids: all new token ids, the stopping one included.
        stopped_by: "eos", "stop" (a stop token of the task), "finished" (the scorer reads no further) or "length".
        near_ties: tokens of it that were chosen by less than `TIE`.
    """

    ids: list[int]
    stopped_by: str
    near_ties: int = 0

    @property
    def new_tokens(self) -> int:
        """Tokens of the answer: the closing end token is not counted."""
        return len(self.ids) - (self.stopped_by in ("eos", "stop"))


@dataclass(frozen=True)
class Rules:
    """When an answer ends.

    Attributes:
        max_new_tokens: most tokens to make, the stopping one included.
        min_new_tokens: end and stop tokens are forbidden before this many.
        stop_ids: token ids that end the answer besides the model's end tokens (samsum: the newline).
        finished: told the ids so far, says whether the scorer would read no further.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    finished: Callable[[list[int]], bool] | None = None


@dataclass
class _Row:
    """A sequence that is being decoded. ``place``: where its result goes."""

    place: int
    cache: KVCache
    ids: list[int] = field(default_factory=list)
    near_ties: int = 0

    def take(self, token: int, tied: bool, rules: Rules, eos: frozenset[int]) -> str | None:
        """Add a token; why the answer ends with it, or None."""
        self.ids.append(token)
        self.near_ties += tied
        if token in eos:
            return "eos"
        if token in rules.stop_ids:
            return "stop"
        if rules.finished is not None and rules.finished(self.ids):
            return "finished"
        return "length" if len(self.ids) == rules.max_new_tokens else None


def decode_rows(
    loaded: LoadedModel,
    caches: Sequence[KVCache],
    logits: Tensor,
    rules: Rules,
    *,
    should_stop: Callable[[], bool] | None = None,
) -> list[Generated]:
    """Decode after several prompts, or several caches of one.

    Args:
        caches: of R sequences, compressed or not, of any lengths; they are appended to.
        logits: ``[R, vocab]`` at the last token that each has read.
        should_stop: asked once a step; True gives up with `Interrupted`.

    Returns:
        One result a cache, in the order given.
    """
    eos = frozenset(loaded.info.eos_ids)
    ends = torch.tensor(sorted(eos | set(rules.stop_ids)), dtype=torch.int64, device=logits.device)
    tie = TIE.get(loaded.info.dtype, 0.0)
    rows = [_Row(place, cache) for place, cache in enumerate(caches)]
    positions = torch.tensor([[cache.seen] for cache in caches], dtype=torch.int64, device=logits.device)
    done: dict[int, Generated] = {}
    made = 0
    while rows:
        if should_stop is not None and should_stop():
            raise Interrupted
        tokens, near = _choose(logits, ends if made < rules.min_new_tokens else None, tie)
        chosen, tied = torch.stack([tokens, near.to(tokens.dtype)]).tolist()
        made += 1
        stay: list[int] = []
        for i, row in enumerate(rows):
            ended = row.take(chosen[i], bool(tied[i]), rules, eos)
            if ended is None:
                stay.append(i)
            else:
                done[row.place] = Generated(row.ids, ended, row.near_ties)
        if not stay:
            break
        if len(stay) < len(rows):
            index = torch.tensor(stay, device=logits.device)
            tokens, positions = tokens[index], positions[index]
            rows = [rows[i] for i in stay]
        logits = adapter.forward(loaded.model, tokens[:, None], positions, [row.cache for row in rows])[:, -1]
        positions = positions + 1
    return [done[place] for place in range(len(caches))]


class Interrupted(Exception):
    """The user asked to stop while a batch was being decoded; what it had is given up."""


def _choose(logits: Tensor, forbidden: Tensor | None, tie: float) -> tuple[Tensor, Tensor]:
    """The best token of each row ``[R]``, and whether the second best lay within ``tie`` of it, bool ``[R]``."""
    scores = logits.float()
    if forbidden is not None and forbidden.numel():
        scores = scores.index_fill(1, forbidden, -torch.inf)
    best, tokens = scores.max(dim=1)
    others = scores.scatter(1, tokens[:, None], -torch.inf)
    near = best - others.amax(dim=1) <= tie * best.abs()
    return tokens, near
