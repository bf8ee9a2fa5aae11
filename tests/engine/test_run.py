"""The main loop on tiny models: who shares a prefill, what is recorded, how a run stops, fails and goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine.prepare import prepare
from lcbench.engine.run import Event, Outcome, execute, sample_seed
from lcbench.errors import ModelError, SampleError
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer
from lcbench.kv.record import PrefillRecord
from lcbench.methods.base import Method, PromptTransform, Traits
from lcbench.methods.full import Full
from lcbench.models.info import LoadedModel
from lcbench.store.rundir import RunDirectory
from lcbench.tasks.base import Loaded, Prompt, Row, Task
from tiny import loaded_tiny


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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

    def transform_prompt(self, text: str, question_start: int | None) -> str:
        return text[: len(text) // 2]


class Scaled(Method):
    """Changes the model while it runs."""

    name, paper = "scaled", ""
    traits = Traits(family="extend", prefill="own")

    @contextmanager
    def transform_model(self, model: Any) -> Iterator[None]:
        kept = model.lm_head.weight.detach().clone()
        with torch.no_grad():
            model.lm_head.weight.neg_()
        try:
            yield
        finally:
            with torch.no_grad():
                model.lm_head.weight.copy_(kept)


def go(
    loaded: LoadedModel, path: Path, methods: list[Method], *, spec: RunSpec | None = None, **options: Any
) -> tuple[Outcome, RunDirectory]:
    task = Words()
    spec = spec or RunSpec(model=ModelSpec(name="tiny"))
    sets = prepare(spec, loaded.info, loaded.tokenizer, methods, [(task, task.load(path))], path)
    described = {"methods": [m.id for m in methods], "tasks": [task.id]}
    with RunDirectory.create_or_continue(path, described, {}) as run:
        outcome = execute(loaded, sets, run, **options)
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


def test_three_methods_cost_one_prefill_a_prompt(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    with counted_passes(loaded) as passes:
        outcome, run = go(loaded, tmp_path / "run", [Full(), Half(), Shorter()])
    assert outcome.written == 12
    assert outcome.failed == 0
    prefills = [n for n in passes if n > 1]
    # four prompts read once for full and half together, and four shorter ones for the prompt transform
    prompts = [r.prompt_tokens for r in run.records("full", "words")]
    shorter = [r.prompt_tokens for r in run.records("shorter", "words")]
    assert sorted(prefills) == sorted(prompts + shorter)
    made = sum(r.new_tokens for m in run.methods for r in run.records(m, "words"))
    assert len(passes) - len(prefills) <= made  # the first token of every answer comes from the prefill
    assert len(passes) - len(prefills) >= made - 12


def test_records_say_what_was_kept(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    _, run = go(loaded, tmp_path / "run", [Full(), Half()])
    full, half = run.records("full", "words"), run.records("half", "words")
    for a, b in zip(full, half, strict=True):
        assert (a.id, a.prompt_tokens, a.answers, a.length) == (b.id, b.prompt_tokens, b.answers, b.length)
        assert a.kv_bytes == a.kv_bytes_full == 2 * 4 * 2 * 32 * 4 * a.prompt_tokens
        assert b.kept_tokens == -(-a.prompt_tokens // 2)
        assert b.kv_bytes == 2 * 4 * 2 * 32 * 4 * int(b.kept_tokens)
        assert a.task_version == 3
        assert a.shared_prefill
        assert a.meta["i"] == int(a.id[1:])
    assert [r.pred for r in full] != [r.pred for r in half]
    assert set(run.timings("full", "words")) == {r.id for r in full}


def test_shared_answers_equal_answers_alone(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    _, together = go(loaded, tmp_path / "a", [Full(), Half()])
    _, alone = go(loaded, tmp_path / "b", [Half()])
    one, two = together.predictions_path("half", "words"), alone.predictions_path("half", "words")
    assert one.read_bytes() == two.read_bytes()


def test_a_failing_sample_is_recorded_and_retried(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    events: list[Event] = []
    outcome, run = go(loaded, tmp_path / "run", [Failing()], listener=events.append)
    records = run.records("failing", "words")
    bad = [r for r in records if not r.ok]
    assert outcome.failed == len(bad) >= 1
    assert any(r.ok for r in records)
    assert {r.error for r in bad} <= {"RuntimeError: no luck", "this one cannot be done"}
    assert all(r.pred == "" for r in bad)
    assert [e.error for e in events if e.kind == "sample"] == [r.error for r in records]
    again, _ = go(loaded, tmp_path / "run", [Failing()])
    assert (again.written, again.reused, again.failed) == (len(bad), 4 - len(bad), len(bad))


def test_stopping_and_going_on_gives_the_same_bytes(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    _, whole = go(loaded, tmp_path / "whole", [Full(), Half()])
    asked = 0

    def after_two() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    first, _ = go(loaded, tmp_path / "parts", [Full(), Half()], should_stop=after_two)
    assert first.interrupted
    assert first.written == 4
    second, parts = go(loaded, tmp_path / "parts", [Full(), Half()])
    assert (second.written, second.reused, second.interrupted) == (4, 4, False)
    for method in ("full", "half"):
        assert (
            parts.predictions_path(method, "words").read_bytes() == whole.predictions_path(method, "words").read_bytes()
        )


def test_a_model_transform_is_undone(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    _, run = go(loaded, tmp_path / "run", [Scaled(), Full()])
    _, plain = go(loaded_tiny(), tmp_path / "plain", [Full()])
    full = [r.pred for r in run.records("full", "words")]
    assert full == [r.pred for r in plain.records("full", "words")]
    assert full != [r.pred for r in run.records("scaled", "words")]


def test_an_error_of_the_run_directory_is_not_a_sample_error(tmp_path: Path) -> None:
    class Refusing(Half):
        name = "refusing"

        def compress(self, record: PrefillRecord) -> KVCache:
            raise ModelError("this model cannot be served")

    with pytest.raises(ModelError):
        go(loaded_tiny(), tmp_path / "run", [Refusing()])
    assert RunDirectory.open(tmp_path / "run").records("refusing", "words") == []


def test_prompts_longer_than_the_window_are_cut_and_say_so(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    spec = RunSpec(model=ModelSpec(name="tiny"), max_input_tokens=40)
    outcome, run = go(loaded, tmp_path / "run", [Full()], spec=spec)
    assert outcome.failed == 0
    for record in run.records("full", "words"):
        whole = len(
            loaded.tokenizer(Words().prompt(Words().load(tmp_path).rows[record.meta["i"]], tmp_path).text)["input_ids"]
        )
        assert record.truncated_from == (whole if whole > 40 else None)
        assert record.prompt_tokens <= 42


def test_seeds_differ_by_sample_and_not_by_order() -> None:
    assert sample_seed(42, "t", "a") == sample_seed(42, "t", "a")
    assert len({sample_seed(42, "t", "a"), sample_seed(42, "t", "b"), sample_seed(43, "t", "a")}) == 3
