"""Slow, plain restatements of the definitions, written without a look at lcbench's code. Used by the tests only."""

from __future__ import annotations

import itertools


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L of `rouge` 1.0.1: full length table, walk back cell by cell, union of distinct words."""
    hypothesis = [" ".join(s.split()) for s in prediction.split(".") if s]
    gold = [" ".join(s.split()) for s in reference.split(".") if s]
    if not hypothesis or not gold:
        return 0.0
    union: set[str] = set()
    for r, h in itertools.product(gold, hypothesis):
        union.update(recovered(r.split(" "), h.split(" "))[0])
    n = len({w for h in hypothesis for w in h.split(" ")})
    m = len({w for r in gold for w in r.split(" ")})
    p, r_ = len(union) / n, len(union) / m
    return 2.0 * ((p * r_) / (p + r_ + 1e-8))


def recovered(x: list[str], y: list[str]) -> tuple[list[str], int]:
    """The recovered longest common subsequence (first to last) and the number of steps of the walk."""
    table = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, j in itertools.product(range(1, len(x) + 1), range(1, len(y) + 1)):
        if x[i - 1] == y[j - 1]:
            table[i][j] = table[i - 1][j - 1] + 1
        else:
            table[i][j] = max(table[i - 1][j], table[i][j - 1])
    i, j, steps, words = len(x), len(y), 0, []
    while i and j:
        steps += 1
        if x[i - 1] == y[j - 1]:
            words.append(x[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words[::-1], steps


def matching_characters(a: str, b: str) -> int:
    """Characters in difflib's matching blocks of ``a`` and ``b``, its rule for popular characters included."""
    popular = set()
    if len(b) >= 200:
        popular = {c for c in b if b.count(c) > len(b) // 100 + 1}
    total, todo = 0, [(0, len(a), 0, len(b))]
    while todo:
        a0, a1, b0, b1 = todo.pop()
        i, j, size = _longest(a, b, a0, a1, b0, b1, popular)
        if size:
            total += size
            todo += [(a0, i, b0, j), (i + size, a1, j + size, b1)]
    return total


def _longest(a: str, b: str, a0: int, a1: int, b0: int, b1: int, popular: set[str]) -> tuple[int, int, int]:
    best_i, best_j, best = a0, b0, 0
    lengths: dict[int, int] = {}
    for i in range(a0, a1):
        new: dict[int, int] = {}
        for j in range(b0, b1):
            if a[i] == b[j] and b[j] not in popular:
                k = new[j] = lengths.get(j - 1, 0) + 1
                if k > best:
                    best_i, best_j, best = i - k + 1, j - k + 1, k
        lengths = new
    # Popular characters start no match, but they may lengthen one at both ends.
    while best_i > a0 and best_j > b0 and a[best_i - 1] == b[best_j - 1]:
        best_i, best_j, best = best_i - 1, best_j - 1, best + 1
    while best_i + best < a1 and best_j + best < b1 and a[best_i + best] == b[best_j + best]:
        best += 1
    return best_i, best_j, best


def indel_distance(a: str, b: str) -> int:
    """Insertions and deletions that turn ``a`` into ``b``, by the textbook table."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], previous if x == y else 1 + min(row[j], row[j - 1])
    return row[-1]
