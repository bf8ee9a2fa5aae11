"""The next prompts' token tensors, made in a thread while the device is busy with the present ones."""

from __future__ import annotations

from collections.abc import Container, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class Ahead:
    """Token ids to tensors ``[1, L]``, before they are asked for; pinned where a GPU will copy them.

    Args:
        device: where the prompts will be read.
    """

    def __init__(self, device: torch.device) -> None:
        self._pin = device.type == "cuda"
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lcbench-ahead")
        self._coming: dict[Hashable, Future[Tensor]] = {}

    def ask(self, name: Hashable, ids: Sequence[int]) -> None:
        """Begin making a tensor. Asking twice makes it once."""
        if name not in self._coming:
            self._coming[name] = self._pool.submit(self._made, ids)

    def keep(self, names: Container[Hashable]) -> None:
        """Forget what is not among ``names``: it will not be asked for after all."""
        for name in [name for name in self._coming if name not in names]:
            self._coming.pop(name).cancel()

    def take(self, name: Hashable, ids: Sequence[int]) -> Tensor:
        """The tensor, made now if nobody asked for it."""
        coming = self._coming.pop(name, None)
        return self._made(ids) if coming is None else coming.result()

    def _made(self, ids: Sequence[int]) -> Tensor:
        tokens = torch.tensor([list(ids)], dtype=torch.int64)
        return tokens.pin_memory() if self._pin else tokens
