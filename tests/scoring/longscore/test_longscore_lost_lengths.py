"""Lengths without any score: prompts that were all skipped, or not predicted yet, stay where they were asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lcbench.cli import app
from lcbench.scoring.bootstrap import Bootstrap
from lcbench.scoring.longscore.curve import Curve
from lcbench.scoring.longscore.ladder import Counts, find_ladders
from lcbench.scoring.longscore.result import LongScoreOptions, long_scores
from lcbench.store.rundir import RunDirectory

BOOTSTRAP = Bootstrap(resamples=50)
KV = "100-longbench/kv_retrieval"


def curves(tasks: list[Any], **options: Any) -> dict[str, Curve]:
    found = long_scores({"full": tasks}, LongScoreOptions(**options), BOOTSTRAP)
    assert found is not None
    return {curve.name: curve for curve in found.curves["full"]}


def test_a_length_whose_prompts_were_all_skipped_takes_the_means_away(scored: Any) -> None:
    tasks = [scored(f"{KV}@base", [1.0, 1.0], skipped=1), scored(f"{KV}@8k", [1.0, 0.0])]
    lost = scored(f"{KV}@16k", [], skipped=40)
    assert curves(tasks)[KV].long_score == -50.0
    curve = curves([*tasks, lost])[KV]
    assert (curve.average, curve.long_score, curve.labels) == (None, None, ("8k", "16k"))
    assert [r.counts.skipped for r in (curve.base, *curve.rungs)] == [1, 0, 40]
    assert "No sample was scored at 16k (40 longer than the window and skipped)" in " ".join(curve.warnings)


@pytest.mark.parametrize(
    ("base", "said"),
    [({"skipped": 40}, "40 longer than the window and skipped"), ({"pending": True}, "not predicted yet")],
)
def test_a_base_set_that_was_asked_for_is_not_called_absent(scored: Any, base: dict[str, Any], said: str) -> None:
    for mode in ("reference", "paper"):
        curve = curves([scored(f"{KV}@base", [], **base), scored(f"{KV}@8k", [1.0])], mode=mode)[KV]
        assert curve.long_score is None
        assert f"The base has no score ({said})" in " ".join(curve.warnings)
        assert "not in this run" not in " ".join(curve.warnings)


def test_the_mean_names_the_tasks_that_have_no_score(scored: Any) -> None:
    other = "100-longbench/passage_count"
    tasks = [scored(f"{t}@{n}", [1.0, 0.0]) for t in (KV, other) for n in ("base", "8k")]
    tasks += [scored(f"{KV}@16k", [], skipped=2), scored(f"{other}@16k", [1.0])]
    mean = curves(tasks)["100-longbench"]
    assert (mean.labels, mean.long_score) == (("8k", "16k"), None)
    assert f"16k (none for {KV}@16k)" in " ".join(mean.warnings)
    without = [one for one in tasks if one.task.task != f"{other}@base"]
    assert f"The base has no score (none for {other})" in " ".join(curves(without)["100-longbench"].warnings)


def test_a_shortest_length_that_is_lost_stays_the_base(scored: Any) -> None:
    tasks = [scored("niah@4k", [], benchmark="ruler", skipped=3)]
    tasks += [scored(f"niah@{n}", [1.0], benchmark="ruler") for n in ("8k", "16k")]
    curve = curves(tasks, wanted=True)["niah"]
    assert (curve.base.label, curve.base.score, curve.long_score) == ("4k", None, None)


def test_tasks_that_nothing_is_known_of_have_no_ladder(scored: Any) -> None:
    assert find_ladders([scored(f"{KV}@{n}", [], pending=True) for n in ("base", "8k")], "reference") == []


def test_passkey_and_buckets_keep_a_lost_length_where_the_run_tells_it(scored: Any) -> None:
    meta = [{"length_words": n, "depth": d} for n in (128, 512) for d in (0.0, 1.0)]
    task = scored("passkey", [1.0] * 4, meta=meta, metric="passkey", benchmark="passkey",
                  skipped=3, skipped_lengths={"512": 1, "2048": 2})  # fmt: skip
    curve = curves([task], wanted=True)["passkey"]
    assert (curve.labels, curve.long_score) == (("512", "2048"), None)
    assert [rung.counts for rung in curve.rungs] == [Counts(kept=2, skipped=1), Counts(skipped=2)]
    task = scored("qasper_e", [1.0, 1.0], lengths=[100, 4000], benchmark="longbench-e",
                  skipped=2, skipped_lengths={"9000": 1, "12000": 1})  # fmt: skip
    curve = curves([task], wanted=True)["qasper_e"]
    assert (curve.labels, curve.long_score, curve.rungs[-1].counts) == (("4-8k", "8k+"), None, Counts(skipped=2))


def test_passkey_says_when_the_lengths_of_skipped_prompts_are_not_known(scored: Any) -> None:
    meta = [{"length_words": n, "depth": 0.5} for n in (128, 512)]
    task = scored("passkey", [1.0, 1.0], meta=meta, metric="passkey", benchmark="passkey", skipped=3)
    assert "3 prompts were longer" in " ".join(curves([task], wanted=True)["passkey"].warnings)


def test_a_short_length_of_the_papers_base_is_not_lost_silently(scored: Any) -> None:
    base = scored(f"{KV}@base", [1.0, 0.0], meta=[{"base_length": 2048}, {"base_length": 4096}],
                  skipped=5, skipped_lengths={"6144": 5})  # fmt: skip
    curve = curves([base, scored(f"{KV}@8k", [1.0])], mode="paper")[KV]
    assert (curve.base.label, curve.base.score, curve.base.counts.skipped) == ("2k+4k+6k", None, 5)
    assert "6k (5 longer than the window and skipped)" in " ".join(curve.warnings)


# -- run directories ------------------------------------------------------------------------------------------------


def edit(run: RunDirectory, facts: Mapping[str, Mapping[str, Any]]) -> Path:
    """The run with these facts about its tasks."""
    info = json.loads((run.path / "run.json").read_text())
    for task, more in facts.items():
        info["provenance"]["tasks"].setdefault(task, {}).update(more)
    (run.path / "run.json").write_text(json.dumps(info))
    return run.path


def lcbench(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "150", "TERM": "dumb"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_table_has_the_lost_length(make_run: Any, tmp_path: Path) -> None:
    import pyarrow.parquet

    tasks = [f"{KV}@{n}" for n in ("base", "8k", "16k")]
    made = make_run({("full", t): [{}, {}] if t != tasks[2] else [] for t in tasks}, rows=dict.fromkeys(tasks, 2))
    path = edit(made, {tasks[2]: {"skipped": 2}})
    assert f"skipped, none is left: {tasks[2]} (2)" in lcbench("score", path)
    stored = json.loads((path / "scores.json").read_text())
    assert stored["methods"]["full"]["tasks"][tasks[2]]["n_skipped"] == 2
    before = (path / "scores.json").read_bytes()
    found = json.loads(lcbench("report", path, "--format", "json"))
    cell = next(c for c in found["cells"] if c["task"] == tasks[2])
    assert (cell["score"], cell["n"], cell["skipped"]) == (None, 0, 2)
    rows = [line for line in lcbench("report", path, "--format", "csv").splitlines() if f"{KV}@16k,task" in line]
    assert rows[0].split(",")[6:13] == ["", "", "", "0", "0", "0", "2"]
    lcbench("report", path, "--format", "parquet", "--out", tmp_path / "r.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert [(r["n"], r["skipped"]) for r in table if r["task"] == tasks[2] and r["kind"] == "task"] == [(0, 2)]
    for form in ("md", "html", "latex", "table"):
        assert "retrieval@16k" in lcbench("report", path, "--format", form), form
    assert (path / "scores.json").read_bytes() == before


def test_a_method_has_its_own_skipped_prompts(make_run: Any) -> None:
    made = make_run({(m, t): [{}] for m in ("full", "ntk") for t in ("qasper", "musique")}, rows={"qasper": 3})
    own = {"full": {"rows": 2, "lengths": {}}}
    path = edit(made, {"qasper": {"skipped": 2, "skipped_by_method": own}})
    lcbench("score", path)
    methods = json.loads((path / "scores.json").read_text())["methods"]
    assert methods["full"]["tasks"]["qasper"]["n_skipped"] == 2
    assert "n_skipped" not in methods["ntk"]["tasks"]["qasper"]


def test_an_unfinished_run_says_what_it_waits_for(make_run: Any) -> None:
    tasks = [f"{KV}@{n}" for n in ("base", "8k", "16k")]
    made = make_run({("full", t): [{}] if t == tasks[1] else [] for t in tasks}, rows=dict.fromkeys(tasks, 1))
    said = lcbench("score", made.path)
    assert "not in this run" not in said
    assert "The base has no score (not predicted yet)" in said
    assert "16k (not predicted yet)" in said
