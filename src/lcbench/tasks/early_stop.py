"""Where an answer may stop because its scorer reads no further.

The official scorer (`LongBench/eval.py`, `metrics.py`) looks at one line only in two cases: the four few-shot tasks
are cut to their first line, and code is compared by its first line without a comment mark or a code fence. Tokens
after that line cost time and change nothing. All other metrics read the whole answer.
"""

from __future__ import annotations

from lcbench.tasks.facts import TaskFacts, facts_of

_CODE_METRIC = "code_sim"
_UNUSABLE = ("`", "#", "//")


def finished(task: str | TaskFacts, text: str) -> bool:
    """Whether the score of ``text`` cannot change whatever is appended to it.

    A line counts once its line feed is there: before that, the next token may still add to it (even a comment mark
    that makes the line unusable). Text that grows by decoding more tokens keeps what stands before a line feed, so
    "finished" stays true once it is.

    Args:
        task: a task id, or its facts; ids that are not built in never finish.
        text: what was generated so far, special tokens removed.
    """
    facts = facts_of(task) if isinstance(task, str) else task
    if facts is None:
        return False
    complete = text.lstrip("\n").split("\n")[:-1]
    if facts.metric == _CODE_METRIC:
        return any(not any(mark in line for mark in _UNUSABLE) for line in complete)
    return facts.cut_first_line and bool(complete)


def stops_early(facts: TaskFacts) -> bool:
    """Whether `finished` can ever be true for this task."""
    return facts.cut_first_line or facts.metric == _CODE_METRIC
