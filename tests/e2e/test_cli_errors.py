"""Wrong input: exit code 2, one sentence, the next step, no traceback, nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny import save_tiny

TASK = "passkey@lengths=20,depths=2,repeats=1,max_new_tokens=4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny-llama")


def refused(done: Any, *said: str) -> None:
    assert done.code == 2, done
    assert "Traceback" not in done.err
    assert done.err.startswith("Error: ") or "\nError: " in done.err  # notes may come before it
    for text in said:
        assert text in done.err.replace("\n", " "), done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--method", "kivy"], ["Unknown method 'kivy'", "Did you mean 'kivi'?", "lcbench list methods"]),
        (["run", "--task", "qaspr"], ["Unknown task 'qaspr'", "qasper"]),
        (["run", "--method", "kivi@bit=2"], ["Unknown parameter 'bit'", "bits"]),
        (["run", "--method", "kivi@bits=3"], ["kivi@bits=3", "2, 4, 8"]),
        (["run", "--method", "kivi@group_size=32,residual_length=50"], ["residual_length"]),
        (["run", "--method", "streamingllm@budget=1.5"], ["budget"]),
        (["run", "--method", "full,full"], ["twice"]),
        (["run", "--set", "bits=4", "--method", "full"], ["Unknown parameter 'bits'"]),
        (["run", "--set", "bits", "--method", "kivi"], ["key=value"]),
        (["run", "--limit", "0"], ["limit"]),
        (["run", "--model", "no-such-folder/model.gguf"], ["no-such-folder/model.gguf"]),
        (["run", "--device", "cuda:9"], ["cuda:9"]),
        (["run", "--dtype", "float8"], ["dtype=float8"]),
        (["run", "--load-in", "4bit"], ["4bit"]),
        (["run", "--attn", "flash_attention_2", "--device", "cpu"], ["flash_attention_2"]),
        (["run", "--task", "qasper"], ["lcbench download qasper"]),
        (["run", "--config", "none.yaml"], ["none.yaml"]),
        (["score", "nowhere"], ["nowhere"]),
        (["score"], ["lcbench run"]),
        (["report"], ["lcbench run"]),
        (["report", "nowhere"], ["nowhere"]),
        (["download", "qaspr"], ["qasper"]),
        (["download", "qasper", "--from", "nowhere"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_wrong_words(cli: Callable[..., Any], arguments: list[str], said: list[str]) -> None:
    refused(cli(*arguments), *said)


def test_unreachable_network(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused(cli("download", "qasper"), "127.0.0.1", "--from")


def test_a_folder_that_is_no_run(cli: Callable[..., Any]) -> None:
    Path("other").mkdir()
    Path("other/file.txt").write_text("mine")
    refused(cli("report", "other"), "other")
    refused(cli("run", "--task", TASK, "--out", "other", "--model", "nothing/here"), "nothing/here")
    assert Path("other/file.txt").read_text() == "mine"


def test_out_is_a_file(cli: Callable[..., Any], folder: Path) -> None:
    Path("taken").write_text("mine")
    refused(cli("run", "--model", folder, "--task", TASK, "--out", "taken"), "taken")
    assert Path("taken").read_text() == "mine"


def test_no_chat_template_where_one_is_needed(cli: Callable[..., Any], tmp_path: Path, shared_data: Path) -> None:
    plain = save_tiny(tmp_path / "plain", chat=False)
    assert cli("download", "qasper", "--from", shared_data / "longbench").code == 0
    refused(cli("run", "--model", plain, "--task", "qasper", "--limit", 1), "chat template", "--chat none")


def test_a_corrupted_line_is_named_and_nothing_changes(cli: Callable[..., Any], folder: Path) -> None:
    arguments = ["run", "--model", folder, "--task", TASK, "--out", "out"]
    assert cli(*arguments).code == 0
    (file,) = Path("out/predictions").rglob("*.jsonl")
    damaged = b"{broken\n" + file.read_bytes()
    file.write_bytes(damaged)
    for command in (arguments, ["score", "out"], ["report", "out"]):
        refused(cli(*command), ".jsonl", "1")
    assert file.read_bytes() == damaged
