"""LongScore: long-context ability apart from base ability (100-LongBench), for any task that exists at several lengths.

`formula` is the arithmetic, `ladder` finds the lengths, `curve` makes scores over length with intervals, `decompose`
splits a method's loss into base and long-context ability, `plain` and `official` start from scores alone, and `result`
is what scores.json and the reports read.
"""

from __future__ import annotations

from lcbench.scoring.longscore.formula import long_context_value, long_score, mean_over_tasks, mean_score, ranks

__all__ = ["long_context_value", "long_score", "mean_over_tasks", "mean_score", "ranks"]
