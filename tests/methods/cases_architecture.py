"""Methods of linear-time models: the harness runs attention families, so they have cases of their own instead
(test_remamba)."""

from __future__ import annotations

from harness import Case

CASES: dict[str, list[Case]] = {"remamba": []}
