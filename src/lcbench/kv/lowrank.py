"""The best low-rank product for a tall matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_ROWS = 8192  # rows in fp64 at once


class LowRank(NamedTuple):
    """``left @ right``: the singular vectors ``[n, r]``, and singular values times right vectors ``[r, m]``."""

    left: Tensor
    right: Tensor


def low_rank(matrix: Tensor, rank: int, dtype: torch.dtype) -> LowRank:
    """Truncated singular value decomposition of a matrix ``[n, m]`` with few columns.

    Made from the eigenvectors of ``matrix^T matrix`` in fp64, which costs one product with the matrix however many
    rows it has. Directions whose singular value is below 1e-7 of the greatest are left zero.

    Args:
        matrix: any float dtype. rank: at most; never more than n or m. dtype: of the two factors.
    """
    rank = min(rank, *matrix.shape)
    gram = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64, device=matrix.device)
    blocks = torch.split(matrix, _ROWS)
    for rows in blocks:
        gram += rows.double().t() @ rows.double()
    energies, vectors = torch.linalg.eigh(gram)
    values = energies.flip(0)[:rank].clamp(min=0).sqrt()
    right = vectors.flip(1)[:, :rank]
    inverse = torch.where(values > values[0] * 1e-7, 1 / values.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    left = torch.cat([(rows.double() @ right * inverse).to(dtype) for rows in blocks])
    return LowRank(left, (values[:, None] * right.t()).to(dtype).contiguous())
