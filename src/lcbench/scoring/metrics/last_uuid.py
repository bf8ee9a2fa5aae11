"""The last UUID of the answer (100-LongBench: kv_retrieval; `kv_retrieval_score`)."""

from __future__ import annotations

import re

_UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")


def last_uuid(prediction: str, answer: str) -> float:
    """1.0 when the last 8-4-4-4-12 hexadecimal number in ``prediction`` is ``answer``, case and all, else 0.0.

    An answer that recites the asked key before its value is right; one that goes on to the next link is wrong.
    """
    found = _UUID.findall(prediction)
    return float(bool(found) and found[-1] == answer)
