"""Parts of documents that still hold an answer, for contexts that are shorter than the documents of a pool.

The published lengths begin at 8k, where enough documents fit whole. For a context of 1k no paper fits, so what is asked
is a part of it around the place where the answer stands word for word. Questions whose answer does not stand in the
text (yes, no, unanswerable, free wording) are not asked then.
"""

from __future__ import annotations

from dataclasses import replace

from lcbench.tasks.hundred.documents import Document, Question
from lcbench.tasks.hundred.draws import Draws
from lcbench.tasks.hundred.fill import Measure

_NOT_FOUND = {"yes", "no", "unanswerable"}


def answer_place(document: Document, question: Question) -> tuple[int, int] | None:
    """Begin and end of the first accepted answer that stands in the text, letter case aside."""
    lowered = document.text.lower()
    for answer in question.answers:
        wanted = answer.strip().lower().rstrip(".")
        if len(wanted) > 1 and wanted not in _NOT_FOUND:
            place = lowered.find(wanted)
            if place >= 0:
                return place, place + len(wanted)
    return None


def excerpt(document: Document, cost: int, measure: Measure, draws: Draws) -> Document | None:
    """A part of ``document`` that costs at most ``cost`` and holds the answer to one of its questions.

    The question is drawn among those that can be answered so, and the answer's place in the part is random; further
    questions stay when their answers are in it too.
    """
    places = [(q, place) for q in document.questions if (place := answer_place(document, q)) is not None]
    if not places or len(document.text) != len(document.text.lower()):
        return None
    question, (begin, end) = draws.choice(places)
    room = cost - measure.cost(replace(document, tokens=0))
    rate = len(document.text) / max(1, document.tokens)
    depth = 0.1 + 0.8 * draws.below(1000) / 1000
    for shrink in (1.0, 0.85, 0.7, 0.5):
        size = max(end - begin, int(room * rate * shrink))
        start = min(max(0, begin - int((size - (end - begin)) * depth)), max(0, len(document.text) - size))
        text = _whole_words(document.text, start, min(len(document.text), start + size))
        tokens = measure.counter.count([text])[0]
        if tokens <= room:
            break
    else:
        return None
    part = replace(document, text=text, tokens=tokens, excerpt=True)
    kept = tuple(q for q in document.questions if answer_place(part, q) is not None)
    return replace(part, questions=kept) if question in kept else None


def fewer_passages(document: Document, cost: int, measure: Measure, draws: Draws) -> Document | None:
    """A document of passages without some of them: those that hold an answer or are named in the question stay.

    None when no passage holds the answer, or when those that must stay cost more than ``cost``.
    """
    question = document.questions[0]
    places = draws.shuffled(range(len(document.passages)))
    parts = document.passages
    must = [i for i in places if _needed(parts[i], document, question)]
    if not any(answer_place(replace(document, text=parts[i]), question) for i in must):
        return None
    sizes = {i: measure.text(parts[i]) + measure.glue for i in places}
    left = cost - sum(sizes[i] for i in must)
    if left < 0:
        return None
    kept = list(must)
    for i in places:
        if i not in must and sizes[i] <= left:
            kept.append(i)
            left -= sizes[i]
    text = "".join(f"Passage {k}:\n{parts[i]}" for k, i in enumerate(sorted(kept), 1))
    tokens = measure.counter.count([text])[0]
    return replace(document, text=text, tokens=tokens, excerpt=len(kept) < len(parts))


def _needed(passage: str, document: Document, question: Question) -> bool:
    title = passage.strip().partition("\n")[0].strip().lower()
    named = len(title) > 3 and title in question.text.lower()
    return named or answer_place(replace(document, text=passage), question) is not None


def _whole_words(text: str, start: int, end: int) -> str:
    if start > 0:
        while start < end and not text[start - 1].isspace():
            start += 1
    if end < len(text):
        while end > start and not text[end].isspace():
            end -= 1
    return text[start:end].strip()
