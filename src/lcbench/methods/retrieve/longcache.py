"""LongCache (ReAttention): spans of the distant text looked up by content, within the positions the model knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.errors import BadValue
from lcbench.kv import attention
from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.layer import outside_window
from lcbench.kv.rope import moved, unrotated
from lcbench.kv.runs import Runs
from lcbench.kv.sections import Section, over_sections
from lcbench.kv.weights import ELEMENTS
from lcbench.kv.whole import WholeLayer
from lcbench.kv.witness import tell_fetched
from lcbench.methods.base import Traits
from lcbench.methods.extension import RunByRun
from lcbench.methods.registry import method
from lcbench.models.rope import Rope, observed_rope
from lcbench.models.rule import AttentionRule


@method("longcache", paper="arXiv:2407.15176", traits=Traits(family="retrieve", prefill="own"))
@dataclass(frozen=True)
class LongCache(RunByRun):
    """Positionless look-up of spans (LongCache, later ReAttention: arXiv:2407.15176, section 2; rules as in
    OpenMOSS/ReAttention cache_utils_v0921.py and its LongBench configuration).

    The first `scope` prompt tokens are read with dense attention, the others in runs of `chunk_size`; every token
    after the prompt is a run of its own. Once a run ends more than ``global_size + local_size`` tokens into the text,
    its queries see: the first `global_size` tokens; of the middle, spans of `span_size` tokens around keys that were
    found; and the local rest. With ``mod = (seen - global_size - local_size) mod align`` the local rest is
    ``local_size - (align - mod)`` tokens, so that the middle is a multiple of `align`. Every query and query head
    finds the `mid_size` keys of the middle with the highest product, both without RoPE; of all keys found in a layer
    the `recall_clip` most frequent stay. They and the tokens from ``-span_size / 2`` to ``span_size / 2 - 1`` around
    them, inside the middle, are seen by all heads. What is seen gets new positions 0, 1, 2, … in the order of the text
    (`original` keeps its own), the queries being the last: no position exceeds ``global_size + local_size + span_size
    recall_clip``, 8192 by default. Ties keep the older key. With ``mid_size = 0`` the first and the newest
    `local_size` tokens are seen. A layer with a sliding window of its own sees nothing beyond it.

    Query heads look up the keys of their own KV head; the authors' code pairs them differently on models with grouped
    queries while it decodes. Prompts up to `scope` are read as by the full cache. Keys are held at the angle of their
    own position and turned when they are used.

    Texts of any length are served where the trained window holds `scope` and that greatest position; else, and with
    `original`, that window is. `reach` sets a limit by hand.

    This extends the window and frees nothing: one layer holds the full cache's ``2 Hk d e T`` bytes; a step attends
    ``2 Hk d e`` bytes for each token seen, and reads the middle's keys to choose them.
    """

    proof: ClassVar[str] = (
        "Teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models over 64 tokens, prompt "
        "included, against attention written query by query with explicit sets and positions in fp64, for new and "
        "original positions; texts within the window, and look-ups that find the whole middle, are the full cache. "
        "Logits do not change when all positions are shifted; spans stay inside the middle. Prompts in one piece and "
        "in pieces of whole runs give the same logits, other pieces are refused."
    )

    global_size: int = param(32, "first tokens that are always seen", minimum=0)
    local_size: int = param(4096, "newest tokens seen, up to align fewer", minimum=1)
    mid_size: int = param(4, "keys that a query and head look up; 0: none", minimum=0)
    span_size: int = param(32, "tokens seen around a key that was found", minimum=1)
    recall_clip: int = param(127, "most keys found by a run in a layer", minimum=1)
    chunk_size: int = param(512, "prompt tokens that look up together", minimum=1)
    scope: int = param(8192, "first prompt tokens, read with dense attention", minimum=1)
    align: int = param(128, "the middle is a multiple of this many tokens", minimum=1)
    original: bool = param(False, "what is seen keeps its positions in the text")

    def __post_init__(self) -> None:
        if self.local_size < self.align + self.chunk_size:
            raise BadValue(
                f"longcache@local_size={self.local_size} is less than align={self.align} and "
                f"chunk_size={self.chunk_size} together, so that a run would look itself up.",
                "Use a larger local_size, or a smaller align or chunk_size.",
            )
        if self.scope < self.global_size + self.local_size:
            raise BadValue(
                f"longcache@scope={self.scope} is less than the {self.global_size + self.local_size} first and newest "
                "tokens that are always seen.",
                "Use a larger scope.",
            )

    @property
    def attended(self) -> int:
        """Most tokens that a run sees, once it looks up."""
        return self.global_size + self.local_size + self.span_size * self.recall_clip

    def runs(self) -> tuple[int, int]:
        return self.chunk_size, self.scope

    def extended(self, trained: int) -> int | None:
        return trained if self.original or max(self.scope, self.attended) > trained else None

    def prefill_cache(self, shape: CacheShape, prompt_tokens: int) -> KVCache:
        return KVCache([LongCacheLayer(self, prompt_tokens) for _ in range(shape.layers)])


class LongCacheLayer(WholeLayer):
    """All tokens of a text, of which a run sees the first, the newest and what it finds between.

    Args:
        rules: the method. prompt_tokens: of the prompt that will be read.
    """

    def __init__(self, rules: LongCache, prompt_tokens: int) -> None:
        super().__init__(expected=prompt_tokens)
        self.rules = rules
        self.runs = Runs("longcache", rules.chunk_size, rules.scope, prompt_tokens)

    def _attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        start = self.seen - query.shape[1]
        outputs = [self._run(query[:, a - start : b - start], a, rule) for a, b in self.runs.cut(start, self.seen)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _run(self, query: Tensor, start: int, rule: AttentionRule) -> Tensor:
        rules, stop = self.rules, start + query.shape[1]
        scope = min(rules.scope, self.runs.last)
        if stop <= scope or stop <= rules.global_size + rules.local_size:
            return self._dense(query, stop, rule)
        rope = observed_rope()
        seen = self._seen(query, start, rope)
        positions = torch.cat([torch.arange(a, b, device=query.device) for a, b in seen])
        angles = positions if rules.original else torch.arange(len(positions), device=query.device)
        asked = torch.arange(start, stop, device=query.device)
        key, value = self.rows(seen)
        age = asked[:, None] - positions[None]
        hidden = age < 0 if rule.window is None else (age < 0) | (age >= rule.window)
        section = Section(
            moved(rope, query, asked, angles[-len(asked) :]), moved(rope, key, positions, angles), value, hidden
        )
        return over_sections([section], rule)[0]

    def _dense(self, query: Tensor, stop: int, rule: AttentionRule) -> Tensor:
        if query.shape[1] == 1 and stop == self.seen:
            keys, values = self.parts()
            hidden = outside_window(self.positions, stop, 1, rule.window)
            return attention.over_parts(query, keys, values, rule, hidden=hidden)[0]
        key, value = self.rows([(0, stop)])
        return attention.causal(query, key, value, rule)

    def middle(self, seen: int) -> tuple[int, int]:
        """First position that can be looked up by a run that ends after ``seen`` tokens, and one past the last."""
        rules = self.rules
        local = rules.local_size
        if rules.mid_size:
            local -= rules.align - (seen - rules.global_size - rules.local_size) % rules.align
        return rules.global_size, seen - local

    def _seen(self, query: Tensor, start: int, rope: Rope | None) -> list[tuple[int, int]]:
        """Spans of positions that the queries from ``start`` on see, ascending; the last ends with the run."""
        stop = start + query.shape[1]
        low, high = self.middle(stop)
        spans = [(0, low)]
        if self.rules.mid_size:
            found = self.around(self._found(query, start, low, high, rope), low, high)
            tell_fetched(self, lambda: [torch.tensor([p for first, end in found for p in range(first, end)])])
            spans += found
        return [*spans, (high, stop)]

    def _found(self, query: Tensor, start: int, low: int, high: int, rope: Rope | None) -> Tensor:
        """Positions in the middle that a run looks up, most frequent first, at most `recall_clip`."""
        device = query.device
        key = unrotated(rope, self.rows([(low, high)])[0], torch.arange(low, high, device=device))
        asked = unrotated(rope, query, torch.arange(start, start + query.shape[1], device=device))
        heads, q, _ = query.shape
        group, best = heads // key.shape[0], min(self.rules.mid_size, high - low)
        votes = torch.zeros(high - low, dtype=torch.int64, device=device)
        step = max(1, ELEMENTS // (group * (high - low)))
        for kv in range(key.shape[0]):
            for first in range(0, q, step):
                rows = asked[kv * group : (kv + 1) * group, first : first + step]
                votes += _highest(torch.matmul(rows, key[kv].t()), best).sum(dim=(0, 1))
        order = torch.sort(votes, descending=True, stable=True).indices[: self.rules.recall_clip]
        return low + order[votes[order] > 0]

    def around(self, found: Tensor, low: int, high: int) -> list[tuple[int, int]]:
        """Spans around positions, inside ``low`` to ``high``, joined where they touch; ascending."""
        half = self.rules.span_size // 2
        spans: list[tuple[int, int]] = []
        for at in sorted(found.tolist()):
            first, stop = max(low, at - half), min(high, at - half + self.rules.span_size)
            if spans and first <= spans[-1][1]:
                spans[-1] = (spans[-1][0], stop)
            else:
                spans.append((first, stop))
        return spans

    @property
    def resident_nbytes(self) -> int:
        return self.token_nbytes(min(self.seen, self.rules.attended))


def _highest(scores: Tensor, count: int) -> Tensor:
    """Which of the scores ``[..., n]`` are the ``count`` highest, bool; ties keep the lower index."""
    least = torch.topk(scores, count, dim=-1).values[..., -1:]
    above, tied = scores > least, scores == least
    missing = count - above.sum(dim=-1, keepdim=True)
    return above | (tied & (tied.cumsum(dim=-1) <= missing))
