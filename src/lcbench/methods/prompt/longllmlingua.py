"""LongLLMLingua: passages ranked by how well they explain the question, then tokens by how much it explains them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lcbench.config.options import param
from lcbench.methods import passages
from lcbench.methods.base import Traits
from lcbench.methods.registry import method
from lcbench.methods.rewriting import PromptText
from lcbench.methods.surprisal import LanguageModelTransform, Stream, joined, suffix_loss, tokens, with_offsets
from lcbench.models.info import LoadedModel

HINT = " We can get the answer to this question in the given documents."
Order = Literal["original", "sort", "two_stage"]


@method("longllmlingua", paper="arXiv:2310.06839", traits=Traits(family="prompt", prefill="own"))
@dataclass(frozen=True)
class LongLLMLingua(LanguageModelTransform):
    """LongLLMLingua (arXiv:2310.06839; rules and recommended settings of microsoft/LLMLingua `prompt_compressor.py`).

    A causal language model (`model`; the demo model unless another is named) reads each passage of the context with the
    question behind it; the passages that make the question most likely come first. They are kept in this order until
    `rate` of the tokens, and `context_budget` more, are used up (the one that crosses the line stays), and written in
    `order`: as ranked, as they stood, or the best at both ends (two_stage). Then tokens: in segments of `segment`
    tokens, behind what was kept so far, a token is worth ``nll(t | kept) - nll(t | question, kept)``, and those above
    the threshold stay that leaves the segment's share of all losses so far. A passage of rank r of N has the share
    ``rate + dynamic (N - 1 - 2 r) / (N - 1)``, at most 1. Question and instruction stay as they are.

    Passages are the data set's own ("Passage 1:", "Paragraph 1:"), else pieces of about 200 words that end with a
    sentence (our choice; the published code leaves this to the caller). Tasks that ask the same of every row are ranked
    by their instruction. `contrast=false` ranks tokens by ``nll(t | question, kept)`` alone. `alignment=published`
    repeats two slips of the published code: the flag of a token comes from the loss of the next one, and the last
    tokens that fill no segment are never shortened. Where a text outgrows the model's window it goes on behind the
    question and the newest half of what was kept (the published code drops cache entries instead).
    """

    proof: ClassVar[str] = (
        "With alignment=published the shortened contexts of a tiny random Llama equal those of the public package "
        "llmlingua 0.2.2 on the same weights (goldens on texts of our own: passages, order, dynamic ratio); losses "
        "against the plain transformers model; the formulas of order, budget and ratio by hand."
    )
    asks: ClassVar[bool] = True

    rate: float = param(0.5, "share of the context's tokens that stays", minimum=0.01, maximum=1)
    model: str = param("demo", "language model that reads the context: as --model")
    order: Order = param("sort", "passages as ranked, in their original order, or the best at both ends")
    dynamic: float = param(0.3, "how much the share depends on a passage's rank; 0 for not", minimum=0, maximum=1)
    context_budget: int = param(100, "tokens that passages may take beyond the rate", minimum=0)
    segment: int = param(200, "tokens that are shortened at once", minimum=2)
    contrast: bool = param(True, "rank tokens by what the question changes, else by how surprising they are")
    passages: Literal["auto", "none"] = param("auto", "cut the context into passages, or take it as one")
    alignment: Literal["aligned", "published"] = param("aligned", "repeat the published code's two slips or not")

    def rewrite(self, prompt: PromptText, helper: LoadedModel) -> str:
        documents = passages.split(prompt.passage, 200) if self.passages == "auto" else [prompt.passage]
        documents = [text.strip() for text in documents if text.strip()]
        if not documents:
            return prompt.passage
        return self.shortened(documents, _last_tokens(helper, prompt.asked), helper)

    def shortened(self, documents: Sequence[str], question: str, helper: LoadedModel) -> str:
        """Passages to the text that is left of them.

        Args:
            documents: at least one.
        """
        lengths = [len(tokens(helper, text, special=True)) for text in documents]
        fixed = sum(len(tokens(helper, text, special=True)) for text in ("", question))
        target = self.rate * (sum(lengths) + fixed) - fixed
        chosen, deltas = list(documents), [0.0] * len(documents)
        if len(documents) > 1:
            ranked = rank(documents, question, helper)
            within = (target if target >= 0 else 100) + self.context_budget
            used = within_budget(ranked, lengths, within)
            places = arranged(used, self.order)
            by_rank = dict(zip(used, dynamic_ratios(len(used), self.dynamic), strict=True))
            chosen, deltas = [documents[i] for i in places], [by_rank[i] for i in places]
        sizes = [len(tokens(helper, text)) + 2 for text in chosen]
        plan = segments(sizes, target / (sum(sizes) + 1), deltas, self.segment)
        published = self.alignment == "published"
        work = _Compression(helper, question + "\n\n", "\n\n".join(chosen), self.segment, self.contrast, published)
        return work.run(plan)


def rank(documents: Sequence[str], question: str, helper: LoadedModel) -> list[int]:
    """Documents by the mean loss of the question behind each, least first; ties in their order."""
    losses = [suffix_loss(helper, text, question + HINT) for text in documents]
    return sorted(range(len(documents)), key=lambda i: losses[i])


def within_budget(ranked: Sequence[int], lengths: Sequence[int], budget: float) -> list[int]:
    """The first documents of a ranking that use the budget up; the one that crosses it is among them."""
    used = []
    for i in ranked:
        used.append(i)
        budget -= lengths[i]
        if budget < 0:
            break
    return used


def arranged(used: Sequence[int], order: Order) -> list[int]:
    """Ranked documents in the order in which they are written."""
    if order == "original":
        return sorted(used)
    if order == "two_stage":
        return [*used[::2], *used[1::2][::-1]]
    return list(used)


def dynamic_ratios(count: int, delta: float) -> list[float]:
    """What is added to the share of each rank: evenly from ``delta`` to ``-delta``."""
    return [delta * (count - 1 - 2 * r) / (count - 1) if count > 1 else 0.0 for r in range(count)]


def segments(sizes: Sequence[int], share: float, deltas: Sequence[float], size: int) -> list[list[tuple[int, float]]]:
    """The plan: of each segment its parts, as (tokens, share that stays); as the published code has it."""
    ratios = [max(min(1.0, share + delta), 0.0) for delta in deltas]
    found: list[list[tuple[int, float]]] = []
    last, parts = 1, []
    for length, ratio in zip(sizes, ratios, strict=True):
        if last + length < size:
            last += length
            parts.append((length, ratio))
            continue
        found.append([*parts, (size - last, ratio)])
        last += length - size
        if last > size:
            whole = last // size
            found += [[(size, ratio)]] * whole
            last -= whole * size
        parts = [(last, ratio)] if last else []
    return [*found, parts] if parts else found


def threshold(values: Tensor, ratio: float) -> float:
    """The value that ``ratio`` of all values reach."""
    if ratio == 1.0:
        return float("-inf")
    at = max(0, min(len(values) - 1, int(len(values) * ratio) - 1))
    return float(values.sort(descending=True).values[at])


@dataclass
class _Compression:
    """Shortens one text token by token. Positions count the context's tokens that are left, from 0.

    Attributes:
        ids, places: tokens that are left, and which of the original ones they are.
        plain, asked: what is known of their losses, without and behind the question: fp32, as far as they were read.
    """

    helper: LoadedModel
    before: str
    text: str
    size: int
    contrast: bool
    published: bool
    ids: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    asked: Tensor = field(default_factory=lambda: torch.zeros(0))
    plain: Tensor = field(default_factory=lambda: torch.zeros(0))

    def run(self, plan: Sequence[Sequence[tuple[int, float]]]) -> str:
        ids, offsets = with_offsets(self.helper, self.before + self.text)
        start = next((i for i, (begin, _) in enumerate(offsets) if begin >= len(self.before)), len(ids))
        self.ids, self.places = ids[start:], list(range(start, len(ids)))
        question, streams = ids[:start], self._streams(ids[:start])
        self.asked, self.plain = self._first(question)
        before = begin = 0
        for number, parts in enumerate(plan):
            end = begin + self.size
            if begin >= len(self.ids) or (self.published and number and end > len(self.ids)):
                break
            end = min(end, len(self.ids))
            if number:
                self._look_again(streams, before, begin, end, skip_first=self.published and number > 1)
            before = begin
            for length, ratio in parts:
                begin = self._drop(begin, min(begin + length, len(self.ids)), ratio)
        return joined(self.before + self.text, offsets, self.places)

    def _streams(self, question: list[int]) -> list[Stream]:
        """What was kept, read behind the question and, for the contrast, alone."""
        window = self.helper.info.window
        behind = Stream(self.helper, anchor=min(len(question) + 10, window // 2))
        behind.read(question)
        return [behind, Stream(self.helper)] if self.contrast else [behind]

    def _first(self, question: list[int]) -> tuple[Tensor, Tensor]:
        """Losses of the whole text as it was, as far as the window reaches: thresholds stand on all tokens."""
        room = self.helper.info.window - len(question)
        behind = Stream(self.helper)
        behind.read(question)
        asked = behind.losses(self.ids[:room])
        return asked, Stream(self.helper).losses(self.ids[: len(asked)]) if self.contrast else torch.zeros_like(asked)

    def _look_again(self, streams: Sequence[Stream], before: int, begin: int, end: int, *, skip_first: bool) -> None:
        """Losses of what stayed of the last segment, [before, begin), and of the next one, each behind what stayed.

        Args:
            skip_first: leave the loss of the first token as it was (the published code cannot see it).
        """
        for name, stream in zip(("asked", "plain"), streams, strict=False):
            found = torch.cat([stream.read(self.ids[before:begin]), stream.losses(self.ids[begin:end])])
            known = getattr(self, name)
            if len(known) < end:
                known = torch.cat([known, torch.zeros(end - len(known))])
            known[before + skip_first : end] = found[int(skip_first) :]
            setattr(self, name, known)
        if not self.contrast:
            self.plain = torch.zeros_like(self.asked)

    def _drop(self, begin: int, end: int, ratio: float) -> int:
        """Drop tokens of [begin, end); where what stays of them ends."""
        worth = self.plain - self.asked if self.contrast else self.asked.clone()
        first = 1 if self.contrast else 0  # the first token has no loss of its own without the question
        least = threshold(worth[first:], ratio) if len(worth) > first else float("-inf")
        flags = worth > least
        if first:
            flags[0] = True
        if self.published:
            flags = torch.cat([flags[1:], flags.new_ones(1)])
        staying = [i for i in range(begin, end) if i >= len(flags) or flags[i]]
        keep = [*range(begin), *staying, *range(end, len(self.ids))]
        self.ids, self.places = [self.ids[i] for i in keep], [self.places[i] for i in keep]
        if self.published:  # there losses are filed under the token before, and dropped with it
            known = torch.tensor([0, *(i + 1 for i in keep if i + 1 < len(worth))], dtype=torch.int64)
        else:
            known = torch.tensor([i for i in keep if i < len(worth)], dtype=torch.int64)
        self.asked, self.plain = self.asked[known], self.plain[known]
        return begin + len(staying)


def _last_tokens(helper: LoadedModel, question: str) -> str:
    """A question that is no longer than a quarter of the window: its end."""
    ids, offsets = with_offsets(helper, question)
    most = helper.info.window // 4
    return question if len(ids) <= most else question[offsets[-most][0] :]
