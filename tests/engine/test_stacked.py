"""Answers decoded together equal answers decoded alone: tokens, records, and what is left when a run is broken off."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import LIMITS, Half, Words, counted_passes, go

from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine.generate import decode, prefill
from lcbench.engine.memory import Limits
from lcbench.engine.stacked import Interrupted, Rules, decode_rows
from lcbench.kv.cache import KVCache
from lcbench.methods.base import Method
from lcbench.methods.full import Full
from lcbench.methods.registry import resolve
from lcbench.models.info import LoadedModel
from lcbench.store.rundir import RunDirectory
from tiny import VOCAB, loaded_tiny

SPECS = (
    "full",
    "snapkv@window=8,budget=0.25",
    "snapkv@window=8,budget=0.5",
    "snapkv@window=8,budget=0.5,granularity=query",
    "pyramidkv@window=4,budget=0.3",
    "adakv@window=8,budget=0.3",
    "h2o@budget=0.3",
    "tova@budget=0.3",
    "streamingllm@budget=40",
    "kivi@group_size=32,residual_length=32",
    "random@budget=0.4",
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def caches(loaded: LoadedModel, lengths: tuple[int, ...], specs: tuple[str, ...]) -> tuple[list[KVCache], torch.Tensor]:
    """A cache for each prompt and method, and the logits they begin with."""
    methods = [resolve(spec) for spec in specs]
    wishes = [wish for method in methods for wish in method.observes()]
    found, logits = [], []
    for length in lengths:
        generator = torch.Generator().manual_seed(length)
        record = prefill(loaded, torch.randint(0, 256, (length,), generator=generator).tolist(), observe=wishes)
        for method in methods:
            torch.manual_seed(7)
            found.append(method.compress(record))
            logits.append(record.logits)
    return found, torch.stack(logits)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_stacked_tokens_equal_one_by_one(kind: str) -> None:
    """Every kind of store, two prompt lengths, more steps than a block of a stack's memory holds.

    All are decoded together; each kind is compared at one of the lengths, and each length with half of the kinds.
    """
    window = {"sliding_window": 100} if kind == "mistral" else {}
    loaded = loaded_tiny(kind, **window)
    lengths = (60, 131)
    together, logits = caches(loaded, lengths, SPECS)
    alone, same = caches(loaded, lengths, SPECS)
    assert torch.equal(logits, same)
    rules = Rules(max_new_tokens=68)
    stacked = decode_rows(loaded, together, logits, rules)
    assert len(SPECS) % 2 == 1  # every second row: the odd kinds of one length, the even ones of the other
    single = [decode(loaded, cache, row, max_new_tokens=68) for cache, row in zip(alone[::2], logits[::2], strict=True)]
    for one, other in zip(stacked[::2], single, strict=True):
        if one != other:  # only where two candidates lay closer than rounding moves them, and that is said
            assert one.near_ties + other.near_ties > 0
    assert sum(a == b for a, b in zip(stacked[::2], single, strict=True)) >= len(single) - 1
    assert len({len(a.ids) for a in stacked}) > 1  # some left early


def test_stacked_logits_equal_one_by_one() -> None:
    loaded = loaded_tiny()
    together, _ = caches(loaded, (60, 100), SPECS)
    alone, _ = caches(loaded, (60, 100), SPECS)
    from lcbench.models import adapter

    for step in range(70):
        tokens = torch.tensor([[(step * 31 + 7 * r) % VOCAB] for r in range(len(together))])
        positions = torch.tensor([[cache.seen] for cache in together])
        stacked = adapter.forward(loaded.model, tokens, positions, together)[:, 0]
        for r, cache in enumerate(alone):
            single = adapter.forward(loaded.model, tokens[r : r + 1], positions[r : r + 1], [cache])[0, 0]
            assert (stacked[r] - single).abs().max() < 1e-3, (SPECS[r % len(SPECS)], step)
        if step % 9 == 8:  # rows leave, and others stay in their place
            gone = step % len(together)
            del together[gone], alone[gone]
    for a, b in zip(together, alone, strict=True):
        assert a.nbytes == b.nbytes
        for mine, theirs in zip(a.layers, b.layers, strict=True):
            assert torch.equal(mine.positions(), theirs.positions())


def test_bfloat16_tokens_equal_one_by_one() -> None:
    """Counted token by token: after each beginning of an answer that was decoded together, what decoding alone chooses
    next, so that one token chosen otherwise does not count again in all that follow it."""
    loaded = loaded_tiny(dtype=torch.bfloat16)
    lengths = tuple(range(40, 140, 10))
    specs = ("full", "snapkv@window=8,budget=0.5", "kivi@group_size=32,residual_length=32", "knorm@budget=0.5")
    together, logits = caches(loaded, lengths, specs)
    alone, _ = caches(loaded, lengths, specs)
    stacked = decode_rows(loaded, together, logits, Rules(max_new_tokens=32))
    total = disagreed = 0
    for one, cache, row in zip(stacked, alone, logits, strict=True):
        forced = _next_tokens(loaded, cache, row, one.ids)
        apart = sum(a != b for a, b in zip(forced, one.ids, strict=True))
        assert apart <= one.near_ties
        disagreed += apart
        total += len(one.ids)
    assert total > 1000
    assert disagreed <= 0.005 * total, f"{disagreed} of {total}"


def _next_tokens(loaded: LoadedModel, cache: KVCache, logits: torch.Tensor, ids: list[int]) -> list[int]:
    """What decoding alone would choose after each beginning of ``ids``."""
    from lcbench.models import adapter

    chosen = [int(logits.argmax())]
    for token in ids[:-1]:
        row = adapter.forward(loaded.model, torch.tensor([[token]]), torch.tensor([[cache.seen]]), [cache])
        chosen.append(int(row[0, -1].argmax()))
    return chosen


def test_rows_that_end_leave_the_batch() -> None:
    loaded = loaded_tiny()
    some, logits = caches(loaded, (50, 70, 90, 110), ("full",))
    free = decode_rows(loaded, some, logits, Rules(max_new_tokens=12))
    ends = [row.ids[k] for row, k in zip(free, (2, 11, 5, 0), strict=True)]
    again, logits = caches(loaded, (50, 70, 90, 110), ("full",))
    sizes: list[int] = []
    hook = loaded.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    try:
        rules = Rules(max_new_tokens=12, finished=lambda ids: ids[-1] in ends)
        made = decode_rows(loaded, again, logits, rules)
    finally:
        hook.remove()
    for row, whole in zip(made, free, strict=True):
        first = next((i for i, token in enumerate(whole.ids) if token in ends), 11)
        assert row.ids == whole.ids[: first + 1]
        assert row.stopped_by == ("finished" if row.ids[-1] in ends else "length")
    lengths = sorted(len(row.ids) for row in made)
    assert sizes == [sum(length > step for length in lengths) for step in range(1, lengths[-1])]


def test_end_tokens_are_forbidden_at_first() -> None:
    loaded = loaded_tiny()
    some, logits = caches(loaded, (50,), ("full",))
    free = decode_rows(loaded, some, logits, Rules(4))[0].ids
    again, logits = caches(loaded, (50,), ("full",))
    made = decode_rows(loaded, again, logits, Rules(4, min_new_tokens=2, stop_ids=(free[0],)))[0]
    assert free[0] not in made.ids[:2]


def test_near_ties_are_counted() -> None:
    loaded = loaded_tiny()
    with torch.no_grad():
        loaded.model.lm_head.weight[100:200] = loaded.model.lm_head.weight[:100]  # token i + 100 ties with token i
    some, logits = caches(loaded, (50,), ("full",))
    made = decode_rows(loaded, some, logits, Rules(20))[0]
    tied = sum(token < 200 for token in made.ids)
    assert made.near_ties == tied > 0


# -- whole runs -----------------------------------------------------------------------------------------------------


def methods() -> list[Method]:
    return [Full(), Half(), resolve("snapkv@window=4,budget=0.5"), resolve("kivi@group_size=32,residual_length=32")]


def lines(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for m in run.methods for line in run.predictions_path(m, "words").read_text().splitlines()]


def test_a_stacked_run_and_an_exact_one_differ_in_saying_so(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    spec = RunSpec(model=ModelSpec(name="tiny"))
    _, stacked = go(loaded, tmp_path / "stacked", methods(), spec=spec)
    _, exact = go(loaded, tmp_path / "exact", methods(), spec=replace(spec, exact=True))
    a, b = lines(stacked), lines(exact)
    assert {r.pop("decode") for r in a} == {"stacked"}
    assert {r.pop("decode") for r in b} == {"exact"}
    assert a == b


@pytest.mark.parametrize("limits", [LIMITS, Limits(rows=12, tokens=1000, nbytes=2**30), Limits(4, 10, 2**30)])
def test_the_size_of_groups_moves_no_record(tmp_path: Path, limits: Limits) -> None:
    loaded = loaded_tiny()
    _, one = go(loaded, tmp_path / "one", methods(), limits=Limits(rows=1, tokens=1, nbytes=2**30))
    _, other = go(loaded, tmp_path / "other", methods(), limits=limits)
    assert lines(one) == lines(other)


def test_a_run_broken_off_at_any_step_ends_the_same(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    _, whole = go(loaded, tmp_path / "whole", methods())
    for step in (0, 1, 3, 6, 9, 14):
        path = tmp_path / f"after-{step}"
        asked = 0

        def stop(limit: int = step) -> bool:
            nonlocal asked
            asked += 1
            return asked > limit

        first, _ = go(loaded, path, methods(), should_stop=stop)
        assert first.interrupted
        second, parts = go(loaded, path, methods())
        assert not second.interrupted
        assert first.written + second.written == 16
        for m in whole.methods:
            assert parts.predictions_path(m, "words").read_bytes() == whole.predictions_path(m, "words").read_bytes()


def test_records_lost_from_the_middle_of_a_group_are_made_again(tmp_path: Path) -> None:
    """A kill between two records of a group: what is missing is computed with the same neighbours."""
    loaded = loaded_tiny()
    _, whole = go(loaded, tmp_path / "whole", methods())
    _, parts = go(loaded, tmp_path / "parts", methods())
    for number, m in enumerate(parts.methods):
        file = parts.predictions_path(m, "words")
        file.write_text("".join(file.read_text().splitlines(keepends=True)[: 3 - min(number, 1)]))
    again, _ = go(loaded, tmp_path / "parts", methods())
    assert again.written == 1 + 3 * 2
    for m in whole.methods:
        assert parts.predictions_path(m, "words").read_bytes() == whole.predictions_path(m, "words").read_bytes()


def test_interrupting_a_batch_gives_it_up() -> None:
    loaded = loaded_tiny()
    some, logits = caches(loaded, (50,), ("full",))
    with pytest.raises(Interrupted):
        decode_rows(loaded, some, logits, Rules(8), should_stop=lambda: some[0].seen > 52)
    assert some[0].seen == 53


# -- the prompt as it was read ---------------------------------------------------------------------------------------


def test_a_prompt_within_its_budget_is_the_full_row_and_not_decoded_again(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    chosen = [Full(), resolve("snapkv@budget=60"), resolve("knorm@budget=60"), Half()]
    for exact in (False, True):
        spec = RunSpec(model=ModelSpec(name="tiny"), exact=exact)
        with counted_passes(loaded) as passes:
            _, run = go(loaded, tmp_path / str(exact), chosen, spec=spec)
        full = run.records("full", "words")
        for name in ("snapkv@budget=60", "knorm@budget=60"):
            for row, record in zip(full, run.records(name, "words"), strict=True):
                fits = row.prompt_tokens <= 60
                assert record.reused_from == ("full" if fits else None)
                if fits:
                    assert replace(record, reused_from=None) == row
        assert [r.reused_from for r in full] == [None] * 4
        fitting = sum(r.prompt_tokens <= 60 for r in full)
        assert fitting >= 2
        if exact:
            steps = sum(n == 1 for n in passes)
            decoded = sum(r.new_tokens for m in run.methods for r in run.records(m, "words") if not r.reused_from)
            assert steps <= decoded


@pytest.mark.parametrize("name", ["tova", "h2o", "vatp", "streamingllm", "cam"])
def test_methods_that_act_while_decoding_are_full_where_prompt_and_answer_fit(tmp_path: Path, name: str) -> None:
    loaded, most = loaded_tiny(), Words().answer_tokens(Path())
    lengths = [row.prompt_tokens for row in go(loaded, tmp_path / "full", [Full()])[1].records("full", "words")]
    budget = sorted(lengths)[1] + most + 2  # two before the end cam begins to merge
    chosen = [Full(), resolve(f"{name}@budget={budget}"), resolve(f"{name}@budget={min(lengths) + 1}")]
    _, run = go(loaded, tmp_path / "run", chosen)
    full = run.records("full", "words")
    some, none = (run.records(method.id, "words") for method in chosen[1:])
    for row, record in zip(full, some, strict=True):
        assert (record.reused_from == "full") == (row.prompt_tokens + most + 2 <= budget)
        if record.reused_from:
            assert replace(record, reused_from=None) == row  # bytes as well: h2o's running scores are not needed
    assert 2 <= sum(record.reused_from == "full" for record in some) < len(some)
    assert not any(record.reused_from for record in none)  # a prompt that fits, whose answer does not


def test_the_mark_does_not_depend_on_full_being_there(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    for name in ("snapkv@budget=60", "h2o@budget=80"):
        _, alone = go(loaded, tmp_path / f"alone-{name}", [resolve(name)])
        _, both = go(loaded, tmp_path / f"both-{name}", [Full(), resolve(name)])
        _, late = go(loaded, tmp_path / f"late-{name}", [resolve("h2o@budget=90"), resolve(name)])
        path: Callable[[RunDirectory], Path] = lambda run: run.predictions_path(name, "words")  # noqa: B023, E731
        assert path(alone).read_bytes() == path(both).read_bytes() == path(late).read_bytes()
        assert any(r.reused_from == "full" for r in alone.records(name, "words"))


def test_made_up_rows_are_of_different_lengths() -> None:
    rows = Words().load(Path()).rows
    assert len({len(Words().prompt(row, Path()).text) for row in rows}) == 4
