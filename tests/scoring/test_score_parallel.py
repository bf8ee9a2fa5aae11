"""Many samples: the same values whatever the number of processes, and errors that come back as such."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from typing import Any

import pytest

from lcbench.errors import LcbenchError
from lcbench.scoring import parallel
from lcbench.scoring.metrics import score
from lcbench.scoring.parallel import Item, Refused, Rule, score_items


def _items(count: int) -> list[Item]:
    rng = random.Random(7)
    items: list[Item] = []
    for _ in range(count):
        text, answer = (" ".join(rng.choice("abcdefgh") for _ in range(rng.randint(0, 60))) for _ in "xy")
        metric = rng.choice(["rouge", "rouge_zh", "qa_f1", "qa_f1_zh", "code_sim", "count", "passkey"])
        items.append((Rule(metric), text, (answer, "a b")))
    return items


def _expected(item: Item) -> tuple[float, ...]:
    rule, text, answers = item
    best = score(rule.metric, text, answers)
    return (best, score("passkey_partial", text, answers)) if rule.metric == "passkey" else (best,)


@pytest.fixture
def always_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_worth", lambda seconds, most, once, each: most)


@pytest.mark.usefixtures("always_pooled")
@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_values_do_not_depend_on_the_number_of_processes(jobs: int) -> None:
    items = _items(200)
    items += items[:20]
    assert score_items(items, jobs) == [_expected(item) for item in items]


@pytest.mark.usefixtures("always_pooled")
def test_another_thread_makes_it_spawn_and_the_values_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: asked.append(method) or real(method))
    items = _items(30)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert score_items(items, 2) == [_expected(item) for item in items]
    finally:
        stop.set()
        thread.join()
    assert asked == ["spawn"]


@pytest.mark.usefixtures("always_pooled")
@pytest.mark.parametrize("call", ["fork", "pipe"])
def test_where_no_process_can_be_started_one_does_it_all(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse() -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, call, refuse)
    items = _items(20)
    assert score_items(items, 2) == [_expected(item) for item in items]


@pytest.mark.usefixtures("always_pooled")
def test_what_a_killed_process_took_with_it_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parent, real = os.getpid(), parallel._values

    def values(item: Item) -> Any:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.001)  # so that the others get a piece
        return real(item)

    monkeypatch.setattr(parallel, "_values", values)
    items = _items(100)
    assert score_items(items, 3) == [_expected(item) for item in items]


@pytest.mark.usefixtures("always_pooled")
def test_no_process_is_left_behind_when_the_work_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()

    def values(item: Item) -> Any:
        if os.getpid() == parent:
            raise KeyboardInterrupt
        time.sleep(60)

    started: list[int] = []
    real = parallel._fork
    monkeypatch.setattr(parallel, "_may_fork", lambda: True)  # whatever threads other tests have left in this process
    monkeypatch.setattr(parallel, "_fork", lambda *a: started.append((child := real(*a))[0]) or child)
    monkeypatch.setattr(parallel, "_values", values)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        score_items(_items(100), 3)
    assert time.monotonic() - start < 30
    assert len(started) == 2
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("seconds", "most", "expected"), [(0.01, 64, 1), (0.06, 2, 1), (0.6, 2, 2), (0.6, 1, 1), (6, 8, 8), (1, 64, 7)]
)
def test_processes_are_taken_while_they_save_time(seconds: float, most: int, expected: int) -> None:
    assert parallel._worth(seconds, most, *parallel._FORKING) == expected


def test_a_full_longbench_is_worth_more_processes_and_a_small_file_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "word " * 200
    full = [(Rule("rouge"), f"{i} {words}", (words,)) for i in range(4750)]
    assert parallel._worth(sum(map(parallel._cost, full)), 2, *parallel._FORKING) == 2
    assert parallel._worth(sum(map(parallel._cost, full[:100])), 2, *parallel._FORKING) == 1


@pytest.mark.usefixtures("always_pooled")
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_refused_sample_comes_back_with_its_two_sentences(jobs: int) -> None:
    good: Item = (Rule("retrieval"), "3", ("Paragraph 3",))
    bad: Item = (Rule("retrieval"), "3", ("no number\x1b[31m",))
    one, two, three = score_items([good, bad, good], jobs)
    assert one == three == (1.0,)
    assert isinstance(two, Refused)
    assert "\x1b" not in two.message
    assert two.next_step


def test_equal_samples_are_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = parallel._values
    monkeypatch.setattr(parallel, "_values", lambda item: seen.append(item) or real(item))
    item: Item = (Rule("qa_f1"), "a b", ("b",))
    other: Item = (Rule("count"), "a b", ("b",))
    assert len(score_items([item, other, item, item], 1)) == 4
    assert seen == [item, other]


def test_little_work_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", None)
    assert len(score_items(_items(5), 8)) == 5


@pytest.mark.usefixtures("always_pooled")
def test_errors_of_ours_pass_through_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    items: list[Item] = [(Rule("unheard_of"), str(i), ("a",)) for i in range(9)]
    with pytest.raises(LcbenchError):
        score_items(items, 1)


def test_google_columns_are_those_of_the_package() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rougeL"])
    prediction, answers = "The cat sat. On the mat it slept!", ("A cat slept.", "The dog sat on the mat.")
    ((official, one, _, long, _),) = score_items([(Rule("rouge", google_rouge=True), prediction, answers)], 1)
    found = [scorer.score(answer, prediction) for answer in answers]
    (first,) = score_items([(Rule("rouge", google_rouge=True), prediction, answers[::-1])], 1)
    assert first[1] == one == max(f["rouge1"].fmeasure for f in found)
    assert long == max(f["rougeL"].fmeasure for f in found)
    assert official == score("rouge", prediction, answers)
    assert official != long


def test_lsum_takes_sentences_one_by_one() -> None:
    ((_, _, _, long, summed),) = score_items([(Rule("rouge", google_rouge=True), "B b. A a.", ("A a. B b.",))], 1)
    assert (long, summed) == (0.5, 1.0)
