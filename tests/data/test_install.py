"""From the sources of the manifest: a stand-in for the hub and for a web server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import pytest
from mirror_server import Mirror, Page
from tiny_data import Tiny, zip_of

from lcbench.data import disk, store
from lcbench.data.checksum import Digest
from lcbench.data.fetch import Fetcher, Patience
from lcbench.data.install import Report, install
from lcbench.data.part import Wanted
from lcbench.errors import (
    BadValue,
    CannotWrite,
    ChecksumMismatch,
    CorruptFile,
    DataMissing,
    LcbenchError,
    NetworkError,
    UnknownName,
)

ARCHIVE = "/datasets/new/tiny/resolve/main/data.zip"


class Get(Protocol):
    """`install` into the test's home."""

    def __call__(self, *names: str, place: str | None = None, **more: Any) -> Report: ...


def states(report: Report) -> dict[str, str]:
    return {done.file: done.state for done in report.done}


def problem(report: Report, kind: type[LcbenchError]) -> LcbenchError:
    [found] = report.problems
    assert type(found) is kind or isinstance(found, kind)
    return found


def ledger(home: Path) -> dict[str, dict[str, object]]:
    data: dict[str, dict[str, object]] = json.loads((home / "data" / "tiny" / "lock.json").read_text("utf-8"))
    return data


@pytest.fixture
def get(own_home: Path, quick: Patience) -> Get:
    def run(*names: str, place: str | None = None, **more: Any) -> Report:
        return install(own_home, names, place, patience=quick, **more)

    return run


def test_one_task_brings_the_whole_archive_and_the_configuration(
    tiny: Tiny, mirror: Mirror, own_home: Path, get: Get
) -> None:
    said: list[str] = []
    report = get("one", say=said.append)
    assert report.problems == []
    assert states(report) == {
        "one.jsonl": "installed", "two.jsonl": "installed",
        "config/lengths.json": "installed", "config/extra.json": "installed",
    }  # fmt: skip
    assert any("all 2 files of tiny" in text for text in said)
    assert store.read_rows(own_home, "tiny", "one.jsonl") == tiny.rows["one"]
    assert store.config_json(own_home, "tiny", "lengths.json") == {"one": 5, "two": 6}
    assert store.data_file(own_home, "tiny", "two.jsonl").subset_note == ""
    entry = ledger(own_home)["one.jsonl"]
    assert entry["source"] == f"{mirror.url}{ARCHIVE}#data/one.jsonl"
    assert (entry["rows"], entry["subset"]) == (7, None)
    folder = own_home / "data" / "tiny"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == [
        "config", "config/extra.json", "config/lengths.json", "lock.json", "one.jsonl", "two.jsonl"
    ]  # fmt: skip


def test_what_is_there_needs_no_network(tiny: Tiny, mirror: Mirror, get: Get) -> None:
    get("tiny")
    mirror.asked.clear()
    mirror.pages.clear()
    again = get("tiny")
    assert set(states(again).values()) == {"present"}
    assert len(again.done) == 5
    assert mirror.asked == []


def test_what_is_there_needs_no_writable_disk(tiny: Tiny, own_home: Path, get: Get) -> None:
    get("tiny")
    before = sorted((path, path.stat().st_mtime_ns) for path in own_home.rglob("*"))
    (own_home / "data" / ".tiny.lock").unlink()
    get("tiny")
    after = sorted((path, path.stat().st_mtime_ns) for path in own_home.rglob("*"))
    assert [item for item in before if item[0].name not in (".tiny.lock", "data")] == [
        item for item in after if item[0].name != "data"
    ]


def test_a_damaged_or_lost_file_is_mended(tiny: Tiny, own_home: Path, get: Get) -> None:
    get("tiny")
    folder = own_home / "data" / "tiny"
    (folder / "one.jsonl").write_bytes(b"garbage")
    (folder / "config" / "lengths.json").unlink()
    report = get("one")
    assert states(report)["one.jsonl"] == "replaced"
    assert next(done.note for done in report.done if done.file == "one.jsonl").endswith("instead of a damaged copy")
    assert "two.jsonl" not in states(report)
    assert store.read_rows(own_home, "tiny", "one.jsonl") == tiny.rows["one"]
    assert store.config_json(own_home, "tiny", "lengths.json")


def test_a_lost_ledger_does_not_cost_a_download(tiny: Tiny, mirror: Mirror, own_home: Path, get: Get) -> None:
    get("one")
    (own_home / "data" / "tiny" / "lock.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"lock\.json") as caught:
        get("one")
    assert "Delete it" in caught.value.next_step
    (own_home / "data" / "tiny" / "lock.json").unlink()
    mirror.asked.clear()
    assert states(get("one"))["one.jsonl"] == "present"
    assert mirror.requests(ARCHIVE) == []
    assert store.read_rows(own_home, "tiny", "one.jsonl") == tiny.rows["one"]


def test_the_former_name_of_a_repository_is_tried(tiny: Tiny, mirror: Mirror, get: Get) -> None:
    """The hub answers 401, not 404, for a repository that does not exist."""
    page = mirror.pages.pop(ARCHIVE)
    mirror.pages[ARCHIVE] = Page(b"", always="401")
    mirror.pages[ARCHIVE.replace("new", "old")] = page
    assert get("one").problems == []


def test_all_refusals_give_the_first(tiny: Tiny, mirror: Mirror, own_home: Path, get: Get) -> None:
    mirror.pages[ARCHIVE] = Page(b"", always="403")
    report = get("one", "two")
    found = problem(report, NetworkError)
    assert "new/tiny" in found.message
    assert "403" in found.message
    assert states(report) == {"config/lengths.json": "installed", "config/extra.json": "installed"}


def test_a_broken_archive_is_continued_by_the_next_command(tiny: Tiny, mirror: Mirror, get: Get) -> None:
    mirror.pages[ARCHIVE].script = ["cut:100"]
    mirror.pages[ARCHIVE].always = "cut:0"
    found = problem(get("one"), NetworkError)
    assert "data.zip could not be read from 127.0.0.1" in found.message
    mirror.pages[ARCHIVE].always = "ok"
    mirror.asked.clear()
    assert get("one").problems == []
    assert [asked.range for asked in mirror.requests(ARCHIVE)] == ["bytes=100-"]


def test_a_file_of_the_archive_with_other_bytes(tiny: Tiny, mirror: Mirror, own_home: Path, get: Get) -> None:
    wrong = tiny.lines("one").replace(b"one 3", b"one ?")
    mirror.pages[ARCHIVE] = Page(zip_of({"data/one.jsonl": wrong, "data/two.jsonl": tiny.lines("two")}))
    report = get("tiny")
    found = problem(report, ChecksumMismatch)
    assert "one.jsonl" in found.message
    assert "git blob" in found.message
    assert states(report)["two.jsonl"] == "installed"
    assert not (own_home / "data" / "tiny" / "one.jsonl").exists()
    assert "one.jsonl" not in ledger(own_home)


def test_an_archive_without_the_file(tiny: Tiny, mirror: Mirror, get: Get) -> None:
    mirror.pages[ARCHIVE] = Page(zip_of({"two.jsonl": tiny.lines("two"), "data/readme": b"x"}))
    report = get("one")
    assert "data.zip has no one.jsonl" in problem(report, DataMissing).message
    assert states(report)["two.jsonl"] == "installed", "found beside its usual folder"
    report = get("both")
    assert states(report)["one.jsonl"] == "missing"
    assert report.problems == []


@pytest.mark.parametrize("content", [b"not a zip", zip_of({"../../evil": b"x", "data/one.jsonl": b"y"})])
def test_a_bad_archive_is_not_kept(tiny: Tiny, mirror: Mirror, own_home: Path, get: Get, content: bytes) -> None:
    good = mirror.pages[ARCHIVE].body
    mirror.pages[ARCHIVE].body = content
    assert "data.zip" in problem(get("one"), CorruptFile).message
    assert [path.name for path in own_home.parent.rglob("evil*")] == []
    mirror.pages[ARCHIVE].body = good
    assert get("one").problems == []


def test_an_archive_left_by_a_killed_process_is_used(tiny: Tiny, mirror: Mirror, own_home: Path, get: Get) -> None:
    parts = own_home / "data" / "tiny" / ".parts"
    parts.mkdir(parents=True)
    (parts / "data.zip").write_bytes(tiny.archive())
    assert get("one").problems == []
    assert mirror.requests(ARCHIVE) == []
    assert not parts.exists()


def test_the_first_download_pins_what_nobody_knows(tiny: Tiny, mirror: Mirror, own_home: Path, get: Get) -> None:
    get("note")
    pinned = ledger(own_home)["note.txt"]["sha256"]
    (own_home / "data" / "tiny" / "note.txt").unlink()
    mirror.pages["/web/note.txt"].body = b"changed"
    found = problem(get("note"), ChecksumMismatch)
    assert str(pinned) in found.message or "bytes" in found.message
    assert not (own_home / "data" / "tiny" / "note.txt").exists()
    mirror.pages["/web/note.txt"].body = tiny.text
    assert get("note").problems == []
    assert store.read_text(own_home, "tiny", "note.txt") == tiny.text.decode()
    assert ledger(own_home)["note.txt"]["sha256"] == pinned


def test_a_pinned_change_of_equal_size(tiny: Tiny, mirror: Mirror, own_home: Path, get: Get) -> None:
    get("note")
    (own_home / "data" / "tiny" / "note.txt").unlink()
    mirror.pages["/web/note.txt"].body = tiny.text.replace(b"note", b"NOTE")
    assert "sha256" in problem(get("note"), ChecksumMismatch).message


def test_configuration_out_of_reach_is_said(tiny: Tiny, mirror: Mirror, own_home: Path, get: Get) -> None:
    del mirror.pages["/web/config/lengths.json"], mirror.pages["/web/config/extra.json"]
    report = get("one")
    found = problem(report, DataMissing)
    assert "lengths.json of tiny is missing" in found.message
    assert "--from DIR lengths.json" in found.next_step
    assert states(report)["config/extra.json"] == "missing"
    assert states(report)["one.jsonl"] == "installed"
    own = own_home.parent / "own"
    own.mkdir()
    (own / "lengths.json").write_bytes(tiny.config)
    mirror.asked.clear()
    assert get("lengths.json", place=str(own)).problems == []
    assert mirror.asked == []


def test_a_dead_host_is_tried_once(tiny: Tiny, mirror: Mirror, get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files come from there; waiting in vain for each could take minutes."""
    tiny.write(**{f"{mirror.url}/web/": "http://127.0.0.1:9/web/"})
    tried: list[str] = []
    fetch = Fetcher.fetch

    def spy(self: Fetcher, wanted: Wanted) -> Digest:
        tried.append(wanted.label)
        return fetch(self, wanted)

    monkeypatch.setattr(Fetcher, "fetch", spy)
    report = get("tiny")
    assert tried == ["config/lengths.json", "data.zip"]
    assert [type(error).__name__ for error in report.problems] == ["DataMissing", "Unreachable"]
    assert all("127.0.0.1:9 cannot be reached" in error.message for error in report.problems)
    assert states(report)["one.jsonl"] == "installed"


def test_a_configuration_that_is_not_json(tiny: Tiny, mirror: Mirror, get: Get) -> None:
    mirror.pages["/web/config/extra.json"].body = b"<html>"
    assert "extra.json" in problem(get("one"), CorruptFile).message


def test_the_hub_token_is_sent_to_the_hub(
    tiny: Tiny, mirror: Mirror, get: Get, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    cdn = Mirror()
    try:
        monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
        cdn.pages["/blob"] = mirror.pages[ARCHIVE]
        mirror.pages[ARCHIVE] = Page(b"", always=f"goto:{cdn.url}/blob?X-Signature=abc")
        tiny.write(**{f"{mirror.url}/web/": f"{cdn.url}/web/"})
        tiny.url = cdn.url
        tiny.serve(cdn)
        assert get("one").problems == []
        assert [asked.headers.get("authorization") for asked in mirror.asked] == ["Bearer hf_secret"]
        assert {asked.headers.get("authorization") for asked in cdn.asked} == {None}
        text = (own_home / "data" / "tiny" / "lock.json").read_text()
        assert "secret" not in text
        assert "Signature" not in text
    finally:
        cdn.stop()
    monkeypatch.setenv("HF_TOKEN", "two words")
    with pytest.raises(BadValue, match="token") as caught:
        install(own_home.parent / "other", ["one"])
    assert "two words" not in caught.value.message


@pytest.mark.parametrize("value", ["mirror.example", "ftp://mirror", "http://", "http://x:y:z"])
def test_a_bad_endpoint_is_named(tiny: Tiny, get: Get, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", value)
    with pytest.raises(BadValue, match="HF_ENDPOINT"):
        get("one")


def test_an_unknown_name(tiny: Tiny, get: Get) -> None:
    with pytest.raises(UnknownName, match="'onne'"):
        get("onne")


def test_no_room_for_the_unpacked_files(tiny: Tiny, own_home: Path, get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def full(folder: Path, needed: int, what: str) -> None:
        sizes.append((what, needed))
        raise CannotWrite("No space left.")

    monkeypatch.setattr("lcbench.data.install.require_room", full)
    with pytest.raises(CannotWrite):
        get("one")
    assert sizes == [("the files of data.zip", len(tiny.lines("one")) + len(tiny.lines("two")))]
    assert (own_home / "data" / "tiny" / ".parts" / "data.zip").exists(), "the archive is kept for the next try"


def test_a_data_folder_that_cannot_be_made(tiny: Tiny, own_home: Path, get: Get) -> None:
    own_home.write_text("in the way")
    with pytest.raises(CannotWrite, match=str(own_home)) as caught:
        get("one")
    assert "LCBENCH_HOME" in caught.value.next_step


def test_a_read_only_data_folder(tiny: Tiny, own_home: Path, get: Get) -> None:
    folder = own_home / "data"
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("root writes everywhere")
        with pytest.raises(CannotWrite):
            get("one")
    finally:
        folder.chmod(0o755)


def test_a_file_system_without_locks(tiny: Tiny, get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise NotImplementedError("no flock here")

    said: list[str] = []
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert get("one", say=said.append).problems == []
    assert any("has no locks" in text for text in said)


SCRIPT = """
import pathlib, sys
from lcbench.data import manifest
from lcbench.data.install import install
manifest.manifest_dir = lambda: pathlib.Path(sys.argv[1])
report = install(pathlib.Path(sys.argv[2]), ["one"], say=lambda text: print(text, flush=True))
print(*sorted(f"{done.file}={done.state}" for done in report.done), *report.problems)
"""


def start(tiny: Tiny, home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(tiny.folder), str(home)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_share_one_download(tiny: Tiny, mirror: Mirror, own_home: Path) -> None:
    inside: list[float] = []

    def slow(page: Page) -> None:
        inside.append(time.monotonic())
        time.sleep(1.5)

    mirror.pages[ARCHIVE].on_request = slow
    first = start(tiny, own_home)
    while not inside:
        assert first.poll() is None, first.stderr and first.stderr.read()
        time.sleep(0.02)
    second = start(tiny, own_home)
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], outputs
    assert "one.jsonl=installed" in outputs[0][0]
    assert "waiting" in outputs[1][0]
    assert "one.jsonl=present" in outputs[1][0]
    assert len(mirror.requests(ARCHIVE)) == 1
    assert all(len(mirror.requests(path)) == 1 for path in ("/web/config/lengths.json", "/web/config/extra.json"))


def test_a_killed_process_leaves_nothing_in_the_way(tiny: Tiny, mirror: Mirror, own_home: Path, get: Get) -> None:
    """Killed in the middle of the body: the lock is free again and the transfer goes on where it was."""
    body = mirror.pages[ARCHIVE].body
    mirror.pages[ARCHIVE] = Page(body, script=["cut:150"], on_request=lambda page: time.sleep(0.5 * len(page.script)))
    process = start(tiny, own_home)
    part = own_home / "data" / "tiny" / ".parts" / "data.zip.part"
    mirror.pages[ARCHIVE].always = "500"
    while not (part.exists() and part.stat().st_size == 150):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    mirror.pages[ARCHIVE].always = "ok"
    mirror.asked.clear()
    assert get("one").problems == []
    assert [asked.range for asked in mirror.requests(ARCHIVE)] == ["bytes=150-"]
    assert store.read_rows(own_home, "tiny", "one.jsonl") == tiny.rows["one"]


def test_official_files_from_a_stand_in_of_the_hub(
    shared_data: Path, mirror: Mirror, own_home: Path, quick: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real manifest, the three official files at hand, packed as the official archive."""
    here = shared_data / "longbench"
    full = ["multi_news.jsonl", "multifieldqa_zh.jsonl", "passage_retrieval_zh.jsonl"]
    content = {f"data/{name}": (here / name).read_bytes() for name in full}
    monkeypatch.setenv("HF_ENDPOINT", mirror.url + "/")
    mirror.pages["/datasets/zai-org/LongBench/resolve/main/data.zip"] = Page(zip_of(content), script=["cut:3000000"])
    install(own_home, ["dataset2prompt.json", "dataset2maxlen.json", "model2maxlen.json", "model2path.json"], str(here))
    report = install(own_home, ["multi_news"], patience=quick)
    assert report.problems == []
    assert {done.file for done in report.done if done.state == "installed"} == set(full)
    assert {done.state for done in report.done if done.file not in full} == {"present", "missing"}
    assert [asked.range for asked in mirror.asked] == ["", "bytes=3000000-"]
    assert len(store.read_rows(own_home, "longbench", "multi_news.jsonl")) == 200


def test_room_is_left_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path).free
    disk.require_room(tmp_path, 0, "x")
    with pytest.raises(CannotWrite, match="for x in"):
        disk.require_room(tmp_path, free + (1 << 40), "x")
    assert [disk.size_text(n) for n in (0, 1023, 1024, 1536, 1 << 20, 1 << 45)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "32.0 TiB"
    ]  # fmt: skip
