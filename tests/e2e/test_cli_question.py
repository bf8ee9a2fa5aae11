"""`lcbench run --question` and `--exact` as a user types them, on a tiny model saved as a local folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny import save_tiny

TASK = "passkey@lengths=40,depths=2,repeats=1,digits=3,max_new_tokens=6"
METHODS = "full,knorm@budget=0.5,snapkv@window=8,budget=0.5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny-llama")


def records(run: str, method: str) -> list[dict[str, Any]]:
    (file,) = (Path(run) / "predictions" / method).glob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_hidden_and_visible_stand_in_records_and_tables(cli: Callable[..., Any], folder: Path) -> None:
    common = ["run", "--model", folder, "--task", TASK]
    assert cli(*common, "--method", METHODS, "--out", "visible").code == 0
    hidden = cli(*common, "--method", METHODS, "--out", "hidden", "--question", "hidden")
    assert hidden.code == 0, hidden.err
    for method in ("full", "knorm@budget=0.5"):
        pairs = list(zip(records("visible", method), records("hidden", method), strict=True))
        assert pairs
        for one, other in pairs:
            assert (one["question"], other["question"]) == ("visible", "hidden")
            same = {k: v for k, v in one.items() if k != "question"} == {
                k: v for k, v in other.items() if k != "question"
            }
            assert same == (method == "full")
            if method != "full":
                assert one["kept_tokens"] < other["kept_tokens"] < other["prompt_tokens"]  # the question is kept whole
    assert json.loads(Path("hidden/run.json").read_text())["spec"]["question"] == "hidden"
    assert cli("score", "hidden").code == 0
    for shape in ("table", "md", "json"):
        shown = cli("report", "hidden", "--format", shape)
        assert shown.code == 0, shown.err
        assert "--question hidden" in " ".join(shown.out.split())
        shown = cli("report", "visible", "--format", shape)
        assert "--question visible" in " ".join(shown.out.split())
        assert "--question hidden" not in shown.out
    assert "--question visible" in " ".join(cli("score", "visible").out.split())
    changed = cli(*common, "--method", METHODS, "--out", "hidden")
    assert changed.code == 2
    assert "question: was hidden, now visible" in " ".join(changed.err.split())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "full,infllm", "--task", TASK], "infllm reads the prompt in its own way"),
        (["--method", "full", "--task", TASK, "--context", "none"], "leaves nothing to compress"),
        (["--method", "full", "--task", TASK, "--question", "later"], "not one of visible, hidden"),
    ],
)
def test_what_cannot_be_hidden_is_refused_in_a_sentence(
    cli: Callable[..., Any], folder: Path, more: list[str], said: str
) -> None:
    done = cli("run", "--model", folder, "--question", "hidden", "--out", "out", *more)
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert not Path("out").exists()


def test_exact_says_so_and_changes_nothing_else(cli: Callable[..., Any], folder: Path) -> None:
    common = ["run", "--model", folder, "--task", TASK, "--method", METHODS]
    assert cli(*common, "--out", "stacked").code == 0
    assert cli(*common, "--out", "exact", "--exact").code == 0
    for method in ("full", "knorm@budget=0.5"):
        one, other = records("stacked", method), records("exact", method)
        assert {r.pop("decode") for r in one} == {"stacked"}
        assert {r.pop("decode") for r in other} == {"exact"}
        assert one == other
    assert json.loads(Path("stacked/batching.json").read_text())["rows"] > 1
    again = cli(*common, "--out", "exact")
    assert again.code == 2
    assert "exact: was" in again.err
