"""Which samples of two methods are the same question asked in the same way, and why others cannot be paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lcbench.errors import BadValue
from lcbench.reporting.same_method import key_of
from lcbench.reporting.scored import is_judged, shared_options
from lcbench.reporting.sides import Side
from lcbench.scoring.longscore.ladder import is_no_context
from lcbench.scoring.paired import Pairs
from lcbench.scoring.per_sample import ScoredSample, score_samples
from lcbench.scoring.rows import task_facts
from lcbench.store.schema import PredictionRecord

_SETTINGS = {
    "max_input_tokens": ("truncation", "--max-input-tokens"),
    "truncation": ("truncation", "--truncation"),
    "context": ("prompts", "--context"),
}


@dataclass(frozen=True)
class PairedTask:
    """The pairs of one task.

    Attributes:
        task, metric: of it. first, second: the samples, paired by place; none of them failed.
        failed: pairs left out because one side or both failed. unmatched: samples that the other side lacks.
    """

    task: str
    metric: str
    first: tuple[ScoredSample, ...]
    second: tuple[ScoredSample, ...]
    failed: int
    unmatched: int

    def pairs(self) -> Pairs:
        """The scores alone."""
        return Pairs(
            self.task,
            tuple(_score(s) for s in self.first),
            tuple(_score(s) for s in self.second),
            tuple(s.cluster for s in self.first),
        )


@dataclass(frozen=True)
class Pairing:
    """Everything of two methods that can be paired, and one sentence for every task that cannot.

    Attributes:
        differs: what the runs differ in beside the methods and what may have moved the scores, in words.
    """

    tasks: tuple[PairedTask, ...]
    refused: Mapping[str, str]
    notes: tuple[str, ...]
    differs: tuple[str, ...] = ()


def pair(a: Side, b: Side) -> Pairing:
    """Pair the samples of ``a`` and ``b``, task by task, by id.

    Raises:
        BadValue: nothing can be paired; the message says why. CorruptFile: a broken predictions file.
    """
    shared = [task for task in a.run.tasks if task in b.run.tasks and not is_no_context(task)]
    if not shared:
        raise BadValue(
            f"{a.name} and {b.name} cannot be paired: they have no task in common.", "Run both on the same tasks."
        )
    options = shared_options([a.run, b.run])
    keys_a, keys_b = [(a.method, task) for task in shared], [(b.method, task) for task in shared]
    if _same_run(a, b):
        of_a = of_b = score_samples(a.run, keys_a + keys_b, options)
    else:
        of_a, of_b = score_samples(a.run, keys_a, options), score_samples(b.run, keys_b, options)
    tasks, refused = [], {}
    for task in shared:
        why, found = _pair_task(a, b, task, of_a[a.method, task], of_b[b.method, task])
        if found is None:
            refused[task] = why
        else:
            tasks.append(found)
    if not tasks:
        reasons = dict.fromkeys(refused.values())
        raise BadValue(
            f"{a.name} and {b.name} cannot be paired: {'; '.join(reasons)}.",
            "Run both methods on the same rows with the same options, best in one run.",
        )
    return Pairing(tuple(tasks), refused, tuple(_notes(a, b)), tuple(_differences(a, b)))


def _pair_task(
    a: Side, b: Side, task: str, first: Sequence[ScoredSample], second: Sequence[ScoredSample]
) -> tuple[str, PairedTask | None]:
    by_id = {sample.record.id: sample for sample in second}
    both = [(one, by_id[one.record.id]) for one in first if one.record.id in by_id]
    if not both:
        missing = a if not first else b if not second else None
        none = "no sample in common" if missing is None else f"{missing.method} has no predictions"
        return f"{none} for {task}", None
    why = None if _same_run(a, b) else why_not(a, b, task, [(x.record, y.record) for x, y in both])
    if why:
        return why, None
    good = [(x, y) for x, y in both if x.score is not None and y.score is not None]
    if not good:
        return f"every pair of {task} has a failed sample", None
    return "", PairedTask(
        task=task,
        metric=task_facts(task).metric,
        first=tuple(x for x, _ in good),
        second=tuple(y for _, y in good),
        failed=len(both) - len(good),
        unmatched=len(first) + len(second) - 2 * len(both),
    )


# -- what forbids pairing --------------------------------------------------------------------------------------------


def why_not(a: Side, b: Side, task: str, both: Sequence[tuple[PredictionRecord, PredictionRecord]]) -> str | None:
    """What makes the prompts of two runs differ, in words; None when they are the same. ``both``: pairs of one id."""
    facts_a, facts_b = _facts(a, task), _facts(b, task)
    for key, what in (("data_sha256", "other data"), ("task_version", "another version of the task")):
        if None not in (facts_a.get(key), facts_b.get(key)) and facts_a[key] != facts_b[key]:
            return f"{task} has {what} ({key} is {_short(facts_a[key])} and {_short(facts_b[key])})"
    if any(x.answers != y.answers for x, y in both):
        return f"{task} has other data (samples of one id have different answers)"
    hash_a, hash_b = _prompts(a, facts_a), _prompts(b, facts_b)
    if hash_a is not None and hash_a == hash_b:
        return None
    why = _other_settings(a, b, task)
    if why or rewrites_prompts(a) or rewrites_prompts(b):
        return why
    # Runs over different numbers of rows have different hashes; then the prompts that both have must agree in length.
    if any(x.truncated_from != y.truncated_from for x, y in both):
        return f"{task} has another truncation (the same sample was cut differently)"
    if any(x.prompt_tokens != y.prompt_tokens for x, y in both if None not in (x.prompt_tokens, y.prompt_tokens)):
        return f"{task} has other prompts (the same sample has different numbers of tokens)"
    if hash_a is not None and hash_b is not None and facts_a.get("rows") == facts_b.get("rows"):
        return f"{task} has other prompts (prompts_sha256 is {_short(hash_a)} and {_short(hash_b)})"
    return None


def _other_settings(a: Side, b: Side, task: str) -> str | None:
    for key, (what, option) in _SETTINGS.items():
        x, y = a.run.spec.get(key), b.run.spec.get(key)
        if x != y:
            return f"{task} has other {what} ({option} was {_option(x)} and {_option(y)})"
    model_a, model_b = _model(a), _model(b)
    for key, what in (("chat_template_sha256", "chat templates"), ("identity", "models")):
        x, y = model_a.get(key), model_b.get(key)
        if x != y:
            return f"{task} has other prompts (the {what} differ: {_short(x)} and {_short(y)})"
    x, y = (_mapping(side.run.spec.get("model")).get("chat") for side in (a, b))
    return None if x == y else f"{task} has other prompts (--chat was {_option(x)} and {_option(y)})"


def _differences(a: Side, b: Side) -> list[str]:
    """What else may have moved the scores: a verdict about the methods must name it."""
    if _same_run(a, b):
        return []
    found = []
    x, y = _model(a), _model(b)
    if x.get("identity") != y.get("identity"):
        found.append(f"the model's weights ({_weights(x)} and {_weights(y)})")
    for key in ("dtype", "load_in"):
        if x.get(key) != y.get(key):
            found.append(f"the model's {key} ({_option(x.get(key))} and {_option(y.get(key))})")
    before, after = (side.run.spec.get("question") or "visible" for side in (a, b))
    if before != after:
        found.append(f"--question ({before} and {after})")
    keys = [key_of(side.run, side.method) for side in (a, b)]
    if a.method == b.method and None not in keys and keys[0] != keys[1]:
        found.append(f"the parameters of {a.method}")
    return found


def _weights(model: Mapping[str, Any]) -> str:
    return f"{model.get('name') or 'a model without a name'}, {_short(model.get('identity'))}"


def _notes(a: Side, b: Side) -> list[str]:
    notes = []
    if not _same_run(a, b):
        x, y = _model(a), _model(b)
        for key in ("device", "attn"):
            if None not in (x.get(key), y.get(key)) and x[key] != y[key]:
                notes.append(f"the runs differ in the model's {key} too: {x.get(key)} and {y.get(key)}")
        before, after = a.run.spec.get("seed"), b.run.spec.get("seed")
        if before != after:
            notes.append(f"the runs differ in --seed too: {_option(before)} and {_option(after)}")
    if is_judged(a.run) or is_judged(b.run):
        notes.append("a judge graded QA and summaries in scores.json; this comparison is by the original metrics")
    for side in (a, b):
        if rewrites_prompts(side):
            notes.append(f"{side.method} rewrites the prompt; the same rows are compared, as each method reads them")
    return notes


def rewrites_prompts(side: Side) -> bool:
    """Whether the method shortens the prompt itself."""
    return _mapping(_mapping(side.run.provenance.get("methods")).get(side.method)).get("family") == "prompt"


def _same_run(a: Side, b: Side) -> bool:
    return a.run.path.resolve() == b.run.path.resolve()


def _facts(side: Side, task: str) -> Mapping[str, Any]:
    return _mapping(_mapping(side.run.provenance.get("tasks")).get(task))


def _prompts(side: Side, facts: Mapping[str, Any]) -> str | None:
    hashes = _mapping(facts.get("prompts_sha256"))
    found = hashes.get(side.method, hashes.get("shared"))
    return None if found is None else str(found)


def _model(side: Side) -> Mapping[str, Any]:
    return _mapping(side.run.provenance.get("model"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _option(value: Any) -> str:
    return "not given" if value is None else str(value)


def _short(value: Any) -> str:
    text = "not known" if value is None else str(value)
    return text if len(text) <= 16 else f"{text[:12]}…"


def _score(sample: ScoredSample) -> float:
    assert sample.score is not None  # failed samples are left out when pairs are made
    return sample.score
