"""Models on the cache they bring along, through the engine: answers, bytes, refusals, runs that go on."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import Half, Scaled, Shorter, Words, counted_passes, go
from test_question import Asked

from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine.estimate import MachineRates, estimate
from lcbench.engine.generate import check_chunk, prefill
from lcbench.engine.groups import make_groups
from lcbench.engine.memory import Limits, prompt_bytes
from lcbench.engine.prepare import prepare
from lcbench.engine.stacked import Rules, decode_rows
from lcbench.errors import ModelError
from lcbench.measure.allocator import AllocatorPeak
from lcbench.methods.base import require
from lcbench.methods.full import Full
from lcbench.methods.registry import all_methods, resolve
from lcbench.models.info import LoadedModel
from lcbench.store.rundir import RunDirectory
from lcbench.tasks.base import Prompt, Row
from linear_models import ARCHITECTURES, loaded_linear
from tiny import loaded_tiny

SPEC = RunSpec(model=ModelSpec(name="tiny"))
#: One that only keeps a state, one that mixes, one whose state lies on its modules, one without a cache object.
SOME = ["mamba", "jamba", "recurrent_gemma", "rwkv"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def greedy(loaded: LoadedModel, ids: list[int], steps: int) -> list[int]:
    """The model's own answer, the whole text computed anew for every token."""
    made: list[int] = []
    with torch.inference_mode():
        while len(made) < steps:
            logits = loaded.model(input_ids=torch.tensor([ids + made]), use_cache=False).logits[0, -1]
            made.append(int(logits.argmax()))
            if made[-1] in loaded.info.eos_ids:
                break
    return made


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_answers_are_the_models_own_and_bytes_those_it_holds(name: str, tmp_path: Path) -> None:
    loaded = loaded_linear(name)
    outcome, run = go(loaded, tmp_path / "run", [Full()])
    assert (outcome.written, outcome.failed) == (4, 0)
    task, shape = Words(), loaded.shape()
    texts = {row.id: task.prompt(row, tmp_path).text for row in task.load(tmp_path).rows}
    for record in run.records("full", "words"):
        ids = loaded.tokenizer(texts[record.id])["input_ids"]
        answer = [i for i in greedy(loaded, ids, 6) if i not in loaded.info.eos_ids]
        assert record.pred == loaded.tokenizer.decode(answer, skip_special_tokens=True)
        assert (record.prompt_tokens, record.new_tokens) == (len(ids), len(answer))
        assert record.kv_bytes == record.kv_bytes_full == record.resident_bytes == shape.full_bytes(len(ids))
        assert record.kept_tokens <= len(ids)
        assert shape.state is not None
        assert record.decode == ("stacked" if shape.state.stacks else "exact")
    assert shape.state is not None
    if not shape.state.attention_layers:
        assert len({r.kv_bytes for r in run.records("full", "words")}) == 1
        assert {r.kept_tokens for r in run.records("full", "words")} == {0}


@pytest.mark.parametrize("name", SOME)
def test_a_run_that_was_stopped_ends_like_an_unbroken_one(name: str, tmp_path: Path) -> None:
    few = Limits(rows=2, tokens=1000, nbytes=2**30)
    go(loaded_linear(name), tmp_path / "whole", [Full()], limits=few)
    written: list[Any] = []
    outcome, run = go(
        loaded_linear(name),
        tmp_path / "broken",
        [Full()],
        limits=few,
        listener=lambda event: written.append(event) if event.kind == "sample" else None,
        should_stop=lambda: len(written) >= 2,
    )
    assert outcome.interrupted
    done = len(run.records("full", "words"))
    assert 0 < done < 4
    outcome, _ = go(loaded_linear(name), tmp_path / "broken", [Full()], limits=few)
    assert outcome.written == 4 - done
    files = [tmp_path / run / "predictions" / "full" / "words.jsonl" for run in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("name", [*SOME, "mamba2", "falcon_mamba", "rwkv5", "xlstm"])
def test_rows_decoded_side_by_side_are_those_decoded_alone(name: str) -> None:
    loaded, rules = loaded_linear(name), Rules(max_new_tokens=5)
    records = [prefill(loaded, list(range(10, 10 + n))) for n in (12, 30, 7)]
    together = decode_rows(loaded, [r.cache.fork() for r in records], torch.stack([r.logits for r in records]), rules)
    alone = [decode_rows(loaded, [r.cache.fork()], r.logits[None], rules)[0] for r in records]
    assert [g.ids for g in together] == [g.ids for g in alone]


@pytest.mark.parametrize("name", ["mamba", "rwkv5", "jamba"])
def test_a_step_of_several_rows_is_one_pass_where_states_stand_side_by_side(name: str, tmp_path: Path) -> None:
    loaded = loaded_linear(name)
    with counted_passes(loaded) as passes:
        go(loaded, tmp_path / "run", [Full()])
    steps = [n for n in passes if n == 1]
    stacks = name != "jamba"
    assert (len(steps) <= 6) == stacks
    with counted_passes(loaded) as passes:
        go(loaded, tmp_path / "exact", [Full()], spec=replace(SPEC, exact=True))
    assert len([n for n in passes if n == 1]) > 6
    files = [tmp_path / run / "predictions" / "full" / "words.jsonl" for run in ("run", "exact")]
    stacked, alone = (f.read_text().replace('"stacked"', '"exact"') for f in files)
    assert stacked == alone


@pytest.mark.parametrize("name", SOME)
def test_a_hidden_question_changes_nothing_for_the_whole_model(name: str, tmp_path: Path) -> None:
    """What is held after context and question is what the model reads anyway; the question goes in token by token
    where the model may not be fed otherwise."""
    answers = {}
    for question in ("visible", "hidden"):
        spec = replace(SPEC, question=question)  # type: ignore[arg-type]
        _, run = go(loaded_linear(name, chat=True), tmp_path / question, [Full()], spec=spec, task=Asked())
        answers[question] = [(r.pred, r.kv_bytes, r.kv_bytes_full) for r in run.records("full", "asked")]
    assert answers["hidden"] == answers["visible"]


class SameStart(Words):
    """Prompts that begin alike for longer than a shared piece must be."""

    name = "same-start"

    def prompt(self, row: Row, home: Path) -> Prompt:
        return Prompt("one beginning for all of them, " * 6 + row.fields["text"])


def test_prompts_that_begin_alike_are_each_read_at_once(tmp_path: Path) -> None:
    for loaded, shared in ((loaded_linear("mamba"), False), (loaded_tiny(chat=False), True)):
        task = SameStart()
        sets = prepare(SPEC, loaded.info, loaded.tokenizer, [Full()], [(task, task.load(tmp_path))], tmp_path)
        groups = make_groups(sets, loaded.shape(), Limits(rows=8, tokens=10_000, nbytes=2**30))
        assert any(cuts for group in groups for cuts in group.cuts) == shared


def test_what_changes_the_text_alone_serves_every_model(tmp_path: Path) -> None:
    loaded = loaded_linear("mamba")
    require(Shorter(), loaded.shape(), "tiny")
    outcome, run = go(loaded, tmp_path / "run", [Full(), Shorter()])
    assert outcome.failed == 0
    longer, shorter = run.records("full", "words"), run.records("shorter", "words")
    assert all(a.prompt_tokens > b.prompt_tokens for a, b in zip(longer, shorter, strict=True))
    assert {r.kv_bytes for r in longer} == {r.kv_bytes for r in shorter}


@pytest.mark.parametrize("method", [Half(), Scaled()], ids=lambda m: m.name)
def test_what_touches_the_cache_or_the_model_is_refused(method: Any) -> None:
    with pytest.raises(ModelError, match="works on keys and values alone") as refused:
        require(method, loaded_linear("jamba").shape(), "some/jamba")
    assert "some/jamba" in refused.value.message
    assert "--method full" in refused.value.next_step


def test_every_registered_method_either_serves_or_refuses() -> None:
    shape = loaded_linear("mamba").shape()
    served = []
    for name, cls in all_methods().items():
        try:
            method = resolve(name)
        except Exception:  # one that needs a parameter
            continue
        if method.leaves_model_alone:
            require(method, shape, "tiny")
            served.append(name)
        else:
            with pytest.raises(ModelError):
                require(method, shape, "tiny")
        assert cls.traits.family
    assert "full" in served
    assert not {"kivi", "snapkv", "streamingllm", "quest"} & set(served)
    with pytest.raises(ModelError):
        require(resolve("snapkv+kivi"), shape, "tiny")


def test_chunks_only_where_a_state_may_be_continued() -> None:
    with pytest.raises(ModelError, match="chunks"):
        check_chunk(loaded_linear("mamba").info, 16)
    check_chunk(loaded_linear("mamba").info, None)
    loaded = loaded_linear("mamba2")
    check_chunk(loaded.info, 16)
    ids = list(range(50))
    assert (prefill(loaded, ids).logits - prefill(loaded, ids, chunk=16).logits).abs().max() < 3e-4


def test_the_estimate_counts_states(tmp_path: Path) -> None:
    loaded, task = loaded_linear("mamba"), Words()
    sets = prepare(SPEC, loaded.info, loaded.tokenizer, [Full()], [(task, task.load(tmp_path))], tmp_path)
    groups = make_groups(sets, loaded.shape(), Limits(rows=8, tokens=1000, nbytes=2**30))
    cost = estimate(loaded.info, sets, groups, MachineRates(1e9, 1e9))
    assert cost.kv_bytes == loaded.shape().full_bytes(1)
    assert cost.peak_bytes > cost.weight_bytes
    assert cost.seconds > 0
    state = loaded.info.state
    assert state is not None
    assert state.scan_bytes == 3 * 4 * 96 * 8  # fp32 [d_inner, n], three times
    assert prompt_bytes(loaded.shape(), 100) > 100 * state.scan_bytes


@pytest.mark.parametrize("name", ["mamba", "mamba2", "bamba", "rwkv5", "qwen3_next"])
def test_the_memory_of_a_prompt_is_about_what_was_predicted(name: str) -> None:
    loaded, length = loaded_linear(name), 600
    prefill(loaded, [1] * 20)
    with AllocatorPeak("cpu", held=loaded.info.weight_bytes) as meter, meter.part("read"):
        prefill(loaded, [i % 256 for i in range(length)])
    measured = meter.parts["read"] - loaded.info.weight_bytes
    assert 0.4 < prompt_bytes(loaded.shape(), length) / measured < 2.5


def test_a_sample_error_is_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = loaded_linear("lfm2")
    forward, calls = type(loaded.model).forward, []

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("no luck")
        return forward(self, *args, **kwargs)

    failing.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(loaded.model), "forward", failing)
    outcome, _ = go(loaded, tmp_path / "run", [Full()])
    assert outcome.failed == 1
    monkeypatch.undo()
    go(loaded, tmp_path / "run", [Full()])
    go(loaded_linear("lfm2"), tmp_path / "clean", [Full()])
    latest = {r.id: r.pred for r in RunDirectory.open(tmp_path / "run").records("full", "words")}
    assert latest == {r.id: r.pred for r in RunDirectory.open(tmp_path / "clean").records("full", "words")}
