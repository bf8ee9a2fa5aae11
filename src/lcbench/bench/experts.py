"""Which experts the decoding steps of a mixture of experts really read: the others' weights need not move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Chosen:
    """What was seen of the choices.

    Attributes:
        shares: of each module of experts, by call, the share of its experts that some row chose.
        nbytes: of each of them, bytes of the weights that belong to experts.
    """

    shares: dict[nn.Module, list[float]] = field(default_factory=dict)
    nbytes: dict[nn.Module, int] = field(default_factory=dict)

    @property
    def unread(self) -> int:
        """Bytes of the experts' weights that a step leaves alone, mean over the steps seen."""
        return sum(
            int(self.nbytes[module] * (1 - sum(shares) / len(shares)))
            for module, shares in self.shares.items()
            if shares
        )


@contextmanager
def watching(model: Any) -> Iterator[Chosen]:
    """Context in which the calls of ``model``'s experts are seen.

    A module of experts holds parameters whose first dimension is its ``num_experts``, and is called with the experts'
    numbers ``[tokens, k]`` or with how many rows each one has. One that is called otherwise reads all of them.
    """
    chosen = Chosen()
    handles = []
    for module in model.modules():
        count = getattr(module, "num_experts", None)
        if not isinstance(count, int):
            continue
        own = [p for p in module.parameters(recurse=False) if p.ndim > 1 and len(p) == count]
        if own:
            chosen.nbytes[module] = sum(p.numel() * p.element_size() for p in own)
            chosen.shares[module] = []
            handles.append(module.register_forward_pre_hook(_note_in(chosen), with_kwargs=True))
    try:
        yield chosen
    finally:
        for handle in handles:
            handle.remove()


def _note_in(chosen: Chosen) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        count = int(module.num_experts)  # type: ignore[arg-type]
        for value in (*args, *kwargs.values()):
            used = _used(value, count)
            if used is not None:
                chosen.shares[module].append(used / count)
                return

    return note


def _used(value: Any, count: int) -> int | None:
    """How many experts an argument names; None for one that names none."""
    if isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool:
        numbers: Tensor = torch.unique(value)  # type: ignore[no-untyped-call]
        return int(((numbers >= 0) & (numbers < count)).sum())
    if isinstance(value, list) and len(value) == count and all(isinstance(n, int) for n in value):
        return sum(1 for n in value if n > 0)
    return None
