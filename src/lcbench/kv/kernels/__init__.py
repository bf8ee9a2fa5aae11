"""GPU kernels (Triton) for packed caches; see `batch`. Importing this package needs no Triton, its modules do."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch

SWITCH = "LCBENCH_TRITON"  # "0": never; "interpret": on CPU tensors too, in Triton's interpreter (TRITON_INTERPRET=1)


def wanted(device: torch.device) -> bool:
    """Whether tensors on this device go through the kernels: on CUDA where Triton is installed, unless switched off."""
    switch = os.environ.get(SWITCH, "").strip()
    if switch == "0" or not _installed():
        return False
    return device.type == "cuda" or (device.type == "cpu" and switch == "interpret")


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
