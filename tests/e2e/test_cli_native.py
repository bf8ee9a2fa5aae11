"""Models on the cache they bring along, as a user runs them: from a folder, through every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from linear_models import save_linear

Cli = Callable[..., Any]
TASK = "passkey@lengths=20/60,depths=3,repeats=1,digits=3,max_new_tokens=5"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("models")
    return {name: save_linear(where / name, name) for name in ("mamba", "jamba")}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_run_score_report(name: str, folders: dict[str, Path], cli: Cli) -> None:
    done = cli("run", "--model", folders[name], "--method", "full", "--task", TASK, "--out", "run")
    assert done.code == 0, done.err
    assert "falling back" not in done.err
    assert ("no prompt is cut" in done.err) == (name == "mamba")
    (file,) = Path("run/predictions/full").iterdir()
    records = lines(file)
    assert [r["status"] for r in records] == ["ok"] * 6
    short, long = min(records, key=lambda r: r["prompt_tokens"]), max(records, key=lambda r: r["prompt_tokens"])
    assert (short["kv_bytes"] == long["kv_bytes"]) == (name == "mamba")
    model = json.loads(Path("run/run.json").read_text())["provenance"]["model"]
    assert model["state"]["state_bytes"] > 0
    assert all(
        r["kv_bytes"] == model["state"]["state_bytes"] + model["state"]["token_bytes"] * r["prompt_tokens"]
        for r in records
    )
    for arguments in (("score", "run"), ("report", "run"), ("report", "run", "--format", "json")):
        shown = cli(*arguments)
        assert shown.code == 0, shown.err
        assert "full" in shown.out
    told = " ".join(cli("report", "run", "--format", "md").out.split())
    assert "KV bytes are those of its state" in told
    assert ("attention layers" in told) == (name == "jamba")
    again = cli("run", "--model", folders[name], "--method", "full", "--task", TASK, "--out", "run")
    assert again.code == 0, again.err
    assert lines(file) == records


def test_dry_run_inspect_and_bench(folders: dict[str, Path], cli: Cli) -> None:
    plan = cli("run", "--model", folders["mamba"], "--method", "full", "--task", TASK, "--dry-run")
    assert plan.code == 0, plan.err
    assert "no stated window" in plan.out
    Path("prompt.txt").write_text("a text of some length")
    looked = cli("inspect", "--model", folders["jamba"], "--method", "full", "--prompt", "prompt.txt", "--json")
    assert looked.code == 0, looked.err
    found = json.loads(looked.out)
    assert found["kv_bytes"] == found["kv_bytes_full"]
    measured = cli("bench", "--model", folders["mamba"], "--method", "full", "--lengths", "16,64", "--batch", "1,2")
    assert measured.code == 0, measured.err
    (folder,) = Path("runs").iterdir()
    cells = lines(folder / "efficiency.jsonl")
    assert len({c["kv_bytes"] for c in cells if c["batch"] == 1}) == 1
    assert {c["kv_bytes"] for c in cells if c["batch"] == 2} == {2 * cells[0]["kv_bytes"]}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--method", "kivi"), "kivi works on keys and values alone"),
        (("--method", "full,snapkv+kivi"), "snapkv+kivi works on keys and values alone"),
        (("--method", "full", "--prefill-chunk", "16"), "read in chunks"),
    ],
)
def test_what_such_a_model_cannot_do_is_refused_before_any_work(
    more: tuple[str, ...], sentence: str, folders: dict[str, Path], cli: Cli
) -> None:
    done = cli("run", "--model", folders["mamba"], "--task", TASK, "--out", "run", *more)
    assert done.code == 2
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert not Path("run").exists()
    if more[1] == "kivi":
        for command in (("inspect", "--token-ids", "ids.json"), ("bench", "--lengths", "16")):
            Path("ids.json").write_text("[1, 2, 3]")
            refused = cli(*command, "--model", folders["mamba"], "--method", "kivi")
            assert refused.code == 2, refused.err
            assert sentence in refused.err


def test_calibrating_is_refused_in_a_sentence(folders: dict[str, Path], cli: Cli) -> None:
    done = cli("calibrate", "headkv", "--model", folders["mamba"], "--samples", "1", "--lengths", "50")
    assert done.code == 2
    assert "own cache" in done.err
    assert "Traceback" not in done.err


def test_a_random_architecture_of_ones_own(cli: Cli) -> None:
    facts = {"model_type": "mamba2", "hidden_size": 32, "num_heads": 4, "head_dim": 16, "n_groups": 1}
    facts |= {"state_size": 8, "num_hidden_layers": 2, "vocab_size": 100, "chunk_size": 8}
    Path("config.json").write_text(json.dumps(facts))
    done = cli("bench", "--random-weights", "config.json", "--method", "full", "--lengths", "16", "--repeats", "1")
    assert done.code == 0, done.err


def test_they_are_listed(cli: Cli) -> None:
    done = cli("list", "models")
    text = " ".join(done.out.split())
    assert "RecurrentGemma" in text
    assert "Qwen3-Next" in text
