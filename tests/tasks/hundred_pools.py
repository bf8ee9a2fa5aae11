"""Pools to build from, made up: the files of every data set that 100-LongBench reads, as ``--pools`` takes them.

Files of rows are called ``NAME.firstN.jsonl``, since their bytes are not the official ones.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

_WORDS = (
    "river",
    "stone",
    "lamp",
    "garden",
    "music",
    "winter",
    "letter",
    "bridge",
    "harbour",
    "field",
    "window",
    "paper",
)


def write_pools(folder: Path, *, leave_out: tuple[str, ...] = (), documents: int = 14) -> Path:
    """Write every pool below ``folder``, but for the files whose path holds a word of ``leave_out``."""
    draw = random.Random(7)
    for name in ("qasper", "multifieldqa_en", "narrativeqa"):
        rows = [_longbench(name, i, _document(draw, 60 + 90 * i)) for i in range(documents)]
        rows[-1]["context"] = rows[-2]["context"]  # two rows about one text
        rows[-1]["input"], rows[-1]["answers"] = f"What is {name} text?", ["it does not stand there"]
        _write(folder, f"longbench/{name}", rows, leave_out)
    for name in ("hotpotqa", "2wikimqa", "musique"):
        _write(folder, f"longbench/{name}", [_several(name, i, draw) for i in range(documents)], leave_out)
    for name in ("gov_report", "qmsum"):
        rows = [_longbench(name, i, _document(draw, 70 + 80 * i)) for i in range(documents)]
        for row in rows:
            row["input"], row["answers"] = ("" if name == "gov_report" else "What was said?"), [_document(draw, 20)]
        _write(folder, f"longbench/{name}", rows, leave_out)
    rows = [_several("multi_news_e", i, draw) for i in range(documents)]
    for row in rows:
        row["input"], row["answers"] = "", [_document(draw, 25)]
    _write(folder, "longbench/multi_news_e", rows, leave_out)
    for name in ("multidoc_qa", "legal_contract_qa", "financial_qa", "natural_question", "scientific_qa"):
        _write(folder, f"leval/{name}", [_leval(name, i, draw, 3) for i in range(6)], leave_out)
    for name in ("patent_summ", "tv_show_summ", "review_summ", "meeting_summ"):
        _write(folder, f"leval/{name}", [_leval(name, i, draw, 1) for i in range(6)], leave_out)
    if "cnn_dailymail" not in leave_out:
        articles = [
            {"article": f"  {_document(draw, 40 + i)}", "highlights": _document(draw, 9), "id": f"{i}"}
            for i in range(60)
        ]
        write_parquet(folder / "cnn_dailymail/1.0.0/test-00000-of-00001.first60.parquet", articles)
    if "bioasq" not in leave_out:
        corpus = [{"id": 100 + i, "passage": _document(draw, 50)} for i in range(30)]
        asked = [
            {"question": f"Which gene is {i}?", "answer": f"gene {i}", "relevant_passage_ids": ids, "id": i}
            for i, ids in enumerate([[101, 102, 103], [104], [110, 120], [100, 129]])
        ]
        write_parquet(folder / "bioasq/question-answer-passages/test-00000-of-00001.parquet", asked)
        write_parquet(folder / "bioasq/text-corpus/test-00000-of-00001.parquet", corpus)
    return folder


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a table."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _document(draw: random.Random, words: int) -> str:
    text = [draw.choice(_WORDS) + (str(draw.randrange(1000)) if i % 5 == 0 else "") for i in range(words)]
    return "\n".join(" ".join(text[i : i + 12]) + "." for i in range(0, words, 12))


def _longbench(name: str, number: int, text: str) -> dict[str, Any]:
    words = text.replace(".", "").split()
    answer = " ".join(words[len(words) // 2 : len(words) // 2 + 2])
    return {
        "input": f"What follows in {name} {number}?", "context": text, "answers": [answer, "something else"],
        "length": len(words), "dataset": name, "language": "en", "all_classes": None, "_id": f"{name}-{number}",
    }  # fmt: skip


def _several(name: str, number: int, draw: random.Random) -> dict[str, Any]:
    parts = [f"Title {name} {number} {k}\n{_document(draw, 15 + 6 * number)}\n" for k in range(4)]
    row = _longbench(name, number, parts[1])
    row["context"] = "".join(f"Passage {k}:\n{part}" for k, part in enumerate(parts, 1))
    row["input"] = f"What stands in Title {name} {number} 2?"
    return row


def _leval(name: str, number: int, draw: random.Random, questions: int) -> dict[str, Any]:
    text = _document(draw, 100 + 130 * number)
    return {
        "instructions": [f"{name} {number}, question {q}?" for q in range(questions)],
        "outputs": [text.split("\n")[q].rstrip(".") for q in range(questions)],
        "input": text, "source": name, "evaluation": "f1",
    }  # fmt: skip


def _write(folder: Path, name: str, rows: list[dict[str, Any]], leave_out: tuple[str, ...]) -> None:
    if any(word in name for word in leave_out):
        return
    dataset, _, file = name.partition("/")
    path = folder / dataset / ("Open-ended-tasks/" if dataset == "leval" else "") / f"{file}.first{len(rows)}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
