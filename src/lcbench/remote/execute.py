"""The calls of a run: several at a time, written in the order of the plan.

At most twice as many answers as there are calls at a time wait for their turn to be written; a kill loses no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from lcbench.config.spec import Api
from lcbench.endpoint.client import NoReply
from lcbench.engine.answer import Result, cost_of
from lcbench.engine.plan import PromptSet
from lcbench.engine.run import Listener, Outcome, Owing, Writer
from lcbench.measure.clock import Stopwatch
from lcbench.remote.asking import Answer, Asker
from lcbench.remote.ends import Ends, ask
from lcbench.remote.prompts import Reader, ServedPrompt
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import STATUS_ERROR, PredictionRecord

# What nobody can know of a model behind an address.
_UNKNOWN: dict[str, Any] = dict.fromkeys(
    ("kept_tokens", "kv_bytes", "kv_bytes_full", "resident_bytes", "near_ties"), None
)
_LOOK = 0.2  # seconds between looks at whether the user wants to stop


def execute(
    asker: Asker,
    reader: Reader,
    sets: Sequence[PromptSet],
    todo: Sequence[Owing],
    run: RunDirectory,
    concurrency: int,
    *,
    listener: Listener | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Answer the samples that have no good record yet.

    A call that fails after every attempt is recorded as an error and the run goes on.

    Args:
        todo: what is missing, in order. concurrency: calls at a time.
        should_stop: asked several times a second; calls under way are then waited for and kept, and none is tried
            again.

    Raises:
        UsageError, NetworkError: going on makes no sense; what was written before stays.
    """
    total = sum(len(s.prompts) * len(s.methods) for s in sets)
    outcome = Outcome(reused=total - sum(len(item.wanted) for item in todo))
    writer = Writer(run, todo, outcome, listener)
    stop = should_stop or (lambda: False)
    check = _Counts(run)
    ends = {s.task.id: Ends.of(s.task, reader.tokenizer) for s in sets}
    waiting: deque[tuple[Owing, list[Future[Result]]]] = deque()

    def stopped() -> bool:
        if not outcome.interrupted and stop():
            outcome.interrupted = True
            asker.client.stop()
        return outcome.interrupted

    def write_first() -> bool:
        """Wait for the calls that were begun first, and write; False where a stop kept one from being tried again."""
        item, calls = waiting.popleft()
        while not _finished(calls, _LOOK):
            stopped()
        if outcome.interrupted and any(not call.result().record.ok for call in calls):
            waiting.clear()
            return False
        for call in calls:
            result = call.result()
            check.look(sets[item.group.set_index], result)
            writer.put(item.group.index, result)
        writer.finish(item.group.index)
        return True

    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="call")
    try:
        for item in todo:
            if stopped():
                break
            prompts = sets[item.group.set_index]
            api, end = reader.apis[prompts.task.id], ends[prompts.task.id]
            calls = [pool.submit(_answer, asker, api, end, prompts, p, m) for p, m in sorted(item.wanted)]
            waiting.append((item, calls))
            while len(waiting) >= 2 * concurrency or (waiting and _finished(waiting[0][1], 0)):
                write_first()
        while waiting and write_first():
            pass
    finally:
        asker.client.stop()
        pool.shutdown(wait=False, cancel_futures=True)
        asker.client.close()
    return outcome


def _finished(calls: Sequence[Future[Result]], seconds: float) -> bool:
    """Whether all have ended, or one with what ends the run; waits a while for it."""
    ended, under_way = wait(calls, seconds, FIRST_EXCEPTION)
    return not under_way or any(call.exception() for call in ended)


def _answer(asker: Asker, api: Api, ends: Ends, prompts: PromptSet, p: int, m: int) -> Result:
    """One call and its record. Raises what ends the run."""
    prompt, method, task = prompts.prompts[p], prompts.methods[m], prompts.task
    assert isinstance(prompt, ServedPrompt)
    blank, timing = prompts.blank(prompt, method, "served"), None
    record = replace(blank, tokens_before=prompt.tokens_before, shared_prefill=False, **_UNKNOWN)
    if prompt.error is not None:
        record = replace(record, status=STATUS_ERROR, error=prompt.error)
    else:
        sent: Any = prompt.ids if api == "token-ids" else prompt.text
        try:
            with Stopwatch("cpu") as taken:
                answer, calls = ask(asker, api, sent, ends, prompts.max_new_tokens)
            record, timing = _filled(record, answer, api), {"call": taken.seconds}
            if calls > 1:
                timing["calls"] = calls
            if prompt.tokens_before is not None or method.rewriter is not None:
                timing["rewrite"] = prompt.rewrite_seconds
        except NoReply as error:
            record = replace(record, status=STATUS_ERROR, error=error.reason)
    share = cost_of(prompts, prompt, len(prompts.methods)) / len(prompts.methods)
    return Result(method.id, task.id, record, timing, p + 1, len(prompts.prompts), share)


def _filled(record: PredictionRecord, answer: Answer, api: Api) -> PredictionRecord:
    usage = dict(answer.usage)
    return replace(
        record,
        pred=answer.text,
        prompt_tokens=usage.get("prompt_tokens", record.prompt_tokens),
        new_tokens=usage.get("completion_tokens", 0),
        served={"api": api, "finish_reason": answer.finish_reason, "usage": usage},
    )


class _Counts:
    """Compares the server's count of prompt tokens with that of the named tokenizer; the first difference is noted."""

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._told = run, False

    def look(self, prompts: PromptSet, result: Result) -> None:
        served, mine = result.record.served, prompts.prompts[result.index - 1].tokens
        if self._told or served is None or served["api"] == "chat" or not mine:
            return
        theirs = served["usage"].get("prompt_tokens")
        if theirs is not None and theirs != mine:
            self._told = True
            self._run.append_event(
                {"event": "token_counts_differ", "task": result.task, "id": result.record.id,
                 "tokenizer": mine, "server": theirs}
            )  # fmt: skip
