"""Buffers grow, drop and fork without ever showing one holder's rows to another."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcbench.kv.buffer import Buffer


def rows(start: int, count: int) -> torch.Tensor:
    return torch.arange(start, start + count, dtype=torch.float32)[None, :, None].expand(2, -1, 3).clone()


ACTIONS = st.lists(st.tuples(st.sampled_from(["append", "drop", "fork"]), st.integers(1, 70)), max_size=25)


@given(st.integers(0, 10), ACTIONS)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_behaves_like_lists(first: int, actions: list[tuple[str, int]]) -> None:
    pairs = [(Buffer(rows(0, first)), list(range(first)))]
    stamp = first
    for action, count in actions:
        for i in range(len(pairs)):
            buffer, model = pairs[i]
            if action == "append":
                buffer.append(rows(stamp, count))
                model += range(stamp, stamp + count)
                stamp += count
            elif action == "drop":
                count = min(count, len(model))
                assert buffer.drop(count)[0, :, 0].tolist() == model[:count]
                del model[:count]
            elif len(pairs) < 4:
                pairs.append((buffer.fork(), list(model)))
    for buffer, model in pairs:
        assert len(buffer) == len(model)
        assert buffer.used[1, :, 2].tolist() == model


def test_slack_is_less_than_a_block() -> None:
    buffer = Buffer(rows(0, 128))
    assert buffer.used.untyped_storage().nbytes() == 128 * 6 * 4
    for i in range(400):
        buffer.append(rows(i, 1))
        buffer.drop(1)
        assert len(buffer) == 128
        assert buffer.used.untyped_storage().nbytes() <= (128 + Buffer.BLOCK) * 6 * 4


def test_first_rows_are_never_written() -> None:
    first = rows(0, 5)
    before = first.clone()
    buffer = Buffer(first)
    buffer.drop(5)
    buffer.append(rows(9, 3))
    assert torch.equal(first, before)
