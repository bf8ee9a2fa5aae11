"""Labels and titles of figures: at the data they name, inside the picture, and different where the data differ."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from made_runs import failed, make, passkey, right

pytest.importorskip("matplotlib")

from lcbench.reporting.build import build
from lcbench.reporting.figures import efficiency, heatmap, lengths, pareto, radar
from lcbench.reporting.figures.make import figures_of
from lcbench.reporting.samples import samples_of
from lcbench.reporting.words import short_names

LONG = "passkey@lengths=256/512,depths={},repeats=1,max_new_tokens=10"
METHODS = [f"{m}@budget={b}" for m in ("snapkv", "streamingllm") for b in (0.25, 0.5, 0.75)]


def texts_of(figure: Any) -> list[str]:
    import matplotlib.text

    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()]


def boxes(figure: Any, texts: Any) -> list[Any]:
    figure.draw_without_rendering()
    return [text.get_window_extent() for text in texts]


def apart(found: list[Any]) -> bool:
    return not any(
        min(a.x1, b.x1) > max(a.x0, b.x0) and min(a.y1, b.y1) > max(a.y0, b.y0)
        for a, b in itertools.combinations(found, 2)
    )


def test_a_curve_is_named_at_its_right_end_whatever_the_order_of_its_lengths() -> None:
    long_first = [
        lengths.LengthCurve("streamingllm", ("512", "256"), (40.0, 20.0), (0, 0), (80, 60)),
        lengths.LengthCurve("snapkv", ("512", "256"), (20.0, 20.0), (0, 0), (60, 60)),
        lengths.LengthCurve("short", ("256",), (70.0,)),
    ]
    figure = lengths.draw(long_first, title="t", x_label="words", positions={"256": 256.0, "512": 512.0})
    ax = figure.axes[0]
    notes = {note.get_text(): note for note in ax.texts}
    assert notes["streamingllm"].xy == (512.0, 40.0)
    assert notes["snapkv"].xy == (512.0, 20.0)
    assert notes["streamingllm"].get_position()[0] > 512
    assert notes["streamingllm"].get_position()[1] == pytest.approx(40)  # beside its own line's end
    assert notes["short"].xy == (256.0, 70.0)
    assert notes["short"].arrow_patch is None  # no line leads from there to the margin
    assert [list(line.get_xdata()) for line in ax.lines[:2]] == [[256.0, 512.0]] * 2
    low, high = ax.collections[0].get_paths()[0].get_extents().intervaly
    assert (low, high) == (0, 80)


@pytest.mark.parametrize(
    "names", [METHODS, ["full", *METHODS, "a-very-long-method-name@window=32,kernel=7,budget=0.125"]]
)
def test_titles_of_the_passkey_maps_stay_over_their_panels(names: list[str]) -> None:
    cells = {(n, d): 0.5 for n in (256, 512) for d in (0.0, 0.5, 1.0)}
    figure = heatmap.draw([heatmap.Grid(name, cells) for name in names], title="Keys found: " + LONG.format(5))
    panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
    titles = [ax._left_title for ax in panels]
    found = boxes(figure, titles)
    assert apart(found)
    scale = next(ax for ax in figure.axes if ax.get_ylabel() == "keys found").get_window_extent()
    assert all(box.x1 <= scale.x0 for box in found)
    assert len({title.get_text() for title in titles}) == len(names)
    assert figure._suptitle.get_window_extent().x1 <= figure.bbox.x1


def test_long_titles_are_broken_and_not_cut() -> None:
    title = "Score against length: " + " ".join(f"word{i}" for i in range(30))
    curves = [lengths.LengthCurve(f"m{i}", ("1", "2"), (1.0, 2.0)) for i in range(6)]
    few = lengths.draw(curves[:2], title=title, x_label="x")
    many = lengths.draw(curves, title=title, x_label="x")
    for figure, text in ((few, few.axes[0]._left_title), (many, many._suptitle)):
        figure.draw_without_rendering()
        assert text.get_window_extent().x1 <= figure.bbox.x1
        assert text.get_text().split() == title.split()


def test_variants_of_a_task_are_told_apart_by_what_differs() -> None:
    assert short_names([LONG.format(5), LONG.format(3), "qasper"]) == {
        LONG.format(5): "passkey@depths=5",
        LONG.format(3): "passkey@depths=3",
        "qasper": "qasper",
    }
    assert short_names([LONG.format(5)]) == {LONG.format(5): "passkey"}
    assert short_names(["passkey", "passkey@depths=3"]) == {
        "passkey": "passkey",
        "passkey@depths=3": "passkey@depths=3",
    }
    odd = ["t@a=1,a=2", "t@a=2"]  # not told apart by their last values: whole
    assert short_names(odd) == dict(zip(odd, odd, strict=True))


@pytest.mark.parametrize("count", [2, 4])
def test_a_radar_names_its_shapes_in_their_colours_and_off_each_other(count: int) -> None:
    names = ["single-doc-qa", "few-shot", "code", "synthetic", "multi-doc-qa"]
    rows = {m: [10.0 + 3 * i, 35, 20 + i, 0, 5 + i] for i, m in enumerate(["full", *METHODS][:count])}
    figure = radar.draw(names, rows, title="t")
    assert not figure.legends
    ax = figure.axes[0]
    notes = [text for text in ax.texts if text.get_text() in rows]
    assert len(notes) == count
    assert apart(boxes(figure, [note for note in notes if note.arrow_patch is None]))
    assert len({note.get_color() for note in notes}) == count


def test_the_key_of_accuracy_against_bytes_names_what_is_drawn() -> None:
    full = pareto.MethodPoint("full", 4e6, 50.0)
    better = pareto.MethodPoint("kivi", 1e6, 60.0)
    smaller = pareto.MethodPoint("snapkv", 1e6, 40.0, 30.0, 50.0)
    alone = " ".join(texts_of(pareto.draw([full, better], title="t", full_bytes=None, score_label="s")))
    assert "dashed" not in alone
    assert "95 %" not in alone
    both = " ".join(texts_of(pareto.draw([full, smaller], title="t", full_bytes=None, score_label="s")))
    assert "dashed: Pareto front" in both
    assert "bars: 95 % interval" in both


def test_markers_at_one_place_can_all_be_seen() -> None:
    same = [pareto.MethodPoint(name, 1e6, 40.0) for name in ("a", "b")] + [pareto.MethodPoint("full", 4e6, 90.0)]
    figure = pareto.draw(same, title="t", full_bytes=None, score_label="s")
    sizes = [line.get_markersize() for line in figure.axes[0].lines if line.get_marker() in ("o", "s")]
    assert len(sizes) == 2
    assert sizes[1] < 0.8 * sizes[0]


def test_speeds_of_many_methods_get_numbers_and_a_key() -> None:
    made = [efficiency.SpeedPoint(f"m{i}", 1024, 1, 1e9 + 1e8 * i, 50.0 + i) for i in range(16)]
    figure = efficiency.draw(made, title="t", bandwidth=1e12)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["1  m0, 1,024 tokens", "2  m1, 1,024 tokens"]
    assert {str(n) for n in range(1, 17)} <= set(texts_of(figure))
    assert not efficiency.draw(made[:7], title="t").legends


# -- from runs -------------------------------------------------------------------------------------------------------


def drawn_of(*runs: Any) -> tuple[dict[str, Any], list[str]]:
    report = build(list(runs))
    drawn, missing = figures_of(report, samples_of(report, list(runs)), list(runs))
    return {one.name: one for one in drawn}, missing


def test_merged_runs_are_drawn_where_methods_share_tasks(tmp_path: Path) -> None:
    cells = [(n, d, 0) for n in (256, 512) for d in (0.0, 1.0)]
    one = make(tmp_path / "a", {(m, LONG.format(5)): [passkey(*c, found=True) for c in cells] for m in ("full", "h2o")})
    records = [passkey(*c, found=c[0] == 256) for c in cells]
    two = make(tmp_path / "b", {(m, LONG.format(3)): records for m in ("full", "kivi", "snapkv")})
    drawn, missing = drawn_of(one, two)
    assert "passkey@depths=3; 3 of 4 methods have it" in drawn["pareto"].alt
    assert not any("Pareto" in sentence for sentence in missing)
    ticks = [label.get_text() for label in drawn["against-full"].figure.axes[0].get_yticklabels()]
    assert ticks == ["passkey@depths=5", "passkey@depths=3"]


def test_why_a_figure_is_left_out(tmp_path: Path) -> None:
    tasks = ("passkey", "qasper")
    lost = make(tmp_path / "lost", {(m, t): [failed(0)] for m in ("full", "kivi") for t in tasks})
    drawn, missing = drawn_of(lost)
    assert not drawn
    assert "no Pareto figure: every sample of all 2 tasks failed" in missing
    assert "no passkey figure: every sample of passkey failed" in missing
    assert "no against full figure: every sample of all 2 tasks failed" in missing
    single = make(tmp_path / "single", {("kivi", "qasper"): [right(0), right(1)]})
    _, missing = drawn_of(single)
    assert "no Pareto figure: it needs two methods" in missing
    assert "no against full figure: the method full was not run" in missing
    assert "no passkey figure: no passkey task was run" in missing
    other = make(tmp_path / "other", {("full", "hotpotqa"): [right(0), right(1)]})
    _, missing = drawn_of(single, other)
    assert "no Pareto figure: no two methods have scores of the same task" in missing
    assert "no against full figure: no sample has a score both of full and of another method" in missing
