"""Running out of memory: halved and tried again, or recorded; the run goes on, and says so."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import Half, Words, go

from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine import outcome
from lcbench.engine.answer import Answerer
from lcbench.engine.groups import make_groups
from lcbench.engine.memory import Limits, measure_limits
from lcbench.engine.options import Options
from lcbench.engine.prepare import prepare
from lcbench.measure.memory import available_bytes
from lcbench.methods.full import Full
from lcbench.methods.registry import resolve
from lcbench.models import adapter
from lcbench.models.info import LoadedModel
from lcbench.tasks.base import Loaded, Row
from tiny import loaded_tiny


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@contextmanager
def small_memory(fits: Callable[[int, int], bool]) -> Iterator[list[tuple[int, int]]]:
    """A device on which a forward pass fails unless ``fits(rows, tokens)``; yields the passes that failed."""
    forward, failed = adapter.forward, []

    def limited(model: Any, ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        rows, tokens = ids.shape
        if not fits(rows, tokens):
            failed.append((rows, tokens))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(model, ids, *args, **kwargs)

    adapter.forward = limited
    try:
        yield failed
    finally:
        adapter.forward = forward


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    methods = [Full(), Half(), resolve("knorm@budget=0.5")]
    wide = Limits(rows=12, tokens=10_000, nbytes=2**40)
    _, plain = go(loaded, tmp_path / "plain", methods, limits=wide)
    with small_memory(lambda rows, tokens: rows <= 2) as failed:
        outcome, run = go(loaded, tmp_path / "small", methods, limits=wide)
    assert failed[0] == (12, 1)
    assert outcome.failed == 0
    assert outcome.halved >= 1
    for m in run.methods:
        assert run.predictions_path(m, "words").read_bytes() == plain.predictions_path(m, "words").read_bytes()
    events = run.events()
    assert [e["event"] for e in events] == ["out_of_memory"] * len(events)
    assert events[0]["then"] == "halved"
    assert len(events[0]["samples"]) == 4
    assert events[0]["methods"] == ["full", "half", "knorm@budget=0.5"]
    assert all(t["halved"] >= 1 for m in run.methods for t in run.timings(m, "words").values())
    assert "halved" not in next(iter(plain.timings("full", "words").values()))


def test_a_batch_of_a_size_that_failed_is_not_tried_again(tmp_path: Path) -> None:
    class Even(Words):
        name = "even"

        def load(self, home: Path, limit: int | None = None) -> Loaded:
            return Loaded([Row(f"r{i}", {"text": f"{i}" * 60}, ("a",), length=9) for i in range(6)])

    wide = Limits(rows=4, tokens=10_000, nbytes=2**40)
    with small_memory(lambda rows, tokens: rows <= 2) as failed:
        outcome, _ = go(loaded_tiny(), tmp_path / "run", [Full(), Half()], limits=wide, task=Even())
    assert outcome.failed == 0
    assert len(failed) == 1  # three groups of two prompts each; the second and third are halved before they are tried


def test_a_prompt_that_does_not_fit_is_an_error_and_the_run_goes_on(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    methods = [Full(), Half()]
    with small_memory(lambda rows, tokens: tokens < 50):
        outcome, run = go(loaded, tmp_path / "run", methods)
    records = {m: run.records(m, "words") for m in run.methods}
    for found in records.values():
        assert len(found) == 4
        for record in found:
            assert record.ok == (record.prompt_tokens < 50)
            assert record.error == (None if record.ok else "out of memory")
    assert 0 < outcome.failed < 8
    assert run.events()[-1]["then"] == "recorded as an error"
    again, _ = go(loaded, tmp_path / "run", methods)  # more memory now
    assert (again.failed, again.written) == (0, outcome.failed)


def test_a_prompt_that_does_not_fit_is_tried_twice_whatever_waits_for_it(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    methods = [Full(), Half(), resolve("knorm@budget=0.5")]
    longest = max(
        len(loaded.tokenizer(Words().prompt(row, tmp_path).text)["input_ids"]) for row in Words().load(tmp_path).rows
    )
    with small_memory(lambda rows, tokens: tokens < longest) as failed:
        outcome, run = go(loaded, tmp_path / "run", methods, limits=Limits(rows=1, tokens=1, nbytes=1))  # waves of one
    assert outcome.failed == 3
    assert failed == [(1, longest)] * 2
    assert [event["then"] for event in run.events()] == ["tried again", "recorded as an error"]


def test_what_fails_once_for_want_of_memory_is_tried_again(tmp_path: Path) -> None:
    loaded, left = loaded_tiny(), [1]
    _, plain = go(loaded, tmp_path / "plain", [Full()])

    def fits(rows: int, tokens: int) -> bool:
        if tokens > 1 or not left:
            return True
        left.pop()
        return False

    with small_memory(fits) as failed:
        outcome, run = go(loaded, tmp_path / "run", [Full()], limits=Limits(rows=1, tokens=1, nbytes=2**40))
    assert failed == [(1, 1)]
    assert (outcome.failed, outcome.halved) == (0, 0)
    assert [event["then"] for event in run.events()] == ["tried again"]
    assert run.predictions_path("full", "words").read_bytes() == plain.predictions_path("full", "words").read_bytes()


def test_a_single_answer_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    """Compressing one method alone fails: its neighbours are answered."""

    class Greedy(Half):
        name = "greedy"

        def compress(self, record: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    outcome, run = go(loaded_tiny(), tmp_path / "run", [Full(), Greedy()])
    assert all(r.ok for r in run.records("full", "words"))
    assert {r.error for r in run.records("greedy", "words")} == {"out of memory"}
    assert outcome.failed == 4


def test_one_row_that_fails_while_decoding_takes_no_other_with_it(tmp_path: Path) -> None:
    class Broken(Half):
        name = "broken"

        def compress(self, record: Any) -> Any:
            cache = super().compress(record)
            cache.layers[1].attend_alone = None  # type: ignore[method-assign]
            cache.layers[1].may_stack = lambda rule: False  # type: ignore[method-assign]
            return cache

    loaded: LoadedModel = loaded_tiny()
    _, plain = go(loaded, tmp_path / "plain", [Full(), Half()])
    outcome, run = go(loaded, tmp_path / "run", [Full(), Broken(), Half()])
    assert outcome.failed == 4
    assert all("TypeError" in (r.error or "") for r in run.records("broken", "words"))
    assert outcome.halved == 0  # it was not for want of memory
    for m in ("full", "half"):
        assert run.records(m, "words") == plain.records(m, "words")


def test_limits_come_from_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    info = loaded_tiny().info
    assert 2**20 < available_bytes("cpu") < 2**50
    monkeypatch.setattr("lcbench.engine.memory.available_bytes", lambda device: 10 * 2**30)
    one, two = measure_limits(info), measure_limits(info, workers=2)
    assert one.nbytes == int(0.5 * (10 * 2**30 - info.weight_bytes))
    assert 0.49 * one.nbytes < two.nbytes < 0.5 * one.nbytes + 1
    monkeypatch.setattr("lcbench.engine.memory.available_bytes", lambda device: 0)
    assert measure_limits(info).nbytes == 2**26
    assert outcome.sentence(torch.OutOfMemoryError("x")) == "out of memory"


def test_a_run_keeps_the_limits_it_began_with(tmp_path: Path) -> None:
    _, run = go(loaded_tiny(), tmp_path / "run", [Full()])
    first = run.batching({"rows": 3, "tokens": 4, "nbytes": 5})
    assert run.batching({"rows": 30, "tokens": 40, "nbytes": 50}) == first == {"rows": 3, "tokens": 4, "nbytes": 5}
    (run.path / "batching.json").write_text("{broken")
    assert run.batching({"rows": 30, "tokens": 40, "nbytes": 50})["rows"] == 30


LEAVING = (
    "full", "snapkv@budget=0.3,window=8", "adakv@budget=0.3,window=8", "adakv@granularity=query,budget=0.3,window=8",
    "corm@window=8,recent=8", "streamingllm@budget=24", "h2o@budget=24", "tova@budget=24", "cam@budget=24",
    "kivi@bits=2,residual_length=32", "flexgen", "quest@budget=16,dense_layers=0", "keydiff@budget=0.5",
    "lighttransfer", "shadowkv", "squeezed-attention", "infllm", "em-llm",
    "selfextend@group=2,neighbours=16",
)  # fmt: skip


@pytest.mark.parametrize("exact", [False, True])
def test_what_a_batch_held_is_given_back_when_it_ends(tmp_path: Path, exact: bool) -> None:
    """Without the collector of circles, which comes when it likes."""
    loaded = loaded_tiny()
    spec = RunSpec(model=ModelSpec(name="tiny"), exact=exact)
    methods = [resolve(name).bind(loaded.info, tmp_path) for name in LEAVING]
    sets = prepare(spec, loaded.info, loaded.tokenizer, methods, [(Words(), Words().load(tmp_path))], tmp_path)
    groups = make_groups(sets, loaded.shape(), Limits(rows=64, tokens=10_000, nbytes=2**40))
    answerer = Answerer(loaded, sets, Options(exact=exact))

    def held() -> int:
        tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and not one.is_meta]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    for group in groups:
        for _ in range(2):  # the first makes what stays: constants, rotary tables
            gc.collect()
            before = held()
            gc.disable()
            try:
                made = [result.record for result in answerer.run(group)]
                after = held()
            finally:
                gc.enable()
        assert all(record.ok for record in made), {record.error for record in made}
        assert after - before < 10_000, [method.id for method in sets[group.set_index].methods]
