"""LongBench and LongBench-E: 21 and 13 tasks, one class each, all made from `facts`.

Protocol: `LongBench/pred.py` and `config/*.json` of THUDM/LongBench (arXiv:2308.14508). Prompts and answer lengths
are read from the official configuration files in the data folder; the templates are checked against the hashes below
before the first prompt is made, because a "cleaned up" template moves scores silently.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from lcbench.errors import ChecksumMismatch, CorruptFile
from lcbench.tasks.base import Loaded, Prompt, Row, Task, spread
from lcbench.tasks.early_stop import stops_early
from lcbench.tasks.facts import LONGBENCH, TASK_FACTS, TaskFacts
from lcbench.tasks.registry import group, task

LONGBENCH_E = "longbench-e"
PROMPTS = "dataset2prompt.json"
LENGTHS = "dataset2maxlen.json"

_NEWLINE_STOP = "samsum"  # the one task that ends at a line break, and never before its first token

TEMPLATE_SHA256: Mapping[str, str] = {
    "narrativeqa": "aada7ed24b06",
    "qasper": "0fbdd123fe7f",
    "multifieldqa_en": "20b4666a2de8",
    "multifieldqa_zh": "344b3a4e557c",
    "hotpotqa": "9ec4ae308865",
    "2wikimqa": "9ec4ae308865",
    "musique": "9ec4ae308865",
    "dureader": "ae53329f51b1",
    "gov_report": "91c25d585b18",
    "qmsum": "dca23b678fe0",
    "multi_news": "2af3f28c40b9",
    "vcsum": "3e5d8241bc9b",
    "trec": "0eff8bebdba9",
    "triviaqa": "00a802e6377e",
    "samsum": "a68d88423490",
    "lsht": "f3edabdf7fae",
    "passage_count": "986550b6c610",
    "passage_retrieval_en": "39b96b7fa52b",
    "passage_retrieval_zh": "c1e2346e245e",
    "lcc": "6a1f24cf0bb8",
    "repobench-p": "ee9ec182ea5f",
}
"""First 12 hex digits of the SHA-256 of each official template (UTF-8, placeholders included)."""


@dataclass(frozen=True)
class LongBenchTask(Task):
    """One data set of LongBench, or of LongBench-E.

    Class attributes:
        facts: its constants; a LongBench-E task shares those of its namesake.
    """

    facts: ClassVar[TaskFacts]
    datasets = (LONGBENCH,)

    def load(self, home: Path, limit: int | None = None) -> Loaded:
        from lcbench.data.store import read_rows

        return self._loaded(home, read_rows(home, LONGBENCH, self._file, limit))

    def sample(self, home: Path, most: int, limit: int | None = None) -> Loaded:
        from lcbench.data.store import read_some

        def choose(count: int) -> list[int]:
            return spread(count if limit is None else min(count, limit), most)

        rows, count = read_some(home, LONGBENCH, self._file, choose)
        return replace(self._loaded(home, rows), total=count if limit is None else min(count, limit))

    @property
    def _file(self) -> str:
        return f"{self.name}.jsonl"

    def _loaded(self, home: Path, raw: Sequence[Mapping[str, Any]]) -> Loaded:
        from lcbench.data.store import data_file

        file = data_file(home, LONGBENCH, self._file)
        template, answer = self.template(home), self.answer_tokens(home)
        digest = hashlib.sha256(f"{file.sha256}\n{answer}\n{template}".encode())
        return Loaded(_rows(raw, f"{LONGBENCH}/{self._file}"), digest.hexdigest(), file.subset_note)

    def check_data(self, home: Path) -> str:
        from lcbench.data.store import data_file

        for config in (PROMPTS, LENGTHS):
            data_file(home, LONGBENCH, config)
        return data_file(home, LONGBENCH, self._file).subset_note

    def answer_tokens(self, home: Path) -> int:
        value = self._configured(home, LENGTHS)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CorruptFile(
                f"{LENGTHS} of {LONGBENCH} gives '{value}' as the answer length of {self.facts.name}.", _AGAIN
            )
        return value

    def template(self, home: Path) -> str:
        """The official prompt template.

        Raises:
            DataMissing: not downloaded. ChecksumMismatch: not the official text.
        """
        text = self._configured(home, PROMPTS)
        expected = TEMPLATE_SHA256[self.facts.name]
        if not isinstance(text, str) or hashlib.sha256(text.encode()).hexdigest()[:12] != expected:
            raise ChecksumMismatch(
                f"The prompt template of {self.facts.name} in {PROMPTS} is not the official one "
                f"(its SHA-256 does not begin with {expected}).",
                _AGAIN,
            )
        return text

    def prompt(self, row: Row, home: Path) -> Prompt:
        return fill(self.template(home), row.fields)

    def without_context(self, row: Row) -> Row:
        return replace(row, fields={**row.fields, "context": ""})

    def _configured(self, home: Path, filename: str) -> Any:
        from lcbench.data.store import config_json

        return config_json(home, LONGBENCH, filename).get(self.facts.name)


_AGAIN = f"Download it again: lcbench download {LONGBENCH}"


def fill(template: str, fields: Mapping[str, Any]) -> Prompt:
    """``template.format(**fields)``, noting where the question begins.

    Braces in the row's text stay as they are: only the template is interpreted. The question begins where the
    context ends, if the template asks for the input after the context; the four summaries, counting and lcc have no
    input, so nothing to tell apart.
    """
    text, start, asked = "", None, False
    context: tuple[int, int] | None = None
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal
        if name is not None:
            begin = len(text)
            text += str(fields[name])
            asked = asked or (name == "input" and start is not None)
            if name == "context":
                start = len(text)
                context = begin, start
    return Prompt(text, start if asked else None, context, str(fields.get("input") or ""))


def _rows(raw: Sequence[Mapping[str, Any]], where: str) -> tuple[Row, ...]:
    """Rows of the types that the manifest's schema promises (the store has checked them)."""
    rows = tuple(_row(fields) for fields in raw)
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        if row.id in seen:
            raise CorruptFile(f"Rows {seen[row.id]} and {number} of {where} have the same _id '{row.id}'.", _AGAIN)
        seen[row.id] = number
    return rows


def _row(fields: Mapping[str, Any]) -> Row:
    classes = fields["all_classes"]
    return Row(
        id=fields["_id"],
        fields=dict(fields),
        answers=tuple(fields["answers"]),
        all_classes=None if classes is None else tuple(classes),
        length=fields["length"],
        # Some rows ask several questions of one text: statistics must not take them for independent.
        meta={"context_id": hashlib.sha256(fields["context"].encode("utf-8", "surrogatepass")).hexdigest()[:16]},
    )


def _make(facts: TaskFacts, e_split: bool) -> type[LongBenchTask]:
    name = f"{facts.name}_e" if e_split else facts.name
    attributes: dict[str, Any] = {
        "__doc__": f"{facts.name} of {'LongBench-E' if e_split else 'LongBench'}.",
        "__module__": __name__,
        "facts": facts,
        "benchmark": LONGBENCH_E if e_split else LONGBENCH,
        "category": facts.category,
        "language": facts.language,
        "metric": facts.metric,
        "rows": facts.e_rows if e_split else facts.rows,
        "chat": facts.chat,
        "early_stop": stops_early(facts),
    }
    if facts.name == _NEWLINE_STOP:
        attributes |= {"stop": "newline", "min_new_tokens": 1}
    cls = task(name)(type(f"LongBench_{name.replace('-', '_')}", (LongBenchTask,), attributes))
    globals()[cls.__name__] = cls  # so that tasks can be pickled
    return cls


def _register() -> None:
    ours = [facts for facts in TASK_FACTS.values() if facts.benchmark == LONGBENCH]
    for facts in ours:
        _make(facts, e_split=False)
    for facts in ours:
        if facts.e_split:
            _make(facts, e_split=True)
    english = [f.name for f in ours if f.language != "zh"]
    group(LONGBENCH, "all 21 tasks of LongBench", [f.name for f in ours])
    group(LONGBENCH_E, "the 13 tasks of LongBench-E", [f"{f.name}_e" for f in ours if f.e_split])
    group("longbench-en", "the 14 English and 2 code tasks of LongBench (its published English table)", english)
    group(
        "longbench-zh",
        "the 5 Chinese and 2 code tasks of LongBench (its published Chinese table)",
        [f.name for f in ours if f.language != "en"],
    )
    group(
        "longctx",
        "the 15 tasks of the KV-compression workbench (arXiv:2407.01527)",
        [name for name in english if name != "passage_count"],
    )
    for category in dict.fromkeys(f.category for f in ours):
        names = [f.name for f in ours if f.category == category]
        group(category, f"the {len(names)} {category} tasks of LongBench", names)


_register()
