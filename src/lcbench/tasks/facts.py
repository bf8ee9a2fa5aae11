"""What is fixed about the built-in tasks: category, metric, cut, rows. Data only; imports nothing heavy.

Source: `LongBench/task.md`, `pred.py` and `eval.py` of THUDM/LongBench for the 21 tasks; `eval_trec.py` and
`utils/metrics.py` of uservan/100-LongBench for its eight. Prompts and answer lengths are not here: they are the
official configuration files, downloaded and verified like data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

LONGBENCH = "longbench"
PASSKEY = "passkey"
HUNDRED = "100-longbench"


@dataclass(frozen=True)
class TaskFacts:
    """The constants of one task.

    Attributes:
        name: task id; the ``_e`` variant of a LongBench task shares its facts.
        benchmark: "longbench", "passkey" or "100-longbench".
        category: single-doc-qa, multi-doc-qa, summarization, few-shot, synthetic, code, passkey, retrieval or
            key-retrieval.
        language: "en", "zh" or "code".
        metric: metric name in `lcbench.scoring.metrics`.
        cut_first_line: whether only the first line of a prediction is scored (leading newlines stripped first).
        e_split: whether LongBench-E has it.
        rows: rows of the full test split (passkey: prompts of the main setting).
        chat: whether the prompt is wrapped in the model's chat template.
        e_rows: rows of its LongBench-E split, 0 without one.
    """

    name: str
    benchmark: str
    category: str
    language: str
    metric: str
    cut_first_line: bool
    e_split: bool
    rows: int
    chat: bool
    e_rows: int = 0


_TASKS = (
    # name, category, language, metric, first-line cut, rows, chat, rows of LongBench-E
    ("narrativeqa", "single-doc-qa", "en", "qa_f1", False, 200, True, 0),
    ("qasper", "single-doc-qa", "en", "qa_f1", False, 200, True, 224),
    ("multifieldqa_en", "single-doc-qa", "en", "qa_f1", False, 150, True, 150),
    ("multifieldqa_zh", "single-doc-qa", "zh", "qa_f1_zh", False, 200, True, 0),
    ("hotpotqa", "multi-doc-qa", "en", "qa_f1", False, 200, True, 300),
    ("2wikimqa", "multi-doc-qa", "en", "qa_f1", False, 200, True, 300),
    ("musique", "multi-doc-qa", "en", "qa_f1", False, 200, True, 0),
    ("dureader", "multi-doc-qa", "zh", "rouge_zh", False, 200, True, 0),
    ("gov_report", "summarization", "en", "rouge", False, 200, True, 300),
    ("qmsum", "summarization", "en", "rouge", False, 200, True, 0),
    ("multi_news", "summarization", "en", "rouge", False, 200, True, 294),
    ("vcsum", "summarization", "zh", "rouge_zh", False, 200, True, 0),
    ("trec", "few-shot", "en", "classification", True, 200, False, 300),
    ("triviaqa", "few-shot", "en", "qa_f1", True, 200, False, 300),
    ("samsum", "few-shot", "en", "rouge", True, 200, False, 300),
    ("lsht", "few-shot", "zh", "classification", True, 200, False, 0),
    ("passage_count", "synthetic", "en", "count", False, 200, True, 300),
    ("passage_retrieval_en", "synthetic", "en", "retrieval", False, 200, True, 300),
    ("passage_retrieval_zh", "synthetic", "zh", "retrieval_zh", False, 200, True, 0),
    ("lcc", "code", "code", "code_sim", False, 500, False, 300),
    ("repobench-p", "code", "code", "code_sim", False, 500, False, 300),
)


_HUNDRED = (
    # name, category, metric; every prediction is cut to its first line, summaries too
    ("single_doc_qa", "single-doc-qa", "qa_f1"),
    ("multi_doc_qa", "multi-doc-qa", "qa_f1"),
    ("single_doc_sum", "summarization", "rouge"),
    ("multi_doc_sum", "summarization", "rouge"),
    ("passage_retrieval", "retrieval", "first_number"),
    ("passage_count", "retrieval", "first_number"),
    ("kv_retrieval", "key-retrieval", "last_uuid"),
    ("counting_stars", "key-retrieval", "first_number"),
)


def _facts() -> Mapping[str, TaskFacts]:
    facts = {
        name: TaskFacts(name, LONGBENCH, category, language, metric, cut, e_rows > 0, rows, chat, e_rows)
        for name, category, language, metric, cut, rows, chat, e_rows in _TASKS
    }
    facts[PASSKEY] = TaskFacts(PASSKEY, PASSKEY, "passkey", "en", "passkey", False, False, 300, False)
    for short, category, metric in _HUNDRED:
        name = f"{HUNDRED}/{short}"
        facts[name] = TaskFacts(name, HUNDRED, category, "en", metric, True, False, 0, False)
    return MappingProxyType(facts)


TASK_FACTS: Mapping[str, TaskFacts] = _facts()
"""Task name to facts: the 21 LongBench tasks in the official order, passkey, then 100-LongBench in its own order."""


def facts_of(name: str) -> TaskFacts | None:
    """Facts of a task by id; ``qasper_e`` has those of ``qasper``. None for a task that is not built in."""
    if name in TASK_FACTS:
        return TASK_FACTS[name]
    base = TASK_FACTS.get(name.removesuffix("_e"))
    return base if base is not None and base.e_split else None
