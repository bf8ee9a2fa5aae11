"""The main loop: every prompt once, every method on it, a record written the moment it exists."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import torch

from lcbench.engine.answer import scorer_stop, text_of
from lcbench.engine.generate import decode, prefill
from lcbench.engine.plan import PreparedPrompt, PromptSet
from lcbench.errors import LcbenchError, SampleError, StoreError
from lcbench.kv.record import PrefillRecord
from lcbench.measure.clock import Stopwatch
from lcbench.methods.base import Method
from lcbench.models.info import LoadedModel
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import STATUS_ERROR, PredictionRecord
from lcbench.tasks.base import Task

_T = TypeVar("_T")


@dataclass(frozen=True)
class Event:
    """Something that happened, for progress displays.

    Attributes:
        kind: "prefill" or "decode" is about to start; "sample" has been written.
        task, method: ids; method is "" for a shared prefill.
        index, total: which prompt of the task, from 1.
        cost: share of the work this event finished, in prompt tokens (see `cost_of`).
        error: why the sample failed, else None.
    """

    kind: Literal["prefill", "decode", "sample"]
    task: str
    method: str
    index: int
    total: int
    cost: float = 0.0
    error: str | None = None


Listener = Callable[[Event], None]


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        written: records appended now. reused: records that were there before.
        failed: samples whose latest record is an error, over all methods and tasks.
        interrupted: stopped on request before the end.
    """

    written: int = 0
    reused: int = 0
    failed: int = 0
    interrupted: bool = False
    errors: list[str] = field(default_factory=list)


def execute(
    loaded: LoadedModel,
    sets: Sequence[PromptSet],
    run: RunDirectory,
    *,
    seed: int = 42,
    prefill_chunk: int | None = None,
    listener: Listener | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Answer every sample that has no good record yet, in plan order.

    A sample that fails is recorded as an error and the run goes on; errors about the run directory itself (disk full,
    lost folder) end it. ``should_stop`` is asked between samples.
    """
    outcome = Outcome()
    worker = _Worker(loaded, run, seed, prefill_chunk, listener or (lambda event: None), outcome)
    for prompts in sets:
        for method in prompts.methods:
            method.check(loaded.shape())
    for prompts in sets:
        done = {m.id: run.done(m.id, prompts.task.id) for m in prompts.methods}
        for index, prompt in enumerate(prompts.prompts):
            pending = [m for m in prompts.methods if prompt.row.id not in done[m.id]]
            outcome.reused += len(prompts.methods) - len(pending)
            if not pending:
                continue
            if should_stop is not None and should_stop():
                outcome.interrupted = True
                return outcome
            worker.answer(prompts, prompt, index, pending)
    return outcome


def cost_of(prompts: PromptSet, prompt: PreparedPrompt, methods: int, *, decode_weight: float = 8.0) -> float:
    """Work of one prompt in units of prompt tokens: one shared prefill, then ``methods`` answers.

    ``decode_weight`` is how many prompt tokens one generated token costs; decoding reads all weights for one token.
    """
    if prompt.error is not None:
        return 0.0
    return prompt.tokens + methods * decode_weight * prompts.max_new_tokens


@dataclass
class _Worker:
    loaded: LoadedModel
    run: RunDirectory
    seed: int
    prefill_chunk: int | None
    listener: Listener
    outcome: Outcome

    def answer(self, prompts: PromptSet, prompt: PreparedPrompt, index: int, pending: Sequence[Method]) -> None:
        """One prompt through all methods that still owe an answer."""
        where = (prompts.task.id, index + 1, len(prompts.prompts))
        if prompt.error is not None:
            for method in pending:
                self._write(prompts, prompt, method, self._failure(prompts, prompt, method, prompt.error), where, 0.0)
            return
        with ExitStack() as stack:
            for method in prompts.methods:
                stack.enter_context(method.transform_model(self.loaded.model))
            self.listener(Event("prefill", where[0], "" if prompts.shared else pending[0].id, *where[1:]))
            with Stopwatch(self.loaded.info.device) as reading:
                record, problem = self._attempt(lambda: self._prefill(prompts, prompt, pending))
            for method in pending:
                if record is None:
                    result = self._failure(prompts, prompt, method, problem)
                else:
                    self.listener(Event("decode", where[0], method.id, *where[1:]))
                    result = self._one(prompts, prompt, method, record, reading.seconds)
                share = cost_of(prompts, prompt, len(pending)) / len(pending)
                self._write(prompts, prompt, method, result, where, share)

    def _prefill(self, prompts: PromptSet, prompt: PreparedPrompt, pending: Sequence[Method]) -> PrefillRecord:
        wishes = [wish for method in pending for wish in method.observes()]
        cache = None if prompts.shared else pending[0].prefill_cache(self.loaded.shape(), prompt.tokens)
        return prefill(self.loaded, prompt.ids, observe=wishes, cache=cache, chunk=self.prefill_chunk)

    def _one(
        self, prompts: PromptSet, prompt: PreparedPrompt, method: Method, record: PrefillRecord, prefill_seconds: float
    ) -> PredictionRecord:
        def go() -> PredictionRecord:
            torch.manual_seed(sample_seed(self.seed, prompts.task.id, prompt.row.id))
            with Stopwatch(self.loaded.info.device) as compressing:
                cache = method.compress(record)
            entries, held = cache.entries, cache.storage_nbytes
            if method.traits.memory == "simulated":
                held = method.logical_nbytes(self.loaded.shape(), prompt.tokens)
            with Stopwatch(self.loaded.info.device) as decoding:
                generated = decode(
                    self.loaded,
                    cache,
                    record.logits,
                    max_new_tokens=prompts.max_new_tokens,
                    min_new_tokens=prompts.task.min_new_tokens,
                    stop_ids=_stop_ids(self.loaded, prompts.task),
                    finished=scorer_stop(self.loaded, prompts.task),
                )
            self.run.record_timing(
                method.id,
                prompts.task.id,
                prompt.row.id,
                {"prefill": prefill_seconds, "compress": compressing.seconds, "decode": decoding.seconds},
            )
            return replace(
                _blank(prompts, prompt, method),
                pred=text_of(self.loaded, generated.ids),
                kept_tokens=round(entries, 2),
                new_tokens=generated.new_tokens,
                kv_bytes=held,
                kv_bytes_full=self.loaded.shape().full_bytes(prompt.tokens),
            )

        result, problem = self._attempt(go)
        return result if result is not None else self._failure(prompts, prompt, method, problem)

    def _attempt(self, work: Callable[[], _T]) -> tuple[_T | None, str]:
        """Run one step of one sample; turn what can go wrong with a sample into a sentence."""
        try:
            return work(), ""
        except StoreError:
            raise
        except SampleError as error:
            return None, error.message
        except LcbenchError:
            raise
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None, "out of memory"
        except Exception as error:
            return None, f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]

    def _failure(self, prompts: PromptSet, prompt: PreparedPrompt, method: Method, problem: str) -> PredictionRecord:
        return replace(_blank(prompts, prompt, method), status=STATUS_ERROR, error=problem)

    def _write(
        self,
        prompts: PromptSet,
        prompt: PreparedPrompt,
        method: Method,
        result: PredictionRecord,
        where: tuple[str, int, int],
        cost: float,
    ) -> None:
        self.run.append(method.id, prompts.task.id, result)
        self.outcome.written += 1
        if not result.ok:
            self.outcome.failed += 1
            self.outcome.errors.append(f"{method.id} {prompts.task.id} {prompt.row.id}: {result.error}")
        self.listener(Event("sample", where[0], method.id, where[1], where[2], cost, result.error))


def _blank(prompts: PromptSet, prompt: PreparedPrompt, method: Method) -> PredictionRecord:
    row = prompt.row
    return PredictionRecord(
        pred="",
        answers=list(row.answers),
        all_classes=None if row.all_classes is None else list(row.all_classes),
        length=row.length,
        id=row.id,
        prompt_tokens=prompt.tokens,
        memory=method.traits.memory,
        shared_prefill=prompts.shared,
        truncated_from=prompt.truncated_from,
        task_version=prompts.task.version,
        meta=dict(row.meta),
    )


def sample_seed(seed: int, task: str, row: str) -> int:
    """A seed of its own for every sample, so that a continued run draws what an unbroken one draws."""
    digest = hashlib.sha256(f"{seed}|{task}|{row}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def _stop_ids(loaded: LoadedModel, task: Task) -> Sequence[int]:
    """The token that ends an answer besides the end tokens: the last id of an encoded newline, as LongBench does."""
    if task.stop != "newline":
        return ()
    return [int(i) for i in loaded.tokenizer.encode("\n", add_special_tokens=False)[-1:]]


def iterate_failures(run: RunDirectory) -> Iterator[str]:
    """One line for every sample whose latest record is an error."""
    for method in run.methods:
        for task in run.tasks:
            for record in run.records(method, task):
                if not record.ok:
                    yield f"{method} {task} {record.id}: {record.error}"
