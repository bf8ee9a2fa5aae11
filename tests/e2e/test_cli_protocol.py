"""The protocol options of LongBench runs, from the command line to the records: truncation, context, chat format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny-llama", layers=2)


@pytest.fixture
def ask(cli: Callable[..., Any], folder: Path, shared_data: Path) -> Callable[..., dict[str, Any]]:
    """Run two rows of a task with options; returns the run.json's facts of the task, its records and what was said."""

    def go(task: str, *options: object) -> dict[str, Any]:
        assert cli("download", task, "--from", shared_data / "longbench").code == 0
        out = Path(f"run{len(list(Path().glob('run*')))}")
        done = cli("run", "--model", folder, "--task", task, "--limit", 2, "--out", out, *options)
        assert done.code == 0, done.err
        info = json.loads((out / "run.json").read_text())
        (file,) = (out / "predictions" / "full").glob("*.jsonl")
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        provenance = info["provenance"]
        return {**provenance["tasks"][task], "model": provenance["model"], "records": records, "said": done.err}

    return go


def test_exact_ids_keep_the_length_to_the_token(ask: Callable[..., dict[str, Any]]) -> None:
    middle = ask("qasper", "--max-input-tokens", 300, "--chat", "none")
    exact = ask("qasper", "--max-input-tokens", 301, "--chat", "none", "--truncation", "exact-ids")
    assert {r["prompt_tokens"] for r in exact["records"]} == {301}
    # the official way loses the odd token and gets its BOS back: with bytes for tokens, 300 less BOS plus BOS
    assert {r["prompt_tokens"] for r in middle["records"]} == {300}
    assert all(r["truncated_from"] > 301 for r in exact["records"] + middle["records"])
    assert exact["prompts_sha256"] != middle["prompts_sha256"]


def test_without_context_the_prompt_is_short_and_the_question_stays(ask: Callable[..., dict[str, Any]]) -> None:
    facts = ask("qasper", "--context", "none")
    assert all(r["truncated_from"] is None and r["prompt_tokens"] < 1200 for r in facts["records"])
    assert facts["prompt_ends"].rstrip().endswith("assistant")
    assert "How is the ground truth for fake news established?" in facts["prompt_ends"]


def test_context_none_is_for_the_full_cache_alone(cli: Callable[..., Any], folder: Path) -> None:
    done = cli("run", "--model", folder, "--task", "qasper", "--method", "full,kivi", "--context", "none")
    assert done.code == 2
    assert "--method full" in done.err


def test_chat_formats(ask: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    options = ["--max-input-tokens", 200]
    own, none = ask("qasper", *options), ask("qasper", *options, "--chat", "none")
    assert own["prompt_begins"].startswith("<s><|turn|>user\n")
    assert "a second one was left out" in own["said"]  # the template writes the BOS, and so would the tokenizer
    assert none["prompt_begins"].startswith("You are given a scientific article")
    template = tmp_path / "mine.jinja"
    template.write_text("Q: {{ messages[0]['content'] }}\nA:")
    mine = ask("qasper", *options, "--chat", template)
    assert mine["prompt_begins"].startswith("Q: You are given")
    assert mine["prompt_ends"].endswith("\nA:")
    few_shot = ask("trec", *options)  # few-shot prompts are never wrapped
    assert "<|turn|>" not in few_shot["prompt_begins"]
    assert len({p["prompts_sha256"]["shared"] for p in (own, none, mine)}) == 3


def test_official_formats_and_cleaning(ask: Callable[..., dict[str, Any]], folder: Path) -> None:
    """By the name of the model: the same weights under two names."""
    bare = ask("qasper", "--max-input-tokens", 200, "--chat", "official")
    assert bare["prompt_begins"].startswith("You are given a scientific article")
    assert "LongBench has no chat format for this model" in bare["said"]
    assert bare["model"]["chat_template_sha256"] is None
    assert bare["model"]["answer_rule"] is None


def test_internlm_is_wrapped_and_its_answers_are_cut(
    ask: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny(tmp_path / "internlm-chat-7b-8k", layers=2)
    (first, _) = ask("trec", "--max-input-tokens", 200, "--model", model)["records"]
    assert len(first["pred"]) > 1
    monkeypatch.setattr("lcbench.models.official_chat._INTERNLM_END", first["pred"][1])
    facts = ask("trec", "--max-input-tokens", 200, "--chat", "official", "--model", model)
    assert facts["model"]["answer_rule"] == "internlm"
    assert facts["records"][0]["pred"] == first["pred"].split(first["pred"][1])[0]
    wrapped = ask("qasper", "--max-input-tokens", 200, "--chat", "official", "--model", model)
    assert wrapped["prompt_begins"].startswith("<|User|>:You are given")
    assert wrapped["prompt_ends"].endswith("<eoh>\n<|Bot|>:")
    assert wrapped["model"]["chat_template_sha256"]


def test_the_sample_of_a_cut_prompt_is_of_the_cut_prompt(ask: Callable[..., dict[str, Any]]) -> None:
    facts = ask("qasper", "--max-input-tokens", 100, "--chat", "none")
    assert len(facts["prompt_begins"]) < 200  # with bytes for tokens, all that is left
    assert facts["prompt_begins"] == facts["prompt_ends"]
