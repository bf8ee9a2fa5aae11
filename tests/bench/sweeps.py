"""What the benchmarks of the engine share: a sweep over made-up prompts of a known length, and pages that say where
and how they were measured."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from lcbench.config.home import home
from lcbench.config.spec import ModelSpec
from lcbench.engine.answer import Answerer
from lcbench.engine.groups import Group, make_groups
from lcbench.engine.memory import measure_limits
from lcbench.engine.options import Options
from lcbench.engine.plan import PreparedPrompt, PromptSet
from lcbench.measure.machine import machine
from lcbench.methods.registry import resolve
from lcbench.models.info import LoadedModel
from lcbench.models.load import load
from lcbench.models.random_weights import load_random
from lcbench.tasks.base import Row, Task
from lcbench.tasks.registry import resolve as resolve_tasks

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"
NEW_TOKENS = 16

# Methods that share a prefill and need no calibration, different ones first: the first n of them are a sweep of n.
METHODS = (
    "full", "kivi@bits=2", "kivi@bits=4", "streamingllm", "snapkv", "h2o", "tova", "knorm", "keydiff", "pyramidkv",
    "adakv", "chunkkv", "streamingllm@budget=0.5", "snapkv@budget=0.5", "h2o@budget=0.5", "tova@budget=0.5",
    "knorm@budget=0.5", "keydiff@budget=0.5", "pyramidkv@budget=0.5", "adakv@budget=0.5", "chunkkv@budget=0.5",
    "snapkv@budget=0.1", "h2o@budget=0.1", "knorm@budget=0.1",
)  # fmt: skip


def arguments(doc: str | None) -> argparse.Namespace:
    """``--write``: put the page into docs/benchmarks. ``--quick``: a tiny random model and short prompts, which shows
    that the script works and nothing about speed."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the page into docs/benchmarks")
    parser.add_argument("--quick", action="store_true", help="tiny model, short prompts: does the script work?")
    found = parser.parse_args()
    if found.quick and found.write:
        parser.error("--quick figures are not for a page")
    return found


def model(quick: bool) -> LoadedModel:
    return load_random(ModelSpec(name="tiny")) if quick else load(ModelSpec(name="demo"), home(), print)


def prompt_set(loaded: LoadedModel, methods: Sequence[str], length: int, prompts: int) -> PromptSet:
    """Prompts of random token ids for methods that share a prefill; answers of `NEW_TOKENS` tokens each."""
    (task,) = resolve_tasks("passkey")
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, loaded.info.vocab, (prompts, length), generator=generator).tolist()
    rows = [PreparedPrompt(Row(f"r{i}", {}, ("",)), tuple(one), length) for i, one in enumerate(ids)]
    chosen = tuple(resolve(name) for name in methods)
    assert all(method.traits.prefill == "shared" for method in chosen)
    return PromptSet(endless(task, NEW_TOKENS), chosen, True, tuple(rows), NEW_TOKENS, "", ("", ""))


def endless(task: Task, new_tokens: int) -> Task:
    """The task without early ends, so that every answer takes the same number of steps."""
    kind: Any = type("Endless", (type(task),), {"min_new_tokens": new_tokens, "early_stop": False, "stop": "eos"})
    made: Task = copy.copy(task)
    object.__setattr__(made, "__class__", kind)  # tasks may be frozen
    return made


def sweep(loaded: LoadedModel, methods: Sequence[str], length: int, prompts: int = 1) -> tuple[Answerer, list[Group]]:
    """An answerer and its groups; `run_all` does the work."""
    one = prompt_set(loaded, methods, length, prompts)
    groups = make_groups([one], loaded.shape(), measure_limits(loaded.info))
    return Answerer(_nameless(loaded), [one], Options()), groups


def run_all(answerer: Answerer, groups: Sequence[Group]) -> int:
    """Answers of all groups; their number. Raises RuntimeError when one failed."""
    answerer.reader.beginnings.clear()
    results = [result for group in groups for result in answerer.run(group)]
    bad = [result.record.error for result in results if not result.record.ok]
    if bad:
        raise RuntimeError(str(bad[0]))
    return len(results)


def _nameless(loaded: LoadedModel) -> LoadedModel:
    """A random model gets a tokenizer that only decodes."""

    class Ids:
        def decode(self, ids: Sequence[int], **options: Any) -> str:
            return " ".join(map(str, ids))

        def encode(self, text: str, **options: Any) -> list[int]:
            return [0]

    return loaded if loaded.tokenizer is not None else LoadedModel(loaded.model, Ids(), loaded.info)


def table(rows: Sequence[Sequence[object]]) -> str:
    """Markdown; the first row is the heading."""
    head, *body = ([str(cell) for cell in row] for row in rows)
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def page(name: str, title: str, command: str, text: str) -> None:
    """Write docs/benchmarks/NAME.md with the machine, the day and the command above the text."""
    where = machine()["words"]
    head = f"# {title}\n\nMeasured by `{command}` on {date.today()}: {where}; torch {torch.__version__}, demo model "
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / f"{name}.md").write_text(f"{head}in float32.\n\n{text}\n", encoding="utf-8")
    print(f"Written: docs/benchmarks/{name}.md")
