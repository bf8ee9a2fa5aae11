"""Running scores equal those of `lcbench score` on the same records."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from lcbench.cli.so_far import SoFar
from lcbench.scoring import score_row
from lcbench.store.schema import PredictionRecord

RECORD = PredictionRecord(
    pred="", answers=["a red house"], all_classes=None, length=9, id="0", kv_bytes=25, kv_bytes_full=100
)


def shown(so_far: SoFar, **options: bool) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(so_far.table(**{"final": True, **options}))
    return capture.get()


def test_scores_are_means_of_the_samples_that_have_one() -> None:
    found = SoFar(["full", "kivi"], ["qasper", "trec"])
    preds = ["a red house", "the red door", "nothing"]
    given = [found.add("full", "qasper", replace(RECORD, id=str(i), pred=pred)) for i, pred in enumerate(preds)]
    wanted = [score_row("qasper", pred, RECORD.answers) for pred in preds]
    assert given == wanted
    assert found.add("full", "qasper", replace(RECORD, status="error", error="too long")) is None
    assert found.score("full") == pytest.approx(100 * sum(wanted) / 3)
    assert found.score("kivi") is None
    text = shown(found)
    assert f"{100 * sum(wanted) / 3:.1f}" in text
    assert "25.0 % (4.0x less)" in text
    assert "so far" not in text
    assert "so far" in shown(found, final=False)
    assert "failed" in text


def test_a_task_without_a_text_metric_has_no_score_and_stops_nothing() -> None:
    found = SoFar(["full"], ["someone-elses-task"])
    assert found.add("full", "someone-elses-task", replace(RECORD, pred="x", memory="simulated")) is None
    assert found.score("full") is None
    assert "simulated" in shown(found)


def test_what_was_not_scored_is_no_whole_score() -> None:
    found = SoFar(["full"], ["qasper"])
    found.add("full", "qasper", replace(RECORD, pred="a red house"), score=False)
    found.add("full", "qasper", replace(RECORD, pred="a red house", id="1"))
    assert found.score("full") == pytest.approx(100.0)
    assert "so far" in shown(found)


def test_two_tasks_of_one_name_have_headings_that_differ() -> None:
    tasks = ["passkey@lengths=256,depths=2", "passkey@lengths=512,depths=2"]
    found = SoFar(["full"], tasks)
    for task in tasks:
        found.add("full", task, replace(RECORD, pred="a red house"))
    text = shown(found)
    assert "passkey@lengths=256" in text
    assert "passkey@lengths=512" in text
    assert "depths" not in text
