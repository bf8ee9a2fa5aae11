"""The eight tasks as `lcbench run` asks them: ``100-longbench/kv_retrieval@16k``, from the files of a build.

Protocol: `pred.py` and `config/*.json` of uservan/100-LongBench: no chat format, no truncation, greedy. Prompts and
answer lengths are the official configuration files; the templates are checked against the hashes below.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from lcbench.config.options import BARE, Item, param
from lcbench.errors import BadValue, ChecksumMismatch, CorruptFile, DataMissing, LcbenchError
from lcbench.tasks.base import Loaded, Prompt, Row, Task
from lcbench.tasks.early_stop import stops_early
from lcbench.tasks.facts import HUNDRED, TASK_FACTS
from lcbench.tasks.hundred.manifest import read_manifest
from lcbench.tasks.hundred.names import (
    BASE,
    DEFAULT_BUILD,
    NO_CONTEXT,
    QA_TASKS,
    TASKS,
    length_text,
    parse_length,
)
from lcbench.tasks.hundred.recipe import Recipe, build_folder, built_lengths, file_of, read, read_recipe
from lcbench.tasks.longbench import LENGTHS, PROMPTS, fill
from lcbench.tasks.registry import group, task

WITHOUT_CONTEXT = "qa_old"
"""Key of the template that gives the question alone."""

TEMPLATE_SHA256: Mapping[str, str] = {
    "single_doc_qa": "f586976a2456",
    "multi_doc_qa": "f586976a2456",
    "single_doc_sum": "4e61d15a4e1d",
    "multi_doc_sum": "567113f8b004",
    "passage_retrieval": "4a8f106d201d",
    "kv_retrieval": "a70e89107ca0",
    "counting_stars": "69cc5348fae8",
    "passage_count": "af30c4d1f5f0",
    WITHOUT_CONTEXT: "5f779cbf738f",
}
"""First 12 hex digits of the SHA-256 of each official template (UTF-8, placeholders included)."""

_AGAIN = f"Download it again: lcbench download {HUNDRED}"
_ONLY_QUESTION = "only_question"


@dataclass(frozen=True)
class HundredTask(Task):
    """One task of 100-LongBench at one length, or its base set, or its questions without context.

    Class attributes:
        short: its name without the benchmark.
    """

    length: str = param(BASE, "length of the contexts (16k, 1000 tokens), base, or no-context", bare=True)
    build: str = param(DEFAULT_BUILD, "name of the build it reads (`lcbench build 100-longbench --name`)")

    short: ClassVar[str]
    benchmark = HUNDRED
    truncate = "error"
    datasets = (HUNDRED,)

    def __post_init__(self) -> None:
        length = parse_length(self.length)
        if length == NO_CONTEXT and self.short not in QA_TASKS:
            raise BadValue(f"{self.name} cannot be asked without its context.", f"Only {' and '.join(QA_TASKS)} can.")
        object.__setattr__(self, "length", length_text(length))

    @classmethod
    def variants(cls, item: Item, home: Path, *, whole: bool) -> list[Item]:
        """One item a length. Without a length, all that are built; with the benchmark's name, the base set and the
        questions without context come along, which LongScore and the QA filter need."""
        options = dict(item.options)
        written = options.pop(BARE, "") or options.pop("length", "")
        build = options.get("build", DEFAULT_BUILD)
        build_folder(home, build)
        if written:
            lengths = [length_text(parse_length(word)) for word in written.split("/")]
            if whole:
                extra = [NO_CONTEXT] if cls.short in QA_TASKS else []
                lengths = [BASE, *(word for word in lengths if word not in (BASE, NO_CONTEXT)), *extra]
        else:
            lengths = [length_text(length) for length in built_lengths(home, build, cls.short)]
        if not lengths and not whole:
            raise _not_built(f"{cls.name} is not built", home, build)
        if not lengths and not any(built_lengths(home, build, task) for task in TASKS):
            raise _not_built(f"{HUNDRED} is not built", home, build)
        rest = tuple(options.items())
        return [Item(item.name, ((BARE, length), *rest)) for length in dict.fromkeys(lengths)]

    @property
    def once(self) -> bool:
        return self.length == NO_CONTEXT

    def load(self, home: Path, limit: int | None = None) -> Loaded:
        self.template(home)
        if self.length == NO_CONTEXT:
            return self._questions(home, limit)
        recipe, contexts, digest = read(self._file(home), limit)
        rows = [row for context in contexts for row in self._rows(recipe, context)]
        chosen = rows if limit is None else rows[:limit]
        return Loaded(tuple(chosen), self._digest(home, [digest]), note_of(recipe))

    def check_data(self, home: Path) -> str:
        from lcbench.data.store import data_file

        for config in (PROMPTS, LENGTHS):
            data_file(home, HUNDRED, config)
        lengths = [length_text(n) for n in built_lengths(home, self.build, self.short) if n != NO_CONTEXT]
        if not lengths:
            raise DataMissing(f"{self.name} is not built.", "Run: lcbench build 100-longbench --lengths 8k,16k")
        return f"built: {', '.join(lengths)}"

    def answer_tokens(self, home: Path) -> int:
        value = _configured(home, LENGTHS, self.short)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CorruptFile(f"{LENGTHS} of {HUNDRED} gives '{value}' as the answer length of {self.short}.", _AGAIN)
        return value

    def template(self, home: Path) -> str:
        """The official template: of the task, or the one without context.

        Raises:
            DataMissing: not downloaded. ChecksumMismatch: not the official text.
        """
        return _template(home, WITHOUT_CONTEXT if self.length == NO_CONTEXT else self.short)

    def prompt(self, row: Row, home: Path) -> Prompt:
        if row.fields.get(_ONLY_QUESTION):
            return Prompt(fill(_template(home, WITHOUT_CONTEXT), row.fields).text)
        return fill(self.template(home), row.fields)

    def without_context(self, row: Row) -> Row:
        if self.short not in QA_TASKS:
            return super().without_context(row)
        return replace(row, fields={"input": row.fields["input"], _ONLY_QUESTION: True})

    def _file(self, home: Path) -> Path:
        path = file_of(home, self.build, self.short, parse_length(self.length))
        if not path.is_file():
            raise _not_built(f"{self.id} is not built", home, self.build, self.length)
        return path

    def _digest(self, home: Path, files: list[str]) -> str:
        text = "\n".join([*files, str(self.answer_tokens(home)), self.template(home)])
        return hashlib.sha256(text.encode()).hexdigest()

    def _rows(self, recipe: Recipe, context: Mapping[str, Any]) -> list[Row]:
        """One row a question; all of a context share its text and ``context_id``."""
        target = recipe.length
        rows = []
        for number, (asked, question, answers) in enumerate(
            zip(context["input"], context["questions"], context["answers"], strict=True)
        ):
            accepted = tuple(str(answer) for answer in (answers if isinstance(answers, list) else [answers]))
            fields = {"context": context["new_context"], "input": asked, "instruction": context["instruction"]}
            meta = self._meta(recipe, target, context["length"], question, accepted)
            meta |= {key: context.get(key) for key in ("base_length", "context_id", "document_id", "faults", "chance")}
            rows.append(Row(f"{context['_id']}-q{number}", fields, accepted, length=context["length"], meta=meta))
        return rows

    def _meta(
        self, recipe: Recipe, target: int | str, length: int, question: str, answers: tuple[str, ...]
    ) -> dict[str, Any]:
        return {
            "suite": HUNDRED,
            "task": self.short,
            "target_length": target,
            "true_length": length,
            "question_id": question_id(question, answers),
            "question": question,
            "mode": recipe.mode,
            "build": self.build,
        }

    def _questions(self, home: Path, limit: int | None) -> Loaded:
        """Every question of this task at any built length, once; with a limit, those that a run with this limit asks
        at each length."""
        lengths = [n for n in built_lengths(home, self.build, self.short) if n != NO_CONTEXT]
        if not lengths:
            raise _not_built(f"{self.name} is not built", home, self.build)
        rows: dict[str, Row] = {}
        digests, note = [], ""
        for length in lengths:
            recipe, contexts, digest = read(file_of(home, self.build, self.short, length), limit)
            digests.append(digest)
            note = note_of(recipe)
            for context in contexts:
                for row in self._rows(recipe, context)[:limit]:
                    key = row.meta["question_id"]
                    meta = {**row.meta, "target_length": NO_CONTEXT, "true_length": 0, "base_length": None}
                    alone = replace(self.without_context(row), id=key, length=0, meta={**meta, "context_id": key})
                    rows.setdefault(key, alone)
        return Loaded(tuple(rows.values()), self._digest(home, digests), note)


def question_id(question: str, answers: tuple[str, ...]) -> str:
    """16 hex digits, equal for the same question with the same answers at every length."""
    text = "\x1f".join([question, *answers])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def note_of(recipe: Recipe) -> str:
    """What every table says about a build."""
    note = f"built in {recipe.mode} mode, lengths in tokens of {recipe.counter}"
    if recipe.custom:
        return f"{note}, from the user's own documents"
    pools = [text.partition(":")[0].removeprefix("pool ") for text in recipe.notes]
    return f"{note}; incomplete pools: {', '.join(pools)}" if pools else note


def prompts_are_there(home: Path) -> bool:
    """Whether the official prompts and answer lengths, which a run needs and a build does not, are downloaded."""
    from lcbench.data.store import data_file

    try:
        for config in (PROMPTS, LENGTHS):
            data_file(home, HUNDRED, config)
    except DataMissing:
        return False
    return True


def _not_built(what: str, home: Path, build: str, length: str = "") -> DataMissing:
    own = _options_of(home, build)
    shortest = own.lengths if own is not None and own.lengths else "8k,16k"
    lengths = length if length not in ("", BASE, NO_CONTEXT) else shortest
    name = "" if build == DEFAULT_BUILD else f" --name {build}"
    more = "" if own is None else own.options
    return DataMissing(f"{what}.", f"Run: lcbench build {HUNDRED} --lengths {lengths}{name}{more}")


@dataclass(frozen=True)
class _Options:
    """How a build was made, as options of the command. lengths: that are there, "" for none."""

    options: str
    lengths: str


def _options_of(home: Path, build: str) -> _Options | None:
    """The options of a build that is there in part, so that what is missing is made as the rest was."""
    folder = build_folder(home, build)
    recipe: Recipe | None = None
    lengths: set[int] = set()
    pools = False
    try:
        for path in sorted(folder.glob("*.jsonl")):
            recipe = read_recipe(path)
            lengths |= {recipe.length} if isinstance(recipe.length, int) else set()
        manifest = read_manifest(folder)
        pools = manifest is not None and manifest.pools
    except LcbenchError:
        return None
    if recipe is None:
        return None
    chosen = {
        "--rows": str(recipe.rows),
        "--seed": str(recipe.seed),
        "--base-below": length_text(recipe.base_below),
        "--tokenizer": recipe.counter,
        "--mode": recipe.mode if recipe.mode != "reference" else "",
        "--fill": "" if recipe.exact else "reference",
    }
    said = "".join(f" {option} {shlex.quote(value)}" for option, value in chosen.items() if value)
    place = " --custom DIR" if recipe.custom else " --pools DIR" if pools else ""
    return _Options(said + place, ",".join(length_text(length) for length in sorted(lengths)))


def _template(home: Path, key: str) -> str:
    text = _configured(home, PROMPTS, key)
    expected = TEMPLATE_SHA256[key]
    if not isinstance(text, str) or hashlib.sha256(text.encode()).hexdigest()[:12] != expected:
        raise ChecksumMismatch(
            f"The prompt template {key} in {PROMPTS} of {HUNDRED} is not the official one "
            f"(its SHA-256 does not begin with {expected}).",
            _AGAIN,
        )
    return text


def _configured(home: Path, filename: str, key: str) -> Any:
    from lcbench.data.store import config_json

    return config_json(home, HUNDRED, filename).get(key)


def _register() -> None:
    for short in TASKS:
        facts = TASK_FACTS[f"{HUNDRED}/{short}"]
        attributes: dict[str, Any] = {
            "__doc__": f"{short} of 100-LongBench.",
            "__module__": __name__,
            "short": short,
            "category": facts.category,
            "language": facts.language,
            "metric": facts.metric,
            "chat": facts.chat,
            "early_stop": stops_early(facts),
        }
        cls = task(facts.name)(type(f"Hundred_{short}", (HundredTask,), attributes))
        globals()[cls.__name__] = cls  # so that tasks can be pickled
    group(HUNDRED, "the 8 tasks of 100-LongBench at every built length, or @8k,16k", [f"{HUNDRED}/{t}" for t in TASKS])


_register()
