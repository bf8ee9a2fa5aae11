"""A passkey beyond an artificially small window of the demo model: plain fails, extended does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lcbench.models.converted import all_converted

pytestmark = [pytest.mark.demo, pytest.mark.slow, pytest.mark.timeout(600)]

SELF_EXTEND = "selfextend@group=4,neighbours=128"  # distances up to 294
TASK = "passkey@lengths=450,depths=0.1,repeats=1,max_new_tokens=9"


def small_window(folder: Path, home: Path, window: int) -> Path:
    """The converted demo model, whose config says that it was trained for fewer tokens."""
    ((converted, _),) = all_converted(home)
    folder.mkdir()
    for path in converted.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": window}))
    return folder


def test_selfextend_finds_what_lies_beyond_the_window(cli: Callable[..., Any], demo_home: Path, tmp_path: Path) -> None:
    model = small_window(tmp_path / "demo-512", demo_home, 512)
    methods = f"full,{SELF_EXTEND},lm-infinite"
    done = cli("run", "--model", model, "--task", TASK, "--method", methods, "--out", "run")
    assert done.code == 1, done.err
    rows = {path.parent.name: json.loads(path.read_text()) for path in Path("run/predictions").glob("*/*.jsonl")}
    assert "do not fit the model's window of 512" in rows["full"]["error"]
    (key,) = rows["full"]["answers"]
    assert rows[SELF_EXTEND]["prompt_tokens"] > 700
    assert key in rows[SELF_EXTEND]["pred"]
    assert rows["lm-infinite"]["status"] == "ok"
    assert key not in rows["lm-infinite"]["pred"]  # at 10 %, between the first 10 tokens and the newest 512
