"""Quest: pages of keys, of which a query reads those that may matter most to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lcbench.config.budget import Budget
from lcbench.config.options import param
from lcbench.kv import attention
from lcbench.kv.buffer import Buffer
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import LayerKV, outside_window
from lcbench.kv.record import PrefillRecord
from lcbench.kv.whole import WholeLayer
from lcbench.kv.witness import tell_fetched
from lcbench.methods.base import Method, Traits, top_positions
from lcbench.methods.registry import method
from lcbench.models.rule import AttentionRule


@method("quest", paper="arXiv:2406.10774", traits=Traits(family="retrieve"))
@dataclass(frozen=True)
class Quest(Method):
    """Query-aware pages (arXiv:2406.10774, algorithm 1; rules as in mit-han-lab/Quest evaluation/quest_attention.py).

    The prompt is read with dense attention. Then `page_size` consecutive tokens are a page, known by the least and
    the greatest of its keys in each channel, m and M. A generated token reads the pages with the highest bound
    ``u = sum_c max(q_c m_c, q_c M_c)``, which no ``q . k`` of the page exceeds: ``max(3, floor(budget / page_size))``
    of them. The page it belongs to is not forced; the last page's bounds are those of the tokens it has so far. Ties
    keep the older page. The first `dense_layers` layers read everything, and so does every layer while the text fits
    the budget (where the authors' code rounds down and may leave out a page).

    With `granularity` kv the query heads of a KV head read the same pages, by their greatest bound; with query each
    reads its own, as in the authors' code, which copies keys for it. A page beyond a layer's own sliding window is
    never read.

    Everything is kept: one layer holds ``2 Hk d e T`` bytes and ``2 Hk d e`` a full page; a step reads the bounds and
    the chosen pages.
    """

    proof: ClassVar[str] = (
        "Teacher-forced logits of tiny Llama, Mistral (sliding window) and Qwen2 models over 64 tokens, for KV and "
        "query heads, against the plain model with its attention written out in fp64, every page masked that a second "
        "computation of the bounds leaves out. The bound is never below a product of its page; with pages of one "
        "token it is the product and the true top-k is read; the first two layers and texts within the budget are "
        "the full cache; bytes equal the formula."
    )

    budget: Budget = param(Budget(tokens=1024), "tokens that a step reads: a number, or a share of the prompt")
    page_size: int = param(16, "tokens of a page", minimum=1)
    dense_layers: int = param(2, "layers, from the first, that read everything", minimum=0)
    granularity: Literal["kv", "query"] = param("kv", "pages chosen per KV head or per query head")

    def compress(self, record: PrefillRecord) -> KVCache:
        budget = self.budget.tokens or self.budget.resolve(record.length)
        if self.budget.ratio == 1.0:
            return record.cache.fork()
        layers: list[LayerKV] = []
        for number, dense in enumerate(record.cache.layers):
            if number < self.dense_layers:
                layers.append(dense.fork())
            else:
                layer = record.layer(number)
                choosers = record.shape.groups if self.granularity == "query" else 1
                layers.append(QuestLayer(layer.key, layer.value, budget, self.page_size, choosers))
        return KVCache(layers)


class QuestLayer(WholeLayer):
    """All tokens, and the bounds of every full page.

    Args:
        key, value: ``[Hk, L, d]`` of the prompt; shared with the record, never written to.
        budget: tokens a step reads. page: tokens of a page.
        choosers: sets of pages for each KV head, 1 or one for each of its query heads.
    """

    def __init__(self, key: Tensor, value: Tensor, budget: int, page: int, choosers: int = 1) -> None:
        super().__init__(key, value)
        self.budget, self.page, self.choosers = budget, page, choosers
        least, greatest = _bounds(key[:, : self.seen // page * page], page)
        self._least, self._greatest = Buffer(least), Buffer(greatest)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Least and greatest keys ``[Hk, pages, d]`` of the full pages."""
        return self._least.used, self._greatest.used

    @property
    def read(self) -> int:
        """Pages that a step reads, where there are so many."""
        return max(3, self.budget // self.page)

    def _append(self, key: Tensor, value: Tensor) -> None:
        super()._append(key, value)
        known, full = len(self._least), self.seen // self.page
        if full > known:
            least, greatest = _bounds(self.rows([(known * self.page, full * self.page)])[0], self.page)
            self._least.append(least)
            self._greatest.append(greatest)

    def _attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        q = query.shape[1]
        if self.seen <= self.budget:
            return super()._attend(query, rule)
        outputs = []
        for i in range(q):  # one by one: each reads pages of its own
            outputs.append(self._one(query[:, i : i + 1], self.seen - q + i + 1, rule))
        return outputs[0] if q == 1 else torch.cat(outputs, dim=1)

    def _one(self, query: Tensor, seen: int, rule: AttentionRule) -> Tensor:
        """Attention of the query at position ``seen - 1``."""
        if seen <= self.budget:
            key, value = self.rows([(0, seen)])
            hidden = outside_window(lambda: torch.arange(seen, device=query.device), seen, 1, rule.window)
            return attention.over_parts(query, [key], [value], rule, hidden=hidden)[0]
        places = self.places(self.scores(query[:, 0], seen, rule.window), seen)
        hidden = places >= seen
        if rule.window is not None:
            hidden |= places < seen - rule.window
        tell_fetched(self, lambda: [row[row < seen] for row in places])
        key, value = self.at(places.clamp(max=seen - 1))
        return attention.over_parts(query, [key], [value], rule, hidden=hidden[:, None])[0]

    def scores(self, query: Tensor, seen: int, window: int | None = None) -> Tensor:
        """Bound of each page for queries ``[H, d]`` after ``seen`` tokens: fp32 ``[Hk or H, pages]``, -inf for a page
        out of sight."""
        full = seen // self.page
        least, greatest = (bound[:, :full] for bound in self.bounds)
        if seen % self.page:
            open_key = self.rows([(full * self.page, seen)])[0]
            least = torch.cat([least, open_key.amin(dim=1, keepdim=True)], dim=1)
            greatest = torch.cat([greatest, open_key.amax(dim=1, keepdim=True)], dim=1)
        grouped = query.float().view(least.shape[0], -1, query.shape[1])
        bound = grouped.clamp(min=0) @ greatest.float().transpose(1, 2)
        bound += grouped.clamp(max=0) @ least.float().transpose(1, 2)
        bound = bound.flatten(0, 1) if self.choosers > 1 else bound.amax(dim=1)
        if window is not None:
            last = torch.arange(bound.shape[1], device=query.device) * self.page + self.page - 1
            bound = bound.masked_fill(last < seen - window, -torch.inf)
        return bound

    def places(self, scores: Tensor, seen: int) -> Tensor:
        """Positions ``[Hk or H, n]`` of the tokens of the chosen pages, ascending; those from ``seen`` on are not
        there (yet)."""
        pages = top_positions(scores, min(self.read, scores.shape[1]))
        offsets = torch.arange(self.page, device=scores.device)
        return (pages[:, :, None] * self.page + offsets).flatten(1)

    @property
    def resident_nbytes(self) -> int:
        bounds = sum(t.numel() * t.element_size() for t in self.bounds)
        chosen = self.read * self.page * self.choosers
        return bounds + self.token_nbytes(self.seen if self.seen <= self.budget else min(self.seen, chosen))

    def tensors(self) -> Iterator[Tensor]:
        yield from super().tensors()
        yield from self.bounds

    def fork(self) -> QuestLayer:
        new = super().fork()
        new._least, new._greatest = self._least.fork(), self._greatest.fork()
        return new


def _bounds(key: Tensor, page: int) -> tuple[Tensor, Tensor]:
    """Least and greatest of each channel in each page of keys ``[Hk, pages x page, d]``."""
    paged = key.reshape(key.shape[0], key.shape[1] // page, page, key.shape[2])
    return paged.amin(dim=2), paged.amax(dim=2)
