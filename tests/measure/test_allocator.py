from __future__ import annotations

import pytest
import torch

from lcbench.measure.allocator import AllocatorPeak
from lcbench.measure.bandwidth import copy_bandwidth
from lcbench.measure.machine import machine

MIB = 2**20


def _bytes(mib: int) -> torch.Tensor:
    return torch.zeros(mib * MIB, dtype=torch.uint8)


def test_each_part_has_the_peak_of_the_tensors_alive_in_it() -> None:
    with AllocatorPeak(held=7 * MIB) as peak:
        with peak.part("two, one freed"):
            first, second = _bytes(3), _bytes(5)
            del second
        with peak.part("what is left"):
            pass
        with peak.part("one more"):
            third = _bytes(1)
        del first, third
        with peak.part("all freed"):
            pass
    found = {name: round(most / MIB, 2) for name, most in peak.parts.items()}
    assert found == {"two, one freed": 15, "what is left": 10, "one more": 11, "all freed": 7}


def test_memory_kept_from_earlier_peaks_does_not_count() -> None:
    _bytes(200)
    with AllocatorPeak() as peak, peak.part("small"):
        _bytes(2)
    assert peak.parts["small"] == pytest.approx(2 * MIB, rel=0.01)


def test_nothing_is_written_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with AllocatorPeak() as peak, peak.part("quiet"):
        _bytes(1)
    assert capfd.readouterr().err == ""


def test_an_error_inside_passes_through() -> None:
    with pytest.raises(ZeroDivisionError), AllocatorPeak() as peak, peak.part("bad"):
        1 / 0  # noqa: B018
    assert peak.parts == {}


def test_a_copy_moves_between_a_hundred_megabytes_and_ten_terabytes_a_second() -> None:
    assert 1e8 < copy_bandwidth(repeats=2) < 1e13


def test_the_machine_is_named_by_what_makes_it_fast() -> None:
    found = machine()
    assert found["cores"] >= 1
    assert found["threads"] == torch.get_num_threads()
    assert found["memory_bytes"] > 2**28
    assert found["gpu"] is None
    assert found["words"].endswith("no GPU")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_counts_for_itself() -> None:
    with AllocatorPeak("cuda:0") as peak, peak.part("one"):
        torch.zeros(5 * MIB, dtype=torch.uint8, device="cuda:0")
    assert peak.parts["one"] >= 5 * MIB
