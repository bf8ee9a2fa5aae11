"""What stores and methods choose, told to whoever looks: which tokens a step fetches, which entries are merged.

Most choices are gone when the step is over, and holding them would cost memory in every run. So they are told, at the
moment they are made, to a `Witness` that was put in place with `watching`; without one, telling costs a look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from lcbench.kv.layer import LayerKV


@dataclass(frozen=True)
class Merge:
    """Entries that were added to others.

    Attributes:
        sources: text positions of what was merged. into: text positions of the entries that took it up.
    """

    sources: tuple[int, ...]
    into: tuple[int, ...]


@dataclass
class Witness:
    """What was told while it watched.

    Attributes:
        fetched: a store, and the text positions that one query (or run of queries) looked up: one ``[n]`` a head, KV
            heads or query heads; a single one where all heads look up the same.
        merged: layer number and KV head, and the merge.
    """

    fetched: list[tuple[LayerKV, Sequence[Tensor]]] = field(default_factory=list)
    merged: list[tuple[int, int, Merge]] = field(default_factory=list)


_watching: ContextVar[Witness | None] = ContextVar("lcbench_witness", default=None)


@contextmanager
def watching(witness: Witness) -> Iterator[None]:
    """Everything that is told in this context goes to ``witness``."""
    token = _watching.set(witness)
    try:
        yield
    finally:
        _watching.reset(token)


def tell_fetched(store: LayerKV, places: Callable[[], Sequence[Tensor]]) -> None:
    """A store looked tokens up; ``places`` gives their text positions and is asked only when somebody watches."""
    witness = _watching.get()
    if witness is not None:
        witness.fetched.append((store, places()))


def tell_merged(layer: int, merges: Callable[[], Sequence[Sequence[Merge]]]) -> None:
    """Entries of a layer were merged; ``merges`` gives those of each KV head and is asked only when somebody
    watches."""
    witness = _watching.get()
    if witness is not None:
        witness.merged += [(layer, head, one) for head, found in enumerate(merges()) for one in found]


@runtime_checkable
class Restores(Protocol):
    """A store that holds keys and values in another form, and can say what is left of them.

    The layers of a cache are asked in order, from the lowest, between two forward passes.
    """

    def restored(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Keys and values ``[n, d]`` as a query sees them, one pair a stored head, in the order of ``positions``."""
