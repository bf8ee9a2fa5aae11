"""Passkey beyond the demo model's 8,192 tokens: plain fails, extended does not. Reads 12,474 tokens three times, which
takes many minutes on a CPU, so it must be asked for: ``LCBENCH_LONG=1 pytest tests/e2e/test_extension_demo.py``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.demo,
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(os.environ.get("LCBENCH_LONG") != "1", reason="takes many minutes; ask with LCBENCH_LONG=1"),
]

PLAIN = "pi@reach=16384,factor=1"  # the model as it is, made to read on
TASK = "passkey@lengths=7500,depths=0.95,repeats=1,max_new_tokens=12"


def test_plain_fails_and_extended_does_not(
    cli: Callable[..., Any], demo_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "models").symlink_to(demo_home / "models")
    monkeypatch.setenv("LCBENCH_HOME", str(home))
    done = cli("run", "--model", "demo", "--task", TASK, "--method", f"full,{PLAIN},dynamic-ntk", "--out", "run")
    assert done.code == 1, done.err
    rows = {path.parent.name: json.loads(path.read_text()) for path in Path("run/predictions").glob("*/*.jsonl")}
    assert "do not fit the model's window of 8192" in rows["full"]["error"]
    key = rows["full"]["answers"][0]
    assert key not in rows[PLAIN]["pred"]
    assert key in rows["dynamic-ntk"]["pred"]
