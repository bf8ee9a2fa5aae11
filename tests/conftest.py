"""Shared fixtures: tiny random models with a byte tokenizer, an empty LCBENCH_HOME, the shared data folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test keeps its data in a folder of its own and starts in an empty working directory."""
    home = tmp_path / "lcbench-home"
    monkeypatch.setenv("LCBENCH_HOME", str(home))
    monkeypatch.delenv("LCBENCH_MODEL", raising=False)
    work = tmp_path / "cwd"
    work.mkdir()
    monkeypatch.chdir(work)
    return home


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """``../shared/data``: real rows and predictions; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED
