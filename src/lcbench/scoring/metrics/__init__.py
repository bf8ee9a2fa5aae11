"""The metrics of the benchmarks: pure text functions, each in a file of its own, equal to the official code.

`score` is the public entry: one metric, one prediction, the maximum over the accepted answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lcbench.errors import BadValue, UnknownName
from lcbench.scoring.metrics.classification import classification as _classification
from lcbench.scoring.metrics.code_sim import CodeSim
from lcbench.scoring.metrics.code_sim import code_sim as _code_sim
from lcbench.scoring.metrics.count import count as _count
from lcbench.scoring.metrics.first_number import first_number as _first_number
from lcbench.scoring.metrics.last_uuid import last_uuid as _last_uuid
from lcbench.scoring.metrics.passkey import exact_match, partial_match
from lcbench.scoring.metrics.qa_f1 import qa_f1 as _qa_f1
from lcbench.scoring.metrics.qa_f1_zh import qa_f1_zh as _qa_f1_zh
from lcbench.scoring.metrics.retrieval import retrieval as _retrieval
from lcbench.scoring.metrics.retrieval import retrieval_zh as _retrieval_zh
from lcbench.scoring.metrics.rouge import rouge as _rouge
from lcbench.scoring.metrics.rouge_zh import rouge_zh as _rouge_zh

__all__ = ["CODE_SIM", "METRICS", "CodeSim", "score"]

_PLAIN = {
    "qa_f1": _qa_f1,
    "qa_f1_zh": _qa_f1_zh,
    "retrieval": _retrieval,
    "retrieval_zh": _retrieval_zh,
    "count": _count,
    "first_number": _first_number,
    "last_uuid": _last_uuid,
    "passkey": exact_match,
    "passkey_partial": partial_match,
}
_ROUGES = {"rouge": _rouge, "rouge_zh": _rouge_zh}
METRICS: tuple[str, ...] = (*_PLAIN, *_ROUGES, "classification", "code_sim")
"""Names that `score` takes."""
CODE_SIM: tuple[CodeSim, ...] = ("difflib", "levenshtein")
"""The two definitions of code_sim; the first is the official one."""


def score(
    metric: str,
    prediction: str,
    answers: Iterable[str],
    all_classes: Sequence[str] | None = None,
    *,
    code_sim: CodeSim = "difflib",
    strict_recursion: bool = False,
) -> float:
    """The best score of ``prediction`` over ``answers``, 0 to 1; 0.0 without answers. The prediction is not cut.

    Args:
        metric: one of `METRICS`; the official function names (``qa_f1_score``) are understood.
        answers: texts; for ``count`` whole numbers too, as in the official function.
        all_classes: the labels, for classification.
        code_sim: which definition of code similarity.
        strict_recursion: rouge and rouge_zh give 0.0 where the official script overflows its stack.

    Raises:
        UnknownName: no such metric or ``code_sim``. BadValue: labels missing, an answer without a paragraph number, a
        prediction, answers or labels that are no texts, one text instead of several.
    """
    name = metric.removesuffix("_score")
    if name not in METRICS:
        raise UnknownName("metric", metric, METRICS)
    if code_sim not in CODE_SIM:
        raise UnknownName("code_sim definition", code_sim, CODE_SIM)
    if name == "count" and not isinstance(answers, str) and isinstance(answers, Iterable):
        # The official function compares str(answer): numbers are as good as texts here, and nowhere else.
        answers = [str(a) if isinstance(a, int) and not isinstance(a, bool) else a for a in answers]
    answers = checked_texts("answers", answers)
    if not isinstance(prediction, str):
        raise BadValue(f"The prediction is {_type(prediction)}, not text.", "Give the generated text.")
    if name == "classification" and all_classes is not None:
        all_classes = checked_texts("all_classes", all_classes)
    best = 0.0
    for answer in answers:
        best = max(best, _one(name, prediction, answer, all_classes, code_sim, strict_recursion))
    return best


def checked_texts(what: str, values: Iterable[str]) -> list[str]:
    """``values`` as a list. Raises BadValue for one text instead of several and for what is no text."""
    if isinstance(values, str):
        raise BadValue(f"{what} is one text, not a list of texts.", "Write [text].")
    if not isinstance(values, Iterable):
        raise BadValue(f"{what} is {_type(values)}, not a list of texts.", "Write [text].")
    texts = list(values)
    for value in texts:
        if not isinstance(value, str):
            shown = "null" if value is None else f"{value!r:.60}, which is {_type(value)}"
            raise BadValue(f"{what} holds {shown}; all have to be texts.", "Write numbers as '5'.")
    return texts


def _type(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _one(
    name: str,
    prediction: str,
    answer: str,
    all_classes: Sequence[str] | None,
    definition: CodeSim,
    strict_recursion: bool,
) -> float:
    if name in _ROUGES:
        return _ROUGES[name](prediction, answer, strict_recursion=strict_recursion)
    if name == "classification":
        return _classification(prediction, answer, all_classes)
    if name == "code_sim":
        return _code_sim(prediction, answer, definition=definition)
    return _PLAIN[name](prediction, answer)
