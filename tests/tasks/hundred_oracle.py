"""Answers of a built file recomputed from its contexts and the raw rows, with nothing of lcbench: only json and re.

Usable alone: ``python hundred_oracle.py BUILT_FILE … --rows FOLDER_OF_POOLS``.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
HEADER = re.compile(r"Passage \d+:\n")

Rows = dict[str, list[tuple[str, list[str]]]]  # text to (question, accepted answers)


def read_built(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Recipe and contexts of a built file."""
    first, *rest = path.read_text("utf-8").splitlines()
    return json.loads(first)["recipe"], [json.loads(line) for line in rest]


def raw_rows(folder: Path) -> Rows:
    """What is asked of every text in the JSON-lines files below ``folder``; several passages also as one text."""
    found: Rows = {}
    for path in sorted(folder.rglob("*.jsonl")):
        for line in path.read_text("utf-8").split("\n"):
            row = json.loads(line) if line.strip() else {}
            if "context" in row and "answers" in row:
                text, pairs = row["context"], [(row["input"], row["answers"])]
            elif "instructions" in row:
                text = row["input"]
                pairs = [(q, [a]) for q, a in zip(row["instructions"], row["outputs"], strict=True)]
            else:
                continue
            flat = "\n\n".join(part.strip("\n") for part in HEADER.split(text) if part.strip())
            for form in {text, flat}:
                found.setdefault(form, []).extend(pairs)
    return found


def numbered(text: str, word: str, separator: str) -> list[str]:
    """The parts of a text under "<word> 1", "<word> 2", …: each number is looked for after the one before it."""
    starts, number, place = [], 1, 0
    while True:
        head = f"{word} {number}{separator}"
        place = text.find(head, place)
        if place < 0:
            break
        starts.append((place, place + len(head)))
        place += len(head)
        number += 1
    ends = [begin for begin, _ in starts[1:]] + [len(text)]
    return [text[begin:end] for (_, begin), end in zip(starts, ends, strict=True)]


def check(recipe: dict[str, Any], context: dict[str, Any], rows: Rows) -> None:
    """AssertionError when an answer of ``context`` is not the one that its text and the raw rows give."""
    text, paper = context["new_context"], recipe["mode"] == "paper"
    globals()[f"_{recipe['task']}"](context, text, paper, rows)


def _asked_of(context: dict[str, Any], rows: Rows, prefix: str = "") -> None:
    """Every question stands in the raw rows of the target document, with these answers."""
    excerpt = context["old_context"] not in rows
    known = [pair for text, pairs in rows.items() if text == context["old_context"] or excerpt for pair in pairs]
    for question, asked, answers in zip(context["questions"], context["input"], context["answers"], strict=True):
        assert (question, answers) in [(q, list(a)) for q, a in known], f"no row asks {question!r} with these answers"
        assert question in asked
    if excerpt:  # part of a document: an answer stands in it word for word
        for answers in context["answers"]:
            assert any(a.strip().lower().rstrip(".") in context["old_context"].lower() for a in answers)


def _single_doc_qa(context: dict[str, Any], text: str, paper: bool, rows: Rows) -> None:
    number = int(re.search(r"\d+", context["instruction"]).group())  # type: ignore[union-attr]
    assert f"Passage {number}:\n{context['old_context']}\n\n" in text
    _asked_of(context, rows)


def _single_doc_sum(context: dict[str, Any], text: str, paper: bool, rows: Rows) -> None:
    for asked in context["input"]:
        number = int(re.search(r"Passage (\d+)", asked).group(1))  # type: ignore[union-attr]
        assert f"Passage {number}:\n{context['old_context']}\n\n" in text
    _asked_of(context, rows)


def _multi(context: dict[str, Any], text: str, numbers: list[int], rows: Rows) -> None:
    own = [part for part in HEADER.split(context["old_context"]) if part.strip()]
    assert len(numbers) == len(own)
    for number in numbers:
        place = text.index(f"Passage {number}:\n") + len(f"Passage {number}:\n")
        fitting = [part for part in own if text.startswith(part, place)]
        assert fitting, f"passage {number} is not of the sample"
        own.remove(fitting[0])
    assert not own
    _asked_of(context, rows)


def _multi_doc_qa(context: dict[str, Any], text: str, paper: bool, rows: Rows) -> None:
    if not re.search(r"\d", context["instruction"]):  # base: the sample as it is
        assert text == context["old_context"]
        return _asked_of(context, rows)
    return _multi(context, text, [int(n) for n in re.findall(r"\d+", context["instruction"])], rows)


def _multi_doc_sum(context: dict[str, Any], text: str, paper: bool, rows: Rows) -> None:
    numbers = [int(n) for n in re.findall(r"Passage (\d+)", context["input"][0])]
    _multi(context, text, numbers, rows)


def _passage_retrieval(context: dict[str, Any], text: str, paper: bool, rows: Rows) -> None:
    ((answer,),) = context["answers"]
    passage = context["old_context"].lstrip("\n").lstrip(" ")
    assert f"Passage {answer}: {passage}\n\n" in text
    references = [answers for _, answers in rows[context["old_context"]]]
    wanted = {str(a) if "bracketed_reference" in context["faults"] else a[0] for a in references}
    assert context["input"][0] in wanted
    if paper:
        assert text.count(passage) == 1
        assert not context["input"][0].startswith("['")


def _passage_count(context: dict[str, Any], text: str, paper: bool, rows: Rows) -> None:
    parts = numbered(text, "Paragraph", ": ")
    assert len(parts) == context["passages"]
    different = len({part.removesuffix("\n\n") for part in parts})
    ((answer,),) = context["answers"]
    if "same_document_twice" in context["faults"]:
        assert not paper
        assert int(answer) > different
    else:
        assert int(answer) == different


def _kv_retrieval(context: dict[str, Any], text: str, paper: bool, rows: Rows) -> None:
    pairs = re.findall(rf"\n\nThe value of ({UUID}) is ({UUID})\.\n\n", text)
    assert len(pairs) == len(dict(pairs)) == 3
    key = re.search(UUID, context["input"][0]).group()  # type: ignore[union-attr]
    ((answer,),) = context["answers"]
    value = dict(pairs)[key]
    assert text.count(f"The value of {key} is ") == 1
    if paper:
        while value in dict(pairs):
            value = dict(pairs)[value]
        assert text.count(value) == 1
    assert answer == value
    assert context["passages"] >= 4


def _counting_stars(context: dict[str, Any], text: str, paper: bool, rows: Rows) -> None:
    counts = [int(n) for n in re.findall(r"\n\nThis time the little penguin counted (\d+) ★\n\n", text)]
    options = dict(re.findall(r"(?m)^(\d)\. (.+)$", context["input"][0]))
    ((index, listed),) = context["answers"]
    assert len(counts) == 4
    assert json.loads(listed) == counts
    assert sum(json.loads(options[str(index)])) == sum(counts)
    right = [int(number) for number, option in options.items() if option == str(counts)]
    assert index == min(right)
    coincide = len(set(options.values())) < len(options)
    assert coincide == ("coinciding_options" in context["faults"])
    assert not (paper and coincide)


if __name__ == "__main__":
    at = sys.argv.index("--rows")
    raw = raw_rows(Path(sys.argv[at + 1]))
    for name in sys.argv[1:at]:
        made = read_built(Path(name))
        for one in made[1]:
            check(made[0], one, raw)
        print(f"{name}: {len(made[1])} contexts, every answer as recomputed")
