"""The samples behind the numbers, as the page's script reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcbench.config.home import home
from lcbench.errors import LcbenchError
from lcbench.reporting.page.visible import cut, visible
from lcbench.reporting.samples import Samples
from lcbench.reporting.table import Column, Line, Report
from lcbench.scoring.aggregate import bucket_of
from lcbench.scoring.per_sample import ScoredSample
from lcbench.store.rundir import RunDirectory

BUDGET = 24_000_000
"""Characters of samples that a page may hold; mail refuses much larger attachments."""

_CAPS = (20_000, 6_000, 2_000, 600, 200)  # most characters of one text, tried in this order
_END = 200  # characters of each end of a prompt
_MOST_ANSWERS = 20


def embed(
    report: Report, samples: Samples, runs: Sequence[RunDirectory]
) -> tuple[str, dict[tuple[Line, Column], str], int]:
    """JSON for the page, the id of each whole task's cell in it, and the characters at which texts are cut.

    The JSON has ``tasks`` (what the samples of one task of one run share: ids, answers, lengths, ends of prompts) and
    ``cells`` (what one method made of them). It holds no ``<``, ``>`` and ``&``, so nothing in it can end its script
    element or begin a comment.
    """
    prompts = {str(run.path): _Prompts(run) for run in runs}
    for longest in _CAPS:
        data, ids = _data(report, samples, prompts, longest)
        text = json_for_script(data)
        if len(text) <= BUDGET:
            break
    return text, ids, longest


def json_for_script(data: Any) -> str:
    """JSON that may stand in a script element: no ``<``, ``>``, ``&`` and no line separators, all as ``\\uXXXX``."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _data(
    report: Report, samples: Samples, prompts: Mapping[str, _Prompts], longest: int
) -> tuple[dict[str, Any], dict[tuple[Line, Column], str]]:
    tasks: list[dict[str, Any]] = []
    places: dict[tuple[str, str], tuple[int, dict[str, int]]] = {}
    cells: dict[str, Any] = {}
    ids: dict[tuple[Line, Column], str] = {}
    for (line, column), found in samples.items():
        run = report.cells[line, column].run
        if (run, line.name) not in places:
            places[run, line.name] = (len(tasks), {})
            tasks.append(_task(line, prompts[run]))
        number, rows = places[run, line.name]
        key = str(len(ids))
        ids[line, column] = key
        made = []
        for sample in found:
            if sample.record.id not in rows:
                rows[sample.record.id] = len(rows)
                _add_row(tasks[number], line, sample, prompts[run], longest)
            made.append(_made(rows[sample.record.id], sample, longest))
        title = f"{report.label(column)} on {line.name}"
        cells[key] = {"title": visible(title), "task": number, "rows": made}
    return {"tasks": tasks, "cells": cells}, ids


def _task(line: Line, prompts: _Prompts) -> dict[str, Any]:
    begin, end = prompts.example(line.name)
    return {
        "name": visible(line.name),
        "begin": visible(begin),
        "end": visible(end),
        "ids": [],
        "answers": [],
        "lengths": [],
        "about": [],
        "begins": [],
        "ends": [],
    }


def _add_row(task: dict[str, Any], line: Line, sample: ScoredSample, prompts: _Prompts, longest: int) -> None:
    record = sample.record
    begin, end = prompts.ends(line.name, record.id)
    answers = [cut(visible(answer), longest) for answer in record.answers[:_MOST_ANSWERS]]
    if len(record.answers) > _MOST_ANSWERS:
        answers.append(f"⟨{len(record.answers) - _MOST_ANSWERS} more⟩")
    task["ids"].append(cut(visible(record.id), 200))
    task["answers"].append(answers)
    task["lengths"].append(length_of(line, sample))
    task["about"].append(cut(visible(_about(sample)), 500))
    task["begins"].append(visible(begin))
    task["ends"].append(visible(end))


def length_of(line: Line, sample: ScoredSample) -> str:
    """The length under which the sample is counted in the report's lines: words of a passkey, a LongBench-E bucket."""
    record = sample.record
    if line.metric == "passkey":
        words = record.meta.get("length_words", record.length)
        return f"{words:g}" if isinstance(words, float) else str(words)
    if line.name.partition("@")[0].endswith("_e") and record.length is not None:
        return bucket_of(record.length)
    return ""


def _about(sample: ScoredSample) -> str:
    record = sample.record
    facts = [] if record.length is None else [f"length {record.length:,}"]
    for name in ("depth", "repeat"):
        value = record.meta.get(name)
        if isinstance(value, int | float):
            facts.append(f"{name} {value:.3g}")
    return ", ".join(facts)


def _made(row: int, sample: ScoredSample, longest: int) -> list[Any]:
    record = sample.record
    return [
        row,
        None if sample.score is None else round(100 * sample.score, 2),
        cut(visible(record.pred), longest),
        len(record.pred),
        record.prompt_tokens,
        None if record.kept_tokens is None else round(record.kept_tokens, 1),
        record.new_tokens,
        record.kv_bytes,
        record.kv_bytes_full,
        record.memory == "simulated",
        record.truncated_from,
        None if record.error is None else cut(visible(record.error), 2000),
    ]


class _Prompts:
    """Ends of a run's prompts: of every row where its data are at hand and the same, else of the one in run.json."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._known: dict[str, dict[str, tuple[str, str]]] = {}

    def example(self, task: str) -> tuple[str, str]:
        """The ends of one prompt of the task as the model read it; empty where run.json has none."""
        facts = self._facts(task)
        begin, end = facts.get("prompt_begins"), facts.get("prompt_ends")
        return (begin, end) if isinstance(begin, str) and isinstance(end, str) else ("", "")

    def ends(self, task: str, sample: str) -> tuple[str, str]:
        """The ends of one sample's prompt before chat format and cutting; empty when its data are not at hand."""
        if task not in self._known:
            self._known[task] = self._render(task)
        return self._known[task].get(sample, ("", ""))

    def _render(self, name: str) -> dict[str, tuple[str, str]]:
        from lcbench.tasks.registry import resolve

        wanted = self._facts(name).get("data_sha256")
        folder: Path = home()
        try:
            (task,) = resolve(name)
            limit = self._run.spec.get("limit")
            loaded = task.load(folder, limit if isinstance(limit, int) else None)
            if wanted is not None and loaded.sha256 != wanted:
                return {}
            found = {}
            for row in loaded.rows:
                asked = task.without_context(row) if self._run.spec.get("context") == "none" else row
                text = task.prompt(asked, folder).text
                found[row.id] = (text[:_END], text[-_END:])
            return found
        except (LcbenchError, OSError, ValueError):
            return {}  # data not downloaded, a task of a package that is not installed: the page says so

    def _facts(self, task: str) -> Mapping[str, Any]:
        tasks = self._run.provenance.get("tasks")
        facts = tasks.get(task) if isinstance(tasks, Mapping) else None
        return facts if isinstance(facts, Mapping) else {}
