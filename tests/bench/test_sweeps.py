"""What the benchmark scripts share; the scripts themselves run with --quick (make bench-quick)."""

from __future__ import annotations

import pytest
from sweeps import endless

from lcbench.tasks.registry import resolve


@pytest.mark.parametrize("name", ["passkey", "qasper", "samsum"])
def test_a_task_without_early_ends_is_a_copy(name: str) -> None:
    (task,) = resolve(name)
    before = (task.min_new_tokens, task.early_stop, task.stop)
    made = endless(task, 16)
    assert (made.min_new_tokens, made.early_stop, made.stop, made.id) == (16, False, "eos", task.id)
    assert isinstance(made, type(task))
    assert (task.min_new_tokens, task.early_stop, task.stop) == before
