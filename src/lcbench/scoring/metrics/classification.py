"""classification: the label named, shared with the other labels named (`classification_score`, same file)."""

from __future__ import annotations

from collections.abc import Sequence

from lcbench.errors import BadValue


def classification(prediction: str, answer: str, all_classes: Sequence[str] | None) -> float:
    """1 / (number of labels found in the prediction) when the right one is among them, else 0.0.

    Labels are found as substrings, upper and lower case apart. Then labels that are a proper part of the answer are
    taken out, with the official slip: they are removed from the list that is being walked, so the one after each
    removed label is never looked at. Labels ``a, b, c, abc`` with answer and prediction ``abc`` give 1/2, not 1. A
    longer label that contains the answer is not taken out.

    Raises:
        BadValue: ``all_classes`` is None.
    """
    if all_classes is None:
        raise BadValue("The metric classification needs the labels, but all_classes is null.", "Give all_classes.")
    found = [label for label in all_classes if label in prediction]
    position = 0
    while position < len(found):
        label = found[position]
        if label in answer and label != answer:
            found.remove(label)
        position += 1
    return 1.0 / len(found) if answer in found else 0.0
