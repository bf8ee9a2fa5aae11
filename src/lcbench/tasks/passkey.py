"""The passkey test: a number hidden in irrelevant text, asked for at the end.

Construction: `eval/passkey_utils` and `config/eval_config/paulgraham_passkey` of henryzhongsc/longctx_bench
(arXiv:2407.01527). The texts of instruction, needle and question are data (`prompts/passkey.json`).
"""

from __future__ import annotations

import hashlib
import json
import platform
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import cycle, product
from pathlib import Path
from typing import Literal

from lcbench.config.options import format_value, param
from lcbench.errors import BadValue, DataMissing
from lcbench.tasks.base import Loaded, Prompt, Row, Task
from lcbench.tasks.facts import PASSKEY, TASK_FACTS
from lcbench.tasks.registry import task

ESSAYS = "paulgraham"
SEED = 42  # the published keys are drawn after seeding with 42

_WORD = re.compile(r"\S+\s*")
_DIGITS = "0123456789"
_FACTS = TASK_FACTS[PASSKEY]


def evenly(least: float, greatest: float, count: int) -> list[float]:
    """``count`` values from ``least`` to ``greatest``, ends exact; the published formula.

    One value when the ends are equal; both ends when ``count`` is 1 and they are not.
    """
    if least == greatest:
        return [least]
    steps = count - 1
    return [least, *(i * (greatest - least) / steps + least for i in range(1, steps)), greatest]


@task(PASSKEY)
@dataclass(frozen=True)
class Passkey(Task):
    """Every length with every depth, ``repeats`` keys each. The rows come in that order, shortest prompts first, so
    ``--limit N`` keeps the first N: one length after another, not a sample of all."""

    lengths: tuple[int, ...] = param(
        tuple(int(n) for n in evenly(512, 20480, 10)),
        "words of background, several joined by /: 512/1024/2048",
        minimum=1,
    )
    depths: str = param("10", "where the key is hidden: a count from begin to end, or places, e.g. 0.0/0.5/1.0")
    repeats: int = param(3, "keys a length and depth", minimum=1)
    digits: int = param(7, "digits of a key", minimum=1, maximum=1000)
    max_new_tokens: int = param(256, "most tokens of an answer", minimum=1)
    haystack: Literal["python", "paulgraham"] = param(
        "python", "background: the language reference of this Python, or the downloaded Paul Graham essays"
    )
    instruction: Literal["prefix", "suffix"] = param("prefix", "where the instruction stands, before or after the text")

    benchmark = _FACTS.benchmark
    category = _FACTS.category
    language = _FACTS.language
    metric = _FACTS.metric
    chat = _FACTS.chat
    rows = _FACTS.rows
    truncate = "error"

    def __post_init__(self) -> None:
        if not self.lengths:
            raise BadValue(
                "passkey@lengths has no length.", "Write lengths=512, or several joined by /: lengths=512/1024."
            )
        if len(set(self.lengths)) < len(self.lengths):
            raise BadValue(f"passkey@lengths={format_value(self.lengths)} has a length twice.", "Give each once.")
        object.__setattr__(self, "depths", _canonical_depths(self.depths))

    def depth_values(self) -> list[float]:
        """The depths, each from 0 (before the first word) to 1 (after the last)."""
        if self.depths.isdecimal():
            return [float(depth) for depth in evenly(0, 1, int(self.depths))]
        return [float(d) for d in self.depths.split("/")]

    def load(self, home: Path, limit: int | None = None) -> Loaded:
        haystack, note = self._haystack(home)
        rows: list[Row] = []
        for row in self._rows(haystack):
            if limit is not None and len(rows) >= limit:
                break
            rows.append(row)
        digest = hashlib.sha256("".join(haystack).encode())
        return Loaded(tuple(rows), digest.hexdigest(), note)

    def answer_tokens(self, home: Path) -> int:
        return self.max_new_tokens

    def prompt(self, row: Row, home: Path) -> Prompt:
        """Parts are stripped and joined by single blanks, empty ones included, as published: a context at depth 0
        begins with a blank, and every context ends with one."""
        background, cut = row.fields["background"], row.fields["cut"]
        context = " ".join([background[:cut].strip(), row.fields["needle"], background[cut:].strip(), ""])
        texts = _texts()
        instruction, question = texts["instruction"], texts["question"]
        if self.instruction == "prefix":
            start = len(instruction)
            end = start + len(context)
            return Prompt(instruction + context + question, end, (start, end), question)
        return Prompt(context + instruction + question, len(context), (0, len(context)), question)

    def _rows(self, haystack: tuple[str, ...]) -> Iterator[Row]:
        texts, depths = _texts(), self.depth_values()
        names = _depth_names(depths)
        keys = random.Random(SEED)
        for length in self.lengths:
            background = make_background(haystack, length)
            starts = [match.start() for match in _WORD.finditer(background)] + [len(background)]
            words = len(starts) - 1
            for (depth, name), repeat in product(zip(depths, names, strict=True), range(self.repeats)):
                key = "".join(keys.choice(_DIGITS) for _ in range(self.digits))
                yield Row(
                    id=f"len{length}-depth{name}-rep{repeat}",
                    fields={
                        "background": background,
                        "cut": starts[int(words * depth)],
                        "needle": texts["needle"].replace(texts["placeholder"], key),
                    },
                    answers=(key,),
                    length=length,
                    meta={
                        "length_words": length,
                        "depth": depth,
                        "repeat": repeat,
                        "key": key,
                        "background": f"{self.haystack}/{length}",
                    },
                )

    def _haystack(self, home: Path) -> tuple[tuple[str, ...], str]:
        """The texts the background is cut from, in order, and what to tell the user about them."""
        if self.haystack == "paulgraham":
            return _essays(home), ""
        return _language_reference(), (
            f"the background is the language reference of Python {platform.python_version()}; other versions "
            "of Python have other texts, so compare numbers of one version, or use haystack=paulgraham"
        )


def make_background(texts: tuple[str, ...], words: int) -> str:
    """The first ``words`` words of the texts, one after the other with nothing between, again from the first when
    they run out; stripped at both ends.

    A word is a run of non-blanks with the blanks after it. Words are counted text by text, so a word that fuses with
    the first one of the next text was counted twice, and a background can end some words short; as published.

    Raises:
        BadValue: no text holds a word.
    """
    counts = [len(_WORD.findall(text)) for text in texts]
    if not sum(counts):
        raise BadValue("The passkey haystack has no words.", "Use passkey@haystack=python.")
    joined, counted = [], 0
    for text, count in cycle(zip(texts, counts, strict=True)):
        joined.append(text)
        counted += count
        if counted >= words:
            break
    return "".join(_WORD.findall("".join(joined))[:words]).strip()


def _essays(home: Path) -> tuple[str, ...]:
    from lcbench.data.manifest import manifest
    from lcbench.data.store import read_text

    names = sorted(path for path, entry in manifest(ESSAYS).files.items() if entry.kind == "text")
    # Line ends as Python reads text files, which is how the published code reads them; one essay has a CR.
    return tuple(re.sub("\r\n?", "\n", read_text(home, ESSAYS, name)) for name in names)


@cache
def _language_reference() -> tuple[str, ...]:
    """The topics of the language reference that every CPython carries, by name."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataMissing(
            "This Python comes without pydoc_data.topics, the text in which passkey hides its keys.",
            "Use passkey@haystack=paulgraham after `lcbench download paulgraham`, or another build of Python.",
        ) from None
    return tuple(topics[name] for name in sorted(topics))


@cache
def _texts() -> dict[str, str]:
    """Instruction, needle, placeholder and question."""
    source = files("lcbench.tasks").joinpath("prompts/passkey.json").read_text(encoding="utf-8")
    return dict(json.loads(source))


_MOST_DEPTHS = 10_000


def _canonical_depths(text: str) -> str:
    """A count as it is, places as decimal numbers joined by ``/``; a whole number alone is a count."""
    if text.isdecimal():
        if int(text) < 1:
            raise BadValue(
                f"passkey@depths={text} is a count below 1.", "Give a count of 1 or more; the place 0 is 0.0."
            )
        if len(text) > 6 or int(text) > _MOST_DEPTHS:
            raise BadValue(f"passkey@depths={text[:20]} is a count above {_MOST_DEPTHS:,}.", "Write e.g. depths=10.")
        return str(int(text))
    try:
        places = [float(place) for place in text.split("/")]
    except ValueError:
        raise BadValue(
            f"passkey@depths={text} is neither a count nor places.", "Write depths=10 or depths=0.0/0.5/1.0."
        ) from None
    if not all(0 <= place <= 1 for place in places):
        raise BadValue(f"passkey@depths={text} has a place outside 0 to 1.", "0.0 is the begin, 1.0 the end.")
    if len(set(places)) < len(places):
        raise BadValue(f"passkey@depths={text} has a place twice.", "Give each once.")
    return "/".join(repr(abs(place)) for place in places)


def _depth_names(depths: list[float]) -> list[str]:
    """Depths with as many decimals, three or more, as it takes to tell them apart."""
    for decimals in range(3, 18):
        names = [f"{depth:.{decimals}f}" for depth in depths]
        if len(set(names)) == len(names):
            return names
    return [repr(depth) for depth in depths]
