"""Scoring many samples: equal ones once, on all cores where that pays.

On Linux the work is shared by forked processes: they start in milliseconds, have the samples and the dictionary already
and take pieces of work from a pipe until it is empty, this process among them. Elsewhere, or beside other threads, new
interpreters have to be started, which pays for far more work only.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lcbench.errors import BadValue
from lcbench.scoring.metrics import CodeSim, score

# Seconds that sharing the work costs, in all and for each process: less than is saved, or one process does it all.
_FORKING = (0.03, 0.02)
_SPAWNING = (0.5, 0.3)
_MOST_PIECES = 256  # a piece is named by one byte

# Rough seconds a character of prediction and answers takes, for cutting the work into equal pieces.
_SECONDS = {"rouge": 7e-8, "rouge_zh": 1.5e-6, "qa_f1_zh": 1.4e-6, "code_sim": 2e-7, "qa_f1": 1.2e-7}
_SECONDS_GOOGLE = 6e-6
_SECONDS_OTHER = 5e-8


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
    share: Callable[..., list[Values | Refused] | None] = _forked if _may_fork() else _spawned
    workers = _worth(sum(costs), jobs or cores(), *(_FORKING if share is _forked else _SPAWNING))
    results = share(unique, costs, workers) if workers > 1 else None
    if results is None:
        results = [_values(item) for item in unique]
    known = dict(zip(unique, results, strict=True))
    return [known[item] for item in items]


def _worth(seconds: float, most: int, once: float, each: float) -> int:
    """The number of processes, up to ``most``, that finishes work of ``seconds`` of one core soonest."""
    return min(range(1, most + 1), key=lambda n: seconds / n + (once + n * each if n > 1 else 0.0))


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


def _forked(items: Sequence[Item], costs: Sequence[float], workers: int) -> list[Values | Refused] | None:
    """The values, from this process and ``workers`` - 1 forked ones; None where no process can be had."""
    if any(item[0].metric in ("rouge_zh", "qa_f1_zh") for item in items):
        from lcbench.scoring.metrics import dictionary

        dictionary.load()  # once, here: forked processes share it
    pieces = _pieces(costs, workers)
    try:
        queue = _queue(len(pieces))
    except OSError:
        return None
    children: list[tuple[int, int]] = []
    results: dict[int, Values | Refused] = {}
    try:
        for _ in range(workers - 1):
            children.append(_fork(items, pieces, queue))
        results.update(_work(items, pieces, queue))
        for child in children:
            results.update(_collect(child[1]))
    except OSError:
        pass  # what could not be shared out is done below
    finally:
        os.close(queue)
        for pid, pipe in children:
            os.close(pipe)
            os.kill(pid, signal.SIGKILL)  # it has answered, or is not wanted any more
            os.waitpid(pid, 0)
    # A child that was killed (out of memory) has kept its pieces to itself.
    return [results[i] if i in results else _values(item) for i, item in enumerate(items)]


def _queue(pieces: int) -> int:
    """The reading end of a pipe that holds the number of every piece of work, one byte each, and then ends."""
    reading, writing = os.pipe()
    os.write(writing, bytes(range(pieces)))
    os.close(writing)
    return reading


def _work(items: Sequence[Item], pieces: Sequence[Sequence[int]], queue: int) -> dict[int, Values | Refused]:
    """Take pieces until there are no more. Reading one byte of a pipe gives each byte to one process alone."""
    found = {}
    while piece := os.read(queue, 1):
        for index in pieces[piece[0]]:
            found[index] = _values(items[index])
    return found


def _fork(items: Sequence[Item], pieces: Sequence[Sequence[int]], queue: int) -> tuple[int, int]:
    """Start a process that works and writes what it found to a pipe; its id and the reading end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its children
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(_work(items, pieces, queue), pipe)
            status = 0
        finally:
            os._exit(status)  # nothing of the parent's (buffers, exit handlers) may run twice
    os.close(writing)
    return pid, reading


def _collect(pipe: int) -> dict[int, Values | Refused]:
    """What a child found; nothing when it ended before it could tell."""
    with os.fdopen(pipe, "rb", closefd=False) as file:
        data = file.read()
    try:
        found: dict[int, Values | Refused] = pickle.loads(data)
    except (EOFError, pickle.UnpicklingError):
        return {}
    return found


def _spawned(items: Sequence[Item], costs: Sequence[float], workers: int) -> list[Values | Refused] | None:
    """The values, from new interpreters; None where they cannot be had."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    pieces = _pieces(costs, workers)
    results: dict[int, Values | Refused] = {}
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _ignore_interrupts) as pool:
            try:
                work = [[items[i] for i in piece] for piece in pieces]
                for piece, values in zip(pieces, pool.map(_all_values, work), strict=True):
                    results.update(zip(piece, values, strict=True))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except (BrokenProcessPool, OSError):
        return None
    return [results[i] for i in range(len(items))]


def _pieces(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Numbers of items in pieces of about equal work, the dearest first; some for each worker, so that none waits long
    for the last."""
    order = sorted(range(len(costs)), key=costs.__getitem__, reverse=True)
    share = sum(costs) / min(_MOST_PIECES // 2, 16 * workers)
    pieces: list[list[int]] = [[]]
    filled = 0.0
    for index in order:
        if filled >= share and len(pieces) < _MOST_PIECES:
            pieces.append([])
            filled = 0.0
        pieces[-1].append(index)
        filled += costs[index]
    return pieces


def _all_values(items: Sequence[Item]) -> list[Values | Refused]:
    return [_values(item) for item in items]


def _ignore_interrupts() -> None:
    """Ctrl-C is for the parent, which ends the pool: no tracebacks of workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _may_fork() -> bool:
    """Forked processes start at once and share what is loaded; safe where no other thread can hold a lock."""
    return sys.platform == "linux" and threading.active_count() == 1
