"""How long a run will still take: prompt tokens to read and answer tokens to make, at the speeds measured so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lcbench.engine.session import Running
    from lcbench.models.info import ModelInfo
    from lcbench.remote.session import RemoteRunning

_ANSWER_TOKEN = 8.0  # prompt tokens that a token of an answer costs, before decoding was measured
_KEEP = 0.75  # what of the older measurements counts when a group ends: machines get busier and prompts shorter
_OVERDUE = 0.15  # a piece of work that takes longer than foreseen is taken to need this share of its time again


@dataclass(frozen=True)
class Piece:
    """A group of prompts to come.

    Attributes:
        task: its task. reading: work of reading its prompts, in prompt tokens. answers: how many it makes.
        most: tokens that one of them may have.
    """

    task: str
    reading: float
    answers: int
    most: int


@dataclass
class _Speed:
    seconds: float = 0.0
    work: float = 0.0

    def add(self, seconds: float, work: float) -> None:
        self.seconds, self.work = self.seconds + seconds, self.work + work

    def fade(self) -> None:
        self.seconds, self.work = self.seconds * _KEEP, self.work * _KEEP

    @property
    def each(self) -> float | None:
        """Seconds a unit of work; None before any was done."""
        return self.seconds / self.work if self.work > 0 and self.seconds > 0 else None


@dataclass
class _Lengths:
    """Tokens of answers, as far as they were seen."""

    made: dict[str, list[float]] = field(default_factory=dict)  # task to [tokens, answers, tokens they might have had]

    def add(self, piece: Piece, tokens: int) -> None:
        own = self.made.setdefault(piece.task, [0.0, 0.0, 0.0])
        own[0], own[1], own[2] = own[0] + tokens, own[1] + 1, own[2] + piece.most

    def of(self, piece: Piece) -> float:
        """Tokens of an answer: the mean of its task's.

        Before one was seen: its most, and the share of the most that each other task took, all weighing the same.
        """
        own = self.made.get(piece.task)
        if own:
            return own[0] / own[1]
        shares = [tokens / most for tokens, _, most in self.made.values()]
        return piece.most * (1 + sum(shares)) / (1 + len(shares))


class TimeLeft:
    """The time left, told once a prompt has been read.

    Every second since the first prompt belongs to reading or to decoding, whatever else was done in it. Loading the
    model is not taken for work.

    Args:
        pieces: what is to be done, in order.
        workers: processes that do it. With several, pieces overlap: the time for what is done tells that of the rest.
    """

    def __init__(self, pieces: Sequence[Piece], workers: int = 1) -> None:
        self.pieces, self.workers = list(pieces), workers
        self.finished = 0
        self._reading, self._decoding, self._lengths = _Speed(), _Speed(), _Lengths()
        self._began: float | None = None
        self._settled = 0.0  # when the last group ended
        self._ends: list[float] = []  # when each did
        self._phase: tuple[str, float, float] | None = None  # kind, begin, work
        self._read = self._decoded_for = self._tokens = 0.0  # of the group that is being answered
        self._made = 0

    def reads(self, work: float, now: float) -> None:
        """A prompt of that much work begins to be read, at ``now`` in seconds of any clock."""
        if self._began is None:
            self._began = self._settled = now
        self._close(now)
        self._phase = ("read", now, work)

    def decodes(self, now: float) -> None:
        """Answers begin to be decoded."""
        self._close(now)
        self._phase = ("decode", now, 0.0)

    def answered(self, task: str, tokens: int) -> None:
        """An answer of that many tokens is on the disk."""
        piece = self._piece()
        if piece is not None:
            of_task = next((one for one in self.pieces if one.task == task), piece)
            self._lengths.add(of_task, tokens)
        self._tokens, self._made = self._tokens + tokens, self._made + 1

    def group_ended(self, finished: int, now: float) -> None:
        """So many groups have been finished."""
        self._close(now)
        piece = self._piece()
        if piece is not None and self._made:
            # Answers that were there before are decoded again with the others, and not written again.
            self._decoding.add(self._decoded_for, self._tokens * max(1.0, piece.answers / self._made))
        self._reading.fade()
        self._decoding.fade()
        self._ends += [now] * (finished - self.finished)
        self.finished, self._settled, self._phase = finished, now, None
        self._read = self._decoded_for = self._tokens = 0.0
        self._made = 0

    def left(self, now: float) -> float | None:
        """Seconds left, never below 0; None before there is anything to tell it from."""
        if self._began is None:
            return None
        if self.workers > 1:
            return self._of_several(now)
        each = self._reading.each
        if each is None:
            return None
        answer = self._decoding.each or each * _ANSWER_TOKEN
        piece = self._piece()
        if piece is None:
            return 0.0
        decoding_now = now - self._phase[1] if self._phase and self._phase[0] == "decode" else 0.0
        decoded_for, foreseen = self._decoded_for + decoding_now, piece.answers * self._lengths.of(piece)
        if foreseen and decoded_for > answer * foreseen:
            answer = decoded_for / foreseen  # slower than before, or longer answers: so will be the rest
        still = max(answer * foreseen - decoded_for, _OVERDUE * decoding_now) + self._to_read(piece, each, now)
        rest = self.pieces[self.finished + 1 :]
        return still + sum(one.reading * each + one.answers * self._lengths.of(one) * answer for one in rest)

    @property
    def is_guess(self) -> bool:
        """Whether no answer has been timed yet, so that what one costs and how long it gets are only assumed."""
        return not self.finished

    def _to_read(self, piece: Piece, each: float, now: float) -> float:
        """Seconds of reading that the group still needs."""
        if self._phase is None or self._phase[0] != "read":
            return max(0.0, piece.reading - self._read) * each
        _, began, work = self._phase
        later = max(0.0, piece.reading - self._read - work) * each
        return later + max(work * each - (now - began), _OVERDUE * (now - began))

    def _of_several(self, now: float) -> float | None:
        """Every worker takes the next group when it ends one, so each group began when the one ``workers`` before it
        ended. That tells the speed of a worker, and how far the groups are that have not ended."""
        if not self.finished or self._began is None:
            return None
        work = [one.reading + one.answers * self._lengths.of(one) * _ANSWER_TOKEN for one in self.pieces]
        starts = [self._began] * self.workers + self._ends
        busy = sum(end - start for start, end in zip(starts, self._ends, strict=False))
        each = busy / sum(work[: self.finished])
        begun = zip(starts[self.finished :], work[self.finished :], strict=False)
        free = [max(self._settled, start + each * one) for start, one in begun]  # when the workers will be free
        heapify(free)
        for one in work[self.finished + len(free) :]:
            heappush(free, heappop(free) + each * one)
        return max(0.0, max(free, default=now) - now)

    def _piece(self) -> Piece | None:
        return self.pieces[self.finished] if self.finished < len(self.pieces) else None

    def _close(self, now: float) -> None:
        if self._phase is None:
            return
        kind, began, work = self._phase
        if kind == "read":
            self._read += work
            self._reading.add(now - began, work)
        else:
            self._decoded_for += now - began
        self._phase = None


def _even(info: ModelInfo) -> float:
    shape = info.shape()
    width = shape.heads * shape.head_dim
    return max(1.0, max(info.parameters - info.vocab * width, 1) / max(1, shape.layers * width))


def pieces_of(running: Running | RemoteRunning) -> tuple[list[Piece], Mapping[tuple[str, int], float]]:
    """The groups of a run that owe answers, and (task, prompt from 1) to the work of reading it in tokens.

    A token costs more the longer the text before it: of attention as much again as of all else at ``even`` tokens.
    """
    even = _even(running.session.info) if running.session.info is not None else math.inf
    work = {
        (prompts.task.id, i + 1): 0.0 if prompt.error is not None else prompt.tokens * (1 + prompt.tokens / even)
        for prompts in running.sets
        for i, prompt in enumerate(prompts.prompts)
    }
    pieces = []
    for item in running.todo:
        group, prompts = item.group, running.sets[item.group.set_index]
        alone = [bool(running.session.spec.exact) or not m.traits.stackable for m in prompts.methods]
        times = len(prompts.methods)
        if prompts.shared:  # each wave reads anew, and so do methods that decode alone, unless there is one prompt
            times = sum(len({alone[m] for m in wave}) for wave in group.waves) if len(group.prompts) > 1 else 1
        good = [p for p in group.prompts if prompts.prompts[p].error is None]
        reading = max(1, times) * sum(work[prompts.task.id, p + 1] for p in good)
        pieces.append(Piece(prompts.task.id, reading, len(good) * len(prompts.methods), prompts.max_new_tokens))
    return pieces, work
