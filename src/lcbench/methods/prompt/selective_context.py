"""Selective-Context: what a language model expected anyway is left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np

from lcbench.config.options import param
from lcbench.methods.base import Traits
from lcbench.methods.registry import method
from lcbench.methods.rewriting import PromptText
from lcbench.methods.surprisal import LanguageModelTransform, Stream, with_offsets
from lcbench.models.info import LoadedModel

# Behind a full stop or a question mark, but not those of "e.g." or "Mr."; and behind 。？！.
_SENTENCE_END = re.compile(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=[.?])(?=\s)|(?<=[。？！])")
_WORD = re.compile(r"\s?[\u3040-\u9fff]|\s?[^\s\u3040-\u9fff]+|\s")  # with the blank before it, as tokens have it
_LONGEST = 1023  # tokens of a sentence that are read at once: GPT-2's window less the token before them
OMITTED = "..."

Level = Literal["sentence", "word", "token"]


@dataclass(frozen=True)
class Unit:
    """A stretch of text that stays or goes as a whole, and its self-information in nats."""

    text: str
    value: float


@method("selective-context", paper="arXiv:2310.06201", traits=Traits(family="prompt", prefill="own"))
@dataclass(frozen=True)
class SelectiveContext(LanguageModelTransform):
    """Selective-Context (arXiv:2310.06201; rules as in liyucheng09/Selective_Context).

    White space is collapsed and the context cut into sentences behind ``.`` and ``?`` (and 。？！), but not behind
    "e.g." or "Mr.". A causal language model reads each sentence by itself, behind its end-of-text token; the self-
    information of a unit is the mean of ``-ln p`` of its tokens, one that reaches over several units counting for
    each in equal parts. Units below the percentile ``100 (1 - rate)`` of all go: words and tokens without a trace, a
    sentence leaves "...".

    The published code asks spaCy for noun phrases; here the unit is a word (a character of a script without spaces)
    with the blank before it: our choice, one less dependency. Its model is GPT-2, here the demo model unless `model`
    names another. `rate` counts units, not tokens; the published default is 0.65.
    """

    proof: ClassVar[str] = (
        "Values of units against -ln p of the plain transformers model, sentence by sentence; units go in the order of "
        "their value; rate 1 leaves the text as it is. The package itself needs spaCy's models and GPT-2 from the hub: "
        "not compared."
    )

    revision: ClassVar[int] = 2

    rate: float = param(0.65, "share of the units that stays", minimum=0.01, maximum=1)
    level: Level = param("word", "what stays or goes as a whole: sentence, word or token")
    model: str = param("demo", "language model that reads the context: as --model")

    def rewrite(self, prompt: PromptText, helper: LoadedModel) -> str:
        text = re.sub(r"\s+", " ", prompt.passage).strip()
        units = [unit for sentence in sentences(text) for unit in units_of(sentence, self.level, helper)]
        if not units:
            return prompt.passage
        least = float(np.percentile([unit.value for unit in units], 100 * (1 - self.rate)))
        left = "".join(unit.text if unit.value >= least else self._gone(unit.text) for unit in units)
        begin, end = (re.match(p, prompt.passage) for p in (r"\s*", r"(?s).*?(\s*)$"))
        # The white space at the ends belongs to the template around the context.
        return (begin.group() if begin else "") + left.strip() + (end.group(1) if end else "")

    def _gone(self, text: str) -> str:
        """What stands for a unit that goes."""
        return text[: len(text) - len(text.lstrip())] + OMITTED if self.level == "sentence" else ""


def sentences(text: str) -> list[str]:
    """A text cut behind its sentences, each but the first with the blank before it; joined by nothing they are the
    text."""
    cuts = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    return [text[a:b] for a, b in pairwise(cuts) if b > a]


def units_of(sentence: str, level: Level, helper: LoadedModel) -> list[Unit]:
    """The units of a sentence with their self-information. A blank before the sentence is not read; it belongs to the
    first unit."""
    text = sentence.lstrip()
    gap = sentence[: len(sentence) - len(text)]
    ids, offsets = with_offsets(helper, text)
    if not ids:
        return []
    values = self_information(helper, ids)
    if level == "sentence":
        return [Unit(sentence, sum(values) / len(values))]
    if level == "token":
        starts = [begin for begin, _ in offsets]
        spans = list(zip(starts, [*starts[1:], len(text)], strict=True))
    else:
        spans = [match.span() for match in _WORD.finditer(text)]
    first, *others = _shared_out(text, spans, offsets, values)
    return [Unit(gap + first.text, first.value), *others]


def self_information(helper: LoadedModel, ids: Sequence[int]) -> list[float]:
    """``-ln p`` of each token behind the end-of-text token."""
    first = helper.tokenizer.eos_token_id if helper.tokenizer.eos_token_id is not None else helper.info.bos_id or 0
    room = min(_LONGEST, helper.info.window - 1)
    found: list[float] = []
    for start in range(0, len(ids), room):
        found += Stream(helper).losses([int(first), *ids[start : start + room]])[1:].tolist()
    return found


def _shared_out(
    sentence: str, spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]], values: Sequence[float]
) -> list[Unit]:
    """Units with the mean value of their tokens."""
    totals, counts = [0.0] * len(spans), [0.0] * len(spans)
    at = 0
    for (begin, end), value in zip(offsets, values, strict=True):
        while at + 1 < len(spans) and spans[at][1] <= begin:
            at += 1
        touched = [at]
        while touched[-1] + 1 < len(spans) and spans[touched[-1] + 1][0] < end:
            touched.append(touched[-1] + 1)
        for unit in touched:
            totals[unit] += value / len(touched)
            counts[unit] += 1 / len(touched)
    return [
        Unit(sentence[a:b], total / count if count else 0.0)
        for (a, b), total, count in zip(spans, totals, counts, strict=True)
    ]
