"""The constants of the LongBench tasks against independent sources: real rows, official files, published counts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from lcbench.tasks.facts import TASK_FACTS, facts_of

LONGBENCH = [facts for facts in TASK_FACTS.values() if facts.benchmark == "longbench"]


def test_counts_are_the_published_ones() -> None:
    assert len(LONGBENCH) == 21
    assert sum(facts.rows for facts in LONGBENCH) == 4750
    assert Counter(facts.language for facts in LONGBENCH) == {"en": 14, "zh": 5, "code": 2}
    assert sum(facts.e_split for facts in LONGBENCH) == 13
    assert sum(facts.e_rows for facts in LONGBENCH) == 224 + 150 + 10 * 300 + 294
    english = Counter(facts.category for facts in LONGBENCH if facts.language == "en")
    assert english == {"single-doc-qa": 3, "multi-doc-qa": 3, "summarization": 3, "few-shot": 3, "synthetic": 2}
    assert Counter(f.category for f in LONGBENCH if f.language == "zh") == dict.fromkeys(english, 1)


def test_no_chat_and_first_line_sets() -> None:
    assert {f.name for f in LONGBENCH if not f.chat} == {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
    assert {f.name for f in LONGBENCH if f.cut_first_line} == {"trec", "triviaqa", "samsum", "lsht"}


def test_official_order_and_real_rows(shared_data: Path) -> None:
    folder = shared_data / "longbench"
    assert [facts.name for facts in LONGBENCH] == list(
        json.loads((folder / "config" / "dataset2prompt.json").read_text("utf-8"))
    )
    seen = set()
    for path in folder.glob("*.jsonl"):
        name = path.name.split(".")[0]
        facts = facts_of(name)
        assert facts is not None
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
        assert {row["dataset"] for row in rows} == {name}
        if facts.language == "code":
            assert {row["language"] for row in rows} <= {"python", "csharp", "java"}
        else:
            assert {row["language"] for row in rows} == {facts.language}
        assert (rows[0]["all_classes"] is not None) == (facts.metric == "classification")
        full = ".first" not in path.name
        expected = facts.e_rows if name.endswith("_e") else facts.rows
        assert len(rows) == expected if full else len(rows) < expected
        seen.add(name)
    assert len(seen) > 20


def test_the_hundred_tasks_are_scored_by_their_first_line() -> None:
    hundred = [facts for facts in TASK_FACTS.values() if facts.benchmark == "100-longbench"]
    assert [facts.name.removeprefix("100-longbench/") for facts in hundred] == [
        "single_doc_qa", "multi_doc_qa", "single_doc_sum", "multi_doc_sum",
        "passage_retrieval", "passage_count", "kv_retrieval", "counting_stars",
    ]  # fmt: skip
    assert Counter(facts.metric for facts in hundred) == {"qa_f1": 2, "rouge": 2, "first_number": 3, "last_uuid": 1}
    assert all(facts.cut_first_line and not facts.chat for facts in hundred)


def test_e_variants_share_facts() -> None:
    assert facts_of("qasper_e") is TASK_FACTS["qasper"]
    assert facts_of("narrativeqa_e") is None
    assert facts_of("passkey") is TASK_FACTS["passkey"]
    assert facts_of("no_such_task") is None


def test_facts_import_nothing_heavy() -> None:
    code = "import sys, lcbench.tasks.facts; print(sorted({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"'torch'", "'transformers'", "'datasets'", "'numpy'", "'jieba'"} & set(out.strip(" []\n").split(", "))
