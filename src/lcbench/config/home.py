"""Where lcbench keeps things: one folder, moved as a whole by ``LCBENCH_HOME``."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """``LCBENCH_HOME``, or the platform's user cache folder. Not created here.

    Below it: ``data/`` (benchmarks), ``models/`` (converted models), ``calibration/``, ``compressed/`` (shortened
    prompts), ``state/`` (last run).
    """
    configured = os.environ.get("LCBENCH_HOME", "").strip()
    return Path(configured).expanduser() if configured else platformdirs.user_cache_path("lcbench", appauthor=False)
