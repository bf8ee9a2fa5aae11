"""Scored tasks made of chosen scores, without metrics or files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lcbench.scoring.longscore.ladder import Scored
from lcbench.scoring.samples import Sample, TaskSamples
from lcbench.tasks.facts import TaskFacts

Scores = Sequence[float | None]
Make = Callable[..., Scored]


@pytest.fixture
def scored() -> Make:
    """A task with the given scores (None: the sample failed), one context a sample unless ``clusters`` says more."""

    def make(
        task: str,
        scores: Scores,
        *,
        clusters: Sequence[str] | None = None,
        lengths: Sequence[int] | None = None,
        meta: Sequence[dict[str, Any]] | None = None,
        cut: Sequence[int] = (),
        metric: str = "qa_f1",
        benchmark: str = "100-longbench",
        skipped: int = 0,
        skipped_lengths: dict[str, int] | None = None,
        pending: bool = False,
        **fates: frozenset[int],
    ) -> Scored:
        samples = tuple(
            Sample(
                prediction="",
                answers=("x",),
                length=lengths[i] if lengths else None,
                ok=score is not None or i in fates.get("judge_failed", ()) or i in fates.get("filtered", ()),
                cluster=clusters[i] if clusters else None,
                where=f"sample {i}",
                meta=meta[i] if meta else {},
                id=str(i),
                cut=i in cut,
            )
            for i, score in enumerate(scores)
        )
        facts = TaskFacts(task.partition("@")[0], benchmark, "c", "en", metric, False, False, 0, False)
        values = [None if score is None else (score,) for score in scores]
        kept = TaskSamples(task, facts, benchmark, samples, "test", (), skipped, skipped_lengths or {}, pending)
        return Scored(kept, values, **fates)

    return make
