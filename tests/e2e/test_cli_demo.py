"""End to end on the demo model: real weights, real answers, real bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.demo, pytest.mark.slow]


def records(run: Path, method: str, task: str) -> list[dict[str, Any]]:
    (file,) = (run / "predictions" / method).glob(f"{task}*.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def kivi_bytes(tokens: int, bits: int, layers: int = 30, heads: int = 3, dim: int = 64, e: int = 4) -> int:
    """The formula of the method's paper code: packed codes, fp16 scale and minimum a group, exact residual."""
    group, residual = 32, 128
    total = 0.0
    for quantized in (tokens - tokens % residual, max(0, tokens - residual)):
        total += quantized * bits / 8 + 4 * quantized / group + e * (tokens - quantized)
    return int(layers * heads * dim * total)


@pytest.fixture(autouse=True)
def demo_models(own_home: Path, demo_home: Path) -> None:
    own_home.mkdir()
    (own_home / "models").symlink_to(demo_home / "models")


def test_passkey_with_the_demo_model(cli: Callable[..., Any]) -> None:
    task = "passkey@lengths=256,depths=3,repeats=1,max_new_tokens=10"
    arguments = ["run", "--method", "full,kivi@bits=2,kivi@bits=4,streamingllm", "--task", task, "--out", "run"]
    done = cli(*arguments)
    assert done.code == 0, done.err
    full = records(Path("run"), "full", "passkey")
    assert [r["answers"][0] in r["pred"] for r in full] == [True] * 3  # a model that reads finds the key
    assert [r["pred"] for r in records(Path("run"), "kivi@bits=4", "passkey")] != []
    for bits in (2, 4):
        for record in records(Path("run"), f"kivi@bits={bits}", "passkey"):
            assert record["kv_bytes"] == kivi_bytes(record["prompt_tokens"], bits)
    # the key in the middle is outside what StreamingLLM keeps, at the end it is inside
    streaming = records(Path("run"), "streamingllm", "passkey")
    assert [r["answers"][0] in r["pred"] for r in streaming] == [False, False, True]
    scored = cli("score", "run")
    assert scored.code == 0, scored.err
    scores = json.loads(Path("run/scores.json").read_text())
    text = json.dumps(scores)
    assert "streamingllm" in text
    assert "100.0" in text


def test_qasper_rows_with_the_demo_model(cli: Callable[..., Any], shared_data: Path) -> None:
    downloaded = cli("download", "--from", shared_data / "longbench", "qasper")
    assert downloaded.code == 0, downloaded.err
    arguments = ["run", "--method", "kivi", "--task", "qasper", "--limit", 2, "--max-input-tokens", 500]
    done = cli(*arguments, "--out", "run")
    assert done.code == 0, done.err
    assert "first 18 of 200" in done.err
    found = records(Path("run"), "kivi", "qasper")
    assert len(found) == 2
    for record in found:
        assert record["truncated_from"] > 500
        assert 500 <= record["prompt_tokens"] < 560  # the chat format comes on top of the 500
        assert record["kv_bytes"] == kivi_bytes(record["prompt_tokens"], 2)
        assert record["pred"].strip()
    reported = cli("report", "run", "--format", "md")
    assert reported.code == 0, reported.err
    assert "500" in reported.out
    assert "18 of 200" in reported.out
