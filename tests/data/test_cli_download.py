from __future__ import annotations

from pathlib import Path

import pytest
import typer
from mirror_server import Mirror, Page
from tiny_data import Tiny
from typer.testing import CliRunner

from lcbench.cli.download import download
from lcbench.errors import ChecksumMismatch, DataMissing, LcbenchError, UnknownName, UsageError

app = typer.Typer()
app.command("download")(download)


def call(*words: str) -> tuple[str, str, LcbenchError | None]:
    """Output, error output, and the error that ends the command (the app turns it into exit code 2)."""
    result = CliRunner().invoke(app, list(words))
    error = result.exception
    if error is not None and not isinstance(error, LcbenchError | SystemExit):
        raise error
    return result.stdout, result.stderr, error if isinstance(error, LcbenchError) else None


def test_from_a_folder(shared_data: Path, own_home: Path) -> None:
    out, err, error = call("--from", str(shared_data / "longbench"), "qasper")
    assert error is None
    assert err == ""
    assert "longbench/qasper.jsonl: installed, first 18 of 200 rows" in out
    assert str(own_home / "data") in out
    out, _, error = call("--from", str(shared_data / "longbench"), "qasper")
    assert "already installed, first 18 of 200 rows" in out
    assert "Nothing to do." in out
    out, _, error = call("--verify")
    assert error is None
    assert "longbench/qasper.jsonl: ok, first 18 of 200 rows" in out


def test_from_the_hub(tiny: Tiny, own_home: Path) -> None:
    out, err, error = call("one")
    assert error is None
    assert "tiny/one.jsonl: installed, 7 rows" in out
    assert "tiny/two.jsonl: installed, 4 rows" in out
    assert "2 files installed (config/lengths.json, config/extra.json)" in out
    assert "Unpacking data.zip." in err


def test_no_names_show_what_there_is(tiny: Tiny, own_home: Path) -> None:
    out, _, error = call()
    assert isinstance(error, UsageError)
    assert "lcbench download qasper" in error.next_step
    assert "tiny  Tiny; 0 of 5 files installed" in out
    assert "tasks: note, one, two" in out
    assert "groups: both" in out


def test_unknown_names_and_clashing_options(tiny: Tiny) -> None:
    _, _, error = call("onne")
    assert isinstance(error, UnknownName)
    _, _, error = call("--verify", "--from", "x", "one")
    assert isinstance(error, UsageError)


def test_every_problem_is_shown_and_the_last_one_ends_it(tiny: Tiny, mirror: Mirror) -> None:
    mirror.pages["/datasets/new/tiny/resolve/main/data.zip"] = Page(b"", always="404")
    mirror.pages["/web/note.txt"] = Page(b"", always="403")
    out, err, error = call("tiny")
    assert "2 files installed" in out
    assert isinstance(error, LcbenchError)
    shown = (err + error.message).replace("\n", " ")
    assert "403" in shown
    assert "404" in shown


def test_verify_tells_what_is_wrong(tiny: Tiny, own_home: Path) -> None:
    out, _, error = call("--verify")
    assert error is None
    assert "Nothing is installed." in out
    out, _, error = call("--verify", "one")
    assert isinstance(error, DataMissing)
    assert error.next_step == "Run: lcbench download one"
    call("one")
    (own_home / "data" / "tiny" / "one.jsonl").write_bytes(b"x")
    out, _, error = call("--verify")
    assert isinstance(error, ChecksumMismatch)
    assert error.next_step == "Install again: lcbench download one.jsonl"
    assert "tiny/one.jsonl: CHANGED, expected sha256" in out
    assert "tiny/two.jsonl: ok, 4 rows" in out
    _, _, error = call("one.jsonl")
    assert error is None
    assert call("--verify")[2] is None


def test_markup_in_names_is_text(tiny: Tiny, tmp_path: Path) -> None:
    place = tmp_path / "[bold]x[/nope]"
    place.mkdir(parents=True)
    (place / "two.jsonl").write_bytes(tiny.lines("two"))
    (place / "lengths.json").write_bytes(tiny.config)
    out, _, error = call("--from", str(place), "both")
    assert error is None
    assert f"not in {place}" in out


def test_lines_elsewhere(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from lcbench.cli import download as module

    moments = iter([0.0, 1.0, 11.0, 12.0, 13.0, 14.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(moments))
    with module._Transfers(Console(highlight=False)) as transfers:
        for label, done, total in (
            ("data.zip", 0, 3 << 20), ("data.zip", 1 << 20, 3 << 20), ("data.zip", 2 << 20, 3 << 20),
            ("small", 0, 1000), ("unknown", 0, None), ("resumed", 1 << 20, None),
        ):  # fmt: skip
            transfers.progress(label, done, total)
    assert capsys.readouterr().out.splitlines() == [
        "Downloading data.zip: 3.0 MiB",
        "Downloading data.zip: 2.0 MiB of 3.0 MiB",
        "Downloading unknown",
        "Downloading resumed: 1.0 MiB",
    ]


def test_a_bar_on_a_terminal(tiny: Tiny, mirror: Mirror) -> None:
    import io

    from rich.console import Console

    from lcbench.cli.download import _Transfers

    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    with _Transfers(screen) as transfers:
        transfers.progress("data[1].zip", 0, 2048)
        transfers.progress("data[1].zip", 1024, 2048)
        assert transfers._bar is not None
        transfers._bar.refresh()
        transfers.progress("data[1].zip", 2048, 2048)
        transfers.say("done")
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "data[1].zip" in text
    assert "1.0/2.0 kB" in text


def test_help_names_the_options() -> None:
    out, _, error = call("--help")
    assert error is None
    for word in ("--from", "--verify", "HF_ENDPOINT", "LCBENCH_HOME"):
        assert word in out


@pytest.mark.parametrize("count", [1, 9])
def test_long_lists_are_counted(count: int) -> None:
    from lcbench.cli.download import _together

    text = _together("tiny", [f"f{n}" for n in range(count)], "installed", "")
    assert text == ("tiny/f0: installed" if count == 1 else "tiny: 9 files installed")
