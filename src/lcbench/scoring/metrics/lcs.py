"""Longest common subsequences of word lists: the one that `rouge` 1.0.1 recovers, and lengths for characters.

There are many longest common subsequences of two lists; which words are in the recovered one depends on how ties are
broken, and `rouge` counts the distinct words of a union of them. So ties must be broken as that package breaks them:
walking back from the two ends, equal words are taken; otherwise the walk steps back in the first list only when that
cell of the length table is strictly larger than its rival, else in the second list.

The table itself is never made. Its rows are kept as bit vectors (H. Hyyrö, "Bit-parallel LCS-length computation
revisited", 2004): bit j of row i says whether the length grows from column j to j + 1. That one bit decides every tie:
where the two words differ, the cell above is strictly larger than the one to the left exactly if the bit is set.
"""

from __future__ import annotations

from collections.abc import Sequence


def recovered_words(first: Sequence[str], second: Sequence[str], shared: set[str]) -> list[str]:
    """Words of the recovered longest common subsequence, last first.

    Args:
        first: what `rouge` passes first, a piece of the reference.
        second: a piece of the prediction.
        shared: the words that occur in both.
    """
    # Words without a partner neither match nor change a length: their columns and rows can be left out.
    columns: dict[str, int] = {}
    bit = 1
    for word in second:
        if word in shared:
            columns[word] = columns.get(word, 0) | bit
            bit <<= 1
    full = bit - 1
    rows: list[tuple[str, int, int]] = []
    state = full
    for word in first:
        match = columns.get(word)
        if match is not None:
            held = state & match
            state = ((state + held) | (state - held)) & full
            rows.append((word, match, full ^ state))
    # From any two cells of a row between which the length does not grow, the walk takes the same words of `first`:
    # if a match stands between them, the length there is one more than that of the row above, so the row's word is
    # taken from the left cell too, and the walks go on from cells of which the same can be said. So every row may be
    # entered at its highest set bit within reach, whatever matches lie to the right of it.
    found = []
    reach = full
    for word, match, grown in reversed(rows):
        top = (grown & reach).bit_length()
        if not top:
            break
        if match >> (top - 1) & 1:
            found.append(word)
            reach = (1 << (top - 1)) - 1
    return found


def walk_steps(first: Sequence[str], second: Sequence[str]) -> int:
    """Steps of the walk back until either list is used up: what the recursion depth of `rouge` grows with."""
    columns: dict[str, int] = {}
    for position, word in enumerate(second):
        columns[word] = columns.get(word, 0) | 1 << position
    full = (1 << len(second)) - 1
    state = full
    rows = []
    for word in first:
        match = columns.get(word, 0)
        held = state & match
        state = ((state + held) | (state - held)) & full
        rows.append((match, full ^ state))
    left, steps = len(second), 0
    for match, grown in reversed(rows):
        if not left:
            break
        stop = (match | grown) & ((1 << left) - 1)
        top = stop.bit_length()
        if not top:
            return steps + left
        steps += left - top + 1
        left = top - 1 if match >> (top - 1) & 1 else top
    return steps


def common_length(first: str, second: str) -> int:
    """Length of the longest common subsequence of two texts, in characters."""
    columns: dict[str, int] = {}
    for position, character in enumerate(second):
        columns[character] = columns.get(character, 0) | 1 << position
    full = (1 << len(second)) - 1
    state = full
    for character in first:
        held = state & columns.get(character, 0)
        state = ((state + held) | (state - held)) & full
    return len(second) - state.bit_count()
