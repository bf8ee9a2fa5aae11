from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mirror_server import Mirror, Page

from lcbench.data import disk, fetch
from lcbench.data.checksum import Expected, digest_bytes
from lcbench.data.fetch import Fetcher, Patience
from lcbench.data.hub import Bearer, origin_of, shown
from lcbench.data.neterrors import NotThere, Refused, Unreachable, reason
from lcbench.data.part import Wanted
from lcbench.errors import BadValue, CannotWrite, ChecksumMismatch, NetworkError

BODY = random.Random(1).randbytes(300_000)
SHA = Expected(sha256=hashlib.sha256(BODY).hexdigest())


def wanted(mirror: Mirror, tmp_path: Path, expected: Expected = SHA, **more: object) -> Wanted:
    return Wanted(f"{mirror.url}/file.bin", tmp_path / "in" / "file.bin", "file.bin", expected, **more)  # type: ignore[arg-type]


def get(item: Wanted, quick: Patience, **more: object) -> bytes:
    with Fetcher(patience=quick, **more) as fetcher:  # type: ignore[arg-type]
        digest = fetcher.fetch(item)
    content = item.target.read_bytes()
    assert digest == digest_bytes(content)
    assert sorted(path.name for path in item.target.parent.iterdir()) == [item.target.name], "nothing is left behind"
    return content


def test_a_file_arrives_with_progress(mirror: Mirror, tmp_path: Path, quick: Patience) -> None:
    mirror.pages["/file.bin"] = Page(BODY)
    seen: list[tuple[str, int, int | None]] = []
    assert get(wanted(mirror, tmp_path), quick, progress=lambda *state: seen.append(state)) == BODY
    assert seen[0] == ("file.bin", 0, len(BODY))
    assert seen[-1] == ("file.bin", len(BODY), len(BODY))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert mirror.asked[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("ending", ["cut", "reset"])
def test_a_vanishing_connection_is_continued_where_it_broke(
    mirror: Mirror, tmp_path: Path, quick: Patience, ending: str
) -> None:
    mirror.pages["/file.bin"] = Page(BODY, script=[f"{ending}:100000", f"{ending}:50000"])
    assert get(wanted(mirror, tmp_path), quick) == BODY
    starts = [int(asked.range.removeprefix("bytes=").removesuffix("-") or 0) for asked in mirror.asked]
    assert len(starts) == 3
    assert starts == sorted(starts)
    if ending == "cut":
        assert starts == [0, 100_000, 150_000]
        assert [asked.headers.get("if-range") for asked in mirror.asked] == [None, '"v1"', '"v1"']


def test_the_next_call_continues_a_broken_one(mirror: Mirror, tmp_path: Path, quick: Patience) -> None:
    item = wanted(mirror, tmp_path)
    mirror.pages["/file.bin"] = Page(BODY, script=["cut:1000"], always="cut:0")
    with Fetcher(patience=quick) as fetcher, pytest.raises(NetworkError, match=r"127\.0\.0\.1") as caught:
        fetcher.fetch(item)
    assert "continues" in caught.value.next_step
    assert len(mirror.asked) == quick.attempts, "attempts are counted from the last new byte, and bounded"
    assert item.part.read_bytes() == BODY[:1000]
    assert not item.target.exists()
    mirror.pages["/file.bin"].always = "ok"
    assert get(item, quick) == BODY
    assert mirror.asked[-1].range == "bytes=1000-"


def test_a_server_that_ignores_ranges_starts_again(mirror: Mirror, tmp_path: Path, quick: Patience) -> None:
    mirror.pages["/file.bin"] = Page(BODY, script=["cut:70000", "whole"])
    assert get(wanted(mirror, tmp_path), quick) == BODY
    assert mirror.asked[1].range == "bytes=70000-"


def test_a_changed_etag_starts_again(mirror: Mirror, tmp_path: Path, quick: Patience) -> None:
    new = BODY[::-1]

    def change(page: Page) -> None:
        if len(mirror.asked) == 2:
            page.body, page.etag = new, '"v2"'

    mirror.pages["/file.bin"] = Page(BODY, script=["cut:70000"], on_request=change)
    expected = Expected(sha256=hashlib.sha256(new).hexdigest())
    assert get(wanted(mirror, tmp_path, expected), quick) == new
    assert len(mirror.asked) == 2


def test_a_server_that_continues_another_file_is_not_trusted(mirror: Mirror, tmp_path: Path, quick: Patience) -> None:
    """It answers 206 although the ETag is another one, against the rules of If-Range."""
    new = BODY[::-1]

    def change(page: Page) -> None:
        if len(mirror.asked) == 2:
            page.body, page.etag, page.careless = new, '"v2"', True

    mirror.pages["/file.bin"] = Page(BODY, script=["cut:70000"], on_request=change)
    expected = Expected(sha256=hashlib.sha256(new).hexdigest())
    assert get(wanted(mirror, tmp_path, expected), quick) == new
    assert [asked.range for asked in mirror.asked] == ["", "bytes=70000-", ""]


def test_a_server_that_gives_another_range_is_not_trusted(mirror: Mirror, tmp_path: Path, quick: Patience) -> None:
    def lie(page: Page) -> None:
        page.headers = {"Content-Range": f"bytes 5-{len(BODY) - 1}/{len(BODY)}"} if len(mirror.asked) == 2 else {}

    mirror.pages["/file.bin"] = Page(BODY, script=["cut:70000"], on_request=lie)
    assert get(wanted(mirror, tmp_path), quick) == BODY
    assert [asked.range for asked in mirror.asked] == ["", "bytes=70000-", ""]


def test_no_resume_when_nothing_tells_whether_the_file_is_the_same(
    mirror: Mirror, tmp_path: Path, quick: Patience
) -> None:
    mirror.pages["/file.bin"] = Page(BODY, script=["cut:70000"], etag="")
    assert get(wanted(mirror, tmp_path, Expected()), quick) == BODY
    assert [asked.range for asked in mirror.asked] == ["", ""]


@pytest.mark.parametrize(
    ("etag", "dated", "expected", "validator"),
    [
        ('"v1"', False, Expected(), '"v1"'),
        ("", True, Expected(), "Tue, 14 Nov 2023 22:13:20 GMT"),
        ('W/"v1"', False, SHA, None),
        ("", False, SHA, None),
    ],
)
def test_what_a_resume_is_based_on(
    mirror: Mirror, tmp_path: Path, quick: Patience, etag: str, dated: bool, expected: Expected, validator: str | None
) -> None:
    mirror.pages["/file.bin"] = Page(BODY, script=["cut:70000"], etag=etag, dated=dated)
    assert get(wanted(mirror, tmp_path, expected), quick) == BODY
    assert mirror.asked[1].range == "bytes=70000-"
    assert mirror.asked[1].headers.get("if-range") == validator


def test_a_finished_part_is_recognised_by_416(mirror: Mirror, tmp_path: Path, quick: Patience) -> None:
    item = wanted(mirror, tmp_path)
    item.part.parent.mkdir()
    item.part.write_bytes(BODY)
    item.state.write_text(json.dumps({"url": item.url, "validator": '"v1"', "total": len(BODY)}))
    mirror.pages["/file.bin"] = Page(BODY)
    assert get(item, quick) == BODY
    assert [asked.range for asked in mirror.asked] == [f"bytes={len(BODY)}-"]


def test_a_part_longer_than_the_file_starts_again(mirror: Mirror, tmp_path: Path, quick: Patience) -> None:
    item = wanted(mirror, tmp_path)
    item.part.parent.mkdir()
    item.part.write_bytes(BODY + b"tail")
    item.state.write_text(json.dumps({"url": item.url, "validator": '"v1"', "total": None}))
    mirror.pages["/file.bin"] = Page(BODY)
    assert get(item, quick) == BODY
    assert [asked.range for asked in mirror.asked] == [f"bytes={len(BODY) + 4}-", ""]


@pytest.mark.parametrize("state", ["", "[]", "{}", '{"url": "http://other/file.bin", "validator": "x", "total": 5}'])
def test_a_part_of_something_else_is_not_continued(mirror: Mirror, tmp_path: Path, quick: Patience, state: str) -> None:
    item = wanted(mirror, tmp_path)
    item.part.parent.mkdir()
    item.part.write_bytes(b"something else")
    item.state.write_text(state)
    mirror.pages["/file.bin"] = Page(BODY)
    assert get(item, quick) == BODY
    assert [asked.range for asked in mirror.asked] == [""]


@pytest.mark.parametrize("expected", [SHA, Expected(git_blob=digest_bytes(BODY).git_blob)])
def test_wrong_bytes_leave_nothing(mirror: Mirror, tmp_path: Path, quick: Patience, expected: Expected) -> None:
    wrong = BODY[:-1] + b"?"
    mirror.pages["/file.bin"] = Page(wrong)
    item = wanted(mirror, tmp_path, expected)
    with Fetcher(patience=quick) as fetcher, pytest.raises(ChecksumMismatch) as caught:
        fetcher.fetch(item)
    got = digest_bytes(wrong)
    assert (expected.sha256 or expected.git_blob or "") in caught.value.message
    assert (got.sha256 if expected.sha256 else got.git_blob) in caught.value.message
    assert "again" in caught.value.next_step
    assert list(item.target.parent.iterdir()) == []


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) + 1])
def test_a_declared_size_that_is_wrong_is_refused_before_the_body(
    mirror: Mirror, tmp_path: Path, quick: Patience, size: int
) -> None:
    mirror.pages["/file.bin"] = Page(BODY)
    item = wanted(mirror, tmp_path, Expected(size=size))
    seen: list[int] = []
    words = f"expected {size} bytes, the server has {len(BODY)}"
    fetcher = Fetcher(patience=quick, progress=lambda _, done, __: seen.append(done))
    with fetcher, pytest.raises(ChecksumMismatch, match=words):
        fetcher.fetch(item)
    assert seen == []
    assert list(item.target.parent.iterdir()) == []


def test_a_body_without_length_that_is_short_is_continued(mirror: Mirror, tmp_path: Path, quick: Patience) -> None:
    mirror.pages["/file.bin"] = Page(BODY, script=["short:1234"])
    assert get(wanted(mirror, tmp_path, Expected(SHA.sha256, None, len(BODY))), quick) == BODY
    assert mirror.asked[1].range == "bytes=1234-"


@pytest.mark.parametrize("step", ["ok", "short:300000"])
def test_more_than_allowed_is_refused(mirror: Mirror, tmp_path: Path, quick: Patience, step: str) -> None:
    mirror.pages["/file.bin"] = Page(BODY, script=[step])
    item = wanted(mirror, tmp_path, Expected(), max_bytes=100_000)
    with Fetcher(patience=quick) as fetcher, pytest.raises(ChecksumMismatch, match=r"97\.7 KiB|100000 bytes"):
        fetcher.fetch(item)
    assert list(item.target.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (401, Refused, "asks who you are"),
        (403, Refused, "refuses access"),
        (404, NotThere, "does not exist"),
        (410, NotThere, "does not exist"),
        (418, NetworkError, "answered 418"),
    ],
)
def test_refusals_have_their_own_sentence_and_are_not_repeated(
    mirror: Mirror, tmp_path: Path, quick: Patience, code: int, kind: type[NetworkError], words: str
) -> None:
    mirror.pages["/file.bin"] = Page(BODY, always=str(code))
    with Fetcher(patience=quick) as fetcher, pytest.raises(kind, match=words) as caught:
        fetcher.fetch(wanted(mirror, tmp_path))
    assert f"{mirror.url}/file.bin" in caught.value.message
    assert "--from" in caught.value.next_step
    assert len(mirror.asked) == 1


@pytest.mark.parametrize("code", [408, 429, 500, 503])
def test_passing_trouble_is_waited_out(mirror: Mirror, tmp_path: Path, quick: Patience, code: int) -> None:
    mirror.pages["/file.bin"] = Page(BODY, script=[str(code), str(code)], headers={"Retry-After": "7"})
    waits: list[float] = []
    assert get(wanted(mirror, tmp_path), Patience(first_wait=1, longest_wait=1.5), sleep=waits.append) == BODY
    assert waits == [7, 7]
    mirror.pages["/file.bin"] = Page(BODY, always=str(code))
    with Fetcher(patience=quick) as fetcher, pytest.raises(NetworkError, match=f"the server answered {code}"):
        fetcher.fetch(wanted(mirror, tmp_path))


def test_pauses_grow_to_a_bound(mirror: Mirror, tmp_path: Path) -> None:
    mirror.pages["/file.bin"] = Page(BODY, always="500")
    waits: list[float] = []
    with Fetcher(patience=Patience(), sleep=waits.append) as fetcher, pytest.raises(NetworkError):
        fetcher.fetch(wanted(mirror, tmp_path))
    assert waits == [0.5, 1, 2, 4]


def test_an_unreachable_server_is_named_and_nothing_secret_is(
    tmp_path: Path, quick: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as idle:
        idle.bind(("127.0.0.1", 0))
        port = idle.getsockname()[1]
    url = f"http://alice:hunter2@127.0.0.1:{port}/x.bin?token=hf_secret#frag"
    for hub, words in ((f"http://127.0.0.1:{port}", "HF_ENDPOINT"), ("http://other", "--from")):
        monkeypatch.setenv("HF_ENDPOINT", hub)
        with Fetcher(patience=quick) as fetcher, pytest.raises(Unreachable) as caught:
            fetcher.fetch(Wanted(url, tmp_path / "x.bin", "x.bin"))
        shown = caught.value.message + caught.value.next_step
        assert f"127.0.0.1:{port} cannot be reached" in shown
        assert words in caught.value.next_step
        assert not {"alice", "hunter2", "hf_secret", "frag"} & set(shown.replace("/", " ").replace("@", " ").split())
    assert list(tmp_path.glob("x.bin*")) == []


@pytest.mark.parametrize(
    ("url", "fit"),
    [
        ("https://alice:hunter2@host:8443/a/b?token=x#y", "https://host:8443/a/b"),
        ("https://host/a", "https://host/a"),
        ("http://[::1]:80/a?x", "http://[::1]:80/a"),
        ("http://alice:hunter2@host:port/a?x", "http://host:port/a"),
        ("//alice@host/a", "//host/a"),
        ("../folder/what?.zip", "../folder/what?.zip"),
    ],
)
def test_addresses_in_messages_carry_no_secrets(url: str, fit: str) -> None:
    assert shown(url) == fit


@pytest.mark.parametrize("code", ["401", "403", "404", "418", "500"])
def test_refusals_carry_no_secrets(mirror: Mirror, tmp_path: Path, quick: Patience, code: str) -> None:
    mirror.pages["/file.bin"] = Page(BODY, always=code)
    url = mirror.url.replace("://", "://alice:hunter2@") + "/file.bin?token=hf_secret"
    with Fetcher(patience=quick) as fetcher, pytest.raises(NetworkError) as caught:
        fetcher.fetch(Wanted(url, tmp_path / "x", "x"))
    text = caught.value.message + caught.value.next_step
    assert not [word for word in ("alice", "hunter2", "hf_secret") if word in text]


def test_network_errors_are_told_without_their_address() -> None:
    import httpx

    cases = [
        (httpx.ConnectError("[Errno -2] Name or service not known"), "Name or service not known"),
        (httpx.ConnectError("cannot open http://alice:hunter2@host/"), "no connection"),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] unable to get issuer"), "its certificate is not trusted"),
        (httpx.ConnectError(""), "no connection"),
        (httpx.ProxyError("407 for http://alice:hunter2@proxy"), "the proxy refuses"),
        (httpx.ReadError("x"), "the connection went away"),
        (httpx.LocalProtocolError("Illegal header value b'Bearer hf_secret'"), "the request failed"),
    ]
    assert [reason(error) for error, _ in cases] == [words for _, words in cases]


def test_a_silent_server_times_out(tmp_path: Path) -> None:
    patience = Patience(attempts=2, first_wait=0, read_timeout=0.1)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/x"
        with Fetcher(patience=patience) as fetcher, pytest.raises(NetworkError, match="no data in time"):
            fetcher.fetch(Wanted(url, tmp_path / "x", "x"))


def test_the_token_goes_to_its_host_only(mirror: Mirror, tmp_path: Path, quick: Patience) -> None:
    elsewhere = Mirror()
    try:
        back = f"{mirror.url}/file.bin"
        mirror.pages["/start"] = Page(b"", always="goto:/next")
        mirror.pages["/next"] = Page(b"", always=f"goto:{elsewhere.url}/hop?sig=1")
        elsewhere.pages["/hop"] = Page(b"", always=f"goto:{back}")
        mirror.pages["/file.bin"] = Page(BODY)
        bearer = Bearer(origin_of(mirror.url), "hf_secret")
        with Fetcher(lambda: bearer, patience=quick) as fetcher:
            fetcher.fetch(Wanted(f"{mirror.url}/start", tmp_path / "file.bin", "file.bin", SHA))
            fetcher.fetch(Wanted(f"{elsewhere.url}/hop", tmp_path / "again.bin", "again.bin", SHA))
        sent = [(asked.path, asked.headers.get("authorization")) for asked in (*mirror.asked, *elsewhere.asked)]
        token = "Bearer hf_secret"
        assert sent == [
            ("/start", token), ("/next", token), ("/file.bin", None), ("/file.bin", None),
            ("/hop?sig=1", None), ("/hop", None),
        ]  # fmt: skip
        assert "hf_secret" not in repr(bearer)
    finally:
        elsewhere.stop()


def test_user_and_password_of_a_url_are_sent_and_not_passed_on(mirror: Mirror, tmp_path: Path, quick: Patience) -> None:
    elsewhere = Mirror()
    try:
        mirror.pages["/start"] = Page(b"", always=f"goto:{elsewhere.url}/file.bin")
        elsewhere.pages["/file.bin"] = Page(BODY)
        url = mirror.url.replace("://", "://alice:hunter2@") + "/start"
        with Fetcher(patience=quick) as fetcher:
            fetcher.fetch(Wanted(url, tmp_path / "file.bin", "file.bin", SHA))
        assert mirror.asked[0].headers["authorization"].startswith("Basic ")
        assert "authorization" not in elsewhere.asked[0].headers
    finally:
        elsewhere.stop()


@pytest.mark.parametrize(
    ("target", "words"), [("goto:/file.bin", "without an end"), ("goto:ftp://x/y", "nowhere"), ("302", "nowhere")]
)
def test_bad_redirects(mirror: Mirror, tmp_path: Path, quick: Patience, target: str, words: str) -> None:
    mirror.pages["/file.bin"] = Page(BODY, always=target)
    with Fetcher(patience=quick) as fetcher, pytest.raises(NetworkError, match=words):
        fetcher.fetch(wanted(mirror, tmp_path))


def test_encryption_is_not_given_up_on_the_way() -> None:
    import httpx

    answer = httpx.Response(302, headers={"location": "http://plain/x"})
    with pytest.raises(NetworkError, match="not encrypted"):
        fetch._redirected("https://safe/x", answer)
    assert fetch._redirected("http://plain/a/x", answer) == "http://plain/x"


@pytest.mark.parametrize("url", ["ftp://x/y", "file.bin", "http://", "http://x:99999/", "http://[::1/", "https:///x"])
def test_only_web_addresses(tmp_path: Path, url: str) -> None:
    with Fetcher() as fetcher, pytest.raises(BadValue, match="http"):
        fetcher.fetch(Wanted(url, tmp_path / "x", "x"))


def test_a_compressed_answer_is_unpacked(mirror: Mirror, tmp_path: Path, quick: Patience) -> None:
    """Some servers compress whatever one asks for."""
    import gzip

    mirror.pages["/file.bin"] = Page(gzip.compress(BODY), headers={"Content-Encoding": "gzip"})
    assert get(wanted(mirror, tmp_path), quick) == BODY


def test_no_space_is_found_out_before_the_body(
    mirror: Mirror, tmp_path: Path, quick: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.pages["/file.bin"] = Page(BODY)
    usage = disk.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    with Fetcher(patience=quick) as fetcher, pytest.raises(CannotWrite, match="No space left") as caught:
        fetcher.fetch(wanted(mirror, tmp_path))
    assert "LCBENCH_HOME" in caught.value.next_step
    assert "293.0 KiB" in caught.value.message


def test_a_full_disk_while_writing(mirror: Mirror, tmp_path: Path, quick: Patience) -> None:
    resource = pytest.importorskip("resource")
    mirror.pages["/file.bin"] = Page(BODY)
    item = wanted(mirror, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with Fetcher(patience=quick) as fetcher, pytest.raises(CannotWrite, match="No space left to write"):
            fetcher.fetch(item)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not item.target.exists()
    assert get(item, quick) == BODY
    assert mirror.asked[-1].range == "bytes=100000-", "what arrived is used"


def test_a_folder_that_cannot_be_written(mirror: Mirror, tmp_path: Path, quick: Patience) -> None:
    (tmp_path / "in").write_text("a file where the folder should be")
    mirror.pages["/file.bin"] = Page(BODY)
    with Fetcher(patience=quick) as fetcher, pytest.raises(CannotWrite, match="in") as caught:
        fetcher.fetch(wanted(mirror, tmp_path))
    assert "LCBENCH_HOME" in caught.value.next_step


def test_errors_of_the_disk_have_a_sentence(tmp_path: Path) -> None:
    for number, words in ((errno.ENOSPC, "No space left"), (errno.EDQUOT, "No space"), (errno.EROFS, "Read-only")):
        with pytest.raises(CannotWrite, match=words), disk.writing(tmp_path / "x"):
            raise OSError(number, os.strerror(number))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(min_size=1, max_size=4000),
    cuts=st.lists(st.tuples(st.sampled_from(["cut", "reset", "whole", "short"]), st.integers(0, 4000)), max_size=6),
    etag=st.sampled_from(['"a"', "", 'W/"a"']),
)
def test_however_it_breaks_the_bytes_are_right(
    mirror: Mirror, tmp_path_factory: pytest.TempPathFactory, body: bytes, cuts: list[tuple[str, int]], etag: str
) -> None:
    digest = digest_bytes(body)
    expected = Expected(digest.sha256, digest.git_blob, digest.size)
    mirror.pages["/file.bin"] = Page(body, script=[f"{kind}:{min(n, len(body))}" for kind, n in cuts], etag=etag)
    folder = tmp_path_factory.mktemp("fetch")
    item = Wanted(f"{mirror.url}/file.bin", folder / "file.bin", "file.bin", expected)
    assert get(item, Patience(attempts=9, first_wait=0, read_timeout=2)) == body
