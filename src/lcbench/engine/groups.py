"""Groups: prompts that are read one after another and whose answers are decoded together.

The groups of a run are a function of its prompts, its methods and `Limits` alone. Whoever continues a run, and every
worker of it, makes the same list; that is what lets a killed run end byte for byte like an unbroken one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lcbench.engine.memory import Limits, prompt_bytes, row_bytes
from lcbench.engine.plan import PromptSet
from lcbench.engine.prefix import shared_beginnings
from lcbench.models.shape import CacheShape


@dataclass(frozen=True)
class Group:
    """A piece of work: some prompts of one set through all methods of the set.

    Attributes:
        index: place in the run's list of groups, from 0; records are written in this order.
        set_index: which of the run's prompt sets.
        prompts: indices into the set's prompts, in the order of reading and of the records.
        waves: the set's methods (indices), cut into lots that are decoded together. More than one lot only where the
            rows of a single prompt exceed the limits.
        cuts: for each prompt the lengths of the beginnings that it shares with others, ascending; the prompt is read
            in pieces that end there, whether or not a piece can be taken over from another prompt.
        nbytes: predicted bytes of caches and activations at the group's fullest.
        tokens: of its longest prompt.
    """

    index: int
    set_index: int
    prompts: tuple[int, ...]
    waves: tuple[tuple[int, ...], ...]
    cuts: tuple[tuple[int, ...], ...]
    nbytes: int
    tokens: int


def make_groups(
    sets: Sequence[PromptSet], shape: CacheShape, limits: Limits, *, chunk: int | None = None, reuse: bool = True
) -> list[Group]:
    """Cut a run into groups, the one that needs most memory first.

    Running out of memory then happens at once or never, and of several workers none is left with the longest piece at
    the end. Prompts that share a beginning stay side by side. Prompts that cannot be run (over-length) come last.

    Args:
        shape: of the model's cache. limits: what a group may hold.
        chunk: tokens a forward pass reads at once. reuse: whether prompts may share their beginnings; those of a
            model with a state never do.
    """
    groups: list[Group] = []
    for number, prompts in enumerate(sets):
        sizes = _Sizes(prompts, shape, limits, chunk)
        shares = reuse and prompts.shared and not prompts.reading and shape.state is None
        groups += _of_set(number, prompts, sizes, shares)
    groups.sort(key=lambda group: (-group.nbytes, group.set_index))  # stable: a set's own order stays for equal needs
    return [replace(group, index=i) for i, group in enumerate(groups)]


class _Sizes:
    """What the rows of a set need, against what a group may hold."""

    def __init__(self, prompts: PromptSet, shape: CacheShape, limits: Limits, chunk: int | None) -> None:
        self.limits = limits
        self._methods = len(prompts.methods)
        self._tokens = [prompt.tokens for prompt in prompts.prompts]
        self._prompts, self._shape, self._chunk = prompts, shape, chunk

    def _row(self, prompt: int, method: int) -> int:
        new = self._prompts.max_new_tokens
        return row_bytes(self._prompts.methods[method], self._shape, self._tokens[prompt], new)

    def _prompt(self, prompt: int) -> int:
        return prompt_bytes(self._shape, self._tokens[prompt], self._chunk)

    def needs(self, members: Sequence[int], methods: Sequence[int]) -> int:
        """Bytes at the fullest: one prompt just read, everybody's caches, all answers at their longest."""
        return sum(self._row(i, m) for i in members for m in methods) + max(self._prompt(i) for i in members)

    def fit(self, members: Sequence[int]) -> bool:
        """Whether prompts can be answered together by all methods."""
        return (
            len(members) * self._methods <= self.limits.rows
            and sum(self._tokens[i] for i in members) <= self.limits.tokens
            and self.needs(members, range(self._methods)) <= self.limits.nbytes
        )

    def waves(self, members: Sequence[int]) -> list[tuple[int, ...]]:
        """All methods at once; those of a single prompt in lots that fit, each of one method at least."""
        if len(members) > 1:
            return [tuple(range(self._methods))]
        waves: list[list[int]] = [[]]
        for m in range(self._methods):
            wave = waves[-1]
            full = len(wave) == self.limits.rows or self.needs(members, [*wave, m]) > self.limits.nbytes
            if wave and full:
                waves.append(wave := [])
            wave.append(m)
        return [tuple(wave) for wave in waves]

    def group(self, number: int, lot: Sequence[tuple[int, tuple[int, ...]]]) -> Group:
        members = tuple(i for i, _ in lot)
        waves = self.waves(members)
        return Group(
            index=0,
            set_index=number,
            prompts=members,
            waves=tuple(waves),
            cuts=tuple(cuts for _, cuts in lot),
            nbytes=max(self.needs(members, wave) for wave in waves),
            tokens=max(self._tokens[i] for i in members),
        )


def _of_set(number: int, prompts: PromptSet, sizes: _Sizes, reuse: bool) -> list[Group]:
    runnable = [i for i, prompt in enumerate(prompts.prompts) if prompt.error is None]
    broken = tuple(i for i, prompt in enumerate(prompts.prompts) if prompt.error is not None)
    if reuse:
        last = max((wish.last for method in prompts.methods for wish in method.observes()), default=0)
        ids = {i: prompts.read_first(prompts.prompts[i]) for i in runnable}
        order = shared_beginnings(ids, keep_apart=last)
    else:
        order = [(i, ()) for i in sorted(runnable, key=lambda i: (-prompts.prompts[i].tokens, i))]
    found: list[Group] = []
    lot: list[tuple[int, tuple[int, ...]]] = []
    for member in order:
        if lot and not sizes.fit([i for i, _ in (*lot, member)]):
            found.append(sizes.group(number, lot))
            lot = []
        lot.append(member)
    if lot:
        found.append(sizes.group(number, lot))
    if broken:
        every = tuple(range(len(prompts.methods)))
        found.append(Group(0, number, broken, (every,), ((),) * len(broken), 0, 0))
    return found
