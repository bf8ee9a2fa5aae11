"""Prompts that begin alike: several questions on one text, a grid of passkeys in one haystack.

Which prompts share how much is found from their ids before the run (`shared_beginnings`). A prompt is then read in
pieces that end where it parts from others, and the state at such an end is kept for them (`Beginnings`). The pieces
are the same whether the state was there or had to be made: what a prompt gives does not depend on what ran before it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer
from lcbench.kv.observe import Observation, PrefillObserver
from lcbench.models.rule import AttentionRule

LEAST = 64  # tokens that must be shared for a further piece to pay for its pass
MOST_HELD = 4  # states after shared beginnings that are held


def shared_beginnings(
    prompts: Mapping[int, Sequence[int]], *, keep_apart: int = 0, least: int = LEAST
) -> list[tuple[int, tuple[int, ...]]]:
    """An order in which prompts that begin alike stand together, and where each is to be cut.

    The prompts form a tree of common beginnings. It is walked depth first, at each fork the branch with the longest
    prompt first, so the very first prompt is the longest of all.

    Args:
        prompts: number to token ids.
        keep_apart: the last tokens of a prompt that must not lie in a shared piece (windows that observers watch).
        least: tokens that a shared piece must have.

    Returns:
        ``(number, cuts)``: lengths of shared beginnings, ascending, each shorter than the prompt.
    """
    numbers = sorted(prompts, key=lambda i: (list(prompts[i]), i))
    ids = [prompts[i] for i in numbers]
    common = [common_length(a, b) for a, b in pairwise(ids)]
    found: list[tuple[int, tuple[int, ...]]] = []
    pending: list[tuple[int, int, tuple[int, ...]]] = [(0, len(ids), ())] if ids else []
    while pending:
        low, high, cuts = pending.pop()  # prompts low to high (exclusive), which have the beginnings ``cuts`` in common
        if high - low == 1:
            found.append((numbers[low], cuts))
            continue
        shared = min(common[low : high - 1])
        depth = cuts[-1] if cuts else 0
        usable = min(shared, min(len(p) for p in ids[low:high]) - max(1, keep_apart))
        if usable - depth >= least:
            cuts = (*cuts, usable)
        bounds = [low, *(i + 1 for i in range(low, high - 1) if common[i] == shared), high]
        branches = list(pairwise(bounds))
        branches.sort(key=lambda b: (-max(len(p) for p in ids[b[0] : b[1]]), min(numbers[b[0] : b[1]])))
        pending += [(start, stop, cuts) for start, stop in reversed(branches)]
    return found


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning of two prompts' ids, by halving: comparing slices runs in C."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True)
class Beginning:
    """State after a prompt's first tokens.

    Attributes:
        length: how many tokens. nbytes: of keys and values.
        layers: key and value ``[Hk, n, d]`` and attention rule of each layer. observers: as they were then.
    """

    length: int
    layers: tuple[tuple[Tensor, Tensor, AttentionRule | None], ...]
    observers: Mapping[Observation, PrefillObserver]
    nbytes: int


class Beginnings:
    """The last few shared beginnings, least recently used out first.

    Args:
        nbytes: most bytes held. entries: most of them held.
    """

    def __init__(self, nbytes: int, entries: int = MOST_HELD) -> None:
        self._nbytes, self._entries = nbytes, entries
        self._held: OrderedDict[str, Beginning] = OrderedDict()
        self.taken = 0  # tokens that did not have to be read

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for held in self._held.values())

    def clear(self) -> None:
        """Forget all (memory is short, or the model is another)."""
        self._held.clear()

    def longest(self, ids: Sequence[int], cuts: Sequence[int], wishes: frozenset[Observation]) -> Beginning | None:
        """The longest of a prompt's beginnings that is held, observed as wished."""
        for cut in sorted(cuts, reverse=True):
            key = _key(ids[:cut], wishes)
            if key in self._held:
                self._held.move_to_end(key)
                self.taken += cut
                return self._held[key]
        return None

    def keep(self, ids: Sequence[int], cache: KVCache, observers: Mapping[Observation, PrefillObserver]) -> None:
        """Copy the state after ``ids`` have been read into ``cache``. Does nothing where an observer cannot be copied
        or the state is larger than what may be held."""
        copies = {wish: observer.fork(len(ids)) for wish, observer in observers.items()}
        if any(copy is None for copy in copies.values()):
            return
        layers = []
        size = 0
        for layer in cache.layers:
            assert isinstance(layer, DenseLayer)
            (key,), (value,) = layer.parts()
            size += 2 * key.numel() * key.element_size()
            layers.append((key, value, layer.rule))
        if size > self._nbytes:
            return
        held = Beginning(
            len(ids),
            tuple((key.clone(), value.clone(), rule) for key, value, rule in layers),
            {wish: copy for wish, copy in copies.items() if copy is not None},
            size,
        )
        self._held[_key(ids, frozenset(observers))] = held
        while len(self._held) > self._entries or self.nbytes > self._nbytes:
            self._held.popitem(last=False)


def _key(ids: Sequence[int], wishes: frozenset[Observation]) -> str:
    digest = hashlib.sha256(array("q", ids).tobytes())
    digest.update(repr(sorted(map(repr, wishes))).encode())
    return digest.hexdigest()
