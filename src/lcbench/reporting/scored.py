"""Scores of a run for its readers: those of scores.json where they fit the predictions, else computed now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lcbench import __version__
from lcbench.errors import CorruptFile, LcbenchError
from lcbench.scoring.longscore.ladder import is_no_context
from lcbench.scoring.longscore.result import LongScoreOptions
from lcbench.scoring.run import DEFAULTS, ScoreOptions, score_run
from lcbench.scoring.skipped import skipped_of
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

_NO_JUDGE = (
    "scores.json was made by a judge and does not fit the predictions any more: QA and summaries are scored by the "
    "original metrics here; `lcbench score --judge` grades what is new"
)

Records = Mapping[tuple[str, str], Sequence[PredictionRecord]]


def scores_of(run: RunDirectory, records: Records) -> dict[str, Any]:
    """The run's scores.json when it fits its predictions, else the scores computed now (and not written).

    Options that scores.json was made with (`lcbench score --code-sim …`) are kept. A judge is not asked here: when its
    verdicts do not fit any more, the metrics of the tasks take their place, and a note says so.
    """
    stored = _stored(run)
    if stored is not None and _fits(run, stored, records):
        return stored
    made = score_run(run, options_of(run))
    if stored is not None and "judge" in stored:
        made["notes"] = [*made["notes"], _NO_JUDGE]
    return made


def options_of(run: RunDirectory) -> ScoreOptions:
    """The options that the run's scores.json was made with; the defaults without one."""
    stored = _stored(run)
    try:
        if stored is None:
            return DEFAULTS
        names = ("code_sim", "strict_recursion", "rouge_score", "seed", "resamples")
        longscore = LongScoreOptions.from_record(stored["options"]["longscore"])
        return ScoreOptions(**{name: stored["options"][name] for name in names}, longscore=longscore)
    except (LcbenchError, KeyError, TypeError):
        return DEFAULTS


def is_judged(run: RunDirectory) -> bool:
    """Whether the run's scores.json was made by a judge."""
    return "judge" in (_stored(run) or {})


def shared_options(runs: Iterable[RunDirectory]) -> ScoreOptions:
    """The options of all ``runs`` where they agree, else the defaults."""
    found = {options_of(run) for run in runs}
    return found.pop() if len(found) == 1 else DEFAULTS


def _stored(run: RunDirectory) -> dict[str, Any] | None:
    try:
        return run.scores()
    except CorruptFile:
        return None


def _fits(run: RunDirectory, stored: Mapping[str, Any], records: Records) -> bool:
    """Whether stored scores are those of the predictions: same lcbench, not older, and as many good and bad rows."""
    try:
        when = (run.path / "scores.json").stat().st_mtime_ns
        files = [run.predictions_path(*key) for key, found in records.items() if found]
        if stored["lcbench"] != __version__ or any(file.stat().st_mtime_ns > when for file in files):
            return False
        counted = {
            (method, task): (score["n"] + score.get("n_filtered", 0), score["n_error"], score.get("n_judge_failed", 0))
            for method, scores in stored["methods"].items()
            for task, score in scores["tasks"].items()
        }
        found = {
            (method, task): rows
            for (method, task), rows in records.items()
            if not is_no_context(task) and (rows or skipped_of(run, method, task).all)
        }
        return counted.keys() == found.keys() and all(
            (n + unjudged, n_error - unjudged) == (sum(r.ok for r in found[key]), sum(not r.ok for r in found[key]))
            for key, (n, n_error, unjudged) in counted.items()
        )
    except (OSError, KeyError, TypeError, AttributeError):
        return False
