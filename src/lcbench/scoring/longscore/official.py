"""LongScore of the result files that 100-LongBench's own scorer writes: ``{"kv_retrieval_0": 58.59, …}``.

A key is a task, an underscore and a length in units of 1024 tokens, 0 for the base set. A file may also hold several
models: ``{"llama-3.1-8B": {"kv_retrieval_0": …}}``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcbench.errors import CorruptFile
from lcbench.scoring.longscore.curve import Curve
from lcbench.scoring.longscore.plain import from_tasks, mean_of_curves
from lcbench.tasks.facts import HUNDRED
from lcbench.tasks.hundred.names import BASE

_KEY = re.compile(r"(\w+)_(\d+)")
_FORM = 'Give a file such as {"kv_retrieval_0": 58.59, "kv_retrieval_8": 61.0}, or model to such an object.'


def read_results(path: Path) -> dict[str, list[Curve]]:
    """Model to its curves: the mean over the tasks first (of two or more), then the tasks in alphabetical order.

    Args:
        path: one result file; a model without a name is called after the folder the file lies in.

    Raises:
        CorruptFile: not readable, not JSON, or not of this form (the key is named).
    """
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CorruptFile(f"Cannot read {path}: {error.strerror}.", "Check the file and its permissions.") from None
    except (ValueError, RecursionError):
        raise CorruptFile(f"{path} is not JSON.", _FORM) from None
    if not isinstance(data, Mapping) or not data:
        raise CorruptFile(f"{path} holds no scores by task and length.", _FORM)
    if all(isinstance(one, Mapping) for one in data.values()):
        return {model: _curves(path, one) for model, one in data.items()}
    return {path.resolve().parent.name: _curves(path, data)}


def _curves(path: Path, scores: Mapping[str, Any]) -> list[Curve]:
    tasks: dict[str, float] = {}
    for key, value in scores.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise CorruptFile(f"{path}: '{key}' is no task with a length.", _FORM)
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or not math.isfinite(value) or not 0 <= value <= 100:
            raise CorruptFile(f"{path}: the score of '{key}' is not a number from 0 to 100.", _FORM)
        length = int(match[2])
        tasks[f"{HUNDRED}/{match[1]}@{f'{length}k' if length else BASE}"] = float(value)
    curves = sorted(from_tasks(tasks), key=lambda curve: curve.name)
    if not curves:
        raise CorruptFile(f"{path} has no score at a length above the base.", _FORM)
    mean = mean_of_curves(curves) if len(curves) > 1 else None
    return curves if mean is None else [mean, *curves]
