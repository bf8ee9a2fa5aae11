"""Entries picked out of stored keys and values, against numpy's own indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lcbench.kv.pick import highest, rows_at


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("picked", [0, 1, 7])
def test_rows_head_by_head(copies: int, picked: int) -> None:
    generator = torch.Generator().manual_seed(picked)
    stored = torch.randn(2, 9, 4, generator=generator)
    index = torch.randint(0, 9, (2 * copies, picked), generator=generator)
    for tensor in (stored, torch.randn(2, 4, 9, generator=generator).transpose(1, 2)):  # in order, and not
        expected = np.stack([tensor.numpy()[head // copies][index[head].numpy()] for head in range(2 * copies)])
        found = rows_at(tensor, index)
        assert found.is_contiguous()
        assert np.array_equal(found.numpy(), expected)
        assert found.untyped_storage().nbytes() == found.numel() * 4  # nothing else is kept alive


def test_rows_for_all_heads_alike() -> None:
    stored = torch.randn(2, 9, 4)
    assert np.array_equal(rows_at(stored, torch.tensor([8, 0, 3])).numpy(), stored.numpy()[:, [8, 0, 3]])


@pytest.mark.parametrize("keep", [0, 1, 5, 8, 9])
@pytest.mark.parametrize("levels", [2, 1000])
def test_the_highest_are_kept_and_ties_keep_the_lower_place(keep: int, levels: int) -> None:
    scores = torch.randint(0, levels, (200, 9), generator=torch.Generator().manual_seed(levels)).float()
    scores[:50, :2] = torch.inf  # as sinks are
    scores[50:60] = -torch.inf
    expected = np.sort(np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :keep], axis=1)
    assert np.array_equal(highest(scores, keep).numpy(), expected)


@pytest.mark.parametrize("keep", [2, 3])
def test_nan_counts_as_the_highest(keep: int) -> None:
    scores = torch.tensor([[1.0, torch.nan, 0.5, 2.0], [torch.nan, -torch.inf, 3.0, 3.0]])
    assert highest(scores, keep).tolist() == {2: [[1, 3], [0, 2]], 3: [[0, 1, 3], [0, 2, 3]]}[keep]
