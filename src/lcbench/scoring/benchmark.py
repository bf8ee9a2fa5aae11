"""Is a set of prediction files LongBench or LongBench-E? The official files of both carry the same names and fields."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lcbench.errors import BadValue, CorruptFile, UnknownName
from lcbench.scoring.samples import LONGBENCH, LONGBENCH_E, TaskSamples
from lcbench.tasks.facts import TASK_FACTS

BENCHMARKS = (LONGBENCH, LONGBENCH_E)
_FOLDER = re.compile(r"pred_e|longbench[-_ ]?e", re.IGNORECASE)


def assign(files: Sequence[TaskSamples], wanted: str | None, folder: Path, note: list[str]) -> list[TaskSamples]:
    """The files with their benchmark set: ``wanted``, or what speaks from names, result.json and numbers of rows.

    Args:
        folder: where the files lie; its name and a result.json in it are hints.
        note: gets a sentence when LongBench was chosen though LongBench-E is as likely, or LongBench-E was guessed.

    Raises:
        UnknownName: ``wanted`` is no benchmark, or has no such task. CorruptFile: LongBench-E without lengths.
    """
    if wanted is not None and wanted not in BENCHMARKS:
        raise UnknownName("benchmark", wanted, BENCHMARKS)
    ours = [f for f in files if f.facts.benchmark == LONGBENCH]
    chosen = wanted or (_guess(ours, folder, note) if ours else LONGBENCH)
    result = []
    for one in files:
        if one.facts.benchmark == LONGBENCH:
            result.append(_as(one, chosen, wanted is not None))
        elif wanted is not None:
            raise BadValue(f"{one.source} belongs to {one.facts.benchmark}, not to {wanted}.", "Leave --benchmark out.")
        else:
            result.append(one)
    return result


def _as(one: TaskSamples, benchmark: str, given: bool) -> TaskSamples:
    if one.task.partition("@")[0].endswith("_e") and not given:
        benchmark = LONGBENCH_E
    if benchmark == LONGBENCH_E and not one.facts.e_split:
        names = [f.name for f in TASK_FACTS.values() if f.e_split]
        raise UnknownName("LongBench-E task", one.task, names, where=f" ({one.source})")
    return with_lengths(replace(one, benchmark=benchmark))


def with_lengths(one: TaskSamples) -> TaskSamples:
    """The samples as they are. Raises CorruptFile for a row of LongBench-E that does not tell its length."""
    for sample in one.samples if one.benchmark == LONGBENCH_E else ():
        if sample.length is None:
            raise CorruptFile(
                f"{one.source}, {sample.where}: 'length' is missing, and LongBench-E is scored by length.",
                "Mend that line; official files of LongBench-E can be scored as LongBench: --benchmark longbench",
            )
    return one


def _guess(files: Sequence[TaskSamples], folder: Path, note: list[str]) -> str:
    plain = [one for one in files if not one.task.partition("@")[0].endswith("_e")]
    if not plain:
        return LONGBENCH_E
    if any(not one.facts.e_split for one in plain) or any(s.length is None for one in plain for s in one.samples):
        return LONGBENCH
    shape = _result_shape(folder, {one.task for one in plain})
    if shape is not None:
        return _say(shape, "by its result.json", note)
    parts = folder.resolve().parts[-4:]
    if any(_FOLDER.fullmatch(part) for part in parts):
        return _say(LONGBENCH_E, "by the name of its folder", note)
    telling = [one for one in plain if one.facts.rows != one.facts.e_rows]
    as_plain = sum(len(one.samples) == one.facts.rows for one in telling)
    as_e = sum(len(one.samples) == one.facts.e_rows for one in telling)
    if as_e and not as_plain:
        return _say(LONGBENCH_E, "by its numbers of rows", note)
    if not as_plain:
        note.append(
            "Scored as LongBench. Nothing tells whether these are LongBench-E predictions; "
            "--benchmark longbench-e scores them as such."
        )
    return LONGBENCH


def _say(benchmark: str, why: str, note: list[str]) -> str:
    if benchmark == LONGBENCH_E:
        note.append(f"Scored as LongBench-E, {why}; --benchmark longbench scores it as LongBench.")
    return benchmark


def _result_shape(folder: Path, tasks: set[str]) -> str | None:
    """What the official result.json beside the files looks like: numbers, or numbers by length."""
    try:
        data: Any = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    values = [v for k, v in data.items() if k in tasks] if isinstance(data, Mapping) else []
    if values and all(isinstance(v, Mapping) for v in values):
        return LONGBENCH_E
    return LONGBENCH if values and all(isinstance(v, int | float) for v in values) else None
