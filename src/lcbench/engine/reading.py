"""From prompts to caches: each prompt read once, a cache a method. Rows of a batch begin here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lcbench.engine.ahead import Ahead
from lcbench.engine.generate import chosen_tokens, empty_cache, prefill, read_on
from lcbench.engine.memory import is_out_of_memory
from lcbench.engine.options import Options
from lcbench.engine.outcome import bare, ends_the_run, sentence
from lcbench.engine.plan import PreparedPrompt, PromptSet
from lcbench.engine.prefix import Beginnings
from lcbench.engine.stacked import Generated
from lcbench.kv.cache import KVCache
from lcbench.kv.record import PrefillRecord
from lcbench.kv.untouched import is_untouched
from lcbench.measure.clock import Stopwatch
from lcbench.models.info import LoadedModel


@dataclass(frozen=True)
class Batch:
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

    def halves(self) -> list[Batch]:
        """Two batches of half the rows, prompts apart first; none for a single row."""
        for name in ("prompts", "methods"):
            members = getattr(self, name)
            if len(members) > 1:
                middle = (len(members) + 1) // 2
                first = replace(self, **{name: members[:middle], "halved": self.halved + 1})
                return [first, replace(first, **{name: members[middle:]})]
        return []


@dataclass
class Answer:
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
    same_as: Answer | None = None
    kept: float = 0.0
    held: int = 0
    resident: int = 0
    read: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    generated: Generated | None = None


def sample_seed(seed: int, task: str, row: str) -> int:
    """A seed of its own for every sample, so that a continued run draws what an unbroken one draws."""
    digest = hashlib.sha256(f"{seed}|{task}|{row}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


class Reader:
    """Reads prompts with one loaded model, for the methods of a batch.

    Args:
        tell: told the set, the prompt and the method ("" for a shared prefill) before one is read.
        ran_out: told of a batch whose only prompt could not be read for want of memory, and what becomes of it; to give
            memory back.
        room: bytes that shared beginnings may take.

    Attributes:
        hold: keep what was read of a prompt until the next one comes, for further batches with it.
        hopeless: prompts that could not be read with all memory given back, and why; further methods do not try again
            until it is cleared.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        options: Options,
        *,
        tell: Callable[[PromptSet, int, str], None],
        ran_out: Callable[[PromptSet, Batch, str], None],
        room: int,
    ) -> None:
        self.loaded, self.options, self.hold = loaded, options, False
        self.hopeless: dict[tuple[int, int], str] = {}
        self.beginnings = Beginnings(room)
        self._tell, self._ran_out = tell, ran_out
        self._ahead = Ahead(loaded.shape().device)
        self._held: tuple[int, PrefillRecord, dict[str, float]] | None = None  # prompt, record, seconds

    def prepare(self, chosen: Sequence[tuple[PromptSet, Sequence[int]]]) -> None:
        """Make the tensors of prompts that will be read soon, in a thread: they are ready when it comes to them."""
        wanted = {
            (id(prompts), p): prompts.read_first(prompts.prompts[p])
            for prompts, numbers in chosen
            for p in numbers
            if prompts.prompts[p].error is None
        }
        self._ahead.keep(wanted)
        for name, ids in wanted.items():
            self._ahead.ask(name, ids)

    def let_go(self) -> None:
        """Forget what was held of a prompt."""
        self._held = None

    def read(self, prompts: PromptSet, p: int, batch: Batch, cuts: tuple[int, ...]) -> list[Answer]:
        """A prompt through the prefill and, for each method of the batch, into a cache; failed rows among them.

        Args:
            p: which prompt of the set. cuts: lengths of the beginnings that it shares with others.

        Raises:
            Whatever `ends_the_run`, and running out of memory while a smaller batch might not.
        """
        prompt = prompts.prompts[p]
        if prompt.error is not None:
            return [Answer(p, m, prompt.error) for m in batch.methods]
        if prompts.shared and (id(prompts), p) in self.hopeless:
            return [Answer(p, m, self.hopeless[id(prompts), p]) for m in batch.methods]
        for attempt in ("first", "last"):
            try:
                record, seconds = self._prefill(prompts, p, batch, cuts)
                break
            except Exception as error:
                poor, alone = is_out_of_memory(error), len(batch.prompts) == 1
                if ends_the_run(error) or (poor and not alone):
                    raise
                failure = bare(error)
            if poor:  # fewer methods would not help
                self._ran_out(prompts, batch, "tried again" if attempt == "first" else "recorded as an error")
            if attempt == "last":
                self.hopeless[id(prompts), p] = sentence(failure)
            if not poor or attempt == "last":
                return [Answer(p, m, sentence(failure)) for m in batch.methods]
        answers = [self._compress(prompts, p, m, record, seconds, batch) for m in batch.methods]
        good = [a for a in answers if a.cache is not None]
        plain = [a for a in good if a.plain]
        for a in plain[1:]:
            a.same_as, a.cache = plain[0], None
        self._read_question(prompts, prompt, [a for a in good if a.same_as is None])
        return answers

    def _prefill(
        self, prompts: PromptSet, p: int, batch: Batch, cuts: tuple[int, ...]
    ) -> tuple[PrefillRecord, dict[str, float]]:
        if self._held is not None and self._held[0] == p and prompts.shared:
            return self._held[1], self._held[2]
        self._held = None
        prompt = prompts.prompts[p]
        ids = self._ahead.take((id(prompts), p), prompts.read_first(prompt))
        methods = prompts.methods if prompts.shared else (prompts.methods[batch.methods[0]],)
        self._tell(prompts, p, "" if prompts.shared else methods[0].id)
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
        if self.hold:
            self._held = p, record, {"prefill": reading.seconds}
        return record, seconds | {"prefill": reading.seconds}

    def _compress(
        self, prompts: PromptSet, p: int, m: int, record: PrefillRecord, seconds: dict[str, float], batch: Batch
    ) -> Answer:
        prompt, method = prompts.prompts[p], prompts.methods[m]
        answer = Answer(p, m)
        torch.manual_seed(sample_seed(self.options.seed, prompts.task.id, prompt.row.id))
        try:
            with Stopwatch(self.loaded.info.device) as compressing:
                cache = method.compress(record)
        except Exception as error:
            if ends_the_run(error) or is_out_of_memory(error):
                raise
            answer.problem = sentence(error)
            return answer
        answer.plain = prompts.shared and is_untouched(cache, record, prompt.tokens + prompts.max_new_tokens)
        if answer.plain:
            cache = record.cache.fork()  # without what the method keeps to act later: it is the full cache's row
        answer.cache, answer.logits = cache, record.logits
        answer.kept, answer.held, answer.resident = cache.entries, cache.storage_nbytes, cache.resident_nbytes
        if method.traits.memory == "simulated" and not answer.plain:
            answer.held = method.logical_nbytes(self.loaded.shape(), record.length)
        if record.length < len(prompts.read_first(prompt)):
            answer.read = record.length
        if prompt.tokens_before is not None:
            answer.seconds["rewrite"] = prompt.rewrite_seconds
        answer.seconds |= {**seconds, "compress": compressing.seconds}
        return answer

    def _read_question(self, prompts: PromptSet, prompt: PreparedPrompt, answers: Sequence[Answer]) -> None:
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
