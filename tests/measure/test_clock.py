from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from lcbench.measure.clock import Stopwatch
from lcbench.measure.device import kind_of


def test_it_measures_the_block() -> None:
    with Stopwatch() as watch:
        time.sleep(0.05)
        first = watch.lap()
        time.sleep(0.05)
    assert 0.05 <= first < watch.seconds
    assert 0.1 <= watch.seconds < 5
    assert watch.lap() == 0.0
    measured = watch.seconds
    with watch:
        pass
    assert watch.seconds < measured


def test_seconds_are_there_after_an_error_too() -> None:
    watch = Stopwatch("cpu")
    with pytest.raises(ZeroDivisionError), watch:
        raise ZeroDivisionError(time.sleep(0.01))
    assert watch.seconds >= 0.01


class _Queue:
    """A device whose work is done when somebody waits for it."""

    def __init__(self) -> None:
        self.queued = 0.0
        self.waits: list[str] = []

    def synchronize(self, device: str) -> None:
        self.waits.append(device)
        time.sleep(self.queued)
        self.queued = 0.0


def test_queued_work_before_is_left_out_and_its_own_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    queue = _Queue()
    monkeypatch.setattr(torch.cuda, "synchronize", queue.synchronize)
    queue.queued = 0.2
    with Stopwatch("cuda:1") as watch:
        queue.queued = 0.05
    assert queue.waits == ["cuda:1", "cuda:1"]
    assert 0.05 <= watch.seconds < 0.2


def test_an_error_is_not_hidden_by_a_device_that_no_longer_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    calls: list[Any] = []

    def synchronize(device: str) -> None:
        calls.append(device)
        if len(calls) > 1:
            raise RuntimeError("device lost")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(ValueError, match="mine"), Stopwatch("cuda"):
        raise ValueError("mine")


def test_device_names() -> None:
    import torch

    assert kind_of("cuda:3") == "cuda"
    assert kind_of(torch.device("cpu")) == "cpu"
    with pytest.raises(ValueError, match="xpu"), Stopwatch("xpu"):
        pass


def test_measuring_the_cpu_needs_no_torch() -> None:
    code = (
        "import sys; from lcbench.measure.clock import Stopwatch; from lcbench.measure.memory import PeakMemory\n"
        "with Stopwatch(), PeakMemory(): pass\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.gpu
def test_a_kernel_is_waited_for() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    a = torch.randn(8192, 8192, device="cuda")
    a @ a
    with Stopwatch("cuda") as waited:
        for _ in range(10):
            a @ a
    began = time.perf_counter()
    for _ in range(10):
        a @ a
    launched = time.perf_counter() - began
    torch.cuda.synchronize()
    assert waited.seconds > 5 * launched
