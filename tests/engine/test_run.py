"""The main loop on tiny models: who shares a prefill, what is recorded, how a run stops, fails and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_up import Failing, Half, Scaled, Shorter, Words, counted_passes, go

from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine.memory import Limits
from lcbench.engine.outcome import Event
from lcbench.engine.reading import sample_seed
from lcbench.errors import ModelError
from lcbench.kv.cache import KVCache
from lcbench.kv.record import PrefillRecord
from lcbench.methods.full import Full
from lcbench.methods.registry import resolve
from lcbench.store.rundir import RunDirectory
from tiny import loaded_tiny


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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
    # an answer's first token comes from its prompt's pass; the others of all answers together, a step at a time
    assert len(passes) - len(prefills) <= 2 * (6 - 1)


def test_records_say_what_was_kept(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    _, run = go(loaded, tmp_path / "run", [Full(), Half()])
    full, half = run.records("full", "words"), run.records("half", "words")
    for a, b in zip(full, half, strict=True):
        assert (a.id, a.prompt_tokens, a.answers, a.length) == (b.id, b.prompt_tokens, b.answers, b.length)
        assert a.kv_bytes == a.kv_bytes_full == 2 * 4 * 2 * 32 * 4 * a.prompt_tokens
        assert b.kept_tokens == -(-a.prompt_tokens // 2)
        assert b.kv_bytes == 2 * 4 * 2 * 32 * 4 * int(b.kept_tokens)
        assert (a.resident_bytes, b.resident_bytes) == (a.kv_bytes, b.kv_bytes)
        assert a.task_version == 3
        assert a.shared_prefill
        assert a.meta["i"] == int(a.id[1:])
    assert [r.pred for r in full] != [r.pred for r in half]
    assert set(run.timings("full", "words")) == {r.id for r in full}


def test_records_say_what_a_step_reads_of_what_is_kept(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    quest = resolve("quest@budget=16,page_size=4,dense_layers=0")
    _, run = go(loaded, tmp_path / "run", [Full(), quest])
    for record in run.records(quest.id, "words"):
        entry = 2 * 4 * 2 * 32 * 4
        bounds = record.prompt_tokens // 4 * entry
        assert record.kv_bytes == record.kv_bytes_full + bounds
        assert record.resident_bytes == bounds + 16 * entry


def test_a_method_that_reads_for_itself_is_told_the_prompt_s_length(tmp_path: Path) -> None:
    """Its budget is a share of that: told another length, it would keep another number of tokens."""
    own = resolve("streamingllm-longctx@budget=0.5,n_init=2")
    _, run = go(loaded_tiny(), tmp_path / "run", [own])
    records = run.records(own.id, "words")
    assert len({record.prompt_tokens for record in records}) > 1
    for record in records:
        assert record.kept_tokens == record.prompt_tokens // 2


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
    two = Limits(rows=4, tokens=1000, nbytes=2**30)  # prompts a group
    _, whole = go(loaded, tmp_path / "whole", [Full(), Half()], limits=two)
    written: list[Event] = []
    first, _ = go(
        loaded,
        tmp_path / "parts",
        [Full(), Half()],
        limits=two,
        listener=lambda event: written.append(event) if event.kind == "sample" else None,
        should_stop=lambda: len(written) >= 4,
    )
    assert first.interrupted
    assert first.written == 4
    second, parts = go(loaded, tmp_path / "parts", [Full(), Half()], limits=two)
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
