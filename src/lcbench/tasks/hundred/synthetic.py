"""The four tasks made from noise alone: find a passage, count passages, follow a key, collect counts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lcbench.errors import DataMissing
from lcbench.tasks.hundred.context import (
    BRACKETED_REFERENCE,
    COINCIDING_OPTIONS,
    SAME_DOCUMENT_TWICE,
    Context,
    Kit,
    cuts,
    laid_out,
    sources_of,
    texts,
)
from lcbench.tasks.hundred.documents import Document
from lcbench.tasks.hundred.draws import Draws
from lcbench.tasks.hundred.fill import FEW, Index, Pick, fill, fits, top_up

RETRIEVAL = ("SUM-1", "SUM-2", "CNN")
NOISE = ("QA-1", "QA-2", "CNN")

PAIRS = 3
STARS = 4
MOST_STARS = 100
MOST_COPIES = 3


def passage_retrieval(kit: Kit, target: int, budget: int, draws: Draws) -> Context:
    """Which passage a summary is of."""
    index = kit.index(*RETRIEVAL)
    pieces: list[Document] = []
    whole: list[int] = []
    for _ in range(60):
        pieces = fill(index, Pick(budget, target, distinct=kit.paper), kit.measure, draws)
        whole = [i for i, piece in enumerate(pieces) if piece.questions]
        # A single passage leaves nothing to find; the reference's rule allows it.
        if whole and (len(pieces) > 1 or not kit.exact):
            break
    if not whole:
        raise DataMissing(
            f"No document with a summary fits into {budget} tokens; the shortest has {index.documents[0].tokens}.",
            "Build longer contexts, leave passage_retrieval out with --tasks, or download more of the pools.",
        )
    place = draws.choice(whole)
    question = pieces[place].questions[0]
    bracketed = question.listed and not kit.paper
    twins = (SAME_DOCUMENT_TWICE,) if [p.text for p in pieces].count(pieces[place].text) > 1 else ()
    return Context(
        text=laid_out(pieces, "inline_passage", strip=True),
        inputs=(str(list(question.answers)) if bracketed else question.answers[0],),
        questions=("",),
        answers=((str(place + 1),),),
        document=pieces[place],
        target=(place + 1,),
        passages=len(pieces),
        sources=sources_of(pieces),
        faults=twins + ((BRACKETED_REFERENCE,) if bracketed else ()),
        cut=cuts(pieces),
        chance=round(1 / len(pieces), 4),
    )


def passage_count(kit: Kit, target: int, budget: int, draws: Draws) -> Context:
    """How many different passages there are, some standing there two or three times."""
    drawn = _copies(kit, target, budget, draws)
    pieces = draws.shuffled([document for document, copies in drawn for _ in range(copies)])
    once = [document for document, _ in drawn]
    return Context(
        text=laid_out(pieces, "paragraph", strip=True),
        inputs=("",),
        questions=("",),
        answers=((str(len(drawn)),),),
        passages=len(pieces),
        sources=sources_of(pieces),
        faults=(SAME_DOCUMENT_TWICE,) if len({d.text for d in once}) < len(once) else (),
        cut=cuts(once),
    )


def _copies(kit: Kit, target: int, budget: int, draws: Draws) -> list[tuple[Document, int]]:
    """Documents with how often each is to stand there. In paper mode a text is drawn once."""
    index, measure = kit.index(*NOISE), kit.measure
    index = Index(index.documents[: index.below(target, inclusive=True)])
    if fits(index, measure, budget // 2) < FEW:
        return _short_copies(kit, target, budget, draws)
    drawn: list[tuple[Document, int]] = []
    used: set[str] = set()
    left = budget
    while left > measure.slack(target):
        copies = draws.between(1, MOST_COPIES)
        # The reference wants copies x length strictly below what is left; without headers -(-a // b) rounds up.
        cost = left // copies if measure.exact else -(-left // copies)
        document = index.draw(fits(index, measure, cost), draws, used if kit.paper else ())
        if document is None:
            break
        drawn.append((document, copies))
        used.add(document.text)
        left -= copies * measure.cost(document)
    if measure.exact and left > measure.slack(target):
        more = top_up(kit.index(*NOISE), left, measure, draws, used)
        drawn += [(more, 1)] if more is not None else []
    return drawn


def _short_copies(kit: Kit, target: int, budget: int, draws: Draws) -> list[tuple[Document, int]]:
    """For budgets that hardly a document fits into: beginnings of a sixth of it, each of another document."""
    index = kit.index(*NOISE)
    cap, left = budget // 6, budget
    drawn: list[tuple[Document, int]] = []
    used: set[str] = set()
    while left > kit.measure.slack(target):
        copies = draws.between(1, MOST_COPIES)
        document = index.draw(len(index.documents), draws, used)
        if document is None:
            break
        used.add(document.text)
        limit = min(cap, left // copies)
        piece = document if kit.measure.cost(document) <= limit else kit.measure.cut(document, limit)
        if piece is None:
            copies, piece = 1, kit.measure.cut(document, left)
        if piece is None:
            break
        drawn.append((piece, copies))
        left -= copies * kit.measure.cost(piece)
    return drawn


def kv_retrieval(kit: Kit, target: int, budget: int, draws: Draws) -> Context:
    """Three pairs of keys and values in a chain, between the passages and not in reading order.

    Reference: the value of the first key is asked. Paper: the end of the chain.
    """
    keys = [draws.uuid() for _ in range(PAIRS + 1)]
    pairs = [texts()["pair"].replace("{key}", a).replace("{value}", b) for a, b in pairwise(keys)]
    pieces = _noise(kit, target, budget, pairs, PAIRS + 1, draws)
    places = draws.sample(range(len(pieces)), PAIRS)
    ask = "ask_chain" if kit.paper else "ask_pair"
    return Context(
        text=_with_needles(pieces, dict(zip(places, pairs, strict=True)), "needle_passage", strip=True),
        inputs=(texts()[ask].replace("{key}", keys[0]),),
        questions=("",),
        answers=((keys[-1] if kit.paper else keys[1],),),
        target=tuple(place + 1 for place in places),
        passages=len(pieces),
        sources=sources_of(pieces),
        cut=cuts(pieces),
    )


def counting_stars(kit: Kit, target: int, budget: int, draws: Draws) -> Context:
    """Which list has the four counts that stand between the passages."""
    counts = [draws.between(1, MOST_STARS) for _ in range(STARS)]
    needles = [texts()["stars"].replace("{count}", str(count)) for count in counts]
    pieces = _noise(kit, target, budget, needles, STARS, draws)
    places = sorted(draws.sample(range(len(pieces)), STARS))
    options = star_options(counts, draws, distinct=kit.paper)
    listed = [texts()["unanswerable"], *map(str, options)]
    lines = "".join(f"{number}. {option}\n" for number, option in enumerate(listed, 1))
    return Context(
        text=_with_needles(pieces, dict(zip(places, needles, strict=True)), "joined_passage"),
        inputs=(texts()["ask_stars"].replace("{options}", lines),),
        questions=("",),
        answers=((listed.index(str(counts)) + 1, str(counts)),),
        target=tuple(place + 1 for place in places),
        passages=len(pieces),
        sources=sources_of(pieces),
        faults=(COINCIDING_OPTIONS,) if len(set(listed)) < len(listed) else (),
        cut=cuts(pieces),
        chance=round(1 / len(listed), 4),
    )


def star_options(counts: Sequence[int], draws: Draws, *, distinct: bool) -> list[list[int]]:
    """The right list and three wrong ones, shuffled: two with two counts exchanged, one with a count replaced.

    As published some may coincide (equal counts exchanged, a count replaced by itself); ``distinct`` draws until none
    do, and replaces a count where no exchange makes a new list.
    """
    wrong = [_exchanged(counts, draws), _replaced(counts, draws), _exchanged(counts, draws)]
    while distinct and len({tuple(option) for option in [*wrong, counts]}) < len(wrong) + 1:
        make = (_exchanged, _replaced, _exchanged) if len(set(counts)) > 2 else (_replaced,) * 3
        wrong = [one(counts, draws) for one in make]
    return draws.shuffled([list(counts), *wrong])


def _exchanged(counts: Sequence[int], draws: Draws) -> list[int]:
    result = list(counts)
    a, b = draws.sample(range(len(result)), 2)
    result[a], result[b] = result[b], result[a]
    return result


def _replaced(counts: Sequence[int], draws: Draws) -> list[int]:
    result = list(counts)
    result[draws.below(len(result))] = draws.between(1, MOST_STARS)
    return result


def _noise(kit: Kit, target: int, budget: int, needles: Sequence[str], least: int, draws: Draws) -> list[Document]:
    """Passages around needles, at least ``least`` of them."""
    room = budget - sum(kit.measure.text(needle) for needle in needles) if kit.exact else budget
    index = kit.index(*NOISE)
    pieces = fill(index, Pick(room, target, least=least), kit.measure, draws) if room > 0 else []
    if len(pieces) < least:
        raise DataMissing(
            f"{least} passages and {len(needles)} needles do not fit into {budget} tokens.", "Build longer contexts."
        )
    return pieces


def _with_needles(pieces: Sequence[Document], needles: dict[int, str], form: str, *, strip: bool = False) -> str:
    """Passages under their numbers, each needle before the passage at its place (from 0)."""
    parts = []
    for place, piece in enumerate(pieces):
        text = piece.text.lstrip("\n").lstrip(" ") if strip else piece.text
        template = texts()[form].replace("{number}", str(place + 1))
        parts.append(needles.get(place, "") + template.replace("{text}", text))
    return "".join(parts)
