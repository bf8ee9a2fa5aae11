"""Labels and titles of figures: at the data they name, inside the picture, and different where the data differ."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from made_runs import failed, make, passkey, right

pytest.importorskip("matplotlib")

from lcbench.reporting.build import build
from lcbench.reporting.figures import bars, efficiency, heatmap, labels, lengths, pareto, radar, style
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


@pytest.mark.parametrize("text", ["streamingllm@budget=0.25", "snapkv@budget=0.1", "", " ", "$x$"])
def test_room_is_made_for_a_text_as_svg_draws_it_and_not_only_as_the_screen_does(text: str) -> None:
    from matplotlib.textpath import TextPath

    with style.styled():
        figure = style.new_figure(7.2, 4.6)
        width, height = labels._size(figure.add_subplot(), text, fontsize=7.5)
        drawn = TextPath((0, 0), text, size=7.5).get_extents().x1 if text.strip() else 0.0
    assert width * 72 / figure.dpi >= drawn - 1e-6
    assert height >= 0


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


def test_options_without_a_value_are_named_alone() -> None:
    ids = ["100-longbench/single_doc_qa@base", "100-longbench/single_doc_qa@1k"]
    assert short_names(ids) == dict(zip(ids, ids, strict=True))


def test_bars_of_one_suite_name_it_once() -> None:
    tasks = [f"100-longbench/{kind}@{size}" for kind in ("single_doc_qa", "multi_doc_qa") for size in ("1k", "2k")]
    made = [bars.Difference(m, t, -5.0, -8.0, 1.0, 50.0) for m in ("kivi", "h2o") for t in tasks]
    figure = bars.draw(made, reference="full", about=" – demo")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [task.removeprefix("100-longbench/") for task in tasks]
    assert figure._suptitle.get_text() == "Difference to full, 100-longbench – demo"
    mixed = bars.draw([*made, bars.Difference("kivi", "qasper", 1.0, 0.0, 2.0, 50.0)], reference="full")
    assert "100-longbench/multi_doc_qa@1k"[-10:] in mixed.axes[0].get_yticklabels()[2].get_text()


def test_a_band_has_a_gap_where_an_interval_is_missing() -> None:
    lows, highs = (40.0, None, 30.0, 20.0), (60.0, None, 50.0, 40.0)
    one = lengths.LengthCurve("a", ("1", "2", "3", "4"), (50.0, 45.0, 40.0, 30.0), lows, highs)
    (band,) = lengths.draw([one], title="t", x_label="x").axes[0].collections
    covered = [path.get_extents().intervalx for path in band.get_paths()]
    assert all(x1 <= 0 or x0 >= 2 for x0, x1 in covered)


def test_scores_that_are_all_0_have_an_axis_to_100() -> None:
    figure = lengths.draw([lengths.LengthCurve("a", ("1", "2"), (0.0, 0.0))], title="t", x_label="x")
    assert figure.axes[0].get_ylim() == (-3, 103)


@pytest.mark.parametrize(("count", "filled"), [(1, 1), (3, 0)])
def test_shapes_of_a_radar_are_tinted_only_where_one_stands_alone(count: int, filled: int) -> None:
    rows = {m: [10.0, 35, 20] for m in METHODS[:count]}
    assert len(radar.draw(["a", "b", "c"], rows, title="t").axes[0].patches) == filled


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
    ax = figure.axes[0]
    at = [line for line in ax.lines if line.get_marker() in ("o", "s") and line.get_transform() is ax.transData]
    sizes = [line.get_markersize() for line in at]
    assert len(sizes) == 2
    assert sizes[1] < 0.8 * sizes[0]


def speeds(methods: int, spread: float, batches: tuple[int, ...] = (1,)) -> list[efficiency.SpeedPoint]:
    return [
        efficiency.SpeedPoint(
            f"m{i}", n, b, 1e9 * (1 + spread * n / 2048 * b), 50.0 * b + i, 1e9 * spread * n / 2048 * b
        )
        for i in range(methods)
        for n in (1024, 2048)
        for b in batches
    ]


@pytest.mark.parametrize(
    "made", [speeds(20, 0.5), speeds(3, 0.004), speeds(4, 0.5, (1, 4))], ids=["many", "narrow", "batches"]
)
def test_speeds_of_many_and_of_heavy_weights_have_a_row_a_method(made: list[efficiency.SpeedPoint]) -> None:
    figure = efficiency.draw(made, title="t", bandwidth=1e12)
    sizes, rates = figure.axes
    methods = list(dict.fromkeys(p.method for p in made))
    assert [label.get_text() for label in sizes.get_yticklabels()] == methods
    figure.draw_without_rendering()
    assert apart([label.get_window_extent() for label in sizes.get_yticklabels()])
    assert sizes.get_xlim()[0] == 0  # bars that begin at 0: caches look as small as they are
    drawn = [line.get_xdata()[0] for line in rates.lines if line.get_marker() == "o"]
    assert sorted(drawn) == pytest.approx(sorted(p.steps_per_second for p in made))
    ticks = [line.get_xdata()[0] for line in rates.lines if line.get_marker() == "|"]
    assert sorted(ticks) == pytest.approx(sorted(1e12 / p.bytes_per_step for p in made))
    rows = [line.get_ydata()[0] for line in rates.lines if line.get_marker() == "o"]
    assert len(set(rows)) == len(made)  # no point covers another
    settings = {(p.prompt_tokens, p.batch) for p in made}
    assert len(figure.legends[0].get_texts()) == len(settings)
    if max(p.bytes_per_step for p in made) < 1.01e9:
        assert "nearly all weights; caches at most 0.4 %" in texts_of(figure)


def test_few_speeds_are_drawn_over_their_bytes() -> None:
    figure = efficiency.draw(speeds(3, 0.5), title="t", bandwidth=1e12)
    (ax,) = figure.axes
    assert not figure.legends
    assert {"m0, 2,048 tokens", "m1, 2,048 tokens", "m2, 2,048 tokens"} <= set(texts_of(figure))
    figure.draw_without_rendering()
    (limit,) = [text for text in ax.texts if "the limit" in text.get_text()]
    box = limit.get_window_extent()
    black = max(ax.lines, key=lambda line: line.get_linewidth())
    (x0, y0), (x1, y1) = ax.transData.transform(black.get_xydata())
    under = y0 + (y1 - y0) * (box.x0 - x0) / (x1 - x0)
    assert box.y0 > under + black.get_linewidth() / 2 * figure.dpi / 72  # the label does not cover the line


def crowd(seed: int, count: int) -> list[pareto.MethodPoint]:
    import random

    draw = random.Random(seed)
    share, score = (0.1, 0.25, 0.25, 0.25, 0.26, 0.3, 0.5, 0.6), (0.0, 33.3, 50.0, 66.7, 83.3, 100.0)
    return [
        pareto.MethodPoint(f"amethod{i}@budget=0.25", 18e6 * draw.choice(share), draw.choice(score))
        for i in range(count)
    ]


def ball(seed: int) -> list[pareto.MethodPoint]:
    """Nineteen methods closer together than their names are wide, and the full cache far away."""
    import random

    draw = random.Random(seed)
    near = [(4.5e6 * draw.uniform(0.97, 1.03), draw.uniform(54, 66)) for _ in range(19)]
    made = [pareto.MethodPoint(f"amethod{i}@budget=0.25", *at) for i, at in enumerate(near)]
    return [*made, pareto.MethodPoint("amethod-full", 18e6, 90.0)]


CROWDS = {
    "ball-1": ball(1),
    "ball-2": ball(2),
    "random-1": crowd(1, 20),
    "random-2": crowd(2, 20),
    "random-3": crowd(3, 20),
    "all-100": [pareto.MethodPoint(f"amethod{i}@budget=0.25", 18e6 * (1 - 0.03 * i), 100.0) for i in range(20)],
    "column": [pareto.MethodPoint(f"amethod{i}@budget=0.25", 4e6 * (1 + i / 1000), 5.0 * i) for i in range(20)],
    "slope": [pareto.MethodPoint(f"amethod{i}@budget=0.25", 4e6 * (1 + i / 20), 40 + i) for i in range(20)],
    "one-place": [pareto.MethodPoint(f"amethod{i}@budget=0.25", 4e6, 0.0) for i in range(20)],
}


@pytest.mark.parametrize("name", CROWDS)
def test_twenty_methods_are_named_where_they_stand(name: str) -> None:
    import numpy as np

    points = CROWDS[name]
    figure = pareto.draw(points, title="t", full_bytes=18e6, score_label="score")
    assert not figure.legends
    figure.draw_without_rendering()
    (ax,) = figure.axes
    notes = [text for text in ax.texts if text.get_text().startswith("amethod")]
    assert {note.get_text() for note in notes} == {point.method for point in points}
    found = [note.get_window_extent().padded(-1.5) for note in notes]  # without the paper behind the letters
    assert apart(found)
    for note, box in zip(notes, found, strict=True):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        for point in points:
            at = ax.transData.transform((point.kv_bytes, point.score))
            assert np.hypot(at[0] - np.clip(at[0], box.x0, box.x1), at[1] - np.clip(at[1], box.y0, box.y1)) > 4.5, (
                f"{note.get_text()} covers the marker of {point.method}"
            )
    for leader in (text for text in ax.texts if text.arrow_patch is not None):
        ends = leader.arrow_patch.get_path().vertices
        along = ax.transData.inverted().transform(ends) if leader.arrow_patch.get_transform() is ax.transData else ends
        for x, y in np.linspace(along[0], along[-1], 80)[4:-4]:
            assert not any(box.x0 < x < box.x1 and box.y0 < y < box.y1 for box in found)


def test_more_methods_than_there_is_room_for_get_numbers_that_touch_no_marker() -> None:
    dense = [(4e6 * 1.07 ** (i % 8), 50.0 + 4 * (i // 8)) for i in range(40)]
    ends = [pareto.MethodPoint("small", 1e6, 0.0), pareto.MethodPoint("full", 18e6, 100.0)]
    points = [pareto.MethodPoint(f"a-rather-long-method{i}@budget=0.25", *at) for i, at in enumerate(dense)] + ends
    figure = pareto.draw(points, title="t", full_bytes=18e6, score_label="score")
    (legend,) = figure.legends
    assert [text.get_text().split()[0] for text in legend.get_texts()] == [str(i + 1) for i in range(42)]
    figure.draw_without_rendering()
    (ax,) = figure.axes
    notes = [t for t in ax.texts if t.get_text() and set(t.get_text()) <= set("0123456789, ")]
    assert {n for note in notes for n in note.get_text().split(", ")} == {str(i + 1) for i in range(42)}
    for note in notes:
        box = note.get_window_extent().padded(-1.5)
        for point in points:
            x, y = ax.transData.transform((point.kv_bytes, point.score))
            assert not (box.x0 - 3 < x < box.x1 + 3 and box.y0 - 3 < y < box.y1 + 3)


def test_bands_of_several_curves_are_hatched_apart() -> None:
    rows = (("a", 50.0), ("b", 40.0), ("c", 30.0))
    made = [lengths.LengthCurve(n, ("1", "2"), (s, s), (s - 20, s - 20), (s + 20, s + 20)) for n, s in rows]
    bands = lengths.draw(made, title="t", x_label="x").axes[0].collections
    assert len({band.get_hatch() for band in bands}) == 3
    assert all(band.get_facecolor().size == 0 or band.get_facecolor()[0][3] == 0 for band in bands)  # no tints to mix
    assert len({tuple(band.get_edgecolor()[0][:3]) for band in bands}) == 3
    (alone,) = lengths.draw(made[:1], title="t", x_label="x").axes[0].collections
    assert alone.get_hatch() is None


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


@pytest.mark.parametrize(
    ("methods", "sizes"),
    [(8, (256, 512, 1024, 2048, 4096)), (2, (1000, 8000, 32000, 128000, 1000000)), (2, (256, 512, 1024, 2048, 4096))],
)
def test_names_of_lengths_never_overlap(methods: int, sizes: tuple[int, ...]) -> None:
    names = tuple(map(str, sizes))
    curves = [lengths.LengthCurve(f"m{i}", names, tuple(90.0 - 10 * k for k in range(5))) for i in range(methods)]
    figure = lengths.draw(curves, title="t", x_label="words", positions={name: float(name) for name in names})
    figure.canvas.draw()
    ax = [ax for ax in figure.axes if ax.get_visible()][-1]
    told = [label for label in ax.get_xticklabels() if label.get_text()]
    assert len(ax.get_xticks()) == 5  # each length has its tick
    assert told[-1].get_text() == names[-1]
    assert len(told) >= 3
    boxes = [label.get_window_extent() for label in told]
    assert all(one.x1 <= other.x0 for one, other in itertools.pairwise(boxes))
