"""Names of tasks and lengths: ``100-longbench/kv_retrieval@16k``. Light: scoring and reporting import it too."""

from __future__ import annotations

from dataclasses import dataclass

from lcbench.config.options import BARE, parse_item
from lcbench.errors import BadValue
from lcbench.tasks.facts import HUNDRED, TASK_FACTS

BASE = "base"
NO_CONTEXT = "no-context"
DEFAULT_BUILD = "default"
UNIT = 1024
LEAST_LENGTH = 128
"""Tokens; below this a context has no room for two passages and a question's needle."""
LEAST_BASE = 384

TASKS: tuple[str, ...] = tuple(
    facts.name.partition("/")[2] for facts in TASK_FACTS.values() if facts.benchmark == HUNDRED
)
"""The eight tasks in the order of the reference's generator."""

QA_TASKS = ("single_doc_qa", "multi_doc_qa")
"""Those whose questions are also asked without context."""


@dataclass(frozen=True)
class HundredId:
    """A task id taken apart.

    Attributes:
        task: e.g. "kv_retrieval". length: tokens, `BASE` or `NO_CONTEXT`. build: name of the build it reads.
    """

    task: str
    length: int | str
    build: str = DEFAULT_BUILD


def parse_id(task_id: str) -> HundredId | None:
    """Take ``100-longbench/kv_retrieval@16k,build=llama`` apart; None for the tasks of other benchmarks."""
    item = parse_item(task_id, "task")
    benchmark, _, task = item.name.partition("/")
    if benchmark != HUNDRED or task not in TASKS:
        return None
    options = dict(item.options)
    length = options.get(BARE, options.get("length", BASE))
    return HundredId(task, parse_length(length), options.get("build", DEFAULT_BUILD))


def parse_length(text: str) -> int | str:
    """Tokens of ``16k`` (x 1024) or ``1000``; `BASE` and `NO_CONTEXT` stay words.

    Raises:
        BadValue: no length, or one below `LEAST_LENGTH`.
    """
    word = text.strip().lower()
    if word in (BASE, NO_CONTEXT):
        return word
    digits, thousands = (word[:-1], UNIT) if word.endswith("k") else (word, 1)
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
        raise BadValue(f"'{text}' is not a length.", "Write a number of tokens, e.g. 16k (16384) or 1000.")
    tokens = int(digits) * thousands
    if tokens < LEAST_LENGTH:
        raise BadValue(f"A context of {tokens} tokens is too short to build.", f"Use {LEAST_LENGTH} tokens or more.")
    return tokens


def length_text(length: int | str) -> str:
    """Canonical text: ``16k`` for multiples of 1024, else the plain number."""
    if isinstance(length, str):
        return length
    return f"{length // UNIT}k" if length % UNIT == 0 else str(length)


def lengths_of(text: str) -> list[int]:
    """Lengths in tokens from ``8k,16k,1000``, ascending, each once. Raises BadValue."""
    found = set()
    for word in text.replace("/", ",").split(","):
        if word.strip():
            length = parse_length(word)
            if isinstance(length, str):
                raise BadValue(f"'{word.strip()}' is not a length to build.", "The base sets are always built.")
            found.add(length)
    if not found:
        raise BadValue("No length was given.", "Write --lengths 8k,16k.")
    return sorted(found)


def base_lengths(below: int) -> list[int]:
    """The three short lengths of the base sets, quarters of ``below``: 2k, 4k and 6k for the usual 8k. The shortest
    is not less than the four passages and the needles of a key-value context need.

    Raises:
        BadValue: ``below`` leaves no room for three lengths.
    """
    if below < UNIT:
        raise BadValue(
            f"Base sets below {below} tokens have no room for three lengths.", "Use --base-below 1k or more."
        )
    return [max(LEAST_BASE, below // 4), below // 2, 3 * below // 4]
