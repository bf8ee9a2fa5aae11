from __future__ import annotations

import io
import stat
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lcbench.data.archive import SafeZip
from lcbench.errors import CannotWrite, CorruptFile

MIB = 1 << 20


def write(path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            archive.writestr(name, content)
    return path


def renamed(path: Path, old: bytes, new: bytes) -> Path:
    """Put a name into an archive that `zipfile` would not write."""
    assert len(old) == len(new)
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def test_named_members_come_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", [("data/", b""), ("data/x.jsonl", b"rows"), ("y", b"why")])
    with SafeZip(path, "a.zip") as archive:
        assert archive.names == ("data/x.jsonl", "y")
        assert archive.size("data/x.jsonl") == 4
        archive.extract("data/x.jsonl", tmp_path / "out", MIB)
    assert (tmp_path / "out").read_bytes() == b"rows"
    assert sorted(item.name for item in tmp_path.iterdir() if item.is_file()) == ["a.zip", "out"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../x", "leads out"),
        ("a/../../x", "leads out"),
        ("a/..", "leads out"),
        ("/etc/x", "absolute"),
        ("C:/x", "absolute"),
        ("a//x", "empty part"),
        ("./x", "empty part"),
        ("a\nb", "control"),
    ],
)
def test_entries_that_leave_the_folder_condemn_the_archive(tmp_path: Path, name: str, words: str) -> None:
    path = write(tmp_path / "a.zip", [("good", b"good"), (name, b"bad")])
    with pytest.raises(CorruptFile, match=words) as caught:
        SafeZip(path, "evil.zip")
    assert "evil.zip" in caught.value.message
    assert repr(name) in caught.value.message


@pytest.mark.parametrize(("name", "words"), [(b"a\\b", "backslash"), (b"a\0b", "control")])
def test_entries_that_zipfile_would_tidy_up(tmp_path: Path, name: bytes, words: str) -> None:
    path = renamed(write(tmp_path / "a.zip", [("aXb", b"bad")]), b"aXb", name)
    with pytest.raises(CorruptFile, match=words):
        SafeZip(path, "a.zip")


@pytest.mark.parametrize(
    ("mode", "words"),
    [(stat.S_IFLNK | 0o777, "is a link"), (stat.S_IFIFO | 0o644, "special"), (stat.S_IFCHR | 0o644, "special")],
)
def test_links_and_devices(tmp_path: Path, mode: int, words: str) -> None:
    path = write(tmp_path / "a.zip", [(special("x", mode), b"/etc/passwd")])
    with pytest.raises(CorruptFile, match=words):
        SafeZip(path, "a.zip")


@pytest.mark.parametrize(
    "names", [("x", "x"), ("Data/x", "data/X"), ("stra\u00dfe", "STRASSE"), ("caf\u00e9", "cafe\u0301"), ("x", "x/")]
)
def test_two_entries_for_one_file(tmp_path: Path, names: tuple[str, str]) -> None:
    path = write(tmp_path / "a.zip", [(names[0], b"1"), (names[1], b"" if names[1].endswith("/") else b"2")])
    with pytest.raises(CorruptFile, match="would be one file"):
        SafeZip(path, "a.zip")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", [("bomb", b"\0" * (8 * MIB)), ("small", b"\0" * 100_000)])
    with SafeZip(path, "a.zip") as archive:
        with pytest.raises(CorruptFile, match="over 200 times its size"):
            archive.extract("bomb", tmp_path / "out", 64 * MIB)
        with pytest.raises(CorruptFile, match=r"8\.0 MiB large, more than the 1\.0 MiB"):
            archive.extract("bomb", tmp_path / "out", MIB)
        assert not (tmp_path / "out").exists()
        archive.extract("small", tmp_path / "out", MIB)
    assert (tmp_path / "out").stat().st_size == 100_000


def test_all_members_together_have_a_bound(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", [("a", b"1" * 600), ("b", b"2" * 600)])
    with SafeZip(path, "a.zip", max_total=1000) as archive:
        archive.extract("a", tmp_path / "a", 600)
        with pytest.raises(CorruptFile, match=r"over 1000 B"):
            archive.extract("b", tmp_path / "b", 600)


def test_a_member_that_lies_about_its_size(tmp_path: Path) -> None:
    """The declared size is cut to 10 of 5,000 bytes, in both places where it stands."""
    content = bytes(range(256)) * 20
    path = write(tmp_path / "a.zip", [("x", content)])
    raw = path.read_bytes()
    size = len(content).to_bytes(4, "little")
    assert raw.count(size) == 2
    path.write_bytes(raw.replace(size, (10).to_bytes(4, "little")))
    with SafeZip(path, "a.zip") as archive, pytest.raises(CorruptFile, match="damaged"):
        archive.extract("x", tmp_path / "out", MIB)
    assert (tmp_path / "out").stat().st_size <= 10


def test_damaged_and_encrypted_members(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", [("x", bytes(range(256)) * 20)])
    raw = bytearray(path.read_bytes())
    raw[40:60] = b"\xff" * 20
    path.write_bytes(bytes(raw))
    with SafeZip(path, "a.zip") as archive, pytest.raises(CorruptFile, match=r"'x' in a\.zip is damaged"):
        archive.extract("x", tmp_path / "out", MIB)
    path = write(tmp_path / "b.zip", [("x", b"secret")])
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(CorruptFile, match="encrypted"):
        SafeZip(path, "b.zip")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 50])
def test_not_an_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match=r"a\.zip is not a readable ZIP archive"):
        SafeZip(path, "a.zip")


def test_a_truncated_archive(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", [("x", bytes(range(256)) * 20)])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CorruptFile):
        SafeZip(path, "a.zip")


def test_too_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lcbench.data.archive.MAX_ENTRIES", 2)
    path = write(tmp_path / "a.zip", [(str(n), b"") for n in range(3)])
    with pytest.raises(CorruptFile, match="3 entries"):
        SafeZip(path, "a.zip")


def test_an_unwritable_target_is_not_the_archives_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", [("x", b"x")])
    with SafeZip(path, "a.zip") as archive, pytest.raises(CannotWrite):
        archive.extract("x", tmp_path / "no" / "out", MIB)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text(st.sampled_from("./\\aAC:é\u0301\x01"), min_size=1, max_size=6), max_size=5),
    damage=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3),
)
def test_no_archive_writes_anywhere_else(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], damage: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("zip")
    path = write(folder / "a.zip", [(name, b"content") for name in names])
    raw = bytearray(path.read_bytes())
    for place, value in damage:
        if place < len(raw):
            raw[place] = value
    path.write_bytes(bytes(raw))
    try:
        with SafeZip(path, "a.zip") as archive:
            for number, name in enumerate(archive.names):
                assert not name.startswith(("/", "\\"))
                assert ".." not in name.split("/")
                archive.extract(name, folder / f"out{number}", MIB)
    except CorruptFile:
        pass
    assert {item.name for item in folder.iterdir()} <= {"a.zip", *(f"out{n}" for n in range(5))}


def test_the_archive_of_a_stream(tmp_path: Path) -> None:
    """Sizes stand behind the data when the writer could not seek."""

    class OneWay(io.RawIOBase):
        def __init__(self) -> None:
            self.content = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.content += bytes(data)
            return len(data)

    out = OneWay()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
        archive.writestr("x", b"streamed")
    path = tmp_path / "a.zip"
    path.write_bytes(out.content)
    with SafeZip(path, "a.zip") as safe:
        safe.extract("x", tmp_path / "out", MIB)
    assert (tmp_path / "out").read_bytes() == b"streamed"
