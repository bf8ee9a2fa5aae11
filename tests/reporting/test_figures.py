"""Figures: what is drawn of which data, labels that do not cover each other, files that come out the same."""

from __future__ import annotations

import builtins
import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import make, passkey, right, wrong
from typer.testing import CliRunner

pytest.importorskip("matplotlib")

from lcbench.cli import app
from lcbench.errors import UsageError
from lcbench.reporting.build import build
from lcbench.reporting.figures import bars, efficiency, heatmap, lengths, pareto, radar, style
from lcbench.reporting.figures.labels import spread
from lcbench.reporting.figures.make import figures_of, write_figures
from lcbench.reporting.samples import mean_interval, samples_of
from lcbench.scoring.longscore.result import LongScoreOptions
from lcbench.scoring.run import ScoreOptions, score_run
from lcbench.store.rundir import RunDirectory

MIB = 2**20
METHODS = ["full", *(f"{m}@budget={b}" for m in ("snapkv", "h2o", "tova", "adakv") for b in (0.1, 0.25, 0.5))]


def points(count: int) -> list[pareto.MethodPoint]:
    names = itertools.islice(itertools.cycle(METHODS), count)
    return [
        pareto.MethodPoint(f"{m}{i // 13 or ''}", (1 + i % 7) * MIB, 90 - 3.7 * (i % 5)) for i, m in enumerate(names)
    ]


def texts_of(figure: Any) -> list[str]:
    import matplotlib.text

    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()]


# -- Pareto ----------------------------------------------------------------------------------------------------------


def test_the_front_is_what_no_other_beats() -> None:
    def p(name: str, size: float, score: float) -> pareto.MethodPoint:
        return pareto.MethodPoint(name, size, score)

    all_ = [p("full", 100, 90), p("a", 25, 80), p("b", 25, 70), p("c", 50, 80), p("d", 10, 20), p("e", 60, 90)]
    assert [q.method for q in pareto.front_of(all_)] == ["d", "a", "e"]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_by_its_definition(pairs: list[tuple[int, int]]) -> None:
    all_ = [pareto.MethodPoint(str(i), size, score) for i, (size, score) in enumerate(pairs)]
    beaten = {
        (p.kv_bytes, p.score)
        for p in all_
        for q in all_
        if q.kv_bytes <= p.kv_bytes and q.score >= p.score and (q.kv_bytes, q.score) != (p.kv_bytes, p.score)
    }
    front = {(p.kv_bytes, p.score) for p in pareto.front_of(all_)}
    assert front == {(p.kv_bytes, p.score) for p in all_} - beaten


@pytest.mark.parametrize("count", [2, 8, 14])
def test_labels_of_points_do_not_cover_each_other(count: int) -> None:
    figure = pareto.draw(points(count), title="t", full_bytes=7 * MIB, score_label="score")
    figure.draw_without_rendering()
    labels = [t for t in figure.axes[0].texts if "budget" in t.get_text() or t.get_text().startswith("full")]
    assert len(labels) == count
    boxes = [label.get_window_extent() for label in labels]
    for a, b in itertools.combinations(boxes, 2):
        assert min(a.x1, b.x1) <= max(a.x0, b.x0) or min(a.y1, b.y1) <= max(a.y0, b.y0) + 3  # its paper may touch


def test_an_axis_that_does_not_begin_at_0_says_so() -> None:
    close = [pareto.MethodPoint("full", MIB, 45.0), pareto.MethodPoint("kivi", MIB / 4, 43.0)]
    wide = [pareto.MethodPoint("full", MIB, 45.0), pareto.MethodPoint("kivi", MIB / 4, 3.0)]
    low = [pareto.MethodPoint("full", MIB, 3.0), pareto.MethodPoint("kivi", MIB / 4, 2.5)]
    assert "begins" not in pareto.draw(low, title="t", full_bytes=MIB, score_label="s").axes[0].get_ylabel()
    assert "axis begins at 38" in pareto.draw(close, title="t", full_bytes=MIB, score_label="s").axes[0].get_ylabel()
    ax = pareto.draw(wide, title="t", full_bytes=MIB, score_label="s").axes[0]
    assert ax.get_ylabel() == "s"
    assert ax.get_ylim()[0] <= 0


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
@settings(deadline=None)
def test_spread_labels_keep_order_and_distance(values: list[float]) -> None:
    places = spread(values, 5.0)
    order = sorted(range(len(values)), key=values.__getitem__)
    for a, b in itertools.pairwise(order):
        assert places[b] - places[a] >= 5 - 1e-6
    assert sum(places) == pytest.approx(sum(values), abs=1e-6)  # moved as little as can be: the middle stays


# -- the other kinds -------------------------------------------------------------------------------------------------


def test_the_passkey_map_has_the_workbench_colours_and_depth_0_on_top() -> None:
    cells = {(n, d): float(d > 0.4) / (1 + (n == 512)) for n in (256, 512) for d in (0.0, 0.5, 1.0)}
    for count in (1, 2, 21):
        figure = heatmap.draw([heatmap.Grid(f"m{i}", cells) for i in range(count)], title="t")
        panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
        assert len(panels) == min(count, heatmap.MOST)
        for ax in panels:
            assert ax.get_ylim() == (2.5, -0.5)
        mesh = panels[0].collections[0]
        assert mesh.get_clim() == (0, 1)
        for value, colour in zip((0.0, 0.5, 1.0), heatmap.COLOURS, strict=True):
            expected = tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
            assert tuple(mesh.cmap(mesh.norm(value)))[:3] == pytest.approx(expected, abs=0.005)
        assert "1 more methods not drawn" in " ".join(texts_of(figure)) or count != 21
    assert texts_of(figure).count("50") == heatmap.MOST * 2


def test_cells_without_a_sample_are_not_0() -> None:
    figure = heatmap.draw([heatmap.Grid("full", {(256, 0.0): 1.0, (512, 1.0): 1.0})], title="t")
    assert texts_of(figure).count("·") == 2
    assert "0" not in texts_of(figure)


def curve(label: str, breakdown: str | None = None) -> lengths.LengthCurve:
    return lengths.LengthCurve(
        label, ("8k", "16k", "32k"), (60.0, None, 40.0), (55, None, 30), (65, None, 50), breakdown
    )


@pytest.mark.parametrize("count", [1, 4, 5, 30])
def test_curves_over_length(count: int) -> None:
    curves = [curve(f"m{i}", "32k" if i == 1 else None) for i in range(count)]
    figure = lengths.draw(curves, title="t", x_label="tokens", reference="m0")
    texts = " ".join(texts_of(figure))
    assert "m1" in texts or count == 1
    assert ("first length significantly below the base" in texts) == (count > 1)
    assert "band: 95 % interval" in texts
    for ax in figure.axes:
        assert ax.get_ylim()[0] <= 0
    if count == 30:
        assert "13 more methods not drawn" in texts


def test_where_a_band_stops_the_figure_says_why() -> None:
    whole = lengths.LengthCurve("m", ("8k", "16k"), (60.0, 40.0), (55, 30), (65, 50))
    part = lengths.LengthCurve("n", ("8k", "16k"), (60.0, 40.0), (55, None), (65, None))
    published = lengths.LengthCurve("p (published)", ("8k", "16k"), (60.0, 40.0))
    why = "none where under two contexts can be drawn again"
    assert why in " ".join(texts_of(lengths.draw([part], title="t", x_label="tokens")))
    assert why not in " ".join(texts_of(lengths.draw([whole, published], title="t", x_label="tokens")))


def test_radar_spokes_have_one_scale_and_gaps_stay_gaps() -> None:
    names = ["single-doc-qa", "few-shot", "code"]
    figure = radar.draw(names, {"full": [50.0, 70.0, None], "kivi": [40.0, 60.0, 30.0]}, title="t")
    (ax,) = [ax for ax in figure.axes if ax.name == "polar"]
    assert ax.get_ylim() == (0, 80)
    assert any(any(y != y for y in line.get_ydata()) for line in ax.lines)
    many = radar.draw(names, {f"m{i}": [10.0 * i] * 3 for i in range(15)}, title="t", reference="m0")
    assert len([ax for ax in many.axes if ax.name == "polar"]) == radar.MOST
    assert "2 more methods not drawn" in " ".join(texts_of(many))


def test_rings_of_a_radar_are_named_above_the_lines() -> None:
    names = ["single-doc-qa", "few-shot", "code"]
    figure = radar.draw(names, {"full": [60.0, 50.0, 40.0], "knorm": [10.0, 20.0, 30.0]}, title="t")
    (ax,) = figure.axes
    rings = [text for text in ax.texts if text.get_text() in {"15", "30", "45", "60"}]
    assert len(rings) == 4
    assert min(text.get_zorder() for text in rings) > max(line.get_zorder() for line in ax.lines)
    assert all(text.get_bbox_patch() is not None for text in rings)
    # Sides cross the middles of the gaps at 27 and 7, at 22 and 12, at 24 and 8: the last are the farthest from rings.
    assert {round(math.degrees(text.get_position()[0])) for text in rings} == {300}


def test_intervals_without_width_are_told_in_the_figures() -> None:
    def words(low: float) -> tuple[str, str, str]:
        flat = [pareto.MethodPoint(f"m{i}", 10.0 + i, 75.0, low, 75.0) for i in range(2)]
        curves = [lengths.LengthCurve("m", ("1", "2"), (75.0, 75.0), (low, low), (75.0, 75.0))]
        differences = [bars.Difference("m", "t", 0.0, low - 75.0, 0.0, 75.0)]
        return (
            " ".join(texts_of(pareto.draw(flat, title="t", full_bytes=None, score_label="score"))),
            " ".join(texts_of(lengths.draw(curves, title="t", x_label="x"))),
            " ".join(texts_of(bars.draw(differences, reference="full"))),
        )

    told = ("no width: all samples alike", "no width where all samples score alike", "no width where all pairs differ")
    assert all(said in text for said, text in zip(told, words(75.0), strict=True))
    assert not any(said in text for said, text in zip(told, words(50.0), strict=True))


def test_bars_start_at_0_and_missing_pairs_are_said() -> None:
    made = [bars.Difference(m, t, -5.0 + i, -8.0, 1.0, 50.0) for i, m in enumerate("ab") for t in ("x", "y")]
    figure = bars.draw(made[:3], reference="full")
    assert " no pairs" in texts_of(figure)
    for ax in figure.axes:
        assert all(patch.get_x() == 0 or patch.get_x() + patch.get_width() == 0 for patch in ax.patches)
        assert ax.get_xlim()[0] < 0 < ax.get_xlim()[1]
    nothing = bars.draw([bars.Difference("a", "x", 0.0, 0.0, 0.0, 50.0)], reference="full")
    assert nothing.axes[0].get_xlim() == (-1, 1)
    single = bars.draw([d for d in made if d.task == "x"], reference="full")
    assert "Difference to full (50.0): x" in " ".join(texts_of(single))


def test_speed_points_lie_on_their_bandwidth() -> None:
    made = [efficiency.SpeedPoint("full", 1024, 2, 4e9, 500.0), efficiency.SpeedPoint("kivi", 1024, 2, 2e9, 600.0)]
    assert made[0].bandwidth == 1e12
    figure = efficiency.draw(made, title="t", bandwidth=2e12)
    assert any("2 TB/s, measured: the limit" in text for text in texts_of(figure))
    limit = max(figure.axes[0].lines, key=lambda line: line.get_linewidth())
    assert [x * y for x, y in limit.get_xydata()] == pytest.approx([2e12, 2e12])
    assert not any("measured" in text for text in texts_of(efficiency.draw(made, title="t")))


# -- from runs -------------------------------------------------------------------------------------------------------


def a_run(path: Path) -> RunDirectory:
    cells = [(n, d, r) for n in (256, 512) for d in (0.0, 1.0) for r in (0, 1)]
    records = {
        ("full", "passkey"): [passkey(*c, found=True, kv_bytes=1000) for c in cells],
        ("kivi", "passkey"): [passkey(*c, found=c[0] == 256) for c in cells],
    }
    for task in ("qasper", "trec", "lcc"):
        extra = {"all_classes": ["Paris", "London"]} if task == "trec" else {}
        records["full", task] = [right(i, **extra) for i in range(3)]
        records["kivi", task] = [right(0, **extra), wrong(1, **extra), wrong(2, **extra)]
    run = make(path, records)
    row = {"method": "full", "prompt_tokens": 64, "decode_tokens_per_second": 9.0, "kv_bytes": 1e6, "model": "demo"}
    run.append_efficiency({**row, "batch": 2, "step_bytes": 5e8, "limit_tokens_per_second": 16.0})
    return run


def test_a_run_gives_every_figure_it_has_data_for(tmp_path: Path) -> None:
    run = a_run(tmp_path / "r")
    report = build([run])
    samples = samples_of(report, [run])
    drawn, missing = figures_of(report, samples, [run])
    assert [one.name for one in drawn] == [
        "pareto",
        "radar",
        "passkey",
        "length-passkey",
        "against-full",
        "efficiency",
    ]
    assert missing == []
    assert any("the limit, 4 GB/s measured" in text for text in texts_of(drawn[-1].figure))
    passkey_map = next(one for one in drawn if one.name == "passkey")
    assert passkey_map.alt.endswith("Found in all: full 100 %, kivi 50 %.")
    written = write_figures(drawn[:1], tmp_path / "new" / "figures")
    assert [path.name for path in written] == ["pareto.svg", "pareto.pdf", "pareto.png"]
    assert (tmp_path / "new/figures/pareto.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new/figures/pareto.pdf").read_bytes().startswith(b"%PDF")
    again, _ = figures_of(report, samples, [run])
    assert style.svg_text(again[0].figure) == written[0].read_text()
    assert "<image" not in style.svg_text(passkey_map.figure)  # pictures inside are not allowed in the HTML report


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    run = make(tmp_path / "r", {("kivi", "qasper"): [right(0)]})
    report = build([run])
    drawn, missing = figures_of(report, samples_of(report, [run]), [run])
    assert drawn == []
    assert len(missing) == 6
    assert any("no efficiency figure" in text and "lcbench bench" in text for text in missing)


def test_where_longscore_was_made_curves_carry_the_breakdown_point(tmp_path: Path) -> None:
    cells = [(n, d / 10, 0) for n in (256, 512, 1024) for d in range(11)]
    records = {
        ("full", "passkey"): [passkey(*c, found=True) for c in cells],
        ("kivi", "passkey"): [passkey(*c, found=c[0] < 1024) for c in cells],
    }
    run = make(tmp_path / "r", records)
    run.write_scores(score_run(run, ScoreOptions(longscore=LongScoreOptions(wanted=True))))
    report = build([run])
    drawn, _ = figures_of(report, samples_of(report, [run]), [run])
    (curves,) = [one for one in drawn if one.name.startswith("length")]
    assert "kivi: 256 100.00, 512 100.00, 1024 0.00, breaks down at 1024" in curves.alt
    assert "breaks down" not in curves.alt.partition("kivi")[0]
    assert "ring: first length significantly below the base" in " ".join(texts_of(curves.figure))


def test_models_have_figures_of_their_own(tmp_path: Path) -> None:
    runs = [
        make(
            tmp_path / m, {(k, "qasper"): [right(0), wrong(1)] for k in ("full", "kivi")}, model=f"org/{m}", identity=m
        )
        for m in ("A", "B")
    ]
    report = build(runs)
    drawn, _ = figures_of(report, samples_of(report, runs), runs)
    assert [one.name for one in drawn if "pareto" in one.name] == ["pareto-org-a", "pareto-org-b"]


def test_the_mean_over_tasks_has_the_interval_of_scores_json(tmp_path: Path) -> None:
    tasks = ["qasper", "multifieldqa_en"]
    run = make(tmp_path / "r", {("full", t): [right(i) if i % 3 else wrong(i) for i in range(12)] for t in tasks})
    report = build([run])
    samples = samples_of(report, [run])
    found = mean_interval([(line.name, own) for (line, _), own in samples.items()])
    group = score_run(run)["methods"]["full"]["categories"]["en/single-doc-qa"]
    assert list(found or ()) == group["interval"]


def test_hostile_names_are_drawn_as_text(tmp_path: Path) -> None:
    name = "$\\frac{x$ <b>&\x1b[31m\u202e_^{ %d {0}"
    figure = pareto.draw([pareto.MethodPoint(name, MIB, 5), pareto.MethodPoint("full", MIB * 2, 9)], title=name[:8],
                         full_bytes=None, score_label="s")  # fmt: skip
    style.save(figure, tmp_path / "x.svg")
    assert "\x1b" not in (tmp_path / "x.svg").read_text()


# -- the command -----------------------------------------------------------------------------------------------------


def call(*words: str) -> Any:
    return CliRunner().invoke(app, ["report", *words])


def test_figures_option_writes_three_formats(tmp_path: Path) -> None:
    records = [right(i, kv_bytes=0) for i in range(2)]  # no bytes, no Pareto figure
    run = make(tmp_path / "r", {(m, "qasper"): records for m in ("full", "kivi")})
    result = call(str(run.path), "--figures", str(tmp_path / "f"), "-f", "csv")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "f").iterdir()}
    assert names == {f"against-full.{suffix}" for suffix in ("svg", "pdf", "png")}
    assert "no radar figure" in result.stderr
    assert result.stdout.startswith("model,")
    (tmp_path / "file").write_text("")
    problem = call(str(run.path), "--figures", str(tmp_path / "file")).exception
    assert "is a file, not a folder" in str(problem)


def test_without_matplotlib_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "r", {("full", "qasper"): [right(0)]})
    real = builtins.__import__

    def no_matplotlib(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    error = call(str(run.path), "--figures", str(tmp_path / "f")).exception
    assert isinstance(error, UsageError)
    assert error.message == "Figures need matplotlib, which is not installed."
    assert "pip install" in error.next_step
    page = call(str(run.path), "-f", "html")
    assert page.exit_code == 0
    assert re.search("Figures need matplotlib", page.stdout)
