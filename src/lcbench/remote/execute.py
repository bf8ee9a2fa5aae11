"""The calls of a run: several at a time, written in the order of the plan.

At most twice as many answers as there are calls at a time wait for their turn to be written; a kill loses no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from typing import Any

from lcbench.config.spec import Api
from lcbench.endpoint.client import NoReply, Stopped
from lcbench.engine.outcome import Result, cost_of
from lcbench.engine.plan import PromptSet
from lcbench.engine.run import Listener, Outcome, Owing, Writer
from lcbench.measure.clock import Stopwatch
from lcbench.remote.asking import Answer, Asker
from lcbench.remote.callers import Callers
from lcbench.remote.ends import Ends, ask
from lcbench.remote.prompts import Reader, ServedPrompt
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import STATUS_ERROR, PredictionRecord

# What nobody can know of a model behind an address.
_UNKNOWN: dict[str, Any] = dict.fromkeys(
    ("kept_tokens", "kv_bytes", "kv_bytes_full", "resident_bytes", "near_ties"), None
)
_LOOK = 0.2  # seconds between looks at whether the user wants to stop
_GRACE = 5.0  # seconds that answers under way are waited for when another has ended the run: they are paid for


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
    ends = {s.task.id: Ends.of(s.task, reader.tokenizer) for s in sets}
    calls = _Calls(asker, sets, run, Writer(run, todo, outcome, listener), concurrency, outcome, should_stop)
    try:
        for item in todo:
            if calls.stopped():
                break
            prompts = sets[item.group.set_index]
            api, end = reader.apis[prompts.task.id], ends[prompts.task.id]
            calls.begin(item, [partial(_answer, asker, api, end, prompts, p, m) for p, m in sorted(item.wanted)])
        calls.finish()
    finally:
        calls.end()
    return outcome


class _Calls:
    """The calls of a run that have been begun; their results are written in that order.

    Args:
        outcome: told of a stop. should_stop: as in `execute`.
    """

    def __init__(
        self,
        asker: Asker,
        sets: Sequence[PromptSet],
        run: RunDirectory,
        writer: Writer,
        concurrency: int,
        outcome: Outcome,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._client, self._sets, self._writer, self._most = asker.client, sets, writer, 2 * concurrency
        self._callers, self._check, self._outcome = Callers(concurrency), _Counts(run), outcome
        self._should_stop = should_stop or (lambda: False)
        self._waiting: deque[tuple[Owing, list[Future[Result]]]] = deque()
        self._fatal: BaseException | None = None
        self._grace = _GRACE

    def begin(self, item: Owing, asked: Sequence[Callable[[], Result]]) -> None:
        """Call, when a thread is free; writes what has come, and waits while too many results would have to."""
        calls = [self._callers.submit(one) for one in asked]
        for call in calls:
            call.add_done_callback(self._look)
        self._waiting.append((item, calls))
        while len(self._waiting) >= self._most or (self._waiting and not wait(self._waiting[0][1], 0).not_done):
            self._write_first()

    def finish(self) -> None:
        """Wait for all calls, and write."""
        while self._waiting:
            self._write_first()

    def end(self) -> None:
        """Begin nothing more."""
        self._client.stop()
        self._callers.end()
        self._client.close()

    def stopped(self) -> bool:
        """Whether the user wants to stop; from then on nothing is tried again."""
        if not self._outcome.interrupted and self._should_stop():
            self._outcome.interrupted = True
            self._client.stop()
        return self._outcome.interrupted

    def _look(self, call: Future[Result]) -> None:
        """In the thread of a call that has ended: one that ends the run keeps the next from being begun."""
        error = call.exception()
        if error is not None and not isinstance(error, Stopped):
            self._fatal = self._fatal or error
            self._client.stop()

    def _write_first(self) -> None:
        """Write the results that come first, when they are there; none, and nothing after them, where a stop kept one
        from being asked for. Raises what ends the run."""
        item, calls = self._waiting.popleft()
        while wait(calls, _LOOK).not_done and self._grace > 0:
            self.stopped()
            self._grace -= _LOOK if self._fatal else 0
        if self._fatal and any(not call.done() or call.exception() for call in calls):
            raise self._fatal
        if any(call.exception() for call in calls):
            self._waiting.clear()
            return
        for call in calls:
            result = call.result()
            self._check.look(self._sets[item.group.set_index], result)
            self._writer.put(item.group.index, result)
        self._writer.finish(item.group.index)


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
        except Stopped:
            raise
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
