"""Plans from a sample: the sums of the arithmetic, rows spread evenly, wrong GPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lcbench.config.spec import make_spec
from lcbench.engine.on_paper import GPUS, OnPaper, on_paper, rates_of
from lcbench.engine.session import open_session
from lcbench.errors import UnknownName
from lcbench.models.remembered import TokenMemory
from lcbench.tasks.base import spread
from lcbench.tasks.registry import resolve as resolve_tasks
from tiny import save_tiny

TASK = "passkey@lengths=20,depths=5,repeats=4,digits=3,max_new_tokens=8"


def test_rows_are_spread_over_all() -> None:
    assert spread(10, 3) == [0, 3, 6]
    assert spread(10, 99) == list(range(10))
    assert spread(0, 3) == []


def test_a_sample_stands_for_all_rows(tmp_path: Path) -> None:
    """The rows are nearly alike, so a sample must cost what all of them cost."""
    spec = make_spec({"model": str(save_tiny(tmp_path / "tiny")), "methods": ["full", "kivi"], "tasks": [TASK]})
    session = open_session(spec, tmp_path, say=lambda text: None)
    whole, part = on_paper(session, "h100", 99), on_paper(session, "h100", 5)
    assert (whole.rows, part.rows, whole.sampled, part.sampled) == (20, 20, 20, 5)
    assert whole.answers == part.answers == 40
    assert whole.prefills == part.prefills == 20
    assert part.tokens == pytest.approx(whole.tokens, rel=0.2)
    assert part.disk == pytest.approx(whole.disk, rel=0.05)
    assert part.seconds >= 0.9 * whole.seconds, "smaller batches read the weights more often"
    slower = on_paper(session, "a100", 5)
    assert 1 < slower.seconds / part.seconds < 989 / 312 + 0.01


def test_a_model_after_another_costs_what_it_costs_alone(tmp_path: Path) -> None:
    """Token ids are shared by the models of a study; cut, chat format, windows and methods are each model's own."""
    task = "passkey@lengths=20/400,depths=2,repeats=2,digits=3,max_new_tokens=8"
    folders = [save_tiny(tmp_path / str(window), window=window) for window in (8192, 1024)]
    methods = ["full", "snapkv", "streamingllm-longctx"]
    memory, computed = TokenMemory(), []
    for folder in (*folders, folders[0]):
        given = {"model": str(folder), "methods": methods, "tasks": [task], "over_length": "truncate"}
        session = open_session(make_spec(given), tmp_path, say=lambda text: None)
        alone = on_paper(session, "h100")
        assert on_paper(session, "h100", memory=memory) == alone
        computed.append((memory.computed, alone.longest))
    assert computed[0][0] < computed[1][0], "what the second has to cut"
    assert computed[1][1] < 1024 < computed[0][1]
    assert computed[2] == (computed[1][0], computed[0][1]), "all of it was there"


def test_a_sample_is_not_the_whole_read(tmp_path: Path) -> None:
    """`Task.sample` against `Task.load`: the same rows, evenly spread, and how many there are."""
    task = resolve_tasks(TASK, tmp_path)[0]
    rows = task.load(tmp_path).rows
    some = task.sample(tmp_path, 3)
    assert ([row.id for row in some.rows], some.total) == ([rows[i].id for i in spread(20, 3)], 20)
    assert (task.sample(tmp_path, 3, limit=2).count, len(task.sample(tmp_path, 3, limit=2).rows)) == (2, 2)
    assert some.sampled(2).count == 20


def test_a_study_is_planned_and_nothing_is_run(tmp_path: Path, cli: Callable[..., Any]) -> None:
    one, two = save_tiny(tmp_path / "one"), save_tiny(tmp_path / "two")
    study = tmp_path / "study.yaml"
    study.write_text(f"models: ['{one}', '{two}']\nmethods: [full, kivi]\ntasks: ['{TASK}']\n")
    done = cli("run", "--config", study, "--dry-run", "--plan-gpu", "h200", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "80 answers" in done.out
    assert "GPU-hours) on NVIDIA H200" in done.out
    assert "…" not in done.out
    assert "from 3 of 20 rows" in done.out
    assert done.out.count("prompt begins") == done.out.count("prompt ends   ") == 1  # both models read it alike
    assert not (tmp_path / "out").exists()
    wrong = cli("run", "--model", one, "--task", TASK, "--dry-run", "--plan-gpu", "h10")
    assert (wrong.code, "h100" in wrong.err) == (2, True)
    wrong = cli("run", "--model", one, "--task", TASK, "--plan-gpu", "h100")
    assert (wrong.code, "--dry-run" in wrong.err) == (2, True)


def test_other_models_show_the_first_prompt_that_they_read_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    from lcbench.cli.paper_view import show_on_paper

    plain = {"a": ("Read", "answer:"), "b": ("Sum up", "summary:")}
    chat = {task: (f"<user>{begins}", ends) for task, (begins, ends) in plain.items()}
    ends = {"plain": plain, "chat": chat, "again": plain}
    show_on_paper([OnPaper(name, 1, 2, "cpu", 2**20, rows=3, ends=own) for name, own in ends.items()])
    shown = capsys.readouterr().out
    assert shown.count("prompt begins") == 3
    before, after = shown.split("One that chat reads otherwise:")
    assert "b prompt begins 'Sum up'" in before
    assert "a prompt begins '<user>Read'" in after
    assert "again reads" not in shown


def test_rates_are_below_the_peaks() -> None:
    for name, gpu in GPUS.items():
        rates = rates_of(name)
        assert 0 < rates.flops < gpu.flops
        assert 0 < rates.bandwidth < gpu.bandwidth
    with pytest.raises(UnknownName):
        rates_of("b300")


def test_models_are_told_apart_in_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lcbench.cli.paper_view import show_on_paper

    monkeypatch.setenv("COLUMNS", "80")
    names = [f"/models/of/the/house/family-{i}-instruct-with-a-long-name" for i in range(1, 11)]
    plans = [
        OnPaper(name, 40, 18, "H100", 15 * 2**30, rows=795, tokens=9e6, answers=31_800, seconds=9e5) for name in names
    ]
    show_on_paper(plans)
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines() if "GiB" in line and "answers:" not in line) <= 80
    assert "\u2026" not in shown
    assert all(f"family-{i}-" in shown for i in range(1, 11))
    assert "Each model: 40 methods, 18 tasks, 795 rows." in shown
    show_on_paper([*plans[:1], OnPaper("org/other", 1, 1, "H100", 2**30, rows=3)])
    shown = capsys.readouterr().out
    assert "Each model" not in shown
    assert "795" in shown
