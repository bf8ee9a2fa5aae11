"""Limits of containers and processes, read from folders laid out as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcbench.measure import confines, memory
from lcbench.measure.memory import available_bytes

GIB = 2**30
UNLIMITED = 9223372036854771712  # what version 1 says where nothing was set


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, path in (("_GROUPS", "cgroup"), ("_MEMBERSHIP", "membership"), ("_STATUS", "status")):
        monkeypatch.setattr(confines, name, tmp_path / path)
    monkeypatch.setattr("resource.getrlimit", lambda which: (-1, -1))
    return tmp_path


def group(folder: Path, limit: str, held: int, files: int, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    key = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{held}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{key} {files}\nactive_file 77\n")


def test_nothing_is_said_where_nothing_is_set(kernel: Path) -> None:
    assert confines.bytes_left() is None
    (kernel / "membership").write_text("0::/user/session\n")
    group(kernel / "cgroup/user/session", "max", 3 * GIB, GIB)
    assert confines.bytes_left() is None
    assert available_bytes("cpu") > GIB // 2  # what the machine says


def test_the_tightest_group_on_the_way_up_counts(kernel: Path) -> None:
    (kernel / "membership").write_text("0::/slurm/job/step\n")
    group(kernel / "cgroup/slurm/job/step", "max", GIB, 0)
    group(kernel / "cgroup/slurm/job", str(4 * GIB), 3 * GIB, GIB // 2)
    group(kernel / "cgroup/slurm", str(64 * GIB), 10 * GIB, 0)
    assert confines.bytes_left() == GIB + GIB // 2
    assert available_bytes("cpu") == min(memory._field(Path("/proc/meminfo"), "MemAvailable"), GIB + GIB // 2)


def test_a_container_whose_path_only_its_host_has(kernel: Path) -> None:
    (kernel / "membership").write_text("0::/docker/0123abc\n")
    group(kernel / "cgroup", str(2 * GIB), GIB, 0)
    assert confines.bytes_left() == GIB


def test_version_1(kernel: Path) -> None:
    (kernel / "membership").write_text("9:name=systemd:/\n5:cpu,memory:/batch/7\n1:cpuset:/x\n")
    group(kernel / "cgroup/memory/batch/7", str(3 * GIB), 2 * GIB, 5, version=1)
    group(kernel / "cgroup/memory", str(UNLIMITED), 2 * GIB, 5, version=1)
    assert confines.bytes_left() == GIB + 5


def test_more_held_than_allowed_leaves_nothing(kernel: Path) -> None:
    (kernel / "membership").write_text("0::/\n")
    group(kernel / "cgroup", str(GIB), 2 * GIB, 0)
    assert confines.bytes_left() == 0


def test_files_that_say_something_else_say_nothing(kernel: Path) -> None:
    (kernel / "membership").write_text("\n0::/../../etc\nrubbish\n")
    group(kernel / "cgroup", "lots", GIB, 0)
    (kernel / "cgroup/memory.stat").unlink()
    assert confines.bytes_left() is None


def test_a_limit_of_the_process(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    limits = {resource.RLIMIT_AS: 5 * GIB, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr("resource.getrlimit", lambda which: (limits[which], -1))
    (kernel / "status").write_text(f"VmPeak:\t 1 kB\nVmSize:\t {2 * GIB // 1024} kB\nVmData:\t {GIB // 1024} kB\n")
    assert confines.bytes_left() == 3 * GIB
    limits[resource.RLIMIT_DATA] = 2 * GIB
    assert confines.bytes_left() == GIB
