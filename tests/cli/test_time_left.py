"""The time left, held against runs on a fake clock: told and real agree, and what is told does not jump.

Passes over the weights cost the fake machine nothing unless `Machine.pass_` says so: a token costs what it costs.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from rich.console import Console

from lcbench.cli.heart import Heart
from lcbench.cli.progress import Bars, JsonLog, Lines
from lcbench.cli.so_far import SoFar
from lcbench.cli.time_left import Piece, TimeLeft
from lcbench.engine.outcome import Event


@dataclass
class Machine:
    """A made-up machine: seconds a prompt token, a token of an answer and a pass over the weights, which makes a token
    of each answer of a batch; ``slower``: factor at the end of the run."""

    read: float = 0.005
    decode: float = 0.06
    slower: float = 1.0
    pass_: float = 0.0


@dataclass
class Group:
    """Prompts of one task with ``methods`` answers each, of ``tokens`` new tokens; the first has ``longest``."""

    task: str
    prompts: list[int]
    methods: int
    tokens: int
    most: int
    longest: int = 0

    @property
    def lengths(self) -> list[int]:
        count = len(self.prompts) * self.methods
        return [self.longest or self.tokens] + [self.tokens] * (count - 1)

    @property
    def piece(self) -> Piece:
        return Piece(self.task, sum(self.prompts), len(self.prompts) * self.methods, self.most)


# Six tasks in the order of their prompts' lengths, long ones first; answers end before they must, as a model's do.
LONGBENCH = [
    Group("qasper", [3600, 3500, 3400], 4, 105, 128),
    Group("trec", [3300, 3300, 3200], 4, 58, 64),
    Group("hotpotqa", [3000, 2900, 2800], 4, 28, 32),
    Group("qasper", [2500, 2400, 2300], 4, 110, 128),
    Group("samsum", [2000, 1900, 1800], 4, 100, 128),
    Group("lcc", [1500, 1400, 900], 4, 64, 64),
    Group("passage_retrieval_en", [800, 700, 600], 4, 30, 32),
]
BREVITY = [Group(f"t{i}", [2000 - 100 * i] * 4, 2, 4, 100) for i in range(12)]
DECODING = [Group("a", [100] * 4, 6, 100, 128) for _ in range(6)]
READING = [Group("a", [30_000 - 2000 * i], 2, 5, 5) for i in range(10)]


def told(groups: list[Group], machine: Machine, every: float) -> Iterator[tuple[int, str, float, float | None, bool]]:
    """Run on a fake clock: (finished groups, phase, now, told, whether as a guess), once ``every`` seconds and at every
    event."""
    left = TimeLeft([group.piece for group in groups])
    now, count = 1000.0, sum(len(g.prompts) for g in groups)
    done = 0
    for number, group in enumerate(groups):
        slow = 1 + (machine.slower - 1) * number / max(1, len(groups) - 1)
        for prompt in group.prompts:
            left.reads(prompt, now)
            ends = now + prompt * machine.read * slow
            while now < ends:
                yield number, "read", now, left.left(now), left.is_guess
                now = min(ends, now + every)
            done += 1
        left.decodes(now)
        ends = now + (sum(group.lengths) * machine.decode + max(group.lengths) * machine.pass_) * slow
        while now < ends:
            yield number, "decode", now, left.left(now), left.is_guess
            now = min(ends, now + every)
        for tokens in group.lengths:
            left.answered(tokens)
        left.group_ended(number + 1, now)
        yield number + 1, "group", now, left.left(now), left.is_guess
    assert done == count
    assert left.left(now) == 0


@pytest.mark.parametrize(
    "machine",
    [Machine(), Machine(0.0005, 0.2), Machine(0.05, 0.01), Machine(slower=1.3), Machine(0.0001, 0.001, pass_=0.03)],
)
@pytest.mark.parametrize("groups", [LONGBENCH, DECODING, READING])
def test_what_is_told_after_the_first_group_is_true_within_a_factor_of_one_and_a_half(
    groups: list[Group], machine: Machine
) -> None:
    seen = list(told(groups, machine, every=1.0))
    end = seen[-1][2]
    total = end - 1000
    for finished, phase, now, said, guess in seen:
        real = end - now
        if finished >= 1 and real > 0.08 * total:  # of the last seconds nobody asks for a factor
            assert said is not None
            within = 1.8 if guess else 1.5
            assert real / within <= said <= within * real, (finished, phase, now, said, real)


def test_where_every_task_answers_shorter_than_it_may_it_learns_that_from_the_others() -> None:
    seen = list(told(BREVITY, Machine(), every=1.0))
    end = seen[-1][2]
    ratios = {finished: said / (end - now) for finished, _, now, said, _ in seen if said and end > now}
    assert all(ratio > 0.9 for ratio in ratios.values())  # never too short
    assert 2.5 > ratios[1] > ratios[3] > ratios[6]
    assert ratios[8] < 1.35
    assert all(guess for finished, *_, guess in seen if finished < len(BREVITY))  # every task is a new one


# Long and short answers beside each other: a pass costs as much for the one that is left as for all.
LENGTHS = {"brief": (5, 120), "long": (60, 128), "mixed": (20, 128)}
UNEVEN = [Group(task, [100] * 4, 6, tokens, 128, longest) for task, (tokens, longest) in LENGTHS.items()]


@pytest.mark.parametrize("pass_", [0.0, 0.01, 0.3])
def test_what_a_pass_over_the_weights_costs_is_learned(pass_: float) -> None:
    groups = UNEVEN * 3
    seen = list(told(groups, Machine(0.001, 0.005, pass_=pass_), every=1.0))
    end = seen[-1][2]
    for finished, phase, now, said, _ in seen:
        if finished >= 4 and phase == "group" and end > now:
            assert said is not None
            assert (end - now) / 1.35 <= said <= 1.35 * (end - now), (finished, said, end - now)


def test_answers_decoded_one_by_one_take_passes_of_their_own() -> None:
    def of(alone: int) -> float:
        left = TimeLeft([Piece("a", 100, 4, 10, alone)] * 2)
        left.reads(100, 0.0)
        left.decodes(10.0)
        return left.left(10.0) or 0.0

    assert of(4) > of(2) > of(0)


@pytest.mark.parametrize("groups", [LONGBENCH, DECODING, READING])
def test_it_counts_down_and_does_not_jump_up(groups: list[Group]) -> None:
    before = None
    for finished, _, now, said, _ in told(groups, Machine(), every=2.0):
        if finished >= 1 and said is not None:
            if before is not None:
                assert said <= before + 0.12 * (now - 1000), (finished, now, said, before)
            before = said


# Before anything was decoded: two answers of 10 tokens at most, at 0.1 s a prompt token. A lone token is taken for 16
# prompt tokens, four fifths of them for its pass; answers for 0.6 of what they may be, the longest of a batch for 0.9.
GUESSED = 16 * 0.1 * (4 * 0.9 * 10 + 2 * 0.6 * 10) / 5


def test_nothing_is_told_before_a_prompt_was_read() -> None:
    left = TimeLeft([Piece("a", 100, 2, 10), Piece("a", 100, 2, 10)])
    assert left.left(5.0) is None
    left.reads(100, 100.0)  # the model was loaded until then
    assert left.left(101.0) is None
    left.decodes(110.0)
    assert left.left(110.0) == pytest.approx(10 + 2 * GUESSED)


def test_a_piece_that_takes_longer_than_foreseen_is_not_nearly_done() -> None:
    left = TimeLeft([Piece("a", 100, 1, 10) for _ in range(3)])
    left.reads(100, 0.0)
    left.decodes(1.0)
    foreseen = left.left(1.0)
    late = left.left(61.0)  # decoding was foreseen to take 0.8 s
    assert foreseen is not None
    assert late is not None
    assert late > 100  # two more groups like this one
    assert late > foreseen


def test_answers_that_were_there_before_are_made_again_and_counted() -> None:
    left = TimeLeft([Piece("a", 100, 4, 10), Piece("a", 100, 4, 10)])
    left.reads(100, 0.0)
    left.decodes(1.0)
    left.answered(10)  # one of four answers was wanted
    left.group_ended(1, 41.0)
    assert left.left(41.0) == pytest.approx(1 + 40)


def test_several_workers_are_told_by_what_is_done() -> None:
    left = TimeLeft([Piece("a", 100, 2, 10) for _ in range(4)], workers=2)
    left.reads(100, 0.0)
    left.reads(100, 0.0)
    left.decodes(5.0)
    assert left.left(8.0) is None
    for _ in range(2):
        left.answered(10)
    left.group_ended(1, 10.0)
    assert left.left(10.0) == pytest.approx(10.0)  # the other worker's group is as good as done
    left.group_ended(2, 10.0)
    assert left.left(12.0) == pytest.approx(8.0)


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("uneven", [0.0, 0.3])
def test_several_workers_tell_it_true_from_the_first_group_on(workers: int, uneven: float) -> None:
    """Workers that each take the next group: groups end in order, as the writer tells them."""
    pieces = [Piece("a", 100 * (1 + uneven * (i % 3)), 4, 10) for i in range(24)]
    free, ends = [0.0] * workers, []
    for piece in pieces:
        at = min(range(workers), key=free.__getitem__)
        free[at] += piece.reading / 10 + 20
        ends.append(free[at])
    told_at = [max(ends[: i + 1]) for i in range(len(ends))]
    left = TimeLeft(pieces, workers)
    left.reads(100, 0.0)
    for number, at in enumerate(told_at):
        for _ in range(4):
            left.answered(10)
        left.group_ended(number + 1, at)
        said, real = left.left(at), max(ends) - at
        if real > 0.15 * max(ends):
            assert said is not None
            assert real / 1.6 <= said <= 1.6 * real, (number, said, real)


# -- as the log tells it ---------------------------------------------------------------------------------------------


def test_the_log_tells_running_out_of_memory_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("lcbench.cli.progress.time.monotonic", lambda: now[0])
    lines: list[str] = []
    log = JsonLog(write=lines.append)
    log.time_left, log.finished, log._reading = TimeLeft([Piece("a", 100, 2, 10)] * 2), 0, {("a", 1): 100.0}
    log.on_event(Event("prefill", "a", "", 1, 1))
    now[0] = 10.0
    log.on_event(Event("oom", "a", "", 0, 0, error="halved"))
    log.on_event(Event("died", "a", "", 0, 0, error="killed by SIGKILL; 2 samples are tried again"))
    log.on_event(Event("decode", "a", "2 answers", 1, 1))
    now[0] = 30.0
    log.on_event(Event("group", "", "", 1, 2))
    told = [json.loads(line) for line in lines]
    assert [one["event"] for one in told] == ["prefill", "oom", "died", "decode", "group"]
    assert (told[1]["task"], told[1]["then"]) == ("a", "halved")
    assert told.pop(2)["then"].startswith("killed by SIGKILL")
    assert not {"seconds_left", "seconds_left_guess"} & set(told[0])
    assert told[2]["seconds_left_guess"] == round(10 + 2 * GUESSED)  # no answer was timed yet
    assert "seconds_left" not in told[2]
    assert told[3]["seconds_left_guess"] == round(10 + GUESSED)  # nothing was written: lengths are still assumed


def test_the_log_says_that_it_is_alive_while_nothing_happens(monkeypatch: pytest.MonkeyPatch, made_up: None) -> None:
    monkeypatch.setattr("lcbench.cli.progress._BEAT_EVERY", 0.05)
    lines: list[str] = []
    log = JsonLog(write=lines.append)
    log.begin(Made(), Path("r"))  # type: ignore[arg-type]
    log.on_event(Event("prefill", "a", "", 1, 1))
    log.on_event(Event("decode", "a", "2 answers", 1, 1))
    wait_for(lambda: sum("heartbeat" in line for line in lines) >= 2)
    log.end()
    count = len(lines)
    time.sleep(0.15)
    assert len(lines) == count  # none after the end
    beats = [one for one in map(json.loads, lines) if one["event"] == "heartbeat"]
    assert all((b["samples_done"], b["samples"], b["doing"], b["task"]) == (0, 4, "decode", "a") for b in beats)
    assert all(b["seconds"] >= 0 and "seconds_left_guess" in b for b in beats)


def test_plain_lines_say_it_too_and_nothing_is_animated(monkeypatch: pytest.MonkeyPatch, made_up: None) -> None:
    monkeypatch.setattr("lcbench.cli.progress._LINE_EVERY", 0.05)
    out = io.StringIO()
    lines = Lines(Console(file=out, force_terminal=False, highlight=False, soft_wrap=True))
    lines.begin(Made(), Path("r"))  # type: ignore[arg-type]
    wait_for(lambda: "0 of 4 samples" in out.getvalue())
    lines.end()
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()


def test_bars_tell_tasks_of_one_name_apart_and_finished_ones_are_doing_nothing(made_up: None) -> None:
    tasks = ["passkey@lengths=256,depths=2", "passkey@lengths=512,depths=2"]
    made: Any = SimpleNamespace(
        remaining_cost=(1.0, 4),
        at_once=1,
        sets=[SimpleNamespace(task=SimpleNamespace(id=task)) for task in tasks],
        todo=[SimpleNamespace(group=SimpleNamespace(set_index=i), wanted=[0, 1]) for i in range(2)],
        run=None,
    )
    bars = Bars(Console(file=io.StringIO(), force_terminal=True, width=100))
    bars.begin(made, Path("r"))
    try:
        for task in tasks:
            bars.on_event(Event("decode", task, "2 answers", 1, 2))
            bars.on_event(Event("sample", task, "full", 1, 2))
        assert [one.description for one in bars._bars.tasks] == ["passkey@lengths=256", "passkey@lengths=512"]
        assert all("decoding" in one.fields["what"] for one in bars._bars.tasks)
        bars.on_event(Event("sample", tasks[0], "full", 2, 2))
        assert [bool(one.fields["what"]) for one in bars._bars.tasks] == [False, True]
        assert bars.left() != "done"
        bars.on_event(Event("sample", tasks[1], "full", 2, 2))
        assert bars.left() == "done"
    finally:
        bars.end()


def test_a_log_that_cannot_be_written_ends_the_heart_alone() -> None:
    heart = Heart(beat=lambda: (_ for _ in ()).throw(BrokenPipeError()), every=0.01)  # type: ignore[arg-type]
    heart.start()
    thread = heart._thread
    assert thread is not None
    thread.join(5)
    assert not thread.is_alive()
    heart.stop()


def wait_for(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Made:
    """As much of a running run as is told about."""

    remaining_cost, at_once, todo = (1.0, 4), 1, [None, None]

    class session:
        class spec:
            class model:
                name = "m"

    class run:
        methods: ClassVar = {"full": None}
        tasks: ClassVar = {"a": None}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [Piece("a", 100, 2, 10)] * 2, {("a", 1): 100.0}
    monkeypatch.setattr("lcbench.cli.progress.pieces_of", lambda running: pieces)
    monkeypatch.setattr("lcbench.cli.progress.SoFar.of", lambda run: SoFar([], []))
