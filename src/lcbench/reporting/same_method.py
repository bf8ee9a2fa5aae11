"""Which methods of several runs are the same: by their parameters, not by how they were spelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lcbench.store.rundir import RunDirectory

Key = tuple[str, tuple[tuple[str, str], ...]]


def key_of(run: RunDirectory, method: str) -> Key | None:
    """Name, parameters with their defaults, and calibration of a method; None where run.json does not say."""
    methods = run.provenance.get("methods")
    facts = methods.get(method) if isinstance(methods, Mapping) else None
    if not isinstance(facts, Mapping) or not isinstance(facts.get("parameters"), Mapping):
        return None
    settled: dict[str, Any] = {**facts["parameters"], "calibration_sha256": facts.get("calibration_sha256")}
    return str(facts.get("name")), tuple(sorted((str(k), str(v)) for k, v in settled.items()))


def same(a: RunDirectory, first: str, b: RunDirectory, second: str) -> bool:
    """Whether two ids of two runs are one method. Where a run does not tell its parameters, the id decides."""
    x, y = key_of(a, first), key_of(b, second)
    return first == second if x is None or y is None else x == y


def shown_ids(runs: Sequence[RunDirectory]) -> dict[tuple[str, str], str]:
    """(run, its method id) to the id under which all of ``runs`` show that method.

    ``snapkv`` and ``snapkv@budget=0.25``, its default, are both shown as the longer, which says more.
    """
    spelled: dict[Key, list[str]] = {}
    for run in runs:
        for method in run.methods:
            key = key_of(run, method)
            if key is not None and method not in spelled.setdefault(key, []):
                spelled[key].append(method)
    longest = {key: max(ids, key=len) for key, ids in spelled.items()}
    found = {}
    for run in runs:
        for method in run.methods:
            key = key_of(run, method)
            found[str(run.path), method] = method if key is None else longest[key]
    return found
