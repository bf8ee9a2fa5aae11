"""Which prompts are answered together, in which order, and where prompts that begin alike are cut."""

from __future__ import annotations

import random
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up import Words

from lcbench.engine.groups import Group, make_groups, room_of
from lcbench.engine.memory import Limits, is_out_of_memory, prompt_bytes, row_bytes
from lcbench.engine.plan import PreparedPrompt, PromptSet
from lcbench.engine.prefix import shared_beginnings
from lcbench.kv.cache import CacheShape
from lcbench.methods.base import Method
from lcbench.methods.registry import resolve
from lcbench.tasks.base import Row

SHAPE = CacheShape(4, 8, 2, 32, torch.float32, torch.device("cpu"))
WIDE = Limits(rows=8, tokens=10_000, nbytes=2**40)


def prompt_set(lengths: list[int], methods: list[Method], *, broken: tuple[int, ...] = ()) -> PromptSet:
    prompts = tuple(
        PreparedPrompt(Row(f"r{i}", {}, ()), array("q", [i] * n), n, error="too long" if i in broken else None)
        for i, n in enumerate(lengths)
    )
    shared = methods[0].traits.prefill == "shared"
    return PromptSet(Words(), tuple(methods), shared, prompts, 16, "", ("", ""))


def covered(groups: list[Group]) -> list[tuple[int, int]]:
    return sorted((g.set_index, p) for g in groups for p in g.prompts)


def test_every_prompt_is_in_one_group_and_the_longest_come_first() -> None:
    sets = [
        prompt_set([30, 500, 20, 400, 60], [resolve("full"), resolve("snapkv")]),
        prompt_set([900], [resolve("full")]),
    ]
    groups = make_groups(sets, SHAPE, WIDE)
    assert covered(groups) == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]
    assert [g.index for g in groups] == list(range(len(groups)))
    assert [g.nbytes for g in groups] == sorted((g.nbytes for g in groups), reverse=True)
    own = [p for g in groups if g.set_index == 0 for p in g.prompts]
    assert own == [1, 3, 4, 0, 2]
    assert all(len(g.prompts) * 2 <= WIDE.rows for g in groups if g.set_index == 0)


def test_limits_bound_rows_tokens_and_bytes() -> None:
    prompts = prompt_set([100] * 12, [resolve("full"), resolve("kivi")])
    by_rows = make_groups([prompts], SHAPE, replace(WIDE, rows=6))
    assert [len(g.prompts) for g in by_rows] == [3, 3, 3, 3]
    by_tokens = make_groups([prompts], SHAPE, replace(WIDE, tokens=250))
    assert [len(g.prompts) for g in by_tokens] == [2] * 6
    a_row = row_bytes(resolve("full"), SHAPE, 100, 16)
    fits_five = prompt_bytes(SHAPE, 100) + 5 * 2 * a_row
    by_bytes = make_groups([prompts], SHAPE, Limits(rows=100, tokens=10_000, nbytes=fits_five))
    assert [len(g.prompts) for g in by_bytes] == [5, 5, 2]
    assert all(g.nbytes <= fits_five for g in by_bytes)


def test_one_prompt_with_too_many_methods_is_decoded_in_lots() -> None:
    methods = [resolve(f"snapkv@budget={n}") for n in range(40, 45)]
    (group,) = make_groups([prompt_set([100], methods)], SHAPE, replace(WIDE, rows=2))
    assert group.waves == ((0, 1), (2, 3), (4,))
    (tight,) = make_groups([prompt_set([100], methods)], SHAPE, replace(WIDE, nbytes=1))
    assert tight.waves == ((0,), (1,), (2,), (3,), (4,))  # tried alone; the engine records what does not fit


def test_prompts_that_cannot_be_run_come_last() -> None:
    groups = make_groups([prompt_set([100, 5000, 50], [resolve("full")], broken=(1,))], SHAPE, WIDE)
    assert [g.prompts for g in groups] == [(0, 2), (1,)]


def test_groups_do_not_depend_on_anything_else() -> None:
    sets = [prompt_set([7 * i % 50 + 1 for i in range(30)], [resolve("full")])]
    assert make_groups(sets, SHAPE, WIDE) == make_groups(sets, SHAPE, WIDE)
    assert Limits.from_dict(WIDE.to_dict()) == WIDE
    with pytest.raises(ValueError):
        Limits.from_dict({"rows": 0, "tokens": 1, "nbytes": 1})


def test_a_kept_budget_needs_less_than_what_is_only_read() -> None:
    full = row_bytes(resolve("full"), SHAPE, 4096, 16)
    assert full == SHAPE.full_bytes(4112)
    assert row_bytes(resolve("snapkv@budget=0.25"), SHAPE, 4096, 16) <= 0.51 * full
    assert row_bytes(resolve("quest@budget=0.25"), SHAPE, 4096, 16) == full  # it keeps everything
    assert row_bytes(resolve("snapkv@granularity=query"), SHAPE, 4096, 16) > full  # a copy a query head


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a matmul primitive"))
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


# -- shared beginnings ----------------------------------------------------------------------------------------------


def ids(*runs: tuple[int, int]) -> list[int]:
    """Tokens: ``(value, how many)`` one after the other."""
    return [value for value, count in runs for _ in range(count)]


def test_questions_on_one_text_share_it() -> None:
    prompts = {0: ids((1, 500), (2, 30)), 1: ids((9, 80)), 2: ids((1, 500), (3, 40)), 3: ids((1, 500), (2, 10), (4, 9))}
    order = shared_beginnings(prompts)
    cuts = dict(order)
    assert order[0][0] == 2  # the longest prompt of the largest tree
    assert {n for n, _ in order[:3]} == {0, 2, 3}
    assert cuts[0] == cuts[2] == cuts[3] == (500,)  # ten more tokens in common do not pay for a pass
    assert cuts[1] == ()


def test_a_grid_of_growing_lengths_shares_beginnings_of_beginnings() -> None:
    hay, needle, end = (1, 2000), (7, 10), (8, 20)
    prompts = {
        0: ids((1, 300), needle, end),
        1: ids((1, 900), needle, end),
        2: ids((1, 900), needle, (1, 100), end),
        3: ids(hay, needle, end),
    }
    cuts = dict(shared_beginnings(prompts, keep_apart=5))
    assert cuts[3] == (300, 900)
    assert cuts[1] == cuts[2] == (300, 900)
    assert cuts[0] == (300,)
    assert dict(shared_beginnings(prompts, keep_apart=64))[0] == (330 - 64,)  # an observer watches the last 64


def test_cuts_are_common_beginnings_whatever_the_prompts() -> None:
    draw = random.Random(0)
    for _ in range(50):
        stems = [[draw.randrange(4) for _ in range(draw.randrange(1, 200))] for _ in range(3)]
        prompts = {
            i: draw.choice(stems)[: draw.randrange(1, 200)] + [draw.randrange(4) for _ in range(draw.randrange(1, 60))]
            for i in range(draw.randrange(1, 12))
        }
        order = shared_beginnings(prompts, keep_apart=3, least=16)
        assert sorted(n for n, _ in order) == sorted(prompts)
        lengths = [len(prompts[n]) for n, _ in order]
        assert lengths[0] == max(lengths)
        for number, cuts in order:
            assert list(cuts) == sorted(set(cuts))
            for cut, before in zip(cuts, (0, *cuts), strict=False):
                assert cut <= len(prompts[number]) - 3
                assert cut - before >= 16
                beginning = prompts[number][:cut]
                others = [n for n, theirs in order if cut in theirs and prompts[n][:cut] == beginning]
                assert len(others) >= 2


def test_many_nested_prompts_are_no_recursion() -> None:
    prompts = {i: [1] * (i + 1) for i in range(1200)}
    order = shared_beginnings(prompts, least=10**6)
    assert len(order) == 1200


def test_equal_prompts_share_all_but_their_end(tmp_path: Path) -> None:
    cuts = dict(shared_beginnings({0: [5] * 200, 1: [5] * 200}))
    assert cuts == {0: (199,), 1: (199,)}


def test_what_is_held_of_beginnings_counts_and_a_large_one_may_take_half() -> None:
    methods = [resolve("full")]
    prompts = [array("q", ids((1, 2000), (i, 40))) for i in range(2, 6)]
    sets = [
        PromptSet(
            Words(),
            tuple(methods),
            True,
            tuple(PreparedPrompt(Row(f"r{i}", {}, ()), p, len(p)) for i, p in enumerate(prompts)),
            16,
            "",
            ("", ""),
        )
    ]
    state = SHAPE.full_bytes(2000)
    for nbytes, held, taken in ((2**40, 4 * state, 2000), (3 * state, state, 2000), (int(1.9 * state), 0, 0)):
        limits = Limits(1, 10_000, nbytes)
        groups = make_groups(sets, SHAPE, limits)
        assert [group.taken for group in groups] == [(0,), *[(taken,)] * 3]
        need = row_bytes(methods[0], SHAPE, 2040, 16) + prompt_bytes(SHAPE, 2040)
        assert groups[0].nbytes == need + held
        assert room_of(groups, SHAPE, limits) >= held
        assert (room_of(groups, SHAPE, limits) >= state) == (taken > 0)
