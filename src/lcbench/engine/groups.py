"""Groups: prompts that are read one after another and whose answers are decoded together.

The groups of a run are a function of its prompts, its methods and `Limits` alone. Whoever continues a run, and every
worker of it, makes the same list; that is what lets a killed run end byte for byte like an unbroken one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lcbench.engine.memory import Limits, prompt_bytes, row_bytes
from lcbench.engine.plan import PromptSet
from lcbench.engine.prefix import MOST_HELD, common_length, shared_beginnings
from lcbench.models.shape import CacheShape

_WORTH = 8  # groups follow each other for a beginning that is at least this part of a prompt

Member = tuple[int, tuple[int, ...]]  # a prompt and where it is cut


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
        taken: for each prompt how many of its first tokens need not be read, since the one before it in the run has
            read them, too.
    """

    index: int
    set_index: int
    prompts: tuple[int, ...]
    waves: tuple[tuple[int, ...], ...]
    cuts: tuple[tuple[int, ...], ...]
    nbytes: int
    tokens: int
    taken: tuple[int, ...] = ()


def make_groups(
    sets: Sequence[PromptSet], shape: CacheShape, limits: Limits, *, chunk: int | None = None, reuse: bool = True
) -> list[Group]:
    """Cut a run into groups, the one that needs most memory first.

    Running out of memory then happens at once or never, and of several workers none is left with the longest piece at
    the end. Groups whose prompts begin alike follow one another, the largest such sequence first. Prompts that cannot
    be run (over-length) come last.

    Args:
        shape: of the model's cache. limits: what a group may hold.
        chunk: tokens a forward pass reads at once. reuse: whether prompts may share their beginnings; those of a
            model with a state never do.
    """
    sequences: list[list[Group]] = []
    for number, prompts in enumerate(sets):
        sizes = _Sizes(prompts, shape, limits, chunk)
        shares = reuse and prompts.shared and not prompts.reading and shape.state is None
        sequences += _of_set(number, prompts, sizes, shares)
    # Stable: a set's own order stays for equal needs.
    sequences.sort(key=lambda some: (-max(group.nbytes for group in some), some[0].set_index))
    groups = [group for some in sequences for group in some]
    if groups:
        groups.insert(0, groups.pop(max(range(len(groups)), key=lambda i: groups[i].nbytes)))
    found = []
    for i, group in enumerate(groups):
        follows = i > 0 and groups[i - 1].set_index == group.set_index
        before = [groups[i - 1].prompts[-1] if follows else None, *group.prompts]
        holds = [tuple(c for c in cuts if (n := shape.full_bytes(c)) <= limits.room_for(n)) for cuts in group.cuts]
        taken = [
            0 if last is None else _taken(sets[group.set_index], last, prompt, cuts)
            for last, prompt, cuts in zip(before, group.prompts, holds, strict=False)
        ]
        found.append(replace(group, index=i, taken=tuple(taken)))
    return found


def room_of(groups: Sequence[Group], shape: CacheShape, limits: Limits) -> int:
    """Bytes that the states after shared beginnings may take in a run of these groups."""
    states = (shape.full_bytes(cut) for group in groups for cuts in group.cuts for cut in cuts)
    return max((limits.room_for(state) for state in states), default=limits.room_for(0))


def _taken(prompts: PromptSet, before: int, prompt: int, cuts: Sequence[int]) -> int:
    """The longest beginning at which a prompt is cut and that another one has as well."""
    if not cuts:
        return 0
    common = common_length(*(prompts.read_first(prompts.prompts[i]) for i in (before, prompt)))
    return max((cut for cut in cuts if cut <= common), default=0)


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

    def needs(self, lot: Sequence[Member], methods: Sequence[int]) -> int:
        """Bytes at the fullest: one prompt just read, everybody's caches, all answers at their longest, and what is
        held of shared beginnings."""
        members = [i for i, _ in lot]
        states = [self._shape.full_bytes(cut) for cut in {cut for _, cuts in lot for cut in cuts}]
        shared = max((state for state in states if state <= self.limits.room_for(state)), default=0)
        held = min(self.limits.room_for(shared), MOST_HELD * shared)
        return sum(self._row(i, m) for i in members for m in methods) + max(self._prompt(i) for i in members) + held

    def fit(self, lot: Sequence[Member]) -> bool:
        """Whether prompts can be answered together by all methods."""
        return (
            len(lot) * self._methods <= self.limits.rows
            and sum(self._tokens[i] for i, _ in lot) <= self.limits.tokens
            and self.needs(lot, range(self._methods)) <= self.limits.nbytes
        )

    def waves(self, lot: Sequence[Member]) -> list[tuple[int, ...]]:
        """All methods at once; those of a single prompt in lots that fit, each of one method at least."""
        if len(lot) > 1:
            return [tuple(range(self._methods))]
        waves: list[list[int]] = [[]]
        for m in range(self._methods):
            wave = waves[-1]
            full = len(wave) == self.limits.rows or self.needs(lot, [*wave, m]) > self.limits.nbytes
            if wave and full:
                waves.append(wave := [])
            wave.append(m)
        return [tuple(wave) for wave in waves]

    def group(self, number: int, lot: Sequence[Member]) -> Group:
        members = tuple(i for i, _ in lot)
        waves = self.waves(lot)
        return Group(
            index=0,
            set_index=number,
            prompts=members,
            waves=tuple(waves),
            cuts=tuple(cuts for _, cuts in lot),
            nbytes=max(self.needs(lot, wave) for wave in waves),
            tokens=max(self._tokens[i] for i in members),
        )


def _of_set(number: int, prompts: PromptSet, sizes: _Sizes, reuse: bool) -> list[list[Group]]:
    """The groups of a set, in sequences that are to follow one another."""
    runnable = [i for i, prompt in enumerate(prompts.prompts) if prompt.error is None]
    broken = tuple(i for i, prompt in enumerate(prompts.prompts) if prompt.error is not None)
    if reuse:
        last = max((wish.last for method in prompts.methods for wish in method.observes()), default=0)
        ids = {i: prompts.read_first(prompts.prompts[i]) for i in runnable}
        order = shared_beginnings(ids, keep_apart=last)
    else:
        order = [(i, ()) for i in sorted(runnable, key=lambda i: (-prompts.prompts[i].tokens, i))]
    found: list[list[Group]] = []
    for lot in _lots(order, sizes):
        group = sizes.group(number, lot)
        begun = _taken(prompts, found[-1][-1].prompts[-1], group.prompts[0], group.cuts[0]) if found else 0
        if found and _WORTH * begun >= group.tokens:
            found[-1].append(group)
        else:
            found.append([group])
    if broken:
        every = tuple(range(len(prompts.methods)))
        found.append([Group(0, number, broken, (every,), ((),) * len(broken), 0, 0)])
    return found


def _lots(order: Sequence[Member], sizes: _Sizes) -> Iterator[list[Member]]:
    """Prompts in their order, as many together as fit."""
    lot: list[Member] = []
    for member in order:
        if lot and not sizes.fit([*lot, member]):
            yield lot
            lot = []
        lot.append(member)
    if lot:
        yield lot
