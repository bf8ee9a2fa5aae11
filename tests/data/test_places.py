"""`--from`: folder, ZIP, URL."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from mirror_server import Mirror, Page
from tiny_data import Tiny, zip_of

from lcbench.data import store
from lcbench.data.fetch import Patience
from lcbench.data.install import Report, install
from lcbench.errors import BadValue, ChecksumMismatch, CorruptFile, DataMissing, LcbenchError, NetworkError

Get = Callable[..., Report]


@pytest.fixture
def get(own_home: Path, quick: Patience) -> Get:
    def run(place: object, *names: str, **more: Any) -> Report:
        return install(own_home, names, str(place), patience=quick, **more)

    return run


def states(report: Report) -> dict[str, str]:
    return {done.file: done.state for done in report.done}


def notes(report: Report) -> dict[str, str]:
    return {done.file: done.note for done in report.done}


def problem(report: Report, kind: type[LcbenchError]) -> LcbenchError:
    [found] = report.problems
    assert isinstance(found, kind)
    return found


def tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


Serve = Callable[[Path], str]


@pytest.fixture
def listing() -> Iterator[Serve]:
    """Serve a folder the way `python -m http.server` does, with listings."""
    servers: list[ThreadingHTTPServer] = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    def serve(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        servers.append(server)
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def content_of(tiny: Tiny, form: str) -> dict[str, bytes]:
    """The data set's files as people keep them."""
    one, two = tiny.lines("one"), tiny.lines("two", 3)
    return {
        "flat": {"one.jsonl": one, "two.first3.jsonl": two, "lengths.json": tiny.config},
        "config folder": {"one.jsonl": one, "two.first3.jsonl": two, "config/lengths.json": tiny.config},
        "official": {"data/one.jsonl": one, "data/two.first3.jsonl": two, "config/lengths.json": tiny.config},
        "by name": {"tiny/one.jsonl": one, "tiny/two.first3.jsonl": two, "tiny/config/lengths.json": tiny.config},
        "packed": {
            "one.jsonl.gz": gzip.compress(one),
            "two.first3.jsonl.gz": gzip.compress(two),
            "lengths.json.gz": gzip.compress(tiny.config),
        },
    }[form]


@pytest.mark.parametrize("form", ["flat", "config folder", "official", "by name", "packed"])
@pytest.mark.parametrize("kind", ["folder", "zip", "zip of a folder", "url", "url of a zip", "file url"])
def test_every_form_of_every_place(
    tiny: Tiny, mirror: Mirror, own_home: Path, tmp_path: Path, listing: Serve, get: Get, form: str, kind: str
) -> None:
    files = content_of(tiny, form)
    place = str(tree(tmp_path / "place", files))
    if kind == "url":
        place = listing(tmp_path / "place")
    elif kind == "file url":
        place = (tmp_path / "place").as_uri()
    elif kind != "folder":
        top = "top/" if kind == "zip of a folder" else ""
        archive = tmp_path / "mirror" / "tiny.ZIP"
        tree(tmp_path / "mirror", {"tiny.ZIP": zip_of({top + name: content for name, content in files.items()})})
        place = f"{listing(archive.parent)}/tiny.ZIP" if kind == "url of a zip" else str(archive)
    report = get(place, "one", "two")
    assert report.problems == []
    assert states(report) == {
        "one.jsonl": "installed", "two.jsonl": "installed",
        "config/lengths.json": "installed", "config/extra.json": "missing",
    }  # fmt: skip
    assert notes(report)["two.jsonl"] == "first 3 of 4 rows"
    assert store.data_file(own_home, "tiny", "two.jsonl").subset_note == "subset: first 3 of 4 rows"
    assert store.read_rows(own_home, "tiny", "two.jsonl") == tiny.rows["two"][:3]
    assert store.read_rows(own_home, "tiny", "one.jsonl") == tiny.rows["one"]
    assert store.config_json(own_home, "tiny", "lengths.json") == {"one": 5, "two": 6}
    assert mirror.asked == [], "nothing came from the official sources"
    entry = json.loads((own_home / "data" / "tiny" / "lock.json").read_text())["two.jsonl"]
    assert entry["subset"] == {"rows": 3, "of": 4, "name": "two.first3.jsonl"}
    assert Path(entry["source"]).is_absolute() or "://" in entry["source"]
    assert not (own_home / "data" / "tiny" / ".parts").exists()


def test_a_url_that_shows_no_listing(tiny: Tiny, mirror: Mirror, get: Get) -> None:
    mirror.pages["/m/one.jsonl"] = Page(tiny.lines("one"))
    mirror.pages["/m/config/lengths.json.gz"] = Page(gzip.compress(tiny.config))
    report = get(f"{mirror.url}/m?sig=secret", "one")
    assert report.problems == []
    assert states(report)["one.jsonl"] == "installed"
    assert states(report)["config/lengths.json"] == "installed"
    assert {asked.path.partition("?")[2] for asked in mirror.asked} == {"sig=secret"}
    assert "no two.jsonl" in problem(get(f"{mirror.url}/m", "two"), DataMissing).message


def test_the_record_of_a_url_holds_no_secrets(tiny: Tiny, mirror: Mirror, own_home: Path, get: Get) -> None:
    mirror.pages["/m/one.jsonl"] = Page(tiny.lines("one"))
    mirror.pages["/m/lengths.json"] = Page(tiny.config)
    get(mirror.url.replace("://", "://alice:hunter2@") + "/m?sig=secret", "one")
    text = (own_home / "data" / "tiny" / "lock.json").read_text()
    assert f"{mirror.url}/m/one.jsonl" in text
    assert not [word for word in ("alice", "hunter2", "secret") if word in text]


def test_a_landing_page_is_not_taken_for_a_listing(tiny: Tiny, mirror: Mirror, get: Get) -> None:
    page = b'<a href="about.html">x</a> <a href=\'mailto:x\'>y</a> <a href="http://[bad">z</a>'
    mirror.pages["/m/"] = Page(page, type="text/html; charset=utf-8")
    mirror.pages["/m/one.jsonl"] = Page(tiny.lines("one"))
    mirror.pages["/m/lengths.json"] = Page(tiny.config)
    assert get(f"{mirror.url}/m/", "one").problems == []


def test_a_wrong_file_of_a_mirror(tiny: Tiny, mirror: Mirror, own_home: Path, get: Get) -> None:
    mirror.pages["/m/one.jsonl"] = Page(tiny.lines("one") + b"\n")
    mirror.pages["/m/lengths.json"] = Page(tiny.config)
    assert "one.jsonl" in problem(get(f"{mirror.url}/m", "one"), ChecksumMismatch).message
    assert not (own_home / "data" / "tiny" / "one.jsonl").exists()


def test_a_mirror_out_of_reach(tiny: Tiny, get: Get) -> None:
    for place in ("http://127.0.0.1:9/m", "http://127.0.0.1:9/m.zip"):
        with pytest.raises(NetworkError, match=r"127\.0\.0\.1:9 cannot be reached"):
            get(place, "one")


@pytest.mark.parametrize(
    ("place", "words"),
    [("nowhere", "no folder or ZIP file 'nowhere'"), ("ftp://x/y", "'ftp://x/y' is not a folder"), ("http://", "http")],
)
def test_a_place_that_is_none(tiny: Tiny, get: Get, place: str, words: str) -> None:
    with pytest.raises(BadValue, match=words):
        get(place, "one")


def test_a_file_that_is_no_archive(tiny: Tiny, get: Get, tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_bytes(tiny.lines("one"))
    with pytest.raises(CorruptFile, match=r"one\.jsonl is not a readable ZIP archive"):
        get(file, "one")


def test_a_subset_never_replaces_the_full_file(tiny: Tiny, own_home: Path, tmp_path: Path, get: Get) -> None:
    full = tree(tmp_path / "full", content_of(tiny, "flat"))
    get(full, "one")
    part = tree(tmp_path / "part", {"one.first2.jsonl": tiny.lines("one", 2)})
    report = get(part, "one")
    assert states(report)["one.jsonl"] == "kept"
    assert "one.first2.jsonl is left aside" in notes(report)["one.jsonl"]
    assert store.data_file(own_home, "tiny", "one.jsonl").rows == 7


def test_subsets_grow_shrink_and_become_whole(tiny: Tiny, own_home: Path, tmp_path: Path, get: Get) -> None:
    place = tmp_path / "p"
    tree(place, {"one.first2.jsonl": tiny.lines("one", 2), "lengths.json": tiny.config})
    assert states(get(place, "one"))["one.jsonl"] == "installed"
    assert states(get(place, "one"))["one.jsonl"] == "present"
    tree(place, {"one.first5.jsonl": tiny.lines("one", 5)})
    report = get(place, "one")
    assert states(report)["one.jsonl"] == "replaced"
    assert notes(report)["one.jsonl"] == "first 5 of 7 rows, instead of first 2 of 7 rows"
    tree(place, {"one.jsonl": tiny.lines("one")})
    report = get(place, "one")
    assert notes(report)["one.jsonl"] == "the full file, instead of first 5 of 7 rows"
    assert store.data_file(own_home, "tiny", "one.jsonl").subset_note == ""


def test_the_hub_completes_a_subset(
    tiny: Tiny, mirror: Mirror, own_home: Path, tmp_path: Path, get: Get, quick: Patience
) -> None:
    get(tree(tmp_path / "p", {"one.first2.jsonl": tiny.lines("one", 2), "lengths.json": tiny.config}), "one")
    report = install(own_home, ["one"], patience=quick)
    assert states(report)["one.jsonl"] == "replaced"
    assert store.data_file(own_home, "tiny", "one.jsonl").rows == 7


@pytest.mark.parametrize(
    ("name", "count", "kind", "words"),
    [
        ("one.first5.jsonl", 4, CorruptFile, "has 4 rows, not 5"),
        ("one.first4.jsonl", 5, CorruptFile, "has 5 rows, not 4"),
        ("one.first8.jsonl", 7, BadValue, "claims 8 rows, but one.jsonl has only 7"),
        ("one.jsonl", 6, ChecksumMismatch, "one.jsonl"),
        ("one.first0.jsonl", 0, DataMissing, "no one.jsonl or one.firstN.jsonl"),
        ("one.first03.jsonl", 3, DataMissing, "no one.jsonl"),
        ("One.jsonl", 7, DataMissing, "no one.jsonl"),
    ],
)
def test_names_that_lie(
    tiny: Tiny, own_home: Path, tmp_path: Path, get: Get, name: str, count: int, kind: type[LcbenchError], words: str
) -> None:
    place = tree(tmp_path / "p", {name: tiny.lines("one", count), "lengths.json": tiny.config})
    report = get(place, "one")
    found = problem(report, kind)
    assert words in found.message
    assert not (own_home / "data" / "tiny" / "one.jsonl").exists()
    assert states(report)["config/lengths.json"] == "installed", "the rest is not held up"
    if kind is ChecksumMismatch:
        assert "one.firstN.jsonl" in found.next_step


def test_a_subset_with_all_rows_is_the_full_file(tiny: Tiny, own_home: Path, tmp_path: Path, get: Get) -> None:
    place = tree(tmp_path / "p", {"one.first7.jsonl": tiny.lines("one"), "lengths.json": tiny.config})
    assert states(get(place, "one"))["one.jsonl"] == "installed"
    assert store.data_file(own_home, "tiny", "one.jsonl").subset_note == ""
    other = tiny.lines("two") + tiny.lines("one", 3)
    tree(place, {"one.first7.jsonl": other})
    (own_home / "data" / "tiny" / "one.jsonl").unlink()
    assert "git blob" in problem(get(place, "one"), ChecksumMismatch).message


def test_a_subset_with_a_corrupted_line(tiny: Tiny, tmp_path: Path, get: Get) -> None:
    lines = tiny.lines("one", 3).splitlines(keepends=True)
    broken = b"".join([lines[0], b'{"text": 3}\n', lines[2]])
    place = tree(tmp_path / "p", {"one.first3.jsonl": broken, "lengths.json": tiny.config})
    found = problem(get(place, "one"), CorruptFile)
    assert f"{place}/one.first3.jsonl, line 2" in found.message


def test_the_longest_subset_is_taken(tiny: Tiny, own_home: Path, tmp_path: Path, get: Get) -> None:
    files = {f"one.first{n}.jsonl": tiny.lines("one", n) for n in (1, 6, 2)}
    get(tree(tmp_path / "p", {**files, "lengths.json": tiny.config}), "one")
    assert store.data_file(own_home, "tiny", "one.jsonl").rows == 6


def test_configuration_that_the_place_lacks_comes_from_its_source(
    tiny: Tiny, mirror: Mirror, own_home: Path, tmp_path: Path, get: Get
) -> None:
    said: list[str] = []
    place = tree(tmp_path / "p", {"one.jsonl": tiny.lines("one")})
    report = get(place, "one", say=said.append)
    assert report.problems == []
    assert states(report)["config/lengths.json"] == "installed"
    assert said == [f"{place} has no lengths.json; trying the source."]
    assert [asked.path for asked in mirror.asked] == ["/web/config/lengths.json"]


def test_configuration_that_nobody_has(tiny: Tiny, mirror: Mirror, own_home: Path, tmp_path: Path, get: Get) -> None:
    tiny.write(**{f"{mirror.url}/web/": "http://127.0.0.1:9/web/"})
    report = get(tree(tmp_path / "p", {"one.jsonl": tiny.lines("one")}), "one")
    found = problem(report, DataMissing)
    assert "lengths.json of tiny is missing" in found.message
    assert "127.0.0.1:9 cannot be reached" in found.message
    assert found.next_step == "Put lengths.json into a folder DIR and run: lcbench download --from DIR lengths.json"
    assert states(report)["one.jsonl"] == "installed"


def test_a_group_takes_what_there_is(tiny: Tiny, tmp_path: Path, get: Get) -> None:
    place = tree(tmp_path / "p", {"one.jsonl": tiny.lines("one"), "lengths.json": tiny.config})
    report = get(place, "both")
    assert report.problems == []
    assert states(report)["two.jsonl"] == "missing"
    assert str(place) in notes(report)["two.jsonl"]
    assert "two.jsonl" in problem(get(place, "two"), DataMissing).message


def test_too_large_a_file(tiny: Tiny, tmp_path: Path, get: Get) -> None:
    tiny.write(**{"archive: data.zip": "archive: data.zip, max_file_bytes: 100"})
    place = tree(tmp_path / "p", {"one.jsonl.gz": gzip.compress(b"0" * 10_000), "lengths.json": tiny.config})
    assert "larger than the 100 B" in problem(get(place, "one"), CorruptFile).message


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(b"x" * 5000)[:-9], b""], ids=["text", "cut", "empty"])
def test_a_broken_gzip(tiny: Tiny, tmp_path: Path, get: Get, content: bytes) -> None:
    place = tree(tmp_path / "p", {"one.jsonl.gz": content, "lengths.json": tiny.config})
    found = problem(get(place, "one"), ChecksumMismatch if content == b"" else CorruptFile)
    assert "one.jsonl" in found.message


def test_the_rows_at_hand(shared_data: Path, own_home: Path, get: Get) -> None:
    """Every LongBench file of the shared folder, and every essay; values equal to those of the json module."""
    here = shared_data / "longbench"
    report = get(here, "longbench")
    assert report.problems == []
    assert notes(report)["qasper.jsonl"] == "first 18 of 200 rows"
    seen = 0
    for file in sorted(here.glob("*.jsonl")):
        name = f"{file.name.split('.')[0]}.jsonl"
        expected = [json.loads(line) for line in file.read_bytes().split(b"\n") if line]
        rows = store.read_rows(own_home, "longbench", name)
        assert rows == expected
        lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
        assert b"\n".join([*lines, b""]) == file.read_bytes(), "byte for byte"
        seen += len(rows)
        whole = ".first" not in file.name
        assert (store.data_file(own_home, "longbench", name).subset_note == "") == whole
    assert seen == 1331
    report = get(shared_data / "haystack", "paulgraham")
    assert set(states(report).values()) == {"installed"}
    essay = shared_data / "haystack" / "paulgraham" / "worked.txt"
    assert store.read_text(own_home, "paulgraham", "worked.txt").encode() == essay.read_bytes()
