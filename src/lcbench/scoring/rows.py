"""The whole scoring rule of one row: the task's cut, its metric, the best answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lcbench.errors import UnknownName
from lcbench.scoring.metrics import CodeSim, score
from lcbench.tasks.facts import TASK_FACTS, TaskFacts, facts_of


def task_facts(task: str, where: str = "") -> TaskFacts:
    """Facts of a task id: ``qasper``, ``qasper_e``, ``passkey@digits=64``, or a task of another package.

    Args:
        where: where the name was found, for the message, e.g. `` (file x.jsonl)``.

    Raises:
        UnknownName: no such task; the nearest is offered.
    """
    name = task.partition("@")[0]
    facts = facts_of(name) or facts_of(name.removeprefix("longbench/"))
    if facts is not None:
        return facts
    from lcbench.tasks.registry import all_tasks

    cls = all_tasks().get(name)
    if cls is None:
        raise UnknownName("task", name, {*all_tasks(), *TASK_FACTS}, where=where, listing="lcbench list tasks")
    return TaskFacts(
        name=name,
        benchmark=cls.benchmark,
        category=cls.category,
        language=cls.language,
        metric=cls.metric,
        cut_first_line=False,
        e_split=False,
        rows=0,
        chat=cls.chat,
    )


def first_line(text: str) -> str:
    """What is left of a prediction by the first-line cut of the few-shot tasks.

    Only line feeds are stripped at the start, not blanks and not carriage returns: " \\nParis" becomes " ".
    """
    return text.lstrip("\n").split("\n")[0]


def scored_text(facts: TaskFacts, prediction: str) -> str:
    """The part of a prediction that the task's scorer looks at."""
    return first_line(prediction) if facts.cut_first_line else prediction


def score_row(
    task: str,
    prediction: str,
    answers: Iterable[str],
    all_classes: Sequence[str] | None = None,
    *,
    code_sim: CodeSim = "difflib",
    strict_recursion: bool = False,
) -> float:
    """Score of one row as the official scorer of ``task`` gives it, 0 to 1: cut, metric, best answer.

    Args:
        task: task id; options after ``@`` and the ``_e`` of LongBench-E do not change the rule.
        prediction: the generated text as it came out of the model.

    Raises:
        UnknownName: no such task. BadValue: as `lcbench.scoring.metrics.score`.
    """
    facts = task_facts(task)
    return score(
        facts.metric,
        scored_text(facts, prediction) if isinstance(prediction, str) else prediction,
        answers,
        all_classes,
        code_sim=code_sim,
        strict_recursion=strict_recursion,
    )
