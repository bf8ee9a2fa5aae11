"""The calls of a run: several at a time, written in the order of the plan.

At most twice as many answers as there are calls at a time wait for their turn to be written; a kill loses no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from lcbench.config.spec import Api
from lcbench.endpoint.client import NoReply
from lcbench.engine.answer import Result, cost_of
from lcbench.engine.plan import PromptSet
from lcbench.engine.run import Listener, Outcome, Owing, Writer
from lcbench.measure.clock import Stopwatch
from lcbench.methods.base import Method
from lcbench.remote.asking import Answer, Asker
from lcbench.remote.prompts import ServedPrompt
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import STATUS_ERROR, PredictionRecord
from lcbench.tasks.base import Task
from lcbench.tasks.facts import facts_of

_LINE = "\n"


def execute(
    asker: Asker,
    apis: Mapping[str, Api],
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
        apis: by task id. todo: what is missing, in order. concurrency: calls at a time.
        should_stop: asked before every call; calls under way are waited for and kept.

    Raises:
        UsageError, NetworkError: going on makes no sense; what was written before stays.
    """
    total = sum(len(s.prompts) * len(s.methods) for s in sets)
    outcome = Outcome(reused=total - sum(len(item.wanted) for item in todo))
    writer = Writer(run, todo, outcome, listener)
    stop = should_stop or (lambda: False)
    check = _Counts(run)
    waiting: deque[tuple[Owing, list[Future[Result]]]] = deque()

    def write_first() -> None:
        item, futures = waiting.popleft()
        for future in futures:
            result = future.result()
            check.look(sets[item.group.set_index], result)
            writer.put(item.group.index, result)
        writer.finish(item.group.index)

    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="call")
    try:
        for item in todo:
            if stop():
                outcome.interrupted = True
                asker.client.stop()
                break
            prompts = sets[item.group.set_index]
            calls = [pool.submit(_answer, asker, apis[prompts.task.id], prompts, p, m) for p, m in sorted(item.wanted)]
            waiting.append((item, calls))
            while len(waiting) >= 2 * concurrency or (waiting and all(f.done() for f in waiting[0][1])):
                write_first()
        while waiting and not _given_up(waiting[0][1], outcome):
            write_first()
    finally:
        asker.client.stop()
        pool.shutdown(wait=False, cancel_futures=True)
        asker.client.close()
    return outcome


def _given_up(calls: Sequence[Future[Result]], outcome: Outcome) -> bool:
    """After a stop: a call that failed may have failed because it was not tried again, which is no result."""
    return outcome.interrupted and any(not call.result().record.ok for call in calls)


def _answer(asker: Asker, api: Api, prompts: PromptSet, p: int, m: int) -> Result:
    """One call and its record. Raises what ends the run."""
    prompt, method, task = prompts.prompts[p], prompts.methods[m], prompts.task
    assert isinstance(prompt, ServedPrompt)
    record, timing = _blank(prompts, prompt, method), None
    if prompt.error is not None:
        record = replace(record, status=STATUS_ERROR, error=prompt.error)
    else:
        sent: Any = prompt.ids if api == "token-ids" else prompt.text
        try:
            with Stopwatch("cpu") as taken:
                answer, calls = _ask(asker, api, sent, task, prompts.max_new_tokens)
            record, timing = _filled(record, answer, api), {"call": taken.seconds}
            if calls > 1:
                timing["calls"] = calls
            if prompt.tokens_before is not None or method.rewriter is not None:
                timing["rewrite"] = prompt.rewrite_seconds
        except NoReply as error:
            record = replace(record, status=STATUS_ERROR, error=error.reason)
    share = cost_of(prompts, prompt, len(prompts.methods)) / len(prompts.methods)
    return Result(method.id, task.id, record, timing, p + 1, len(prompts.prompts), share)


def stop_texts(task: Task) -> list[str]:
    """The texts that end an answer of a task: a line feed where it stops there, or its scorer reads one line."""
    facts = facts_of(task.name)
    one_line = task.early_stop and facts is not None and facts.cut_first_line
    return [_LINE] if task.stop == "newline" or one_line else []


def _ask(asker: Asker, api: Api, prompt: Any, task: Task, most: int) -> tuple[Answer, int]:
    """The answer to a prompt, and how many calls it took.

    Where an answer ends at a line feed, a model may begin with one. Scorers skip those, and the server has stopped
    before the answer began: it is asked again without the stop, and the answer is cut here.
    """
    stop = stop_texts(task)
    answer = asker.ask(api, prompt, max_tokens=most, stop=stop)
    if not stop or answer.text.strip() or answer.finish_reason == "length":
        return answer, 1
    whole = asker.ask(api, prompt, max_tokens=most)
    start = len(whole.text) - len(whole.text.lstrip(_LINE))
    end = whole.text.find(_LINE, start)
    return replace(whole, text=whole.text if end < 0 else whole.text[:end]), 2


def _blank(prompts: PromptSet, prompt: ServedPrompt, method: Method) -> PredictionRecord:
    row = prompt.row
    return PredictionRecord(
        pred="",
        answers=list(row.answers),
        all_classes=None if row.all_classes is None else list(row.all_classes),
        length=row.length,
        id=row.id,
        prompt_tokens=prompt.tokens,
        kept_tokens=None,
        kv_bytes=None,
        kv_bytes_full=None,
        resident_bytes=None,
        memory=method.traits.memory,
        shared_prefill=False,
        truncated_from=prompt.truncated_from,
        tokens_before=prompt.tokens_before,
        task_version=prompts.task.version,
        decode="served",
        near_ties=None,
        meta=dict(row.meta),
    )


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
