"""What must not be compared: other weights under one name, and other data or prompts under one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lcbench.reporting.pairing import rewrites_prompts, why_not
from lcbench.reporting.sides import Side
from lcbench.scoring.longscore.ladder import is_no_context
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

Identity = tuple[str, str, str]
Records = Mapping[tuple[str, str], Sequence[PredictionRecord]]

_UNKNOWN = "None"
_SETTINGS = ("max_input_tokens", "truncation", "context")


def told_apart(runs: Sequence[tuple[str, str, Identity]]) -> tuple[dict[str, str], list[str]]:
    """Folder to the name of its model, with what tells it from others of that name, and a note for every such name.

    Args:
        runs: (folder, name, (digest of the weights, dtype, load_in)).
    """
    shown: dict[str, str] = {}
    notes = []
    for name in dict.fromkeys(name for _, name, _ in runs):
        own = [(path, identity) for path, other, identity in runs if other == name]
        kinds = list(dict.fromkeys(identity for _, identity in own))
        names = dict(zip(kinds, _names(name, kinds), strict=True))
        shown.update({path: names[identity] for path, identity in own})
        if len(kinds) > 1:
            where = "; ".join(f"{names[k]}: {', '.join(p for p, identity in own if identity == k)}" for k in kinds)
            notes.append(f"{name} is the name of {len(kinds)} models here, which are not compared. {where}")
    return shown, notes


def _names(name: str, kinds: Sequence[Identity]) -> list[str]:
    if len(kinds) == 1:
        return [name]
    digests = {kind[0] for kind in kinds}
    length = next(n for n in (6, 12, 64, 1000) if len({digest[:n] for digest in digests}) == len(digests))
    found = []
    for digest, dtype, load_in in kinds:
        weights = "weights not known" if digest == _UNKNOWN else f"weights {digest[:length]}"
        told = [weights] if len(digests) > 1 else []
        told += [dtype] if len({kind[1] for kind in kinds}) > 1 and dtype != _UNKNOWN else []
        told += [load_in if load_in != _UNKNOWN else "not quantized"] if len({kind[2] for kind in kinds}) > 1 else []
        found.append(f"{name} [{', '.join(told) or 'dtype not known'}]")
    return found


def settings_of(runs: Sequence[tuple[RunDirectory, str, Records]]) -> tuple[dict[str, str], list[str]]:
    """Folder to what its model's runs are told apart by, "" where all of them may be compared, and notes that say why.

    Two runs of one model belong together unless `why_not` finds other data, another truncation or other prompts of a
    task that both have. A run that could stand with several goes to those with its own options.

    Args:
        runs: each with its model, and its records by (method, task).
    """
    names = folder_names([str(run.path) for run, _, _ in runs])
    found: dict[str, str] = {}
    notes = []
    for model in dict.fromkeys(model for _, model, _ in runs):
        groups: list[list[tuple[RunDirectory, Records]]] = []
        for run, _, records in (one for one in runs if one[1] == model):
            reasons = [_conflict(group, run, records) for group in groups]
            free = [group for group, why in zip(groups, reasons, strict=True) if not why]
            alike = [group for group in free if _options(group[0][0]) == _options(run)]
            if free:
                (alike or free)[0].append((run, records))
                continue
            notes += [f"not compared, {why}" for why in dict.fromkeys(reasons) if why]
            groups.append([(run, records)])
        for group in groups:
            title = " + ".join(names[str(run.path)] for run, _ in group) if len(groups) > 1 else ""
            found.update({str(run.path): title for run, _ in group})
    return found, notes


def _options(run: RunDirectory) -> tuple[object, ...]:
    return tuple(run.spec.get(key) for key in _SETTINGS)


def _conflict(group: Sequence[tuple[RunDirectory, Records]], run: RunDirectory, records: Records) -> str:
    """Why a run does not belong to a group, in words; "" where it does."""
    for other, theirs in group:
        for task in other.tasks:
            a, b = _asked(other, theirs, task), _asked(run, records, task)
            if a is None or b is None or is_no_context(task):
                continue
            by_id = {record.id: record for record in records[b.method, task]}
            both = [(one, by_id[one.id]) for one in theirs[a.method, task] if one.id in by_id]
            why = why_not(a, b, task, both)
            if why:
                return f"{other.path} and {run.path}: {why}"
    return ""


def _asked(run: RunDirectory, records: Records, task: str) -> Side | None:
    """A method of the run with answers of the task, best one that reads the prompt as it is."""
    sides = [Side(run, method) for method in run.methods if records.get((method, task))]
    return min(sides, key=rewrites_prompts, default=None)


def folder_names(paths: Sequence[str]) -> dict[str, str]:
    """Each path by its last part, or whole where last parts are the same."""
    last = [Path(path).resolve().name for path in paths]
    return {path: name if last.count(name) == 1 else path for path, name in zip(paths, last, strict=True)}
