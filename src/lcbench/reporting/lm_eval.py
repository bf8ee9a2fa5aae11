"""A run as EleutherAI's lm-evaluation-harness writes its results: results_*.json and samples_*.jsonl.

The shapes are those of its version 0.4 (`lm_eval/result_schema.py`, `loggers/evaluation_tracker.py`): metrics from 0 to
1 under ``metric,filter``, standard errors beside them, samples with ``resps`` and hashes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lcbench.reporting.scored import options_of
from lcbench.scoring.per_sample import ScoredSample, score_samples
from lcbench.scoring.rows import task_facts
from lcbench.store.names import file_name
from lcbench.store.rundir import RunDirectory

FILTER = "none"
_LONGBENCH = "longbench"


def files_of(run: RunDirectory, *, samples: bool = True) -> dict[str, str]:
    """Every file of the export: relative path to content, a folder a method.

    Args:
        samples: also one file of samples a task.
    """
    keys = [(method, task) for task in run.tasks for method in run.methods_of(task)]
    names = names_of(run.tasks)
    scored = score_samples(run, keys, options_of(run))
    when = re.sub(r"\+00-00$", "", str(run.info.get("created", "")).replace(":", "-"))
    files: dict[str, str] = {}
    for method in dict.fromkeys(method for method, _ in keys):
        own = {task: scored[m, task] for m, task in keys if m == method and scored[m, task]}
        folder = _folder(run, method)
        lines = {task: [_sample(run, task, i, one) for i, one in enumerate(found)] for task, found in own.items()}
        files[f"{folder}/results_{when}.json"] = _json(_results(run, method, own, lines, names)) + "\n"
        for task, found in lines.items() if samples else ():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found)
            files[f"{folder}/samples_{names[task]}_{when}.jsonl"] = text
    return files


def names_of(tasks: Iterable[str]) -> dict[str, str]:
    """The harness's names of tasks: ``longbench_qasper``; of tasks that it does not have, their own in letters, digits
    and ``_``. Its readers find the file of a task by its name and cut names at ``/``."""
    names: dict[str, str] = {}
    for task in tasks:
        ours = task_facts(task).benchmark == _LONGBENCH and "@" not in task
        name = file_name(f"{_LONGBENCH}_{task}" if ours else re.sub(r"[^\w.-]+", "_", task, flags=re.ASCII))
        while name in names.values():
            name += "_"
        names[task] = name
    return names


def _folder(run: RunDirectory, method: str) -> str:
    """Folder of a method's files: its readers take it for the model's name, made by the harness's rule for names."""
    model = str(_model(run).get("name", "model")).lstrip("./")
    return file_name(re.sub(r'["<>:/|\\?*\[\]]+', "__", f"{model}__{method}"))


def _model(run: RunDirectory) -> Mapping[str, Any]:
    model = run.provenance.get("model")
    return model if isinstance(model, Mapping) else {}


def _results(
    run: RunDirectory,
    method: str,
    scored: Mapping[str, Sequence[ScoredSample]],
    lines: Mapping[str, Sequence[Mapping[str, Any]]],
    names: Mapping[str, str],
) -> dict[str, Any]:
    model, spec = _model(run), run.spec
    asked = {k: v for k, v in model.items() if k in ("name", "identity", "dtype", "base_url")} | {"method": method}
    return {
        "results": {names[task]: _metrics(task, names[task], found) for task, found in scored.items()},
        "group_subtasks": {names[task]: [] for task in scored},
        "configs": {names[task]: _config(run, task, names[task], method) for task in scored},
        "versions": {names[task]: _version(found) for task, found in scored.items()},
        "n-shot": {names[task]: 0 for task in scored},
        "higher_is_better": {names[task]: {task_facts(task).metric: True, "score": True} for task in scored},
        "n-samples": {names[task]: _counts(run, task, found) for task, found in scored.items()},
        "config": {
            "model": "lcbench",
            "model_args": asked,
            "model_dtype": model.get("dtype"),
            "device": model.get("device"),
            "limit": spec.get("limit"),
            "random_seed": spec.get("seed"),
        },
        "model_source": "lcbench",
        "model_name": model.get("name"),
        "model_name_sanitized": _folder(run, method),
        "chat_template_sha": model.get("chat_template_sha256"),
        "task_hashes": {names[task]: _task_hash(found) for task, found in lines.items()},
    }


def _metrics(task: str, name: str, samples: Sequence[ScoredSample]) -> dict[str, Any]:
    """Mean and standard error from 0 to 1, under the metric's own name and as ``score``."""
    scores = [sample.score for sample in samples if sample.score is not None]
    mean: float | str = statistics.fmean(scores) if scores else "N/A"
    error: float | str = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else "N/A"
    found: dict[str, Any] = {"name": name, "alias": name, "sample_len": len(scores)}
    for metric in dict.fromkeys((task_facts(task).metric, "score")):
        found |= {f"{metric},{FILTER}": mean, f"{metric}_stderr,{FILTER}": error}
    return found


def _config(run: RunDirectory, task: str, name: str, method: str) -> dict[str, Any]:
    facts = _facts(run, task)
    metric = task_facts(task).metric
    return {
        "task": name,
        "output_type": "generate_until",
        "num_fewshot": 0,
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"max_gen_toks": facts.get("max_new_tokens"), "do_sample": False},
        "metadata": {
            "version": facts.get("task_version", 1),
            "lcbench_task": task,
            "lcbench_method": method,
            "prompts_sha256": facts.get("prompts_sha256"),
        },
    }


def _facts(run: RunDirectory, task: str) -> Mapping[str, Any]:
    facts = (run.provenance.get("tasks") or {}).get(task)
    return facts if isinstance(facts, Mapping) else {}


def _version(samples: Sequence[ScoredSample]) -> int:
    return samples[0].record.task_version


def _counts(run: RunDirectory, task: str, samples: Sequence[ScoredSample]) -> dict[str, int]:
    good = sum(sample.score is not None for sample in samples)
    return {"original": int(_facts(run, task).get("rows") or len(samples)), "effective": good}


def _sample(run: RunDirectory, task: str, number: int, sample: ScoredSample) -> dict[str, Any]:
    """One line. The text of prompts is not in a run directory: ``arg_0`` is empty."""
    record, metric = sample.record, task_facts(task).metric
    doc = _writable({
        "_id": record.id, "answers": record.answers, "all_classes": record.all_classes, "length": record.length,
        **record.meta,
    })  # fmt: skip
    target, pred = str(doc["answers"]), _writable(record.pred)
    options = {"max_gen_toks": _facts(run, task).get("max_new_tokens"), "do_sample": False}
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": "", "arg_1": options}},
        "resps": [[pred]],
        "filtered_resps": [pred],
        "filter": FILTER,
        "metrics": list(dict.fromkeys((metric, "score"))),
        "doc_hash": _hash(_json(doc)),
        "prompt_hash": _hash(""),
        "target_hash": _hash(target),
        **dict.fromkeys(dict.fromkeys((metric, "score")), sample.score),
        "lcbench": {"status": record.status, "error": _writable(record.error), "prompt_tokens": record.prompt_tokens,
                    "new_tokens": record.new_tokens, "kv_bytes": record.kv_bytes,
                    "kv_bytes_full": record.kv_bytes_full},
    }  # fmt: skip


def _writable(data: Any) -> Any:
    """The same as UTF-8 can hold it: half of a pair of surrogates, which an answer may end in, becomes ``?``."""
    return json.loads(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"))


def _task_hash(lines: Sequence[Mapping[str, Any]]) -> str:
    return _hash("".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines))


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
