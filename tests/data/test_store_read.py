from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
from mirror_server import Mirror
from tiny_data import Tiny

from lcbench.data import store
from lcbench.data.fetch import Patience
from lcbench.data.install import install
from lcbench.data.store import together
from lcbench.errors import ChecksumMismatch, CorruptFile, DataMissing, UnknownName


@pytest.fixture
def full(tiny: Tiny, own_home: Path, quick: Patience, mirror: Mirror) -> Tiny:
    assert install(own_home, ["tiny"], patience=quick).problems == []
    return tiny


def test_reading_needs_no_network_and_says_nothing(
    full: Tiny, own_home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = sorted(path for path in own_home.rglob("*"))
    assert store.read_rows(own_home, "tiny", "one.jsonl") == full.rows["one"]
    assert store.read_rows(own_home, "tiny", "one.jsonl", limit=2) == full.rows["one"][:2]
    assert store.read_rows(own_home, "tiny", "one.jsonl", limit=0) == []
    assert store.read_rows(own_home, "tiny", "one.jsonl", limit=99) == full.rows["one"]
    assert store.config_json(own_home, "tiny", "config/lengths.json") == {"one": 5, "two": 6}
    assert store.read_text(own_home, "tiny", "note.txt") == "a note\r\nü"
    assert capfd.readouterr() == ("", "")
    assert sorted(path for path in own_home.rglob("*")) == before, "no cache is left behind"


def test_some_rows_of_a_file(full: Tiny, own_home: Path) -> None:
    assert store.read_some(own_home, "tiny", "one.jsonl", lambda count: [0, count - 1]) == (
        [full.rows["one"][0], full.rows["one"][-1]],
        7,
    )
    assert store.read_some(own_home, "tiny", "one.jsonl", lambda count: []) == ([], 7)
    path = own_home / "data" / "tiny" / "one.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"one 3", b"one 4"))
    with pytest.raises(ChecksumMismatch, match=re.escape(str(path))):
        store.read_some(own_home, "tiny", "one.jsonl", lambda count: [0])
    path.write_bytes(content.replace(b'"length": 3', b'"length": "3"'))
    with pytest.raises(CorruptFile, match="line 4"):
        store.read_some(own_home, "tiny", "one.jsonl", lambda count: [0])


def test_what_is_installed(full: Tiny, own_home: Path) -> None:
    [(name, files)] = store.installed(own_home).items()
    assert name == "tiny"
    assert set(files) == {"one.jsonl", "two.jsonl", "note.txt", "config/lengths.json", "config/extra.json"}
    file = store.data_file(own_home, "tiny", "one.jsonl")
    assert file.path == own_home / "data" / "tiny" / "one.jsonl"
    assert (file.sha256, file.rows, file.subset_note) == (files["one.jsonl"].sha256, 7, "")
    assert store.installed(own_home / "other") == {}


@pytest.mark.parametrize(
    ("name", "command"),
    [("one.jsonl", "download one"), ("lengths.json", "download lengths.json"), ("note.txt", "download tiny")],
)
def test_what_is_missing_names_the_command(tiny: Tiny, own_home: Path, name: str, command: str) -> None:
    for read in (store.data_file, store.read_rows, store.config_json, store.read_text):
        with pytest.raises(DataMissing, match=rf"{name} of tiny") as caught:
            read(own_home, "tiny", name)
        assert caught.value.next_step == f"Run: lcbench {command}"


def test_unknown_files_and_data_sets(full: Tiny, own_home: Path) -> None:
    with pytest.raises(UnknownName, match=r"'onne\.jsonl' of data set tiny") as caught:
        store.read_rows(own_home, "tiny", "onne.jsonl")
    assert "'one.jsonl'" in caught.value.next_step
    with pytest.raises(UnknownName, match="'tinny'"):
        store.read_rows(own_home, "tinny", "one.jsonl")


def test_a_deleted_file(full: Tiny, own_home: Path) -> None:
    (own_home / "data" / "tiny" / "one.jsonl").unlink()
    with pytest.raises(DataMissing):
        store.data_file(own_home, "tiny", "one.jsonl")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"length": 3', b'"length": "3"', "line 4: field 'length' is text"),
        (b'"length": 3, ', b"", "line 4: field 'length' is missing"),
        ("one 3 — ".encode(), b"one 3 \xff ", "line 4: not UTF-8"),
        (b'{"text": "one 6', b'{"text": one 6', "line 7: not JSON"),
    ],
)
def test_a_corrupted_line_is_named_whatever_the_limit(
    full: Tiny, own_home: Path, old: bytes, new: bytes, words: str
) -> None:
    path = own_home / "data" / "tiny" / "one.jsonl"
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    for limit in (None, 1):
        with pytest.raises(CorruptFile, match=re.escape(f"{path}, {words}")) as caught:
            store.read_rows(own_home, "tiny", "one.jsonl", limit)
        assert caught.value.next_step == "Install it again: lcbench download one"


def test_changed_but_readable_rows(full: Tiny, own_home: Path) -> None:
    path = own_home / "data" / "tiny" / "one.jsonl"
    path.write_bytes(path.read_bytes().replace(b"one 3", b"one 4"))
    with pytest.raises(ChecksumMismatch, match=re.escape(str(path))):
        store.read_rows(own_home, "tiny", "one.jsonl")
    path.write_bytes(b"")
    with pytest.raises(ChecksumMismatch):
        store.read_rows(own_home, "tiny", "one.jsonl")


def test_changed_configuration_and_text(full: Tiny, own_home: Path) -> None:
    folder = own_home / "data" / "tiny"
    (folder / "config" / "lengths.json").write_bytes(b'{\n"one": }')
    with pytest.raises(CorruptFile, match=r"lengths\.json, line 2"):
        store.config_json(own_home, "tiny", "lengths.json")
    (folder / "config" / "lengths.json").write_bytes(b"{}")
    with pytest.raises(ChecksumMismatch):
        store.config_json(own_home, "tiny", "lengths.json")
    (folder / "note.txt").write_bytes(b"other")
    with pytest.raises(ChecksumMismatch):
        store.read_text(own_home, "tiny", "note.txt")


@pytest.mark.parametrize("content", ["", "[]", '{"one.jsonl": {}}', '{"one.jsonl": 3}', "\udcff"])
def test_a_corrupted_ledger(full: Tiny, own_home: Path, content: str) -> None:
    path = own_home / "data" / "tiny" / "lock.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CorruptFile, match=re.escape(str(path))):
        store.read_rows(own_home, "tiny", "one.jsonl")


def test_verify(full: Tiny, own_home: Path) -> None:
    folder = own_home / "data" / "tiny"
    assert {check.state for check in store.verify(own_home)} == {"ok"}
    assert {check.file: check.note for check in store.verify(own_home, ["one"])} == {"one.jsonl": "7 rows"}
    (folder / "one.jsonl").write_bytes(b"x")
    (folder / "note.txt").unlink()
    found = {check.file: check.state for check in store.verify(own_home)}
    assert found == {
        "one.jsonl": "changed", "note.txt": "missing", "two.jsonl": "ok",
        "config/lengths.json": "ok", "config/extra.json": "ok",
    }  # fmt: skip
    assert store.verify(own_home / "other") == []
    assert [check.state for check in store.verify(own_home / "other", ["one"])] == ["absent"]
    with pytest.raises(UnknownName):
        store.verify(own_home, ["onne"])


def test_verify_compares_with_the_manifest_too(full: Tiny, own_home: Path) -> None:
    """Someone changed both the file and the ledger."""
    folder = own_home / "data" / "tiny"
    old = store.data_file(own_home, "tiny", "one.jsonl").sha256
    (folder / "one.jsonl").write_bytes(b"x")
    from lcbench.data.checksum import digest_bytes

    ledger = folder / "lock.json"
    ledger.write_text(ledger.read_text().replace(old, digest_bytes(b"x").sha256))
    [check] = store.verify(own_home, ["one"])
    assert check.state == "changed"
    assert "git blob" in check.note


def test_everything_that_is_missing_is_named_with_one_command() -> None:
    one = DataMissing("a.jsonl of longbench is not downloaded.", "Run: lcbench download a")
    two = DataMissing("b.jsonl of longbench is not downloaded.", "Run: lcbench download b")
    built = DataMissing("100-longbench is not built.", "Run: lcbench build 100-longbench --lengths 8k")
    assert together([one]) is one
    both = together([one, two, one])
    assert both.message == "a.jsonl of longbench, b.jsonl of longbench are not downloaded."
    assert both.next_step == "Run: lcbench download a b"
    assert together([one, built]).next_step == (
        "Run: lcbench download a; then: lcbench build 100-longbench --lengths 8k"
    )
