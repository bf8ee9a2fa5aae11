"""Tables of `lcbench score` at 80 columns: names fold, numbers are never cropped."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from lcbench.cli.score import show
from lcbench.cli.score_place import refuse_overwriting
from lcbench.cli.score_view import tables_of
from lcbench.errors import BadValue
from lcbench.reporting.longscore import terminal
from lcbench.reporting.longscore.view import Entry, view
from lcbench.scoring.longscore.curve import Curve, Rung
from lcbench.scoring.longscore.ladder import Counts
from lcbench.scoring.table import MethodScores, ScoreTable, TaskScore


def printed(width: int, *what: object) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    for one in what:
        console.print(one)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("width", [72, 80, 100, 140])
def test_a_judged_table_keeps_every_number(width: int) -> None:
    tasks = {
        task: TaskScore(task, "100-longbench", "qa", "en", metric, 40.48, 1234, 17, (38.14, 100.0), 9,
                        n_judge_failed=8, n_filtered=256, n_skipped=99)
        for task, metric in (("100-longbench/single_doc_qa@base,build=llama", "qa_judge"),
                             ("100-longbench/multi_doc_sum@128k,build=llama", "summary_judge"))
    }  # fmt: skip
    console = Console(width=width, file=io.StringIO())
    text = printed(width, *tables_of(MethodScores(tasks), console))
    for piece in ("1234", "17", "errors", "99", "skipped", "256", "filtered", "verdict", "40.48", "38.1–100.0"):
        assert piece in text, (piece, text)
    assert "…" not in text
    assert ("40.48   " in text) == ("95 % interval" in text)


def test_long_score_gives_names_the_columns_that_are_free() -> None:
    name = "100-longbench/passage_retrieval@build=sx"
    rungs = (Rung("512", 512, 40.0, counts=Counts(kept=35, failed=5, cut=7)), Rung("1k", 1024, None))
    base = Rung("base", 0, 50.0, counts=Counts(kept=40, skipped=40))
    curve = Curve(name, "100-longbench", "tokens", base, rungs, 40.0, None, -25.0, (-66.67, 100.0), None, False)
    shown = view([Entry("full", {name: curve}, method="full")])
    text = printed(80, terminal.render(shown, Console(width=80), over_length=False))
    assert "passage_retrieval" in text
    assert "100-longbench/" not in text  # one build, one benchmark: the name says what tells tasks apart
    assert "[-66.7, 100.0]" in text


@pytest.mark.parametrize(("interval", "said"), [((75.0, 75.0), 1), ((38.0, 75.0), 0)])
def test_an_interval_without_width_is_explained(
    interval: tuple[float, float], said: int, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "100-longbench/passage_retrieval@build=sx"
    base = Rung("base", 0, 50.0, interval)
    curve = Curve(
        name, "100-longbench", "tokens", base, (Rung("512", 512, 40.0),), 40.0, None, -20.0, None, None, False
    )
    shown = view([Entry("full", {name: curve}, method="full")])
    text = " ".join(printed(80, terminal.render(shown, Console(width=80))).split())
    assert text.count("A 95 % interval without width") == said
    task = TaskScore("qasper", "longbench", "qa", "en", "qa_f1", 50.0, 4, 0, interval, 4)
    show(ScoreTable("file", "x", {"full": MethodScores({"qasper": task})}, {}, (), "0"), Path("x"))
    assert capsys.readouterr().out.count("A 95 % interval without width, such as 75.0–75.0") == said


def test_out_is_a_file() -> None:
    with pytest.raises(BadValue, match="--out takes a file") as error:
        refuse_overwriting(Path("-"))
    assert "--json" in error.value.next_step
