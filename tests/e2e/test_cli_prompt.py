"""Methods that shorten prompts as a user runs them: a tiny model, tiny helpers, all saved as local folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from small_classifier import KINDS, save_classifier
from tiny import save_tiny

TASK = "passkey@lengths=60,depths=2,repeats=1,digits=3,max_new_tokens=4"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("folders")
    return save_tiny(home / "tiny-llama"), save_classifier(home, KINDS[1])


def records(run: str, method: str) -> list[dict[str, Any]]:
    file = min(Path(run).glob(f"predictions/{method}*/*.jsonl"), key=lambda f: len(f.parent.name))  # not a composition
    return [json.loads(line) for line in file.read_text().splitlines()]


def timings(run: str, method: str) -> list[dict[str, Any]]:
    file = min(Path(run).glob(f"timings/{method}*/*.jsonl"), key=lambda f: len(f.parent.name))  # not a composition
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_compressed_prompt_is_counted_cached_and_composed(
    cli: Callable[..., Any], folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCBENCH_HOME", str(tmp_path / "home"))
    model, classifier = folders
    common = ["run", "--model", model, "--task", TASK]
    method = f"llmlingua2@model={classifier},rate=0.5"
    both = f"full,{method},{method}+knorm@budget=0.5"
    done = cli(*common, "--method", both, "--out", "run")
    assert done.code == 0, done.err
    full, short = records("run", "full"), records("run", "llmlingua2")
    both_short = [json.loads(line) for f in Path("run/predictions").glob("*knorm*/*") for line in f.open()]
    for a, b, c in zip(full, short, both_short, strict=True):
        assert a["tokens_before"] is None
        assert b["tokens_before"] == c["tokens_before"] == a["prompt_tokens"]
        assert b["prompt_tokens"] == c["prompt_tokens"] < a["prompt_tokens"]
        token = a["kv_bytes_full"] // a["prompt_tokens"]
        assert b["kv_bytes"] == token * b["prompt_tokens"] < b["kv_bytes_full"] == a["kv_bytes_full"]
        assert c["kept_tokens"] == b["prompt_tokens"] // 2
        assert c["kv_bytes"] == token * c["kept_tokens"]
        assert not b["shared_prefill"]
    seconds = [line["rewrite"] for line in timings("run", "llmlingua2")]
    assert all(value > 0 for value in seconds)
    entries = sorted((tmp_path / "home" / "compressed").rglob("*.json"))
    assert len(entries) == len(short)  # the composition used them too
    before = {path: path.read_bytes() for path in entries}
    again = cli(*common, "--method", method, "--out", "again")
    assert again.code == 0, again.err
    assert "reads the prompts with" in " ".join(done.err.split())
    assert "reads the prompts with" not in " ".join(again.err.split())  # nothing had to be computed
    assert records("again", "llmlingua2") == short
    assert [line["rewrite"] for line in timings("again", "llmlingua2")] == seconds
    assert {path: path.read_bytes() for path in entries} == before
    entries[0].write_text("{broken")
    assert cli(*common, "--method", method, "--out", "mended").code == 0
    mended, kept = json.loads(entries[0].read_text()), json.loads(before[entries[0]])
    assert (mended["text"], mended["made_by"]) == (kept["text"], kept["made_by"])
    shown = cli("report", "run", "--format", "md")
    assert "shortened" in shown.out, shown.err


def test_inspect_shows_what_was_cut_and_the_question_whole(
    cli: Callable[..., Any], folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCBENCH_HOME", str(tmp_path / "home"))
    model, classifier = folders
    method = f"llmlingua2@model={classifier},rate=0.3"
    done = cli("inspect", "--model", model, "--task", TASK, "--method", method, "--json", "--details")
    assert done.code == 0, done.err
    pieces = json.loads(done.out)["text"]
    assert {piece["kind"] for piece in pieces} >= {"kept", "cut"}
    whole = "".join(piece["text"] for piece in pieces if piece["kind"] != "added")
    question = whole[whole.rindex("What is") :]
    assert pieces[-1]["kind"] == "kept"
    assert pieces[-1]["text"].endswith(question)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("llmlingua2", "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"),
        ("llmlingua2@model=./nowhere", "./nowhere"),
        ("llmlingua2@rate=2", "above the greatest value 1"),
        ("kivi+llmlingua2", "nothing can come before it"),
        ("llmlingua2+full", "full changes nothing"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    cli: Callable[..., Any],
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    said: str,
) -> None:
    monkeypatch.setenv("LCBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = cli("run", "--model", folders[0], "--task", TASK, "--method", method)
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_a_rate_of_one_is_the_plain_prompt(
    cli: Callable[..., Any], folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCBENCH_HOME", str(tmp_path / "home"))
    done = cli("run", "--model", folders[0], "--task", TASK, "--method", "full,llmlingua2@rate=1", "--out", "run")
    assert done.code == 0, done.err  # needs no classifier
    for a, b in zip(records("run", "full"), records("run", "llmlingua2"), strict=True):
        assert (a["pred"], a["prompt_tokens"], a["kv_bytes"]) == (b["pred"], b["prompt_tokens"], b["kv_bytes"])
        assert b["tokens_before"] is None  # nothing was shortened


def test_what_the_window_cuts_no_method_has_saved(
    cli: Callable[..., Any], folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCBENCH_HOME", str(tmp_path / "home"))
    method = f"llmlingua2@rate=0.5,model={folders[1]}"
    args = ["--model", folders[0], "--task", TASK, "--method", f"full,{method}", "--out", "run"]
    done = cli("run", *args, "--max-input-tokens", 120, "--over-length", "truncate")
    assert done.code == 0, done.err
    for a, b in zip(records("run", "full"), records("run", "llmlingua2"), strict=True):
        assert a["truncated_from"] is not None
        assert b["tokens_before"] == a["prompt_tokens"]
        assert b["kv_bytes_full"] == a["kv_bytes_full"] == a["kv_bytes"]


def test_every_method_runs_on_a_helper_of_the_users(
    cli: Callable[..., Any], folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCBENCH_HOME", str(tmp_path / "home"))
    model = folders[0]
    methods = [
        f"longllmlingua@rate=0.5,model={model},segment=50",
        f"selective-context@rate=0.5,model={model}",
        f"perception-compressor@rate=0.5,model={model},guides=1",
        "gemfilter@budget=0.5",
        "gemfilter@budget=0.5+kivi@bits=4,group_size=16,residual_length=32",
    ]
    common = ["run", "--model", model, "--task", TASK, "--limit", "1", "--chat", "none"]
    done = cli(*common, "--method", ",".join(["full", *methods]), "--out", "run")
    assert done.code == 0, done.err
    (full,) = records("run", "full")
    token = full["kv_bytes_full"] // full["prompt_tokens"]
    for name in ("longllmlingua", "selective-context", "perception-compressor", "gemfilter"):
        (one,) = records("run", name)
        assert one["status"] == "ok"
        assert one["tokens_before"] == full["prompt_tokens"]
        assert 0.3 < one["prompt_tokens"] / one["tokens_before"] < 0.95, name
        assert one["kv_bytes"] == token * one["prompt_tokens"]
        assert one["kv_bytes_full"] == full["kv_bytes_full"]
        assert timings("run", name)[0]["rewrite"] > 0
    packed = [json.loads(line) for f in Path("run/predictions").glob("*kivi*/*") for line in f.open()]
    assert packed[0]["kv_bytes"] < records("run", "gemfilter")[0]["kv_bytes"]
    assert done.err.count("reads the prompts with") == 1  # one helper serves all three
    shown = cli("inspect", "--model", model, "--task", TASK, "--method", "gemfilter@budget=0.5", "--chat", "none",
                "--json", "--details")  # fmt: skip
    data = json.loads(shown.out)
    kept = "".join(piece["text"] for piece in data["text"] if piece["kind"] == "kept")
    assert data["prompt_tokens"] == records("run", "gemfilter")[0]["prompt_tokens"] == len(data["token_ids"])
    assert len(kept.replace("<s>", "s")) == data["prompt_tokens"]
    assert data["kv_bytes_full"] == full["kv_bytes_full"]


def test_end_says_what_it_lacks_and_hidden_questions_are_refused(
    cli: Callable[..., Any], folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCBENCH_HOME", str(tmp_path / "home"))
    common = ["run", "--model", folders[0], "--task", TASK, "--limit", "1"]
    done = cli(*common, "--method", "end")
    assert done.code == 2
    assert "lcbench calibrate end --model" in " ".join(done.err.split())
    for method in ("gemfilter", "selective-context@rate=1"):
        hidden = cli(*common, "--method", method, "--question", "hidden")
        assert hidden.code == 2
        assert "reads the prompt in its own way" in " ".join(hidden.err.split())
    with_itself = cli(*common, "--method", "end@threshold=0", "--out", "run", "--chat", "none")
    assert with_itself.code == 0, with_itself.err
    bad = cli(*common, "--method", "longllmlingua@model=./nowhere")
    assert bad.code == 2
    assert "longllmlingua@model=./nowhere" in " ".join(bad.err.split())
