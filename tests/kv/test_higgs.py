"""HIGGS: grids, Hadamard transform, packing, error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lcbench.kv.higgs import Higgs, _pack, _unpack, gaussian_grid, group_of, hadamard

SCALAR = {2: 0.1175, 3: 0.03454, 4: 0.009497}  # least error of scalar quantizers (Max 1960), a normal variable
OURS = {2: 0.1083, 3: 0.0302, 4: 0.0079}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matrix(size: int) -> Tensor:
    return torch.tensor([[(-1.0) ** bin(i & j).count("1") for j in range(size)] for i in range(size)])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_grids_beat_scalar_quantizers(bits: int) -> None:
    grid, pairs = gaussian_grid(4**bits), normal(200_000, 2)
    error = float(torch.cdist(pairs, grid).amin(dim=1).square().mean()) / 2
    assert error < 0.95 * SCALAR[bits]
    assert error == pytest.approx(OURS[bits], rel=0.02)
    assert gaussian_grid(4**bits) is grid  # made once


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_grid_points_are_the_means_of_their_cells(bits: int) -> None:
    grid, pairs = gaussian_grid(4**bits), normal(400_000, 2, seed=1)
    nearest = torch.cdist(pairs, grid).argmin(dim=1)
    for point in range(0, 4**bits, 5):
        cell = pairs[nearest == point]
        if len(cell) > 2000:
            assert (cell.mean(dim=0) - grid[point]).norm() < 0.15 * cell.std(dim=0).norm()


@pytest.mark.parametrize("size", [1, 2, 8, 32, 64, 512])
def test_hadamard_is_the_matrix(size: int) -> None:
    x = normal(3, size)
    assert torch.allclose(hadamard(x), x @ matrix(size), atol=1e-4)
    assert torch.allclose(hadamard(hadamard(x)), size * x, atol=1e-3)


def test_group_sizes() -> None:
    assert [group_of(w) for w in (1024, 4096, 3072, 512, 192, 768, 640, 160)] == [
        1024, 1024, 1024, 512, 64, 256, 128, 32
    ]  # fmt: skip


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_packing_round_trip(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 5, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    packed = _pack(codes, bits)
    assert packed.shape == (3, 5, 16 * bits // 8)
    assert torch.equal(_unpack(packed, bits), codes)
    corners = torch.tensor([[0, 2**bits - 1, 0, 2**bits - 1]], dtype=torch.uint8)
    assert torch.equal(_unpack(_pack(corners, bits), bits), corners)


@pytest.mark.parametrize("width", [64, 192, 1024])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_pair_goes_to_its_nearest_point(bits: int, width: int) -> None:
    x = normal(10, width) * 7 + 1
    codes, norms = Higgs(bits).encode(x)
    group = group_of(width)
    grouped = x.view(10, width // group, group)
    assert codes.shape == (10, width * bits // 8)
    assert codes.dtype == torch.uint8
    assert torch.allclose(norms, grouped.norm(dim=-1), rtol=1e-6)
    pairs = (grouped @ matrix(group) / norms[..., None]).view(10, -1, 2)
    distance = torch.cdist(pairs, gaussian_grid(4**bits).expand(10, -1, -1))
    chosen = torch.gather(distance, 2, _unpack(codes, 2 * bits).long()[..., None])[..., 0]
    assert (chosen - distance.amin(dim=-1)).max() < 1e-4
    rounded = gaussian_grid(4**bits)[_unpack(codes, 2 * bits).long()].view(10, width // group, group)
    expected = (rounded @ matrix(group) * norms[..., None] / group).view(10, width)
    assert torch.allclose(Higgs(bits).decode((codes, norms), width, torch.float32), expected, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_error_is_the_grids_whatever_the_distribution(bits: int) -> None:
    """What the transform is for: few large numbers lose no more than normal ones."""
    for x in (normal(300, 1024), normal(300, 1024, seed=1) ** 5):
        restored = Higgs(bits).decode(Higgs(bits).encode(x), 1024, torch.float32)
        share = float((restored - x).square().sum() / x.square().sum())
        assert share == pytest.approx(OURS[bits], rel=0.1)


def test_equal_numbers_are_its_worst_case() -> None:
    """Without random signs, which the reference does not use either, they end up in a single coefficient."""
    x = torch.ones(1, 1024)
    restored = Higgs(4).decode(Higgs(4).encode(x), 1024, torch.float32)
    assert float((restored - x).square().mean()) > 0.5


def test_zero_and_the_empty() -> None:
    codec = Higgs(2)
    zero = torch.zeros(2, 64)
    assert torch.equal(codec.decode(codec.encode(zero), 64, torch.float32), zero)
    assert codec.decode(codec.encode(torch.zeros(0, 64)), 64, torch.float32).shape == (0, 64)


def test_a_vector_is_encoded_by_itself() -> None:
    x = normal(30, 192)
    together = Higgs(3).encode(x)
    for i in (0, 7, 29):
        codes, norms = Higgs(3).encode(x[i : i + 1])
        assert torch.equal(codes[0], together[0][i])
        assert torch.equal(norms[0], together[1][i])
