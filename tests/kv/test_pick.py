"""Entries picked out of stored keys and values, against numpy's own indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lcbench.kv.pick import rows_at


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
