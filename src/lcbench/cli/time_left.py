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

_ANSWER_TOKEN = 8.0  # prompt tokens that a token of an answer costs, in batches as they come
_LONE_TOKEN = 16.0  # and one of an answer decoded alone, before decoding was measured
_PASS = 4.0  # answers whose own work is that of a pass over the weights, before several groups tell
_PASSES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)  # what may be learned instead
_SURE = 0.1  # relative error of a group's time, squared, that another of these has to save to be believed
_SHARE, _LONGEST = (
    0.6,
    0.9,
)  # of the most that answers may have: taken of a mean and of a group's longest one until seen
_KEEP = 0.75  # what of the older measurements counts when a group ends: machines get busier and prompts shorter
_OVERDUE = 0.15  # a piece of work that takes longer than foreseen is taken to need this share of its time again


@dataclass(frozen=True)
class Piece:
    """A group of prompts to come.

    Attributes:
        task: its task. reading: work of reading its prompts, in prompt tokens. answers: how many it makes.
        most: tokens that one of them may have. alone: how many of the answers are decoded one by one.
    """

    task: str
    reading: float
    answers: int
    most: int
    alone: int = 0


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


@dataclass(frozen=True)
class _Decoding:
    """Decoding of a group. passes: over the weights. tokens: of answers, of which each pass makes one or more."""

    passes: float
    tokens: float

    def work(self, of_a_pass: float) -> float:
        return of_a_pass * self.passes + self.tokens


@dataclass
class _Decoded:
    """Seconds of decoding by passes and tokens: a pass over the weights costs the same for one answer as for many, and
    what it costs beside an answer's own work is another thing on every machine."""

    groups: list[tuple[float, _Decoding]] = field(default_factory=list)

    def add(self, seconds: float, done: _Decoding) -> None:
        if seconds > 0 and done.tokens > 0:
            self.groups.append((seconds, done))

    def of_a_pass(self) -> float:
        """What a pass costs in answers' own work: what fits the groups best, `_PASS` unless it is well told."""
        if len(self.groups) < 3:
            return _PASS
        errors = {guess: self._error(guess) for guess in _PASSES}
        best = min(errors, key=errors.__getitem__)
        return best if errors[best] + _SURE * len(self.groups) < errors[_PASS] else _PASS

    def each(self, of_a_pass: float) -> float | None:
        """Seconds a unit of work, newer groups weighing more; None before any was decoded."""
        speed = _Speed()
        for seconds, done in self.groups:
            speed.fade()
            speed.add(seconds, done.work(of_a_pass))
        return speed.each

    def _error(self, of_a_pass: float) -> float:
        """Sum over groups of the squared logarithm of seconds over those that one speed for all of them gives."""
        logs = [math.log(seconds / done.work(of_a_pass)) for seconds, done in self.groups]
        mean = sum(logs) / len(logs)
        return sum((one - mean) ** 2 for one in logs)


@dataclass
class _Seen:
    tokens: float = 0.0
    answers: int = 0
    longest: float = 0.0
    groups: int = 0
    most: int = 1


@dataclass
class _Lengths:
    """Tokens of answers, task by task, as far as they were seen."""

    made: dict[str, _Seen] = field(default_factory=dict)

    def add(self, piece: Piece, tokens: Sequence[int]) -> None:
        """Take the answers of a group."""
        own = self.made.setdefault(piece.task, _Seen(most=max(1, piece.most)))
        own.tokens, own.answers = own.tokens + sum(tokens), own.answers + len(tokens)
        own.longest, own.groups = own.longest + max(tokens), own.groups + 1

    def knows(self, piece: Piece) -> bool:
        return piece.task in self.made

    def of(self, piece: Piece) -> float:
        """Tokens of an answer: the mean of its task's. Before one was seen: a share of the most it may have, the mean
        of the other tasks' shares and of one that is assumed."""
        own = self.made.get(piece.task)
        if own is not None:
            return own.tokens / own.answers
        shares = [one.tokens / one.answers / one.most for one in self.made.values()]
        return piece.most * (_SHARE + sum(shares)) / (1 + len(shares))

    def foreseen(self, piece: Piece) -> _Decoding:
        """Of a whole group. Answers in a batch take as many passes as the longest of them has tokens."""
        mean, own = self.of(piece), self.made.get(piece.task)
        if own is not None:
            longest = own.longest / own.groups
        else:
            shares = [one.longest / one.groups / one.most for one in self.made.values()]
            longest = piece.most * (_LONGEST + sum(shares)) / (1 + len(shares))
        together = piece.answers - piece.alone
        batch = 0.0 if together <= 0 else mean if together == 1 else max(mean, longest)
        return _Decoding(batch + piece.alone * mean, piece.answers * mean)


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
        self._reading, self._decoded, self._lengths = _Speed(), _Decoded(), _Lengths()
        self._began: float | None = None
        self._settled = 0.0  # when the last group ended
        self._ends: list[float] = []  # when each did
        self._phase: tuple[str, float, float] | None = None  # kind, begin, work
        self._read = self._decoded_for = 0.0  # of the group that is being answered
        self._answers: list[int] = []

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

    def answered(self, tokens: int) -> None:
        """An answer of that many tokens is on the disk."""
        self._answers.append(tokens)

    def group_ended(self, finished: int, now: float) -> None:
        """So many groups have been finished."""
        self._close(now)
        piece = self._piece()
        if piece is not None and self._answers:
            self._lengths.add(piece, self._answers)
            self._decoded.add(self._decoded_for, _done(piece, self._answers))
        self._reading.fade()
        self._ends += [now] * (finished - self.finished)
        self.finished, self._settled, self._phase = finished, now, None
        self._read = self._decoded_for = 0.0
        self._answers = []

    def left(self, now: float) -> float | None:
        """Seconds left, never below 0; None before there is anything to tell it from."""
        if self._began is None:
            return None
        if self.workers > 1:
            return self._of_several(now)
        each = self._reading.each
        if each is None:
            return None
        piece = self._piece()
        if piece is None:
            return 0.0
        of_a_pass = self._decoded.of_a_pass()
        answer = self._decoded.each(of_a_pass) or each * _LONE_TOKEN / (1 + of_a_pass)
        decoding_now = now - self._phase[1] if self._phase and self._phase[0] == "decode" else 0.0
        decoded_for, foreseen = self._decoded_for + decoding_now, self._lengths.foreseen(piece).work(of_a_pass)
        if foreseen and decoded_for > answer * foreseen:
            answer = decoded_for / foreseen  # slower than before, or longer answers: so will be the rest
        still = max(answer * foreseen - decoded_for, _OVERDUE * decoding_now) + self._to_read(piece, each, now)
        rest = self.pieces[self.finished + 1 :]
        return still + sum(one.reading * each + self._lengths.foreseen(one).work(of_a_pass) * answer for one in rest)

    @property
    def is_guess(self) -> bool:
        """Whether most of what is left to decode is of tasks of which no answer was seen yet: how long theirs get is
        only assumed. (Before the first group ends nothing was even timed.)"""
        rest = self.pieces[self.finished :]
        unseen = sum(one.answers * self._lengths.of(one) for one in rest if not self._lengths.knows(one))
        return not self.finished or 2 * unseen > sum(one.answers * self._lengths.of(one) for one in rest)

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


def _done(piece: Piece, answers: Sequence[int]) -> _Decoding:
    """What a group of these answers was. Those that were there before are decoded again with the others, and not
    written again: they are taken to be like the others."""
    mean = sum(answers) / len(answers)
    together = piece.answers - piece.alone
    batch = 0.0 if together <= 0 else mean if together == 1 else float(max(answers))
    return _Decoding(batch + piece.alone * mean, max(piece.answers, len(answers)) * mean)


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
        answers, lone = len(good) * len(prompts.methods), len(good) * sum(alone)
        pieces.append(Piece(prompts.task.id, reading, answers, prompts.max_new_tokens, lone))
    return pieces, work
