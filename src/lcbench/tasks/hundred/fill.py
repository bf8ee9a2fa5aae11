"""Choosing passages up to a length.

The reference's rule (``exact=False``): while budget remains, draw one of the documents that are strictly shorter than
what remains, uniformly and with replacement; stop when there is none. Headers are not budgeted, and what no document
fits into stays empty.

``exact=True`` budgets headers too, and fills what remains with the beginning of one more document, so that a context
has the length it says. Where the pools hold too few documents that are short enough, documents are cut (`Pick.cap`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lcbench.tasks.hundred.counting import TokenCounter, shortened
from lcbench.tasks.hundred.documents import Document
from lcbench.tasks.hundred.draws import Draws

FEW = 5
"""A pool that has fewer documents of a fitting length than this is helped by cutting longer ones."""

_LEAST_PIECE = 12  # tokens of the shortest passage that is worth a header
_REDRAWS = 50


@dataclass(frozen=True)
class Measure:
    """How lengths are counted while filling.

    Attributes:
        counter: the build's. specials: tokens it adds to every text. glue: tokens of a header and its blank lines.
        exact: see the module.
    """

    counter: TokenCounter
    specials: int
    glue: int
    exact: bool

    @classmethod
    def of(cls, counter: TokenCounter, exact: bool) -> Measure:
        specials, glue = counter.count(["", "\n\nPassage 10:\n"])
        return cls(counter, specials, glue - specials, exact)

    def cost(self, document: Document) -> int:
        """What a passage takes of the budget."""
        return document.tokens - self.specials + self.glue if self.exact else document.tokens

    def text(self, text: str) -> int:
        """Tokens of a text without those that are added to it."""
        return self.counter.count([text])[0] - self.specials

    def cut(self, document: Document, cost: int) -> Document | None:
        """The beginning of a document that costs at most ``cost``; None when that is too little to read."""
        text, tokens = shortened(document.text, cost - self.cost(replace(document, tokens=0)), self.counter)
        if tokens - self.specials < _LEAST_PIECE:
            return None
        return replace(document, text=text, tokens=tokens, questions=(), excerpt=True)

    def slack(self, target: int) -> int:
        """Tokens of a target that may stay empty: 1 %, at least 16."""
        return max(16, target // 100) if self.exact else 0


def tolerance(target: int) -> int:
    """By how many tokens an exact context may miss its target: 2 %, at least 24."""
    return max(24, target // 50)


class Index:
    """Documents in ascending order of tokens, for draws below a length.

    Args:
        documents: as `pools.ordered` gives them.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents
        self._tokens = [document.tokens for document in documents]

    def __bool__(self) -> bool:
        return bool(self.documents)

    @cached_property
    def sources(self) -> set[str]:
        """Names of what the documents come from."""
        return {document.source for document in self.documents}

    def below(self, tokens: int, *, inclusive: bool = False) -> int:
        """How many documents are shorter than ``tokens``: those with the smaller places."""
        return (bisect_right if inclusive else bisect_left)(self._tokens, tokens)

    def draw(self, count: int, draws: Draws, avoid: Collection[str] = ()) -> Document | None:
        """One of the first ``count`` documents whose text is not in ``avoid``; None when there is none."""
        if count <= 0:
            return None
        for _ in range(20 if avoid else 1):
            document = self.documents[draws.below(count)]
            if document.text not in avoid:
                return document
        left = [d for d in self.documents[:count] if d.text not in avoid]
        return draws.choice(left) if left else None


@dataclass(frozen=True)
class Pick:
    """What to choose.

    Attributes:
        budget: tokens to fill. target: length of the whole context, which the slack goes by.
        distinct: no text twice.
        least: passages that there must be.
        cap: passages are cut to this many tokens; None leaves them whole.
    """

    budget: int
    target: int
    distinct: bool = False
    least: int = 1
    cap: int | None = None


def fits(index: Index, measure: Measure, cost: int) -> int:
    """How many documents of ``index`` (its first ones) cost less than ``cost``, or as much where that is exact."""
    if not measure.exact:
        return index.below(cost)
    return index.below(cost + measure.specials - measure.glue, inclusive=True)


def fill(index: Index, pick: Pick, measure: Measure, draws: Draws, avoid: Collection[str] = ()) -> list[Document]:
    """Passages up to a budget, at least ``pick.least`` of them where the pool allows it.

    Args:
        avoid: texts that must not come.
    """
    share = pick.budget // pick.least
    if pick.least > 1 and pick.cap is None and fits(index, measure, share) < FEW:
        pick = replace(pick, cap=pick.budget // (pick.least + 1))
    for _ in range(_REDRAWS):
        chosen = _once(index, pick, measure, draws, set(avoid))
        if len(chosen) >= pick.least:
            return chosen
    return _once(index, replace(pick, cap=pick.budget // (pick.least + 1)), measure, draws, set(avoid))


def _once(index: Index, pick: Pick, measure: Measure, draws: Draws, used: set[str]) -> list[Document]:
    chosen: list[Document] = []
    left = pick.budget
    while left > measure.slack(pick.target):
        count = len(index.documents) if pick.cap is not None else fits(index, measure, left)
        document = index.draw(count, draws, used)
        if document is None:
            break
        if pick.distinct:
            used.add(document.text)
        if pick.cap is not None and measure.cost(document) > min(pick.cap, left):
            cut = measure.cut(document, min(pick.cap, left))
            if cut is None:
                break
            document = cut
        chosen.append(document)
        left -= measure.cost(document)
    if measure.exact and left > measure.slack(pick.target):
        more = top_up(index, left, measure, draws, used | {d.text for d in chosen})
        if more is not None:
            chosen.insert(draws.below(len(chosen) + 1), more)
    return chosen


def top_up(index: Index, left: int, measure: Measure, draws: Draws, avoid: Collection[str]) -> Document | None:
    """The beginning of a document for what is left of the budget; None when nothing sensible fits."""
    document = index.draw(len(index.documents), draws, avoid)
    if document is None:
        return None
    return document if measure.cost(document) <= left else measure.cut(document, left)
