"""Wrong words: one sentence with the next step, whichever part of a command line or file they stand in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lcbench.cli import app
from lcbench.config.options import Item, apply_settings
from lcbench.config.yaml_file import read_yaml
from lcbench.engine.inspection.inputs import read_id_list
from lcbench.errors import BadValue, LcbenchError, UnknownName, UsageError


def problem(*words: str) -> LcbenchError:
    error = CliRunner().invoke(app, list(words)).exception
    assert isinstance(error, LcbenchError), error
    assert error.next_step
    return error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "a", "b", "--show", "-1"], "--show -1 is below the least value 0."),
        (["inspect", "--task", "passkey", "--index", "-1"], "--index -1 is below the least value 0."),
        (["inspect", "--task", "passkey", "--logits", "-1"], "--logits -1 is below the least value 1."),
        (["inspect", "--task", "passkey", "--steps", "-2"], "--steps -2 is below the least value 0."),
        (["inspect", "--prompt", "nosuch.txt"], "--prompt nosuch.txt cannot be read: No such file or directory."),
    ],
)
def test_numbers_and_files_are_refused_before_any_work(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCBENCH_HOME", str(tmp_path))
    assert problem(*words).message == said


def test_a_report_of_an_unknown_ending_names_the_known_ones(tmp_path: Path) -> None:
    error = problem("report", str(tmp_path), "--out", str(tmp_path / "x.docx"))
    assert isinstance(error, BadValue)
    assert ".docx" in error.message
    assert all(ending in error.next_step for ending in (".html", ".tex", ".parquet", ".txt"))


def test_a_number_of_thousands_of_digits(tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text(f"[{'9' * 6000}]")
    with pytest.raises(BadValue, match="a number in it has thousands of digits") as caught:
        read_id_list(tmp_path / "ids.json", "--token-ids")
    assert "sys." not in caught.value.message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"model: demo\n\tlimit: 3\n", "line 2 is not valid YAML: while scanning"),
        (b"model: demo\nmethods: [full\n", "line 3 is not valid YAML: while parsing a flow sequence"),
        (bytes(range(32, 256)), "is not text in UTF-8: byte 96"),
        (b"a: \x01\n", "is not valid YAML: special characters are not allowed"),
    ],
)
def test_yaml_says_where_and_what_is_wrong(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "s.yaml").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_yaml(tmp_path / "s.yaml")
    assert said in caught.value.message
    assert caught.value.next_step


@pytest.mark.parametrize("fields", [{"full": set()}, {"full": {"window"}}])
def test_an_unknown_setting_has_a_next_step(fields: dict[str, Any]) -> None:
    with pytest.raises(UnknownName) as caught:
        apply_settings([Item("full")], {"windoww": "3"}, fields)
    assert caught.value.next_step


def test_what_a_terminal_would_obey_is_written_out(cli: Callable[..., Any]) -> None:
    done = cli("run", "--model", "demo", "--method", "full", "--task", "passkey@leng\x1b[31mths=3", "--dry-run")
    assert done.code == 2
    assert "\x1b[31m" not in done.err
    assert "leng\\x1b[31mths" in done.err


def test_a_count_of_depths_has_an_end(cli: Callable[..., Any]) -> None:
    done = cli("run", "--model", "demo", "--method", "full", "--task", "passkey@depths=99999999", "--dry-run")
    assert done.code == 2
    assert "is a count above 10,000" in done.err


@pytest.mark.parametrize(
    ("words", "said", "step"),
    [
        ("merge", "lcbench merge: missing argument 'RUN'.", "For example: lcbench merge runs/big "),
        ("list", "lcbench list: missing argument", "`lcbench list -h` shows what it takes."),
        ("export x", "lcbench export: missing option '--out' / '-o'.", "For example: lcbench export runs/demo"),
        ("serve --port 99999", "--port 99999 cannot be taken:", "For example: lcbench serve --model demo"),
        ("serve --port=99999", "--port=99999 cannot be taken:", "`lcbench serve -h`"),
        ("run --limit 3 -n x", "-n x cannot be taken:", "`lcbench run -h`"),
        ("serve --port", "lcbench serve: option '--port' requires an argument.", "`lcbench serve -h`"),
        ("run --limt 3", "Unknown option '--limt' of lcbench run.", "Did you mean '--limit'?"),
        ("run extra", "lcbench run: got unexpected extra argument", "`lcbench run -h`"),
        ("--foo run", "Unknown option '--foo' of lcbench.", "`lcbench -h` shows all."),
        ("mergee", "Unknown command 'mergee'.", "Did you mean 'merge'?"),
    ],
)
def test_a_command_line_that_cannot_be_read(cli: Callable[..., Any], words: str, said: str, step: str) -> None:
    done = cli(*words.split())
    assert done.code == 2
    assert done.out == ""
    first, second = done.err.splitlines()
    assert first.startswith(f"Error: {said}")
    assert second.startswith("Next:  ")
    assert step in second


@pytest.mark.parametrize("wish", ["--log json", "--log=json"])
def test_a_log_in_json_tells_an_unreadable_command_line_in_json(cli: Callable[..., Any], wish: str) -> None:
    done = cli("run", *wish.split(), "--bogus")
    assert done.code == 2
    told = [json.loads(line) for line in done.err.splitlines()]
    assert told[-1]["event"] == "error"
    assert "Unknown option '--bogus'" in told[-1]["message"]


def test_help_is_no_error(cli: Callable[..., Any]) -> None:
    assert "Usage:" in cli("-h").out
    assert cli("merge", "-h").code == cli("--version").code == 0
    done = cli()
    assert "Usage:" in done.out + done.err
    assert "Error" not in done.out + done.err


@pytest.mark.parametrize("left", [KeyboardInterrupt, EOFError])
def test_a_question_left_unanswered_is_no_traceback(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, left: type[BaseException]
) -> None:
    """As Ctrl-C or the end of input at "Go on?" (`score --judge`) does, wherever a command asks."""

    def ask(*_: object, **__: object) -> None:
        raise left

    monkeypatch.setattr("lcbench.cli.doctor.lcbench_home", ask)
    done = cli("doctor")
    assert (done.code, done.out) == (130, "")
    assert "Traceback" not in done.err
