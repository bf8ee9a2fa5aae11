"""The time left is told from work that was done, and not before there is any."""

from __future__ import annotations

import pytest

from lcbench.cli.time_left import TimeLeft


def test_nothing_is_told_before_some_work_is_done() -> None:
    left = TimeLeft(1000.0)
    assert left.left(5.0) is None
    left.settle(100.0)
    assert left.left(150.0) is None
    left.add(10.0)
    left.settle(160.0)
    assert left.left(160.0) is None  # a hundredth: too little to tell from


def test_it_follows_the_speed_and_counts_down_between_groups() -> None:
    left = TimeLeft(100.0)
    left.settle(50.0)  # the model was loaded until then
    left.settle(55.0)  # the second prompt of the batch
    left.add(5.0)
    assert left.left(60.0) is None  # the rest of the batch is still being written
    left.add(15.0)
    left.settle(60.0)
    assert left.left(60.0) == pytest.approx(40.0)
    assert left.left(70.0) == pytest.approx(30.0)
    assert left.left(600.0) == 0.0
    left.add(30.0)
    left.settle(70.0)
    assert left.left(70.0) == pytest.approx(20.0)
    left.add(50.0)
    left.settle(90.0)
    assert left.left(90.0) == 0.0
