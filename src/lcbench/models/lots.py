"""Rows of a decoding step that are computed in different ways: each lot by itself, the results in the rows' order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

_K = TypeVar("_K", bound=Hashable)


def in_lots(
    kinds: Sequence[_K],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attend: Callable[[_K, Sequence[int], Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Attention of R rows, those of one kind together.

    Args:
        kinds: of each row. query: ``[R, H, q, d]``. key, value: ``[R, Hk, q, d]``.
        attend: given a kind, the numbers of its rows and their query, key and value; returns ``[r, H, q, d]``.

    Returns:
        ``[R, H, q, d]``.
    """
    lots: dict[_K, list[int]] = {}
    for row, kind in enumerate(kinds):
        lots.setdefault(kind, []).append(row)
    if len(lots) == 1:
        return attend(kinds[0], range(len(kinds)), query, key, value)
    out = torch.empty(*query.shape[:3], value.shape[-1], dtype=query.dtype, device=query.device)
    for kind, rows in lots.items():
        index = _index(tuple(rows), query.device)
        out[index] = attend(kind, rows, query[index], key[index], value[index])
    return out


@lru_cache(maxsize=256)
def _index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Row numbers on the device; the same ones come layer after layer, and a list would be sent there each time."""
    with torch.inference_mode(False):  # for every later pass, one that records gradients, too
        return torch.tensor(rows, device=device)
