"""Answering a group: each prompt read once, a cache a method, all answers decoded together, a result a sample.

An `Answerer` belongs to one process and one loaded model and knows nothing of run directories: what it yields is
written by `engine.run`, here or in another process.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lcbench.engine.ahead import Ahead
from lcbench.engine.answer_text import scorer_stop, text_of
from lcbench.engine.generate import chosen_tokens, empty_cache, prefill, read_on
from lcbench.engine.groups import Group
from lcbench.engine.memory import is_out_of_memory, release
from lcbench.engine.options import Options
from lcbench.engine.plan import PreparedPrompt, PromptSet
from lcbench.engine.prefix import Beginnings
from lcbench.engine.stacked import Generated, Interrupted, Rules, decode_rows
from lcbench.errors import LcbenchError, SampleError, StoreError
from lcbench.kv.cache import KVCache
from lcbench.kv.layer import DenseLayer, LayerKV
from lcbench.kv.record import PrefillRecord
from lcbench.kv.ring import RingLayer
from lcbench.measure.clock import Stopwatch
from lcbench.methods.base import Method
from lcbench.models.info import LoadedModel
from lcbench.store.schema import STATUS_ERROR, PredictionRecord
from lcbench.tasks.base import Task

FULL = "full"  # the method whose cache is the prompt as it was read
_DECODE_WEIGHT = 8.0  # prompt tokens that one generated token costs: decoding reads all weights for one token


@dataclass(frozen=True)
class Event:
    """Something that happened, for progress displays.

    Attributes:
        kind: "prefill" or "decode" is about to start; "sample" has been written; a "group" has been finished; "oom": a
            batch ran out of memory.
        task, method: ids; method is "" for a shared prefill or a stacked batch, both for a group.
        index, total: which prompt of the task, from 1; for a group, how many are finished, of those that were to do.
        cost: share of the work this event finished, in prompt tokens (see `cost_of`).
        error: why the sample failed, or what was done about the batch; else None.
        record: of a sample, as it was written.
    """

    kind: Literal["prefill", "decode", "sample", "group", "oom"]
    task: str
    method: str
    index: int
    total: int
    cost: float = 0.0
    error: str | None = None
    record: PredictionRecord | None = None


Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Result:
    """One sample answered.

    Attributes:
        method, task: ids: the file it belongs to.
        timing: seconds by name, None for a sample that failed.
        index, total: which prompt of the task, from 1. cost: as in `Event`.
    """

    method: str
    task: str
    record: PredictionRecord
    timing: dict[str, float] | None
    index: int
    total: int
    cost: float


def cost_of(prompts: PromptSet, prompt: PreparedPrompt, methods: int) -> float:
    """Work of one prompt in units of prompt tokens: one shared prefill, then ``methods`` answers."""
    if prompt.error is not None:
        return 0.0
    return prompt.tokens + methods * _DECODE_WEIGHT * prompts.max_new_tokens


@dataclass(frozen=True)
class _Batch:
    """Prompts and methods (indices into their set) that are answered together.

    Attributes:
        halved: how often the batch was halved because it did not work as a whole.
    """

    prompts: tuple[int, ...]
    methods: tuple[int, ...]
    halved: int = 0

    @property
    def rows(self) -> int:
        return len(self.prompts) * len(self.methods)

    def halves(self) -> list[_Batch]:
        """Two batches of half the rows, prompts apart first; none for a single row."""
        for name in ("prompts", "methods"):
            members = getattr(self, name)
            if len(members) > 1:
                middle = (len(members) + 1) // 2
                first = replace(self, **{name: members[:middle], "halved": self.halved + 1})
                return [first, replace(first, **{name: members[middle:]})]
        return []


@dataclass
class _Answer:
    """One row of a batch on its way from a cache to a record.

    Attributes:
        same_as: the row of the same batch whose cache is the same: the whole prompt as it was read.
        read: prompt tokens that were read, where the method chose them with the model itself; else 0.
        plain: whether this row's cache is that. problem: why it failed, "" when it did not.
    """

    prompt: int
    method: int
    problem: str = ""
    cache: KVCache | None = None
    logits: Tensor | None = None
    plain: bool = False
    same_as: _Answer | None = None
    kept: float = 0.0
    held: int = 0
    resident: int = 0
    read: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    generated: Generated | None = None


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
        self.beginnings = Beginnings(room)
        self._rules: dict[str, Rules] = {}
        self._hold = False
        self._set = 0
        self._held: tuple[int, PrefillRecord, dict[str, float]] | None = None  # prompt, record, seconds
        self._plain: dict[int, Generated] = {}  # prompt to the full cache's answer, while rows are decoded alone
        self._too_big = 0  # rows times tokens of the smallest batch that ran out of memory
        self._ahead = Ahead(loaded.shape().device)

    def prepare(self, group: Group) -> None:
        """Make the tensors of a group that will be run soon, in a thread of their own: they are ready when it comes."""
        prompts = self.sets[group.set_index]
        for p in group.prompts:
            if prompts.prompts[p].error is None:
                self._ahead.ask((group.set_index, p), prompts.read_first(prompts.prompts[p]))

    def run(self, group: Group, wanted: Collection[tuple[int, int]] | None = None) -> Iterator[Result]:
        """Answer a group, in the order of its records: prompt by prompt, method by method.

        What is decoded together is always computed as a whole, so that a row's neighbours, and with them the last
        digits of its logits, are the same when a run is continued.

        Args:
            wanted: (prompt, method) indices whose results are asked for; None for all.
        """
        prompts, self._set = self.sets[group.set_index], group.set_index
        every = [(p, m) for p in group.prompts for m in range(len(prompts.methods))]
        order = deque(pair for pair in every if wanted is None or pair in wanted)
        batches = self._batches(prompts, group, set(order))
        self._hold = len(batches) > 1 and len(batches) > len(group.prompts)
        ready: dict[tuple[int, int], Result] = {}
        try:
            for answer in self._answers(prompts, group, deque(batches)):
                ready[answer.prompt, answer.method] = self._result(prompts, answer)
                while order and order[0] in ready:
                    yield ready.pop(order.popleft())
        finally:
            self._held, self._plain = None, {}

    def failed(self, set_index: int, prompt: int, method: int, problem: str) -> Result:
        """The result of a sample that could not even be tried here; needs no loaded model.

        Args:
            prompt, method: indices into the set. problem: why, in words.
        """
        return self._result(self.sets[set_index], _Answer(prompt, method, problem))

    # -- batches -----------------------------------------------------------------------------------------------------

    def _batches(self, prompts: PromptSet, group: Group, wanted: set[tuple[int, int]]) -> list[_Batch]:
        """What is decoded together, as far as anything of it is wanted."""
        found = []
        for wave in group.waves:
            alone = [m for m in wave if self._alone(prompts.methods[m])]
            together = tuple(m for m in wave if m not in alone)
            if together and any((p, m) in wanted for p in group.prompts for m in together):
                found.append(_Batch(group.prompts, together))
            found += [_Batch((p,), (m,)) for p in group.prompts for m in alone if (p, m) in wanted]
        return found

    def _alone(self, method: Method) -> bool:
        """Whether a method's answers are decoded one by one."""
        state = self.loaded.shape().state
        return self.options.exact or not method.traits.stackable or (state is not None and not state.stacks)

    def _answers(self, prompts: PromptSet, group: Group, todo: deque[_Batch]) -> Iterator[_Answer]:
        """Batch after batch; one that fails as a whole is halved and tried again."""
        cuts = dict(zip(group.prompts, group.cuts, strict=True))
        while todo:
            batch = todo.popleft()
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
                self._after_failure(prompts, batch, error)
                if batch.halves():
                    todo.extendleft(reversed(batch.halves()))
                    continue
                answers = [_Answer(batch.prompts[0], batch.methods[0], sentence(error))]
            yield from answers

    def _size(self, prompts: PromptSet, batch: _Batch) -> int:
        return batch.rows * max(prompts.prompts[p].tokens for p in batch.prompts)

    def _after_failure(self, prompts: PromptSet, batch: _Batch, error: Exception) -> None:
        self._held = None
        if not is_out_of_memory(error):
            return
        self.beginnings.clear()
        release(self.loaded.shape().device)
        if batch.rows > 1:
            size = self._size(prompts, batch)
            self._too_big = min(self._too_big or size, size)
        self.events.append(
            {
                "event": "out_of_memory",
                "task": prompts.task.id,
                "samples": [prompts.prompts[p].row.id for p in batch.prompts],
                "methods": [prompts.methods[m].id for m in batch.methods],
                "then": "halved" if batch.rows > 1 else "recorded as an error",
            }
        )

    def _batch(self, prompts: PromptSet, batch: _Batch, cuts: Mapping[int, tuple[int, ...]]) -> list[_Answer]:
        answers: list[_Answer] = []
        with ExitStack() as stack:
            reader = prompts.methods[0 if prompts.shared else batch.methods[0]]  # all that share a prefill read alike
            longest = max(prompts.prompts[p].tokens for p in batch.prompts) + prompts.max_new_tokens
            stack.enter_context(reader.transform_model(self.loaded.model, longest))
            learned = self._adapt(prompts, batch, stack)
            for p in batch.prompts:
                if self._should_stop():
                    raise Interrupted
                answers += self._read(prompts, p, batch, cuts[p])
            self._decode(prompts, answers)
        for answer in answers:
            answer.cache = answer.logits = None
            answer.seconds |= {"halved": batch.halved, **learned}
        return answers

    def _adapt(self, prompts: PromptSet, batch: _Batch, stack: ExitStack) -> dict[str, float]:
        """Let a method that learns from a prompt do so, until ``stack`` is left; the seconds it took."""
        method, prompt = prompts.methods[batch.methods[0]], prompts.prompts[batch.prompts[0]]
        if prompts.shared or not method.learns or prompt.error is not None:
            return {}
        assert batch.rows == 1, "what is learned is of one prompt"
        seed = sample_seed(self.options.seed, prompts.task.id, prompt.row.id)
        with Stopwatch(self.loaded.info.device) as learning:
            stack.enter_context(method.adapt(self.loaded.model, prompt.lesson, seed))
        return {"adapt": learning.seconds}

    # -- reading -----------------------------------------------------------------------------------------------------

    def _read(self, prompts: PromptSet, p: int, batch: _Batch, cuts: tuple[int, ...]) -> list[_Answer]:
        """A prompt through the prefill and, for each method of the batch, into a cache; failed rows among them."""
        prompt = prompts.prompts[p]
        if prompt.error is not None:
            return [_Answer(p, m, prompt.error) for m in batch.methods]
        try:
            record, seconds = self._prefill(prompts, p, batch, cuts)
        except Exception as error:
            alone = len(batch.prompts) == 1
            if _ends_the_run(error) or (is_out_of_memory(error) and not alone):
                raise
            if is_out_of_memory(error):
                self._after_failure(prompts, replace(batch, methods=batch.methods[:1]), error)
            return [_Answer(p, m, sentence(error)) for m in batch.methods]
        answers = [self._compress(prompts, p, m, record, seconds, batch) for m in batch.methods]
        good = [a for a in answers if a.cache is not None]
        plain = [a for a in good if a.plain]
        for a in plain[1:]:
            a.same_as, a.cache = plain[0], None
        self._read_question(prompts, prompt, [a for a in good if a.same_as is None])
        return answers

    def _prefill(
        self, prompts: PromptSet, p: int, batch: _Batch, cuts: tuple[int, ...]
    ) -> tuple[PrefillRecord, dict[str, float]]:
        if self._held is not None and self._held[0] == p and prompts.shared:
            return self._held[1], self._held[2]
        self._held = None
        prompt = prompts.prompts[p]
        ids = self._ahead.take((self._set, p), prompts.read_first(prompt))
        methods = prompts.methods if prompts.shared else (prompts.methods[batch.methods[0]],)
        self._say("prefill", prompts, p, "" if prompts.shared else methods[0].id)
        seconds = {}
        if not prompts.shared:
            with Stopwatch(self.loaded.info.device) as choosing:
                ids, kept = chosen_tokens(self.loaded, methods[0], ids)
            if kept is not None:
                seconds["rewrite"] = choosing.seconds
        plain = prompts.shared and not prompts.reading
        cache = None if plain else empty_cache(self.loaded, methods[0], ids.shape[-1])
        with Stopwatch(self.loaded.info.device) as reading:
            record = prefill(
                self.loaded,
                ids,
                observe=[wish for method in methods for wish in method.observes()],
                cache=cache,
                chunk=self.options.prefill_chunk,
                question_tokens=prompt.question_tokens if prompts.question == "visible" else 0,
                cuts=cuts,
                beginnings=self.beginnings if cuts else None,
            )
        if self._hold:
            self._held, self._plain = (p, record, {"prefill": reading.seconds}), {}
        return record, seconds | {"prefill": reading.seconds}

    def _compress(
        self, prompts: PromptSet, p: int, m: int, record: PrefillRecord, seconds: dict[str, float], batch: _Batch
    ) -> _Answer:
        prompt, method = prompts.prompts[p], prompts.methods[m]
        answer = _Answer(p, m)
        torch.manual_seed(sample_seed(self.options.seed, prompts.task.id, prompt.row.id))
        try:
            with Stopwatch(self.loaded.info.device) as compressing:
                cache = method.compress(record)
        except Exception as error:
            if _ends_the_run(error) or (is_out_of_memory(error) and batch.rows > 1):
                raise
            if is_out_of_memory(error):
                self._after_failure(prompts, batch, error)
            answer.problem = sentence(error)
            return answer
        answer.cache, answer.logits = cache, record.logits
        answer.plain = prompts.shared and _is_whole(cache, record, prompt.tokens + prompts.max_new_tokens)
        answer.kept, answer.held, answer.resident = cache.entries, cache.storage_nbytes, cache.resident_nbytes
        if method.traits.memory == "simulated":
            answer.held = method.logical_nbytes(self.loaded.shape(), record.length)
        if record.length < len(prompts.read_first(prompt)):
            answer.read = record.length
        if prompt.tokens_before is not None:
            answer.seconds["rewrite"] = prompt.rewrite_seconds
        answer.seconds |= {**seconds, "compress": compressing.seconds}
        return answer

    def _read_question(self, prompts: PromptSet, prompt: PreparedPrompt, answers: Sequence[_Answer]) -> None:
        """With the question hidden: read it through the compressed caches; what it adds is kept and counted whole."""
        question = prompts.read_last(prompt)
        if not len(question) or not answers:
            return
        caches = [a.cache for a in answers if a.cache is not None]
        before = [cache.nbytes for cache in caches]
        logits = read_on(self.loaded, caches, question)
        for i, (a, cache) in enumerate(zip(answers, caches, strict=True)):
            a.logits = logits[i]
            simulated = prompts.methods[a.method].traits.memory == "simulated"
            added = self.loaded.shape().full_bytes(len(question)) if simulated else cache.nbytes - before[i]
            a.kept, a.held, a.resident = cache.entries, a.held + added, cache.resident_nbytes

    # -- decoding ----------------------------------------------------------------------------------------------------

    def _decode(self, prompts: PromptSet, answers: Sequence[_Answer]) -> None:
        rows = [a for a in answers if a.cache is not None]
        alone = len(rows) == 1
        if alone and rows[0].plain and rows[0].prompt in self._plain:
            rows[0].generated = self._plain[rows[0].prompt]
            rows[0].seconds["decode"] = 0.0
            rows = []
        if rows:
            self._say("decode", prompts, rows[-1].prompt, self._named(prompts, rows))
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
                if self._hold and alone and a.plain:
                    self._plain[a.prompt] = generated
        for a in answers:
            if a.same_as is not None:
                first = a.same_as
                a.generated, a.kept, a.held, a.resident = first.generated, first.kept, first.held, first.resident
                a.seconds["decode"] = 0.0

    def _named(self, prompts: PromptSet, rows: Sequence[_Answer]) -> str:
        return prompts.methods[rows[0].method].id if len(rows) == 1 else f"{len(rows)} answers"

    def _rules_of(self, prompts: PromptSet) -> Rules:
        task = prompts.task
        if task.id not in self._rules:
            self._rules[task.id] = Rules(
                prompts.max_new_tokens, task.min_new_tokens, _stop_ids(self.loaded, task), _finished(self.loaded, task)
            )
        return self._rules[task.id]

    def _say(self, kind: Literal["prefill", "decode"], prompts: PromptSet, p: int, method: str) -> None:
        self._listener(Event(kind, prompts.task.id, method, p + 1, len(prompts.prompts)))

    # -- results -----------------------------------------------------------------------------------------------------

    def _result(self, prompts: PromptSet, answer: _Answer) -> Result:
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


def _reused(prompts: PromptSet, method: Method) -> str | None:
    """The method whose cache is the prompt as the set reads it, where that is another one."""
    if prompts.reading:
        return prompts.reading if method.id != prompts.reading else None
    return FULL if method.name != FULL else None


def _is_whole(cache: KVCache, record: PrefillRecord, tokens: int) -> bool:
    """Whether a method left the prompt as it was, and will not act before so many tokens of prompt and answer."""
    return all(
        isinstance(theirs, DenseLayer) and _is_whole_layer(mine, theirs, tokens)
        for mine, theirs in zip(cache.layers, record.cache.layers, strict=True)
    )


def _is_whole_layer(mine: LayerKV, theirs: DenseLayer, tokens: int) -> bool:
    if isinstance(mine, RingLayer):
        return mine.held == theirs.filled and mine.idle_to >= tokens
    if type(mine) is not DenseLayer or mine.kept is not None or mine.filled != theirs.filled:
        return False  # a subclass looks at its entries in a way of its own (Quest)
    if mine.policy is not None and getattr(mine.policy, "idle_to", 0) < tokens:
        return False
    pairs = ((mine.key, theirs.key), (mine.value, theirs.value))
    return all(a is not None and b is not None and a.data_ptr() == b.data_ptr() for a, b in pairs)


def sample_seed(seed: int, task: str, row: str) -> int:
    """A seed of its own for every sample, so that a continued run draws what an unbroken one draws."""
    digest = hashlib.sha256(f"{seed}|{task}|{row}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def sentence(error: BaseException) -> str:
    """What went wrong with a sample, in words."""
    if isinstance(error, SampleError):
        return error.message
    if is_out_of_memory(error):
        return "out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _ends_the_run(error: Exception) -> bool:
    """Errors about the run, not about one sample: they are not recorded, they stop it."""
    return isinstance(error, Interrupted) or (isinstance(error, LcbenchError) and not isinstance(error, SampleError))


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
