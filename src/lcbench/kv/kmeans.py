"""K-means of each head's vectors: k-means++ seeding and Lloyd's iterations, reproducible from a seed.

Memory is bounded: never more than `kv.weights.ELEMENTS` distances at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lcbench.kv.weights import ELEMENTS


def kmeans(points: Tensor, clusters: int, *, iterations: int = 300, tolerance: float = 1e-4, seed: int = 0) -> Tensor:
    """Which cluster each point belongs to, by squared distance, head by head.

    Seeding draws every centre with a probability proportional to its squared distance from the nearest centre so far
    (Arthur and Vassilvitskii, 2007). Iterations end when no point changes its cluster or
    the centres move less, in squared distance, than ``tolerance`` times the variance of the points.

    Args:
        points: ``[h, n, d]``, any float dtype; computed in fp32.
        clusters: at most n. seed: draws are made on the CPU, the same for every device.

    Returns:
        Labels ``[h, n]`` int64 in 0..clusters-1. A label that no point has is possible where points coincide.
    """
    points = points.float()
    uniform = torch.rand(points.shape[0], clusters, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    seeds = _seeds(points, uniform.to(points.device))
    return torch.stack(
        [_lloyd(own, own[start], iterations, tolerance) for own, start in zip(points, seeds, strict=True)]
    )


def _seeds(points: Tensor, uniform: Tensor) -> Tensor:
    """Indices ``[h, k]`` of the first centres, for draws ``[h, k]`` in [0, 1); all heads at once, no waiting."""
    n = points.shape[1]
    weights = torch.ones(points.shape[:2], device=points.device)
    far = torch.full_like(weights, torch.inf)
    chosen: list[Tensor] = []
    for step in range(uniform.shape[1]):
        mass = weights.double().cumsum(dim=1)
        at = torch.searchsorted(mass, uniform[:, step : step + 1] * mass[:, -1:], right=True).clamp_(max=n - 1)
        chosen.append(at)
        centre = points.gather(1, at[:, :, None].expand(-1, -1, points.shape[2]))
        far = torch.minimum(far, (points - centre).square().sum(dim=-1))
        weights = far
    return torch.cat(chosen, dim=1)


def _lloyd(points: Tensor, centres: Tensor, iterations: int, tolerance: float) -> Tensor:
    limit = tolerance * float(points.var(dim=0, unbiased=False).mean())
    labels = _nearest(points, centres)
    for _ in range(iterations):
        moved = means(points, labels, len(centres), empty=centres)
        shift = float((moved - centres).square().sum())
        centres, before = moved, labels
        labels = _nearest(points, centres)
        if shift <= limit or torch.equal(labels, before):
            break
    return labels


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre of each point, ``[n]``."""
    norms = centres.square().sum(dim=-1)
    step = max(1, ELEMENTS // len(centres))
    rows = [(norms - 2 * points[at : at + step] @ centres.t()).argmin(dim=-1) for at in range(0, len(points), step)]
    return torch.cat(rows)


def means(points: Tensor, labels: Tensor, clusters: int, *, empty: Tensor | None = None) -> Tensor:
    """Mean ``[k, d]`` of the points ``[n, d]`` of each label ``[n]``; rows of ``empty`` (default 0) for a label that no
    point has."""
    sums = points.new_zeros(clusters, points.shape[1])
    step = max(1, ELEMENTS // clusters)
    for at in range(0, len(points), step):  # as products: sums by index come out differently each time on a GPU
        members = torch.nn.functional.one_hot(labels[at : at + step], clusters).to(points.dtype)
        sums += members.t() @ points[at : at + step]
    counts = torch.bincount(labels, minlength=clusters)[:, None]
    filled = torch.zeros_like(sums) if empty is None else empty
    return torch.where(counts > 0, sums / counts.clamp(min=1), filled)
