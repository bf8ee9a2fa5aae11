"""A prompt that is read with the model's own keys and leaves others behind, for methods that change what a layer's
queries and keys are made of (`models.routing.other_input`)."""

from __future__ import annotations

import torch
from torch import Tensor

from lcbench.kv import attention
from lcbench.kv.layer import DenseLayer
from lcbench.models.rule import AttentionRule


class SecondKeys(DenseLayer):
    """Holds the other keys. While the prompt is read it holds the model's own as well: all rows attend with those, but
    the last ``rows`` of the prompt, whose other queries attend the other keys. Once it is read, a `DenseLayer`.

    Args:
        expected: tokens of the prompt. rows: how many of the last attend in the other way.
    """

    def __init__(self, *, expected: int, rows: int) -> None:
        super().__init__(expected=expected)
        self.rows = rows
        self._own: DenseLayer | None = DenseLayer(expected=expected)
        self._other: tuple[Tensor, Tensor] | None = None

    def beside(self, query: Tensor, key: Tensor) -> bool:
        self._other = (query, key)
        return self._own is not None

    def append(self, key: Tensor, value: Tensor) -> None:
        if self._own is None:
            super().append(key, value)
            return
        assert self._other is not None, "the other keys come first"
        self._own.append(key, value)
        super().append(self._other[1], value)

    def attend(self, query: Tensor, rule: AttentionRule) -> Tensor:
        if self._own is None:
            return super().attend(query, rule)
        assert self._other is not None
        out = self._own.attend(query, rule)
        self.rule = rule
        start = self.seen - query.shape[1]
        first = max(self.expected - self.rows, start)
        if first < self.seen:
            (key,), (value,) = self.parts()
            others = attention.causal(self._other[0][:, first - start :], key, value, rule)
            out = torch.cat([out[:, : first - start], others], dim=1)
        if self.seen == self.expected:
            self._own = self._other = None
        return out
