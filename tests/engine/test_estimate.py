"""What a plan is said to cost follows its groups."""

from __future__ import annotations

from array import array

from made_up import Words

from lcbench.engine.estimate import Estimate, MachineRates, estimate
from lcbench.engine.groups import make_groups
from lcbench.engine.memory import Limits
from lcbench.engine.plan import PreparedPrompt, PromptSet
from lcbench.methods.registry import resolve
from lcbench.tasks.base import Row
from tiny import loaded_tiny

RATES = MachineRates(flops=1e9, bandwidth=1e9)


def cost(texts: list[list[int]], methods: tuple[str, ...], *, exact: bool = False, rows: int = 8) -> Estimate:
    info = loaded_tiny().info
    prompts = tuple(PreparedPrompt(Row(f"r{i}", {}, ()), array("q", ids), len(ids)) for i, ids in enumerate(texts))
    made = PromptSet(Words(), tuple(resolve(m) for m in methods), True, prompts, 16, "", ("", ""))
    groups = make_groups([made], info.shape(), Limits(rows, 10_000, 2**40))
    return estimate(info, [made], groups, RATES, exact=exact)


def test_more_methods_cost_less_than_as_many_runs() -> None:
    texts = [[i] * 400 for i in range(4)]
    one, four = cost(texts, ("full",)), cost(texts, ("full", "knorm", "kivi", "snapkv"))
    assert (one.prefills, four.prefills, one.answers, four.answers) == (4, 4, 4, 16)
    assert one.seconds < four.seconds < 4 * one.seconds
    assert four.seconds < cost(texts, ("full", "knorm", "kivi", "snapkv"), exact=True).seconds
    assert four.kv_bytes == loaded_tiny().shape().full_bytes(416)
    assert four.peak_bytes > four.weight_bytes + four.kv_bytes


def test_shared_beginnings_are_not_read_twice() -> None:
    apart = cost([[i] * 500 for i in range(4)], ("full",))
    alike = cost([[7] * 470 + [i] * 30 for i in range(4)], ("full",))
    assert alike.seconds < apart.seconds
