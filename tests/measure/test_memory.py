from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from lcbench.measure import memory
from lcbench.measure.memory import PeakMemory, peak_resident_bytes, resident_bytes

MIB = 2**20


def _touch(mib: int) -> mmap.mmap:
    """Fresh pages from the system, all written to: memory that an allocator has kept would not show."""
    block = mmap.mmap(-1, mib * MIB)
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    return block


def test_a_peak_inside_the_block_is_seen_though_it_was_freed() -> None:
    with PeakMemory() as peak:
        block = _touch(200)
        del block
    assert peak.bytes - peak.start_bytes > 180 * MIB


def test_a_peak_before_the_block_is_forgotten() -> None:
    block = _touch(300)
    del block
    with PeakMemory("cpu") as peak:
        if not peak.exact:
            pytest.skip("this system cannot reset the peak")
        small = _touch(20)
        del small
    assert 10 * MIB < peak.bytes - peak.start_bytes < 150 * MIB


def test_the_reading_agrees_with_the_operating_system() -> None:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    lifetime = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert 5 * MIB < resident_bytes() <= lifetime * 1.1
    assert resident_bytes() * 0.9 <= peak_resident_bytes() <= lifetime * 1.1


def test_without_proc_the_lifetime_peak_is_used_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(memory, "_STATUS", tmp_path / "no" / "status")
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "no" / "clear_refs")
    with PeakMemory() as peak:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    assert not peak.exact
    assert peak.bytes == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, rel=0.1)


@pytest.mark.gpu
def test_the_allocator_peak_on_a_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    held = torch.empty(50 * MIB, dtype=torch.uint8, device="cuda")
    before = torch.empty(400 * MIB, dtype=torch.uint8, device="cuda")
    del before
    for device in ("cuda", "cuda:0", torch.device("cuda", 0)):
        with PeakMemory(device) as peak:
            inside = torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
            del inside
        assert peak.exact
        assert peak.bytes - peak.start_bytes == 100 * MIB
        assert peak.start_bytes >= held.nbytes
        assert peak.bytes < 400 * MIB
