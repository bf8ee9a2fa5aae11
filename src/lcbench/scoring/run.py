"""Scoring a run directory, a predictions file or a folder of them, into one `ScoreTable`."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lcbench import __version__
from lcbench.errors import BadValue, CorruptFile, NotARun, UnknownName, UsageError
from lcbench.scoring.aggregate import task_score
from lcbench.scoring.benchmark import assign, with_lengths
from lcbench.scoring.bootstrap import Bootstrap, Replicates
from lcbench.scoring.files import SUFFIXES, find_files, read_file
from lcbench.scoring.groups import Groups
from lcbench.scoring.judge.apply import judged_score, remarks, without_context
from lcbench.scoring.judge.grading import Grading, Verdicts
from lcbench.scoring.longscore.ladder import Scored, is_no_context
from lcbench.scoring.longscore.result import LongScoreOptions, long_scores
from lcbench.scoring.metrics import CODE_SIM, METRICS, CodeSim
from lcbench.scoring.parallel import Item, Refused, Rule, Values, score_items
from lcbench.scoring.remarks import of_predictions, of_run
from lcbench.scoring.rows import scored_text, task_facts
from lcbench.scoring.samples import LONGBENCH, LONGBENCH_E, TaskSamples, from_record, task_versions
from lcbench.scoring.skipped import skipped_of, skipped_prompts
from lcbench.scoring.table import MethodScores, ScoreTable, TaskScore
from lcbench.store.bench_folder import is_bench_only
from lcbench.store.run_file import RUN_FILE, SHARDS
from lcbench.store.rundir import RunDirectory


@dataclass(frozen=True)
class ScoreOptions:
    """How to score.

    Attributes:
        code_sim: definition of code similarity: "difflib" (official requirements) or "levenshtein".
        strict_recursion: rouge gives 0.0 where the official script overflows its stack.
        rouge_score: add Google's ROUGE columns to the rouge tasks.
        jobs: processes at most; None: all cores.
        seed, resamples: of the bootstrap.
        longscore: how LongScore is made.

    Raises:
        BadValue, UnknownName: a value it cannot take.
    """

    code_sim: CodeSim = "difflib"
    strict_recursion: bool = False
    rouge_score: bool = False
    jobs: int | None = None
    seed: int = 0
    resamples: int = 2000
    longscore: LongScoreOptions = LongScoreOptions()

    def __post_init__(self) -> None:
        if self.code_sim not in CODE_SIM:
            raise UnknownName("code_sim definition", self.code_sim, CODE_SIM)
        for name, least in (("jobs", 1), ("seed", 0), ("resamples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadValue(f"{name}={value} is below the least value {least}.", f"Use {least} or more.")

    def record(self) -> dict[str, Any]:
        """What scores.json keeps of them; the number of processes changes nothing."""
        return {
            "code_sim": self.code_sim,
            "strict_recursion": self.strict_recursion,
            "rouge_score": self.rouge_score,
            "seed": self.seed,
            "resamples": self.resamples,
            "confidence": Bootstrap.confidence,
            "longscore": self.longscore.record(),
        }


DEFAULTS = ScoreOptions()
NO_LADDER = (
    "No LongScore: no task here exists at several lengths (100-LongBench, LongBench-E, passkey, or tasks that differ "
    "in their length alone)."
)


def score_run(run: RunDirectory, options: ScoreOptions = DEFAULTS) -> dict[str, Any]:
    """Scores of a run directory as they go into its scores.json. Raises as `score_path`."""
    return score_directory(run, options).to_dict()


def score_path(
    path: Path | str,
    options: ScoreOptions = DEFAULTS,
    benchmark: str | None = None,
    grading: Grading | None = None,
) -> ScoreTable:
    """Score whatever ``path`` is: a run directory, a predictions file, a folder of them, a folder of such folders.

    Args:
        benchmark: "longbench" or "longbench-e" for prediction files; None guesses. A run knows its own.
        grading: a judge for the tasks that one can grade, of a run; None: the metrics of the tasks.

    Raises:
        UsageError: nothing there, two files of one dataset, or ``benchmark`` given for a run.
        UnknownName: a file that is not named after a task. NotARun: a folder without anything to score.
        CorruptFile: a file that cannot be read or scored (file and line named).
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "folder" and (path / RUN_FILE).exists():
        if benchmark is not None:
            raise BadValue(f"{path} is a run directory, which knows its benchmarks.", "Leave --benchmark out.")
        return score_directory(RunDirectory.open(path), options, grading)
    if grading is not None:
        raise BadValue(
            f"{path} is no run directory, and a judge grades runs only.", "Give a run, or leave --judge out."
        )
    notes: list[str] = []
    if kind == "file":
        inputs = {_shown(path.resolve().parent): assign([read_file(path)], benchmark, path.parent, notes)}
        return _table("file", _shown(path), inputs, options, notes)
    folders = _folders(path)
    inputs = {}
    for name, folder in folders.items():
        own: list[str] = []
        inputs[name] = assign([read_file(file) for file in find_files(folder).values()], benchmark, folder, own)
        notes += [f"{name}: {note}" if len(folders) > 1 else note for note in own]
    return _table("folder", _shown(path), inputs, options, notes)


def _nothing_there(run: RunDirectory) -> NotARun:
    """A run without a record: not begun, or every prompt was longer than the window and left out."""
    tasks = run.provenance.get("tasks") or {}
    left_out = sum(int(facts.get("skipped") or 0) for facts in tasks.values())
    if left_out and not any(int(facts.get("rows") or 0) > int(facts.get("skipped") or 0) for facts in tasks.values()):
        each = ", ".join(f"{task}: {count}" for task, count in skipped_prompts(run).items())
        return NotARun(
            f"{run.path} has no predictions: all {left_out} prompts were longer than the window and skipped ({each}).",
            "Run it with --over-length truncate, with shorter texts, or with a model of a longer window.",
        )
    if is_bench_only(run.info):
        return NotARun(
            f"{run.path} holds measurements of lcbench bench, no predictions.", f"Show them: lcbench report {run.path}"
        )
    return NotARun(f"{run.path} has no predictions yet.", "Start or continue the run first: lcbench run")


def score_directory(run: RunDirectory, options: ScoreOptions = DEFAULTS, grading: Grading | None = None) -> ScoreTable:
    """Score every method and task of a run that has records. Raises CorruptFile, UnknownName, and as the judge."""
    inputs: dict[str, list[TaskSamples]] = {}
    waiting: dict[str, list[TaskSamples]] = {}
    for method in run.methods:
        for task in run.tasks:
            if not is_no_context(task):
                samples = _of_run(run, method, task)
                (waiting if samples.pending else inputs).setdefault(method, []).append(samples)
    if not any(samples.samples for found in inputs.values() for samples in found):
        raise _nothing_there(run)
    notes = of_run(run, inputs, [task for task in run.tasks if not is_no_context(task)])
    verdicts: Mapping[tuple[str, str], Verdicts] = {}
    if grading is not None:
        verdicts = grading.grade(inputs, without_context(run))
        if not verdicts:
            raise BadValue(f"{run.path} has no task that a judge grades.", "Leave --judge out.")
        notes += remarks(grading, verdicts, list(inputs))
    table = _table("run", _shown(run.path), inputs, options, notes, verdicts, waiting)
    return table if grading is None else replace(table, judge=grading.record())


def _of_run(run: RunDirectory, method: str, task: str) -> TaskSamples:
    facts = task_facts(task)
    numbered = run.numbered_records(method, task)
    source = str(run.predictions_path(method, task))
    samples = tuple(from_record(record, f"line {number}") for number, record in numbered)
    versions = task_versions([record for _, record in numbered])
    extended = facts.benchmark == LONGBENCH and task.partition("@")[0].endswith("_e")
    benchmark = LONGBENCH_E if extended else facts.benchmark
    skipped = skipped_of(run, method, task)
    pending = not samples and not skipped.all
    return with_lengths(
        TaskSamples(task, facts, benchmark, samples, source, versions, skipped.count, skipped.lengths, pending)
    )


def _kind(path: Path) -> Literal["file", "folder"]:
    """Raises UsageError for what is neither, is not there or cannot be looked at."""
    step = "Give a run directory, a predictions file or a folder of them."
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path} does not exist.", step) from None
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or type(error).__name__}.", step) from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UsageError(f"{path} is neither a file nor a folder.", step)
    return "folder" if stat.S_ISDIR(mode) else "file"


def _folders(path: Path) -> dict[str, Path]:
    """The folder itself when it holds prediction files, else its sub-folders that do; name to folder."""
    if find_files(path):
        return {_shown(path): path}
    runs = sorted(p.parent for p in path.glob(f"*/{RUN_FILE}"))
    if runs:
        raise NotARun(f"{path} holds run directories, but is none itself.", f"Score one: lcbench score {runs[-1]}")
    if (path / SHARDS).is_dir():
        step = f"Join them when all are done: lcbench merge {path}"
        raise NotARun(f"{path} is a run in shards that are not merged yet.", step)
    below = {_shown(p): p for p in sorted(path.iterdir()) if p.is_dir() and find_files(p)}
    if not below:
        raise NotARun(
            f"{path} is neither a run directory (no {RUN_FILE}) nor a folder of predictions (no {SUFFIXES[0]} files).",
            "Give a run directory, a predictions file or a folder of them.",
        )
    return below


def _shown(path: Path) -> str:
    """The last part of a path, in characters that can be printed and written; "." has the name of its folder."""
    return path.resolve().name.encode("utf-8", "replace").decode() or str(path)


def _table(
    source: str,
    name: str,
    inputs: Mapping[str, Sequence[TaskSamples]],
    options: ScoreOptions,
    notes: Sequence[str],
    verdicts: Mapping[tuple[str, str], Verdicts] | None = None,
    waiting: Mapping[str, Sequence[TaskSamples]] | None = None,
) -> ScoreTable:
    """The table of ``inputs``; tasks ``waiting`` for their first answer are only known to LongScore."""
    values = _all_values([task for tasks in inputs.values() for task in tasks], options)
    bootstrap = Bootstrap(options.seed, options.resamples)
    methods = {}
    scored: dict[str, list[Scored]] = {}
    for method, tasks in inputs.items():
        scores: dict[str, TaskScore] = {}
        replicates: dict[str, Replicates | None] = {}
        for task in tasks:
            found, verdict = next(values), (verdicts or {}).get((method, task.task))
            if verdict is not None:
                score, draws, all_rows = judged_score(task, verdict, bootstrap)
            else:
                score, draws = task_score(task, found, options.code_sim, bootstrap)
                all_rows = Scored(task, found)
            scores[task.task], replicates[task.task] = score, draws
            scored.setdefault(method, []).append(all_rows)
        groups = Groups(scores, replicates, bootstrap)
        methods[method] = MethodScores(scores, groups.categories, groups.overall)
    more = [*notes, *of_predictions(inputs, planned=source == "run"), *_definitions(methods, options)]
    for method in scored:
        scored[method] += [Scored(task, ()) for task in (waiting or {}).get(method, ())]
    ladders = long_scores(scored, options.longscore, bootstrap)
    if options.longscore.wanted and ladders is None:
        more.append(NO_LADDER)
    return ScoreTable(source, name, methods, options.record(), tuple(more), __version__, ladders)


def _definitions(methods: Mapping[str, MethodScores], options: ScoreOptions) -> list[str]:
    """Which of the definitions in use was taken, where it matters to a score."""
    metrics = {task.metric for method in methods.values() for task in method.tasks.values()}
    found = []
    if "code_sim" in metrics:
        official = (
            "official requirements" if options.code_sim == CODE_SIM[0] else "as with python-Levenshtein installed"
        )
        found.append(f"code_sim: {options.code_sim} ({official}).")
    if options.strict_recursion and metrics & {"rouge", "rouge_zh"}:
        found.append("rouge: strict recursion, 0 where the official script overflows its stack.")
    return found


def _all_values(tasks: Sequence[TaskSamples], options: ScoreOptions) -> Iterator[list[Values | None]]:
    """For each task in turn the values of its samples, None for failed ones."""
    items: list[Item] = []
    for task in tasks:
        rule = _rule(task, options)
        items += [(rule, scored_text(task.facts, s.prediction), s.answers) for s in task.samples if s.ok]
    results = iter(score_items(items, options.jobs))
    for task in tasks:
        values: list[Values | None] = []
        for sample in task.samples:
            value = next(results) if sample.ok else None
            if isinstance(value, Refused):
                raise CorruptFile(f"{task.source}, {sample.where}: {value.message}", value.next_step)
            values.append(value)
        yield values


def _rule(task: TaskSamples, options: ScoreOptions) -> Rule:
    metric = task.facts.metric
    if metric not in METRICS:
        raise UnknownName("metric", metric, METRICS, where=f" of task {task.task}")
    return Rule(
        metric,
        task.all_classes if metric == "classification" else None,
        options.code_sim if metric == "code_sim" else "difflib",
        options.strict_recursion,
        options.rouge_score and metric == "rouge",
    )
