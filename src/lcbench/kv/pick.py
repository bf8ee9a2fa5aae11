"""Picking entries out of stored keys and values."""

from __future__ import annotations

import torch
from torch import Tensor


def highest(scores: Tensor, keep: int) -> Tensor:
    """Where the ``keep`` highest numbers of each row ``[h, n]`` stand: int64 ``[h, keep]``, ascending; ties keep the
    lower place, and NaN counts as the highest."""
    n = scores.shape[-1]
    if keep == n - 1:  # as while decoding, where one comes and one leaves: no need to sort
        return _all_but_lowest(scores)
    order = torch.sort(scores.float(), dim=-1, descending=True, stable=True).indices[:, :keep]
    return torch.sort(order, dim=-1).values


def _all_but_lowest(scores: Tensor) -> Tensor:
    scores = scores.float().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    places = torch.arange(scores.shape[-1], device=scores.device)
    lowest = torch.where(scores == scores.amin(dim=-1, keepdim=True), places, -1).amax(dim=-1, keepdim=True)
    return places[:-1] + (places[:-1] >= lowest)


def rows_at(stored: Tensor, index: Tensor) -> Tensor:
    """Copies of the entries at ``index``. Whole rows are copied, which takes a fraction of what gathering number by
    number does.

    Args:
        stored: ``[h, n, d]``. index: int64 ``[m]`` for all heads alike, or ``[H, m]`` with H a multiple of h: the
            groups of H / h heads read what one stored head holds.

    Returns:
        ``[h or H, m, d]``, contiguous.
    """
    if index.ndim == 1:
        return stored.index_select(1, index)
    heads, n, d = stored.shape
    first = torch.arange(heads, device=index.device).repeat_interleave(index.shape[0] // heads) * n
    return stored.reshape(heads * n, d).index_select(0, (index + first[:, None]).flatten()).view(*index.shape, d)
