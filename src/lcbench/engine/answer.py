"""Answering a group: each prompt read once, a cache a method, all answers decoded together, a result a sample.

An `Answerer` belongs to one process and one loaded model and knows nothing of run directories: what it yields is
written by `engine.run`, here or in another process. Prompts become caches in `engine.reading`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Literal

import torch

from lcbench.engine.answer_text import scorer_stop, text_of
from lcbench.engine.groups import Group
from lcbench.engine.memory import is_out_of_memory, release
from lcbench.engine.options import Options
from lcbench.engine.outcome import Event, Listener, Result, bare, cost_of, sentence
from lcbench.engine.plan import PromptSet
from lcbench.engine.reading import Answer, Batch, Reader, sample_seed
from lcbench.engine.stacked import Generated, Interrupted, Rules, decode_rows
from lcbench.errors import LcbenchError, SampleError, StoreError
from lcbench.measure.clock import Stopwatch
from lcbench.methods.base import Method
from lcbench.models.info import LoadedModel
from lcbench.store.schema import STATUS_ERROR
from lcbench.tasks.base import Task

FULL = "full"  # the method whose cache is the prompt as it was read


class Answerer:
    """Answers groups with one loaded model.

    Args:
        sets: of the run; groups point into them.
        listener: told what is about to happen.
        should_stop: asked between prompts and between decoding steps; once it says True `run` ends early, having
            yielded whole records only.
        room: bytes that shared beginnings may take.

    Attributes:
        events: what belongs into the run's log (running out of memory); whoever reads it may empty it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        sets: Sequence[PromptSet],
        options: Options,
        *,
        listener: Listener | None = None,
        should_stop: Callable[[], bool] | None = None,
        room: int = 2**31,
    ) -> None:
        self.loaded, self.sets, self.options = loaded, sets, options
        self.events: list[dict[str, Any]] = []
        self._listener: Listener = listener or (lambda event: None)
        self._should_stop = should_stop or (lambda: False)
        self.reader = Reader(loaded, options, tell=self._reads, ran_out=self._ran_out, room=room)
        self._rules: dict[str, Rules] = {}
        self._plain: tuple[int, Generated] | None = None  # the full cache's answer, while rows are decoded alone
        self._too_big = 0  # rows times tokens of the smallest batch that ran out of memory

    def prepare(self, *groups: Group | None) -> None:
        """Make the tensors of groups that will be run soon, and forget those of others; see `Reader.prepare`."""
        self.reader.prepare([(self.sets[group.set_index], group.prompts) for group in groups if group is not None])

    def run(self, group: Group, wanted: Collection[tuple[int, int]] | None = None) -> Iterator[Result]:
        """Answer a group, in the order of its records: prompt by prompt, method by method.

        What is decoded together is always computed as a whole, so that a row's neighbours, and with them the last
        digits of its logits, are the same when a run is continued.

        Args:
            wanted: (prompt, method) indices whose results are asked for; None for all.
        """
        prompts = self.sets[group.set_index]
        self.reader.hopeless.clear()
        every = [(p, m) for p in group.prompts for m in range(len(prompts.methods))]
        order = deque(pair for pair in every if wanted is None or pair in wanted)
        batches = self._batches(prompts, group, set(order))
        self.reader.hold = len(batches) > 1 and len(batches) > len(group.prompts)
        ready: dict[tuple[int, int], Result] = {}
        try:
            for answer in self._answers(prompts, group, deque(batches)):
                ready[answer.prompt, answer.method] = self._result(prompts, answer)
                while order and order[0] in ready:
                    yield ready.pop(order.popleft())
        finally:
            self.reader.let_go()
            self._plain = None

    def failed(self, set_index: int, prompt: int, method: int, problem: str) -> Result:
        """The result of a sample that could not even be tried here; needs no loaded model.

        Args:
            prompt, method: indices into the set. problem: why, in words.
        """
        return self._result(self.sets[set_index], Answer(prompt, method, problem))

    # -- batches -----------------------------------------------------------------------------------------------------

    def _batches(self, prompts: PromptSet, group: Group, wanted: set[tuple[int, int]]) -> list[Batch]:
        """What is decoded together, as far as anything of it is wanted."""
        found = []
        for wave in group.waves:
            alone = [m for m in wave if self._alone(prompts.methods[m])]
            together = tuple(m for m in wave if m not in alone)
            if together and any((p, m) in wanted for p in group.prompts for m in together):
                found.append(Batch(group.prompts, together))
            found += [Batch((p,), (m,)) for p in group.prompts for m in alone if (p, m) in wanted]
        return found

    def _alone(self, method: Method) -> bool:
        """Whether a method's answers are decoded one by one."""
        state = self.loaded.shape().state
        return self.options.exact or not method.traits.stackable or (state is not None and not state.stacks)

    def _answers(self, prompts: PromptSet, group: Group, todo: deque[Batch]) -> Iterator[Answer]:
        """Batch after batch; one that fails as a whole is halved and tried again."""
        cuts = dict(zip(group.prompts, group.cuts, strict=True))
        again: set[Batch] = set()
        while todo:
            batch, failure = todo.popleft(), None
            if self._size(prompts, batch) >= self._too_big > 0 and batch.halves():
                todo.extendleft(reversed(batch.halves()))
                continue
            try:
                answers = self._batch(prompts, batch, cuts)
            except Interrupted:
                return
            except StoreError:
                raise
            except Exception as error:
                if isinstance(error, LcbenchError) and not isinstance(error, SampleError):
                    raise
                failure = bare(error)
            if failure is None:
                yield from answers
                continue
            poor = is_out_of_memory(failure)
            if batch.halves():
                rest, then = batch.halves(), "halved"
            elif poor and batch not in again:
                rest, then = [batch], "tried again"
                again.add(batch)
            else:
                rest, then = [], "recorded as an error"
            self.reader.let_go()
            if poor:
                self._ran_out(prompts, batch, then)
            todo.extendleft(reversed(rest))
            if not rest:
                yield Answer(batch.prompts[0], batch.methods[0], sentence(failure))

    def _size(self, prompts: PromptSet, batch: Batch) -> int:
        return batch.rows * max(prompts.prompts[p].tokens for p in batch.prompts)

    def _ran_out(self, prompts: PromptSet, batch: Batch, then: str) -> None:
        """Give memory back after it ran out, and note what becomes of the batch."""
        self.reader.beginnings.clear()
        release(self.loaded.shape().device)
        if then == "halved":
            size = self._size(prompts, batch)
            self._too_big = min(self._too_big or size, size)
        self.events.append(
            {
                "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "event": "out_of_memory",
                "task": prompts.task.id,
                "samples": [prompts.prompts[p].row.id for p in batch.prompts],
                "methods": [prompts.methods[m].id for m in batch.methods],
                "then": then,
            }
        )

    def _batch(self, prompts: PromptSet, batch: Batch, cuts: Mapping[int, tuple[int, ...]]) -> list[Answer]:
        answers: list[Answer] = []
        with ExitStack() as stack:
            reader = prompts.methods[0 if prompts.shared else batch.methods[0]]  # all that share a prefill read alike
            longest = max(prompts.prompts[p].tokens for p in batch.prompts) + prompts.max_new_tokens
            stack.enter_context(reader.transform_model(self.loaded.model, longest))
            learned = self._adapt(prompts, batch, stack)
            for p in batch.prompts:
                if self._should_stop():
                    raise Interrupted
                answers += self.reader.read(prompts, p, batch, cuts[p])
            self._decode(prompts, answers)
        for answer in answers:
            if answer.cache is not None:
                answer.cache.let_go()
            answer.cache = answer.logits = None
            answer.seconds |= {"halved": batch.halved, **learned}
        return answers

    def _adapt(self, prompts: PromptSet, batch: Batch, stack: ExitStack) -> dict[str, float]:
        """Let a method that learns from a prompt do so, until ``stack`` is left; the seconds it took."""
        method, prompt = prompts.methods[batch.methods[0]], prompts.prompts[batch.prompts[0]]
        if prompts.shared or not method.learns or prompt.error is not None:
            return {}
        assert batch.rows == 1, "what is learned is of one prompt"
        seed = sample_seed(self.options.seed, prompts.task.id, prompt.row.id)
        with Stopwatch(self.loaded.info.device) as learning:
            stack.enter_context(method.adapt(self.loaded.model, prompt.lesson, seed))
        return {"adapt": learning.seconds}

    # -- decoding ----------------------------------------------------------------------------------------------------

    def _decode(self, prompts: PromptSet, answers: Sequence[Answer]) -> None:
        rows = [a for a in answers if a.cache is not None]
        alone = len(rows) == 1
        if alone and rows[0].plain and self._plain is not None and self._plain[0] == rows[0].prompt:
            rows[0].generated = self._plain[1]
            rows[0].seconds["decode"] = 0.0
            rows = []
        if rows:
            self._say("decode", prompts, rows[-1].prompt, _named(prompts, rows))
            with Stopwatch(self.loaded.info.device) as decoding:
                made = decode_rows(
                    self.loaded,
                    [a.cache for a in rows if a.cache is not None],
                    torch.stack([a.logits for a in rows if a.logits is not None]),
                    self._rules_of(prompts),
                    should_stop=self._should_stop,
                )
            for a, generated in zip(rows, made, strict=True):
                a.generated, a.seconds["decode"] = generated, decoding.seconds / len(rows)
                if self.reader.hold and alone and a.plain:
                    self._plain = a.prompt, generated
        for a in answers:
            if a.same_as is not None:
                first = a.same_as
                a.generated, a.kept, a.held, a.resident = first.generated, first.kept, first.held, first.resident
                a.seconds["decode"] = 0.0

    def _rules_of(self, prompts: PromptSet) -> Rules:
        task = prompts.task
        if task.id not in self._rules:
            self._rules[task.id] = Rules(
                prompts.max_new_tokens, task.min_new_tokens, _stop_ids(self.loaded, task), _finished(self.loaded, task)
            )
        return self._rules[task.id]

    def _reads(self, prompts: PromptSet, p: int, method: str) -> None:
        self._say("prefill", prompts, p, method)

    def _say(self, kind: Literal["prefill", "decode"], prompts: PromptSet, p: int, method: str) -> None:
        self._listener(Event(kind, prompts.task.id, method, p + 1, len(prompts.prompts)))

    # -- results -----------------------------------------------------------------------------------------------------

    def _result(self, prompts: PromptSet, answer: Answer) -> Result:
        prompt, method = prompts.prompts[answer.prompt], prompts.methods[answer.method]
        record = prompts.blank(prompt, method, "exact" if self._alone(method) else "stacked")
        generated = answer.generated
        if answer.problem or generated is None:
            record = replace(record, status=STATUS_ERROR, error=answer.problem or "nothing was generated")
        else:
            record = replace(
                record,
                pred=text_of(self.loaded, generated.ids),
                kept_tokens=round(answer.kept, 2),
                new_tokens=generated.new_tokens,
                kv_bytes=answer.held,
                prompt_tokens=answer.read or prompt.tokens,
                tokens_before=prompt.tokens if answer.read and not prompt.tokens_before else prompt.tokens_before,
                kv_bytes_full=self.loaded.shape().full_bytes(prompt.tokens_before or prompt.tokens),
                resident_bytes=answer.resident,
                reused_from=_reused(prompts, method) if answer.plain else None,
                near_ties=generated.near_ties,
            )
        timing = dict(answer.seconds) if record.ok else None
        if timing is not None and not timing["halved"]:
            del timing["halved"]
        share = cost_of(prompts, prompt, len(prompts.methods)) / len(prompts.methods)
        return Result(method.id, prompts.task.id, record, timing, answer.prompt + 1, len(prompts.prompts), share)


def _named(prompts: PromptSet, rows: Sequence[Answer]) -> str:
    return prompts.methods[rows[0].method].id if len(rows) == 1 else f"{len(rows)} answers"


def _reused(prompts: PromptSet, method: Method) -> str | None:
    """The method whose cache is the prompt as the set reads it, where that is another one."""
    if prompts.reading:
        return prompts.reading if method.id != prompts.reading else None
    return FULL if method.name != FULL else None


def _stop_ids(loaded: LoadedModel, task: Task) -> tuple[int, ...]:
    """The token that ends an answer besides the end tokens: the last id of an encoded newline, as LongBench does."""
    if task.stop != "newline":
        return ()
    return tuple(int(i) for i in loaded.tokenizer.encode("\n", add_special_tokens=False)[-1:])


def _finished(loaded: LoadedModel, task: Task) -> Callable[[list[int]], bool] | None:
    """Whether the scorer would read no further than what has been generated. Only a line feed can end its reading, so
    the text is looked at only once one has come."""
    stop = scorer_stop(loaded, task)
    if stop is None:
        return None
    feeds: dict[int, bool] = {}

    def feeds_line(token: int) -> bool:
        if token not in feeds:
            feeds[token] = "\n" in str(loaded.tokenizer.decode([token]))
        return feeds[token]

    return lambda ids: any(map(feeds_line, ids)) and stop(ids)
