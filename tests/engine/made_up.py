"""A made-up task, made-up methods and a run of them on a tiny model: what the tests of the engine share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine.groups import make_groups
from lcbench.engine.memory import Limits
from lcbench.engine.options import Options
from lcbench.engine.prepare import prepare
from lcbench.engine.run import Outcome, execute
from lcbench.errors import SampleError
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer
from lcbench.kv.record import PrefillRecord
from lcbench.methods.base import Method, PromptTransform, Traits
from lcbench.methods.rewriting import PromptText
from lcbench.models.info import LoadedModel
from lcbench.store.rundir import RunDirectory
from lcbench.tasks.base import Loaded, Prompt, Row, Task

LIMITS = Limits(rows=8, tokens=1000, nbytes=2**30)


@dataclass(frozen=True)
class Words(Task):
    """A made-up task: repeat the text; short answers, no data."""

    name = "words"
    version = 3
    benchmark = "test"
    category = "test"
    metric = "qa_f1"
    chat = False
    rows_wanted = 4

    def load(self, home: Path, limit: int | None = None) -> Loaded:
        rows = [
            Row(f"r{i}", {"text": f"row {i} " * (6 + i) + "x" * i}, (f"row {i}",), length=12 + 2 * i, meta={"i": i})
            for i in range(4)
        ]
        return Loaded(rows[:limit], note="made up")

    def answer_tokens(self, home: Path) -> int:
        return 6

    def prompt(self, row: Row, home: Path) -> Prompt:
        return Prompt(row.fields["text"])


class Half(Method):
    """Keeps every second token; shares the prefill."""

    name, paper = "half", ""
    traits = Traits(family="evict")

    def compress(self, record: PrefillRecord) -> KVCache:
        index = torch.arange(0, record.length, 2)
        layers = [record.layer(i) for i in range(record.shape.layers)]
        return KVCache(
            [
                DenseLayer(la.key[:, index].clone(), la.value[:, index].clone(), kept=index, seen=record.length)
                for la in layers
            ]
        )


class Failing(Half):
    name = "failing"

    def compress(self, record: PrefillRecord) -> KVCache:
        if record.length % 3 == 0:
            raise RuntimeError("no\nluck")
        if record.length % 3 == 1:
            raise SampleError("this one cannot be done")
        return super().compress(record)


class Shorter(PromptTransform):
    name, paper = "shorter", ""
    traits = Traits(family="prompt", prefill="own")

    def rewrite(self, prompt: PromptText, helper: None) -> str:
        return prompt.passage[: len(prompt.passage) // 2]


class Scaled(Method):
    """Changes the model while it runs."""

    name, paper = "scaled", ""
    traits = Traits(family="extend", prefill="own")

    @contextmanager
    def transform_model(self, model: Any, length: int) -> Iterator[None]:
        kept = model.lm_head.weight.detach().clone()
        with torch.no_grad():
            model.lm_head.weight.neg_()
        try:
            yield
        finally:
            with torch.no_grad():
                model.lm_head.weight.copy_(kept)


def go(
    loaded: LoadedModel,
    path: Path,
    methods: list[Method],
    *,
    spec: RunSpec | None = None,
    task: Task | None = None,
    limits: Limits = LIMITS,
    **options: Any,
) -> tuple[Outcome, RunDirectory]:
    """Run methods on a task (`Words` by default) into ``path``; ``options`` go to `execute`."""
    task = task or Words()
    spec = spec or RunSpec(model=ModelSpec(name="tiny"))
    sets = prepare(spec, loaded.info, loaded.tokenizer, methods, [(task, task.load(path))], path.parent)
    groups = make_groups(sets, loaded.shape(), limits, chunk=spec.prefill_chunk)
    described = {"methods": [m.id for m in methods], "tasks": [task.id]}
    with RunDirectory.create_or_continue(path, described, {}) as run:
        outcome = execute(loaded, sets, groups, run, options=Options.of(spec), **options)
    return outcome, run


@contextmanager
def counted_passes(loaded: LoadedModel) -> Iterator[list[int]]:
    """Tokens of every forward pass of the model."""
    passes: list[int] = []
    hook = loaded.model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        yield passes
    finally:
        hook.remove()
