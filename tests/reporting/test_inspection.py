"""Inspections as people see them: shades, hostile text, what the page holds and what it does in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lcbench.inspected import InspectedLayer, Inspection, Merging, Piece
from lcbench.reporting.inspection.page import level
from lcbench.reporting.inspection.page import render as page_of
from lcbench.reporting.inspection.terminal import render as terminal_of

HOSTILE = [
    "<script>alert(1)</script>",
    "</script>",
    "\x1b[31mred",
    "\u202egnp",
    '"><img src=x onerror=1>',
    "[bold]x[/]",
]


def inspection(texts: list[str] | None, count: int = 6, **more: object) -> Inspection:
    """Two layers of two heads: the first layer keeps the even tokens, the second the first token alone."""
    even = list(range(0, count, 2))
    layers = more.pop("layers", None) or (
        InspectedLayer([even, even], 600),
        InspectedLayer([[0], [0]], 200),
    )
    settings = {
        "model": "m", "method": "snapkv", "memory": "real", "ids": list(range(count)), "texts": texts,
        "layers": layers, "kv_bytes": 800, "kv_bytes_full": 2400, "resident_bytes": 800,
    }  # fmt: skip
    return Inspection(**{**settings, **more})  # type: ignore[arg-type]


def printed(found: Inspection, *, width: int = 80, colours: bool = False) -> str:
    out = StringIO()
    console = Console(
        file=out, width=width, highlight=False, force_terminal=colours, color_system="truecolor" if colours else None
    )
    console.print(terminal_of(found, console))
    return out.getvalue()


class Parsed(HTMLParser):
    """Elements with attributes, the words between them, and the words of spans by class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.shaded: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if tag == "span":
            self.shaded.append((attributes.get("class") or "", data))


@pytest.mark.parametrize("width", [80, 200])
def test_the_terminal_brackets_what_no_head_kept_where_there_are_no_colours(width: int) -> None:
    text = printed(inspection(["a", "b", "c", "d", "e", "f"]), width=width)
    assert "a⟦b⟧c⟦d⟧e⟦f⟧" in text
    assert all(len(line) <= width for line in text.splitlines())
    assert "2.0 of 6 tokens kept" in text.replace("\n", " ")
    assert "800 B of 2.34 KiB KV bytes (3.00x)" in text.replace("\n", " ")
    assert re.search(r"0\s+█·█·█·\s+50.0 %\s+600 B", text)
    assert re.search(r"1\s+█·····\s+16.7 %\s+200 B", text)


def test_where_every_token_was_kept_no_brackets_are_explained() -> None:
    assert "every token was kept by some of the 4 heads" in " ".join(printed(inspection(["a"], count=1)).split())


def test_the_terminal_shades_by_the_heads_that_kept_a_token() -> None:
    text = printed(inspection(["a", "b", "c", "d", "e", "f"]), colours=True)
    body = text[text.rindex("more") :]
    assert "\x1b[37;48;2;8;81;156ma" in body  # all four heads
    assert "\x1b[90mb" in body  # none
    assert "\x1b[30;48;2;158;202;225mc" in body  # two of four


def test_hostile_text_stays_text_on_the_terminal() -> None:
    text = printed(inspection(HOSTILE, method="\x1b[2J"))
    assert "\x1b" not in text
    assert "\u202e" not in text
    for shown in ("⟨U+001B⟩[31mred", "⟨U+202E⟩gnp", "[bold]x[/]", "<script>alert(1)</script>"):
        assert shown in text.replace("⟦", "").replace("⟧", "").replace("\n", "")


def test_long_prompts_lose_their_middle_on_the_terminal_only() -> None:
    found = inspection([f"w{i} " for i in range(2500)], 2500)
    text = printed(found, width=200)
    assert "500 tokens are left out here" in text
    assert "w999 " in text
    assert "w1000 " not in text
    assert "w1499 " not in text
    assert "w1500 " in text
    assert "w1200 " in page_of(found)


def test_ids_stand_for_texts_without_a_tokenizer() -> None:
    text = printed(inspection(None))
    assert "0 ⟦1 ⟧2" in text
    assert "no tokenizer was read" in text


def test_errors_merges_fetches_and_cuts_are_told() -> None:
    layers = [
        InspectedLayer(
            [[0, 2, 4], [0, 2, 4]], 600, errors=[(0.125, 0.25), (0.375, 0.5)],
            merged=[[Merging((1, 3), (2,))], []], fetched=[[[0, 1, 2], [2, 3]], None],
        ),
    ]  # fmt: skip
    pieces = [Piece("kept ", "kept"), Piece("gone", "cut"), Piece("new", "added")]
    found = inspection(list("abcdef"), layers=layers, pieces=pieces, fed=[7, 8])
    narrow = printed(found).splitlines()
    assert all(len(line) <= 80 for line in narrow)
    assert any(line.split() == ["0", "50.0", "%", "600", "B", "25.00", "(12.50–37.50)", "37.50", "(25.00–50.00)"]
               for line in narrow)  # fmt: skip
    text = printed(found, width=120)
    assert "█·█·█·" in text
    assert "25.00 (12.50–37.50)" in text
    assert "37.50 (25.00–50.00)" in text
    assert "2 entries were merged into others" in text
    assert "layer 0, head 0: 1, 3 into 2" in text
    assert "4 all read" in text
    assert "kept ⟦gone⟧⟪new⟫" in text
    page = Parsed(page_of(found))
    tags = [tag for tag, _ in page.elements]
    assert (tags.count("del"), tags.count("ins")) == (1, 1)
    assert "12.50 / 25.00, 37.50 / 50.00" in "".join(page.words)
    data = found.to_json(details=True)
    assert data["layers"][0]["fetched"] == [[[0, 1, 2], [2, 3]], None]
    assert data["layers"][0]["merged"] == [[{"from": [1, 3], "into": [2]}], []]
    assert data["text"][1] == {"text": "gone", "kind": "cut"}


def test_a_shortened_prompt_is_counted_against_the_one_given() -> None:
    pieces = [Piece("abc", "kept"), Piece("gone", "cut"), Piece("def", "kept")]
    found = inspection(list("abcdef"), method="llmlingua2", shortened_from=10, pieces=pieces)
    text = printed(found).replace("\n", " ")
    assert "2.0 of 10 tokens kept" in text
    assert "(20.0 %); the prompt was shortened to 6 tokens" in text
    assert "The shortened prompt; ⟦…⟧" in text
    assert re.search(r"30.0 %\s+600 B", text)
    page = "".join(Parsed(page_of(found)).words)
    assert "2.0 of 10 tokens kept" in page
    assert "The shortened prompt" in page
    assert json.loads(re.search(r'id="data">(.*?)</script>', page_of(found), re.S).group(1))["given"] == 10  # type: ignore[union-attr]
    assert found.to_json(details=True)["prompt_tokens_before"] == 10
    assert found.to_json()["prompt_tokens"] == 6
    assert "prompt_tokens_before" not in inspection(None).to_json(details=True)


def test_a_prompt_that_was_not_cut_says_so() -> None:
    said = "gemfilter cut nothing: the prompt's 6 tokens are within its budget (budget=1024)."
    found = inspection(
        list("abcdef"), method="gemfilter", shortened_from=6, remark=said, pieces=[Piece("abcdef", "kept")]
    )
    text = " ".join(printed(found).split())
    assert said in text
    assert "of 6 tokens kept" in text
    assert "shortened" not in text
    assert "rewrote" not in text
    page = page_of(found)
    assert said.replace("'", "&#39;") in page
    assert "rewrote" not in page


def test_levels_are_none_some_and_all() -> None:
    assert [level(count, 90) for count in (0, 1, 45, 89, 90)] == [0, 1, 4, 7, 8]
    assert [level(count, 1) for count in (0, 1)] == [0, 8]


def test_the_page_is_escaped_and_asks_for_nothing() -> None:
    text = page_of(inspection(HOSTILE, model="</title><script>x</script>"))
    page = Parsed(text)
    tags = [tag for tag, _ in page.elements]
    assert "img" not in tags
    assert tags.count("script") == 2
    assert not any(name in attributes for _, attributes in page.elements for name in ("src", "onerror", "onclick"))
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in page.elements)
    assert "http://" not in text
    assert "https://" not in text
    policy = next(attributes for tag, attributes in page.elements if attributes.get("http-equiv"))
    assert "default-src 'none'" in str(policy["content"])
    shown = [word for kind, word in page.shaded if re.fullmatch(r"l\d", kind)]
    assert "⟨U+001B⟩[31mred" in shown
    assert "<script>alert(1)</script>" in shown


def test_on_paper_the_page_says_what_is_shaded() -> None:
    page = page_of(inspection(list("abcdef")))
    assert '<p id="shaded">Shaded by all 4 heads of all layers together.</p>' in page
    assert page.count('class="legend"') == 2  # the one among the controls is not printed
    assert re.search(r"@media print \{ \.on-paper \{ display: block; \} \.screen \{ display: none; \}", page)
    assert '$("shaded").textContent = "Shaded by "' in page


def test_the_page_can_be_heard_and_used_by_keyboard() -> None:
    page = Parsed(page_of(inspection(list("abcdef"))))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "aria-describedby"):
        assert {a[name] for _, a in page.elements if name in a} <= set(ids)
    slider = next(a for tag, a in page.elements if a.get("type") == "range")
    assert (slider["min"], slider["max"]) == ("-1", "1")
    assert [a.get("tabindex") for _, a in page.elements if a.get("id") == "text"] == ["0"]
    assert sum(a.get("role") == "status" for _, a in page.elements) == 2
    assert {"noscript", "output"} <= {tag for tag, _ in page.elements}


def test_the_pages_bits_are_the_kept_positions() -> None:
    text = page_of(inspection(list("abcdef")))
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    bits = base64.b64decode(data["kept"][0][1])
    assert [at for at in range(6) if bits[at >> 3] >> (at & 7) & 1] == [0, 2, 4]
    assert data["tokens"] == 6


CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
DRIVER = """
const slide = (id, to) => { const s = document.getElementById(id); s.value = to; s.dispatchEvent(new Event("input")); };
slide("layer", 1);
const key = (name) => document.getElementById("text").dispatchEvent(new KeyboardEvent("keydown", { key: name }));
key("ArrowRight"); key("ArrowRight"); key("Home");
document.body.append("classes:" + Array.from(document.getElementById("text").children, (s) => s.className).join("|"));
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_slider_and_the_keys_work_in_a_browser(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page_of(inspection(HOSTILE)))
    (tmp_path / "page.html").write_text(text.replace("</body>", f"<script>{DRIVER}</script></body>"), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    words = "".join(Parsed(done.stdout).words)
    assert "Layer 1: 16.7 % of 6 tokens kept" in words
    assert "classes:l8 chosen|l0|l0|l0|l0|l0" in words
    assert "Token 0 (id 0) “<script>alert(1)</script>”: 2 of 2 heads (layer.head 1.0, 1.1)" in words
