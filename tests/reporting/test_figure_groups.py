"""Figures of merged runs: only what belongs together stands in one, and what is missing is said."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import failed, make, passkey, right, wrong

pytest.importorskip("matplotlib")

from lcbench.reporting import latex
from lcbench.reporting.best import ranks
from lcbench.reporting.build import build
from lcbench.reporting.figures import heatmap, pareto, style
from lcbench.reporting.figures.drawn import Drawn
from lcbench.reporting.figures.make import figures_of, write_figures
from lcbench.reporting.figures.naming import file_names, methods_told_apart, told_apart
from lcbench.reporting.samples import samples_of
from lcbench.scoring.longscore.result import LongScoreOptions
from lcbench.scoring.run import ScoreOptions, score_run
from lcbench.store.rundir import RunDirectory

LONG = "Org/Very-Long-Model-Name-With-Many-Parts-Very-Long-Model-Name-With-Many-Parts"


def figures(runs: Sequence[RunDirectory]) -> tuple[dict[str, Drawn], list[str]]:
    report = build(runs)
    drawn, missing = figures_of(report, samples_of(report, runs), runs)
    assert len({one.name for one in drawn}) == len(drawn)
    return {one.name: one for one in drawn}, missing


def rows(good: int, count: int = 4, **changes: Any) -> list[Any]:
    return [right(i, **changes) if i < good else wrong(i, **changes) for i in range(count)]


# -- what belongs together -------------------------------------------------------------------------------------------


def test_differences_are_to_the_full_cache_of_the_same_weights(tmp_path: Path) -> None:
    a = make(tmp_path / "a", {("full", "qasper"): rows(1)})
    b = make(tmp_path / "b", {("full", "qasper"): rows(4), ("snapkv", "qasper"): rows(2)}, identity="w2")
    drawn, _ = figures([a, b])
    assert [name for name in drawn if "against" in name] == ["against-full-demo-weights-w2"]
    assert "snapkv on qasper -50.0" in drawn["against-full-demo-weights-w2"].alt


def test_other_truncation_and_other_data_stand_apart_and_a_note_says_so(tmp_path: Path) -> None:
    a = make(tmp_path / "a", {("full", "qasper"): rows(4), ("snapkv", "qasper"): rows(3)}, max_input_tokens=400)
    cut = {"prompt_tokens": 5, "kv_bytes_full": 500, "truncated_from": 10}
    b = make(
        tmp_path / "b",
        {("full", "qasper"): rows(2, **cut), ("knorm", "qasper"): rows(3, **cut)},
        max_input_tokens=200,
    )
    report = build([a, b])
    assert [report.label(c) for c in report.columns] == ["full (a)", "snapkv (a)", "full (b)", "knorm (b)"]
    assert [column.method for (_, column), rank in ranks(report).items() if rank == "best"] == ["full", "knorm"]
    assert f"{a.path} and {b.path}: qasper has other truncation" in report.notes[0]
    drawn, _ = figures([a, b])
    assert set(drawn) == {"pareto-demo-a", "pareto-demo-b", "against-full-demo-a", "against-full-demo-b"}
    assert drawn["against-full-demo-b"].alt.endswith("knorm on qasper +25.0.")
    assert drawn["pareto-demo-b"].title == "Accuracy against KV bytes – demo, b"

    facts = [{"qasper": {"data_sha256": digest * 64}} for digest in "12"]
    c = make(tmp_path / "c", {("full", "qasper"): rows(4)}, facts=facts[0])
    d = make(tmp_path / "d", {("snapkv", "qasper"): rows(3)}, facts=facts[1])
    assert "other data" in build([c, d]).notes[0]
    drawn, missing = figures([c, d])
    assert drawn == {}
    assert any(one.startswith("no Pareto figure: it needs two methods") for one in missing)


def test_runs_of_the_same_prompts_stand_together(tmp_path: Path) -> None:
    a = make(tmp_path / "a", {("full", "qasper"): rows(4)})
    b = make(tmp_path / "b", {("snapkv", "qasper"): rows(3), ("snapkv", "hotpotqa"): rows(1)})
    report = build([a, b])
    assert [report.label(c) for c in report.columns] == ["full", "snapkv"]
    drawn, _ = figures([a, b])
    assert drawn["against-full"].alt.endswith("snapkv on qasper -25.0.")


def test_a_method_is_paired_with_the_full_cache_of_its_own_run(tmp_path: Path) -> None:
    a = make(tmp_path / "a", {("full", "qasper"): rows(4)})
    b = make(tmp_path / "b", {("full", "qasper"): rows(2), ("snapkv", "qasper"): rows(2)})
    drawn, _ = figures([a, b])
    assert drawn["against-full"].alt.endswith("in points. snapkv on qasper +0.0.")


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "models", [("模型", "数据"), (f"{LONG}-70B", f"{LONG}-8B"), ("Qwen/Qwen2.5-7B", "qwen-qwen2-5-7b"), ("🦙", "🐪")]
)
def test_files_and_titles_of_models_differ(tmp_path: Path, models: tuple[str, str]) -> None:
    runs = [
        make(tmp_path / str(i), {("full", "qasper"): rows(4), ("snapkv", "qasper"): rows(i)}, model=m, identity=m)
        for i, m in enumerate(models)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of letters without a glyph
        drawn, _ = figures(runs)
        written = write_figures([one for name, one in drawn.items() if "against" in name], tmp_path / "figures")
    assert len(drawn) == 4
    assert len({path.name for path in written}) == 6
    assert len({one.title for one in drawn.values()}) == 4


@given(st.lists(st.text("ab-@,=./01模", min_size=1, max_size=60), min_size=1, max_size=8, unique=True))
def test_short_names_stay_different(names: list[str]) -> None:
    assert len(set(file_names(names, 12).values())) == len(names)
    plain = [name for name in names if name == name.strip()]
    for short in (told_apart(plain, 12), methods_told_apart(plain, 12)):
        assert len(set(short.values())) == len(plain)


def test_the_part_in_which_ids_differ_is_kept() -> None:
    ids = [f"snapkv@budget=0.1,sink=4,window={n},kernel=7,granularity=query" for n in (32, 64)]
    short = methods_told_apart(["full", *ids])
    assert [short[one] for one in ids] == ["snapkv@budget=0…window=32…", "snapkv@budget=0…window=64…"]
    assert short["full"] == "full"


def test_letters_that_no_font_has_are_code_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "_letters", lambda: frozenset(map(ord, "tiny ü")))
    assert style.drawable("tinyü模型") == "tinyüU+6A21 U+578B"
    assert style.shorten("tiny") == "tiny"


@pytest.mark.parametrize(("near", "symbols"), [(True, 8), (False, 0)])
def test_a_name_that_reaches_another_marker_has_its_own_before_it(near: bool, symbols: int) -> None:
    points = [
        pareto.MethodPoint(
            f"snapkv@budget={i + 1}/10", 2.0**20 * (1.5**i if near else 40.0**i), 55 if near else 20 + 25 * i
        )
        for i in range(8 if near else 3)
    ]
    figure = pareto.draw(points, title="t", full_bytes=None, score_label="score")
    markers = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None)]
    assert len(markers) == len(points) + symbols


# -- parts of the rows -----------------------------------------------------------------------------------------------


def test_a_score_of_some_rows_is_marked_and_never_best(tmp_path: Path) -> None:
    tasks = {("full", "qasper"): rows(3, 6), ("snapkv", "qasper"): rows(2, 2), ("knorm", "qasper"): rows(1, 6)}
    run = make(tmp_path / "r", tasks)
    report = build([run])
    places = {column.method: rank for (_, column), rank in ranks(report).items()}
    assert places == {"full": "best", "knorm": "second"}
    text = latex.render(report)
    assert "2 of 6 rows" in text
    assert r"\textbf{100.00}" not in text
    drawn, _ = figures([run])
    assert "snapkv" not in drawn["pareto"].alt.partition("front:")[2]
    assert "snapkv on qasper +0.0 (2 of 6 rows)" in drawn["against-full"].alt


def test_no_point_of_some_rows_is_on_the_front() -> None:
    whole = pareto.MethodPoint("a", 100, 50)
    assert pareto.front_of([whole, pareto.MethodPoint("b", 10, 90, parted=True)]) == [whole]


def test_bytes_of_some_rows_stand_at_their_ratio(tmp_path: Path) -> None:
    short = {"kv_bytes": 25, "kv_bytes_full": 100}
    run = make(tmp_path / "r", {("full", "qasper"): rows(4, kv_bytes=1000), ("snapkv", "qasper"): rows(1, 1, **short)})
    drawn, _ = figures([run])
    at = [tuple(line.get_xdata()) for line in drawn["pareto"].figure.axes[0].lines]
    assert (250.0,) in at
    assert (25.0,) not in at


def keys(found: int, lengths: Sequence[int] = (256, 512)) -> list[Any]:
    return [passkey(n, depth / 4, 0, depth < found) for n in lengths for depth in range(5)]


def test_a_method_of_one_length_is_in_the_figure_and_one_of_none_in_its_title(tmp_path: Path) -> None:
    bad = [failed(i) for i in range(3)]
    lost = {"status": "error", "error": "out of memory", "pred": ""}
    part = keys(5, (256,)) + [passkey(512, depth / 4, 0, False, **lost) for depth in range(5)]
    run = make(
        tmp_path / "r",
        {("full", "passkey"): keys(5), ("snapkv", "passkey"): part, ("knorm", "passkey"): bad},
    )
    drawn = figures([run])[0]
    assert "passkey; 8 failed and left out" in drawn["passkey"].title
    whole = make(tmp_path / "whole", {("full", "passkey"): keys(5), ("snapkv", "passkey"): keys(3)})
    assert all("left out" not in one.title + one.alt for one in figures([whole])[0].values())
    alt = drawn["length-passkey"].alt
    assert "snapkv, 5 of 10 rows: 256 100.00" in alt
    assert "no scores: knorm" in alt


@pytest.mark.parametrize(("depths", "lengths", "room"), [(13, 14, True), (14, 2, False), (2, 15, False)])
def test_a_passkey_map_has_numbers_as_the_docs_say(depths: int, lengths: int, room: bool) -> None:
    cells = {(float(n), d / 100): 0.37 for n in range(lengths) for d in range(depths)}
    figure = heatmap.draw([heatmap.Grid("full", cells), heatmap.Grid("snapkv", cells)], title="t")
    assert [text.get_text() for text in figure.axes[0].texts] == ["37"] * len(cells) * room


# -- LongScore of some -----------------------------------------------------------------------------------------------


def test_a_model_without_a_longscore_keeps_its_curves(tmp_path: Path) -> None:
    task = "passkey@lengths=256/512"
    a = make(tmp_path / "a", {("full", task): keys(5), ("snapkv", task): keys(3)})
    a.write_scores(score_run(a, ScoreOptions(longscore=LongScoreOptions(wanted=True))))
    b = make(tmp_path / "b", {("full", task): keys(4), ("snapkv", task): keys(2)}, model="other", identity="w2")
    report = build([a, b])
    assert report.longscore is not None
    assert any(note.startswith(f"{b.path}: no LongScores") for note in report.notes)
    drawn, _ = figures([a, b])
    assert "full: 256 80.00, 512 80.00" in drawn["length-passkey-other"].alt
    assert "full: 256 100.00, 512 100.00" in drawn["length-passkey-demo"].alt
