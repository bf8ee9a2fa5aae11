"""One store a head, for heads that hold different numbers of entries in a form that knows no ragged tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lcbench.kv.layer import LayerKV
from lcbench.kv.witness import Restores
from lcbench.models.rule import AttentionRule


class HeadwiseLayer(LayerKV):
    """A layer made of stores of a single KV head each.

    Args:
        heads: stores that hold one head, all of the same prompt: Hk of them, or H (a multiple of Hk) where every
            query head has entries of its own.
    """

    def __init__(self, heads: Sequence[LayerKV]) -> None:
        self.heads = list(heads)
        self.seen = self.heads[0].seen

    def append(self, key: Tensor, value: Tensor) -> None:
        copies = len(self.heads) // key.shape[0]
        for i, head in enumerate(self.heads):
            kv = i // copies
            head.append(key[kv : kv + 1], value[kv : kv + 1])
        self.seen += key.shape[1]

    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        group = query.shape[0] // len(self.heads)
        mine = [slice(i * group, (i + 1) * group) for i in range(len(self.heads))]
        return torch.cat(
            [head.attend(query[rows], rule.of_heads(rows)) for head, rows in zip(self.heads, mine, strict=True)]
        )

    def positions(self) -> Tensor:
        rows = [head.positions().flatten() for head in self.heads]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)

    def restored(self) -> list[tuple[Tensor, Tensor]]:
        """See `kv.witness.Restores`."""
        return [pair for head in self.heads if isinstance(head, Restores) for pair in head.restored()]

    def tensors(self) -> Iterator[Tensor]:
        for head in self.heads:
            yield from head.tensors()

    @property
    def resident_nbytes(self) -> int:
        return sum(head.resident_nbytes for head in self.heads)

    def fork(self) -> HeadwiseLayer:
        return HeadwiseLayer([head.fork() for head in self.heads])
