"""Stopping where the scorer reads no further must not change what it reads."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcbench.tasks.early_stop import finished, stops_early
from lcbench.tasks.facts import TASK_FACTS, TaskFacts, facts_of

STOPPING = [facts for facts in TASK_FACTS.values() if stops_early(facts)]


def read_by_scorer(facts: TaskFacts, text: str) -> str:
    """What `eval.py` and `metrics.py` hand to the metric, from the description in longbench.md section 3."""
    while text.startswith("\n"):
        text = text[1:]
    lines = text.split("\n")
    if facts.metric != "code_sim":
        return lines[0]
    for line in lines:
        if "`" not in line and "#" not in line and "//" not in line:
            return line
    return ""


def test_which_tasks_stop() -> None:
    hundred = {facts.name for facts in TASK_FACTS.values() if facts.benchmark == "100-longbench"}
    official = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
    assert {facts.name for facts in STOPPING} == official | hundred


@pytest.mark.parametrize(
    ("task", "text", "expected"),
    [
        ("trec", "", False),
        ("trec", "Number", False),
        ("trec", "\n\n", False),
        ("trec", "\n\nNumber", False),
        ("trec", "\nNumber\n", True),
        ("trec", " \n", True),
        ("trec", "\r\n", True),
        ("trec", "Number\r", False),
        ("samsum_e", "Amanda baked.\n\nDialogue", True),
        ("lcc", "return x", False),
        ("lcc", "\nreturn x\n", True),
        ("lcc", "```python\n", False),
        ("lcc", "```python\nreturn x", False),
        ("lcc", "```python\nreturn x\n", True),
        ("lcc", "# why\n// how\n", False),
        ("lcc", "# why\n\n", True),
        ("lcc", "    \n", True),
        ("lcc", "int x; // one\n", False),
        ("repobench-p_e", "x = 1\ny", True),
        ("qasper", "yes\nno\n", False),
        ("passkey", "1043321\n", False),
        ("a_task_of_someone_else", "a\n", False),
    ],
)
def test_cases(task: str, text: str, expected: bool) -> None:
    assert finished(task, text) is expected
    facts = facts_of(task)
    assert facts is None or finished(facts, text) is expected


@given(
    facts=st.sampled_from(STOPPING),
    text=st.text(st.sampled_from("ab \n\r#`/"), max_size=30),
    more=st.text(st.sampled_from("ab \n\r#`/"), max_size=30),
)
def test_nothing_appended_changes_what_is_read(facts: TaskFacts, text: str, more: str) -> None:
    if finished(facts, text):
        assert read_by_scorer(facts, text + more) == read_by_scorer(facts, text)
        assert finished(facts, text + more)
    elif finished(facts, text + "\n"):
        # Not too cautious either: one character later the answer is settled, before it is not.
        assert read_by_scorer(facts, text + "x\n") != read_by_scorer(facts, text + "y\n")


def recorded(shared_data: Path) -> Iterator[tuple[TaskFacts, dict[str, object]]]:
    """Every recorded prediction of the six tasks: real outputs of real models, run to their length limit."""
    folder = shared_data / "predictions"
    for group in ("adakv", "longbench-forks", "longbench-e", "pyramidkv-outputs"):
        for path in sorted((folder / group).rglob("*.jsonl*")):
            facts = facts_of(path.name.split(".")[0])
            if facts is None or not stops_early(facts):
                continue
            with (
                gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file
            ):
                for line in file:
                    yield facts, json.loads(line)


@pytest.mark.parametrize("step", [1, 4])
def test_recorded_outputs_score_the_same(shared_data: Path, step: int) -> None:
    """Generation is imitated in steps of characters (a token is a few); it stops at the first finished prefix."""
    from lcbench.scoring import score_row

    count = stopped = saved = total = 0
    for facts, record in recorded(shared_data):
        full = str(record["pred"])
        end = next((n for n in range(step, len(full) + step, step) if finished(facts, full[:n])), None)
        count, total = count + 1, total + len(full)
        if end is None or end >= len(full):
            continue
        early = full[:end]
        stopped, saved = stopped + 1, saved + len(full) - end
        assert read_by_scorer(facts, early) == read_by_scorer(facts, full)
        if step > 1 and stopped % 10 == 0:
            args = record["answers"], record["all_classes"]
            assert score_row(facts.name, early, *args) == score_row(facts.name, full, *args)
    assert count > 5000
    assert stopped > count / 3
    assert saved > total / 4
