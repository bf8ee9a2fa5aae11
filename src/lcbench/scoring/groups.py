"""Means over tasks: categories, the published average over categories, and the averages of the KV-cache papers.

* macro (LongBench paper): mean of the six category scores, English and Chinese apart; the code tasks belong to both.
* micro (KIVI, longctx_bench and others): mean of the 16 English and code tasks, or of the 15 without passage_count.
* LongBench-E (paper's figure): for each bucket the mean over categories of the mean over their tasks.

Means are taken of the rounded scores, so that a reader can check them with the printed table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lcbench.scoring.bootstrap import Bootstrap, Replicates, mean_of
from lcbench.scoring.samples import LONGBENCH, LONGBENCH_E
from lcbench.scoring.table import GroupScore, TaskScore
from lcbench.tasks.facts import TASK_FACTS, TaskFacts

_LONGBENCH = tuple(facts for facts in TASK_FACTS.values() if facts.benchmark == LONGBENCH)
_CATEGORIES = tuple(dict.fromkeys(facts.category for facts in _LONGBENCH))
_NOT_IN_15 = "passage_count"


class Groups:
    """Collects the scores of one method's tasks and makes its means.

    Args:
        scores: task id to score.
        replicates: task id to bootstrap replicates of it, None where it has none.
    """

    def __init__(
        self, scores: Mapping[str, TaskScore], replicates: Mapping[str, Replicates | None], bootstrap: Bootstrap
    ) -> None:
        self._bootstrap = bootstrap
        self._scored = {s.task: s for s in scores.values() if s.score is not None}
        self._replicates = dict(replicates)
        self.categories: dict[str, GroupScore] = {}
        self.overall: dict[str, GroupScore] = {}
        plain, extended = self._named(LONGBENCH), self._named(LONGBENCH_E)
        if plain:
            self._plain(plain)
        if extended:
            self._extended(extended)

    def _named(self, benchmark: str) -> dict[str, str]:
        """Name of the data set to task id. With options a data set may occur twice: then the plain id speaks for it."""
        tasks = [s.task for s in self._scored.values() if s.benchmark == benchmark]
        return {_name(task): task for task in sorted(tasks, key=lambda task: "@" not in task)}

    def _plain(self, found: Mapping[str, str]) -> None:
        for language, title in (("en", "English"), ("zh", "Chinese")):
            if not any(f.language == language and f.name in found for f in _LONGBENCH):
                continue
            keys = {}
            for category in _CATEGORIES:
                facts = [f for f in _LONGBENCH if f.category == category and f.language in (language, "code")]
                key = category if category == "code" else f"{language}/{category}"
                self._category(key, facts, found)
                keys[key] = len(facts)
            self._macro(f"macro_{language}", f"LongBench, {title}", "as published", keys)
        if "code" not in self.categories:
            self._category("code", [f for f in _LONGBENCH if f.category == "code"], found)
        english = [f.name for f in _LONGBENCH if f.language != "zh"]
        for name, members in (("micro15", [n for n in english if n != _NOT_IN_15]), ("micro16", english)):
            tasks = "English and code tasks" + (", no passage_count" if name == "micro15" else "")
            self._micro(name, tasks, members, found)

    def _extended(self, found: Mapping[str, str]) -> None:
        keys = {}
        for category in _CATEGORIES:
            facts = [f for f in _LONGBENCH if f.category == category and f.e_split]
            self._category(f"e/{category}", facts, found)
            keys[f"e/{category}"] = len(facts)
        self._macro("macro_e", "LongBench-E", "by length, as in the paper", keys)

    def _category(self, key: str, facts: Sequence[TaskFacts], found: Mapping[str, str]) -> None:
        names = [f.name for f in facts]
        part = "" if all(name in found for name in names) else ", incomplete"
        self._add(self.categories, key, f"mean of {key}{part}", names, found)

    def _micro(self, key: str, tasks: str, names: Sequence[str], found: Mapping[str, str]) -> None:
        here = sum(name in found for name in names)
        label = f"LongBench: mean of the {len(names)} {tasks} (as KV-cache papers)"
        if here < len(names):
            label = f"LongBench, incomplete ({here} of {len(names)} tasks): mean of {tasks}"
        self._add(self.overall, key, label, names, found)

    def _add(
        self, target: dict[str, GroupScore], key: str, label: str, names: Sequence[str], found: Mapping[str, str]
    ) -> None:
        """A mean of tasks; nothing when none of them is there."""
        tasks = [found[name] for name in names if name in found]
        if not tasks:
            return
        scores = [self._scored[task] for task in tasks]
        replicates = mean_of([self._replicates[task] for task in tasks])
        self._replicates[f"group {key}"] = replicates
        buckets = list(dict.fromkeys(b for s in scores if s.benchmark == LONGBENCH_E for b in s.by_length))
        target[key] = GroupScore(
            label=label,
            score=_mean([s.score for s in scores]) or 0.0,
            members=tuple(tasks),
            missing=tuple(name for name in names if name not in found),
            n_tasks=len(tasks),
            of_tasks=len(names),
            interval=self._bootstrap.interval(replicates),
            by_length={b: _mean([s.by_length[b].score for s in scores if b in s.by_length]) for b in buckets},
        )

    def _macro(self, key: str, title: str, source: str, keys: Mapping[str, int]) -> None:
        """The mean of the category means.

        Args:
            title: whose mean it is. source: where the whole mean is in use.
            keys: categories that belong to it, with the number of tasks of each.
        """
        present = [k for k in keys if k in self.categories]
        if not present:
            return
        groups = [self.categories[k] for k in present]
        buckets = list(dict.fromkeys(b for g in groups for b in g.by_length))
        absent = [k for k in keys if k not in self.categories]
        n_tasks, of_tasks = sum(g.n_tasks for g in groups), sum(keys.values())
        label = f"{title}: mean of the {len(keys)} categories ({source})"
        if n_tasks < of_tasks:
            label = f"{title}, incomplete ({n_tasks} of {of_tasks} tasks): mean of their {len(present)} categories"
        self.overall[key] = GroupScore(
            label=label,
            score=_mean([g.score for g in groups]) or 0.0,
            members=tuple(present),
            missing=tuple(absent + [task for g in groups for task in g.missing]),
            n_tasks=n_tasks,
            of_tasks=of_tasks,
            interval=self._bootstrap.interval(mean_of([self._replicates[f"group {k}"] for k in present])),
            by_length={b: _mean([g.by_length.get(b) for g in groups]) for b in buckets},
        )


def _name(task: str) -> str:
    """Name of the LongBench data set behind a task id."""
    name = task.partition("@")[0]
    return name if name in TASK_FACTS else name.removesuffix("_e")


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of those that are there, two decimals; None when none is."""
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 2) if known else None
