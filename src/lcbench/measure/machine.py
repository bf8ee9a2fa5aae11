"""The machine a figure was measured on, named by what makes it fast or slow."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from lcbench.measure.device import kind_of
from lcbench.measure.memory import available_bytes

_CPU_INFO = Path("/proc/cpuinfo")


def machine(device: object = "cpu") -> dict[str, Any]:
    """``{"cpu", "cores", "threads", "memory_bytes", "gpu", "gpu_memory_bytes", "words"}``; null without a GPU.

    ``cores`` are those this process may use, ``threads`` those torch computes with; ``words`` says it for people.
    """
    import torch

    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": total_bytes("cpu"),
        "gpu": None,
        "gpu_memory_bytes": None,
    }
    if kind_of(device) == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(str(device)), "gpu_memory_bytes": total_bytes(device)}
    return found | {"words": _in_words(found)}


def _in_words(facts: dict[str, Any]) -> str:
    """``2 cores (Some CPU), 2 threads, 24 GiB memory, no GPU``."""
    if facts["gpu"]:
        return f"{facts['gpu']}, {facts['gpu_memory_bytes'] / 2**30:.0f} GiB"
    memory, threads = f"{facts['memory_bytes'] / 2**30:.0f} GiB memory", _counted(facts["threads"], "thread")
    return f"{_counted(facts['cores'], 'core')} ({facts['cpu']}), {threads}, {memory}, no GPU"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def total_bytes(device: object = "cpu") -> int:
    """Memory of the card, or of the machine."""
    if kind_of(device) == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(str(device)).total_memory)
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return available_bytes("cpu")


def _cpu_name() -> str:
    try:
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()
