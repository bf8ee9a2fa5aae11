"""No harness cases: methods that shorten a prompt touch no cache, and the harness feeds prompts to caches. Their tests
stand in files of their own, and `tests/e2e/test_cli_prompt.py` runs them."""

from __future__ import annotations

from harness import Case

CASES: dict[str, list[Case]] = {
    name: []
    for name in ("llmlingua2", "longllmlingua", "selective-context", "perception-compressor", "gemfilter", "end")
}
