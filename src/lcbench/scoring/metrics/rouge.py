"""rouge: ROUGE-L F1 as the package `rouge` 1.0.1 defines it (`rouge_score` in `LongBench/metrics.py`).

It is not the ROUGE-L of Google's `rouge-score`, and the two differ by up to nine points on summaries:

* a text is cut at every full stop character (decimals and abbreviations too); empty pieces are dropped, but a piece of
  blanks alone stays as one empty word;
* words are whatever stands between white space: no lower-casing, no stemming, punctuation stays attached;
* lengths and matches are numbers of *distinct* words; matches are the words of a union of longest common subsequences,
  one for each pair of a reference piece and a prediction piece;
* F = 2PR / (P + R + 1e-8), so that a perfect match gives 0.999999995.

A side without pieces (empty, or full stops alone) scores 0.0: the official scorer catches every exception.
"""

from __future__ import annotations

from collections.abc import Sequence

from lcbench.scoring.metrics.lcs import recovered_words, walk_steps

RECURSION_STEPS = 990
"""Steps of the package's recursive walk that fit into Python's default limit of 1,000 frames in the official script."""


def rouge(prediction: str, answer: str, *, strict_recursion: bool = False) -> float:
    """ROUGE-L F1, 0 to 1.

    Args:
        strict_recursion: give 0.0 where the official script, with Python's default recursion limit, runs out of stack
            and counts 0.0: when the walk back over any pair of pieces takes more than `RECURSION_STEPS` steps.
    """
    return rouge_of_pieces(_pieces(prediction), _pieces(answer), RECURSION_STEPS if strict_recursion else None)


def rouge_of_pieces(
    prediction: Sequence[Sequence[str]], reference: Sequence[Sequence[str]], most_steps: int | None
) -> float:
    """The score of two texts in pieces of words. ``most_steps`` is the longest walk allowed, None for any."""
    if not prediction or not reference:
        return 0.0
    if most_steps is not None and _too_deep(prediction, reference, most_steps):
        return 0.0
    predicted_sets = [set(piece) for piece in prediction]
    reference_sets = [set(piece) for piece in reference]
    predicted_words = set().union(*predicted_sets)
    reference_words = set().union(*reference_sets)
    matches = _union_size(prediction, predicted_sets, reference, reference_sets, predicted_words & reference_words)
    recall = matches / len(reference_words)
    precision = matches / len(predicted_words)
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _pieces(text: str) -> list[list[str]]:
    return [piece.split() or [""] for piece in text.split(".") if piece]


def _union_size(
    prediction: Sequence[Sequence[str]],
    predicted_sets: Sequence[set[str]],
    reference: Sequence[Sequence[str]],
    reference_sets: Sequence[set[str]],
    missing: set[str],
) -> int:
    """Distinct words in the union of the recovered subsequences of all pairs of pieces.

    The union cannot hold more than the words both texts have (``missing`` at the start), so a pair is worth the work
    only while it shares a word that has not been found yet. That skips most pairs and changes nothing.
    """
    total = len(missing)
    for piece, piece_words in zip(reference, reference_sets, strict=True):
        wanted = piece_words & missing
        if not wanted:
            continue
        for other, other_words in zip(prediction, predicted_sets, strict=True):
            if wanted.isdisjoint(other_words):
                continue
            shared = piece_words & other_words
            # A pair that shares one word alone has a subsequence of that word.
            wanted.difference_update(shared if len(shared) == 1 else recovered_words(piece, other, shared))
            if not wanted:
                break
        missing -= piece_words - wanted
    return total - len(missing)


def _too_deep(prediction: Sequence[Sequence[str]], reference: Sequence[Sequence[str]], most_steps: int) -> bool:
    return any(
        len(piece) + len(other) > most_steps and walk_steps(piece, other) > most_steps
        for piece in reference
        for other in prediction
    )
