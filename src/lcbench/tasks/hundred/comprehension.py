"""The four tasks about the meaning of documents: QA and summaries, of one passage or of several among others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lcbench.errors import DataMissing
from lcbench.tasks.hundred.context import Context, Kit, accepted, cuts, laid_out, sources_of, texts
from lcbench.tasks.hundred.documents import Document
from lcbench.tasks.hundred.draws import Draws
from lcbench.tasks.hundred.excerpts import excerpt, fewer_passages
from lcbench.tasks.hundred.fill import FEW, Index, Measure, Pick, fill, fits

Shorten = Callable[[Document, int, Measure, Draws], Document | None]

QA = ("QA-1", "QA-2")
SUMS = ("SUM-1", "SUM-2")

_ROOM = 0.75  # of the budget, for a target that is shortened or drawn first: others must fit beside it
_TRIES = 60


def single_doc_qa(kit: Kit, target: int, budget: int, draws: Draws) -> Context:
    """Questions about one passage among others, which the instruction names."""
    pieces, place = _around_one(kit, QA, target, budget, draws, excerpt)
    document = pieces[place]
    return Context(
        text=laid_out(pieces, "passage"),
        inputs=tuple(q.text for q in document.questions),
        questions=tuple(q.text for q in document.questions),
        answers=accepted(document.questions),
        instruction=texts()["answer_from"].replace("{numbers}", str(place + 1)),
        document=document,
        target=(place + 1,),
        passages=len(pieces),
        sources=sources_of(pieces),
        cut=cuts(pieces),
    )


def single_doc_sum(kit: Kit, target: int, budget: int, draws: Draws) -> Context:
    """A summary of one passage among others."""
    pieces, place = _around_one(kit, SUMS, target, budget, draws, None)
    document = pieces[place]
    order = texts()["summarize"].replace("{number}", str(place + 1))
    return Context(
        text=laid_out(pieces, "passage"),
        inputs=tuple(_order(order, q.text) for q in document.questions),
        questions=tuple(q.text for q in document.questions),
        answers=accepted(document.questions),
        document=document,
        target=(place + 1,),
        passages=len(pieces),
        sources=sources_of(pieces),
        cut=cuts(pieces),
    )


def multi_doc_qa(kit: Kit, target: int, budget: int, draws: Draws) -> Context:
    """A question about several passages among others; the instruction names all passages of its sample."""
    document, pieces, numbers = _among(kit, "MULTI", QA, target, budget, draws, fewer_passages)
    return Context(
        text=laid_out(pieces, "joined_passage"),
        inputs=tuple(q.text for q in document.questions),
        questions=tuple(q.text for q in document.questions),
        answers=accepted(document.questions),
        instruction=texts()["answer_from"].replace("{numbers}", ",".join(map(str, numbers))),
        document=document,
        target=tuple(numbers),
        passages=len(pieces),
        sources=sources_of(pieces),
        cut=cuts(pieces),
    )


def multi_doc_sum(kit: Kit, target: int, budget: int, draws: Draws) -> Context:
    """One summary of several passages among others."""
    document, pieces, numbers = _among(kit, "MSUM", SUMS, target, budget, draws, None)
    return _combined(document, pieces, numbers)


def base_documents(kit: Kit, task: str, below: int, rows: int, draws: Draws) -> list[Document]:
    """The documents of the reference's base set: those shorter than ``below``, a sample of ``rows`` of them."""
    pools = {"single_doc_qa": ("QA-1",), "multi_doc_qa": ("MULTI",), "single_doc_sum": SUMS, "multi_doc_sum": ("MSUM",)}
    index = kit.askable(*pools[task])
    fitting = list(index.documents[: index.below(below)])
    shorten: Shorten | None = {"single_doc_qa": excerpt, "multi_doc_qa": fewer_passages}.get(task)
    if len(fitting) < FEW and shorten is not None:
        for document in draws.shuffled(index.documents[len(fitting) :]):
            if len(fitting) >= rows:
                break
            part = shorten(document, below * (50 + draws.below(40)) // 100, kit.measure, draws)
            fitting += [part] if part is not None else []
    if not fitting:
        raise _nothing(task, below, index)
    return draws.sample(fitting, rows)


def base_context(task: str, document: Document, draws: Draws) -> Context:
    """A document of the base set presented on its own."""
    if task == "multi_doc_sum":
        pieces = [replace(document, text=part) for part in draws.shuffled(document.passages)]
        return _combined(document, pieces, list(range(1, len(pieces) + 1)))
    questions = tuple(q.text for q in document.questions)
    count = len(document.passages) if task == "multi_doc_qa" else 1
    inputs, instruction, text = questions, "", laid_out([document], "passage")
    if task == "single_doc_qa":
        instruction = texts()["answer_from"].replace("{numbers}", "1")
    elif task == "multi_doc_qa":
        instruction, text = texts()["answer_from_all"], document.text
    else:
        inputs = tuple(_order(texts()["summarize"].replace("{number}", "1"), q) for q in questions)
    return Context(
        text, inputs, questions, accepted(document.questions), count, (document.source,) * count, instruction, document,
        tuple(range(1, count + 1)), cut=int(document.excerpt),
    )  # fmt: skip


def _combined(document: Document, pieces: list[Document], numbers: list[int]) -> Context:
    order = texts()["combine"].replace("{numbers}", ",".join(f"Passage {n}" for n in numbers))
    return Context(
        text=laid_out(pieces, "joined_passage"),
        inputs=tuple(_order(order, q.text) for q in document.questions),
        questions=tuple(q.text for q in document.questions),
        answers=accepted(document.questions),
        document=document,
        target=tuple(numbers),
        passages=len(pieces),
        sources=sources_of(pieces),
        cut=cuts(pieces),
    )


def _order(order: str, query: str) -> str:
    return f"{order}: {query}" if query else f"{order}."


def _around_one(
    kit: Kit, pools: tuple[str, ...], target: int, budget: int, draws: Draws, shorten: Shorten | None
) -> tuple[list[Document], int]:
    """Passages up to the budget and which of them is asked about.

    Reference: passages first, the asked one among them. Paper, and where hardly a document fits: the asked one first
    (shortened if need be), then passages around it, in paper mode from other sources.
    """
    index, asked_index = kit.index(*pools), kit.askable(*pools)
    few = fits(asked_index, kit.measure, budget) < FEW
    if not kit.paper and not few:
        pieces = fill(index, Pick(budget, target), kit.measure, draws)
        whole = [i for i, piece in enumerate(pieces) if piece.questions]
        if whole:
            return pieces, draws.choice(whole)
    asked = _asked(kit, asked_index, budget, draws, shorten if few else None)
    if asked is None:
        raise _nothing(" and ".join(pools), budget, asked_index)
    noise = index
    if kit.paper:
        other = [d for d in index.documents if d.source != asked.source]
        noise = Index(other) if other else index
    left = budget - kit.measure.cost(asked)
    others = fill(noise, Pick(left, target), kit.measure, draws, {asked.text, *_whole_of(index, asked)}) if left else []
    place = draws.below(len(others) + 1)
    return [*others[:place], asked, *others[place:]], place


def _whole_of(index: Index, part: Document) -> list[str]:
    """The text that a part was taken from, so that it does not come again as noise."""
    return [d.text for d in index.documents if part.text in d.text] if part.excerpt else []


def _asked(kit: Kit, index: Index, budget: int, draws: Draws, shorten: Shorten | None) -> Document | None:
    """A document to ask about: one that fits, or with ``shorten`` a part of one that does not."""
    fitting = fits(index, kit.measure, budget)
    for _ in range(_TRIES):
        if shorten is None:
            return index.draw(fitting, draws)
        document = draws.choice(index.documents)
        if kit.measure.cost(document) <= budget:
            return document
        part = shorten(document, int(budget * _ROOM), kit.measure, draws)
        if part is not None:
            return part
    return index.draw(fitting, draws)


def _among(
    kit: Kit, pool: str, noise_pools: tuple[str, ...], target: int, budget: int, draws: Draws, shorten: Shorten | None
) -> tuple[Document, list[Document], list[int]]:
    """A sample of several passages, shuffled among noise; its passages' new numbers."""
    index, noise = kit.askable(pool), kit.index(*noise_pools)
    few = fits(index, kit.measure, budget) < FEW
    document = _fitting_sample(kit, index, budget, draws, shorten if few else None)
    if document is None:
        raise _nothing(f"the pool {pool}", budget, index)
    own = [replace(document, text=part, excerpt=False) for part in document.passages]
    measure = kit.measure
    cost = sum(measure.text(p.text) + measure.glue for p in own) if measure.exact else document.tokens
    same = "\n\n".join(part.strip("\n") for part in document.passages)  # as a flattened substitute would hold it
    others = fill(noise, Pick(budget - cost, target), measure, draws, {document.text, same}) if budget > cost else []
    mixed = draws.shuffled([(piece, True) for piece in own] + [(piece, False) for piece in others])
    pieces = [piece for piece, _ in mixed]
    if document.excerpt and pieces:
        first = next(i for i, (_, mine) in enumerate(mixed) if mine)
        pieces[first] = replace(pieces[first], excerpt=True)
    return document, pieces, [number for number, (_, mine) in enumerate(mixed, 1) if mine]


def _fitting_sample(kit: Kit, index: Index, budget: int, draws: Draws, shorten: Shorten | None) -> Document | None:
    """A document of passages whose passages fit together, headers included."""
    for _ in range(_TRIES):
        document = _asked(kit, index, budget, draws, shorten)
        if document is None:
            return None
        headers = (len(document.passages) - 1) * kit.measure.glue if kit.exact else 0
        if kit.measure.cost(document) + headers <= budget:
            return document
    return None


def _nothing(what: str, budget: int, index: Index) -> DataMissing:
    shortest = index.documents[0].tokens if index else 0
    return DataMissing(
        f"Nothing of {what} fits into {budget} tokens: the shortest of {len(index.documents)} has {shortest}.",
        "Build longer contexts, leave the task out with --tasks, or download more of the pools.",
    )
