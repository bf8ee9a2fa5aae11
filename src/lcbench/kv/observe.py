"""Observers: what methods want recorded while the shared prefill runs.

An `Observation` is a hashable wish (``LastQueries(32)``); the engine collects the wishes of all methods of a group,
merges those that one observer can serve, and runs the pass once. What an observer keeps is small: never L x L.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lcbench.kv.layer import DenseLayer
from lcbench.kv.weights import weight_sums
from lcbench.models.rule import AttentionRule
from lcbench.models.stores import LayerStore


@dataclass(frozen=True)
class Observation:
    """Base of all wishes; equal wishes are served once."""

    @property
    def last(self) -> int:
        """Tokens at the prompt's end that must be read in one go with it, not taken over from another prompt."""
        return 0

    def observer(self, layers: int, prompt_tokens: int) -> PrefillObserver:
        """A fresh observer for one prompt."""
        raise TypeError(f"{type(self).__name__} has no observer")


class PrefillObserver:
    """Collects one result a layer during a prefill (possibly in several chunks)."""

    def __init__(self, layers: int, prompt_tokens: int) -> None:
        self.results: list[Any] = [None] * layers
        self.prompt_tokens = prompt_tokens

    def observe(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        store: LayerStore,
        rule: AttentionRule,
    ) -> None:
        """See `models.stores.Observer`. Must be overridden."""
        raise TypeError(f"{type(self).__name__} does not observe")

    def fork(self, prompt_tokens: int) -> PrefillObserver | None:
        """What this observer would be had it watched another prompt of ``prompt_tokens`` tokens that begins with the
        same tokens, as far as both have been read. None where that cannot be told (and for observers that do not
        say): the prompt is then read from its start."""
        return None

    def _copy(self, prompt_tokens: int) -> PrefillObserver:
        """For `fork`: a copy for another length, with results of its own list."""
        other = copy.copy(self)
        other.results, other.prompt_tokens = list(self.results), prompt_tokens
        return other


@dataclass(frozen=True)
class LastQueries(Observation):
    """The queries of the last ``window`` prompt tokens: ``[H, min(window, L), d]`` a layer, after RoPE."""

    window: int

    @property
    def last(self) -> int:
        return self.window

    def observer(self, layers: int, prompt_tokens: int) -> PrefillObserver:
        return _LastQueriesObserver(layers, prompt_tokens, self.window)


class _LastQueriesObserver(PrefillObserver):
    def __init__(self, layers: int, prompt_tokens: int, window: int) -> None:
        super().__init__(layers, prompt_tokens)
        self.window = window
        self.first = max(0, prompt_tokens - window)
        self.pieces: list[list[Tensor]] = [[] for _ in range(layers)]

    def observe(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        store: LayerStore,
        rule: AttentionRule,
    ) -> None:
        stop = start + query.shape[1]
        if stop > self.first:
            self.pieces[layer].append(query[:, max(0, self.first - start) :].clone())
        if stop == self.prompt_tokens:
            self.results[layer] = torch.cat(self.pieces[layer], dim=1)
            self.pieces[layer] = []

    def fork(self, prompt_tokens: int) -> PrefillObserver:
        # Beginnings end before the window does begin (`Observation.last`), so there is nothing to take along.
        return _LastQueriesObserver(len(self.results), prompt_tokens, self.window)


@dataclass(frozen=True)
class ColumnSums(Observation):
    """Attention that each prompt token receives from the whole prompt: ``A[h, j] = sum_i a[h, i, j]``, fp32
    ``[H, L]`` a layer.

    A second pass over queries and keys, in blocks (`kv.weights`): never L x L. Keys beyond the model's sliding window
    get nothing.
    """

    def observer(self, layers: int, prompt_tokens: int) -> PrefillObserver:
        return _ColumnSumsObserver(layers, prompt_tokens)


class _ColumnSumsObserver(PrefillObserver):
    def observe(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        store: LayerStore,
        rule: AttentionRule,
    ) -> None:
        assert isinstance(store, DenseLayer), "column sums are observed on a dense prompt"
        keys, _ = store.parts()
        if start == 0:
            self.results[layer] = torch.zeros(query.shape[0], self.prompt_tokens, device=query.device)
        sums = weight_sums(query, keys[0], rule)
        self.results[layer][:, : sums.shape[1]] += sums

    def fork(self, prompt_tokens: int) -> PrefillObserver:
        other = _ColumnSumsObserver(len(self.results), prompt_tokens)
        for layer, sums in enumerate(self.results):
            if sums is not None:
                seen = min(prompt_tokens, self.prompt_tokens)
                other.results[layer] = sums.new_zeros(sums.shape[0], prompt_tokens)
                other.results[layer][:, :seen] = sums[:, :seen]
        return other


def union(wishes: Iterable[Observation]) -> set[Observation]:
    """The distinct wishes of a group of methods."""
    return set(wishes)
