"""EM-LLM: events cut where the text surprises, looked up by similarity and with their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.errors import BadValue, ModelError
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.distant import DistantLayer
from lcbench.kv.events import Cutting, Segments
from lcbench.kv.rope import moved
from lcbench.kv.runs import Runs
from lcbench.methods.base import Traits
from lcbench.methods.extension import RunByRun
from lcbench.methods.registry import method
from lcbench.models.rope import observed_rope
from lcbench.models.rule import AttentionRule

REFINED_SHARE = 0.6  # of the layers, from which on keys are compared


@method("em-llm", paper="arXiv:2407.09450", traits=Traits(family="memory", prefill="own"))
@dataclass(frozen=True)
class EMLLM(RunByRun):
    """Episodic memory of the distant text (arXiv:2407.09450, section 3; rules as in em-llm/EM-LLM-model).

    The prompt is read in runs of `exc_block_size` tokens, its last token and every token after it being a run of its
    own. A query sees the newest `n_local` tokens at their true distances and, all at the one distance
    ``n_local - 1``, the first `n_init` tokens, the events that were looked up, and the tokens outside the window that
    are in no event yet. One softmax runs over all of them.

    **Events.** A token is surprising when -ln of its probability exceeds mean + `gamma` standard deviations of those
    before it that are in no event; an event begins one token before it, as in the authors' code. Tokens that leave the
    window are cut there; events shorter than `min_block` grow into the next, longer ones are cut at `max_block`.
    `refine` moves each boundary to the place that best parts its surroundings into two groups of similar keys
    (modularity, or conductance as the authors compute it), keys before RoPE of all layers from `refine_from` on (none:
    0.6 of the layers; the authors' 20 is more than small models have). Generated tokens surprise nobody: they are cut
    at `max_block`. `segmentation=uniform` cuts every `max_block` tokens.

    **Looking up.** As in `infllm`, for each layer and run: an event's vector is the mean of its `repr_topk` keys with
    most attention from the windows they were in, per query head; events are taken by ``sum_h mean(q_h) . r_h`` until
    they fill the budget, ``n_mem + n_init + exc_block_size`` less the first tokens there are and the tokens that wait,
    the last one only if that comes closer to it. With `contiguity` that share of the budget (a number of tokens from 1
    on) goes to the neighbours of the best events, the next one before the one before, and to neighbours of earlier
    runs while they fit. All are seen in the order of the text. Ties keep the older event.

    No query sees a key further away than `n_local` tokens, so that texts of any length are served where the trained
    window holds `n_local`; else only that window is. `reach` sets a limit by hand.

    The paper's variants: S is the default, SM `refine=modularity`, S+C and SM+C add `contiguity=0.3`.

    Everything is kept: one layer holds ``2 Hk d e T`` bytes, H d e an event, and 4 H for each token of window and
    remainder. Surprise is kept as numbers beside the cache while the prompt is read. A layer with a sliding window of
    its own sees nothing beyond it.
    """

    proof: ClassVar[str] = (
        "Teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models, of the prompt and of 64 "
        "tokens after it, against attention written query by query in fp64, run by run from its own surprise: with "
        "surprise, refinement by both metrics, contiguity, uniform events. A window that holds all is the full cache; "
        "uniform events that are all seen are infllm's blocks; boundaries of block-diagonal similarities are found; "
        "events stay within their bounds and make up the text; a fork and a second prompt take nothing over."
    )

    n_init: int = param(128, "first tokens that are always seen", minimum=0)
    n_local: int = param(4096, "newest tokens seen at true distances", minimum=1)
    n_mem: int = param(2048, "tokens of events that are looked up, about", minimum=0)
    exc_block_size: int = param(512, "prompt tokens that look up events together", minimum=1)
    min_block: int = param(8, "tokens of an event, at least", minimum=1)
    max_block: int = param(128, "tokens of an event, at most", minimum=1)
    repr_topk: int = param(4, "keys of an event that stand for it", minimum=1)
    gamma: float = param(1.0, "deviations above the mean from which a token is surprising", minimum=0)
    segmentation: Literal["surprise", "uniform"] = param("surprise", "where events begin")
    refine: Literal["none", "modularity", "conductance"] = param("none", "what boundaries are moved by")
    refine_from: int | None = param(None, "first layer whose keys are compared; none: 0.6 of the layers", minimum=0)
    contiguity: float = param(0.0, "share of the budget, or from 1 on tokens, for neighbours of events", minimum=0)

    def __post_init__(self) -> None:
        if self.n_local < self.exc_block_size:
            raise BadValue(
                f"em-llm@n_local={self.n_local} is less than exc_block_size={self.exc_block_size}, the tokens that "
                "are read together.",
                "Use a larger n_local or a smaller exc_block_size.",
            )
        if self.min_block > self.max_block:
            raise BadValue(
                f"em-llm@min_block={self.min_block} is more than max_block={self.max_block}.",
                "Use a smaller min_block.",
            )

    def runs(self) -> tuple[int, int]:
        return self.exc_block_size, 0

    def extended(self, trained: int) -> int | None:
        return None if self.n_local <= trained else trained

    @property
    def cutting(self) -> Cutting:
        """How events are cut."""
        return Cutting(
            n_init=self.n_init,
            n_local=self.n_local,
            shortest=self.min_block,
            longest=self.max_block,
            gamma=self.gamma,
            run=self.exc_block_size,
            uniform=self.segmentation == "uniform",
            refine=None if self.refine == "none" or self.segmentation == "uniform" else self.refine,
        )

    def first_refined(self, layers: int) -> int:
        """The first layer whose keys refine boundaries."""
        return int(REFINED_SHARE * layers) if self.refine_from is None else self.refine_from

    def check(self, shape: CacheShape) -> None:
        if self.refine != "none" and self.first_refined(shape.layers) >= shape.layers:
            raise ModelError(
                f"em-llm@refine_from={self.refine_from}: the model has layers 0 to {shape.layers - 1}.",
                "Use a lower layer, or leave it out.",
            )

    def prefill_cache(self, shape: CacheShape, prompt_tokens: int) -> KVCache:
        return EventCache(self, shape.layers, prompt_tokens)


class EventCache(KVCache):
    """A cache that watches what the model foretells while it reads a prompt (`models.stores.ReadsInRuns`).

    Args:
        rules: the method. prompt_tokens: of the prompt that will be read.
    """

    def __init__(self, rules: EMLLM, layers: int, prompt_tokens: int) -> None:
        self._runs = Runs("em-llm", rules.exc_block_size, 0, prompt_tokens - 1)
        self.segments = Segments(rules.cutting)
        self._read = torch.empty(0, dtype=torch.int64)  # ids of the last run
        self._foretold: Tensor | None = None  # fp32 [q, vocab], log probabilities after each token of the last run
        low = rules.first_refined(layers)
        super().__init__([EventLayer(rules, self.segments, self._runs, prompt_tokens, i >= low) for i in range(layers)])

    @property
    def reading(self) -> bool:
        """Whether the prompt's tokens are still to come, so that runs must go through the model one by one."""
        return self.seen <= self._runs.last

    def runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        return self._runs.cut(start, stop)

    def before_run(self, ids: Tensor) -> None:
        """The next run's token ids ``[q]``: what the run before foretold is compared with the text."""
        if self._foretold is None:
            return
        follows = torch.cat([self._read[1:], ids[:1]])
        surprise = -self._foretold.gather(1, follows[:, None])[:, 0]
        self._foretold = None
        self.segments.read(surprise.tolist(), self.seen)

    def after_run(self, ids: Tensor, logits: Tensor) -> None:
        """What the model foretells, ``[q, vocab]``, after each token of a run ``[q]``."""
        if self.seen <= self._runs.last:
            self._read, self._foretold = ids, torch.log_softmax(logits.float(), dim=-1)

    def fork(self) -> KVCache:
        new = super().fork()
        other = EventCache.__new__(EventCache)
        other.__dict__.update(self.__dict__)
        other.layers, other.segments = new.layers, self.segments.fork()
        for layer in other.layers:
            assert isinstance(layer, EventLayer)
            layer.segments = other.segments
        return other


class EventLayer(DistantLayer):
    """The events of a layer; see `kv.distant`.

    Args:
        segments: where events begin, one object for all layers. compares: whether its keys refine boundaries.

    Attributes:
        formed: of the events, those this layer has a vector for. near: neighbours that were seen last, newest first.
    """

    def __init__(self, rules: EMLLM, segments: Segments, runs: Runs, prompt_tokens: int, compares: bool) -> None:
        super().__init__(runs, rules.n_local, rules.repr_topk, expected=prompt_tokens)
        self.rules, self.segments = rules, segments
        self.compares = compares and rules.cutting.refine is not None
        self.formed = 0
        self.near: tuple[int, ...] = ()

    @property
    def rest(self) -> int:
        return self.segments.events[self.formed - 1][1] if self.formed else self.first

    def _run(self, query: Tensor, start: int, rule: AttentionRule) -> Tensor:
        stop = start + query.shape[1]
        if start:
            self._form(start)  # what the run before brought: its surprise is known only now
        if self.compares and stop <= self.runs.last:
            span = (self.segments.origin(start), stop)
            key = self.rows([span])[0]
            self.segments.compare(moved(observed_rope(), key, torch.arange(*span, device=key.device), 0))
        return super()._run(query, start, rule)

    def settle(self, seen: int) -> None:
        if seen > self.runs.last:  # no surprise is to come
            self._form(seen)

    def _form(self, seen: int) -> None:
        """Vectors of the events that have come since."""
        first, count = self.segments.settle(seen)
        if self.first < first:
            self.leave(first - self.first)
        for begin, end in self.segments.events[self.formed : count]:
            self.put_away(end - begin)
            self.formed += 1

    def budget(self, waiting: int) -> int:
        """Tokens of events that a run may see while so many others outside the window wait."""
        rules = self.rules
        return max(0, rules.n_init + rules.exc_block_size + rules.n_mem - self.first - waiting)

    def look_up(self, asked: Tensor, waiting: int) -> list[tuple[int, int]]:
        events = self.segments.events[: self.formed]
        lengths = [end - begin for begin, end in events]
        budget = self.budget(waiting)
        if sum(lengths) <= budget:
            self.near = ()
            return events
        share = self.rules.contiguity
        kept_free = min(budget, int(share * budget) if share < 1 else int(share))
        order = torch.sort(self.similarities(asked), descending=True, stable=True).indices.tolist()
        best = filled(order, lengths, budget - kept_free)
        self.near = neighbours(best, self.near, lengths, kept_free)
        return [events[i] for i in sorted({*best, *self.near})]

    @property
    def resident_nbytes(self) -> int:
        return self.resident_of(min(self.rest - self.first, self.budget(max(0, self.seen - self.n_local - self.rest))))


def filled(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[int]:
    """Events in this order until their tokens fill the budget; the one that crosses it only if that comes closer."""
    taken, tokens = list[int](), 0
    for event in order:
        over = tokens + lengths[event] - budget
        if over > 0:
            if over < budget - tokens:
                taken.append(event)
            break
        taken.append(event)
        tokens += lengths[event]
    return taken


def neighbours(best: Sequence[int], before: Sequence[int], lengths: Sequence[int], budget: int) -> tuple[int, ...]:
    """Neighbours of the best events, then those of earlier runs, while they fit the budget.

    Args:
        best: events that were looked up, best first. before: neighbours that were seen last.
    """
    wanted = [event for found in best for event in (found + 1, found - 1)]
    taken, tokens = list[int](), 0
    for event in (*wanted, *before):
        if not 0 <= event < len(lengths) or event in best or event in taken:
            continue
        if tokens + lengths[event] > budget:
            break
        taken.append(event)
        tokens += lengths[event]
    return tuple(taken)
