"""No harness cases: methods that shorten a prompt's text touch no cache. Their tests stand in files of their own, and
`tests/e2e/test_cli_prompt.py` runs them."""

from __future__ import annotations

from harness import Case

CASES: dict[str, list[Case]] = {"llmlingua2": []}
