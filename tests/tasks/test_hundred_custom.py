"""Building from the user's own documents and questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hundred_oracle import check, read_built

from lcbench.tasks.hundred.names import TASKS

Cli = Callable[..., Any]
BUILD = ("build", "100-longbench", "--lengths", "400", "--rows", 3, "--base-below", "1k", "--tokenizer", "words", "-q")


def documents(folder: Path, count: int = 8) -> Path:
    (folder / "reports").mkdir(parents=True)
    for i in range(count):
        text = f"Report {i} begins.\n" + "\n".join(f"Line {k} of report {i} says {i * k}." for k in range(5 + 6 * i))
        (folder / "reports" / f"{i}.txt").write_text(text, encoding="utf-8")
    (folder / "notes.md").write_text("# Notes\nNothing is asked about these notes.\n", encoding="utf-8")
    return folder


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = documents(tmp_path / "mine")
    names = [f"reports/{i}.txt" for i in range(8)]
    asked = [
        {"document": n, "question": f"What does {n} say?", "answers": [f"Report {i} begins."]}
        for i, n in enumerate(names)
    ]
    asked.append({"document": names[:2], "question": "Which begins first?", "answers": ["Report 0", "0"]})
    lines(folder / "questions.jsonl", asked)
    told = [{"document": n, "summary": f"It is report {i}.", "query": "Which is it?"} for i, n in enumerate(names)]
    told.append({"document": names[1:3], "summary": "Reports one and two."})
    lines(folder / "summaries.jsonl", told)
    return folder


def raw(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("questions.jsonl", "summaries.jsonl"):
        for line in (folder / name).read_text("utf-8").splitlines():
            row = json.loads(line)
            names = row["document"] if isinstance(row["document"], list) else [row["document"]]
            texts = [(folder / n).read_text("utf-8") for n in names]
            text = texts[0]
            if len(texts) > 1:
                text = "".join(f"Passage {k}:\n{t}\n" for k, t in enumerate(texts, 1))
            pair = (row.get("question", row.get("query", "")), row.get("answers", [row.get("summary")]))
            found.setdefault(text, []).append(pair)
    return found


@pytest.mark.parametrize("mode", ["reference", "paper"])
def test_all_eight_tasks_from_ones_own_documents(cli: Cli, own_home: Path, folder: Path, mode: str) -> None:
    done = cli(*BUILD, "--custom", folder, "--mode", mode)
    assert done.code == 0, done.err + done.out
    made = sorted((own_home / "data/100-longbench/builds/custom").glob("*.jsonl"))
    assert {path.name for path in made} == {f"{task}_{n}.jsonl" for task in TASKS for n in ("base", "400")}
    for path in made:
        recipe, contexts = read_built(path)
        assert recipe["custom"] is True
        assert str(folder) not in path.read_text("utf-8").split("\n")[0]
        for context in contexts:
            check(recipe, context, raw(folder))
    again = cli("build", "100-longbench", "--verify", "--custom", folder, "--tokenizer", "words")
    assert again.code == 0, again.err
    (folder / "notes.md").write_text("other notes, longer than before\n", encoding="utf-8")
    changed = cli("build", "100-longbench", "--verify", "--custom", folder, "--tokenizer", "words")
    assert changed.code == 2
    assert "its recipe differs in sources" in changed.out
    assert cli("build", "100-longbench", "--verify", "--name", "custom", "--tokenizer", "words").code == 2


def test_documents_alone_make_the_tasks_that_need_no_questions(cli: Cli, own_home: Path, tmp_path: Path) -> None:
    done = cli(*BUILD, "--custom", documents(tmp_path / "plain"))
    assert done.code == 1
    made = {path.name for path in (own_home / "data/100-longbench/builds/custom").glob("*_400.jsonl")}
    assert made == {f"{task}_400.jsonl" for task in ("passage_count", "kv_retrieval", "counting_stars")}
    assert "single_doc_qa@400 is not built: questions.jsonl of your folder holds no question about a single" in done.out
    assert "passage_retrieval@400 is not built: summaries.jsonl of your folder holds no summary of a single" in done.out
    one = cli(*BUILD, "--custom", tmp_path / "plain", "--name", "one", "--tasks", "single_doc_sum")
    assert one.code == 2
    assert "summaries.jsonl of your folder holds no summary" in one.err
    assert "download" not in one.err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("questions.jsonl", "{", "questions.jsonl, line 1: not a JSON object"),
        ("questions.jsonl", '{"document": "no.txt", "question": "?", "answers": ["a"]}', "no document 'no.txt'"),
        ("questions.jsonl", '\n{"document": "notes.md", "question": "?"}', "line 2: 'answers'"),
        ("questions.jsonl", '{"document": "notes.md", "question": " ", "answers": ["a"]}', "the question is not text"),
        ("questions.jsonl", '{"document": [], "question": "?", "answers": ["a"]}', "'document' is not"),
        ("summaries.jsonl", '{"document": "notes.md"}', "'summary' is not text"),
        ("summaries.jsonl", '{"document": "notes.md", "summary": "s", "query": 3}', "query is not text"),
        ("bad.txt", "  \n", "bad.txt is empty"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(cli: Cli, tmp_path: Path, name: str, content: str, said: str) -> None:
    folder = documents(tmp_path / "mine", 2)
    (folder / name).write_text(content, encoding="utf-8")
    done = cli(*BUILD, "--custom", folder)
    assert done.code == 2
    assert said in done.err


def test_files_that_are_no_documents(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert "no .txt or .md file" in cli(*BUILD, "--custom", tmp_path / "mine").err
    (tmp_path / "mine/latin.txt").write_bytes(b"caf\xe9 au lait\n")
    assert "not UTF-8 text" in cli(*BUILD, "--custom", tmp_path / "mine").err
