"""Scores of predictions, computed as the benchmarks' authors compute them. No torch.

`lcbench.scoring.metrics.score` is one metric, `score_row` a whole row rule; `lcbench.scoring.run` scores run
directories, prediction files and folders of them.
"""

from __future__ import annotations

from lcbench.scoring.metrics import CodeSim
from lcbench.scoring.rows import score_row

__all__ = ["CodeSim", "score_row"]
