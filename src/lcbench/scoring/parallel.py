"""Scoring many samples: equal ones once, on all cores where that pays."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from lcbench.errors import BadValue
from lcbench.scoring.metrics import CodeSim, score

_WORTH_A_POOL = 0.4  # estimated seconds of one core below which starting processes costs more than it saves

# Rough seconds a character of prediction and answers takes, for cutting the work into equal pieces.
_SECONDS = {"rouge": 1.2e-7, "rouge_zh": 1.5e-6, "qa_f1_zh": 7e-7, "code_sim": 4e-7}
_SECONDS_GOOGLE = 6e-6
_SECONDS_OTHER = 6e-8


@dataclass(frozen=True)
class Rule:
    """How samples of one task are scored. Hashable, so that equal work is found.

    Attributes:
        metric: metric name. all_classes: labels, for classification.
        google_rouge: whether the additional ROUGE columns are wanted.
    """

    metric: str
    all_classes: tuple[str, ...] | None = None
    code_sim: CodeSim = "difflib"
    strict_recursion: bool = False
    google_rouge: bool = False


Item = tuple[Rule, str, tuple[str, ...]]  # rule, scored text, answers
Values = tuple[float, ...]


@dataclass(frozen=True)
class Refused:
    """What the metric had against a sample: the two sentences of the error."""

    message: str
    next_step: str


def score_items(items: Sequence[Item], jobs: int | None = None) -> list[Values | Refused]:
    """Values of every item, in order: the score, then partial match (passkey) or the Google ROUGE columns.

    Args:
        jobs: processes at most; None: one for each core this process may use.
    """
    unique = list(dict.fromkeys(items))
    costs = [_cost(item) for item in unique]
    workers = min(jobs or cores(), int(sum(costs) / _WORTH_A_POOL) + 1)
    results = _pooled(unique, costs, workers) if workers > 1 else None
    if results is None:
        results = [_values(item) for item in unique]
    known = dict(zip(unique, results, strict=True))
    return [known[item] for item in items]


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _values(item: Item) -> Values | Refused:
    rule, text, answers = item
    try:
        best = score(
            rule.metric,
            text,
            answers,
            rule.all_classes,
            code_sim=rule.code_sim,
            strict_recursion=rule.strict_recursion,
        )
    except BadValue as error:
        return Refused(error.message, error.next_step)
    if rule.metric == "passkey":
        return best, score("passkey_partial", text, answers)
    if rule.google_rouge:
        from lcbench.scoring.google_rouge import google_rouge

        return best, *google_rouge(text, answers)
    return (best,)


def _cost(item: Item) -> float:
    rule, text, answers = item
    size = len(text) + sum(map(len, answers)) + 20
    return size * (_SECONDS_GOOGLE if rule.google_rouge else _SECONDS.get(rule.metric, _SECONDS_OTHER))


def _pooled(items: Sequence[Item], costs: Sequence[float], workers: int) -> list[Values | Refused] | None:
    """The values, from a pool of processes; None when no pool can be had here (then one process does it all)."""
    order = sorted(range(len(items)), key=costs.__getitem__, reverse=True)
    chunks = _chunks(order, costs, workers)
    results: list[Values | Refused | None] = [None] * len(items)
    forking = _may_fork()
    if forking and any(item[0].metric.endswith("_zh") and item[0].metric != "retrieval_zh" for item in items):
        from lcbench.scoring.metrics import dictionary

        dictionary.load()  # once, here: forked processes share the dictionary
    context = multiprocessing.get_context("fork" if forking else "spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts) as pool:
            try:
                work = [[items[i] for i in chunk] for chunk in chunks]
                for chunk, values in zip(chunks, pool.map(_chunk_values, work), strict=True):
                    for index, value in zip(chunk, values, strict=True):
                        results[index] = value
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except (BrokenProcessPool, OSError, PermissionError):
        return None
    return [value for value in results if value is not None]


def _chunks(order: Sequence[int], costs: Sequence[float], workers: int) -> list[list[int]]:
    """Pieces of about equal work, the dearest items first; eight a worker, so that none waits long for the last."""
    share = sum(costs) / (8 * workers)
    chunks: list[list[int]] = [[]]
    filled = 0.0
    for index in order:
        if filled >= share:
            chunks.append([])
            filled = 0.0
        chunks[-1].append(index)
        filled += costs[index]
    return chunks


def _chunk_values(items: Sequence[Item]) -> list[Values | Refused]:
    return [_values(item) for item in items]


def _ignore_interrupts() -> None:
    """Ctrl-C is for the parent, which ends the pool: no tracebacks of workers."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _may_fork() -> bool:
    """Forked processes start at once and share what is loaded; safe where no other thread can hold a lock."""
    return sys.platform == "linux" and threading.active_count() == 1
