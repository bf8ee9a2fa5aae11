"""How fast memory is copied here: what bounds decoding, which reads weights and cache once a step."""

from __future__ import annotations

import statistics
from typing import Any

from lcbench.measure.clock import Stopwatch
from lcbench.measure.device import kind_of
from lcbench.measure.memory import available_bytes

_CPU_BYTES, _GPU_BYTES = 2**28, 2**30  # far beyond any cache of the processor


def copy_bandwidth(device: object = "cpu", *, repeats: int = 7) -> float:
    """Bytes a second that a large copy moves on ``device``, reading and writing both counted; median.

    The copy is torch's own between two buffers of 256 MiB (1 GiB on a GPU), less where memory is short.
    """
    import torch

    size = min(_GPU_BYTES if kind_of(device) == "cuda" else _CPU_BYTES, available_bytes(device) // 8)
    source = torch.ones(max(size, 2**20), dtype=torch.uint8, device=torch.device(str(device)))
    target: Any = torch.empty_like(source)
    seconds = []
    for attempt in range(repeats + 1):
        with Stopwatch(device) as watch:
            target.copy_(source)
        if attempt:  # the first one touches the pages of the target
            seconds.append(watch.seconds)
    return 2 * source.numel() / statistics.median(seconds)
