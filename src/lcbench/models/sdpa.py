"""Which of torch's attention kernels a forward pass may use."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_within: list[bool] = []  # a setting for each pass under way; the first is the one that is put back


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Keep `scaled_dot_product_attention` off cuDNN, which plans its kernel anew for each shape.

    While decoding every step has a new shape, and so has every prompt: measured on an H100 (torch 2.11), 72 ms a new
    shape against 0.2 ms of torch's own kernels. The setting is the process's; it is put back when the last of the
    passes that overlap, of whatever threads, has ended.
    """
    with _lock:
        _within.append(torch.backends.cuda.cudnn_sdp_enabled())  # type: ignore[no-untyped-call]
        torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        with _lock:
            first = _within[0]
            _within.pop()
            if not _within:
                torch.backends.cuda.enable_cudnn_sdp(first)
