"""Waiting for a device's queued work; without torch as long as nothing but the CPU is measured."""

from __future__ import annotations


def kind_of(device: object) -> str:
    """``cpu``, ``cuda``, ``mps`` … of a device name ("cuda:0") or a torch.device."""
    return str(device).split(":", 1)[0]


def synchronize(device: object) -> None:
    """Return when everything queued on ``device`` has been done. The CPU has no queue."""
    kind = kind_of(device)
    if kind == "cpu":
        return
    import torch

    if kind == "cuda":
        torch.cuda.synchronize(str(device))
    elif kind == "mps":
        torch.mps.synchronize()
    else:
        raise ValueError(f"no way to synchronize device {device}")
