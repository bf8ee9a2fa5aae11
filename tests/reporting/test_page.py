"""The HTML report: one file, nothing fetched, foreign text shown as text, every number with its samples."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import failed, make, passkey, right, wrong

from lcbench.reporting.build import build
from lcbench.reporting.figures.drawn import Drawn
from lcbench.reporting.page import embed
from lcbench.reporting.page.embed import json_for_script
from lcbench.reporting.page.render import render
from lcbench.reporting.page.svg import inline
from lcbench.reporting.page.visible import cut, visible
from lcbench.reporting.samples import samples_of
from lcbench.scoring.longscore.result import LongScoreOptions
from lcbench.scoring.run import ScoreOptions, score_run
from lcbench.store.rundir import RunDirectory

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"><svg onload='alert(3)'>",
    "<!--<script>",
    "\x00\x07\x1b[31mred\x7f\x9b",
    "\u202eright to left\u2066",
    "half a pair \ud800",
    "\u2028lines\u2029",
    "{{ 7000013*7 }}{% raw %}",
    "https://evil.example/x.png",
]


class Parsed(HTMLParser):
    """Elements, their attributes, and the text of script elements, as a browser's parser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.words: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.elements.append((tag, given))
        if tag == "script":
            self.scripts.append((given, ""))
        self._inside = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._inside:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        else:
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(*runs: RunDirectory, figures: tuple[Drawn, ...] = ()) -> str:
    report = build(runs)
    return render(report, samples_of(report, runs), runs, figures)


def data_of(page: Parsed) -> dict[str, Any]:
    ((_, text),) = [(a, t) for a, t in page.scripts if a.get("type") == "application/json"]
    found: dict[str, Any] = json.loads(text)
    return found


def hostile_run(path: Path) -> RunDirectory:
    records = [right(i, pred=text, answers=[text], id=f"{i}{text}") for i, text in enumerate(HOSTILE)]
    broken = right(99, pred="", status="error", error=HOSTILE[0])
    facts = {"rows": 11, "notes": [HOSTILE[0]], "prompt_begins": HOSTILE[1], "prompt_ends": HOSTILE[2]}
    methods = {(f"kivi{HOSTILE[0]}", "qasper"): [*records, broken], ("full", "qasper"): records}
    return make(path, methods, model=HOSTILE[2], facts={"qasper": facts})


def test_no_foreign_text_becomes_an_element_or_ends_a_script(tmp_path: Path) -> None:
    text = page_of(hostile_run(tmp_path / "r"))
    text.encode("utf-8")
    page = Parsed(text)
    assert [attributes.get("type") for attributes, _ in page.scripts] == ["application/json", None]
    assert "img" not in {tag for tag, _ in page.elements}
    assert not page.of("svg")
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
    assert "alert(1)" in html.unescape("".join(page.words))  # it is there, as text
    ((_, data),) = [(a, t) for a, t in page.scripts if a]
    assert not set("<>&\u2028\u2029") & set(data)
    assert "49000091" not in "".join(page.words)  # no template ran on it


def test_what_a_reader_could_not_see_is_named(tmp_path: Path) -> None:
    page = Parsed(page_of(hostile_run(tmp_path / "r")))
    predictions = [row[2] for cell in data_of(page)["cells"].values() for row in cell["rows"]]
    assert "⟨U+0000⟩⟨U+0007⟩⟨U+001B⟩[31mred⟨U+007F⟩⟨U+009B⟩" in predictions
    assert "⟨U+202E⟩right to left⟨U+2066⟩" in predictions
    assert "half a pair ⟨U+D800⟩" in predictions
    assert HOSTILE[0] in predictions
    shown = json.dumps(data_of(page), ensure_ascii=False) + "".join(page.words)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)


def test_nothing_is_fetched_and_only_our_script_runs(tmp_path: Path) -> None:
    page = Parsed(page_of(hostile_run(tmp_path / "r")))
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img", "video", "audio", "source")
        for name in ("src", "srcset", "action", "data", "poster", "background"):
            assert name not in attributes, (tag, attributes)
        assert attributes.get("href", "#").startswith("#")
        assert "url(" not in attributes.get("style", "")
    style = re.search(r"<style>(.*?)</style>", page_of(hostile_run(tmp_path / "s")), re.DOTALL)
    assert style is not None
    assert "url(" not in style.group(1)
    assert "@import" not in style.group(1)
    (policy,) = [a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    ((_, script),) = [(a, t) for a, t in page.scripts if not a]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'")
    for forbidden in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttpRequest"):
        assert forbidden not in script


@given(st.recursive(st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_json_in_a_script_element_is_safe_and_the_same(data: Any) -> None:
    text = json_for_script(data)
    assert json.loads(text) == data
    assert not set("<>&\u2028\u2029") & set(text)


@given(st.text())
def test_visible_text_hides_nothing(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]", shown)


def test_every_number_leads_to_its_samples(tmp_path: Path) -> None:
    keys = [passkey(n, d, 0, found=n == 256) for n in (256, 512) for d in (0.0, 1.0)]
    tasks = {"qasper": [right(0), wrong(1), failed(2)], "multifieldqa_en": [right(0)], "passkey": keys}
    run = make(tmp_path / "r", {(m, t): records for m in ("full", "kivi@bits=2") for t, records in tasks.items()})
    text = page_of(run)
    page = Parsed(text)
    data = data_of(page)
    report = build([run])
    buttons = [a for a in page.of("button") if a.get("class") == "n"]
    assert len(buttons) == len(report.cells)
    for (line, column), cell in sorted(report.cells.items(), key=lambda entry: report.columns.index(entry[0][1])):
        button = buttons.pop(0)
        cells = [data["cells"][key] for key in button["data-cells"].split(",")]
        rows = [
            row
            for one in cells
            for row in one["rows"]
            if not button["data-length"] or data["tasks"][one["task"]]["lengths"][row[0]] == button["data-length"]
        ]
        scores = [row[1] for row in rows if row[1] is not None]
        if line.kind == "mean":
            assert len(cells) == len(line.members) == 2
            continue
        assert len(scores) == cell.n
        assert len(rows) - len(scores) == cell.errors
        assert sum(scores) / len(scores) == pytest.approx(cell.score)
        assert column.method in button["aria-label"]
    row = data["cells"]["0"]["rows"][0]
    task = data["tasks"][data["cells"]["0"]["task"]]
    assert row[2:10] == ["Paris", 5, 10, 0, 0, 250, 1000, False]
    assert task["answers"][row[0]] == ["Paris"]


def test_numbers_of_the_rankings_lead_to_their_samples_and_have_intervals(tmp_path: Path) -> None:
    cells = [(n, d / 10, 0) for n in (256, 512, 1024) for d in range(10)]
    found = {"full": 1024, "h2o": 512, "kivi": 512}
    run = make(
        tmp_path / "r",
        {(m, "passkey"): [passkey(*c, found=c[0] < most or c[1] < 0.45) for c in cells] for m, most in found.items()},
    )
    run.write_scores(score_run(run, ScoreOptions(longscore=LongScoreOptions(wanted=True))))
    text = page_of(run)
    data = data_of(Parsed(text))
    section = text[text.index('id="rankings"') :]
    section = section[: section.index("</section>")]
    buttons = [a for a in Parsed(section).of("button") if a.get("class") == "n"]
    assert len(buttons) == 3 * 3
    (ranking,) = build([run]).longscore.rankings  # type: ignore[union-attr]
    for standing, base, average in zip(ranking.standings, buttons[::3], buttons[1::3], strict=True):
        (key,) = {base["data-cells"], average["data-cells"]}
        assert data["cells"][key]["title"].startswith(f"{standing.label} on passkey")
        assert (base["data-length"], average["data-length"]) == ("256", "")
        rows = [row for row in data["cells"][key]["rows"] if data["tasks"][0]["lengths"][row[0]] == "256"]
        assert sum(row[1] for row in rows) / len(rows) == pytest.approx(standing.base)
        assert standing.label in base["aria-label"]
    low, high = ranking.standings[-1].long_score_interval  # type: ignore[misc]
    assert f'<span class="under interval">{low:.1f} to {high:.1f}</span>' in section
    assert 'class="scores show-interval"' in section
    (script,) = [script for attributes, script in Parsed(text).scripts if not attributes]
    assert 'document.addEventListener("click"' in script  # not the first table alone


def test_prompts_ends_are_there_where_the_data_are(tmp_path: Path) -> None:
    from lcbench.config.home import home
    from lcbench.tasks.registry import resolve

    name = "passkey@lengths=64,depths=0.0/1.0,repeats=1"
    (task,) = resolve(name)
    loaded = task.load(home())
    records = [right(0, id=row.id, answers=list(row.answers), length=64, meta=row.meta) for row in loaded.rows]
    same = make(tmp_path / "same", {("full", task.id): records}, facts={task.id: {"data_sha256": loaded.sha256}})
    (shared,) = data_of(Parsed(page_of(same)))["tasks"]
    assert all(begin.startswith("There is an important info") for begin in shared["begins"])
    assert f"The pass key is {loaded.rows[0].answers[0]}" in shared["begins"][0]
    assert all(end.endswith("The pass key is ") for end in shared["ends"])
    other = make(
        tmp_path / "other",
        {("full", task.id): records},
        facts={task.id: {"data_sha256": "other", "prompt_begins": "abc", "prompt_ends": "xyz"}},
    )
    (shared,) = data_of(Parsed(page_of(other)))["tasks"]
    assert shared["begins"] == ["", ""]
    assert (shared["begin"], shared["end"]) == ("abc", "xyz")


def test_megabytes_are_cut_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "r", {("full", "qasper"): [right(i, pred="x" * 2_000_000) for i in range(3)]})
    text = page_of(run)
    assert len(text) < 150_000
    assert "left out" in text
    assert data_of(Parsed(text))["cells"]["0"]["rows"][0][3] == 2_000_000
    monkeypatch.setattr(embed, "BUDGET", 10_000)
    small = page_of(run)
    assert len(small) < len(text) - 40_000
    assert 'data-longest="600"' in small or 'data-longest="2,000"' in small


def test_cut_keeps_both_ends() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("a" * 60 + "z" * 60, 20) == f"{'a' * 15}\n⟨… 100 characters left out …⟩\n{'z' * 5}"


def test_tables_can_be_heard_and_used_by_keyboard(tmp_path: Path) -> None:
    run = make(tmp_path / "r", {(m, "qasper"): [right(0), wrong(1)] for m in ("full", "kivi@bits=2")})
    page = Parsed(page_of(run))
    assert page.of("html") == [{"lang": "en"}]
    heads = page.of("th")
    assert all(a.get("scope") in ("col", "row") for a in heads)
    assert len([a for a in heads if a["scope"] == "row"]) == 2
    assert len(page.of("caption")) == 1
    assert len([a for a in page.of("button") if a.get("class") == "arrow"]) == len(
        [a for a in heads if a["scope"] == "col"]
    )
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for attribute in ("aria-labelledby", "aria-describedby"):
        assert {a[attribute] for _, a in page.elements if attribute in a} <= set(ids)
    assert {"status"} <= {a.get("role") for _, a in page.elements}
    assert any(a.get("name") == "viewport" for a in page.of("meta"))
    assert "noscript" in {tag for tag, _ in page.elements}


def test_figures_stand_inside_in_the_colours_of_the_page() -> None:
    svg = (
        '<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/x.dtd">\n'
        '<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="72pt" height="36pt" viewBox="0 0 72 36" '
        'xmlns="http://www.w3.org/2000/svg" version="1.1"><metadata><a href="https://matplotlib.org/"/></metadata>'
        '<defs><style type="text/css">*{stroke-linejoin: round}</style><path id="p1" d="M0"/></defs>'
        '<g clip-path="url(#c2)"><use xlink:href="#p1" style="fill: #1A1A1B"/></g></svg>'
    )
    made = inline(svg, "pareto", 'a "quoted" <b> \\1 text')
    assert made.startswith('<svg viewBox="0 0 72 36" role="img" aria-label="a &quot;quoted&quot; &lt;b&gt; \\1 text"')
    assert 'id="pareto-p1"' in made
    assert 'href="#pareto-p1"' in made
    assert "url(#pareto-c2)" in made
    assert "fill: var(--ink)" in made
    assert inline('<svg viewBox="0 0 1 1"><g style="fill: #0072b2"/></svg>', "x", "").count("var(--blue)") == 1
    assert "http" not in made
    assert "<style" not in made


def test_captions_and_figures_fit_a_narrow_window_and_the_paper(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    page = page_of(hostile_run(tmp_path / "r"), figures=(Drawn("f", "A figure", "alt", Figure()),))
    assert page.count('<caption><span class="stays">') == page.count("<caption>")
    assert page.count('<div class="picture"><svg') == page.count("<figure>") == 1
    narrow, paper = page.split("@media (max-width: 40rem)")[1].split("@media print")
    assert ".picture { overflow-x: auto; } .picture svg { min-width: 36rem; }" in narrow
    paper = paper.partition("</style>")[0]
    assert "caption, thead { break-after: avoid; }" in paper
    assert ".picture svg { min-width: 0; }" in paper


def test_nothing_but_the_second_best_is_underlined_in_the_table() -> None:
    from importlib.resources import files

    style = files("lcbench.reporting.page").joinpath("style.css").read_text(encoding="utf-8")
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", style)
    underlined = [selector.strip() for selector, body in rules if "underline" in body.replace("underline-offset", "")]
    assert underlined == [".second .n"]


CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_the_hostile_page_without_obeying_it(tmp_path: Path) -> None:
    """The page as a browser has it after its scripts ran: filtered and counted, with no element of a model's making."""
    assert CHROMIUM is not None
    (tmp_path / "page.html").write_text(page_of(hostile_run(tmp_path / "r")), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    page = Parsed(done.stdout)
    assert "2 of 2 methods, 1 of 1 columns" in "".join(page.words)  # our script ran
    assert "img" not in {tag for tag, _ in page.elements}
    assert len(page.scripts) == 2
